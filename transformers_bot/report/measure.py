"""Measures the tensors that a plan reads and makes while it runs, in one pass over each tensor.

The energy kept of a tensor is the share of its sum of squares in the row space of the maps (see `ops.blocks.energy`):
first over depth, then along one axis after the other, in the order in which `recipe.apply` maps them. The share of a
role is of the energy that the maps before it have kept. So in one segment the product of these shares is the share of
the tensor; the energies of several segments (a fused q|k|v) are added up.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..architectures.adapter import Adapter, Axis, Factor, Rule
from ..architectures.inventory import rules_of
from ..errors import BadWeights
from ..ops.axis_map import AxisMap
from ..ops.blocks import Sums, energy, sums
from ..ops.recipe import Recipe, Segment, Stretch, Stretches, apply_axis
from ..planning.planner import Plan, Step
from .report import Report, Stack
from .report import Role as RoleRow
from .report import Tensor as TensorRow


@dataclass(frozen=True)
class Along:
    """What the maps of one role did in one tensor, over all of its segments.

    Attributes:
        role: of the axis; "heads x head_dim" if the method maps both as one.
        reads: whether the tensor reads this axis; otherwise it writes it.
        before, after: lengths.
        squares: the sum of the squares of the maps' entries.
        smaller: the shorter length; an orthonormal map's squares add up to it.
        arrived, kept: energy before and after the map; None if it was not measured.
        over_layers: whether this is the sum over layers, not a map of an axis.
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
        self._start, self._total = 0.0, 0.0  # energy of the summed layers, and the part kept so far
        self._piece = 0.0  # energy kept so far in the segment that is being mapped
        self._levels: list[list[Stretch]] = []  # of the current axis: by segment and factor
        self._pieces: list[float] = []
        self._done: dict[int, Tensor | tuple[Segment, ...]] = {}  # axis -> what undoes the stretch of its maps
        self._along: dict[tuple[int, str, bool], Along] = {}

    @property
    def source(self) -> Sums:
        """Sums of all source tensors that the result is made of."""
        recipes = (self._recipe, *self._recipe.plus)
        names = dict.fromkeys(self._step.reads[read] for recipe in recipes for read in recipe.reads)
        return sum((self._sources[name] for name in names), Sums())

    @property
    def axes(self) -> tuple[float, float]:
        return self._start, self._total

    def along(self) -> tuple[Along, ...]:
        return tuple(self._along.values())

    def summed(self, signal: Tensor) -> None:
        recipe = self._recipe
        reads = [read for read in recipe.reads if read.weight]
        squares = sum(read.weight**2 for read in reads)
        energy_read = sum(self._sources[self._step.reads[read]].squares for read in reads)
        is_plain = len(reads) == 1 and not recipe.undo
        self._start = self._total = energy_read * squares if is_plain else energy(signal)
        if reads and not recipe.undo:
            self.depth = energy_read, self._total / squares

    def mapped(self, dim: int, segments: tuple[Segment, ...], place: tuple[int, int], x: Tensor, out: Tensor) -> None:
        number, offset = place
        stretch = self._stretches.of(segments[number][offset])
        lossless = self._loses_nothing(segments)
        if place == (0, 0):
            self._levels, self._pieces = [], []
        if offset == 0:  # if nothing can be lost, every share is 1 and no segment is measured by itself
            self._levels.append([])
            self._piece = self._total if len(segments) == 1 or lossless else self._energy(x, dim, len(segments[number]))
        arrived = self._piece
        self._levels[-1].append(stretch)
        if not stretch.lossless:
            self._piece = self._energy(out, dim, len(segments[number]))
        self._note(dim, segments, place, stretch, arrived)
        if offset == len(segments[number]) - 1:
            self._pieces.append(self._piece)
            if number == len(segments) - 1:
                self._total = self._total if lossless else sum(self._pieces)
                self._done[dim] = _undoing(self._levels)
                self.gain *= _gain(segments, self._levels)

    def filled(self, noise: Tensor) -> None:
        self.noise = energy(noise)

    def _loses_nothing(self, segments: tuple[Segment, ...]) -> bool:
        return all(self._stretches.of(m).lossless for segment in segments for m in segment)

    def _energy(self, x: Tensor, dim: int, factors: int) -> float:
        """The energy of a segment whose factors are the dimensions from `dim` on, with all stretch so far undone."""
        undone: dict[int, Tensor | AxisMap | tuple[Segment, ...]] = {}
        undone |= {axis if axis < dim else axis + factors - 1: undo for axis, undo in self._done.items()}
        undone |= {dim + offset: stretch.undo for offset, stretch in enumerate(self._levels[-1])}
        for axis, undo in undone.items():
            if isinstance(undo, AxisMap):
                x = undo.apply(x, axis)
            elif not isinstance(undo, Tensor):
                x = apply_axis(x, axis, undo)
        return energy(x, {axis: undo for axis, undo in undone.items() if isinstance(undo, Tensor)})

    def _note(
        self, dim: int, segments: tuple[Segment, ...], place: tuple[int, int], stretch: Stretch, arrived: float
    ) -> None:
        number, offset = place
        axis_map = segments[number][offset]
        if axis_map.is_identity:
            return
        role, reads = _named(self._rule.axes[dim], segments[number], place)
        smaller = min(axis_map.source, axis_map.target)
        entry = Along(role, reads, axis_map.source, axis_map.target, stretch.squares, smaller, arrived, self._piece)
        earlier = self._along.get((dim, role, reads))
        self._along[dim, role, reads] = entry if earlier is None else _pooled(earlier, entry)


