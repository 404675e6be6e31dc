"""Interpolation: a deeper model repeats every layer in its place, layer l being floor(l L_s / L_t).

The formula is for depth. For widths combine it: `method="tile+interpolate"`.

Source: Chang et al., "Multi-level Residual Networks from Dynamical Systems View" (arXiv 1710.10348),
section 4, for residual networks in general.
"""

from .base import DepthOnly, Task
from .maps import Depth, interpolated


class Interpolate(DepthOnly):
    """The method `interpolate`."""

    name = "interpolate"
    advice = (
        "Every layer is repeated in its place. Choose it for growing in depth; it does not keep what the model "
        "computes, and suits residual networks that are trained on."
    )

    def depth(self, task: Task, stack: str) -> Depth:
        return interpolated(*task.lengths(stack))
