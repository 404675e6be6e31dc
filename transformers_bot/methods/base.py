"""What methods share: the task, the protocol, and methods that are a pair of maps per role and a rule for depth.

Every rival of BoT whose formula is linear, `W_t = R_out W_s C_in^T`, is a subclass of `Linear`: it says how one
axis is resized (`pair`) and which source layers make up which target layers (`depth`); reading, splitting
fused q|k|v, tied readouts, positions and the plan's words are the same for all.
"""

import copy
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from ..architectures.adapter import Adapter, At, Factor, Roles, Rule
from ..architectures.sizes import cut_across
from ..architectures.user_file import names_of
from ..errors import BadOption, IncompatibleModels, suggest
from ..ops.axis_map import AxisMap, identity
from ..ops.recipe import Read, Recipe, Segment, is_identity
from ..options import BoTConfig, Options
from ..rewrite.principal import Opened
from . import maps
from .maps import Depth, Pair, grid, interpolation, periodic


@dataclass(frozen=True)
class Task:
    """What a method may know: two lists of sizes and the facts that decide gains. No weights.

    Attributes:
        adapter: the architecture.
        source: role -> length in the source.
        target: role -> length in the target.
        tied: the output embedding is the input embedding, so one matrix is written and read.
        gains: what the forward pass multiplies by in the target, relative to the source, see `Adapter.gains`.
        calibrated: the source may be run on a few batches first.
    """

    adapter: Adapter
    source: dict[str, int | None]
    target: dict[str, int | None]
    tied: bool
    gains: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = False

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
        """Whether configs tell the role's length, on both sides."""
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
        """Units such as heads that get more or fewer, but that have as many entries together as before."""
        return cut_across(self.roles, self.source, self.target)

    def score_gain(self, role: str, reads: bool) -> float:
        """What the writing (or reading) side of a score takes so that the score stays as it is.

        A score sums over the entries of `role`, of which the target has r times as many, and is then
        multiplied by a factor that becomes s times as large, r^(-1/2) unless the architecture says
        otherwise. Copies on either side make it r s times as large, so each side takes (r s)^(-1/2); the
        maps of the reading side carry 1/r already, which it takes back.
        """
        ratio, scale = self.ratio(role), self.gains.get(role)
        power = -0.25 if scale is None else -0.5
        gain = float(ratio ** (power + 1 if reads else power))
        return gain if scale is None else gain * float(scale**-0.5)


@dataclass(frozen=True)
class Fresh:
    """A target tensor that a method leaves to transformers' own initialisation, and why."""

    reason: str


class AsStored:
    """For methods that take the source's tensors as they are."""

    name: str

    def prepare(self, task: Task, opened: Opened) -> tuple[Any, Mapping[str, Tensor]]:
        if opened.calibration is not None:
            raise BadOption(f"calibration= is for method='bot' and 'importance'; {self.name!r} has no use for it.")
        return self, opened.network


class Method(Protocol):
    """A way to resize, see docs/methods.md for one in twenty lines."""

    name: str

    def check(self, task: Task) -> None:
        """Raise `BadOption` if the method's formula does not cover this direction, ratio or family."""

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        """How the target tensor `name` (its {layer} left open) of `rule` is made."""

    def prepare(self, task: Task, opened: Opened) -> "tuple[Method, Mapping[str, Tensor]]":
        """Look at the opened source once before the plan: the method as it then is, and the tensors to read."""

    def config_fields(self, task: Task, config: Any) -> dict[str, Any]:
        """Fields of the target config that the method's formula sets (LEMON's norm epsilon), usually none."""

    def describe(self, task: Task) -> dict[str, Any]:
        """The choices the method made, for provenance and the plan."""

    def warnings(self, task: Task) -> list[str]:
        """What a user should know before running it."""


UNSIZED = identity(-1)  # an axis whose length only the tensor knows; it is never resized


