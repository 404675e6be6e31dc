"""Sizes worth resizing to: valid, near what is asked for, and near the source's own sizes.

Proposals keep the source's head_dim and its ratio of ffn to hidden, so that heads and MLP units are
copied, picked or merged but never cut, and they change width and depth in one direction. For every
width there is one depth that comes nearest to the parameters asked for. Of those, what is equally
near (within steps of 5, 15 and 30 %) is sorted by how much has to be merged or invented:

    cost = |log2 of the width's ratio| + |log2 of the depth's ratio| + 1/2 for a width's partial level,

the number of halvings or doublings; a ratio that is no power of two needs a partial level, which
merges some places and passes the others on.
"""

import copy
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Unpack

from transformers import PreTrainedConfig

from .. import architectures
from ..architectures.adapter import Adapter, Roles, Sizes
from ..architectures.inventory import Shapes, class_for_task, own_class, predict
from ..architectures.sizes import check_fields, rebuild, role_sizes, without_crossing
from ..auto import plan
from ..compat import quiet
from ..console.progress import logger
from ..console.tables import html_table, page
from ..console.text import percent, printable, read_bytes, read_number, read_share, size
from ..errors import BadKeyword, BadOption, BadSize
from ..errors import suggest as nearest
from ..planning.render import parameters_kept
from ..request.request import FILES, HUB, named_config, picked, place, read_config, sort_keywords
from ..request.source_class import told_class

if TYPE_CHECKING:
    from ..request.signatures import DType, SourceKeywords

OWN = ("params", "like", "ratio", "memory", "dtype", "count", "task", "allow_pickle")
NEAR = (0.05, 0.15, 0.30)  # relative distances that count as equal
DEARER = 2  # halvings more than the cheapest proposal has: what is left out
FARTHEST = 8  # times the source's width or depth
SMALLEST_HEAD = 8
NARROWEST = 16  # times narrower than the source: hardly a model
HARDLY = "is hardly a model"
QUICK = {"basis": "plain"}  # sizes and the inherited share are the same for every basis; this one is planned fastest


