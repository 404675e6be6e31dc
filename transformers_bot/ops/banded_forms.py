"""The forms in which a banded map runs; its indices tell which is fast (`form_of`).

Stencil   rows repeat with a short period (a wavelet's level, every third unit): sums of strided views
Windows   long filters, or an axis hardly longer than they are: small dense products
Taps      anything else: a gather for every tap
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .blocks import Form, placed
from .matmul import aligned, exact_products

PERIODS = 16  # target entries after which a stencil's rows may at latest repeat
LONG = 24  # taps from which small dense products beat sums of views
NEAR = 3  # taps up to which strided views are read as they are, rather than parted into contiguous ones
WINDOW = 32  # target entries of one dense product


def form_of(index: np.ndarray, weight: np.ndarray, source: int) -> Form:
    """The fastest form of a band, from (target, taps) indices and weights."""
    taps = index.shape[1]
    is_dense = taps > NEAR and source < 2 * taps
    stencil = _stencil(index, weight, source) if taps < LONG and not is_dense else None
    if stencil is not None:
        return stencil
    return Windows(index, weight) if is_dense or (taps >= LONG and _is_local(index, source)) else Taps(index, weight)


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
        parted = self._parted(x, dim)
        alike = self.period > 1 and len(set(self.phases)) == 1 and x.device.type != "cpu"
        for phase, taps in enumerate(self.phases[:1] if alike else self.phases):
            into = _strided(out, dim, self.period * low + phase, self.period, rows)
            if not taps:
                into.zero_()
                continue
            parts = [self._read(parted, dim, self.step * low + offset, rows) for offset, _ in taps]
            if alike:  # one launch writes the entries of all phases, which lie side by side
                into = out.narrow(dim, self.period * low, self.period * rows)
                into = torch.unflatten(into, dim, (rows, self.period))
                parts = [part.unsqueeze(dim + 1).expand_as(into) for part in parts]
            weights = [weight for _, weight in taps]
            if self.period > 1 and self._is_parted(x, dim):
                into.copy_(_weighted_sum(parts, weights, torch.empty(into.shape, dtype=out.dtype)))
            else:
                _weighted_sum(parts, weights, into)
        if len(self.places):
            edge = out.new_empty([len(self.places) if axis == dim else n for axis, n in enumerate(out.shape)])
            self.edges.run(x, dim, edge)
            out.index_copy_(dim, placed(self, "places", x.device), edge)

    def _is_parted(self, x: Tensor, dim: int) -> bool:
        """Whether entries along the last axis are read so often that they are better contiguous."""
        return x.device.type == "cpu" and dim == x.dim() - 1 and max(map(len, self.phases)) > NEAR

    def _parted(self, x: Tensor, dim: int) -> list[Tensor]:
        """Every `step`-th entry from each place on."""
        if self.step == 1 or not self._is_parted(x, dim):
            return [x]
        return [x[..., place :: self.step].contiguous() for place in range(self.step)]

    def _read(self, parted: list[Tensor], dim: int, start: int, count: int) -> Tensor:
        if len(parted) == 1:
            return _strided(parted[0], dim, start, self.step, count)
        return _strided(parted[start % self.step], dim, start // self.step, 1, count)


class Windows:
    """Every `WINDOW` target entries are a dense matrix times the few source entries that any of them reads."""

    copies = False

    def __init__(self, index: np.ndarray, weight: np.ndarray) -> None:
        self._taps = Taps(index, weight)
        self._windows = [_window(index[i : i + WINDOW], weight[i : i + WINDOW]) for i in range(0, len(index), WINDOW)]

    def run(self, x: Tensor, dim: int, out: Tensor) -> None:
        # Entries that a row does not read have weight 0 here, which an Inf or NaN would not heed; and asking
        # a GPU whether there are any would wait for all it has to do.
        if x.device.type != "cpu" or not math.isfinite(float(x.sum())):
            return self._taps.run(x, dim, out)
        if dim == 0 and x.dim() > 2 and out[0].is_contiguous():
            x, out = x.flatten(1), out.view(len(out), -1)  # of which a product can be made in place
        x, start = aligned(x if x.dim() == 2 and x.stride(1) == 1 else x.contiguous()), 0
        with exact_products(x.device):
            for one in self._windows:
                read = one.read(x, dim)
                factor = placed(one, "matrix", x.device, x.dtype)
                into = out.narrow(dim, start, len(factor))
                if dim == x.dim() - 1 > 1:  # torch folds leading axes, which `into` may not lie for
                    into.copy_(torch.matmul(read, factor.T))
                elif dim == x.dim() - 1 > 0:
                    torch.matmul(read, factor.T, out=into)
                elif dim == x.dim() - 2:
                    torch.matmul(factor, read, out=into)
                elif x.dim() == 1:
                    torch.mv(factor, read, out=into)
                else:
                    into.copy_(torch.matmul(factor, read.flatten(dim + 1)).view(into.shape))
                start += len(factor)
        return None


@dataclass(frozen=True, eq=False)
class Window:
    """Some rows of a band as a matrix over the source entries that any of them reads."""

    columns: np.ndarray  # (read,)
    matrix: np.ndarray  # (rows, read)

    def read(self, x: Tensor, dim: int) -> Tensor:
        first, count = int(self.columns[0]), len(self.columns)
        if int(self.columns[-1]) - first == count - 1:
            return x.narrow(dim, first, count)
        return x.index_select(dim, placed(self, "columns", x.device))


def _weighted_sum(parts: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Tensor:
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
    return out


def _strided(x: Tensor, dim: int, start: int, step: int, count: int) -> Tensor:
    """`count` entries of axis `dim`, every `step`-th from `start` on."""
    cut = [slice(None)] * x.dim()
    cut[dim] = slice(start, start + step * (count - 1) + 1 if count else start, step)
    return x[tuple(cut)]


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
    if not real.any():
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


def _is_local(index: np.ndarray, source: int) -> bool:
    """Whether neighbours read neighbours, around the axis: a window has few more entries than it is used for."""
    step = max(1.0, source / len(index))
    widest = max(len(np.unique(index[i : i + WINDOW])) for i in range(0, len(index), WINDOW))
    return bool(widest <= min(source, 2 * step * WINDOW + 2 * index.shape[1]))


def _window(index: np.ndarray, weight: np.ndarray) -> Window:
    columns, place = np.unique(index, return_inverse=True)
    matrix = np.zeros((len(index), len(columns)))
    np.add.at(matrix, (np.arange(len(index))[:, None], place.reshape(index.shape)), weight)
    return Window(columns, matrix)