class Linear(AsStored):
    """A method given by `pair` and `depth`.

    Attributes:
        name: of the method, as in `method=`.
        options_class: its own options, a dataclass made of `Options`; None for a method that takes those of BoT.
        option_names: the fields that it looks at: all of its own, or of `BoTConfig` those that are named.
        flat_heads: heads x head_dim is one axis (the formula knows no heads).
        keeps_scores: a change of head_dim is balanced on queries and keys, so that scores stay.
        combines: the widths or the depth can be had alone, for `Combined`.
        depth_of: whose rule for depth is used, where it is not the method's own.
    """

    name: str
    options_class: ClassVar[type[Options] | None] = None
    option_names: ClassVar[tuple[str, ...]] = ("positions", "grids")
    flat_heads: bool = False
    keeps_scores: bool = False
    combines: bool = True
    depth_of: "Linear | None" = None

    def __init_subclass__(cls) -> None:
        if cls.options_class is not None:
            cls.option_names = tuple(field.name for field in fields(cls.options_class))

    def __init__(self, options: Any) -> None:
        self.options = options

    # -- what a method says ---------------------------------------------------------------------

    def check(self, task: Task) -> None:
        """Refuse, with `BadOption`, a direction, ratio or family that the formula does not cover."""

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        """The maps of one role (flat heads: the heads' role), where `source` and `target` lengths differ.

        Args:
            at: the stack and the source layer whose units these are; None for axes of the whole network.
        """
        raise NotImplementedError

    def depth(self, task: Task, stack: str) -> Depth:
        """Which layers make up which, where the counts of layers of a stack (a role of kind depth) differ."""
        raise NotImplementedError

    # -- what follows from it -------------------------------------------------------------------

    def config_fields(self, task: Task, config: Any) -> dict[str, Any]:
        return {}

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        reads, note = self.reads(task, rule, layer, name)
        at = None if layer is None else (rule.depth, self.source_layer(task, rule.depth, layer))
        maps = tuple(tuple(self.segment(task, segment, at) for segment in axis.segments) for axis in rule.axes)
        over_axes = "" if is_identity(maps) else self.label(task, rule)
        return Recipe(reads, maps, note=", ".join(part for part in (note, over_axes) if part))

    def reads(self, task: Task, rule: Rule, layer: int | None, name: str) -> tuple[tuple[Read, ...], str]:
        """The source tensors that a target tensor is made of, and a note."""
        if layer is None:
            return (Read(name, None),), ""
        depth = self.layers(task, rule.depth)
        row = (depth.updates if rule.adds else depth.layers)[layer]
        if not row.any():
            return (Read(name, self.source_layer(task, rule.depth, layer), 0.0),), "zero update"
        return tuple(Read(name, int(i), float(row[i])) for i in np.flatnonzero(row)), depth.label

    def layers(self, task: Task, stack: str) -> Depth:
        """The depth rule of a stack, also where nothing changes."""
        source, target = task.lengths(stack)
        return Depth.unchanged(source) if source == target else (self.depth_of or self).depth(task, stack)

    def source_layer(self, task: Task, stack: str, layer: int) -> int:
        """The source layer that has most weight in a target layer: its units are the ones resized."""
        return int(np.argmax(np.abs(self.layers(task, stack).layers[layer])))

    def segment(self, task: Task, segment: tuple[Factor, ...], at: At) -> Segment:
        if self.is_flat(task, segment):
            pair = self.axis_pair(task, whole_unit(task, segment), *task.segment_lengths(segment), at)
            return (pair.consume if all(factor.reads for factor in segment) else pair.produce,)
        return tuple(self.factor(task, factor, at) for factor in segment)

    def is_flat(self, task: Task, segment: tuple[Factor, ...]) -> bool:
        """Whether a product of units and their entries is one axis to the formula; frequencies are never mixed."""
        return self.flat_heads and bool(whole_unit(task, segment))

    def factor(self, task: Task, factor: Factor, at: At) -> AxisMap:
        if not factor.role:
            return identity(factor.size or 1)
        source, target = task.source[factor.role], task.target[factor.role]
        if source is None or target is None:
            return UNSIZED
        pair = self.axis_pair(task, factor.role, source, target, at)
        chosen = pair.consume if factor.reads else pair.produce
        if factor.role in task.adapter.scored and source != target and self.keeps_scores:
            return chosen.scaled(task.score_gain(factor.role, factor.reads))
        return chosen

    def axis_pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        """The maps of any role: places are cropped or interpolated, a tied readout is swapped."""
        if source == target:
            return maps.kept(source)
        if task.roles.kind(role) == "place":
            return self.positions(source, target)
        if task.roles.kind(role) == "grid":
            return grid(source, target, self.options.grids)
        if task.roles.kind(role) == "frequency":
            raise IncompatibleModels(
                f"{role} goes from {source} to {target}: rotary pairs stand for frequencies, which are never mixed, "
                f"and no rule says yet which ones stay. Keep {task.roles[role].field} at the source's value."
            )
        network_wide = task.roles.is_network_wide(role)
        pair = self.pair(task, task.roles.leader(role), source, target, None if network_wide else at)
        return pair.swapped() if is_tied_readout(task, role) else pair

    def positions(self, source: int, target: int) -> Pair:
        index = periodic if self.options.positions == "crop" else interpolation
        return Pair(index(source, target), index(source, target), self.options.positions)

    # -- words ----------------------------------------------------------------------------------

    def describe(self, task: Task) -> dict[str, Any]:
        options = {name: value for name, value in self.options.to_dict().items() if name in self.option_names}
        return {"method": self.name, "options": options, "depth": self.depth_label(task)}

    def depth_label(self, task: Task) -> str:
        """What happens to the layers, in words."""
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
        """The error of a formula that does not cover what is asked."""
        return BadOption(f"method={self.name!r} cannot do this: {why}")

    def only_grows(self, task: Task) -> None:
        """Refuse a task in which any size shrinks."""
        self._one_way(task, "grow", lambda ratio: ratio < 1)

    def only_shrinks(self, task: Task) -> None:
        """Refuse a task in which any size grows."""
        self._one_way(task, "shrink", lambda ratio: ratio > 1)

    def _one_way(self, task: Task, verb: str, wrong: Callable[[float], bool]) -> None:
        # A formula without heads sees only their product, which is as long as hidden.
        inside = {task.roles[entry].within for entry in task.roles.entries}
        flat = {*inside, *task.roles.of("entry", "frequency")} if self.flat_heads else set()
        for role in task.changes("depth", "stream", "unit", "entry", "frequency"):
            if role not in flat and wrong(task.ratio(role)):
                source, target = task.lengths(role)
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
    """What a target tensor is made of over depth, which part of a norm it undoes if any, and a note."""
    if layer is None or depth is None:
        return (Read(name, None),), None, ""
    row = (depth.updates if rule.adds else depth.layers)[layer]
    new = depth.is_new(layer)
    if new and rule.adds:
        return (Read(name, int(np.argmax(depth.layers[layer])), 0.0),), None, "zero update"
    stem, _, part = name.rpartition(".")
    last = task.adapter.norm_names[stem].undoes if stem in task.adapter.norm_names else ""
    if new and last:
        below = int(np.argmax(depth.layers[layer]))
        return (Read(f"{last}.weight", below), Read(f"{last}.bias", below)), part, "undoes the norm below"
    return tuple(Read(name, int(i), float(row[i])) for i in np.flatnonzero(row)), None, depth.label


