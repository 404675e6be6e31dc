"""Measures what a plan reads and makes while it runs, in one pass over each tensor.

The energy kept of a tensor is the share of its sum of squares that lies in what the maps see (see
`energy`): over depth, then along one axis after the other in the order in which `recipe.apply` maps
them. Each role's share is of what those before it have kept, so that along one segment their
product is the tensor's; segments (a fused q|k|v) add their energies up.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from ..architectures import Adapter
from ..architectures.axes import Axis, Factor, Rule
from ..architectures.inventory import rules_of
from ..errors import BadWeights
from ..ops.axis_map import AxisMap
from ..ops.energy import Stretch, Stretches, Sums, energy, sums
from ..ops.recipe import Recipe, Segment, apply_axis
from ..planning.planner import Plan, Step


@dataclass(frozen=True)
class Along:
    """What the maps of one role did in one tensor, over all of its segments.

    Attributes:
        role: of the axis; "heads x head_dim" where a method has them as one.
        reads: the tensor reads this axis, it does not write it.
        before, after: lengths.
        squares: the sum of the squares of the maps' entries.
        smaller: the shorter length; an orthonormal map's squares add up to it.
        arrived, kept: energy before and after; None where it was not measured.
        over_layers: the map is not of an axis but over the depth.
    """

    role: str
    reads: bool
    before: int
    after: int
    squares: float
    smaller: int
    arrived: float | None = None
    kept: float | None = None
    over_layers: bool = False

    @property
    def gain(self) -> float:
        return math.sqrt(self.squares / self.smaller)


class Trace:
    """Follows one target tensor through its maps (a `recipe.Watcher`)."""

    def __init__(self, step: Step, rule: Rule, sources: Mapping[str, Sums], stretches: Stretches) -> None:
        self._step, self._rule, self._sources, self._stretches = step, rule, sources, stretches
        self._recipe: Recipe = step.recipe or Recipe((), ())
        self.noise, self.gain = 0.0, 1.0
        self.depth: tuple[float, float] | None = None
        self._start, self._total = 0.0, 0.0  # energy of the summed layers, and kept of it so far
        self._piece = 0.0  # the same in the segment that is being mapped
        self._levels: list[list[Stretch]] = []  # of the axis that is being mapped: by segment and factor
        self._pieces: list[float] = []
        self._done: dict[int, Tensor | tuple[Segment, ...]] = {}  # axis -> what takes its maps' stretch out
        self._along: dict[tuple[int, str, bool], Along] = {}

    @property
    def source(self) -> Sums:
        """Of every tensor that the result is made of."""
        recipes = (self._recipe, *self._recipe.plus)
        names = dict.fromkeys(self._step.reads[one] for recipe in recipes for one in recipe.reads)
        return sum((self._sources[name] for name in names), Sums())

    @property
    def axes(self) -> tuple[float, float]:
        return self._start, self._total

    def along(self) -> tuple[Along, ...]:
        return tuple(self._along.values())

    def summed(self, signal: Tensor) -> None:
        recipe = self._recipe
        read = [one for one in recipe.reads if one.weight]
        squares = sum(one.weight**2 for one in read)
        arrived = sum(self._sources[self._step.reads[one]].squares for one in read)
        known = len(read) == 1 and not recipe.undo
        self._start = self._total = arrived * squares if known else energy(signal)
        if read and not recipe.undo:
            self.depth = arrived, self._total / squares

    def mapped(self, dim: int, segments: tuple[Segment, ...], place: tuple[int, int], x: Tensor, out: Tensor) -> None:
        number, offset = place
        one = self._stretches.of(segments[number][offset])
        whole = self._loses_nothing(segments)
        if place == (0, 0):
            self._levels, self._pieces = [], []
        if offset == 0:  # where nothing can be lost every share is 1, and no segment is measured apart
            self._levels.append([])
            self._piece = self._total if len(segments) == 1 or whole else self._energy(x, dim, len(segments[number]))
        arrived = self._piece
        self._levels[-1].append(one)
        if not one.lossless:
            self._piece = self._energy(out, dim, len(segments[number]))
        self._note(dim, segments, place, one, arrived)
        if offset == len(segments[number]) - 1:
            self._pieces.append(self._piece)
            if number == len(segments) - 1:
                self._total = self._total if whole else sum(self._pieces)
                self._done[dim] = _undoing(self._levels)
                self.gain *= _gain(segments, self._levels)

    def filled(self, noise: Tensor) -> None:
        self.noise = energy(noise)

    def _loses_nothing(self, segments: tuple[Segment, ...]) -> bool:
        return all(self._stretches.of(m).lossless for segment in segments for m in segment)

    def _energy(self, x: Tensor, dim: int, factors: int) -> float:
        """The energy of a segment whose factors stand at `dim` and after, every stretch so far taken out."""
        undone: dict[int, Tensor | AxisMap | tuple[Segment, ...]] = {}
        undone |= {axis if axis < dim else axis + factors - 1: one for axis, one in self._done.items()}
        undone |= {dim + offset: one.undo for offset, one in enumerate(self._levels[-1])}
        for axis, one in undone.items():
            if isinstance(one, AxisMap):
                x = one.apply(x, axis)
            elif not isinstance(one, Tensor):
                x = apply_axis(x, axis, one)
        return energy(x, {axis: one for axis, one in undone.items() if isinstance(one, Tensor)})

    def _note(
        self, dim: int, segments: tuple[Segment, ...], place: tuple[int, int], one: Stretch, arrived: float
    ) -> None:
        number, offset = place
        axis_map = segments[number][offset]
        if axis_map.is_identity:
            return
        role, reads = _named(self._rule.axes[dim], segments[number], place)
        smaller = min(axis_map.source, axis_map.target)
        new = Along(role, reads, axis_map.source, axis_map.target, one.squares, smaller, arrived, self._piece)
        known = self._along.get((dim, role, reads))
        self._along[dim, role, reads] = new if known is None else _pooled(known, new)


def _undoing(levels: list[list[Stretch]]) -> Tensor | tuple[Segment, ...]:
    """What takes the stretch of one axis out: weights on the energy of its entries where such do, else maps."""
    weights = [[one.undo for one in factors if isinstance(one.undo, Tensor)] for factors in levels]
    if sum(map(len, weights)) == sum(map(len, levels)):
        return torch.cat([reduce(torch.kron, factors) for factors in weights])
    return tuple(tuple(one.undoing for one in factors) for factors in levels)


def _gain(segments: tuple[Segment, ...], levels: list[list[Stretch]]) -> float:
    """Frobenius norm of the whole axis' map over the square root of the shorter side."""
    squares = sum(math.prod(one.squares for one in factors) for factors in levels)
    lengths = (sum(math.prod(getattr(m, side) for m in one) for one in segments) for side in ("source", "target"))
    return math.sqrt(squares / min(lengths))


