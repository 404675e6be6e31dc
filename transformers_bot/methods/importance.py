"""Importance slicing: a smaller model made of the units, heads and layers of a larger one that do most.

Every axis keeps the entries of highest score in their original order, R = C = a gather; nothing is
rescaled and the task head stays. Hidden units are chosen once for the whole network, MLP units and heads
for each layer. If heads get shorter, entries are chosen for each head: once for its queries and keys, once
for its values. Layers are picked whole.

Scores are measured on a few batches (`calibration=`), as Minitron does, or without data estimated from
the weights (`unit_scores`). All are taken once, of the whole source.

Source: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (arXiv
2407.14679), section 2; layers by the block importance of Men et al., "ShortGPT" (arXiv 2403.03853).
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..architectures.adapter import RESIZED, At, Factor
from ..errors import BadOption
from ..ops.axis_map import AxisMap, gather, identity, remembered
from ..ops.recipe import Segment
from ..rewrite.principal import Opened
from .base import Linear, Task
from .maps import Depth, Pair, identity_pair, kept_layers, picked
from .unit_scores import Scores, from_activations, from_weights

UNREAD = "importance decides from the weights or calibration= what is kept; a plan from configs shows only sizes"


class Importance(Linear):
    """The method `importance`: shrink only.

    Before `prepare` has seen the source, the maps only have the right sizes: first units, evenly spread layers.
    """

    name = "importance"
    advice = (
        "The small model is made of the most important units, heads and layers, measured on --calibration data if "
        "there is any. Choose it to prune a model before further training."
    )
    combines = False  # widths and layers are chosen together, after the source was seen
    uses_calibration = True
    scored_by = ""
    chosen: Mapping[tuple[str, At], np.ndarray]

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.chosen = {}

    def check(self, task: Task) -> None:
        self.only_shrinks(task)
        if task.calibrated and not task.changes(*RESIZED):
            raise BadOption(
                "calibration= measures which units and layers are kept, but none of them gets fewer here. Leave it out."
            )

    def prepare(self, task: Task, opened: Opened) -> tuple["Importance", Mapping[str, Tensor]]:
        """Score the opened source and choose what is kept; its tensors are not changed.

        Raises:
            BadOption: batches that the source does not run on.
        """
        shrinks = bool(task.changes(*RESIZED))
        ready = copy.copy(self)
        ready.scored_by = "weights" if opened.calibration is None else "calibration"
        if shrinks:
            scores = from_weights(opened.network) if opened.calibration is None else from_activations(opened)
            ready.chosen = choose(task, scores)
        return ready, opened.network

    # -- maps -----------------------------------------------------------------------------------

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        chosen = self.chosen.get((role, at))
        selection = _first(source, target) if chosen is None else gather(chosen, source)
        return Pair(selection, selection, "most important")

    def axis_pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        if task.roles.kind(role) == "unit" and task.roles.is_network_wide(role):
            # A pooler's units are its own: they are chosen apart from the stream's.
            return identity_pair(source) if source == target else self.pair(task, role, source, target, None)
        return super().axis_pair(task, role, source, target, at)

    def segment(self, task: Task, segment: tuple[Factor, ...], at: At) -> Segment:
        kinds, unit = [task.roles.kind(factor.role) for factor in segment], segment[0].role
        is_grouped = any(role.kind == "unit" and role.within == unit for role in task.roles.values())
        if kinds != ["unit", "entry"] or is_grouped:
            return super().segment(task, segment, at)
        (heads_s, heads_t), (dim_s, dim_t) = task.lengths(unit), task.lengths(segment[-1].role)
        if heads_s == heads_t and dim_s == dim_t:
            return (identity(heads_s * dim_s),)
        if not self.chosen:
            return (_first_of_heads(heads_s, dim_s, heads_t, dim_t),)
        heads = self._kept(unit, at, heads_t)
        first = np.broadcast_to(np.arange(dim_t), (heads_s, dim_t))
        entries = self.chosen.get((segment[-1].role, at), first)[heads]  # (heads, head_dim)
        return (gather((heads[:, None] * dim_s + entries).ravel(), heads_s * dim_s),)

    def depth(self, task: Task, stack: str) -> Depth:
        source, target = task.lengths(stack)
        if (stack, None) not in self.chosen:
            shown = picked(source, target, "even").layers
            return Depth(shown, shown, "most important layers, not known yet")
        layers = np.eye(source)[self._kept(stack, None, target)]
        return Depth(layers, layers, "most important layers")

    def _kept(self, role: str, at: At, target: int) -> np.ndarray:
        return self.chosen.get((role, at), np.arange(target))

    # -- descriptions ---------------------------------------------------------------------------

    def describe(self, task: Task) -> dict[str, Any]:
        scored = {"scored_by": self.scored_by or "nothing yet"}
        layers = kept_layers({stack: self.chosen.get((stack, None)) for stack in task.roles.depths})
        return {**super().describe(task), **scored, **({"layers": layers} if layers else {})}

    def warnings(self, task: Task) -> list[str]:
        return [] if self.scored_by else [UNREAD]


@remembered
def _first(source: int, target: int) -> AxisMap:
    return gather(np.arange(target), source)


@remembered
def _first_of_heads(heads: int, length: int, heads_kept: int, kept: int) -> AxisMap:
    """The first entries of the first heads."""
    return gather((np.arange(heads_kept)[:, None] * length + np.arange(kept)).ravel(), heads * length)


def choose(task: Task, scores: Scores) -> dict[tuple[str, At], np.ndarray]:
    """For every role that shrinks, the entries of highest score, in their own order; ties keep the first."""
    chosen = {}
    for (role, at), score in scores.items():
        source, target = task.lengths(role)
        if target < source:
            ranked = torch.sort(score, dim=-1, descending=True, stable=True).indices
            chosen[role, at] = ranked[..., :target].sort(dim=-1).values.numpy()
    return chosen