def whole_unit(task: Task, segment: tuple[Factor, ...]) -> str:
    """The unit of a product of a unit and its entries, such as heads; empty where there is none."""
    kinds = [task.roles.kind(factor.role) for factor in segment]
    if "frequency" in kinds or "entry" not in kinds:
        return ""
    return next((factor.role for factor, kind in zip(segment, kinds, strict=True) if kind == "unit"), "")


def is_tied_readout(task: Task, role: str) -> bool:
    """Whether a role is the stream in front of an output embedding that is the input embedding, too."""
    return task.tied and task.roles.kind(role) == "stream" and task.roles.leader(role) != role


class DepthOnly(Linear):
    """A formula that grows the layer count and nothing else; `Combined` gives it widths."""

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

    def __init__(self, widths: Linear, depth: Linear) -> None:
        super().__init__(widths.options)
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

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        return self._widths.recipe(task, rule, layer, name)

    def describe(self, task: Task) -> dict[str, Any]:
        return {**self._widths.describe(task), "method": self.name}

    def warnings(self, task: Task) -> list[str]:
        return [*self._widths.warnings(task), *self._depth.warnings(task)]


def _only(task: Task, depth: bool) -> Task:
    """The task with only its depth, or only its widths, changed."""
    base, other = (task.source, task.target) if depth else (task.target, task.source)
    return replace(task, target={**base, **{stack: other[stack] for stack in task.roles.of("depth")}})


METHODS: dict[str, Callable[[Any], Method]] = {}  # by name; `methods` itself fills in those that are built in


