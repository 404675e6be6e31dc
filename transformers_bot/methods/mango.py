"""Mango: one learned multi-linear operator for all layer matrices; before fitting, whole copies.

All matrices of all layers are blocks of d x d in one tensor `M[b, l]`: four of attention, f/d of
each MLP matrix. Four cores map it along blocks, in-axis, out-axis and layers, so the MLP's f units
are f/d groups of d that grow in the same way. This file is the operator with one-hot cores;
`transformers_bot.fit` learns them (`learned/operators/mango.py`).

Source: Pan et al., "Reusing Pretrained Models by Multi-linear Operators for Efficient Training"
(NeurIPS 2023, arXiv 2310.10699).
"""

import numpy as np

from ..architectures.adapter import At
from ..ops.axis_map import AxisMap, Band, Matrix, gather, remembered
from .base import Task
from .ligo import LiGO
from .maps import Pair


class Mango(LiGO):
    """The method `mango` before fitting."""

    name = "mango"
    advice = (
        "As ligo, with one small operator for all layers together: give data with --fit-data. Without a fit the "
        "result is of no use. The MLP must stay the same multiple of the width."
    )

    operator = "mango"

    def check(self, task: Task) -> None:
        super().check(task)
        if not task.changes("depth", "stream", "unit"):
            return  # no axis of a core changes
        stream, unit = self.cores(task)
        (width_s, width_t), (units_s, units_t) = task.lengths(stream), task.lengths(unit)
        if units_s % width_s:
            raise self.refuse(
                f"its blocks are {stream} x {stream}, but the source's {unit} {units_s} is not a whole multiple of its "
                f"{stream} {width_s}. Use method='ligo'."
            )
        if units_t != units_s // width_s * width_t:
            raise self.refuse(
                f"its blocks are {stream} x {stream}, so {unit} stays the same multiple of {stream}: {units_s} over "
                f"{width_s} in the source, but {units_t} over {width_t} in the target. Set {unit} to "
                f"{units_s // width_s * width_t}, or use method='ligo'."
            )
        for role in task.changes("unit"):
            source, target = task.lengths(role)
            if task.roles.leader(role) == stream and (source, target) != (width_s, width_t):
                raise self.refuse(
                    f"it has one out matrix, {width_s} to {width_t}, but the {role} goes from {source} to {target}. "
                    f"Set {task.roles[role].field} to {source}, or use method='ligo'."
                )

    def cores(self, task: Task) -> tuple[str, str]:
        """The stream and the MLP units, which its blocks are cut from; there is one core for each."""
        plain = [unit for unit in task.roles.units if not task.roles.is_whole(unit)]
        if len(task.roles.depths) != 1 or len(task.roles.streams) != 1 or len(plain) != 1:
            raise self.refuse(
                "it has one core for the layers, one for the stream and one for MLP units, but "
                f"{task.adapter.model_type} has {len(task.roles.depths)}, {len(task.roles.streams)} and {len(plain)}. "
                "Use method='bot'."
            )
        return task.roles.streams[0], plain[0]

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        stream, unit = self.cores(task)
        if role != unit:
            return super().pair(task, role, source, target, at)
        copies = _in_groups(source, target, *task.lengths(stream))
        return Pair(copies, copies, "copied in groups")


@remembered
def _in_groups(source: int, target: int, small: int, large: int) -> AxisMap:
    """Every group of `small` units copied into one of `large`."""

    def bands() -> tuple[Band | Matrix, ...]:
        group, unit = np.divmod(np.arange(target), large)
        return gather(group * small + unit % small, source).bands

    return AxisMap(source, target, bands)