@dataclass(frozen=True, repr=False)
class Suggestion:
    """A size to resize to.

    Attributes:
        fields: config fields that give it, as keywords of `from_pretrained` and `resize_checkpoint`.
        sizes: role -> length, for layers, the stream, units and what they hold.
        parameters: of the result, tied ones once.
        bytes: of its weights.
        flops: of a forward pass per token at the longest sequence, beside the source's.
        inherited: share of the parameters that comes from the source.
        off: relative distance of the parameters from those asked for.
        cost: halvings and doublings, and 0.5 for a partial level.
        notes: what happens to width, depth and heads, and whether that is hardly a model any more.
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
        told = f"{self.parameters:,} parameters ({100 * self.off:+.1f} %), {size(self.bytes)}"
        told += f", {self.flops:.2f} of the FLOPs"
        told += f", keeps {percent(self.kept)} of the source's parameters"
        why = next((f": {note}" for note in self.notes if HARDLY in note), "")
        return f"<Suggestion: {printable(fields)}; {told}{why}>"

    def _repr_html_(self) -> str:
        return _page([self], tuple(self.sizes))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"notes": list(self.notes)}


class Suggestions(list[Suggestion]):
    """What `suggest` returns: a list of suggestions, the best first, that shows as one table in a notebook.

    Attributes:
        columns: the roles whose lengths tell the sizes apart.
    """

    def __init__(self, found: Iterable[Suggestion] = (), columns: Sequence[str] = ()) -> None:
        super().__init__(found)
        self.columns = tuple(columns)

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
    """A handful of valid sizes for `source`, the best first; from configs alone, no weights are read.

    Example:
        >>> from transformers import BertConfig
        >>> best = suggest(BertConfig(), ratio=0.5)[0]
        >>> best.fields, round(best.parameters / 1e6)
        ({'num_hidden_layers': 12, 'hidden_size': 512, 'num_attention_heads': 8}, 54)

    Args:
        source: hub id, folder, or config.
        params: how many parameters the result shall have, a number or text such as "60M".
        like: a model whose layers, width and MLP to take: a ready config's name, a folder, a hub id or a
            config of any supported architecture. Vocabulary and positions stay the source's.
        ratio: parameters beside the source's, such as 0.5, "50%" or "1/2".
        memory: the most that the weights may take, bytes or text such as "200MB".
        dtype: of the result, for bytes; the source's by default.
        count: how many sizes at most.
        task: the head, where it is not the source's own or config.json does not name it.
        allow_pickle: read pytorch_model.bin for its tensors' names, where nothing else tells the class.
        keywords: of the Hub (revision, subfolder, token, ...) and of the files (variant, ...).

    Raises:
        BadKeyword: a keyword that does not exist.
        BadOption: none or several of params, like, ratio and memory, or a value that is no size.
        BadSize: a size that no width or depth comes near.
        UnsupportedArchitecture: a model type without an adapter.
    """
    for unknown in set(keywords) - {*HUB, *FILES}:
        raise BadKeyword(f"suggest has no keyword {unknown!r}.{nearest(unknown, (*OWN, *HUB, *FILES))}")
    given = {"params": params, "like": like, "ratio": ratio, "memory": memory}
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) != 1:
        got = " and ".join(f"{name}=" for name in asked) or "none of them"
        raise BadOption(f"a size is asked for by one of params=, like=, ratio= and memory=, got {got}.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise BadOption(f"count must be a whole number of at least 1, got {count!r}.")
    config = _config(source, task, {**keywords, "allow_pickle": allow_pickle})
    search = _Search.of(without_crossing(config), dtype, config)
    if like is not None:
        found = search.like(like, count)
    elif memory is not None:
        found = search.within(int(read_bytes(memory) / search.itemsize), count)
    else:
        found = search.near(read_number(params) if params is not None else read_share(ratio) * search.parameters, count)
    roles = search.adapter.roles
    return Suggestions(found, [role for role in roles.resized if role not in roles.entries])


@dataclass(frozen=True)
class _Shape:
    """The roles by which the size of an architecture is told: the first depth and stream, heads and what they hold."""

    depth: str
    width: str
    heads: str
    entry: str
    plain: tuple[str, ...]

    @classmethod
    def of(cls, roles: Roles) -> "_Shape":
        heads = next(unit for unit in roles.units if roles.is_whole(unit))
        entry = next(role for role in roles.entries if roles[role].within == heads)
        plain = tuple(unit for unit in roles.units if not roles.is_whole(unit) and not roles[unit].within)
        return cls(roles.depths[0], roles.streams[0], heads, entry, plain)


@dataclass(frozen=True)
class _Search:
    """The source, counted."""

    adapter: Adapter
    config: PreTrainedConfig
    sizes: Sizes
    shapes: Shapes
    dtype: Any
    itemsize: int
    crossed: bool  # whether the source has cross attention, which its target is to leave out
    shape: _Shape

    @classmethod
    def of(cls, config: PreTrainedConfig, dtype: Any, whole: PreTrainedConfig) -> "_Search":
        adapter = architectures.get(config.model_type)
        sizes = role_sizes(adapter, config, "source")
        check_fields(adapter, config, "source")
        with quiet():
            inventory = predict(own_class(config), config)
        # Asks for the source's own size: checks dtype, and says how large one parameter is.
        bytes_ = plan(copy.deepcopy(config), {}, dtype=dtype, bot_config=QUICK).to_dict()["bytes"]["target"]
        shapes = Shapes.of(adapter, inventory, sizes)
        itemsize, crossed = bytes_ // shapes.parameters(sizes), config is not whole
        return cls(adapter, config, sizes, shapes, dtype, itemsize, crossed, _Shape.of(adapter.roles))

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
        far, most = self._rank(ranked[0], wanted)[0], min(map(self._cost, best.values())) + DEARER
        kept = [s for s in ranked if best[s[width]] is s and self._rank(s, wanted)[0] <= max(far, len(NEAR) - 1)]
        cheap = [sizes for sizes in kept if self._cost(sizes) <= most] or kept
        cheap = [sizes for sizes in cheap if not self._hardly(sizes)] or cheap
        return [self._suggestion(sizes, wanted) for sizes in cheap[:count]]

    def within(self, limit: float, count: int) -> list[Suggestion]:
        """The largest sizes of at most `limit` parameters."""
        return self.near(limit, count, limit)

    def like(self, other: str | os.PathLike[str] | PreTrainedConfig, count: int) -> list[Suggestion]:
        """Another model's shape first, then sizes near its number of parameters."""
        named = place(other) if isinstance(other, os.PathLike) else other
        config = named_config(named) if isinstance(named, str) else named
        adapter = architectures.get(config.model_type)
        theirs, other_shape = role_sizes(adapter, config, "target"), _Shape.of(adapter.roles)
        width, head_dim = _known(theirs, other_shape.width), _known(self.sizes, self.shape.entry)
        heads = width // head_dim if width % head_dim == 0 else _known(theirs, other_shape.heads)
        plain = [_known(theirs, unit) for unit in other_shape.plain]
        shape = self._sized(_known(theirs, other_shape.depth), heads, width // heads, plain)
        wanted = self.shapes.parameters(shape)
        first = self._suggestion(shape, wanted)
        others = [one for one in self.near(wanted, count) if one.sizes != first.sizes]
        return [first, *others][:count]

    # -- the grid -------------------------------------------------------------------------------

    def _grid(self, wanted: float) -> Iterator[Sizes]:
        """For every width the depth that comes nearest, in the direction that is asked for."""
        layers, heads, head_dim = (
            _known(self.sizes, role) for role in (self.shape.depth, self.shape.heads, self.shape.entry)
        )
        grows = wanted > self.parameters
        least, most = (layers, FARTHEST * layers) if grows else (1, layers)
        while head_dim % 2 == 0 and head_dim > SMALLEST_HEAD and self._parameters(1, 1, head_dim) > wanted:
            head_dim //= 2  # not even one head is narrow enough
        for number in range(heads, FARTHEST * heads + 1) if grows else range(1, heads + 1):
            none, one = (self._parameters(depth, number, head_dim) for depth in (0, 1))
            best = (wanted - none) / (one - none)  # every layer has as many
            for depth in {min(most, max(least, step)) for step in (math.floor(best), math.ceil(best))}:
                yield self._sized(depth, number, head_dim)

    def _parameters(self, layer: int, heads: int, head_dim: int) -> int:
        return self.shapes.parameters(self._sized(layer, heads, head_dim))

    def _sized(self, layers: int, heads: int, head_dim: int, plain: Sequence[int] = ()) -> Sizes:
        """The source's sizes at another depth and width; what is as wide as the stream stays so.

        Args:
            plain: of the MLP's units, one for each such role; in proportion to the width by default.
        """
        roles, shape = self.adapter.roles, self.shape
        before = [_known(self.sizes, role) for role in (shape.depth, shape.heads, shape.entry)]
        deeper, wider = Fraction(layers, before[0]), Fraction(heads * head_dim, before[1] * before[2])
        scaled = {**dict.fromkeys(roles.depths, deeper), **dict.fromkeys((*roles.streams, *shape.plain), wider)}
        lengths = {role: round(_known(self.sizes, role) * share) for role, share in scaled.items()}
        lengths |= {**dict(zip(shape.plain, plain, strict=False)), shape.heads: heads, shape.entry: head_dim}
        alike = {  # what follows one of these and is as long
            role: lengths[roles.leader(role)]
            for role in roles
            if role not in lengths
            and roles.leader(role) in lengths
            and self.sizes[role] == self.sizes[roles.leader(role)]
        }
        return {**self.sizes, **lengths, **alike}

    def _hardly(self, sizes: Sizes) -> bool:
        """Whether a size is too narrow to be of use: one head left of several, or next to no width."""
        (heads, width), (heads_before, width_before) = (
            (_known(side, self.shape.heads), _known(side, self.shape.width)) for side in (sizes, self.sizes)
        )
        return heads == 1 < heads_before or width * NARROWEST < width_before

    def _off(self, sizes: Sizes, wanted: float) -> float:
        return abs(self.shapes.parameters(sizes) / wanted - 1)

    def _rank(self, sizes: Sizes, wanted: float) -> tuple[float, ...]:
        off = self._off(sizes, wanted)
        step = next((number for number, near in enumerate(NEAR) if off <= near), len(NEAR))
        return (step, off if step == len(NEAR) else 0, self._cost(sizes), off)

    def _cost(self, sizes: Sizes) -> float:
        roles = self.shape.width, self.shape.depth
        width, depth = (math.log2(_known(sizes, role) / _known(self.sizes, role)) for role in roles)
        return abs(width) + abs(depth) + (0 if width.is_integer() else 0.5)

    # -- one of them ----------------------------------------------------------------------------

    def _suggestion(self, sizes: Sizes, wanted: float) -> Suggestion:
        fields = self._fields(sizes)
        made = plan(copy.deepcopy(self.config), fields, dtype=self.dtype, bot_config=QUICK)
        shown = {role: _known(made.target_sizes, role) for role in self.adapter.roles.resized}
        return Suggestion(
            {**fields, "add_cross_attention": False} if self.crossed else fields,
            shown,
            made.parameters,
            made.to_dict()["bytes"]["target"],
            round(self.shapes.flops(made.target_sizes) / self.shapes.flops(self.sizes), 4),
            made.inherited,
            round(made.parameters / wanted - 1, 4),
            round(self._cost(made.target_sizes), 3),
            tuple(self._notes(shown)),
            round(parameters_kept(made), 4),
        )

    def _fields(self, sizes: Sizes) -> dict[str, int]:
        """Config fields for these sizes; those that follow the width by themselves only where they would not."""
        roles = self.adapter.roles
        fields = {roles[role].field: _known(sizes, role) for role in (*roles.depths, *roles.streams, self.shape.heads)}
        after = role_sizes(self.adapter, rebuild(self.adapter, self.config, fields), "target")
        others = [role for role in roles.of("unit") if not roles[role].within and roles[role].field not in fields]
        return fields | {roles[role].field: _known(sizes, role) for role in others if after[role] != sizes[role]}

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
        for role, name in ((self.shape.depth, "layers"), (self.shape.heads, "heads")):
            before, after = _known(self.sizes, role), sizes[role]
            if after < before:
                yield f"{after} of {before} {name} kept whole"
            else:
                yield f"all {name} kept" + (f", {after - before} added" if after > before else "")
        if self._hardly(sizes):
            number = sizes[self.shape.heads]
            heads = "one head" if number == 1 else f"{number} heads"
            yield f"width {sizes[self.shape.width]} with {heads} {HARDLY}: ask for more parameters"
        entry = self.shape.entry
        if sizes[entry] != self.sizes[entry]:
            yield f"{entry} {self.sizes[entry]} to {sizes[entry]}"


def _config(source: Any, task: str | None, keywords: dict[str, Any]) -> PreTrainedConfig:
    """The source's config, naming the class that is going to be resized."""
    if isinstance(source, PreTrainedConfig):
        config = source
    else:
        name = os.fspath(source)
        config = read_config(name, picked(keywords, HUB))
        adapter = architectures.get(config.model_type)
        if task is None:
            config, told = told_class(adapter, config, name, sort_keywords(keywords), fetch=False)
            for sentence in told:
                logger.warning(sentence)
    if task is not None:
        config = copy.deepcopy(config)
        config.architectures = [class_for_task(task)(config).__name__]
    return config


def _known(sizes: Mapping[str, int | None], role: str) -> int:
    """A length that every adapter must be able to tell."""
    length = sizes[role]
    if length is None:
        raise BadOption(f"the adapter does not say how long {role} is; sizes need it.")
    return length


def _page(every: Sequence[Suggestion], columns: Sequence[str]) -> str:
    """Suggestions as one HTML table, the best first."""
    head = ("keywords", *columns, "parameters", "off", "bytes", "FLOPs", "kept", "notes")
    rows = []
    for one in every:
        fields = ", ".join(f"{name}={value!r}" for name, value in one.fields.items())
        sizes = (str(one.sizes[role]) for role in columns)
        cost = f"{one.parameters:,}", f"{100 * one.off:+.1f} %", size(one.bytes), f"{one.flops:.2f}x", percent(one.kept)
        rows.append((fields, *sizes, *cost, "; ".join(one.notes)))
    told = "off: from what was asked; FLOPs: of a token, beside the source's; kept: of the source's parameters"
    return page("Suggestions", [told], [html_table([head, *rows], right=range(1, len(head) - 1))])