def register(method: type[Linear]) -> type[Linear]:
    """Make a method known by its name for the rest of this process; returns the class, so it can stand above it.

    Registering a name again replaces what was registered before, built-in ones excepted. `docs/methods.md`
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
        BadOption: no class with a name and a recipe, a name that is built in or that cannot be one, or options that
            are no `Options`.
    """
    name = getattr(method, "name", None)
    if not isinstance(method, type) or not callable(getattr(method, "recipe", None)):
        raise BadOption(f"a method must be a class such as a subclass of methods.Linear, got {method!r}.")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise BadOption(f"{method.__name__}.name is {name!r}; it must be the method's name in small letters.")
    known = METHODS.get(name)
    if known is not None and known is not method and _is_built_in(known):
        raise BadOption(f"method {name!r} is built in and cannot be replaced. Choose another name.")
    own = getattr(method, "options_class", None)
    if own is not None and not (isinstance(own, type) and issubclass(own, Options) and is_dataclass(own)):
        raise BadOption(f"{method.__name__}.options_class must be a frozen dataclass made of methods.Options.")
    METHODS[name] = method
    return method


def _is_built_in(method: Callable[[Any], Method]) -> bool:
    """Whether a method lies in this room: one that a user registers never does."""
    return method.__module__.startswith(f"{__package__}.")


def load(path: str | os.PathLike[str]) -> list[type[Linear]]:
    """Run a Python file and register the methods that it defines.

    Raises:
        BadOption: no such file, a file that fails, or one that defines no method.
    """
    names = names_of(path, "method")
    own = [v for v in names.values() if isinstance(v, type) and issubclass(v, Linear) and v.__module__ == "<run_path>"]
    if not own:
        raise BadOption(f"{Path(path).name} defines no method: a class in it must be a subclass of methods.Linear.")
    for method in own:
        method.__doc__ = names.get("__doc__") or method.__doc__  # what `transformers-bot methods` shows
    return [register(method) for method in dict.fromkeys(own)]


def options_of(name: str, given: Any) -> Any:
    """`bot_config=` as the options of a method: its own `Options`, or a `BoTConfig`.

    Raises:
        BadOption, BadKeyword: an unknown method, or options that are not its own.
    """
    parts = [_known(part) for part in name.split("+", 1)]
    own = next((own for part in parts if (own := getattr(part, "options_class", None))), None)
    return BoTConfig.from_any(given) if own is None else own.from_any(given)


def get(name: str, options: Any) -> Method:
    """The method of that name with its options; `BadOption` lists the known ones.

    Args:
        options: of `options_of`.

    Raises:
        BadOption: an unknown name, or an option, set to other than its default, that the method would
            not look at.
    """
    parts = name.split("+", 1)
    made = [_made(part, options) for part in parts]
    known = [getattr(part, "option_names", tuple(field.name for field in fields(BoTConfig))) for part in made]
    names = list(dict.fromkeys(option for of_part in known for option in of_part))
    for chosen, value in _set_options(options).items():
        if chosen not in names:
            takes = f"it takes {', '.join(names)}" if names else "it takes none"
            raise BadOption(f"method {name!r} has no option {chosen}={value!r} in bot_config: {takes}.")
    return made[0] if len(parts) == 1 else Combined(*(_linear(part) for part in made))


def _known(name: str) -> Callable[[Any], Method]:
    if name not in METHODS:
        hint = suggest(name, METHODS)
        raise BadOption(f"unknown method {name!r}; known methods are {', '.join(METHODS)}.{hint}")
    return METHODS[name]


def _made(name: str, options: Any) -> Method:
    method = _known(name)
    kind = getattr(method, "options_class", None) or BoTConfig
    return method(options if isinstance(options, kind) else kind())  # of two that are combined one has options


def _linear(part: Method) -> Linear:
    if isinstance(part, Linear) and part.combines:
        return part
    raise BadOption(f"method {part.name!r} cannot be combined: it resizes widths and depth together.")


def _set_options(options: Any) -> dict[str, Any]:
    """The options that differ from their defaults; those of a method's own class are all its own."""
    if not isinstance(options, BoTConfig):
        return {}
    plain = BoTConfig().to_dict()
    return {name: value for name, value in options.to_dict().items() if value != plain[name]}
