"""The language of adapters: roles and their kinds, rules for axes, norms; and the table of known adapters.

A role says what the entries of an axis are; its kind says what a method may do with them. Methods ask for the
kind of a role, never for its name:

    kind        is                                                      a method may
    depth       the layers of one stack                                 pick, repeat, insert, filter
    stream      one basis for a whole network, or for one tower of it   turn, order, filter
    unit        taken whole, in any order: MLP units, heads             order, pick, merge, copy
    entry       the inside of a unit: head_dim                          filter
    frequency   rotary pairs                                            keep, take every n-th, insert zeros
    place       positions of a text                                     crop, interpolate
    grid        one side of an image's grid of patches                  interpolate
    pixel       rows or columns of an image patch                       nothing; neighbours are similar
    identity    entries with a meaning: vocabulary, labels, channels    nothing

Rules, and the language that they are written in, are read by `language`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, get_args

from ..errors import BadOption, PlanError, UnsupportedArchitecture, suggest

Kind = Literal["depth", "stream", "unit", "entry", "frequency", "place", "grid", "pixel", "identity"]
KINDS: tuple[str, ...] = get_args(Kind)
FIXED: tuple[Kind, ...] = ("pixel", "identity")  # never resampled
RESIZED: tuple[Kind, ...] = ("depth", "stream", "unit", "entry", "frequency")  # of the size of a model


@dataclass(frozen=True)
class Numbered:
    """Layers of another kind, which a config names by their numbers.

    Example:
        >>> dense = Numbered("mlp_only_layers", lambda config: config.mlp_only_layers, {"decoder_sparse_step": 1})
        >>> dense.fields([0, 3])
        {'mlp_only_layers': [0, 3], 'decoder_sparse_step': 1}

    Attributes:
        field: the config field that lists their numbers.
        numbers: a function of a config that returns these numbers, whichever field they come from.
        alone: other fields that choose such layers, each with the value at which `field` decides alone.
    """

    field: str
    numbers: Callable[[Any], Collection[int]] = dataclasses.field(compare=False)
    alone: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def fields(self, numbers: Iterable[int]) -> dict[str, Any]:
        """The config fields that name these layers."""
        return {self.field: list(numbers), **self.alone}


@dataclass(frozen=True)
class Role:
    """One role of an architecture.

    Example:
        >>> Role("heads", "unit", "num_attention_heads").field
        'num_attention_heads'

    Attributes:
        name: as rules write it.
        kind: what a method may do with its entries, see the module.
        size: a config field, a function of the config, a fixed number, or None if only the tensor's shape tells.
        field: the config field that a user sets to change it; by default `size`. Of members of groups, such as queries
            that share a key, it counts all of them together.
        follows: the role whose maps this one takes, because its entries belong together with that role's:
            entries of queries and keys with those of values, the stream behind the last norm with the stream.
        within: the unit that holds these entries, or, of the queries of a group, the unit that holds them.
        lists: of a depth: config fields with one entry per layer, which follow the layers.
        numbered: of a depth: layers of another kind that the config names by their numbers, which follow the layers.
        noun: a plural noun for the entries, for messages.
        remedy: what a user can do if source and target differ in a role that is never resampled.
        stays: a function of a config that returns why the number of entries cannot change, or an empty string.
        grouped: of a stream: the role with the units of one group of a grouped convolution. The stream is that role
            once for every group, and keeps its order and its basis: no map goes over two groups.
        empty: a function of a config that says why the role has no entries.
        anchored: of a vocabulary: a function of a config that returns how many first entries keep their numbers,
            because the model computes with them.
    """

    name: str
    kind: Kind
    size: "str | int | Callable[[Any], int | None] | None" = dataclasses.field(default=None, compare=False)
    field: str = ""
    follows: str = ""
    within: str = ""
    lists: tuple[str, ...] = ()
    noun: str = ""
    remedy: str = ""
    empty: Callable[[Any], str] | None = dataclasses.field(default=None, compare=False)
    stays: Callable[[Any], str] | None = dataclasses.field(default=None, compare=False)
    numbered: tuple[Numbered, ...] = dataclasses.field(default=(), compare=False)
    grouped: str = ""
    anchored: Callable[[Any], int] | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.field:
            object.__setattr__(self, "field", self.size if isinstance(self.size, str) else self.name)
        if not self.noun:
            object.__setattr__(self, "noun", self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the functions, which cannot be pickled and which a plan no longer needs."""
        size = None if callable(self.size) else self.size
        plain = (self.field, self.follows, self.within, self.lists, self.noun, self.remedy)
        return Role, (self.name, self.kind, size, *plain, None, None, (), self.grouped)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Role":
        return self


