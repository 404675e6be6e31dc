"""Linear maps along one tensor axis, banded where each target entry reads a few source entries.

Resizing an axis from n to m entries is an m x n matrix with few nonzero entries in a row: one for a copied or
picked unit, `filter length` for a wavelet. An `AxisMap` is a product of such bands, so that two wavelet levels
cost two short filters instead of a dense m x n product. A map in which every entry depends on most others is a
dense `Matrix`.

A plan may hold maps of very long axes, and most plans are never run. Bands of a long axis and dense matrices
are therefore computed when they are first applied, and kept as long as the map.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import BadOption
from .blocks import Form, aligned, along, apply_form, exact_products, placed

PERIODS = 16  # longest period, in target entries, of a stencil
LONG = 24  # from this number of taps on small dense products are faster than sums of views
NEAR = 3  # up to this number of taps strided views are faster than contiguous copies of them
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
    """Target entry `period * i + r` sums weight times source entry `step * i + offset` over the taps of phase r.

    Attributes:
        inside: the range of rows i whose taps are all on the axis; taps of other rows wrap around it.
        places: the target entries of these other rows.
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
        sources = self._sources(x, dim)
        are_equal = self.period > 1 and len(set(self.phases)) == 1 and x.device.type != "cpu"
        for phase, taps in enumerate(self.phases[:1] if are_equal else self.phases):
            into = _strided(out, dim, self.period * low + phase, self.period, rows)
            if not taps:
                into.zero_()
                continue
            parts = [self._read(sources, dim, self.step * low + offset, rows) for offset, _ in taps]
            if are_equal:  # one kernel launch writes the entries of all phases, which are neighbours
                into = out.narrow(dim, self.period * low, self.period * rows)
                into = torch.unflatten(into, dim, (rows, self.period))
                parts = [part.unsqueeze(dim + 1).expand_as(into) for part in parts]
            weights = [weight for _, weight in taps]
            if self.period > 1 and self._needs_copies(x, dim):
                into.copy_(_weighted_sum(parts, weights, torch.empty(into.shape, dtype=out.dtype)))
            else:
                _weighted_sum(parts, weights, into)
        if len(self.places):
            edge = out.new_empty([len(self.places) if axis == dim else n for axis, n in enumerate(out.shape)])
            self.edges.run(x, dim, edge)
            out.index_copy_(dim, placed(self, "places", x.device), edge)

    def _needs_copies(self, x: Tensor, dim: int) -> bool:
        """Whether entries along the last axis are read so often that contiguous copies are faster."""
        return x.device.type == "cpu" and dim == x.dim() - 1 and max(map(len, self.phases)) > NEAR

    def _sources(self, x: Tensor, dim: int) -> list[Tensor]:
        """`x` itself, or contiguous copies of every `step`-th entry from each of the first `step` entries on."""
        if self.step == 1 or not self._needs_copies(x, dim):
            return [x]
        return [x[..., first :: self.step].contiguous() for first in range(self.step)]

    def _read(self, sources: list[Tensor], dim: int, start: int, count: int) -> Tensor:
        """The source entries `start`, `start + step`, ... of one tap for all rows."""
        if len(sources) == 1:
            return _strided(sources[0], dim, start, self.step, count)
        return _strided(sources[start % self.step], dim, start // self.step, 1, count)


class Windows:
    """A dense matrix for every `WINDOW` target entries, over the few source entries that they read."""

    copies = False

    def __init__(self, index: np.ndarray, weight: np.ndarray) -> None:
        self._taps = Taps(index, weight)
        self._windows = [_window(index[i : i + WINDOW], weight[i : i + WINDOW]) for i in range(0, len(index), WINDOW)]

    def run(self, x: Tensor, dim: int, out: Tensor) -> None:
        # An entry that a row does not read has weight 0 here, and 0 times Inf or NaN is NaN. On a GPU the test for
        # such values would wait for all work before it.
        if x.device.type != "cpu" or not math.isfinite(float(x.sum())):
            return self._taps.run(x, dim, out)
        if dim == 0 and x.dim() > 2 and out[0].is_contiguous():
            x, out = x.flatten(1), out.view(len(out), -1)  # products of matrices can be written in place
        x, start = aligned(x if x.dim() == 2 and x.stride(1) == 1 else x.contiguous()), 0
        with exact_products(x.device):
            for window in self._windows:
                read = window.read(x, dim)
                factor = placed(window, "matrix", x.device, x.dtype)
                into = out.narrow(dim, start, len(factor))
                if dim == x.dim() - 1 > 1:  # torch flattens leading axes, and `into` may not be contiguous
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
    """Some rows of a band as a matrix over the source entries that they read."""

    columns: np.ndarray  # (read,)
    matrix: np.ndarray  # (rows, read)

    def read(self, x: Tensor, dim: int) -> Tensor:
        first, count = int(self.columns[0]), len(self.columns)
        if int(self.columns[-1]) - first == count - 1:
            return x.narrow(dim, first, count)
        return x.index_select(dim, placed(self, "columns", x.device))


def _weighted_sum(parts: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Tensor:
    """The weighted sum, computed in the dtype of `out`: torch would round sums of narrower tensors to their dtype."""
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
    """The band as a stencil of the shortest period, None if its rows do not repeat within `PERIODS`."""
    target = len(index)
    for period in range(1, min(PERIODS, target) + 1):
        if target % period or source * period % target:
            continue
        step = source * period // target
        row = np.arange(target) // period
        # The distance of a tap from its row's first place, around the axis; padding is sorted last.
        ahead = np.where(weight != 0, (index - step * row[:, None] + source // 2) % source, source)
        order = np.argsort(ahead, axis=1, kind="stable")
        ahead, sorted_weight = np.take_along_axis(ahead, order, 1), np.take_along_axis(weight, order, 1)
        if np.array_equal(ahead[period:], ahead[:-period]) and np.array_equal(
            sorted_weight[period:], sorted_weight[:-period]
        ):
            return _stencil_of(
                index, weight, source, period, step, ahead[:period] - source // 2, sorted_weight[:period]
            )
    return None


def _stencil_of(
    index: np.ndarray, weight: np.ndarray, source: int, period: int, step: int, offset: np.ndarray, taps: np.ndarray
) -> Stencil | None:
    """The stencil with these offsets and weights, (period, taps); None if no row has all its taps on the axis."""
    is_tap, rows = taps != 0, len(index) // period
    if not is_tap.any():
        return None
    low = max(0, -(int(offset[is_tap].min()) // step))
    high = min(rows, (source - 1 - int(offset[is_tap].max())) // step + 1)
    if high <= low:
        return None
    phases = tuple(
        tuple((int(place), float(factor)) for place, factor, used in zip(*phase, strict=True) if used)
        for phase in zip(offset, taps, is_tap, strict=True)
    )
    outside = np.flatnonzero((np.arange(len(index)) < period * low) | (np.arange(len(index)) >= period * high))
    return Stencil(period, step, phases, (low, high), outside, Taps(index[outside], weight[outside]))


def _is_local(index: np.ndarray, source: int) -> bool:
    """Whether neighbours read neighbours, around the axis, so that the rows of a window share most entries."""
    step = max(1.0, source / len(index))
    widest = max(len(np.unique(index[i : i + WINDOW])) for i in range(0, len(index), WINDOW))
    return bool(widest <= min(source, 2 * step * WINDOW + 2 * index.shape[1]))


def _window(index: np.ndarray, weight: np.ndarray) -> Window:
    columns, place = np.unique(index, return_inverse=True)
    matrix = np.zeros((len(index), len(columns)))
    np.add.at(matrix, (np.arange(len(index))[:, None], place.reshape(index.shape)), weight)
    return Window(columns, matrix)


DENSE_TAPS = 32  # with more entries in a row one matrix product is faster than a gather for every entry
LARGE = 1 << 12  # entries of an axis; maps of longer axes are not cached for longer than their plan
MANY = 128  # layers; maps over more layers are as large

Function = TypeVar("Function", bound=Callable[..., Any])
_CACHES: list[Any] = []


def remembered(function: Function) -> Function:
    """Cache the results of a function of sizes: all tensors with an axis of the same role need the same maps."""
    cached = lru_cache(maxsize=256)(function)
    _CACHES.append(cached)
    return cached  # type: ignore[return-value]  # called like the function


def forget_large(layers: Iterable[int], entries: Iterable[int]) -> None:
    """Clear the caches if axes of these lengths have maps of megabytes; plans keep the maps that they hold.

    Args:
        layers: lengths of stacks of layers, whose maps are dense.
        entries: lengths of axes that are resampled.
    """
    if max(layers, default=0) > MANY or max(entries, default=0) > LARGE:
        for cached in _CACHES:
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
    """A dense matrix, for maps in which every target entry reads most source entries (a turn of the basis, a DCT).

    Args:
        matrix: (target, source) in float64, or a function that computes it when it is first needed.
        shape: of a matrix that is given by a function.
    """

    is_gather = False

    def __init__(self, matrix: np.ndarray | Callable[[], np.ndarray], shape: tuple[int, int] | None = None) -> None:
        self._matrix = matrix
        rows, columns = shape or self.matrix.shape
        self.target, self.source = int(rows), int(columns)

    @property
    def matrix(self) -> np.ndarray:
        """(target, source), computed at the first call."""
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
        return Matrix(partial(_transposed_matrix, self), (self.source, self.target))

    def scaled(self, factor: float) -> "Matrix":
        return Matrix(partial(_scaled_matrix, self, factor), (self.target, self.source))


# What is computed when it is first needed is a function of a module, with its arguments: such can be pickled.


def _transposed_matrix(of: Matrix) -> np.ndarray:
    return of.matrix.T


def _scaled_matrix(of: Matrix, factor: float) -> np.ndarray:
    return of.matrix * factor


def banded(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, target: int, source: int) -> Band:
    """Build a band from (row, column, value) triplets; values with the same row and column are added."""
    places, inverse = np.unique(rows * source + columns, return_inverse=True)
    summed = np.bincount(inverse, weights=values, minlength=len(places))
    rows, columns = places // source, places % source
    counts = np.bincount(rows, minlength=target)
    slot = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    taps = max(1, int(counts.max(initial=0)))
    # Padding repeats the row's own first column: an Inf of another column would become NaN as 0 * Inf.
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
        bands: the product, empty for the identity; or, for another map, a function that computes it when it is
            first needed.
        mixes: the map is known not to copy entries, so that bands need not be computed to find out.

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
        """Whether the bands are computed already."""
        return isinstance(self._bands, tuple)

    @property
    def is_copy(self) -> bool:
        """Whether every target entry is a plain copy of one source entry."""
        return not self.mixes and all(band.is_gather for band in self.bands)

    @property
    def work(self) -> int:
        """Multiply-adds per source entry, of the widest matrix; short filters count as one."""
        return max((band.target if isinstance(band, Matrix) else 1 for band in self.bands), default=1)

    def apply(self, x: Tensor, dim: int, out: Tensor | None = None, compute: torch.dtype | None = None) -> Tensor:
        """Map axis `dim` of `x` from length `source` to `target`; an identity returns `x` itself.

        Args:
            out: memory for the result, in any dtype; None allocates it in `compute`.
            compute: the dtype of the computation; None for that of `x`.
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
        return AxisMap(self.source, other.target, partial(_joined_bands, self, other))

    def transposed(self) -> "AxisMap":
        return AxisMap(self.target, self.source, () if self.is_identity else partial(_transposed_bands, self))

    def scaled(self, factor: float) -> "AxisMap":
        if factor == 1.0:
            return self
        if self.is_made and any(isinstance(band, Matrix) for band in self.bands):
            return _scaled_now(self, factor)  # dense matrices are not cached for longer than their plan
        return _scaled(self, factor)

    def dense(self) -> np.ndarray:
        """The map as a (target, source) matrix, for short axes such as depth, and for tests."""
        eye = torch.eye(self.source, dtype=torch.float64)
        return self.apply(eye, dim=0).numpy()


def _joined_bands(first: AxisMap, then: AxisMap) -> tuple[Band | Matrix, ...]:
    return first.bands + then.bands


def _transposed_bands(axis_map: AxisMap) -> tuple[Band | Matrix, ...]:
    return tuple(band.transposed() for band in reversed(axis_map.bands))


def _scaled_bands(axis_map: AxisMap, factor: float) -> tuple[Band | Matrix, ...]:
    return _scaled_now(axis_map, factor).bands


@remembered
def _scaled(axis_map: AxisMap, factor: float) -> AxisMap:
    if axis_map.is_made:
        return _scaled_now(axis_map, factor)
    return AxisMap(axis_map.source, axis_map.target, partial(_scaled_bands, axis_map, factor))


def _scaled_now(axis_map: AxisMap, factor: float) -> AxisMap:
    head = axis_map.bands or identity_bands(axis_map.source)
    return AxisMap(axis_map.source, axis_map.target, (head[0].scaled(factor), *head[1:]))


def identity(length: int) -> AxisMap:
    return AxisMap(length, length)


def identity_bands(length: int) -> tuple[Band, ...]:
    return (Band(np.arange(length)[:, None], np.ones((length, 1)), length),)


def gather(index: Sequence[int] | np.ndarray, source: int) -> AxisMap:
    """The map whose target entry i is a copy of source entry `index[i]`.

    Raises:
        BadOption: an entry that the source does not have.
    """
    column = np.asarray(index, dtype=np.int64)[:, None]
    if column.size and not (column.min() >= 0 and column.max() < source):
        odd = column.min() if column.min() < 0 else column.max()
        raise BadOption(f"gather() is to copy entry {odd}, but the source has the entries 0 to {source - 1}.")
    return AxisMap(source, len(column), (Band(column, np.ones(column.shape), source),))


@remembered
def tiled(source: int, target: int) -> AxisMap:
    """Copies of an axis one after another: target entry i is source entry i mod `source`."""
    return AxisMap(source, target, partial(_tiled_bands, source, target))


def _tiled_bands(source: int, target: int) -> tuple[Band | Matrix, ...]:
    return gather(np.arange(target) % source, source).bands


def from_dense(matrix: np.ndarray) -> AxisMap:
    """The map of a (target, source) matrix: a band if its rows have few nonzero entries, else dense."""
    rows, columns = np.nonzero(matrix)
    target, source = matrix.shape
    if len(rows) and np.bincount(rows).max() > DENSE_TAPS:
        return AxisMap(source, target, (Matrix(np.asarray(matrix, dtype=np.float64)),))
    return AxisMap(source, target, (banded(rows, columns, matrix[rows, columns], target, source),))


def turn(source: int, target: int, work: int) -> float:
    """The sort key of an axis in the order of least work.

    Mapping axis i before j costs c_i + r_i c_j per entry, mapping it after j costs c_j + r_j c_i. The first is less if
    (r_i - 1) / c_i < (r_j - 1) / c_j.

    Args:
        source, target: lengths of the axis; their ratio is r.
        work: c, the work of its map per entry.
    """
    return (target / source - 1) / work


def apply_along(x: Tensor, maps: Mapping[int, AxisMap]) -> Tensor:
    """Map several axes of `x`, computed in float32 or better, returned in its dtype.

    On a CPU the slices along the first axis are mapped one at a time, so that intermediate tensors stay small:
    before the first axis shrinks, or after it has grown. The other axes are mapped in the order of `turn`.
    """
    maps = {axis: axis_map for axis, axis_map in maps.items() if not axis_map.is_identity}
    compute = torch.promote_types(x.dtype, torch.float32)
    shape = [maps[axis].target if axis in maps else length for axis, length in enumerate(x.shape)]
    if not maps:
        return x
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    inner = {axis - 1: axis_map for axis, axis_map in maps.items() if axis > 0}
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


def split_places(length: int, count: int) -> np.ndarray:
    """A mask of the `count` of `length` places that a partial level splits, as even as integers allow.

    >>> split_places(4, 2).tolist()
    [False, True, False, True]
    """
    steps = np.arange(length + 1) * count // length
    return np.asarray(np.diff(steps) == 1)
