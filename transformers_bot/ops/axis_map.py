"""Linear maps along one tensor axis, banded where each target entry reads a few source entries.

Resizing an axis from n to m is an m x n matrix with few entries in a row: one for a copied or
picked unit, `filter length` for a wavelet. An `AxisMap` is a product of such bands, so that two
wavelet levels cost two short filters and never a dense m x n product. Maps that do mix everything
(`Matrix`) are multiplied as such.

A plan holds maps of any length, and most plans are never run: bands of a long axis and dense matrices
are made when they are first applied, and kept as long as the map is.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .blocks import Form, aligned, along, apply_form, exact_products, placed

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


# Beyond so many entries in a row one matrix product costs less than a gather for every entry.
DENSE_TAPS = 32
LARGE = 1 << 12  # entries of an axis: of longer ones no map outlives its plan
MANY = 128  # layers: maps over more are as large

Made = TypeVar("Made", bound=Callable[..., Any])
_REMEMBERING: list[Any] = []


def remembered(function: Made) -> Made:
    """Keep what a function of sizes gives: every tensor with an axis of some role asks for the same maps."""
    cached = lru_cache(maxsize=256)(function)
    _REMEMBERING.append(cached)
    return cached  # type: ignore[return-value]  # called like the function


def forget_large(layers: Iterable[int], entries: Iterable[int]) -> None:
    """Let go of what is remembered where axes of these lengths had maps of megabytes; plans keep what they hold.

    Args:
        layers: lengths of stacks of layers, whose maps are dense.
        entries: lengths of axes that are resampled.
    """
    if max(layers, default=0) > MANY or max(entries, default=0) > LARGE:
        for cached in _REMEMBERING:
            cached.cache_clear()


@dataclass(frozen=True, eq=False)
class Band:
    """One banded matrix, stored by rows.

    `index[i, t]` is the source entry that tap t of target entry i reads, `weight[i, t]` its
    factor. Rows with fewer taps than the longest are padded with weight 0.
    """

    index: np.ndarray  # (target, taps) int64
    weight: np.ndarray  # (target, taps) float64
    source: int

    @property
    def target(self) -> int:
        return len(self.index)

    def apply(self, x: Tensor, dim: int, out: Tensor, compute: torch.dtype) -> Tensor:
        """Map axis `dim` of `x`, of length `source`, into `out`."""
        if self.is_gather and not isinstance(self._form, Stencil) and x.dtype == out.dtype:
            return torch.index_select(x, dim, placed(self, "index", x.device)[:, 0], out=out)
        return apply_form(self._form, x, dim, out, compute)

    @cached_property
    def _form(self) -> Form:
        return form_of(self.index, self.weight, self.source)

    @cached_property
    def is_gather(self) -> bool:
        """Whether every target entry is a plain copy of one source entry."""
        return self.weight.shape[1] == 1 and bool(np.all(self.weight == 1.0))

    def transposed(self) -> "Band":
        rows = np.repeat(np.arange(self.target), self.index.shape[1])
        keep = self.weight.reshape(-1) != 0
        return banded(self.index.reshape(-1)[keep], rows[keep], self.weight.reshape(-1)[keep], self.source, self.target)

    def scaled(self, factor: float) -> "Band":
        return Band(self.index, self.weight * factor, self.source)


class Matrix:
    """A dense matrix, for maps in which every target entry reads most source entries (a rotation, a DCT).

    Args:
        matrix: (target, source) float64, or what makes it when it is first needed.
        shape: of a matrix that is not made yet.
    """

    is_gather = False

    def __init__(self, matrix: np.ndarray | Callable[[], np.ndarray], shape: tuple[int, int] | None = None) -> None:
        self._matrix = matrix
        rows, columns = shape or self.matrix.shape
        self.target, self.source = int(rows), int(columns)

    @property
    def matrix(self) -> np.ndarray:
        """(target, source), made now if it was not."""
        if not isinstance(self._matrix, np.ndarray):
            self._matrix = self._matrix()
        return self._matrix

    def apply(self, x: Tensor, dim: int, out: Tensor, compute: torch.dtype) -> Tensor:
        """Map axis `dim` of `x`, of length `source`, into `out`."""
        matrix = placed(self, "matrix", x.device, compute)
        if out.dtype == compute:
            return along(matrix, x.to(compute), dim, out)
        return out.copy_(along(matrix, x.to(compute), dim, torch.empty_like(out, dtype=compute)))

    def transposed(self) -> "Matrix":
        return Matrix(lambda: self.matrix.T, (self.source, self.target))

    def scaled(self, factor: float) -> "Matrix":
        return Matrix(lambda: self.matrix * factor, (self.target, self.source))


def banded(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, target: int, source: int) -> Band:
    """Build a band from (row, column, value) triplets; values that share a place are added."""
    places, inverse = np.unique(rows * source + columns, return_inverse=True)
    summed = np.bincount(inverse, weights=values, minlength=len(places))
    rows, columns = places // source, places % source
    counts = np.bincount(rows, minlength=target)
    slot = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    taps = max(1, int(counts.max(initial=0)))
    # Padding repeats a row's own first column, so that an Inf elsewhere cannot leak in as 0 * Inf.
    index = np.zeros((target, taps), dtype=np.int64)
    first = np.zeros(target, dtype=np.int64)
    first[rows[slot == 0]] = columns[slot == 0]
    index += first[:, None]
    weight = np.zeros((target, taps))
    index[rows, slot], weight[rows, slot] = columns, summed
    return Band(index, weight, source)


class AxisMap:
    """A linear map along one axis: a product of bands (or dense matrices), the first applied first.

    Args:
        source, target: its lengths.
        bands: the product, empty for the identity; or what makes it when it is first needed, for a map that is
            not the identity.
        mixes: known not to be a plain copy of entries, whatever the bands are.

    Example:
        >>> import torch
        >>> copy = gather([0, 0, 1, 1], source=2)
        >>> copy.apply(torch.tensor([[1.0, 2.0]]), dim=1)
        tensor([[1., 1., 2., 2.]])
        >>> copy.transposed().dense()
        array([[1., 1., 0., 0.],
               [0., 0., 1., 1.]])
    """

    def __init__(
        self,
        source: int,
        target: int,
        bands: "tuple[Band | Matrix, ...] | Callable[[], tuple[Band | Matrix, ...]]" = (),
        mixes: bool = False,
    ) -> None:
        self.source, self.target, self.mixes = source, target, mixes
        self._bands = bands

    @property
    def bands(self) -> "tuple[Band | Matrix, ...]":
        if not isinstance(self._bands, tuple):
            self._bands = self._bands()
        return self._bands

    @property
    def is_identity(self) -> bool:
        return self._bands == ()

    @property
    def is_made(self) -> bool:
        """Whether the bands are there already."""
        return isinstance(self._bands, tuple)

    @property
    def is_copy(self) -> bool:
        """Whether every target entry is a plain copy of one source entry."""
        return not self.mixes and all(band.is_gather for band in self.bands)

    @property
    def work(self) -> int:
        """Multiply-adds for an entry that it reads, of its widest matrix; short filters count as one."""
        return max((band.target if isinstance(band, Matrix) else 1 for band in self.bands), default=1)

    def apply(self, x: Tensor, dim: int, out: Tensor | None = None, compute: torch.dtype | None = None) -> Tensor:
        """Map axis `dim` of `x` from length `source` to `target`; an identity gives `x` itself.

        Args:
            out: where the result goes, in any dtype; made where it is not given, in `compute`.
            compute: the dtype that is computed in; None for that of `x`.
        """
        if x.shape[dim] != self.source:
            raise ValueError(f"axis {dim} has length {x.shape[dim]}, the map expects {self.source}")
        if not self.bands:
            return x if out is None else out.copy_(x)
        dim, compute = dim % x.dim(), compute or x.dtype
        for number, band in enumerate(self.bands, 1):
            into = out if number == len(self.bands) else None
            if into is None:
                shape = [band.target if axis == dim else length for axis, length in enumerate(x.shape)]
                into = torch.empty(shape, dtype=compute, device=x.device)
            x = band.apply(x, dim, into, compute)
        return x

    def then(self, other: "AxisMap") -> "AxisMap":
        """The map that applies `self` first and `other` to its result."""
        if self.is_made and other.is_made:
            return AxisMap(self.source, other.target, self.bands + other.bands)
        return AxisMap(self.source, other.target, lambda: self.bands + other.bands)

    def transposed(self) -> "AxisMap":
        def made() -> tuple[Band | Matrix, ...]:
            return tuple(band.transposed() for band in reversed(self.bands))

        return AxisMap(self.target, self.source, () if self.is_identity else made)

    def scaled(self, factor: float) -> "AxisMap":
        if factor == 1.0:
            return self
        if self.is_made and any(isinstance(band, Matrix) for band in self.bands):
            return _scaled_now(self, factor)  # of dense matrices none outlives its plan
        return _scaled(self, factor)

    def dense(self) -> np.ndarray:
        """The map as a (target, source) matrix, for tests and for short axes such as depth."""
        eye = torch.eye(self.source, dtype=torch.float64)
        return self.apply(eye, dim=0).numpy()


@remembered
def _scaled(axis_map: AxisMap, factor: float) -> AxisMap:
    if axis_map.is_made:
        return _scaled_now(axis_map, factor)
    return AxisMap(axis_map.source, axis_map.target, lambda: _scaled_now(axis_map, factor).bands)


def _scaled_now(axis_map: AxisMap, factor: float) -> AxisMap:
    head = axis_map.bands or identity_bands(axis_map.source)
    return AxisMap(axis_map.source, axis_map.target, (head[0].scaled(factor), *head[1:]))


def identity(length: int) -> AxisMap:
    return AxisMap(length, length)


def identity_bands(length: int) -> tuple[Band, ...]:
    return (Band(np.arange(length)[:, None], np.ones((length, 1)), length),)


def gather(index: Sequence[int] | np.ndarray, source: int) -> AxisMap:
    """The map whose target entry i is a copy of source entry `index[i]`."""
    column = np.asarray(index, dtype=np.int64)[:, None]
    return AxisMap(source, len(column), (Band(column, np.ones(column.shape), source),))


@remembered
def tiled(source: int, target: int) -> AxisMap:
    """Whole copies of an axis one after another: target entry i is source entry i modulo its length."""
    return AxisMap(source, target, partial(_tiled_bands, source, target))


def _tiled_bands(source: int, target: int) -> tuple[Band | Matrix, ...]:
    return gather(np.arange(target) % source, source).bands


def from_dense(matrix: np.ndarray) -> AxisMap:
    """The map of a (target, source) matrix: a band where its rows have few entries, else dense."""
    rows, columns = np.nonzero(matrix)
    target, source = matrix.shape
    if len(rows) and np.bincount(rows).max() > DENSE_TAPS:
        return AxisMap(source, target, (Matrix(np.asarray(matrix, dtype=np.float64)),))
    return AxisMap(source, target, (banded(rows, columns, matrix[rows, columns], target, source),))


def turn(source: int, target: int, work: int) -> float:
    """When an axis is mapped, the lowest first: i before j costs c_i + r_i c_j an entry, after it c_j + r_j c_i.

    Args:
        source, target: its lengths, of ratio r.
        work: c, of its map.
    """
    return (target / source - 1) / work


def apply_along(x: Tensor, maps: Mapping[int, AxisMap]) -> Tensor:
    """Map several axes of `x`, computed in float32 or better, returned in its dtype.

    What is stacked along the first axis is mapped one after another, so that what lies between two axes
    stays small: before the first axis shrinks, after it has grown. Within them the axes that shrink
    most go first.
    """
    maps = {axis: one for axis, one in maps.items() if not one.is_identity}
    compute = torch.promote_types(x.dtype, torch.float32)
    shape = [maps[axis].target if axis in maps else length for axis, length in enumerate(x.shape)]
    if not maps:
        return x
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    inner = {axis - 1: one for axis, one in maps.items() if axis > 0}
    if x.device.type != "cpu" or 0 not in maps or not inner:
        return _one_after_another(x, maps, out, compute)
    outer, stacked = maps[0], out
    if outer.target > outer.source:
        x = outer.apply(x, 0, compute=compute)
    else:
        stacked = torch.empty((outer.source, *shape[1:]), dtype=compute, device=x.device)
    for part, into in zip(x, stacked, strict=True):
        _one_after_another(part, inner, into, compute)
    return stacked if stacked is out else outer.apply(stacked, 0, out, compute)


def _one_after_another(x: Tensor, maps: Mapping[int, AxisMap], out: Tensor, compute: torch.dtype) -> Tensor:
    order = sorted(sorted(maps), key=lambda axis: turn(maps[axis].source, maps[axis].target, maps[axis].work))
    for axis in order:
        x = maps[axis].apply(x, axis, out if axis == order[-1] else None, compute)
    return x
