"""How a banded map runs along one tensor axis: in blocks that stay in a core's cache.

A band says which source entries each target entry reads. Where its rows repeat with a short period (a
wavelet's level, every third unit) it is a few sums of strided views (`Stencil`), else a gather for
every tap (`Taps`). Both run on a block of the tensor, upcast as it is read and written where it
belongs, so that no copy of the whole tensor is made on the way. A GPU takes the tensor whole, because
every block would be launches of its own, and upcasts in the kernels that read it.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 20  # entries: larger ones leave the cache, in smaller ones the calls take longer than the sums
PERIODS = 16  # target entries after which a stencil's rows may at latest repeat


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


def form_of(index: np.ndarray, weight: np.ndarray, source: int) -> Form:
    """The faster form of a band, from (target, taps) indices and weights."""
    return _stencil(index, weight, source) or Taps(index, weight)


@dataclass(frozen=True, eq=False)
class Taps:
    """Entry i of the target is the sum over t of weight[i, t] times source entry index[i, t]."""

    index: np.ndarray  # (target, taps)
    weight: np.ndarray  # (target, taps)

    copies = False

    def run(self, x: Tensor, dim: int, out: Tensor) -> None:
        index, weight = placed(self, "index", x.device), placed(self, "weight", x.device, out.dtype)
        column = [1] * x.dim()
        column[dim] = len(index)
        torch.mul(x.index_select(dim, index[:, 0]), weight[:, 0].view(column), out=out)
        for tap in range(1, index.shape[1]):
            out.addcmul_(x.index_select(dim, index[:, tap]), weight[:, tap].view(column))


@dataclass(frozen=True, eq=False)
class Stencil:
    """Target entry `period * i + r` sums, over the taps of phase r, weight times source entry `step * i + offset`.

    Attributes:
        inside: the rows i for which no tap leaves the axis; those before and after wrap around it.
        places: the target entries of these others.
        edges: their taps.
    """

    period: int
    step: int
    phases: tuple[tuple[tuple[int, float], ...], ...]
    inside: tuple[int, int]
    places: np.ndarray
    edges: Taps

    @property
    def copies(self) -> bool:
        return not len(self.places) and all(len(taps) == 1 and taps[0][1] == 1.0 for taps in self.phases)

    def run(self, x: Tensor, dim: int, out: Tensor) -> None:
        low, rows = self.inside[0], self.inside[1] - self.inside[0]
        alike = self.period > 1 and len(set(self.phases)) == 1 and x.device.type != "cpu"
        for phase, taps in enumerate(self.phases[:1] if alike else self.phases):
            into = _strided(out, dim, self.period * low + phase, self.period, rows)
            parts = [_strided(x, dim, self.step * low + offset, self.step, rows) for offset, _ in taps]
            if alike:  # one launch writes the entries of all phases, which lie side by side
                into = out.narrow(dim, self.period * low, self.period * rows)
                into = torch.unflatten(into, dim, (rows, self.period))
                parts = [part.unsqueeze(dim + 1).expand_as(into) for part in parts]
            _weighted_sum(parts, [weight for _, weight in taps], into)
        if len(self.places):
            edge = out.new_empty([len(self.places) if axis == dim else n for axis, n in enumerate(out.shape)])
            self.edges.run(x, dim, edge)
            out.index_copy_(dim, placed(self, "places", x.device), edge)


def _weighted_sum(parts: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    """In the dtype of `out`: what is computed from narrower tensors alone would be rounded to theirs."""
    is_narrower = parts[0].dtype != out.dtype
    if len(parts) == 1 and weights[0] == 1.0:
        out.copy_(parts[0])
    elif len(parts) == 2 and weights[0] == weights[1]:
        if is_narrower:
            out.copy_(parts[0]).add_(parts[1])
        else:
            torch.add(parts[0], parts[1], out=out)
        if weights[0] != 1.0:
            out.mul_(weights[0])
    else:
        if is_narrower:
            out.copy_(parts[0]).mul_(weights[0])
        else:
            torch.mul(parts[0], weights[0], out=out)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            out.add_(part, alpha=weight)


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


def _strided(x: Tensor, dim: int, start: int, step: int, count: int) -> Tensor:
    """`count` entries of axis `dim`, every `step`-th from `start` on."""
    cut = [slice(None)] * x.dim()
    cut[dim] = slice(start, start + step * (count - 1) + 1 if count else start, step)
    return x[tuple(cut)]


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


def _stencil(index: np.ndarray, weight: np.ndarray, source: int) -> Stencil | None:
    """The band as a stencil of the shortest period, None if its rows do not repeat soon."""
    target = len(index)
    for period in range(1, min(PERIODS, target) + 1):
        if target % period or source * period % target:
            continue
        step = source * period // target
        row = np.arange(target) // period
        # How far a tap is ahead of its row's first place, around the axis; padding comes last.
        ahead = np.where(weight != 0, (index - step * row[:, None] + source // 2) % source, source)
        order = np.argsort(ahead, axis=1, kind="stable")
        ahead, sorted_weight = np.take_along_axis(ahead, order, 1), np.take_along_axis(weight, order, 1)
        if np.array_equal(ahead[period:], ahead[:-period]) and np.array_equal(
            sorted_weight[period:], sorted_weight[:-period]
        ):
            return _made(index, weight, source, period, step, ahead[:period] - source // 2, sorted_weight[:period])
    return None


def _made(
    index: np.ndarray, weight: np.ndarray, source: int, period: int, step: int, offset: np.ndarray, taps: np.ndarray
) -> Stencil | None:
    real, rows = taps != 0, len(index) // period
    if not real.any(axis=1).all():
        return None
    low = max(0, -(int(offset[real].min()) // step))
    high = min(rows, (source - 1 - int(offset[real].max())) // step + 1)
    if high <= low:
        return None
    phases = tuple(
        tuple((int(o), float(w)) for o, w, one in zip(*phase, strict=True) if one)
        for phase in zip(offset, taps, real, strict=True)
    )
    outside = np.flatnonzero((np.arange(len(index)) < period * low) | (np.arange(len(index)) >= period * high))
    return Stencil(period, step, phases, (low, high), outside, Taps(index[outside], weight[outside]))