def _undoing(levels: list[list[Stretch]]) -> Tensor | tuple[Segment, ...]:
    """What undoes the stretch of one axis: weights for the energy of its entries if these suffice, else maps."""
    weights = [[stretch.undo for stretch in factors if isinstance(stretch.undo, Tensor)] for factors in levels]
    if sum(map(len, weights)) == sum(map(len, levels)):
        return torch.cat([reduce(torch.kron, factors) for factors in weights])
    return tuple(tuple(stretch.undo_map for stretch in factors) for factors in levels)


def _gain(segments: tuple[Segment, ...], levels: list[list[Stretch]]) -> float:
    """Frobenius norm of the map of the whole axis, divided by the square root of the shorter length."""
    squares = sum(math.prod(stretch.squares for stretch in factors) for factors in levels)
    lengths = (
        sum(math.prod(getattr(m, side) for m in segment) for segment in segments) for side in ("source", "target")
    )
    return math.sqrt(squares / min(lengths))


def _named(axis: Axis, segment: Segment, place: tuple[int, int]) -> tuple[str, bool]:
    """The role of a map, and whether its tensor reads it; a map of a whole segment has all roles of the segment."""
    number, offset = place
    factors: tuple[Factor, ...] = axis.segments[number]
    own = (factors[offset],) if len(segment) == len(factors) else factors
    return " x ".join(factor.role or str(factor.size) for factor in own), all(factor.reads for factor in own)


def _pooled(first: Along, second: Along) -> Along:
    """The sum of two segments of the same role and side."""
    return replace(
        first,
        squares=first.squares + second.squares,
        smaller=first.smaller + second.smaller,
        arrived=(first.arrived or 0.0) + (second.arrived or 0.0),
        kept=(first.kept or 0.0) + (second.kept or 0.0),
    )


