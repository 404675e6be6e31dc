"""Makes a transfer report (its tensors, roles and stacks of layers) from a plan and its measurements."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..planning.planner import Plan, Step
from .measure import Along, Measurement, Watch
from .report import Report, Role, Stack, Tensor

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


def tensor_row(step: Step, watch: Watch, depths: Depths) -> Tensor:
    """The row of one step; figures that were not measured, or have no meaning, are None."""
    counted = 0 if step.action == "tie" else step.parameters
    taken = counted if step.action in ("copy", "resample") else 0
    row = Tensor(step.target, step.action, step.reason, (), step.source_shape, step.shape, counted, taken)
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
        roles=tuple(_pooled([read]) for read in _parts(step, watch, depths)),
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


def role_rows(plan: Plan, watch: Watch, depths: Depths) -> tuple[Role, ...]:
    """Every role and side over all tensors; energies are added up, so that tensors with more energy count for more."""
    groups: dict[tuple[str, bool, int, int], list[Part]] = {}
    for step in plan.steps:
        if step.recipe is not None:
            for part in _parts(step, watch, depths):
                along = part.along
                groups.setdefault((along.role, along.reads, along.before, along.after), []).append(part)
    order = {role: place for place, role in enumerate(plan.source_sizes)}
    keys = sorted(groups, key=lambda key: (order.get(key[0].split(" x ")[0], len(order)), *key))
    rows = [_pooled(groups[key]) for key in keys]
    return tuple(_of_stacks(row, depths) if row.side == "depth" else row for row in rows)


def _of_stacks(row: Role, depths: Depths) -> Role:
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


def _pooled(parts: Iterable[Part]) -> Role:
    parts = list(parts)
    first, entries = parts[0].along, [part.along for part in parts if part.linear]
    arrived, kept = sum(entry.arrived or 0.0 for entry in entries), sum(entry.kept or 0.0 for entry in entries)
    smaller = sum(entry.smaller for entry in entries)
    side = "depth" if first.over_layers else "read" if first.reads else "written"
    gain = math.sqrt(sum(entry.squares for entry in entries) / smaller) if smaller else None
    return Role(
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