VOCAB = Role(
    "vocab",
    "identity",
    "vocab_size",
    remedy="To keep the rows, save the source with transformers' resize_token_embeddings first.",
)
SEGMENT = Role("segment", "identity", "type_vocab_size")
LABEL = Role("label", "identity", None, field="num_labels")


class Roles(Mapping[str, Role]):
    """The roles of an architecture by name, and by kind.

    >>> roles = Roles(Role("layer", "depth", "n_layer"), Role("ffn", "unit", "n_inner"))
    >>> roles.of("unit"), roles["layer"].field
    (('ffn',), 'n_layer')
    """

    def __init__(self, *roles: Role) -> None:
        for role in roles:
            if not isinstance(role, Role):
                raise BadOption(f"roles must be Roles(Role(...), ...), got {role!r} among them, which is no Role.")
        self._roles = {role.name: role for role in roles}
        names = [role.name for role in roles]
        self.repeated = [name for name in self._roles if names.count(name) > 1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Roles, tuple(self._roles.values())

    def __getitem__(self, name: str) -> Role:
        return self._roles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._roles)

    def __len__(self) -> int:
        return len(self._roles)

    def __repr__(self) -> str:
        return f"Roles({', '.join(f'{role.name}: {role.kind}' for role in self._roles.values())})"

    def with_(self, *roles: Role) -> "Roles":
        """These roles with others added; a role of the same name is replaced."""
        return Roles(*{**self._roles, **{role.name: role for role in roles}}.values())

    def of(self, *kinds: str) -> tuple[str, ...]:
        """All roles of these kinds, in the order of `kinds`."""
        return tuple(role.name for kind in kinds for role in self._roles.values() if role.kind == kind)

    def kind(self, name: str) -> str:
        """The kind of a role; "identity" for a fixed number (""), which is never resampled."""
        return self._roles[name].kind if name else "identity"

    def leader(self, name: str) -> str:
        """The role whose maps a role takes: itself, unless it follows another."""
        return self._roles[name].follows or name if name else name

    def leading(self, *kinds: str) -> tuple[str, ...]:
        """The roles of these kinds that follow no other."""
        return tuple(name for name in self.of(*kinds) if not self._roles[name].follows)

    def followers(self, name: str) -> tuple[str, ...]:
        """A role and the roles of its kind that follow it: one permutation moves them all."""
        kind = self._roles[name].kind
        return (name, *(role.name for role in self._roles.values() if role.follows == name and role.kind == kind))

    def moved_with(self, name: str) -> tuple[str, ...]:
        """A role and the roles that must be moved with it: with a stream, all that follow it."""
        network_wide = self.is_network_wide(name)
        return (name, *(role.name for role in self._roles.values() if network_wide and role.follows == name))

    def is_whole(self, name: str) -> bool:
        """Whether a unit holds entries of its own, as a head does, and so may be picked or copied as a whole.

        A unit within another one, as a query that shares its key, holds the entries of that one.
        """
        role = self._roles[name]
        inside = bool(role.within) and role.kind == "unit"
        return inside or any(other.within == name for other in self._roles.values())

    def is_network_wide(self, name: str) -> bool:
        """Whether all layers share the entries: the stream, and the roles that follow it."""
        return self.kind(self.leader(name)) == "stream"

    @cached_property
    def depths(self) -> tuple[str, ...]:
        """The stacks of layers."""
        return self.leading("depth")

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """The residual streams, one per tower."""
        return self.leading("stream")

    @cached_property
    def units(self) -> tuple[str, ...]:
        """The units: plain ones first, then those that hold entries."""
        return tuple(sorted(self.leading("unit"), key=self.is_whole))

    @cached_property
    def entries(self) -> tuple[str, ...]:
        """The entries that units hold, then rotary frequencies."""
        return self.leading("entry", "frequency")

    @cached_property
    def echoes(self) -> tuple[str, ...]:
        """Roles that follow one of the same kind, and so say nothing new in a table."""
        return tuple(
            role.name for role in self._roles.values() if role.follows and self.kind(role.follows) == role.kind
        )

    @cached_property
    def vocabulary(self) -> str | None:
        """The role of token ids: the identity whose number a config calls vocab_size, as transformers does."""
        named = (name for name in self.of("identity") if self._roles[name].field.rpartition(".")[2] == "vocab_size")
        return next(named, None)

    @cached_property
    def resized(self) -> tuple[str, ...]:
        """The roles that a resize may change, in the order of reports: depths, streams, units, entries."""
        return (*self.depths, *self.streams, *self.units, *self.entries)