@dataclass(frozen=True)
class Measurement:
    """What was measured of one target tensor.

    Attributes:
        source: sums of the tensors that were read.
        result: sums of the target tensor as stored.
        along: one entry per role and side that was mapped, in the order of the maps.
        depth: energy of the layers and the part of it that their sum keeps; None if that has no meaning.
        axes: energy of that sum and the part of it that the maps keep.
        gain: of all maps together; 1 for orthonormal maps.
        noise: energy of the noise in the detail bands.
        linear: whether it is a weighted sum of layers under one map per axis, apart from added noise.
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
    """Collects the figures of `make_report` while `run_plan(..., watch=watch)` runs.

    Example:
        watch = Watch(plan, adapter)
        resized = dict(run_plan(plan, tensors, dtype, watch=watch))
        report = make_report(plan, watch, provenance)

    Args:
        plan: the plan that will run.
        adapter: of its source and target; its rules give the role of every axis.
    """

    def __init__(self, plan: Plan, adapter: Adapter) -> None:
        self.rules = rules_of(adapter, plan.target, plan.target_sizes)
        self.templates = {
            name: rule.template(plan.target.canonical(name)) for name, (rule, _) in self.rules.items()
        }  # stacks of same-function tensors
        self.results: dict[str, Measurement] = {}
        self.nonfinite: list[str] = []  # results that are not finite because their source is not
        self.unread = 0.0  # energy of the source tensors that no target tensor reads
        self._sources: dict[str, Sums] = {}
        self._stretches = Stretches()
        self._trace: Trace | None = None

    def measured(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same tensors, each measured when it is first read."""
        return _Measured(tensors, self._sources)

    def record_unread(self, tensors: Mapping[str, Tensor]) -> None:
        """Record the source tensors that no target tensor reads."""
        self.unread = sum(sums(x).squares for x in tensors.values() if x.is_floating_point())

    @property
    def sources(self) -> Mapping[str, Sums]:
        """The sums of every source tensor that was read, by name."""
        return self._sources

    def trace(self, step: Step) -> Trace:
        """The watcher of this step for `recipe.run`."""
        self._trace = Trace(step, self.rules[step.target][0], self._sources, self._stretches)
        return self._trace

    def record(self, step: Step, out: Tensor) -> None:
        """Record the tensor that a step has computed.

        Raises:
            BadWeights: it is not finite, although all tensors that were read are.
        """
        trace, recipe = self._trace, step.recipe
        if trace is None or recipe is None:
            raise ValueError(f"{step.target}: it has no trace; call trace(step) first.")
        result, source = sums(out), trace.source
        if not result.is_finite:
            if source.is_finite:
                raise BadWeights(_overflow_message(step.target, out))
            self.nonfinite.append(step.target)
        depth, axes = trace.depth, trace.axes
        if recipe.is_copy:
            depth = axes = (source.squares, source.squares)
        linear = not recipe.undo and not recipe.plus and any(read.weight for read in recipe.reads)
        self.results[step.target] = Measurement(
            source, result, trace.along(), depth, axes, trace.gain, trace.noise, linear
        )
        self._trace = None


class _Measured(Mapping[str, Tensor]):
    """Tensors whose sums are taken when they are first read: to read one again may mean to compute it again."""

    def __init__(self, tensors: Mapping[str, Tensor], sums_of: dict[str, Sums]) -> None:
        self._tensors, self._sums = tensors, sums_of

    def __getitem__(self, name: str) -> Tensor:
        x = self._tensors[name]
        if name not in self._sums:
            self._sums[name] = sums(x)
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
        f"whose largest number is {torch.finfo(out.dtype).max:.5g}, although all values that they are made of are. "
        f"Pass {remedy}."
    )


DIGITS = 6  # significant digits: float32 sums agree to so many for any number of threads


