"""How a banded map runs along one tensor axis: in blocks that stay in a core's cache.

A band says which source entries each target entry reads. How that is done fast its indices tell:

    Stencil   rows repeat with a short period (a wavelet's level, every third unit): sums of strided views
    Windows   long filters, or an axis hardly longer than they are: small dense products
    Taps      anything else: a gather for every tap

Each runs on a block of the tensor, upcast as it is read and written where it belongs, so that no copy
of the whole tensor is made on the way.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .products import aligned, exact_products

BLOCK = 1 << 21  # entries: larger ones leave the cache, in smaller ones the calls take longer than the sums
PERIODS = 16  # target entries after which a stencil's rows may at latest repeat
LONG = 24  # taps from which small dense products beat sums of views
NEAR = 3  # taps up to which strided views are read as they are, rather than parted into contiguous ones
WINDOW = 32  # target entries of one dense product


class Form(Protocol):
    """One way to run a band."""

    def run(self, x: Tensor, dim: int, out: Tensor) -> None:
        """Map axis `dim` of a block into `out`, which has its dtype."""


def apply_form(form: Form, x: Tensor, dim: int, out: Tensor, compute: torch.dtype) -> Tensor:
    """Map axis `dim` of `x` into `out`, block by block, whatever the dtypes of the two."""
    for cut in blocks(x.shape, out.shape, dim) if x.device.type == "cpu" else [()]:
        part, into = x[cut].to(compute), out[cut]
        if into.dtype == compute:
            form.run(part, dim, into)
        else:
            made = torch.empty(into.shape, dtype=compute, device=x.device)
            form.run(part, dim, made)
            into.copy_(made)
    return out


def add_into(total: Tensor, x: Tensor, weight: float, first: bool) -> None:
    """Add `weight * x` to `total` in the dtype of `total`; the first summand is set."""
    for cut in blocks(x.shape, x.shape) if x.device.type == "cpu" else [()]:
        if first:
            total[cut].copy_(x[cut])
            if weight != 1.0:
                total[cut].mul_(weight)
        else:
            total[cut].add_(x[cut].to(total.dtype), alpha=weight)


def form_of(index: np.ndarray, weight: np.ndarray, source: int) -> Form:
    """The fastest form of a band, from (target, taps) indices and weights."""
    taps = index.shape[1]
    is_dense = taps > NEAR and source < 2 * taps
    stencil = _stencil(index, weight, source) if taps < LONG and not is_dense else None
    if stencil is not None:
        return stencil
    return Windows(index, weight) if is_dense or (taps >= LONG and _is_local(index, source)) else Taps(index, weight)


@dataclass(frozen=True)
class Taps:
    """Entry i of the target is the sum over t of weight[i, t] times source entry index[i, t]."""

    index: np.ndarray  # (target, taps)
    weight: np.ndarray  # (target, taps)

    def run(self, x: Tensor, dim: int, out: Tensor) -> None:
        index, weight = _placed(self.index, x), _placed(self.weight, x).to(x.dtype)
        column = [1] * x.dim()
        column[dim] = len(index)
        torch.mul(x.index_select(dim, index[:, 0]), weight[:, 0].view(column), out=out)
        for tap in range(1, index.shape[1]):
            out.addcmul_(x.index_select(dim, index[:, tap]), weight[:, tap].view(column))


@dataclass(frozen=True)
class Stencil:
    """Target entry `period * i + r` sums, over the taps of phase r, weight times source entry `step * i + offset`.

    Attributes:
        inside: the rows i for which no tap leaves the axis; those before and after wrap around it.
        edges: these others, as (target entries, their taps).
    """

    period: int
    step: int
    phases: tuple[tuple[tuple[int, float], ...], ...]
    inside: tuple[int, int]
    edges: tuple[np.ndarray, Taps]

    def run(self, x: Tensor, dim: int, out: Tensor) -> None:
        low, high = self.inside
        parted = self._parted(x, dim)
        for phase, taps in enumerate(self.phases):
            into = _strided(out, dim, self.period * low + phase, self.period, high - low)
            parts = [self._read(parted, dim, self.step * low + offset, high - low) for offset, _ in taps]
            weights = [weight for _, weight in taps]
            if len(parts) > NEAR and self.period > 1 and dim == x.dim() - 1:
                made = torch.empty(into.shape, dtype=out.dtype, device=out.device)
                _weighted_sum(parts, weights, made)
                into.copy_(made)
            else:
                _weighted_sum(parts, weights, into)
        places, wrapped = self.edges
        if len(places):
            edge = out.new_empty([len(places) if axis == dim else n for axis, n in enumerate(out.shape)])
            wrapped.run(x, dim, edge)
            out.index_copy_(dim, _placed(places, x), edge)

    def _parted(self, x: Tensor, dim: int) -> list[Tensor]:
        """Every `step`-th entry from each place on: along the last axis contiguous, where they are read often."""
        if self.step == 1 or dim < x.dim() - 1 or max(map(len, self.phases)) <= NEAR:
            return [x]
        return [x[..., place :: self.step].contiguous() for place in range(self.step)]

    def _read(self, parted: list[Tensor], dim: int, start: int, count: int) -> Tensor:
        if len(parted) == 1:
            return _strided(parted[0], dim, start, self.step, count)
        return _strided(parted[start % self.step], dim, start // self.step, 1, count)


class Windows:
    """Every `WINDOW` target entries are a dense matrix times the few source entries that any of them reads."""

    def __init__(self, index: np.ndarray, weight: np.ndarray) -> None:
        self._taps = Taps(index, weight)
        self._parts = [_window(index[i : i + WINDOW], weight[i : i + WINDOW]) for i in range(0, len(index), WINDOW)]

    def run(self, x: Tensor, dim: int, out: Tensor) -> None:
        # Entries that a row does not read have weight 0 here, which an Inf or NaN would not heed.
        if not math.isfinite(float(x.sum())):
            return self._taps.run(x, dim, out)
        x, start = aligned(x.contiguous()), 0
        with exact_products(x.device):
            for columns, matrix in self._parts:
                first, count = int(columns[0]), len(columns)
                near = int(columns[-1]) - first == count - 1
                read = x.narrow(dim, first, count) if near else x.index_select(dim, _placed(columns, x))
                factor, into = _placed(matrix, x).to(x.dtype), out.narrow(dim, start, len(matrix))
                if dim == x.dim() - 1 > 0:
                    torch.matmul(read, factor.T, out=into)
                elif dim == x.dim() - 2:
                    torch.matmul(factor, read, out=into)
                elif x.dim() == 1:
                    torch.mv(factor, read, out=into)
                else:
                    made = torch.matmul(factor, read.flatten(dim + 1))
                    into.copy_(made.view(into.shape))
                start += len(matrix)
        return None


def _weighted_sum(parts: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    if len(parts) == 1 and weights[0] == 1.0:
        out.copy_(parts[0])
    elif len(parts) == 2 and weights[0] == weights[1]:
        torch.add(parts[0], parts[1], out=out)
        if weights[0] != 1.0:
            out.mul_(weights[0])
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


def _placed(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)


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
    return Stencil(period, step, phases, (low, high), (outside, Taps(index[outside], weight[outside])))


def _is_local(index: np.ndarray, source: int) -> bool:
    """Whether neighbours read neighbours, around the axis: a window has few more entries than it is used for."""
    step = max(1.0, source / len(index))
    widest = max(len(np.unique(index[i : i + WINDOW])) for i in range(0, len(index), WINDOW))
    return bool(widest <= min(source, 2 * step * WINDOW + 2 * index.shape[1]))


def _window(index: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source entries that some rows read, and the rows as a matrix over these entries."""
    columns, place = np.unique(index, return_inverse=True)
    matrix = np.zeros((len(index), len(columns)))
    np.add.at(matrix, (np.arange(len(index))[:, None], place.reshape(index.shape)), weight)
    return columns, matrix
