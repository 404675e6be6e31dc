"""HyperCloning: whole copies of every axis side by side, readers share the weight.

`W_t = tile(W_s, n_out, n_in) / n_in`; biases, norms and embeddings are tiled. At integer ratios the function
is kept. The formula is for widths; depth grows by stacking, which is usually combined with it.

Source: Samragh et al., "Scaling Smart: Accelerating Large Language Model Pre-training with Small
Model Initialization" (arXiv 2409.12903), section 3.
"""

from ..architectures.adapter import At
from ..ops.axis_map import tiled
from .base import Linear, Task
from .maps import Depth, Pair, stacked


class Tile(Linear):
    """The method `tile`."""

    name = "tile"
    advice = (
        "Whole copies stand side by side and their readers share the weight: the large model computes what the "
        "source does. Only whole multiples of the width. Combine it with a method for depth: tile+stack."
    )
    keeps_scores = True

    def check(self, task: Task) -> None:
        self.only_grows(task)
        for role in task.changes("stream", "unit", "entry", "frequency"):
            source, target = task.lengths(role)
            if target % source:
                raise self.refuse(
                    f"{role} grows from {source} to {target}, which is not a whole multiple. "
                    f"The nearest are {target // source * source} and {(target // source + 1) * source}."
                )

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        copies = tiled(source, target)
        return Pair(copies, copies.scaled(source / target), "tiled")

    def depth(self, task: Task, stack: str) -> Depth:
        return stacked(*task.lengths(stack))
