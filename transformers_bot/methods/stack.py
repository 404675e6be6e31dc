"""Stacking: a deeper model is the source's layers on top of themselves, layer l being l mod L.

The formula is for depth. For widths combine it: `method="tile+stack"`.

Source: Gong et al., "Efficient Training of BERT by Progressively Stacking" (ICML 2019); Du et al.,
"Stacking Your Transformers: A Closer Look at Model Growth for Efficient LLM Pre-Training" (arXiv
2405.15319), its G_stack.
"""

from .base import DepthOnly, Task
from .maps import Depth, stacked


class Stack(DepthOnly):
    """The method `stack`."""

    name = "stack"
    advice = (
        "The stack of layers is repeated as often as needed. Choose it for growing in depth during pre-training; "
        "it does not keep what the model computes."
    )

    def depth(self, task: Task, stack: str) -> Depth:
        return stacked(*task.lengths(stack))