def _named(axis: Axis, segment: Segment, place: tuple[int, int]) -> tuple[str, bool]:
    """The role of a map and its side; a map over a whole segment has all of the segment's roles."""
    number, offset = place
    factors: tuple[Factor, ...] = axis.segments[number]
    own = (factors[offset],) if len(segment) == len(factors) else factors
    return " x ".join(factor.role or str(factor.size) for factor in own), all(factor.reads for factor in own)


def _pooled(one: Along, other: Along) -> Along:
    """Two segments of the same role and side."""
    return replace(
        one,
        squares=one.squares + other.squares,
        smaller=one.smaller + other.smaller,
        arrived=(one.arrived or 0.0) + (other.arrived or 0.0),
        kept=(one.kept or 0.0) + (other.kept or 0.0),
    )


@dataclass(frozen=True)
class Made:
    """What was measured of one target tensor.

    Attributes:
        source: sums of the tensors that were read.
        result: sums of the tensor, as stored.
        along: one entry per role and side that was mapped, in the order of the maps.
        depth: the layers' energy and how much of it their sum kept; None where that has no meaning.
        axes: the energy of that sum and how much of it the maps kept.
        gain: of all the maps together: 1 for orthonormal ones.
        noise: energy of the noise in the detail bands.
        linear: it is a weighted sum of layers under one map per axis, to which at most noise was added.
    """

    source: Sums
    result: Sums
    along: tuple[Along, ...]
    depth: tuple[float, float] | None
    axes: tuple[float, float]
    gain: float
    noise: float
    linear: bool


