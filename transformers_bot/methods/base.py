"""The base of all methods: the task, the protocol, methods given by a pair of maps per role and a rule for depth.

Every rival of BoT whose formula is linear, `W_t = R_out W_s C_in^T`, is a subclass of `Linear`: it says how one
axis is resized (`pair`) and which source layers make up which target layers (`depth`). Reading, splitting
fused q|k|v, tied readouts, positions and the notes in a plan are shared.
"""

import copy
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

import numpy as np
from torch import Tensor

from ..architectures.adapter import Adapter, At, Factor, Roles, Rule
from ..architectures.sizes import cut_across, follows_layers, get_field, regrouped
from ..architectures.user_file import names_of
from ..errors import BadOption, suggest
from ..ops.axis_map import AxisMap, identity
from ..ops.recipe import Read, Recipe, Segment, is_identity
from ..options import BoTConfig, Options
from ..rewrite.principal import Opened
from . import maps
from .maps import Depth, Pair, checked_depth, checked_pair, grid, interpolation, periodic
from .valid import check_class

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """What a method is told: the sizes of source and target, and the facts that decide gains. No weights.

    Attributes:
        adapter: the architecture.
        source: role -> length in the source.
        target: role -> length in the target.
        tied: the output embedding is the input embedding: one matrix that writes the stream and reads it.
        gains: factors of the target's forward pass relative to the source's, see `Adapter.gains`.
        calibrated: the source may be run on a few batches first.
    """

    adapter: Adapter
    source: dict[str, int | None]
    target: dict[str, int | None]
    tied: bool
    gains: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = False
    _of_rules: dict[tuple[int, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of_rule(self, state: tuple[object, ...], rule: Rule, compute: Callable[[], T]) -> T:
        """What `compute` gives, computed once for a rule and all that a method knows: the same in every layer."""
        # The objects of the state are held beside the results, so that no later ones get their ids.
        _, known = self._of_rules.setdefault(tuple(map(id, state)), (state, {}))
        if rule not in known:
            known[rule] = compute()
        return cast(T, known[rule])

    @property
    def roles(self) -> Roles:
        """The roles of the architecture, by name and by kind."""
        return self.adapter.roles

    def lengths(self, role: str) -> tuple[int, int]:
        """A role's length in source and target."""
        source, target = self.source[role], self.target[role]
        if source is None or target is None:
            raise KeyError(f"role {role!r} has a length only in its tensor")
        return source, target

    def ratio(self, role: str) -> float:
        """A role's length in the target, relative to the source."""
        source, target = self.lengths(role)
        return target / source

    def is_sized(self, role: str) -> bool:
        """Whether both configs give the role's length."""
        return self.source.get(role) is not None and self.target.get(role) is not None

    def changes(self, *kinds: str) -> tuple[str, ...]:
        """The roles of these kinds whose length differs."""
        return tuple(role for role in self.roles.of(*kinds) if self.is_sized(role) and self.ratio(role) != 1)

    def segment_lengths(self, segment: tuple[Factor, ...]) -> tuple[int, int]:
        """The length of a product of factors in source and target."""
        source = target = 1
        for factor in segment:
            before, after = self.lengths(factor.role) if factor.role else (factor.size or 1, factor.size or 1)
            source, target = source * before, target * after
        return source, target

    @property
    def cut_across(self) -> list[str]:
        """Units, such as heads, whose number changes while all of them together keep their number of entries."""
        return cut_across(self.roles, self.source, self.target)

    def lengths_in(self, segment: tuple[Factor, ...]) -> dict[str, tuple[int, int]]:
        """Role -> its length in source and target, of the sized factors of a product.

        Groups that are formed anew (see `regrouped`) are all there already where their members are counted.
        """
        lengths = {f.role: self.lengths(f.role) for f in segment if f.role and self.is_sized(f.role)}
        for member, (groups, members) in self.regrouped.items():
            group = self.roles[member].within
            if member in lengths and group in lengths:
                lengths[group], lengths[member] = groups, members
        return lengths

    @property
    def regrouped(self) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
        """Members, such as queries that share keys, whose groups are formed anew."""
        return regrouped(self.roles, self.source, self.target)

    def score_gain(self, role: str, reads: bool) -> float:
        """The factor on the writing (or reading) side of a score that keeps the score.

        A score is a sum over the entries of `role`, times a scale. The target has r times as many entries,
        and its scale is s times the source's: r^(-1/2) unless the architecture says otherwise. Copied
        entries make the score r s times as large, so each side is multiplied by (r s)^(-1/2). The maps of
        the reading side divide by r already, so its factor is r times as large.
        """
        ratio, scale = self.ratio(role), self.gains.get(role)
        if self.roles.kind(role) == "frequency":  # of which new ones add nothing to the sum
            return float((ratio**-0.5 if scale is None else scale) ** -0.5)
        power = -0.25 if scale is None else -0.5
        gain = float(ratio ** (power + 1 if reads else power))
        return gain if scale is None else gain * float(scale**-0.5)


@dataclass(frozen=True)
class Fresh:
    """A target tensor that a method leaves to transformers' own initialisation, and why."""

    reason: str


class AsStored:
    """A method that does not rewrite the source's tensors.

    Attributes:
        name: of the method, as in `method=`.
        options_class: its options, a frozen dataclass derived from `Options`; without a class of its own it takes some
            of `BoTConfig`.
        option_names: the options that it reads: all of its own class, or those of `BoTConfig` that it names.
        advice: when to choose it, for `transformers-bot methods`; empty if the docstring of its file says it.
        operator: the learned operator that `fit` trains for it, by name; empty if its maps are not learned.
        uses_calibration: it measures the source on the batches of `calibration=`; a class with a `prepare` of its own
            may, unless it says False.
    """

    name: str
    options_class: ClassVar[type[Options]] = BoTConfig
    option_names: ClassVar[tuple[str, ...]] = ()
    advice: ClassVar[str] = ""
    operator: ClassVar[str] = ""
    uses_calibration: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if "prepare" in vars(cls) and "uses_calibration" not in vars(cls):
            cls.uses_calibration = True
        own = vars(cls).get("options_class")
        if own is not None and is_dataclass(own):
            cls.option_names = tuple(field.name for field in fields(own))

    @property
    def is_directed(self) -> bool:
        """Whether its options ask for what only products of weights can tell."""
        return False

    def undirected(self) -> "Method | None":
        """The same method with choices that need no product of weights; None if it makes no such choices."""
        return None

    def prepare(self, task: Task, opened: Opened) -> tuple[Any, Mapping[str, Tensor]]:
        return self, opened.network


class Method(Protocol):
    """A way to resize, see docs/methods.md for one in twenty lines."""

    name: str

    @property
    def is_directed(self) -> bool:
        """Whether its options ask for what only products of weights can tell."""

    def undirected(self) -> "Method | None":
        """The same method with choices that need no product of weights; None if it makes no such choices."""

    def check(self, task: Task) -> None:
        """Raise `BadOption` if the method's formula does not cover this direction, ratio or family."""

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        """How a target tensor is computed; `name` has {layer} in place of the layer's number."""

    def prepare(self, task: Task, opened: Opened) -> "tuple[Method, Mapping[str, Tensor]]":
        """Look at the opened source before the plan is made; return the method to plan with and the tensors to read."""

    def config_fields(self, task: Task, config: Any) -> dict[str, Any]:
        """Fields of the target config that the method's formula sets (LEMON's norm epsilon), usually none."""

    def describe(self, task: Task) -> dict[str, Any]:
        """The choices the method made, for provenance and the plan."""

    def warnings(self, task: Task) -> list[str]:
        """Sentences that a user should read before running it."""


UNSIZED = identity(-1)  # of an axis whose length no config gives; it is never resized


class Linear(AsStored):
    """A method given by `pair` and `depth`.

    Attributes:
        flat_heads: heads x head_dim is one axis (the formula knows no heads).
        keeps_scores: a change of head_dim is balanced on queries and keys, so that scores stay.
        combines: its widths or its depth can be used alone, see `Combined`.
        depth_of: the method whose depth rule is used, if that is not its own.
    """

    option_names: ClassVar[tuple[str, ...]] = ("positions", "grids")
    flat_heads: bool = False
    keeps_scores: bool = False
    combines: bool = True
    depth_of: "Linear | None" = None

    def __init__(self, options: Any) -> None:
        self.options = options

    # -- what a subclass defines ----------------------------------------------------------------

    def check(self, task: Task) -> None:
        """Raise `BadOption` for a direction, ratio or family that the formula does not cover."""

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        """The maps of one role whose lengths `source` and `target` differ; of flat heads the role of the heads.

        Args:
            at: the stack and the source layer that the units belong to; None for axes of the whole network.
        """
        raise self.refuse(
            f"it has no rule for widths, but {role} goes from {source} to {target}. Define pair(), or let another "
            f"method do it: method='tile+{self.name}'."
        )

    def depth(self, task: Task, stack: str) -> Depth:
        """Which source layers make up each target layer of a stack (a role of kind depth) whose layer count changes."""
        source, target = task.lengths(stack)
        raise self.refuse(
            f"it has no rule for depth, but {stack} goes from {source} to {target}. Define depth(), or let another "
            f"method do it: method='{self.name}+stack'."
        )

    # -- what is derived from it ----------------------------------------------------------------

    def config_fields(self, task: Task, config: Any) -> dict[str, Any]:
        return self.lists(task, config)

    def lists(self, task: Task, config: Any) -> dict[str, Any]:
        """The config's lists with one entry per layer, and numbers of layers: they go where the layers go."""
        fields: dict[str, Any] = {}
        for stack in task.changes("depth"):
            before, after = task.lengths(stack)
            for name in task.roles[stack].lists:
                entries: Any = get_field(config, name, None)
                if follows_layers(entries, before):
                    fields[name] = [entries[self.source_layer(task, stack, layer)] for layer in range(after)]
            for layers in task.roles[stack].numbered:
                if numbers := {number for number in layers.numbers(config) if number < before}:
                    moved = (n for n in range(after) if self.source_layer(task, stack, n) in numbers)
                    fields |= layers.fields(moved)
        return fields

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        reads, note = self.reads(task, rule, layer, name)
        at = None if layer is None else (rule.depth, self.source_layer(task, rule.depth, layer))
        maps = tuple(tuple(self.segment(task, segment, at) for segment in axis.segments) for axis in rule.axes)
        over_axes = "" if is_identity(maps) else self.label(task, rule)
        return Recipe(reads, maps, note=", ".join(part for part in (note, over_axes) if part))

    def reads(self, task: Task, rule: Rule, layer: int | None, name: str) -> tuple[tuple[Read, ...], str]:
        """The source tensors that a target tensor is computed from, and a note."""
        if layer is None:
            return (Read(name, None),), ""
        return layers_read(self.layers(task, rule.depth), rule, layer, name)

    def layers(self, task: Task, stack: str) -> Depth:
        """The layers of a stack, also if their number stays."""
        source, target = task.lengths(stack)
        if source == target:
            return Depth.unchanged(source)
        decides = self.depth_of or self
        return checked_depth(decides.name, decides.depth(task, stack), stack, source, target)

    def source_layer(self, task: Task, stack: str, layer: int) -> int:
        """The source layer with the largest weight in a target layer; it decides what `pair` does to the units."""
        return int(np.argmax(np.abs(self.layers(task, stack).layers[layer])))

    def segment(self, task: Task, segment: tuple[Factor, ...], at: At) -> Segment:
        if self.is_flat(task, segment):
            pair = self.axis_pair(task, whole_unit(task, segment), *task.segment_lengths(segment), at)
            return (pair.consume if all(factor.reads for factor in segment) else pair.produce,)
        lengths = task.lengths_in(segment)
        return tuple(self.factor(task, factor, at, lengths.get(factor.role)) for factor in segment)

    def is_flat(self, task: Task, segment: tuple[Factor, ...]) -> bool:
        """Whether a product of units and their entries is one axis to the formula; frequencies are never mixed."""
        return self.flat_heads and bool(whole_unit(task, segment))

    def factor(self, task: Task, factor: Factor, at: At, lengths: tuple[int, int] | None = None) -> AxisMap:
        """The map of one factor of a product.

        Args:
            lengths: in source and target, where the product counts it otherwise (see `Task.lengths_in`).
        """
        if not factor.role:
            return identity(factor.size or 1)
        if not task.is_sized(factor.role):
            return UNSIZED
        source, target = lengths or task.lengths(factor.role)
        pair = self.axis_pair(task, factor.role, source, target, at)
        if factor.role in task.adapter.scored and source != target:
            return scored_map(task, factor, pair, self.keeps_scores)
        return pair.consume if factor.reads else pair.produce

    def axis_pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        """The maps of any role: positions are cropped or interpolated, the pair of a tied readout is swapped."""
        if source == target:
            return maps.identity_pair(source)
        if task.roles.kind(role) == "place":
            return self.positions(source, target)
        if task.roles.kind(role) == "grid":
            return grid(source, target, self.options.grids)
        if task.roles.kind(role) == "frequency":
            return maps.frequencies(source, target)
        network_wide = task.roles.is_network_wide(role)
        pair = self.pair(task, task.roles.leader(role), source, target, None if network_wide else at)
        pair = checked_pair(self.name, pair, role, source, target)
        return pair.swapped() if is_tied_readout(task, role) else pair

    def positions(self, source: int, target: int) -> Pair:
        resample = periodic if self.options.positions == "crop" else interpolation
        resampled = resample(source, target)
        return Pair(resampled, resampled, self.options.positions)

    # -- descriptions ---------------------------------------------------------------------------

    def describe(self, task: Task) -> dict[str, Any]:
        options = {name: value for name, value in self.options.to_dict().items() if name in self.option_names}
        return {"method": self.name, "options": options, "depth": self.depth_label(task)}

    def depth_label(self, task: Task) -> str:
        """A phrase that says what happens to the layers."""
        labels = [self.layers(task, stack).label for stack in task.changes("depth")]
        return "; ".join(dict.fromkeys(labels)) or "kept"

    def warnings(self, task: Task) -> list[str]:
        return []

    def label(self, task: Task, rule: Rule) -> str:
        parts = []
        for role in dict.fromkeys(task.roles.leader(role) for role in rule.roles):
            if task.is_sized(role) and task.ratio(role) != 1:
                parts.append(f"{role}: {self.axis_pair(task, role, *task.lengths(role), None).label or self.name}")
        return "; ".join(parts)

    # -- refusals -------------------------------------------------------------------------------

    def refuse(self, why: str) -> BadOption:
        """The error to raise when the formula does not cover the task."""
        return BadOption(f"method={self.name!r} cannot do this: {why}")

    def only_grows(self, task: Task) -> None:
        """Refuse a task in which any size shrinks."""
        self._one_way(task, "grow", lambda ratio: ratio < 1)

    def only_shrinks(self, task: Task) -> None:
        """Refuse a task in which any size grows."""
        self._one_way(task, "shrink", lambda ratio: ratio > 1)

    def _one_way(self, task: Task, verb: str, wrong: Callable[[float], bool]) -> None:
        # A formula with flat heads sees only heads x head_dim, which is as long as the stream.
        holders = {task.roles[entry].within for entry in task.roles.entries}
        flat = {*holders, *task.roles.of("entry", "frequency")} if self.flat_heads else set()
        members = {role: lengths for role, (_, lengths) in task.regrouped.items()}
        for role in task.changes("depth", "stream", "unit", "entry", "frequency"):
            source, target = members.get(role, task.lengths(role))
            if role not in flat and wrong(target / source):
                raise self.refuse(f"it can only {verb}, but {role} goes from {source} to {target}. Use method='bot'.")

    def keeps_no_heads(self, task: Task) -> None:
        """Refuse `reheads="resample"` for a formula that has heads x head_dim as one axis."""
        for role in task.cut_across if self.options.reheads == "resample" else ():
            source, target = task.lengths(role)
            raise self.refuse(
                f"{role} go from {source} to {target} at the same width, and its formula has no heads to resample. "
                "Set reheads='reshape' or use method='bot'."
            )


def reads_of(
    task: Task, depth: Depth | None, rule: Rule, layer: int | None, name: str
) -> tuple[tuple[Read, ...], str | None, str]:
    """The source tensors of a target tensor, which part of a norm it undoes (or None), and a note."""
    if layer is None or depth is None:
        return (Read(name, None),), None, ""
    stem, _, part = name.rpartition(".")
    if depth.is_new(layer) and stem in task.adapter.norm_names:
        below = int(np.argmax(depth.layers[layer]))
        if task.adapter.norm_names[stem].passes:
            own = (Read(f"{stem}.weight", below), Read(f"{stem}.bias", below))
            return own, f"passed {part}", "passes what the norm before it gives"
        last = task.adapter.norm_names[stem].undoes
        behind = next((norm.name for norm in task.adapter.norms if norm.behind == (last or stem, below)), "")
        if last:
            norm, at = (behind, None) if behind else (last, below)
            return (Read(f"{norm}.weight", at), Read(f"{norm}.bias", at)), part, "undoes the norm below"
        if behind:
            return (Read(f"{behind}.{part}", None),), None, "normalises as the norm below"
    reads, note = layers_read(depth, rule, layer, name)
    return reads, None, note


def layers_read(depth: Depth, rule: Rule, layer: int, name: str) -> tuple[tuple[Read, ...], str]:
    """The source layers whose weighted sum is a tensor of a target layer, and a note."""
    row = (depth.updates if rule.adds else depth.layers)[layer]
    if not row.any():  # zero in an identity block; the layer is read for its shape only
        return (Read(name, int(np.argmax(np.abs(depth.layers[layer]))), 0.0),), "zero update"
    return tuple(Read(name, int(i), float(row[i])) for i in np.flatnonzero(row)), depth.label


def scored_map(task: Task, factor: Factor, pair: Pair, balanced: bool) -> AxisMap:
    """The map of entries that scores sum over.

    A norm behind queries or keys undoes any factor on what it reads: they keep their size, for rotary pairs with
    zeros between them the root mean square of all, and the norm's weight takes the factor.

    Args:
        balanced: a change of their number leaves scores as they are.
    """
    source, target = pair.produce.source, pair.produce.target
    gain = task.score_gain(factor.role, factor.reads) if balanced else 1.0
    if task.roles.kind(factor.role) != "frequency":
        chosen = pair.consume if factor.reads and not factor.normed else pair.produce
        return chosen if factor.normed else chosen.scaled(gain)
    size = (target / source) ** 0.5
    if factor.scales:
        return maps.nearest(source, target).scaled(gain / size if balanced else 1.0)
    return pair.produce.scaled(size if factor.normed else gain)


def whole_unit(task: Task, segment: tuple[Factor, ...]) -> str:
    """The unit, such as heads, in a product of a unit and its entries; empty if the segment is no such product.

    Where queries and keys hold rotary pairs, which must not be mixed, values count as no such product either.
    """
    kinds = [task.roles.kind(factor.role) for factor in segment]
    if task.roles.of("frequency") or "entry" not in kinds:
        return ""
    return next((factor.role for factor, kind in zip(segment, kinds, strict=True) if kind == "unit"), "")


def is_tied_readout(task: Task, role: str) -> bool:
    """Whether a role is the stream in front of an output embedding that is tied to the input embedding."""
    return task.tied and task.roles.kind(role) == "stream" and task.roles.leader(role) != role


class DepthOnly(Linear):
    """A formula that grows the layer count only; combined with another method it also grows widths."""

    def check(self, task: Task) -> None:
        for role in task.changes("stream", "unit", "entry", "frequency"):
            source, target = task.lengths(role)
            raise self.refuse(
                f"it changes the layer count alone, but {role} goes from {source} to {target}. "
                f"Add a method for widths: method='tile+{self.name}'."
            )
        self.only_grows(task)


class Combined(Linear):
    """The widths of one method and the depth of another: `method="tile+stack"`."""

    def __init__(self, widths: Linear, depth: Linear, options: Any) -> None:
        super().__init__(options)  # as they were given: either method may be the one that they are for
        self._widths, self._depth = copy.copy(widths), depth
        self._widths.depth_of = depth
        self.name = f"{widths.name}+{depth.name}"

    def check(self, task: Task) -> None:
        self._widths.check(_only(task, depth=False))
        self._depth.check(_only(task, depth=True))

    def config_fields(self, task: Task, config: Any) -> dict[str, Any]:
        return self._widths.config_fields(task, config)

    def layers(self, task: Task, stack: str) -> Depth:
        return self._widths.layers(task, stack)

    def axis_pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        return self._widths.axis_pair(task, role, source, target, at)

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        return self._widths.recipe(task, rule, layer, name)

    def describe(self, task: Task) -> dict[str, Any]:
        names = {*option_names(self._widths), *option_names(self._depth)}
        options = {name: value for name, value in self.options.to_dict().items() if name in names}
        return {**self._widths.describe(task), "method": self.name, "options": options}

    def warnings(self, task: Task) -> list[str]:
        return [*self._widths.warnings(task), *self._depth.warnings(task)]


def _only(task: Task, depth: bool) -> Task:
    """The task with only its depth, or only its widths, changed."""
    base, other = (task.source, task.target) if depth else (task.target, task.source)
    return replace(task, target={**base, **{stack: other[stack] for stack in task.roles.of("depth")}})


METHODS: dict[str, Callable[[Any], Method]] = {}  # by name; the built-in ones are added in `methods/__init__.py`


def register(method: type[Linear]) -> type[Linear]:
    """Make a method known by its name for the rest of this process; return the class, so it works as a decorator.

    A name that is registered again replaces the earlier method, unless that is built in. `docs/methods.md`
    shows a method of one file, with an option of its own.

    Example:
        >>> from transformers_bot import methods
        >>> @methods.register
        ... class First(methods.Linear):
        ...     name = "first"
        ...
        ...     def pair(self, task, role, source, target, at):
        ...         kept = methods.gather(range(target), source)
        ...         return methods.Pair(kept, kept, "first units")
        >>> del methods.METHODS["first"]

    Raises:
        BadOption: not a class with a name and a recipe, a name that is built in or not valid, functions that take
            other arguments, or options that are not a frozen dataclass derived from `Options`, with valid defaults.
    """
    name = getattr(method, "name", None)
    if not isinstance(method, type) or not callable(getattr(method, "recipe", None)):
        raise BadOption(f"a method must be a class such as a subclass of methods.Linear, got {method!r}.")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise BadOption(f"{method.__name__}.name is {name!r}; it must be the method's name in small letters.")
    known = METHODS.get(name)
    if known is not None and known is not method and _is_built_in(known):
        raise BadOption(f"method {name!r} is built in and cannot be replaced. Choose another name.")
    check_class(method)
    METHODS[name] = method
    return method


def _is_built_in(method: Callable[[Any], Method]) -> bool:
    """Whether a method is defined in this package; a method that a user registers is not."""
    return method.__module__.startswith(f"{__package__}.")


def load(path: str | os.PathLike[str]) -> list[type[Linear]]:
    """Run a Python file and register the methods that it defines.

    Raises:
        BadOption: no such file, a file that fails, or one that defines no method.
    """
    names = names_of(path, "method")
    classes = [value for value in names.values() if isinstance(value, type) and issubclass(value, Linear)]
    own = [cls for cls in classes if cls.__module__ == "<run_path>"]  # without those that the file imports
    if not own:
        raise BadOption(f"{Path(path).name} defines no method: a class in it must be a subclass of methods.Linear.")
    for method in own:
        method.__doc__ = names.get("__doc__") or method.__doc__  # shown by `transformers-bot methods`
    return [register(method) for method in dict.fromkeys(own)]


def options_of(name: str, given: Any) -> Any:
    """`bot_config=` as the options of a method: its own `Options`, or a `BoTConfig`.

    Raises:
        BadOption, BadKeyword: an unknown method, or options that are not its own.
    """
    return options_class_of(name).from_any(given)


def options_class_of(name: str) -> type[Options]:
    """The class of a method's options by its name; of two methods, of the first that has its own."""
    classes = [options_class(_factory(part)) for part in name.split("+", 1)]
    return next((own for own in classes if own is not BoTConfig), BoTConfig)


def options_class(method: Callable[[Any], Method]) -> type[Options]:
    """The class of a method's options: its own, or BoT's, of which other methods take some."""
    return getattr(method, "options_class", None) or BoTConfig


def option_names(method: Callable[[Any], Method] | Method) -> tuple[str, ...]:
    """The options that a method reads: those that it names, or all of its class."""
    every = tuple(field.name for field in fields(getattr(method, "options_class", None) or BoTConfig))
    return tuple(getattr(method, "option_names", every))


def get(name: str, options: Any) -> Method:
    """The method of that name with its options; `BadOption` lists the known ones.

    Args:
        options: from `options_of`.

    Raises:
        BadOption: an unknown name, or an option with another value than its default that the method does not use.
    """
    methods = [_method(part, options) for part in name.split("+", 1)]
    names = list(dict.fromkeys(option for method in methods for option in option_names(method)))
    for chosen, value in _set_options(options).items():
        if chosen not in names:
            takes = f"it takes {', '.join(names)}" if names else "it takes none"
            raise BadOption(f"method {name!r} has no option {chosen}={value!r} in bot_config: {takes}.")
    if len(methods) == 1:
        return methods[0]
    widths, depth = map(_linear, methods)
    return Combined(widths, depth, options)


def check_calibration(method: Method) -> None:
    """Refuse the batches of `calibration=` for a method that does not look at them.

    Raises:
        BadOption: with the methods that do.
    """
    if not getattr(method, "uses_calibration", True):
        *first, last = (repr(name) for name, known in METHODS.items() if getattr(known, "uses_calibration", True))
        users = f"{', '.join(first)} and {last}" if first else last
        raise BadOption(f"calibration= is for method={users}; {method.name!r} does not use it.")


def _factory(name: str) -> Callable[[Any], Method]:
    if name not in METHODS:
        hint = suggest(name, METHODS)
        raise BadOption(f"unknown method {name!r}; known methods are {', '.join(METHODS)}.{hint}")
    return METHODS[name]


def _method(name: str, options: Any) -> Method:
    factory = _factory(name)
    own = options_class(factory)
    # Two methods that are combined may have different options: the other one takes its defaults.
    return factory(options if isinstance(options, own) else own())


def _linear(method: Method) -> Linear:
    if isinstance(method, Linear) and method.combines:
        return method
    raise BadOption(f"method {method.name!r} cannot be combined: it resizes widths and depth together.")


def _set_options(options: Any) -> dict[str, Any]:
    """The options that differ from their defaults."""
    defaults = type(options)().to_dict()
    return {name: value for name, value in options.to_dict().items() if value != defaults[name]}
