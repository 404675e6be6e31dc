"""How a banded map runs along one tensor axis: in blocks that stay in a core's cache.

A form (see `forms`) knows how a band is read; it runs on a block of the tensor, upcast as it is read and
written where it belongs, so that no copy of the whole tensor is made on the way. A GPU takes the tensor
whole, because every block would be launches of its own, and upcasts in the kernels that read it.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 22  # entries: larger ones leave the cache, in smaller ones the calls take longer than the sums

HELD = 32 << 20  # bytes: of larger tensors there are few, and holding one would cost more memory than its pages time


class Scratch:
    """Memory for tensors that lie between two maps, used by one step after another.

    Freed one by one they would come from fresh pages in every step, at a microsecond for 4 KiB: results, which
    stay, move into what was freed before.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[Hashable, torch.dtype], Tensor] = {}

    def empty(self, use: Hashable, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of any content, which is valid until the next one for the same `use`."""
        count = math.prod(shape)
        if device.type != "cpu" or count * dtype.itemsize > HELD:
            self._held.clear()  # at the largest tensors nothing else is held
            return torch.empty(shape, dtype=dtype, device=device)
        held = self._held.pop((use, dtype), None)
        if held is None or len(held) < count:
            held = None  # freed before the larger one takes its place
            held = torch.empty(count, dtype=dtype, device=device)
        self._held[use, dtype] = held
        return held[:count].view(*shape)


class Form(Protocol):
    """One way to run a band."""

    @property
    def copies(self) -> bool:
        """Whether every target entry is a source entry as it is, for which no dtype to compute in is needed."""

    def run(self, x: Tensor, dim: int, out: Tensor) -> None:
        """Map axis `dim` of a block into `out`, which has its dtype or a wider one."""


def apply_form(form: Form, x: Tensor, dim: int, out: Tensor, compute: torch.dtype) -> Tensor:
    """Map axis `dim` of `x` into `out`, block by block, whatever the dtypes of the two."""
    in_blocks = x.device.type == "cpu"
    for cut in blocks(x.shape, out.shape, dim) if in_blocks else [()]:
        part, into = x[cut].to(compute) if in_blocks else x, out[cut]
        if into.dtype == compute or (form.copies and not in_blocks):
            form.run(part, dim, into)
        else:
            made = torch.empty(into.shape, dtype=compute, device=x.device)
            form.run(part, dim, made)
            into.copy_(made)
    return out


def add_into(total: Tensor, x: Tensor, weight: float, first: bool) -> None:
    """Add `weight * x` to `total` in the dtype of `total`; the first summand is set."""
    in_blocks = x.device.type == "cpu"
    for cut in blocks(x.shape, x.shape) if in_blocks else [()]:
        if first:
            total[cut].copy_(x[cut])
            if weight != 1.0:
                total[cut].mul_(weight)
        else:
            total[cut].add_(x[cut].to(total.dtype) if in_blocks else x, alpha=weight)


def at_least_float32(x: Tensor) -> Tensor:
    """What is computed with instead of `x`: itself, unless its dtype is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def blocks(source: Sequence[int], target: Sequence[int], dim: int = -1) -> Iterator[tuple[slice, ...]]:
    """Cuts along the axes other than `dim`, the first ones first, until a block is small enough."""
    sizes = [max(pair) for pair in zip(source, target, strict=True)]
    steps = list(sizes)
    for axis in range(len(sizes)):
        if axis != dim:
            rest = math.prod(steps) // max(1, steps[axis])
            steps[axis] = min(sizes[axis], max(1, BLOCK // max(1, rest)))
    ranges = [range(0, size, max(1, step)) for size, step in zip(sizes, steps, strict=True)]
    for start in np.ndindex(*(len(one) for one in ranges)):
        places = [one[i] for one, i in zip(ranges, start, strict=True)]
        yield tuple(
            slice(None) if axis == dim else slice(place, place + steps[axis]) for axis, place in enumerate(places)
        )


def placed(owner: Hashable, field: str, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """An array that a map holds, as a tensor; copied to a GPU once, because such a copy waits for all it has to do."""
    if device.type == "cpu":
        return torch.from_numpy(np.ascontiguousarray(getattr(owner, field))).to(dtype=dtype)
    return _copied(owner, field, device, dtype)


def forget_placed() -> None:
    """Let go what `placed` has left on devices."""
    _copied.cache_clear()


@lru_cache(maxsize=64)
def _copied(owner: Hashable, field: str, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(getattr(owner, field))).to(device=device, dtype=dtype)