def make_report(plan: Plan, watch: Watch, provenance: dict[str, Any]) -> Report:
    """The report of a plan that has run under `watch` to its end.

    Args:
        provenance: in JSON types.

    Raises:
        ValueError: the plan has not run to its end.
    """
    missing = [step.target for step in plan.steps if step.recipe is not None and step.target not in watch.results]
    if missing:
        raise ValueError(
            f"{len(missing)} steps have not run under this watch, {missing[0]!r} first; run the plan first."
        )
    plan_facts, depths = plan.to_dict(), Depths(plan, watch)
    nonfinite = [f"{name} is not finite, because its source is not" for name in watch.nonfinite]
    before, after = plan_facts["source"]["sizes"], plan_facts["target"]["sizes"]
    return Report(
        classes=(plan.source.model_class, plan.target.model_class),
        dtypes=(_name(plan.dtypes[0]), _name(plan.dtypes[1])),
        sizes={role: (length, after[role]) for role, length in before.items() if role in after},
        parameters=(plan_facts["parameters"]["source"], plan_facts["parameters"]["target"]),
        bytes=(plan_facts["bytes"]["source"], plan_facts["bytes"]["target"]),
        inherited=round(plan.inherited, DIGITS),
        method=_plain(plan.method),
        provenance=_plain(provenance),
        roles=role_rows(plan, watch, depths),
        stacks=depths.stacks(),
        tensors=tuple(tensor_row(step, watch, depths) for step in plan.steps),
        dropped=dict(plan.dropped),
        warnings=(*plan.warnings, *nonfinite),
        energy_kept=energy_kept(plan, watch, depths) if plan.shrinks else None,
    )


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Depths:
    """The source layers that every stack of tensors of the same function is made of."""

    def __init__(self, plan: Plan, watch: Watch) -> None:
        self._lengths = {
            role: (plan.source_sizes[role] or 0, plan.target_sizes[role] or 0) for role in plan.roles.depths
        }
        self._roles: dict[str, str] = {}  # template -> the depth role of its layers
        self._weights: dict[str, np.ndarray] = {}  # template -> (target layer, source layer)
        self._read: dict[str, set[int]] = {}
        self._ranks: dict[bytes, int] = {}  # weights -> rank: most stacks are made of the same layers
        self._full: dict[str, bool] = {}
        for step in plan.steps:
            rule, layer = watch.rules[step.target]
            if step.recipe is None or layer is None:
                continue
            template = watch.templates[step.target]
            if template not in self._weights:
                before, after = self._lengths[rule.depth]
                self._roles[template] = rule.depth
                self._weights[template] = np.zeros((after, before))
            row = self._weights[template][layer]
            for recipe in (step.recipe, *step.recipe.plus):
                for read in recipe.reads:
                    if read.layer is None or not read.weight:
                        continue
                    self._read.setdefault(read.name, set()).add(read.layer)
                    if read.name == template and recipe is step.recipe:
                        row[read.layer] += read.weight

    def change(self, role: str) -> tuple[int, int] | None:
        """Layers of source and target if they differ, else None."""
        before, after = self._lengths.get(role, (0, 0))
        return (before, after) if before != after else None

    def loses_nothing(self, template: str) -> bool:
        """Whether the source's layers follow from the target's: there are as many independent sums as layers."""
        if template not in self._full:
            self._full[template] = self._has_all(self._weights.get(template))
        return self._full[template]

    def _has_all(self, weights: np.ndarray | None) -> bool:
        if weights is None or len(weights) < len(weights.T):
            return False
        key = weights.tobytes()
        if key not in self._ranks:
            self._ranks[key] = int(np.linalg.matrix_rank(weights))
        return self._ranks[key] == len(weights.T)

    def gain(self, role: str) -> float:
        """The gain of a depth's maps over whole stacks, as for an axis: 1 if they are orthonormal."""
        stacks = [weights for name, weights in self._weights.items() if self._roles[name] == role]
        squares = sum(float(np.square(weights).sum()) for weights in stacks)
        return math.sqrt(squares / (len(stacks) * min(self._lengths[role])))

    def stacks(self) -> tuple[Stack, ...]:
        """Every stack whose depth changes."""
        lengths_of = {name: self._lengths[role] for name, role in self._roles.items() if self.change(role)}
        return tuple(
            Stack(name, *lengths, tuple(sorted({*range(lengths[0])} - self._read.get(name, set()))))
            for name, lengths in lengths_of.items()
        )

    def leaves_out(self, role: str) -> bool:
        """Whether some layers of a depth are not read."""
        return any(stack.left_out for stack in self.stacks() if self._roles[stack.name] == role)


def tensor_row(step: Step, watch: Watch, depths: Depths) -> TensorRow:
    """The row of one step; figures that were not measured, or have no meaning, are None."""
    counted = 0 if step.action == "tie" else step.parameters
    taken = counted if step.action in ("copy", "resample") else 0
    row = TensorRow(step.target, step.action, step.reason, (), step.source_shape, step.shape, counted, taken)
    measured, recipe = watch.results.get(step.target), step.recipe
    if measured is None or recipe is None:
        return row
    recipes = (recipe, *recipe.plus)
    depth, axes = _over_layers(step, measured, watch, depths), measured.axes
    shares = share(depth), share(axes)
    linear = measured.linear and shares[0] is not None and shares[1] is not None
    weight = math.sqrt(sum(read.weight**2 for read in recipe.reads))
    return replace(
        row,
        reads=tuple(dict.fromkeys(step.reads[read] for recipe_part in recipes for read in recipe_part.reads)),
        roles=tuple(_role_row([read]) for read in _parts(step, watch, depths)),
        gain=number(measured.gain * weight) if measured.linear and not recipe.match else None,
        energy_kept=number(math.prod(read or 0.0 for read in shares)) if linear else None,
        noise=share((measured.result.squares, measured.noise)) if recipe.detail else None,
        std_before=number(measured.source.std),
        std_after=number(measured.result.std),
    )


