"""Weight Selection: a smaller model made of evenly spaced entries of a larger one's first layers.

Every axis of length n keeps m entries: every (n/m)-th one if m divides n, else those nearest to m
even steps from the first to the last. The indices are the same everywhere, heads x head_dim is one
axis, nothing is rescaled, and the task head is initialised anew.

Source: Xu et al., "Initializing Models with Larger Ones" (arXiv 2311.18823), section 3.
"""

import numpy as np

from ..architectures.adapter import LABEL, RESIZED, At, Rule
from ..ops.axis_map import AxisMap, gather, remembered
from ..ops.recipe import Recipe
from .base import Fresh, Linear, Task
from .maps import Depth, Pair, picked


class WeightSelection(Linear):
    """The method `weight_selection`."""

    name = "weight_selection"
    advice = (
        "The small model is made of evenly spaced entries of the first layers. Choose it to compare, or if a "
        "smaller model will be trained for long and only needs a good start."
    )
    option_names = ("reheads",)
    flat_heads = True

    def check(self, task: Task) -> None:
        self.only_shrinks(task)
        self.keeps_no_heads(task)
        for place in task.changes("place"):
            source, target = task.lengths(place)
            if target > source:
                raise self.refuse(
                    f"it can only shrink, but {place} goes from {source} to {target}. "
                    f"Keep {source} positions or use method='bot'."
                )

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        if LABEL.field in (task.roles[role].field for role in rule.roles) and task.changes(*RESIZED):
            return Fresh("weight selection starts task heads anew")
        return super().recipe(task, rule, layer, name)

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        selection = _selection(source, target)
        return Pair(selection, selection, "evenly selected")

    def positions(self, source: int, target: int) -> Pair:
        selection = _selection(source, target)
        return Pair(selection, selection, "evenly selected")

    def depth(self, task: Task, stack: str) -> Depth:
        return picked(*task.lengths(stack), "first")


@remembered
def _selection(source: int, target: int) -> AxisMap:
    return gather(selected(source, target), source)


def selected(source: int, target: int) -> np.ndarray:
    """The entries that are kept.

    >>> selected(8, 4).tolist(), selected(8, 3).tolist()
    ([0, 2, 4, 6], [0, 4, 7])
    """
    if source % target == 0:
        return np.arange(0, source, source // target)
    return np.round(np.linspace(0, source - 1, target)).astype(int)
