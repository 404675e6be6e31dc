"""Linear maps along one tensor axis, banded where each target entry reads a few source entries.

Resizing an axis from n to m is an m x n matrix with few entries in a row: one for a copied or
picked unit, `filter length` for a wavelet. An `AxisMap` is a product of such bands, so that two
wavelet levels cost two short filters and never a dense m x n product. Maps that do mix everything
(`Matrix`) are multiplied as such.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

# Beyond so many entries in a row one matrix product costs less than a gather for every entry.
DENSE_TAPS = 32


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

    def apply(self, x: Tensor, dim: int) -> Tensor:
        """Map axis `dim` of `x`, of length `source`, to length `target`, in the dtype of `x`."""
        index = torch.from_numpy(self.index).to(x.device)
        if self.is_gather:
            return x.index_select(dim, index[:, 0])
        column = [1] * x.dim()
        column[dim] = self.target
        weight = torch.from_numpy(self.weight).to(x.device, x.dtype)
        out = x.index_select(dim, index[:, 0]).mul_(weight[:, 0].view(column))
        for tap in range(1, index.shape[1]):
            out.addcmul_(x.index_select(dim, index[:, tap]), weight[:, tap].view(column))
        return out

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


@dataclass(frozen=True, eq=False)
class Matrix:
    """A dense matrix, for maps in which every target entry reads most source entries (a rotation, a DCT)."""

    matrix: np.ndarray  # (target, source) float64

    @property
    def source(self) -> int:
        return int(self.matrix.shape[1])

    @property
    def target(self) -> int:
        return int(self.matrix.shape[0])

    is_gather = False

    def apply(self, x: Tensor, dim: int) -> Tensor:
        """Map axis `dim` of `x`, of length `source`, to length `target`, in the dtype of `x`."""
        matrix = torch.from_numpy(np.ascontiguousarray(self.matrix)).to(x.device, x.dtype)
        product: Tensor = torch.tensordot(matrix, x, dims=([1], [dim]))
        return product.movedim(0, dim)

    def transposed(self) -> "Matrix":
        return Matrix(self.matrix.T)

    def scaled(self, factor: float) -> "Matrix":
        return Matrix(self.matrix * factor)


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


@dataclass(frozen=True, eq=False)
class AxisMap:
    """A linear map along one axis: a product of bands (or dense matrices), the first applied first.

    Example:
        >>> import torch
        >>> copy = gather([0, 0, 1, 1], source=2)
        >>> copy.apply(torch.tensor([[1.0, 2.0]]), dim=1)
        tensor([[1., 1., 2., 2.]])
        >>> copy.transposed().dense()
        array([[1., 1., 0., 0.],
               [0., 0., 1., 1.]])
    """

    source: int
    target: int
    bands: tuple[Band | Matrix, ...] = ()

    @property
    def is_identity(self) -> bool:
        return not self.bands

    def apply(self, x: Tensor, dim: int) -> Tensor:
        """Map axis `dim` of `x` from length `source` to `target`; keeps dtype and device."""
        if x.shape[dim] != self.source:
            raise ValueError(f"axis {dim} has length {x.shape[dim]}, the map expects {self.source}")
        for band in self.bands:
            x = band.apply(x, dim)
        return x

    def then(self, other: "AxisMap") -> "AxisMap":
        """The map that applies `self` first and `other` to its result."""
        return AxisMap(self.source, other.target, self.bands + other.bands)

    def transposed(self) -> "AxisMap":
        return AxisMap(self.target, self.source, tuple(band.transposed() for band in reversed(self.bands)))

    def scaled(self, factor: float) -> "AxisMap":
        if factor == 1.0:
            return self
        head = self.bands or identity_bands(self.source)
        return AxisMap(self.source, self.target, (head[0].scaled(factor), *head[1:]))

    def dense(self) -> np.ndarray:
        """The map as a (target, source) matrix, for tests and for short axes such as depth."""
        eye = torch.eye(self.source, dtype=torch.float64)
        return self.apply(eye, dim=0).numpy()


def identity(length: int) -> AxisMap:
    return AxisMap(length, length)


def identity_bands(length: int) -> tuple[Band, ...]:
    return (Band(np.arange(length)[:, None], np.ones((length, 1)), length),)


def gather(index: Sequence[int] | np.ndarray, source: int) -> AxisMap:
    """The map whose target entry i is a copy of source entry `index[i]`."""
    column = np.asarray(index, dtype=np.int64)[:, None]
    return AxisMap(source, len(column), (Band(column, np.ones(column.shape), source),))


def from_dense(matrix: np.ndarray) -> AxisMap:
    """The map of a (target, source) matrix: a band where its rows have few entries, else dense."""
    rows, columns = np.nonzero(matrix)
    target, source = matrix.shape
    if len(rows) and np.bincount(rows).max() > DENSE_TAPS:
        return AxisMap(source, target, (Matrix(np.asarray(matrix, dtype=np.float64)),))
    return AxisMap(source, target, (banded(rows, columns, matrix[rows, columns], target, source),))
