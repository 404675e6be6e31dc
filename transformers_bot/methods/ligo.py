"""LiGO: a learned linear growth operator; before fitting, whole copies of units and layers.

`W'_m = sum_l w_{m,l} B_l W_l A_l^T`; biases, norms and embeddings are mapped with the matrix B of written
axes. This file is the operator with one-hot weights: layer m copies layer m mod L_s, unit i copies unit
i mod n on every axis that grows, and weights are not shared among copies. `transformers_bot.fit` learns them
(`learned/operators/ligo.py`).

Source: Wang et al., "Learning to Grow Pretrained Models for Efficient Transformer Training"
(ICLR 2023, arXiv 2303.00980), section 3.
"""

from typing import Any

from ..architectures.adapter import At
from ..ops.axis_map import tiled
from .base import Linear, Task
from .maps import Depth, Pair, stacked

UNFITTED = (
    "method {name} learns its maps, and nothing has been learned yet: until it is fitted the model is worse than one "
    "with random weights. Fit it on data before use"
)


class LiGO(Linear):
    """The method `ligo` before fitting."""

    name = "ligo"
    advice = (
        "A linear combination of units and layers is learned from data: give data with --fit-data. Without a fit "
        "the result is of no use. Choose it if some compute can be spent before training."
    )
    operator = "ligo"
    flat_heads = True
    combines = False  # widths and depth are learned together

    def check(self, task: Task) -> None:
        self.only_grows(task)
        grouped = [unit for unit in task.roles.units if task.roles[unit].within]
        rotary = task.roles.leading("frequency") or any(
            axis.shared for rule in task.adapter.rules for axis in rule.axes
        )
        if grouped or rotary or len(task.roles.depths) > 1 or len(task.roles.streams) > 1:
            raise self.refuse(
                f"its matrices mix the entries of all heads of one stack of layers, and {task.adapter.model_type} has "
                "rotary frequencies, grouped heads or several stacks, which it would break. Use method='bot'."
            )

    def describe(self, task: Task) -> dict[str, Any]:
        return {**super().describe(task), "fitted": False}

    def warnings(self, task: Task) -> list[str]:
        return [*super().warnings(task), UNFITTED.format(name=self.name)]

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        copies = tiled(source, target)
        return Pair(copies, copies, "copied")

    def depth(self, task: Task, stack: str) -> Depth:
        return stacked(*task.lengths(stack))
