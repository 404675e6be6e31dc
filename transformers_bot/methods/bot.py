"""BoT: wavelet low-pass over layers, rows and columns, in both directions.

`gain="raw"` is the paper as written on its four modules (attention in, out, MLP in, out): the
orthonormal low band to shrink (large to small, L2S), the inverse transform with empty details to grow
(small to large, S2L), on all three axes. The paper does not say how other tensors are resized; here they
take the consistent maps, so that a norm weight of 1 stays 1.

`gain="consistent"` (ours) scales the same transform so that the network's function is kept. Every role has
a pair (R, C): R has unit gain on constants and is used where the role is written, C is its dual,
`C^T R = I` when growing and `R C^T = I` when shrinking, and is used where the role is read. Then

* queries write and keys read the same axis, and a change of head_dim by g rescales their product
  by sqrt(g), shared as g^(-1/4) on R and g^(3/4) on C (C itself carries 1/g);
* the stream in front of a tied output embedding is read with R, so it is written with C;
* tensors that add onto the residual stream take C over depth, so the sum of updates is kept.

Source: the BoT paper (CVPR 2026), section 3; gains and odd ratios are ours.
"""

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ..architectures.adapter import At, Factor, Rule
from ..console import progress
from ..errors import BadOption, suggest
from ..ops.axis_map import AxisMap
from ..ops.recipe import Detail, Read, Recipe, Segment, TensorMap, is_identity
from ..options import BoTConfig
from ..rewrite.calibration import fit_to_low_pass
from ..rewrite.principal import Opened
from . import maps
from .base import Linear, Task, reads_of, scored_map, whole_unit
from .maps import (
    Depth,
    Pair,
    check_direction,
    chosen_layers,
    filtered,
    identity_blocks,
    kept_layers,
    noise_maps,
    picked,
    repeated,
)
from .prepare import (
    Prepared,
    Shrink,
    about_calibration,
    averaged_layers,
    basis_of,
    both_sides,
    ordered,
    picked_roles,
    prepare,
    principal_pair,
)


def paper_wavelet(task: Task) -> str:
    """The wavelet of the paper for this architecture and direction."""
    plain = [unit for unit in task.roles.units if not task.roles.is_whole(unit)]
    grows = math.prod(task.ratio(role) for role in (*task.roles.streams, *plain, *task.roles.depths)) > 1
    return task.adapter.wavelets[grows]


# Haar copies units, so growing keeps the function of every checkpoint, whatever its norm weights; longer
# filters keep it only nearly. Copies would stay equal in training, so noise of one standard deviation is
# added. In runs of a few dozen steps, no noise gives a slightly lower loss and four times the noise a
# higher one. Figures: benchmarks/results/transfer-levers.md, against other methods transfer-cpu.md.
CONSISTENT_WAVELET = "haar"
CONSISTENT_DETAIL_SCALE = 1.0
# Of new rotary pairs behind which a norm stands. They only have to leave zero: the root mean square changes by the
# square of this, far below what half precision can tell.
QUIET = 1 / 256