class Watch:
    """Collects what `make_report` tells, while `run_plan(..., watch=watch)` runs.

    Example:
        watch = Watch(plan, adapter)
        resized = dict(run_plan(plan, tensors, dtype, watch=watch))
        report = make_report(plan, watch, provenance)

    Args:
        plan: what is going to be run.
        adapter: of its source and target; its rules tell which axis has which role.
    """

    def __init__(self, plan: Plan, adapter: Adapter) -> None:
        self.rules = rules_of(adapter, plan.target, plan.target_sizes)
        self.templates = {
            name: rule.template(plan.target.canonical(name)) for name, (rule, _) in self.rules.items()
        }  # stacks of same-function tensors
        self.results: dict[str, Made] = {}
        self.unfinite: list[str] = []  # results that are not finite because their source is not
        self.unread = 0.0  # energy of the source tensors that nothing was made of
        self._sources: dict[str, Sums] = {}
        self._stretches = Stretches()
        self._trace: Trace | None = None

    def reading(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same tensors, each measured when it is first read."""
        return _Measured(tensors, self._sources)

    def passed_over(self, tensors: Mapping[str, Tensor]) -> None:
        """Take down the source tensors that nothing was made of."""
        self.unread = sum(sums(x).squares for x in tensors.values() if x.is_floating_point())

    @property
    def sources(self) -> Mapping[str, Sums]:
        """Source tensor -> its sums, of all that were read."""
        return self._sources

    def following(self, step: Step) -> Trace:
        """What `recipe.run` tells about this step."""
        self._trace = Trace(step, self.rules[step.target][0], self._sources, self._stretches)
        return self._trace

    def made(self, step: Step, out: Tensor) -> None:
        """Take down what the step has made.

        Raises:
            BadWeights: it is not finite, although all that was read is.
        """
        trace, recipe = self._trace, step.recipe
        if trace is None or recipe is None:
            raise ValueError(f"{step.target}: nothing was followed; call following(step) first.")
        result, source = sums(out), trace.source
        if not result.is_finite:
            if source.is_finite:
                raise BadWeights(_overflow_message(step.target, out))
            self.unfinite.append(step.target)
        depth, axes = trace.depth, trace.axes
        if recipe.is_copy:
            depth = axes = (source.squares, source.squares)
        linear = not recipe.undo and not recipe.plus and any(one.weight for one in recipe.reads)
        self.results[step.target] = Made(source, result, trace.along(), depth, axes, trace.gain, trace.noise, linear)
        self._trace = None


class _Measured(Mapping[str, Tensor]):
    """Tensors that leave their sums when they are read: reading again may mean computing again."""

    def __init__(self, tensors: Mapping[str, Tensor], found: dict[str, Sums]) -> None:
        self._tensors, self._found = tensors, found

    def __getitem__(self, name: str) -> Tensor:
        x = self._tensors[name]
        if name not in self._found:
            self._found[name] = sums(x)
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _overflow_message(name: str, out: Tensor) -> str:
    bad = (~torch.isfinite(out)).nonzero()
    dtype = str(out.dtype).removeprefix("torch.")
    wider = {"float16": "dtype='bfloat16' or dtype='float32'", "float64": "a source with smaller values"}
    remedy = wider.get(dtype, "dtype='float64'")
    return (
        f"{name}: {len(bad)} of {out.numel()} entries (the first at {bad[0].tolist()}) are not finite as {dtype}, "
        f"whose largest number is {torch.finfo(out.dtype).max:.5g}, although all that they are made of is. "
        f"Pass {remedy}."
    )