Sizes = Mapping[str, int | None]  # role -> length; None: taken from the tensor itself
DEPTH = r"\{((?:[a-z]+_)*layer)\}"  # in names: a layer's number
At = tuple[str, int] | None  # a stack of layers and a layer's number in it; None outside of the layers


@dataclass(frozen=True)
class Factor:
    """One role (or fixed number) within an axis, and its side of the map.

    Attributes:
        role: empty for a fixed number, which is `size`.
        reads: it is on the reading side.
        crosses: it reads although its axis is written, as keys do.
        multiplies: its values are multiplied with those of the other writer of the same units.
        normed: a norm follows, so that a factor on what is written here has no effect.
        scales: it belongs to such a norm, whose weight multiplies the normalised entries.
    """

    role: str
    size: int | None
    reads: bool
    crosses: bool = False
    multiplies: bool = False
    normed: bool = False
    scales: bool = False

    def length(self, sizes: Sizes) -> int | None:
        return sizes[self.role] if self.role else self.size


@dataclass(frozen=True)
class Axis:
    """Segments one after another, each a product of factors, the last factor fastest.

    Attributes:
        segments: the factors of each.
        shared: so many first factors are the same in all segments, which alternate in the stored order: for every
            entry of these factors stands its part of each segment.
    """

    segments: tuple[tuple[Factor, ...], ...]
    shared: int = 0

    def layout(self, sizes: Sizes) -> tuple[int, tuple[int, ...]] | None:
        """The number of entries of the shared factors, and of each segment for one of them; None if none is shared."""
        if not self.shared:
            return None
        lengths = [[factor.length(sizes) or 1 for factor in segment] for segment in self.segments]
        return math.prod(lengths[0][: self.shared]), tuple(math.prod(own[self.shared :]) for own in lengths)

    def length(self, sizes: Sizes) -> int | None:
        total = 0
        for segment in self.segments:
            product = 1
            for factor in segment:
                length = factor.length(sizes)
                if length is None:
                    return None
                product *= length
            total += product
        return total


@dataclass(frozen=True)
class Rule:
    """A name pattern and the meaning of the axes of the tensors it names."""

    text: str
    names: str
    axes: tuple[Axis, ...]
    adds: bool  # writes onto the residual stream
    maps: bool  # has an arrow: a matrix that reads one axis and writes another
    last: bool = False  # for the last layer of its stack alone

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(_regex(name.strip()) for name in self.names.split("|")))

    @cached_property
    def depth(self) -> str:
        """The role between braces that stands for the layer's number in its names; empty outside of the layers."""
        depth = re.search(DEPTH, self.names)
        return depth[1] if depth else ""

    @property
    def layered(self) -> bool:
        return bool(self.depth)

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(factor for axis in self.axes for segment in axis.segments for factor in segment)

    @property
    def roles(self) -> list[str]:
        return [factor.role for factor in self.factors if factor.role]

    def with_factors(self, change: Callable[[Factor], Factor]) -> "Rule":
        """The same with every factor changed."""
        axes = (tuple(tuple(change(f) for f in segment) for segment in axis.segments) for axis in self.axes)
        pairs = zip(axes, self.axes, strict=True)
        return replace(self, axes=tuple(Axis(segments, axis.shared) for segments, axis in pairs))

    def match(self, name: str) -> tuple[bool, int | None]:
        """Whether the rule names this tensor, and its layer if it has one."""
        match = self.pattern.fullmatch(name)
        if not match:
            return False, None
        layer = next((value for value in match.groups() if value is not None), None)
        return True, None if layer is None else int(layer)

    def template(self, name: str) -> str:
        """The name with {layer}, or the name of another depth, for the number: the same for all layers of a stack."""
        match = self.pattern.fullmatch(name)
        group = match.lastindex if match else None
        if match is None or group is None:
            return name
        return f"{name[: match.start(group)]}{{{self.depth}}}{name[match.end(group) :]}"

    def shape(self, sizes: Sizes, actual: tuple[int, ...]) -> tuple[int, ...]:
        """The predicted shape; axes whose length only the tensor knows are taken from `actual`."""
        lengths = [axis.length(sizes) for axis in self.axes]
        if len(lengths) != len(actual):
            return tuple(-1 if length is None else length for length in lengths)
        return tuple(own if length is None else length for length, own in zip(lengths, actual, strict=True))


