"""Mango: one learned multi-linear operator for all layer matrices; before fitting, whole copies.

All matrices of all layers are blocks of d x d in one tensor `M[b, l]`: four of attention, f/d of
each MLP matrix. Four cores map it along blocks, in-axis, out-axis and layers, so the MLP's f units
are f/d groups of d that grow alike. This file is the operator with one-hot cores;
`transformers_bot.fit` learns them (`learned/operators/mango.py`).

Source: Pan et al., "Reusing Pretrained Models by Multi-linear Operators for Efficient Training"
(NeurIPS 2023, arXiv 2310.10699).
"""

import numpy as np

from ..ops.axis_map import AxisMap, Band, Matrix, gather, remembered
from .base import Task
from .ligo import LiGO
from .pairs import Pair


class Mango(LiGO):
    """The method `mango` before fitting."""

    name = "mango"

    def check(self, task: Task) -> None:
        super().check(task)
        if all(task.ratio(role) == 1 for role in ("layer", "hidden", "ffn")):
            return  # no core has anything to do
        (hidden_s, hidden_t), (ffn_s, ffn_t) = task.lengths("hidden"), task.lengths("ffn")
        if ffn_s % hidden_s:
            raise self.refuse(
                f"its blocks are hidden x hidden, but the source's ffn {ffn_s} is no whole multiple of its hidden "
                f"{hidden_s}. Use method='ligo'."
            )
        if ffn_t != ffn_s // hidden_s * hidden_t:
            raise self.refuse(
                f"its blocks are hidden x hidden, so ffn stays the same multiple of hidden: {ffn_s} over {hidden_s} in "
                f"the source, but {ffn_t} over {hidden_t} in the target. Set ffn to {ffn_s // hidden_s * hidden_t}, or "
                "use method='ligo'."
            )
        if "pooler" in task.source and task.ratio("pooler") != 1 and task.lengths("pooler") != (hidden_s, hidden_t):
            source, target = task.lengths("pooler")
            raise self.refuse(
                f"it has one out matrix, {hidden_s} to {hidden_t}, but the pooler goes from {source} to {target}. "
                f"Set pooler_output_size to {source}, or use method='ligo'."
            )

    def pair(self, task: Task, role: str, source: int, target: int, layer: int | None) -> Pair:
        if role != "ffn":
            return super().pair(task, role, source, target, layer)
        hidden_s, hidden_t = task.lengths("hidden")
        copies = _in_groups(source, target, hidden_s, hidden_t)
        return Pair(copies, copies, "copied in groups")


@remembered
def _in_groups(source: int, target: int, small: int, large: int) -> AxisMap:
    """Every group of `small` units copied into one of `large`."""

    def made() -> tuple[Band | Matrix, ...]:
        group, unit = np.divmod(np.arange(target), large)
        return gather(group * small + unit % small, source).bands

    return AxisMap(source, target, made)
