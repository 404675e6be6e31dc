"""Depth up-scaling: two copies of the model, one without its upper and one without its lower end.

The first ceil(L_t / 2) target layers are the source's lowest, the others its highest. The target has at
most twice as many layers. The formula is for depth. For widths combine it: `method="tile+depth_upscale"`.

Source: Kim et al., "SOLAR 10.7B: Scaling Large Language Models with Simple yet Effective Depth
Up-Scaling" (arXiv 2312.15166), section 2.
"""

from .base import DepthOnly, Task
from .maps import Depth, upscaled


class DepthUpscale(DepthOnly):
    """The method `depth_upscale`."""

    name = "depth_upscale"
    advice = (
        "Two copies of the model are joined, one without its last and one without its first layers. Choose it for "
        "growing in depth up to twice the layers, with much training after it."
    )

    def check(self, task: Task) -> None:
        super().check(task)
        for stack in task.roles.depths:
            source, target = task.lengths(stack)
            if target > 2 * source:
                raise self.refuse(
                    f"two copies of {source} layers make at most {2 * source}, but {target} are asked for. "
                    f"Resize to {2 * source} layers or use method='stack'."
                )

    def depth(self, task: Task, stack: str) -> Depth:
        return upscaled(*task.lengths(stack))