def find_rule(rules: tuple[Rule, ...], name: str, sizes: Sizes | None = None) -> tuple[Rule, int | None]:
    """The rule that names this tensor, and its layer; a `PlanError` if no rule or several rules name it.

    Args:
        sizes: role -> length; without them no layer counts as the last one.
    """
    matches = matching_rules(rules, name, sizes)
    if len(matches) == 1:
        return matches[0]
    if matches:
        lines = "; ".join(rule.text for rule, _ in matches)
        raise PlanError(f"tensor {name!r} is named by {len(matches)} rules of its adapter: {lines}. Keep one of them.")
    number = next((part for part in name.split(".") if part.isdigit()), None)
    hint = f" Its component {number} is not captured as {{layer}} by any rule." if number else ""
    raise PlanError(
        f"tensor {name!r} is named by no rule of its adapter, so its axes are unknown.{hint} "
        "Its model class is not supported yet; a rule in the adapter's file makes it so."
    )


def matching_rules(rules: Iterable[Rule], name: str, sizes: Sizes | None = None) -> list[tuple[Rule, int | None]]:
    """All rules that name this tensor, with its layer; of one that the last layer has alone, only the one that holds.

    Args:
        sizes: as for `find_rule`.
    """
    matches = [(rule, layer) for rule in rules for matched, layer in [rule.match(name)] if matched]
    if any(rule.last for rule, _ in matches):
        is_last = matches[0][1] == ((sizes or {}).get(matches[0][0].depth) or 0) - 1
        matches = [(rule, layer) for rule, layer in matches if rule.last == is_last]
    return matches


def _regex(name: str) -> str:
    parts = re.split(r"(\{[^{}]*\})", name)
    return "".join(_regex_part(part) for part in parts)


def _regex_part(part: str) -> str:
    if re.fullmatch(DEPTH, part):
        return r"(\d+)"
    if part.startswith("{"):
        return "(?:" + "|".join(re.escape(ending) for ending in part[1:-1].split(",")) + ")"
    return re.escape(part)


@dataclass(frozen=True)
class Norm:
    """A norm of an architecture.

    Example:
        >>> Norm("h.{layer}.ln_1", readers=("h.{layer}.attn.c_attn",)).kind
        'layer'

    Attributes:
        name: of its module, without ".weight".
        readers: the matrices (without ".weight") that read its output; empty if its output is the residual
            stream itself (post-norm).
        kind: "layer" subtracts the mean, "rms" does not.
        gain: "w" multiplies by the weight, "1+w" by one plus the weight.
        undoes: post-norm only, of the first norm of a layer: the last norm of the layer below, which this
            norm undoes in an identity block.
        behind: of a norm outside of the layers: the norm and the layer whose output it normalises once more. An
            identity block above that layer undoes it, and ends with it, instead of the layer's own.
        passes: post-norm only, of a norm between the first and the last of a layer: in an identity block it gets what
            is normalised already, and has the weight 1 and the bias 0.
    """

    name: str
    readers: tuple[str, ...] = ()
    kind: Literal["layer", "rms"] = "layer"
    gain: Literal["w", "1+w"] = "w"
    undoes: str = ""
    behind: tuple[str, int] | None = None
    passes: bool = False


@dataclass(frozen=True)
class Variant:
    """Configs of a model type whose tensors mean something else, and their adapter.

    Attributes:
        when: the condition as a sentence, for a message.
        holds: the condition, a function of the config.
        adapter: for those configs.
    """

    when: str
    holds: Callable[[Any], bool]
    adapter: "Adapter"


