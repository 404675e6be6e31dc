"""The cost of training: floating-point operations of a training step, counted by torch.

The counting is torch's `FlopCounterMode`. Written here is what it lacks: it does not know the fused attention of the
CPU, and it leaves gradients behind. fvcore's counter traces the forward pass alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Count the operations of what runs inside, with attention as plain matrix products.

    The counter of torch 2.13 does not know the fused attention of the CPU and would not count it.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def training_flops(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """Operations of one forward and backward pass of `model` on `batch` (a multiply-add counts as two).

    Matrix products, convolutions and attention are counted; element-wise work is not.
    The gradients that the model has are restored afterwards.

    Example:
        >>> class Linear(nn.Linear):
        ...     def forward(self, x):
        ...         return {"loss": super().forward(x).sum()}
        >>> training_flops(Linear(4, 8), {"x": torch.ones(2, 4)})  # 2*2*4*8, and its gradient
        256

    Args:
        model: returns an object or dict with a scalar `loss`.
        batch: its keyword arguments.

    Source: https://docs.pytorch.org/docs/stable/utils.html and `torch.utils.flop_counter`.
    """
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    try:
        with counted() as counter, torch.enable_grad():
            _loss(model(**batch)).backward()  # type: ignore[no-untyped-call]
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
    return int(counter.get_total_flops())


def forward_flops(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """Operations of one forward pass, such as a teacher's."""
    with counted() as counter, torch.no_grad():
        model(**batch)
    return int(counter.get_total_flops())


def _loss(output: Any) -> Tensor:
    loss: Tensor = output["loss"]
    return loss