def energy_kept(plan: Plan, watch: Watch, depths: Depths) -> float | None:
    """The share of the energy of all source tensors, read or not, that the maps keep.

    Every source tensor counts once, with the share that the steps of its stack keep. None if more than a twentieth of
    the energy is in tensors whose share has no meaning.
    """
    arrived: dict[str, float] = {}
    kept: dict[str, float] = {}
    names_read: dict[str, set[str]] = {}
    unknown: set[str] = set()
    for step in (step for step in plan.steps if step.recipe is not None):
        template, measured = watch.templates[step.target], watch.results[step.target]
        names_read.setdefault(template, set()).update(step.reads.values())
        depth = _over_layers(step, measured, watch, depths)
        shares = share(depth), share(measured.axes)
        if not measured.source.squares or (step.recipe and not any(read.weight for read in step.recipe.reads)):
            continue  # there is nothing to keep, or the layer is inserted as the identity
        if not measured.linear or depth is None or shares[0] is None or shares[1] is None:
            unknown.add(template)
            continue
        arrived[template] = arrived.get(template, 0.0) + depth[0]
        kept[template] = kept.get(template, 0.0) + depth[0] * shares[0] * shares[1]
    total, known, remaining = watch.unread, watch.unread, 0.0
    for template, names in names_read.items():
        energy = sum(watch.sources[name].squares for name in names)
        total += energy
        if template in arrived and template not in unknown:
            known += energy
            remaining += energy * kept[template] / arrived[template]
    return share((known, remaining)) if known > 0.95 * total else None


def role_rows(plan: Plan, watch: Watch, depths: Depths) -> tuple[RoleRow, ...]:
    """Every role and side over all tensors; energies are added up, so that tensors with more energy count for more."""
    groups: dict[tuple[str, bool, int, int], list[Part]] = {}
    for step in plan.steps:
        if step.recipe is not None:
            for part in _parts(step, watch, depths):
                along = part.along
                groups.setdefault((along.role, along.reads, along.before, along.after), []).append(part)
    order = {role: place for place, role in enumerate(plan.source_sizes)}
    keys = sorted(groups, key=lambda key: (order.get(key[0].split(" x ")[0], len(order)), *key))
    rows = [_role_row(groups[key]) for key in keys]
    return tuple(_of_stacks(row, depths) if row.side == "depth" else row for row in rows)


def _of_stacks(row: RoleRow, depths: Depths) -> RoleRow:
    """The row of a depth, with the gain of whole stacks.

    The energy of layers that are not read is unknown, and with it the share of the whole.
    """
    energy = None if depths.leaves_out(row.role) else row.energy_kept
    return replace(row, gain=number(depths.gain(row.role)), energy_kept=energy)


@dataclass(frozen=True)
class Part:
    """One role of one tensor; `linear` if its gain and energy have a meaning."""

    along: Along
    linear: bool


def _parts(step: Step, watch: Watch, depths: Depths) -> list[Part]:
    measured = watch.results[step.target]
    parts = [Part(along, measured.linear) for along in measured.along]
    depth = watch.rules[step.target][0].depth
    lengths = depths.change(depth)
    if lengths and step.recipe is not None:
        weight = sum(read.weight**2 for read in step.recipe.reads)
        arrived, kept = _over_layers(step, measured, watch, depths) or (None, None)
        layer = Along(depth, False, *lengths, weight, 1, arrived, kept, over_layers=True)
        parts.insert(0, Part(layer, measured.linear))
    return parts


def _over_layers(step: Step, measured: Measurement, watch: Watch, depths: Depths) -> tuple[float, float] | None:
    """The energy of the layers that are summed, and the part of it that the whole stack keeps."""
    if measured.depth is not None and depths.loses_nothing(watch.templates[step.target]):
        return measured.depth[0], measured.depth[0]
    return measured.depth


def _role_row(parts: Iterable[Part]) -> RoleRow:
    parts = list(parts)
    first, entries = parts[0].along, [part.along for part in parts if part.linear]
    arrived, kept = sum(entry.arrived or 0.0 for entry in entries), sum(entry.kept or 0.0 for entry in entries)
    smaller = sum(entry.smaller for entry in entries)
    side = "depth" if first.over_layers else "read" if first.reads else "written"
    gain = math.sqrt(sum(entry.squares for entry in entries) / smaller) if smaller else None
    return RoleRow(
        first.role,
        side,
        first.before,
        first.after,
        None if gain is None else number(gain),
        share((arrived, kept)),
        len(parts),
    )


def share(energies: tuple[float, float] | None) -> float | None:
    """The second energy divided by the first; None if the first is 0 or one of them is not finite."""
    if energies is None or not energies[0] > 0 or not math.isfinite(sum(energies)):
        return None
    return number(min(1.0, energies[1] / energies[0]))


def number(value: float) -> float | None:
    """A figure rounded for the report; None for NaN and infinity, which JSON does not have."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
