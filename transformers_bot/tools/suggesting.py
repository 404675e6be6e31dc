"""Sizes worth resizing to: valid, near the wish, and near the source's own sizes.

Suggestions keep the source's head_dim and its ratio of ffn to hidden, so that heads and MLP units are copied, picked
or merged but never cut. Width and depth both grow or both shrink. Every width gets the depth that comes nearest to the
number of parameters wished for. The distance from the wish counts in steps (within 5, 15 or 30 %); sizes of the same
step are sorted by how much must be merged or invented:

    cost = |log2 of the width's ratio| + |log2 of the depth's ratio| + 1/2 for a width's partial level,

the number of halvings or doublings. A ratio that is no power of two needs a partial level, which merges some entries
and copies the others.
"""

import copy
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Unpack

from transformers import PreTrainedConfig

from .. import architectures
from ..architectures.adapter import Adapter, Sizes
from ..architectures.inventory import Shapes, own_class, predict
from ..architectures.sizes import check_fields, fields_for, role_sizes, without_crossing
from ..compat import quiet
from ..console.progress import logger
from ..console.tables import html_table, page
from ..console.text import brief, percent, printable, read_bytes, read_number, read_share, size
from ..errors import BadOption, BadSize, UnsupportedArchitecture
from ..planning.render import parameters_kept
from ..request.names import FILES, HUB, check_known
from ..request.request import Call, Request, class_for_task, named_config, place, read_call, target_config
from ..request.source_class import with_class
from ..run.from_configs import plan_of

if TYPE_CHECKING:
    from ..request.signatures import DType, SourceKeywords

NEAR = (0.05, 0.15, 0.30)  # steps of the relative distance; within a step all sizes count as equally near
DEARER = 2  # the most that a suggestion may cost above the cheapest one
FARTHEST = 8  # the most times the source's width or depth
SMALLEST_HEAD = 8
STEP = 8  # widths that are no exact share of the source's are a multiple of this, as tensor cores like them
NARROWEST = 16  # times narrower than the source: such a result is hardly a model
HARDLY = "is hardly a model"
TRIES = 20  # sizes that are planned beyond the wished number, where the model type does not allow some
QUICK = {"basis": "plain"}  # sizes and the inherited share are the same for every basis; this one is planned fastest


@dataclass(frozen=True, repr=False)
class Suggestion:
    """A size to resize to.

    Attributes:
        fields: the config fields of this size, as keywords of `from_pretrained` and `resize_checkpoint`.
        sizes: role -> length, for layers, the stream, units and their entries.
        parameters: of the result; tied ones count once.
        bytes: of its weights.
        flops: of a forward pass per token at the longest sequence, as a multiple of the source's.
        inherited: share of the parameters that comes from the source.
        off: relative difference of the parameters from the wish.
        cost: halvings and doublings, and 0.5 for a partial level.
        notes: what happens to width, depth and heads, and whether the result is too narrow for use.
        kept: share of the source's parameters that the result has, at most 1; below 1 it must be trained.
    """

    fields: dict[str, Any]
    sizes: dict[str, int]
    parameters: int
    bytes: int
    flops: float
    inherited: float
    off: float
    cost: float
    notes: tuple[str, ...]
    kept: float = 1.0

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        facts = f"{self.parameters:,} parameters ({100 * self.off:+.1f} %), {size(self.bytes)}"
        facts += f", {self.flops:.2f} of the FLOPs"
        facts += f", keeps {percent(self.kept)} of the source's parameters"
        warning = next((f": {note}" for note in self.notes if HARDLY in note), "")
        return f"<Suggestion: {printable(fields)}; {facts}{warning}>"

    def _repr_html_(self) -> str:
        return _page([self], tuple(self.sizes))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"notes": list(self.notes)}