@dataclass(frozen=True)
class Scale:
    """A vector that multiplies what a block adds onto the residual stream, such as LayerScale's.

    Example:
        >>> Scale("layer.{layer}.scale.gamma", ("layer.{layer}.fc2",)).writers
        ('layer.{layer}.fc2',)

    Attributes:
        name: of the tensor.
        writers: the matrices (without ".weight") whose output it multiplies: one, under each of its names.
    """

    name: str
    writers: tuple[str, ...]


def _told(factor: Factor, roles: set[str], scales: bool) -> Factor:
    if factor.role not in roles:
        return factor
    return replace(factor, scales=True) if scales else replace(factor, normed=True)


@dataclass(frozen=True)
class Adapter:
    """One architecture as data.

    Attributes:
        model_type: transformers' `config.model_type`.
        norm: "pre" (a block with zero output matrices is the identity) or "post" (it is not).
        rules: the meaning of every tensor's axes; names without the base model's prefix.
        roles: what the entries of these axes are, and which config fields set their number.
        norms: every norm, and the matrices that read it.
        scales: every vector that multiplies what a block adds onto the stream.
        derived: config field -> a function of the config; the field follows it as long as it has that value.
        divides: pairs of config fields of which the first must divide the second.
        with_width: config fields of heads that change in proportion with the stream if a call sets neither them nor
            the length of heads, and if all of them stay whole numbers.
        gains: factors of the forward pass that depend on a size, as functions of the config. The key is the
            role that scores sum over, or the name of a module whose output is multiplied. Scores without
            an entry here, or whose function gives None, are divided by the root of the role's length.
        weight_norms: tensors with the lengths of a weight -> those with its direction (torch's `weight_norm`), of
            which only the product counts.
        activation: the config field of the function behind MLP units.
        activated: modules whose output goes through an activation function before it joins a stream. It acts on single
            units, so that this stream keeps its basis.
        epsilon: the config field of the norms' epsilon.
        readout: the stream in front of a tied output embedding is also part of the base model.
        meaning: config fields, other than sizes, that change what the weights compute.
        tensors: config fields, other than sizes, that change which tensors a model has or their shapes.
        causal_flag: a config field that must be set in classes that predict the next token, so that they do
            not see it.
        depth_flag: a config field that makes the meaning of a layer depend on its number.
        inert: config fields of this type that do not change what a trained model computes.
        only: config field -> the only value that transformers computes, or a function of the config that
            gives it; other values are refused.
        checks: functions of a config that return what is wrong with it and what it must be, or None.
        clash: a function of a role, a tensor's name and two configs that returns why the lengths differ if
            the role's own field does not explain it, or None.
        crossing: patterns of the tensors of cross attention, which are left out of the target.
        refused: end of a model class's name -> why classes of that name cannot be resized.
        foreign: pattern of tensor names -> what they are; a checkpoint with such tensors is refused.
        buffers: patterns of constants, such as masks, that older versions stored beside the weights.
        implied_ties: modules that multiply with the input embedding and have no tensor of their own for it.
        variants: configs of this type that need another adapter.
        wavelets: of the paper's own transform (`gain="raw"`), to shrink and to grow; Haar where it states none.
        learning_rate: AdamW's, with which a learned operator is fitted; None is the general one of `fit`.
        locked: published results rest on a built-in adapter, which therefore cannot be replaced. An adapter of your own
            is never locked.
    """

    model_type: str
    norm: Literal["pre", "post"]
    rules: tuple[Rule, ...]
    roles: Roles
    norms: tuple[Norm, ...] = ()
    scales: tuple[Scale, ...] = ()
    derived: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    divides: tuple[tuple[str, str], ...] = ()
    with_width: tuple[str, ...] = ()
    gains: Mapping[str, Callable[[Any], float | None]] = dataclasses.field(default_factory=dict)
    weight_norms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    activation: str = "hidden_act"
    activated: tuple[str, ...] = ()
    epsilon: str = ""
    readout: bool = False
    meaning: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    causal_flag: str | None = None
    depth_flag: str | None = None
    inert: tuple[str, ...] = ()
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checks: tuple[Callable[[Any], tuple[str, str] | None], ...] = ()
    clash: Callable[[str, str, Any, Any], str | None] | None = None
    crossing: tuple[str, ...] = ()
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    foreign: Mapping[str, str] = dataclasses.field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    implied_ties: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    wavelets: tuple[str, str] = ("haar", "haar")
    learning_rate: float | None = None
    locked: bool = False

    def of(self, config: Any) -> "Adapter":
        """The adapter for a config of this type: this one, or that of a variant."""
        return next((variant.adapter for variant in self.variants if variant.holds(config)), self)

    def __post_init__(self) -> None:
        """Mark the axes of queries and keys that a norm follows, and the axes of that norm."""
        parts = (self.rules, Rule), (self.norms, Norm)
        if not all(
            isinstance(whole, (tuple, list)) and all(isinstance(p, kind) for p in whole) for whole, kind in parts
        ):
            return  # `validate` says what is wrong
        scored = {f.role for rule in self.rules for f in rule.factors if f.crosses}
        weights = [re.sub(DEPTH, "0", norm.name) + ".weight" for norm in self.norms]
        inside = [rule for rule in self.rules if not rule.maps and any(rule.match(name)[0] for name in weights)]
        normed = {role for rule in inside for role in rule.roles} & scored
        if normed:
            told = (
                rule.with_factors(partial(_told, roles=normed, scales=any(rule is one for one in inside)))
                for rule in self.rules
            )
            object.__setattr__(self, "rules", tuple(told))

    @cached_property
    def norm_names(self) -> Mapping[str, Norm]:
        """The norms by name."""
        return {norm.name: norm for norm in self.norms}

    @cached_property
    def turned(self) -> tuple[str, ...]:
        """The streams that may be turned into another basis.

        A norm that writes a stream, or an activation behind a matrix that does, acts on its units one by one. Of a
        stream without a norm that has a weight nothing says what must be kept, such as its mean.
        """
        norms = [re.sub(DEPTH, "0", norm.name) + ".weight" for norm in self.norms]
        normalising = [rule for rule in self.rules if any(rule.match(name)[0] for name in norms)]
        bound = [rule for rule in normalising if rule.adds]
        bound += [rule for rule in self.rules for name in self.activated if rule.match(f"{name}.weight")[0]]
        written = {self.roles.leader(f.role) for rule in bound for f in rule.factors if not f.reads}
        written |= {stream for stream in self.roles.streams if self.roles[stream].grouped}
        normed = {self.roles.leader(role) for rule in normalising for role in rule.roles}
        free = normed - written if self.norm == "pre" else set()
        return tuple(stream for stream in self.roles.streams if stream in free)

    @property
    def turns(self) -> bool:
        """Whether every stream may be turned into another basis."""
        return self.turned == self.roles.streams

    @cached_property
    def scored(self) -> tuple[str, ...]:
        """The roles that scores sum over: queries write these entries, keys read them."""
        return tuple(dict.fromkeys(factor.role for rule in self.rules for factor in rule.factors if factor.crosses))

    def refuse(self, model_class: str) -> None:
        """Raise `UnsupportedArchitecture` if models of this class cannot be resized."""
        for name, why in self.refused.items():
            if model_class.endswith(name):
                raise UnsupportedArchitecture(f"{model_class} cannot be resized: {why}")

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor, named without the base model's prefix, is one of `buffers`."""
        return any(re.fullmatch(pattern, name) for pattern in self.buffers)

    def is_left_out(self, name: str) -> bool:
        """Whether a tensor, named without the base model's prefix, is one of `buffers` or of `crossing`."""
        return self.is_buffer(name) or any(re.fullmatch(pattern, name) for pattern in self.crossing)


ADAPTERS: dict[str, Adapter] = {}  # by model type; the built-in ones are added in `architectures/__init__.py`


def adapter_of(config: Any) -> Adapter:
    """The adapter of a config: of its model type, or of a variant. Raises as `get` does."""
    return get(config.model_type).of(config)


def get(model_type: str) -> Adapter:
    """The adapter of a transformers model type; `UnsupportedArchitecture` names the known ones.

    >>> get("gpt2").norm
    'pre'
    """
    if model_type in ADAPTERS:
        return ADAPTERS[model_type]
    text = f"{model_type}_text"  # as transformers names the decoder inside of a model that sees images
    hint = f" Its text model alone can be resized: {text!r}." if text in ADAPTERS else suggest(model_type, ADAPTERS)
    raise UnsupportedArchitecture(
        f"model type {model_type!r} has no adapter. Model type should be one of {', '.join(ADAPTERS)}.{hint} "
        "A new one is a file of data, see docs/adapters.md."
    )