class BoT(Linear):
    """The method `bot`; its options are those of `BoTConfig`.

    Attributes:
        as_written: the maps are the paper's own, for its four modules with `gain="raw"`.
        prepared: what `prepare` has decided from the source, None before.
    """

    options: BoTConfig
    name = "bot"
    options_class = BoTConfig
    advice = (
        "Neighbouring units and layers are blended by a wavelet low-pass, in both directions. The default, for "
        "any change of size: grown models compute what the source does as far as the sizes allow, shrunk ones "
        "keep the largest part of it, most of all with --calibration. --gain raw gives the published method as "
        "written, for comparison."
    )
    combines = False  # widths and depth are filtered together
    uses_calibration = True
    as_written = False
    prepared: Prepared | None = None

    @property
    def raw(self) -> bool:
        """Whether maps are as the paper writes them, rather than scaled to keep the function."""
        return self.options.gain == "raw"

    @property
    def is_directed(self) -> bool:
        """Whether the stream shall be turned, or units be ordered by their weights."""
        return self.options.basis == "principal" or self.options.order not in ("auto", "kept")

    def undirected(self) -> "BoT":
        """BoT without a turned stream, and with units in their order."""
        return type(self)(replace(self.options, basis="plain", order="kept"))

    def _with_maps(self, as_written: bool) -> "BoT":
        """This method with the paper's maps, or with the maps that keep the function."""
        if self.as_written == as_written:
            return self
        other = copy.copy(self)
        other.as_written = as_written
        return other

    def check(self, task: Task) -> None:
        """Raise `BadOption` for a depth rule of the other direction, or a basis or order that is not possible."""
        named = self.options.wavelet if isinstance(self.options.wavelet, Mapping) else {}
        for role in named:
            if role != "default" and role not in task.roles:
                raise BadOption(
                    f"wavelet names the role {role!r}, which {task.adapter.model_type} does not have. Its roles are "
                    f"{', '.join(task.roles.resized)}.{suggest(role, task.roles.resized)}"
                )
        turned = next(iter(task.roles.of("frequency")), "")
        for option, value in (("heads", "flat"), ("reheads", "reshape")) if turned else ():
            if getattr(self.options, option) == value:
                raise BadOption(
                    f"{option}={value!r} takes all heads as one axis, but those of {task.adapter.model_type} hold "
                    f"{task.roles[turned].noun}, which are never mixed. Leave {option} at its default."
                )
        ordered(self.options, task, self._shrink(task))
        self.picked(task)

    def prepare(self, task: Task, opened: Opened) -> tuple["BoT", Mapping[str, Tensor]]:
        """Rewrite a source that will shrink, if that keeps more of it (see `prepare`)."""
        prepared = prepare(self.options, task, opened, self._shrink(task), role_pair)
        ready = BoT(prepared.options)
        ready.prepared = prepared
        if task.calibrated:
            maps_of = partial(both_sides, lambda segment: ready.segment(task, segment, None))
            with progress.part("fitting", progress.fitting_seconds(task, opened.network)):
                picked = [stream for stream in task.roles.streams if stream in prepared.strongest]
                fit_to_low_pass(prepared.opened, maps_of, prepared.known, picked)
        return ready, opened.network

    def picked(self, task: Task) -> Collection[str]:
        """The roles whose strongest units are picked."""
        if self.prepared is not None:
            return self.prepared.strongest
        return picked_roles(self.options, task, self._shrink(task))

    def _shrink(self, task: Task) -> Shrink:
        rules = {stack: self.depth_rule(task, stack) for stack in task.roles.depths}
        groups = {stack: averaged_layers(task, stack, rule, self.wavelet(task, stack)) for stack, rule in rules.items()}
        kept = {stack: self.layers(task, stack).read for stack in rules}
        ranked = [stack for stack, rule in rules.items() if rule == "strongest"]
        flat = any(self._is_flat(task, unit) for unit in task.roles.units if task.roles.is_whole(unit))
        return Shrink(self.basis(task), flat, self.heads_of(task) == "whole", groups, kept, tuple(ranked))

    def basis(self, task: Task) -> str:
        """ "principal" if the stream is turned to its principal basis before it shrinks, else "plain"."""
        if self.prepared is not None:
            return "principal" if self.prepared.streams else "plain"
        return basis_of(self.options, task, [self.wavelet(task, stream) for stream in task.roles.streams])

    def _is_turned(self, task: Task, role: str) -> bool:
        """Whether a role is a stream that is turned to its principal basis."""
        return role in task.adapter.turned and self.basis(task) == "principal"

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe:
        if self.raw and rule.layered and rule.maps and not self.as_written:  # one of the paper's four modules
            return self._with_maps(as_written=True).recipe(task, rule, layer, name)
        state = type(self), self.options, self.prepared, self.as_written
        axis_maps, over_axes, noise = task.of_rule(state, rule, lambda: self._of_all_layers(task, rule))
        depth = self.layers(task, rule.depth) if rule.layered else None
        reads, undo, over_layers = reads_of(task, depth, rule, layer, name)
        written = any(read.weight != 0.0 for read in reads)
        detail = self._detail(task, rule, layer, name, noise) if noise and written else None
        notes = (over_layers, over_axes, f"{detail.kind} detail" if detail else "")
        return Recipe(reads, axis_maps, detail, undo, ", ".join(filter(None, notes)))

    def _of_all_layers(self, task: Task, rule: Rule) -> tuple[TensorMap, str, Detail | None]:
        """What the tensors of a rule have in common: their maps, what those do, and the noise in detail bands."""
        axis_maps = tuple(tuple(self.segment(task, segment, None) for segment in axis.segments) for axis in rule.axes)
        over_axes = "" if is_identity(axis_maps) else self.label(task, rule)
        return axis_maps, over_axes, self._noise(task, rule)

    # -- widths ---------------------------------------------------------------------------------

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        """The maps of one role, the same in every layer."""
        if target < source and role in self.picked(task):
            return maps.picked_units(source, target)
        if self.heads_of(task) == "whole" and task.roles.is_whole(role):
            return maps.whole_units(source, target)
        pair = maps.low_pass(source, target, self.wavelet(task, role), self.as_written)
        if self._is_turned(task, role):
            turned = self.prepared.streams.get(role) if self.prepared else None
            pair = turned or principal_pair(source, target, pair)
        return pair

    def axis_pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        # Units that follow the stream without being one (a pooler's) are not turned, even if the stream is.
        leader = task.roles.leader(role)
        if source != target and task.roles.kind(role) == "unit" and task.roles.kind(leader) == "stream":
            if leader in self.picked(task) and target < source:
                return maps.picked_units(source, target)
            return maps.low_pass(source, target, self.wavelet(task, leader), self.as_written)
        return super().axis_pair(task, role, source, target, at)

    def wavelet(self, task: Task, role: str) -> str:
        """The wavelet of a role."""
        wavelet = self.options.wavelet_for(role)
        if wavelet != "auto":
            return wavelet
        return paper_wavelet(task) if self.raw else CONSISTENT_WAVELET

    def heads_of(self, task: Task) -> str:
        """Whether heads are copied and picked "whole", low-passed by "filter", or "flat" with their entries."""
        if self.options.heads != "auto":
            return self.options.heads
        if not self.raw:
            return "whole"
        return "filter" if task.roles.of("frequency") else "flat"

    def segment(self, task: Task, segment: tuple[Factor, ...], at: At) -> Segment:
        if self.is_flat(task, segment):
            scored = next((f.role for f in segment if f.role in task.adapter.scored), "")
            pair = self._flat_pair(task, segment)
            chosen = pair.consume if all(f.reads for f in segment) else pair.produce
            return (chosen.scaled(self._score_gain(task, scored, reads=False)) if scored else chosen,)
        lengths = task.lengths_in(segment)
        return tuple(self.factor(task, factor, at, lengths.get(factor.role)) for factor in segment)

    def factor(self, task: Task, factor: Factor, at: At, lengths: tuple[int, int] | None = None) -> AxisMap:
        pair = self._factor_pair(task, factor, lengths)
        if factor.role not in task.adapter.scored:
            return pair.consume if factor.reads else pair.produce
        # A score is a sum over head_dim, so one side must read what the other writes; the paper uses one map for both.
        if self.raw:
            return scored_map(task, replace(factor, reads=False), pair, balanced=False)
        return scored_map(task, factor, pair, balanced=not self._is_reshaped(task, task.roles[factor.role].within))

    def _factor_pair(self, task: Task, factor: Factor, lengths: tuple[int, int] | None = None) -> Pair:
        if not factor.role:
            return maps.identity_pair(factor.size or 1)
        if not task.is_sized(factor.role):
            return maps.identity_pair(-1)  # an axis whose length no config gives is never resized
        return self.axis_pair(task, factor.role, *(lengths or task.lengths(factor.role)), None)

    def _score_gain(self, task: Task, role: str, reads: bool) -> float:
        if self.raw or self._is_reshaped(task, task.roles[role].within):
            return 1.0
        return task.score_gain(role, reads)

    def is_flat(self, task: Task, segment: tuple[Factor, ...]) -> bool:
        unit = whole_unit(task, segment)
        return bool(unit) and self._is_flat(task, unit)

    def _is_flat(self, task: Task, unit: str) -> bool:
        return self.heads_of(task) == "flat" or self._is_reshaped(task, unit)

    def _is_reshaped(self, task: Task, unit: str) -> bool:
        return self.options.reheads == "reshape" and unit in task.cut_across

    def _flat_pair(self, task: Task, segment: tuple[Factor, ...]) -> Pair:
        entries = next(f.role for f in segment if task.roles.kind(f.role) == "entry")
        wavelet = self.wavelet(task, task.roles.leader(entries))
        return maps.low_pass(*task.segment_lengths(segment), wavelet, self.as_written)

    # -- depth ----------------------------------------------------------------------------------

    def depth(self, task: Task, stack: str) -> Depth:
        """Which source layers make up each target layer."""
        source, target = task.lengths(stack)
        rule = self.depth_rule(task, stack)
        if rule == "wavelet":
            wavelet = self.wavelet(task, stack)
            pair = maps.low_pass(source, target, wavelet, self.as_written)
            return filtered(pair, f"{wavelet} over layers", share_updates=not self.raw)
        if rule == "repeat":
            return repeated(source, target)
        if rule == "strongest" and self.prepared is not None:
            return chosen_layers(source, self.prepared.layers[stack])
        return identity_blocks(source, target) if rule == "identity" else picked(source, target, rule)

    def depth_rule(self, task: Task, stack: str) -> str:
        """The rule of the options, or the default for direction and gain."""
        source, target = task.lengths(stack)
        rule = self.options.depth
        if rule == "auto":  # picked layers beat averaged ones (results/transfer-levers.md)
            shrinking = "strongest" if task.calibrated and task.adapter.norm == "post" else "even"
            rule = "wavelet" if self.raw else "identity" if target > source else shrinking
        if target != source:
            check_direction(rule, source, target)
        return rule

    # -- detail bands ---------------------------------------------------------------------------

    def _noise(self, task: Task, rule: Rule) -> Detail | None:
        """The noise of a rule's tensors, of any layer and name; None if they get none."""
        kind, scale = self._detail_choice(task)
        if self.options.detail == "auto" and not self._reads_copies(task, rule):
            return None
        if kind == "zero" or scale == 0.0 or (self.raw and not self.as_written):
            return None
        if not self.as_written:
            noise = noise_maps(rule, partial(self._pairs, task, normed=False))
            if noise is None:
                noise, scale = noise_maps(rule, partial(self._pairs, task)), scale * QUIET
            return noise and Detail(kind, scale, noise[0], (), (), self.options.seed, "", None, *noise[1])
        # The paper's noise without its part in the low band.
        visible = tuple(
            tuple(tuple(pair.low_band() for pair in self._pairs(task, segment)) for segment in axis.segments)
            for axis in rule.axes
        )
        return Detail(kind, scale, visible, (), (), self.options.seed, "", None)

    def _detail(self, task: Task, rule: Rule, layer: int | None, name: str, noise: Detail) -> Detail | None:
        """The noise of one tensor; the paper's is without its part in the low band over depth, too."""
        if not self.as_written:
            return replace(noise, name=name, layer=layer)
        layers: tuple[tuple[int, float], ...] = ()
        source, target = task.lengths(rule.depth)
        if layer is not None and target > source and self.depth_rule(task, rule.depth) == "wavelet":
            row = maps.low_band_of_layers(source, target, self.wavelet(task, rule.depth))[layer]
            layers = tuple((int(i), float(row[i])) for i in np.flatnonzero(row))
        if is_identity(noise.visible) and not layers:
            return None
        stack = tuple(Read(name, i) for i in range(source))
        return replace(noise, name=name, layer=layer, layers=layers, stack=stack)

    def _detail_choice(self, task: Task) -> tuple[str, float]:
        kind, scale = self.options.detail, self.options.detail_scale
        if kind == "auto":
            widths = (*task.roles.streams, *task.roles.units, *task.roles.entries)
            grown = [role for role in widths if task.is_sized(role) and task.ratio(role) > 1]
            needs_noise = any(self._needs_noise(task, role) for role in grown)
            kind = "gaussian" if needs_noise and not self.raw else "zero"
        if scale is None:
            scale = 1.0 if self.raw else CONSISTENT_DETAIL_SCALE
        return kind, scale

    def _needs_noise(self, task: Task, role: str) -> bool:
        """Whether a role grows by copies, which training would never part, or by zeros on both sides of a score,
        which training would never move, in the maps that keep the function.
        """
        if task.roles.kind(role) == "frequency":
            return task.ratio(role) > 1
        return self._with_maps(as_written=False).axis_pair(task, role, *task.lengths(role), None).makes_copies

    def _reads_copies(self, task: Task, rule: Rule) -> bool:
        """Whether a tensor reads units that are copies: noise in it makes them differ in training."""
        reads = [task.roles.leader(f.role) for f in rule.factors if f.reads and f.role and task.is_sized(f.role)]
        return any(self._needs_noise(task, role) for role in reads)

    def _pairs(self, task: Task, segment: tuple[Factor, ...], normed: bool = True) -> tuple[Pair, ...]:
        """The dual pairs of a segment's factors, or the one pair of flat heads.

        Args:
            normed: grow rotary pairs that a norm follows, too. Noise in the new ones makes the old ones smaller.
        """
        consistent = self._with_maps(as_written=False)
        if consistent.is_flat(task, segment):
            return (consistent._flat_pair(task, segment),)
        lengths = task.lengths_in(segment)
        pairs = [consistent._factor_pair(task, factor, lengths.get(factor.role)) for factor in segment]
        return tuple(
            maps.identity_pair(pair.produce.target)
            if factor.normed and not normed and task.roles.kind(factor.role) == "frequency"
            else pair
            for pair, factor in zip(pairs, segment, strict=True)
        )

    # -- descriptions ---------------------------------------------------------------------------

    def describe(self, task: Task) -> dict[str, Any]:
        prepared, (kind, scale) = self.prepared, self._detail_choice(task)
        whole = [unit for unit in task.roles.units if task.roles.is_whole(unit) and self.heads_of(task) == "whole"]
        unfiltered = {*self.picked(task), *whole, *task.roles.of("frequency")}
        roles = [role for role in task.roles.resized if task.is_sized(role) and task.ratio(role) != 1]
        order = prepared.ordered if prepared else ordered(self.options, task, self._shrink(task))
        layers = kept_layers(dict(prepared.layers)) if prepared else []
        return {
            "method": self.name,
            "options": self.options.to_dict(),
            "gain": self.options.gain,
            "wavelet": {role: self.wavelet(task, role) for role in roles if role not in unfiltered},
            "heads": self.heads_of(task),
            "depth": self.depth_label(task),
            "basis": self.basis(task),
            "calibrated": task.calibrated,
            "order": list(order),
            "picked": sorted(self.picked(task)),
            **({"layers": layers} if layers else {}),
            "detail": kind,
            "detail_scale": scale,
            "seed": self.options.seed,
        }

    def depth_label(self, task: Task) -> str:
        rules = [self.depth_rule(task, stack) for stack in task.changes("depth")]
        return "; ".join(dict.fromkeys(rules)) or "kept"

    def warnings(self, task: Task) -> list[str]:
        if self.raw and task.changes("stream"):
            return ["gain='raw' changes the function (norm inputs and attention scores are rescaled)"]
        return about_calibration(self.prepared, task) if task.calibrated else []

    def label(self, task: Task, rule: Rule) -> str:
        parts = []
        for role in dict.fromkeys(task.roles.leader(role) for role in rule.roles):
            if not task.is_sized(role) or task.ratio(role) == 1:
                continue
            pair = self.axis_pair(task, role, *task.lengths(role), None)
            unit = task.roles[role].within or role
            flat = task.roles.is_whole(unit) and self._is_flat(task, unit)
            turned = " in the principal basis" if self._is_turned(task, role) else ""
            parts.append(f"{role}: {'flat' if flat else pair.label}{turned}")
        return "; ".join(parts)


def role_pair(options: BoTConfig, task: Task, role: str) -> Pair:
    """The maps of one role with these options, without a source."""
    return BoT(options).axis_pair(task, role, *task.lengths(role), None)
