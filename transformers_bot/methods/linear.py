"""Methods that are a pair of maps per role and a rule for depth: `W_t = R_out W_s C_in^T`.

Every rival of BoT whose formula is linear is a subclass: it says how one axis is resized (`pair`)
and which source layers make up which target layers (`depth`); reading, splitting fused q|k|v, tied
readouts, positions and the plan's words are the same for all.
"""

import copy
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ..architectures.axes import Factor, Rule
from ..errors import BadOption
from ..ops.axis_map import AxisMap, identity
from ..ops.recipe import Read, Recipe, Segment, is_identity
from ..options import BoTConfig
from . import pairs
from .base import AsStored, Fresh, Task
from .depth import Depth
from .grids import grid, interpolation, periodic
from .pairs import Pair

UNSIZED = identity(-1)  # an axis whose length only the tensor knows; it is never resized
SIZED = ("layer", "hidden", "heads", "head_dim", "ffn")  # what a resize may change


class Linear(AsStored):
    """A method given by `pair` and `depth`.

    Attributes:
        name: of the method, as in `method=`.
        option_names: the fields of `BoTConfig` that it looks at.
        flat_heads: heads x head_dim is one axis (the formula knows no heads).
        keeps_scores: a change of head_dim is balanced on queries and keys, so that scores stay.
        combines: the widths or the depth can be had alone, for `Combined`.
        depth_of: whose rule for depth is used, where it is not the method's own.
    """

    name: str
    option_names: ClassVar[tuple[str, ...]] = ("positions", "grids")
    flat_heads: bool = False
    keeps_scores: bool = False
    combines: bool = True
    depth_of: "Linear | None" = None

    def __init__(self, options: BoTConfig) -> None:
        self.options = options

    # -- what a method says ---------------------------------------------------------------------

    def check(self, task: Task) -> None:
        """Refuse, with `BadOption`, a direction, ratio or family that the formula does not cover."""

    def pair(self, task: Task, role: str, source: int, target: int, layer: int | None) -> Pair:
        """The maps of one role (flat heads: "heads"), where `source` and `target` lengths differ.

        Args:
            layer: the source layer whose units these are; None for axes of the whole network.
        """
        raise NotImplementedError

    def depth(self, task: Task) -> Depth:
        """Which layers make up which, where the layer counts differ."""
        raise NotImplementedError

    # -- what follows from it -------------------------------------------------------------------

    def config_fields(self, task: Task, config: Any) -> dict[str, Any]:
        return {}

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        reads, note = self.reads(task, rule, layer, name)
        place = None if layer is None else self.source_layer(task, layer)
        maps = tuple(tuple(self.segment(task, segment, place) for segment in axis.segments) for axis in rule.axes)
        over_axes = "" if is_identity(maps) else self.label(task, rule)
        return Recipe(reads, maps, note=", ".join(part for part in (note, over_axes) if part))

    def reads(self, task: Task, rule: Rule, layer: int | None, name: str) -> tuple[tuple[Read, ...], str]:
        """The source tensors that a target tensor is made of, and a note."""
        if layer is None:
            return (Read(name, None),), ""
        depth = self.layers(task)
        row = (depth.updates if rule.adds else depth.layers)[layer]
        if not row.any():
            return (Read(name, self.source_layer(task, layer), 0.0),), "zero update"
        return tuple(Read(name, int(i), float(row[i])) for i in np.flatnonzero(row)), depth.label

    def layers(self, task: Task) -> Depth:
        """The depth rule, also where nothing changes."""
        source, target = task.lengths("layer")
        return Depth(np.eye(source), np.eye(source)) if source == target else (self.depth_of or self).depth(task)

    def source_layer(self, task: Task, layer: int) -> int:
        """The source layer that has most weight in a target layer: its units are the ones resized."""
        return int(np.argmax(np.abs(self.layers(task).layers[layer])))

    def segment(self, task: Task, segment: tuple[Factor, ...], layer: int | None) -> Segment:
        roles = [factor.role for factor in segment]
        if "heads" in roles and self.flat_heads:
            (heads_s, heads_t), (dim_s, dim_t) = task.lengths("heads"), task.lengths("head_dim")
            pair = self.axis_pair(task, "heads", heads_s * dim_s, heads_t * dim_t, layer)
            return (pair.consume if all(factor.reads for factor in segment) else pair.produce,)
        return tuple(self.factor(task, factor, layer) for factor in segment)

    def factor(self, task: Task, factor: Factor, layer: int | None) -> AxisMap:
        if not factor.role:
            return identity(factor.size or 1)
        source, target = task.source[factor.role], task.target[factor.role]
        if source is None or target is None:
            return UNSIZED
        pair = self.axis_pair(task, factor.role, source, target, layer)
        chosen = pair.consume if factor.reads else pair.produce
        if factor.role == "score" and source != target and self.keeps_scores:
            return chosen.scaled(task.score_gain(factor.reads))
        return chosen

    def axis_pair(self, task: Task, role: str, source: int, target: int, layer: int | None) -> Pair:
        """The maps of any role: places are cropped or interpolated, a tied readout is swapped."""
        if source == target:
            return pairs.kept(source)
        if role == "position":
            return self.positions(source, target)
        if role in ("grid_h", "grid_w"):
            return grid(source, target, self.options.grids)
        network_wide = role in ("hidden", "readout", "pooler")
        pair = self.pair(task, _same_units(role), source, target, None if network_wide else layer)
        return pair.swapped() if role == "readout" and task.tied else pair

    def positions(self, source: int, target: int) -> Pair:
        index = periodic if self.options.positions == "crop" else interpolation
        return Pair(index(source, target), index(source, target), self.options.positions)

    # -- words ----------------------------------------------------------------------------------

    def describe(self, task: Task) -> dict[str, Any]:
        changed = task.ratio("layer") != 1
        options = {name: value for name, value in self.options.to_dict().items() if name in self.option_names}
        return {"method": self.name, "options": options, "depth": self.layers(task).label if changed else "kept"}

    def warnings(self, task: Task) -> list[str]:
        return []

    def label(self, task: Task, rule: Rule) -> str:
        parts = []
        for role in dict.fromkeys(_same_units(role) for role in rule.roles):
            if task.source[role] is None or task.ratio(role) == 1:
                continue
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

    def _one_way(self, task: Task, verb: str, wrong: Any) -> None:
        # A formula without heads sees only their product, which is as long as hidden.
        roles = [role for role in (*SIZED, "pooler") if role in task.source]
        for role in [role for role in roles if not (self.flat_heads and role in ("heads", "head_dim"))]:
            if wrong(task.ratio(role)):
                source, target = task.lengths(role)
                raise self.refuse(f"it can only {verb}, but {role} goes from {source} to {target}. Use method='bot'.")

    def keeps_no_heads(self, task: Task) -> None:
        """Refuse `reheads="resample"` for a formula that has heads x head_dim as one axis."""
        if task.ratio("hidden") == 1 and task.ratio("heads") != 1 and self.options.reheads == "resample":
            source, target = task.lengths("heads")
            raise self.refuse(
                f"heads go from {source} to {target} at the same hidden, and its formula has no heads to resample. "
                "Set reheads='reshape' or use method='bot'."
            )


class DepthOnly(Linear):
    """A formula that grows the layer count and nothing else; `Combined` gives it widths."""

    def check(self, task: Task) -> None:
        for role in [role for role in (*SIZED, "pooler") if role != "layer" and role in task.source]:
            if task.ratio(role) != 1:
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

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        return self._widths.recipe(task, rule, layer, name)

    def describe(self, task: Task) -> dict[str, Any]:
        return {**self._widths.describe(task), "method": self.name}

    def warnings(self, task: Task) -> list[str]:
        return [*self._widths.warnings(task), *self._depth.warnings(task)]


def _only(task: Task, depth: bool) -> Task:
    """The task with only its depth, or only its widths, changed."""
    base, other = (task.source, task.target) if depth else (task.target, task.source)
    target = {**base, "layer": other["layer"]}
    return replace(task, target=target)


def _same_units(role: str) -> str:
    """Roles that number the same entries: queries and keys share head_dim's, a readout is the stream."""
    return {"readout": "hidden", "pooler": "hidden", "score": "head_dim"}.get(role, role)
