"""BoT: wavelet low-pass over layers, rows and columns, in both directions.

`gain="raw"` is the paper as written on its four modules (attention in, out, MLP in, out): the
orthonormal low band to shrink, the inverse transform with empty details to grow, on all three axes.
It leaves other tensors open; here they take the consistent maps, so that a norm weight of 1 stays 1.

`gain="consistent"` (ours) makes the same transform keep the network's function. Every role gets a
pair (R, C): R has unit gain on constants and is used where the role is written, C is its dual,
`C^T R = I` when growing and `R C^T = I` when shrinking, and is used where the role is read. Then

* queries write and keys read the same axis, and a change of head_dim by g rescales their product
  by sqrt(g), shared as g^(-1/4) on R and g^(3/4) on C (C itself carries 1/g);
* the stream in front of a tied output embedding is read with R, so it is written with C;
* tensors that add onto the residual stream take C over depth, so the sum of updates is kept.

Source: the BoT paper (CVPR 2026), section 3; gains and odd ratios are ours.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ..architectures.axes import Factor, Rule
from ..console import progress
from ..ops.axis_map import AxisMap
from ..ops.recipe import Detail, Read, Recipe, Segment, is_identity
from ..options import BoTConfig
from ..rewrite import Opened, fit_to_low_pass
from ..rewrite.network import STREAM
from . import levers, pairs
from .base import Task
from .depth import Depth, check_direction, chosen_layers, filtered, identity_blocks, picked, reads_of, repeated
from .grids import grid, interpolation, periodic
from .pairs import Pair
from .paper import paper_wavelet
from .prepare import Prepared, about_calibration, both_sides, prepare
from .unseen import noise_maps

# Haar copies, so growth keeps every checkpoint's function whatever its norm weights, which longer
# filters only nearly do. Noise of one standard deviation parts the twins that copies are, which
# nothing else would: within a few dozen steps none at all ends a little lower, fourfold ends higher.
# Figures: benchmarks/results/transfer-levers.md, against other methods transfer-cpu.md.
CONSISTENT_WAVELET = "haar"
CONSISTENT_DETAIL_SCALE = 1.0
UNSIZED = pairs.kept(-1)  # an axis whose length only the tensor knows; it is never resized
SIZED = ("hidden", "ffn", "heads", "head_dim", "layer")
# Which option of BoTConfig.wavelet a role follows.
FOLLOWS = {"readout": "hidden", "pooler": "hidden", "score": "head_dim"}


class BoT:
    """The method `bot`; its options are those of `BoTConfig`."""

    name = "bot"

    def __init__(self, options: BoTConfig, prepared: Prepared | None = None) -> None:
        self.options = options
        self.raw = options.gain == "raw"
        self.prepared = prepared  # None before a source was seen

    def check(self, task: Task) -> None:
        """Refuse a depth rule of the other direction, a basis or an order that cannot be had."""
        levers.ordered(self.options, task, self._shrink(task))
        self.picked(task)

    def prepare(self, task: Task, opened: Opened) -> tuple["BoT", Mapping[str, Tensor]]:
        """Rewrite a source that is going to shrink, where that keeps more of it (see `prepare`)."""
        prepared = prepare(self.options, task, opened, self._shrink(task), _pair_of)
        made = BoT(prepared.options, prepared)
        if task.calibrated:
            both = partial(both_sides, partial(made._segment, task, module=False))
            with progress.part("fitting", progress.fitting_seconds(task, opened.network)):
                fit_to_low_pass(prepared.opened, both, prepared.known, "hidden" in prepared.strongest)
        return made, opened.network

    def picked(self, task: Task) -> Collection[str]:
        """The roles whose strongest units are picked."""
        if self.prepared is not None:
            return self.prepared.strongest
        return levers.picked_roles(self.options, task, self._shrink(task))

    def _shrink(self, task: Task) -> levers.Shrink:
        rule, whole = self.depth_rule(task), self.heads == "whole"
        groups = levers.averaged_layers(task, rule, self.wavelet(task, "layer"))
        kept = self.depth(task).read
        return levers.Shrink(self.basis(task), self._is_flat(task), whole, groups, kept, rule == "strongest")

    def basis(self, task: Task) -> str:
        """Where the stream is turned before it shrinks "principal", else "plain"."""
        if self.prepared is not None:
            return "principal" if self.prepared.stream else "plain"
        return levers.basis_of(self.options, task, self.wavelet(task, "hidden"))

    def config_fields(self, task: Task, config: Any) -> dict[str, Any]:
        return {}

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe:
        module = self.raw and rule.layered and rule.maps  # one of the paper's four, to be filtered as written
        maps = tuple(tuple(self._segment(task, segment, module) for segment in axis.segments) for axis in rule.axes)
        reads, undo, over_layers = reads_of(task, self.depth(task, module), rule, layer, name)
        detail = None if all(one.weight == 0.0 for one in reads) else self._detail(task, rule, layer, name, module)
        over_axes = "" if is_identity(maps) else self._label(task, rule, module)
        notes = (over_layers, over_axes, f"{detail.kind} detail" if detail else "")
        return Recipe(reads, maps, detail, undo, ", ".join(filter(None, notes)))

    # -- widths ---------------------------------------------------------------------------------

    def pair(self, task: Task, role: str, module: bool = False) -> Pair:
        """The maps of one role at the task's sizes."""
        source, target = task.lengths(role)
        if source == target:
            return pairs.kept(source)
        if role == "position":
            index = periodic if self.options.positions == "crop" else interpolation
            return Pair(index(source, target), index(source, target), self.options.positions)
        if role in ("grid_h", "grid_w"):
            return grid(source, target, self.options.grids)
        if target < source and FOLLOWS.get(role, role) in self.picked(task):
            return pairs.picked_units(source, target)
        if role == "heads" and self.heads == "whole":
            return pairs.whole_units(source, target)
        pair = pairs.low_pass(source, target, self.wavelet(task, FOLLOWS.get(role, role)), module)
        if role in STREAM and self.basis(task) == "principal":
            found = self.prepared.stream if self.prepared else None
            pair = found or levers.principal_pair(source, target, pair)
        return pair.swapped() if role == "readout" and task.tied else pair

    def wavelet(self, task: Task, role: str) -> str:
        asked = self.options.wavelet_for(role)
        if asked != "auto":
            return asked
        if not self.raw:
            return CONSISTENT_WAVELET
        return paper_wavelet(task)

    @property
    def heads(self) -> str:
        if self.options.heads != "auto":
            return self.options.heads
        return "flat" if self.raw else "whole"

    def _segment(self, task: Task, segment: tuple[Factor, ...], module: bool) -> Segment:
        roles = [factor.role for factor in segment]
        if "heads" in roles and self._is_flat(task):
            gain = self._score_gain(task, module, reads=False) if "score" in roles else 1.0
            pair = self._flat_pair(task, module)
            return ((pair.consume if all(f.reads for f in segment) else pair.produce).scaled(gain),)
        return tuple(self._factor(task, factor, module) for factor in segment)

    def _factor(self, task: Task, factor: Factor, module: bool) -> AxisMap:
        pair = self._pair_of(task, factor, module)
        # A score sums over head_dim: one side must read what the other writes, unless raw.
        reads = factor.reads and not (factor.role == "score" and self.raw)
        chosen = pair.consume if reads else pair.produce
        return chosen.scaled(self._score_gain(task, module, reads)) if factor.role == "score" else chosen

    def _pair_of(self, task: Task, factor: Factor, module: bool = False) -> Pair:
        if not factor.role:
            return pairs.kept(factor.size or 1)
        if task.source[factor.role] is None or task.target[factor.role] is None:
            return UNSIZED
        return self.pair(task, factor.role, module)

    def _score_gain(self, task: Task, module: bool, reads: bool) -> float:
        if module or self.raw or (self.options.reheads == "reshape" and task.reheaded):
            return 1.0
        return task.score_gain(reads)

    def _is_flat(self, task: Task) -> bool:
        return self.heads == "flat" or (self.options.reheads == "reshape" and task.reheaded)

    def _flat_pair(self, task: Task, module: bool) -> Pair:
        (heads_s, heads_t), (dim_s, dim_t) = task.lengths("heads"), task.lengths("head_dim")
        source, target = heads_s * dim_s, heads_t * dim_t
        return pairs.low_pass(source, target, self.wavelet(task, "head_dim"), module)

    # -- depth ----------------------------------------------------------------------------------

    def depth(self, task: Task, module: bool = False) -> Depth:
        """Which layers make up which, at the task's layer counts."""
        source, target = task.lengths("layer")
        if source == target:
            return Depth.unchanged(source)
        rule = self.depth_rule(task)
        if rule == "wavelet":
            wavelet = self.wavelet(task, "layer")
            pair = pairs.low_pass(source, target, wavelet, module)
            return filtered(pair, f"{wavelet} over layers", share_updates=not self.raw)
        if rule == "repeat":
            return repeated(source, target)
        if rule == "strongest" and self.prepared is not None:
            return chosen_layers(source, self.prepared.layers)
        return identity_blocks(source, target) if rule == "identity" else picked(source, target, rule)

    def depth_rule(self, task: Task) -> str:
        """The rule asked for, or the default of the direction and gain."""
        source, target = task.lengths("layer")
        rule = self.options.depth
        if rule == "auto":  # picked layers beat averaged ones (results/transfer-levers.md)
            shrinking = "strongest" if task.calibrated and task.adapter.norm == "post" else "even"
            rule = "wavelet" if self.raw else "identity" if target > source else shrinking
        if target != source:
            check_direction(rule, source, target)
        return rule

    # -- detail bands ---------------------------------------------------------------------------

    def _detail(self, task: Task, rule: Rule, layer: int | None, name: str, module: bool) -> Detail | None:
        kind, scale = self._detail_choice(task)
        if self.options.detail == "auto" and not self._reads_twins(task, rule):
            return None
        if kind == "zero" or scale == 0.0 or (self.raw and not module):
            return None
        if not module:
            maps = noise_maps(rule, partial(self._pairs, task))
            return maps and Detail(kind, scale, maps[0], (), (), self.options.seed, name, layer, *maps[1])
        # The paper's noise, less the part that is no detail.
        visible = tuple(
            tuple(tuple(pair.low_band() for pair in self._pairs(task, segment)) for segment in axis.segments)
            for axis in rule.axes
        )
        layers: tuple[tuple[int, float], ...] = ()
        source, target = task.lengths("layer")
        if layer is not None and target > source and self.depth_rule(task) == "wavelet":
            row = pairs.low_band_of_layers(source, target, self.wavelet(task, "layer"))[layer]
            layers = tuple((int(i), float(row[i])) for i in np.flatnonzero(row))
        if is_identity(visible) and not layers:
            return None
        stack = tuple(Read(name, i) for i in range(source))
        return Detail(kind, scale, visible, layers, stack, self.options.seed, name, layer)

    def _detail_choice(self, task: Task) -> tuple[str, float]:
        kind, scale = self.options.detail, self.options.detail_scale
        if kind == "auto":
            grown = [role for role in ("hidden", "ffn", "heads", "head_dim") if task.ratio(role) > 1]
            twins = any(self.pair(task, role).makes_twins for role in grown)
            kind = "gaussian" if twins and not self.raw else "zero"
        if scale is None:
            scale = 1.0 if self.raw else CONSISTENT_DETAIL_SCALE
        return kind, scale

    def _reads_twins(self, task: Task, rule: Rule) -> bool:
        """Whether a tensor reads units that are copies: its noise is what parts them in training."""
        factors = [f for axis in rule.axes for segment in axis.segments for f in segment]
        reads = [FOLLOWS.get(f.role, f.role) for f in factors if f.reads and task.target.get(f.role) is not None]
        return any(self.pair(task, role).makes_twins for role in reads)

    def _pairs(self, task: Task, segment: tuple[Factor, ...]) -> tuple[Pair, ...]:
        """The dual pairs of a segment's factors, or the one of flat heads."""
        if any(f.role == "heads" for f in segment) and self._is_flat(task):
            return (self._flat_pair(task, module=False),)
        return tuple(self._pair_of(task, factor) for factor in segment)

    # -- words ----------------------------------------------------------------------------------

    def describe(self, task: Task) -> dict[str, Any]:
        prepared, (kind, scale) = self.prepared, self._detail_choice(task)
        whole = {*self.picked(task), *(["heads"] if self.heads == "whole" else [])}
        roles = [role for role in SIZED if task.ratio(role) != 1 and role not in whole]
        order = prepared.ordered if prepared else levers.ordered(self.options, task, self._shrink(task))
        return {
            "method": self.name,
            "options": self.options.to_dict(),
            "gain": self.options.gain,
            "wavelet": {role: self.wavelet(task, role) for role in roles},
            "heads": self.heads,
            "depth": self.depth_rule(task) if task.ratio("layer") != 1 else "kept",
            "basis": self.basis(task),
            "calibrated": task.calibrated,
            "order": list(order),
            "picked": sorted(self.picked(task)),
            **({"layers": list(prepared.layers)} if prepared and prepared.layers else {}),
            "detail": kind,
            "detail_scale": scale,
            "seed": self.options.seed,
        }

    def warnings(self, task: Task) -> list[str]:
        if self.raw and task.ratio("hidden") != 1:
            return ["gain='raw' changes the function (norm inputs and attention scores are rescaled)"]
        return about_calibration(self.prepared, task) if task.calibrated else []

    def _label(self, task: Task, rule: Rule, module: bool) -> str:
        parts = []
        for role in dict.fromkeys(FOLLOWS.get(role, role) for role in rule.roles):
            if task.source[role] is None or task.ratio(role) == 1:
                continue
            pair = self.pair(task, role, module)
            flat = self._is_flat(task) and role in ("heads", "head_dim")
            turned = " in the principal basis" if role == "hidden" and self.basis(task) == "principal" else ""
            parts.append(f"{role}: {'flat' if flat else pair.label}{turned}")
        return "; ".join(parts)


def _pair_of(options: BoTConfig, task: Task, role: str) -> Pair:
    return BoT(options).pair(task, role)