class Suggestions(list[Suggestion]):
    """The result of `suggest`: a list of suggestions, the best first, which a notebook shows as one table.

    Attributes:
        columns: the roles that are shown.
        shape: the roles of the first depth and the first width, as in "6x384".
    """

    def __init__(
        self,
        suggestions: Iterable[Suggestion] = (),
        columns: Sequence[str] = (),
        shape: tuple[str, str] = ("layer", "hidden"),
    ) -> None:
        super().__init__(suggestions)
        self.columns = tuple(columns)
        self.shape = shape

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "[]"

    def _repr_html_(self) -> str:
        return _page(self, self.columns)


def suggest(
    source: str | os.PathLike[str] | PreTrainedConfig,
    *,
    params: int | float | str | None = None,
    like: str | os.PathLike[str] | PreTrainedConfig | None = None,
    ratio: float | str | None = None,
    memory: int | float | str | None = None,
    dtype: "DType" = None,
    count: int = 5,
    task: str | None = None,
    allow_pickle: bool = False,
    **keywords: "Unpack[SourceKeywords]",
) -> Suggestions:
    """Suggest valid sizes for `source`, the best first; only configs are read, no weights.

    Example:
        >>> from transformers import BertConfig
        >>> best = suggest(BertConfig(), ratio=0.5)[0]
        >>> best.fields, round(best.parameters / 1e6)
        ({'num_hidden_layers': 12, 'hidden_size': 512, 'num_attention_heads': 8}, 54)

    Args:
        source: hub id, folder, or config.
        params: the number of parameters of the result, a number or text such as "60M".
        like: a model whose layers, width and MLP to take: a ready config's name, a folder, a hub id or a
            config of any supported architecture. Vocabulary and positions stay the source's.
        ratio: parameters as a share of the source's, such as 0.5, "50%" or "1/2".
        memory: the most memory for the weights, bytes or text such as "200MB".
        dtype: of the result, to count its bytes; the source's by default.
        count: the most suggestions.
        task: the head, if it is not the source's own or config.json does not name it.
        allow_pickle: read the names of the tensors in pytorch_model.bin, if nothing else shows the class.
        keywords: of the Hub (revision, subfolder, token, ...) and of the files (variant, ...).

    Raises:
        BadKeyword: a keyword that does not exist.
        BadOption: none or several of params, like, ratio and memory are given, or a value is no size.
        BadSize: no width and depth come near the wish.
        UnsupportedArchitecture: a model type without an adapter.
    """
    check_known("suggest", keywords, (*HUB, *FILES))
    sizes = {"params": params, "like": like, "ratio": ratio, "memory": memory}
    wishes = [name for name, value in sizes.items() if value is not None]
    if len(wishes) != 1:
        names = " and ".join(f"{name}=" for name in wishes) or "none of them"
        raise BadOption(f"pass exactly one of params=, like=, ratio= and memory=, got {names}.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise BadOption(f"count must be a whole number of at least 1, got {count!r}.")
    search = _Search.of(_call(source, task, {**keywords, "allow_pickle": allow_pickle, "dtype": dtype}))
    if like is not None:
        suggestions = search.like(like, count)
    elif memory is not None:
        suggestions = search.within(int(read_bytes(memory) / search.itemsize), count)
    else:
        suggestions = search.near(
            read_number(params) if params is not None else read_share(ratio) * search.parameters, count
        )
    roles = search.adapter.roles
    columns = [role for role in roles.resized if role not in roles.entries]
    return Suggestions(suggestions, columns, (search.shape.depth, search.shape.width))


@dataclass(frozen=True)
class _Shape:
    """The roles that define the size of an architecture: the first depth and stream, heads and their entries.

    Attributes:
        plain: units that are no heads, of the MLPs.
        entries: every unit like heads -> its entries.
        unit_of: every stream -> the heads that read it.
        stream_of: every plain unit -> the stream that it reads.
    """

    depth: str
    width: str
    heads: str
    entry: str
    plain: tuple[str, ...]
    entries: Mapping[str, str]
    unit_of: Mapping[str, str]
    stream_of: Mapping[str, str]

    @classmethod
    def of(cls, adapter: Adapter) -> "_Shape":
        roles = adapter.roles
        inside = {roles[role].within: role for role in reversed(roles.entries)}
        entries = {unit: inside[unit] for unit in roles.units if roles.is_whole(unit) and unit in inside}
        plain = tuple(unit for unit in roles.units if not roles.is_whole(unit) and not roles[unit].within)
        unit_of: dict[str, str] = {}
        stream_of: dict[str, str] = {}
        for rule in adapter.rules:
            members = [roles.leader(role) for role in rule.roles if role in roles]
            for stream in (role for role in members if role in roles.streams):
                for member in members:
                    if member in entries:
                        unit_of.setdefault(stream, member)
                    elif member in plain:
                        stream_of.setdefault(member, stream)
        parts = {"layers": roles.depths, "stream": roles.streams, "heads with entries": entries}
        if lacking := [noun for noun, found in parts.items() if not found]:
            raise UnsupportedArchitecture(
                f"suggest needs layers, a stream and heads with entries, and the adapter of {adapter.model_type} has "
                f"no {' and no '.join(lacking)}. Choose sizes yourself: plan shows what they give."
            )
        heads = next(iter(entries))
        return cls(roles.depths[0], roles.streams[0], heads, entries[heads], plain, entries, unit_of, stream_of)


@dataclass(frozen=True)
class _Search:
    """The source with its counted parameters, and the search for sizes near a wish."""

    call: Call
    adapter: Adapter
    config: PreTrainedConfig
    sizes: dict[str, int | None]
    shapes: Shapes
    itemsize: int
    crossed: bool  # whether the source has cross attention, which the target leaves out
    shape: _Shape

    @classmethod
    def of(cls, call: Call) -> "_Search":
        config = without_crossing(call.source)
        crossed = config is not call.source
        call, adapter = replace(call, source=config), call.adapter.of(config)
        sizes = role_sizes(adapter, config, "source")
        check_fields(adapter, config, "source")
        with quiet():
            inventory = predict(own_class(config), config)
        # A plan to the source's own size: it checks the dtype and gives the bytes of one parameter.
        bytes_ = plan_of(Request.of(call, before=sizes)).to_dict()["bytes"]["target"]
        shapes = Shapes.of(adapter, inventory, sizes)
        itemsize = bytes_ // shapes.parameters(sizes)
        return cls(call, adapter, config, sizes, shapes, itemsize, crossed, _Shape.of(adapter))

    @property
    def parameters(self) -> int:
        return self.shapes.parameters(self.sizes)

    def near(self, wanted: float, count: int, limit: float = math.inf) -> list[Suggestion]:
        """The best sizes near a number of parameters."""
        allowed = [sizes for sizes in self._grid(wanted) if self.shapes.parameters(sizes) <= limit]
        ranked = sorted(allowed, key=lambda sizes: self._rank(sizes, wanted))
        if not ranked or not 0.5 <= self.shapes.parameters(ranked[0]) / wanted <= 2:
            raise BadSize(
                f"no size near {wanted:,.0f} parameters: the source has {self.parameters:,}, vocabulary and positions "
                f"stay, width and depth go up to {FARTHEST} times the source's. Ask for another size."
            )
        width = self.shape.width
        best = {sizes[width]: sizes for sizes in reversed(ranked)}  # the best depth of every width
        best_step, max_cost = self._rank(ranked[0], wanted)[0], min(map(self._cost, best.values())) + DEARER
        candidates = [
            s for s in ranked if best[s[width]] is s and self._rank(s, wanted)[0] <= max(best_step, len(NEAR) - 1)
        ]
        cheap = [sizes for sizes in candidates if self._cost(sizes) <= max_cost] or candidates
        cheap = [sizes for sizes in cheap if not self._is_too_narrow(sizes)] or cheap
        return (
            self._valid(cheap, wanted, count) or self._valid(ranked, wanted, 1) or [self._suggestion(cheap[0], wanted)]
        )

    def _valid(self, candidates: Sequence[Sizes], wanted: float, count: int) -> list[Suggestion]:
        """The first suggestions that the model type allows: its heads may have to divide a width that they share."""
        suggestions: list[Suggestion] = []
        for sizes in candidates[: count + TRIES]:
            with suppress(BadSize):
                suggestions.append(self._suggestion(sizes, wanted))
            if len(suggestions) == count:
                break
        return suggestions

    def within(self, limit: float, count: int) -> list[Suggestion]:
        """The largest sizes of at most `limit` parameters."""
        return self.near(limit, count, limit)

    def like(self, other: str | os.PathLike[str] | PreTrainedConfig, count: int) -> list[Suggestion]:
        """Another model's shape first, then sizes near its number of parameters."""
        model = place(other) if isinstance(other, os.PathLike) else other
        if not isinstance(model, (str, PreTrainedConfig)):
            raise BadOption(
                f"like must be a ready config's name, a folder, a hub id or a config object, got {brief(repr(other))}."
            )
        config = named_config(model) if isinstance(model, str) else model
        adapter = architectures.adapter_of(config)
        lengths_of_other, other_shape = role_sizes(adapter, config, "target"), _Shape.of(adapter)
        plain = [_known(lengths_of_other, unit) for unit in other_shape.plain]
        heads = self._heads_at(_known(lengths_of_other, other_shape.width), _known(lengths_of_other, other_shape.heads))
        shape = self._sized(_known(lengths_of_other, other_shape.depth), *heads, plain)
        wanted = self.shapes.parameters(shape)
        first = self._suggestion(shape, wanted)
        others = [suggestion for suggestion in self.near(wanted, count) if suggestion.sizes != first.sizes]
        return [first, *others][:count]

    def _heads_at(self, width: int, heads: int) -> tuple[int, int]:
        """Heads and their entries at a width: the source's head_dim where it divides, else so many heads.

        Heads here are the first unit of the kind; with grouped queries these are the key-value heads, and a group of
        queries takes the place of one head.
        """
        own_width, own_heads, head_dim = (
            _known(self.sizes, role) for role in (self.shape.width, self.shape.heads, self.shape.entry)
        )
        group = Fraction(own_width, own_heads)  # of the width
        if (width / group).denominator == 1:
            return int(width / group), head_dim
        return (heads, width // heads) if group == head_dim else (max(1, round(width / group)), head_dim)

    # -- the grid -------------------------------------------------------------------------------

    def _grid(self, wanted: float) -> Iterator[Sizes]:
        """Every width with the one or two depths that come nearest, growing or shrinking as the wish does."""
        layers, heads, head_dim = (
            _known(self.sizes, role) for role in (self.shape.depth, self.shape.heads, self.shape.entry)
        )
        grows = wanted > self.parameters
        min_depth, max_depth = (layers, FARTHEST * layers) if grows else (1, layers)
        while head_dim % 2 == 0 and head_dim > SMALLEST_HEAD and self._parameters(1, 1, head_dim) > wanted:
            head_dim //= 2  # even one head is too wide
        for number in range(heads, FARTHEST * heads + 1) if grows else range(1, heads + 1):
            without_layers, with_one = (self._parameters(depth, number, head_dim) for depth in (0, 1))
            depth_wanted = (wanted - without_layers) / (
                with_one - without_layers
            )  # every layer has the same number of parameters
            for depth in {
                min(max_depth, max(min_depth, step)) for step in (math.floor(depth_wanted), math.ceil(depth_wanted))
            }:
                yield self._sized(depth, number, head_dim)

    def _parameters(self, layer: int, heads: int, head_dim: int) -> int:
        return self.shapes.parameters(self._sized(layer, heads, head_dim))

    def _sized(self, layers: int, heads: int, head_dim: int, plain: Sequence[int] = ()) -> Sizes:
        """The source's sizes at another depth and width; roles that are as long as the one they follow stay so.

        Args:
            plain: lengths of the MLP's units, one per role; in proportion to the width by default.
        """
        roles, shape = self.adapter.roles, self.shape
        before = [_known(self.sizes, role) for role in (shape.depth, shape.heads, shape.entry)]
        deeper, more, longer = (Fraction(*pair) for pair in zip((layers, heads, head_dim), before, strict=True))
        lengths = {role: max(min(1, layers), round(_known(self.sizes, role) * deeper)) for role in roles.depths}
        for unit, entry in shape.entries.items():
            lengths |= {unit: self._scaled(unit, more, 1), entry: self._scaled(entry, longer, 1)}
        wider: dict[str, Fraction] = {}  # by as much as the heads that read a stream, all together
        for stream in roles.streams:
            unit = shape.unit_of.get(stream, shape.heads)
            heads_wider, entries_wider = (
                Fraction(lengths[role], _known(self.sizes, role)) for role in (unit, shape.entries[unit])
            )
            wider[stream] = heads_wider * entries_wider
            lengths[stream] = self._scaled(stream, wider[stream])
        for unit in shape.plain:
            lengths[unit] = self._scaled(unit, wider[shape.stream_of.get(unit, shape.width)])
        lengths |= {**dict(zip(shape.plain, plain, strict=False)), shape.heads: heads, shape.entry: head_dim}
        followers = {  # roles that follow one of these and are as long
            role: lengths[roles.leader(role)]
            for role in roles
            if role not in lengths
            and roles.leader(role) in lengths
            and self.sizes[role] == self.sizes[roles.leader(role)]
        }
        return {**self.sizes, **lengths, **followers}

    def _scaled(self, role: str, share: Fraction, step: int = STEP) -> int:
        """A role's length in the source times `share`, and a multiple of `step` where that is no whole number."""
        before = _known(self.sizes, role)
        step = step if before % step == 0 else 1
        exact = before * share
        return int(exact) if exact.denominator == 1 else max(step, step * round(exact / step))

    def _is_too_narrow(self, sizes: Sizes) -> bool:
        """Whether a size is too narrow to be of use: one of several heads is left, or little of the width."""
        (heads, width), (heads_before, width_before) = (
            (_known(side, self.shape.heads), _known(side, self.shape.width)) for side in (sizes, self.sizes)
        )
        return heads == 1 < heads_before or width * NARROWEST < width_before

    def _distance(self, sizes: Sizes, wanted: float) -> float:
        return abs(self.shapes.parameters(sizes) / wanted - 1)

    def _rank(self, sizes: Sizes, wanted: float) -> tuple[float, ...]:
        distance = self._distance(sizes, wanted)
        step = next((number for number, near in enumerate(NEAR) if distance <= near), len(NEAR))
        return (step, distance if step == len(NEAR) else 0, self._cost(sizes), distance)

    def _cost(self, sizes: Sizes) -> float:
        roles = self.shape.width, self.shape.depth
        width, depth = (math.log2(_known(sizes, role) / _known(self.sizes, role)) for role in roles)
        return abs(width) + abs(depth) + (0 if width.is_integer() else 0.5)

    # -- one suggestion ----------------------------------------------------------------------------

    def _suggestion(self, sizes: Sizes, wanted: float) -> Suggestion:
        fields, request = self._request(sizes)
        result = plan_of(request)
        lengths = {role: _known(result.target_sizes, role) for role in self.adapter.roles.resized}
        return Suggestion(
            {**fields, "add_cross_attention": False} if self.crossed else fields,
            lengths,
            result.parameters,
            result.to_dict()["bytes"]["target"],
            round(self.shapes.flops(result.target_sizes) / self.shapes.flops(self.sizes), 4),
            result.inherited,
            round(result.parameters / wanted - 1, 4),
            round(self._cost(result.target_sizes), 3),
            tuple(self._notes(lengths)),
            round(parameters_kept(result), 4),
        )

    def _request(self, sizes: Sizes) -> tuple[dict[str, int], Request]:
        """The config fields for these sizes, without those that follow from the width by themselves, and a request."""
        roles = self.adapter.roles
        heads = {role: length for role, length in sizes.items() if roles[role].kind == "unit" and roles.is_whole(role)}
        fields = {roles[role].field: _known(sizes, role) for role in (*roles.depths, *roles.streams)}
        fields |= fields_for(roles, heads)
        target = self._target(fields)
        after = role_sizes(self.adapter, target, "target")
        others = [role for role in roles.of("unit") if not roles[role].within and roles[role].field not in fields]
        unlike = {roles[role].field: _known(sizes, role) for role in others if after[role] != sizes[role]}
        if unlike:
            fields |= unlike
            target = self._target(fields)
            after = role_sizes(self.adapter, target, "target")
        return fields, Request.of(self.call, target=target, before=self.sizes, after=after)

    def _target(self, fields: dict[str, int]) -> PreTrainedConfig:
        return target_config(self.adapter, self.config, replace(self.call.keywords, overrides=fields))

    def _notes(self, sizes: Mapping[str, int]) -> Iterator[str]:
        before, after = _known(self.sizes, self.shape.width), sizes[self.shape.width]
        levels = math.log2(after / before)
        if before == after:
            yield "width kept"
        elif levels.is_integer():
            times = {1: "", 2: " twice"}.get(int(abs(levels)), f" {abs(levels):.0f} times")
            yield f"width {'halved' if after < before else 'doubled'}{times}"
        else:
            yield f"width {before} to {after} by a partial level"
        fields = dict.fromkeys(self.adapter.roles[stream].field for stream in self.adapter.roles.streams)
        if len(fields) > 1:
            yield f"{' and '.join(fields)} in proportion"
        for role, name in ((self.shape.depth, "layers"), (self.shape.heads, "heads")):
            before, after = _known(self.sizes, role), sizes[role]
            if after < before:
                yield f"{after} of {before} {name} kept whole"
            else:
                yield f"all {name} kept" + (f", {after - before} added" if after > before else "")
        if self._is_too_narrow(sizes):
            number = sizes[self.shape.heads]
            heads = "one head" if number == 1 else f"{number} heads"
            yield f"width {sizes[self.shape.width]} with {heads} {HARDLY}: ask for more parameters"
        entry = self.shape.entry
        if sizes[entry] != self.sizes[entry]:
            yield f"{entry} {self.sizes[entry]} to {sizes[entry]}"


def _call(source: Any, task: str | None, keywords: dict[str, Any]) -> Call:
    """The source with the class to resize in its `architectures`, and the keywords of all plans."""
    class_for = class_for_task(task)
    call = read_call("suggest", source, {**keywords, "bot_config": QUICK}, own_class)
    if task is not None:
        config = copy.deepcopy(call.source)
        config.architectures = [class_for(config).__name__]
        return replace(call, source=config)
    if call.name:
        call = with_class(call, fetch=False)
        for sentence in call.notes:
            logger.warning(sentence)
    return call


def _known(sizes: Mapping[str, int | None], role: str) -> int:
    """The length of a role that every adapter must know."""
    length = sizes[role]
    if length is None:
        raise BadOption(f"the adapter does not say how long {role} is; sizes need it.")
    return length


def _page(suggestions: Sequence[Suggestion], columns: Sequence[str]) -> str:
    """Suggestions as one HTML table, the best first."""
    header = ("keywords", *columns, "parameters", "off", "bytes", "FLOPs", "kept", "notes")
    rows = []
    for suggestion in suggestions:
        fields = ", ".join(f"{name}={value!r}" for name, value in suggestion.fields.items())
        sizes = (str(suggestion.sizes[role]) for role in columns)
        cost = (
            f"{suggestion.parameters:,}",
            f"{100 * suggestion.off:+.1f} %",
            size(suggestion.bytes),
            f"{suggestion.flops:.2f}x",
            percent(suggestion.kept),
        )
        rows.append((fields, *sizes, *cost, "; ".join(suggestion.notes)))
    legend = "off: from the wish; FLOPs: per token, as a multiple of the source's; kept: of the source's parameters"
    return page("Suggestions", [legend], [html_table([header, *rows], right=range(1, len(header) - 1))])
