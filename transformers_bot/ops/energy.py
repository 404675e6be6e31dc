"""How much of a tensor a map along one axis keeps, and how it stretches what it keeps.

A map M (target x source) keeps the part of x that lies in its row space: ||P x||^2 with P = M^+ M.
What is measured is y = M x, so M's own stretch has to be taken out again. With the small Gram matrix

    shrinking   G = M M^T:   ||P x||^2 = y^T G^-1 y = ||L^-1 y||^2 for G = L L^T,
    growing     G = M^T M:   P = I if G is regular, and x = G^-1 M^T y.

Where G = c I, as for a wavelet's whole levels, ||P x||^2 = ||y||^2 / c and nothing is solved. Rows
that are orthogonal, but not equally long (uneven groups, partial levels), need one factor a row.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .axis_map import AxisMap, Band, from_dense

ROUNDING = 1e-9  # beside a Gram matrix's largest entry: what a product of filters misses zero by
FADED = 1e-7  # beside a matrix's largest entry: what no figure of the report shows
SMALL = 1 << 16  # entries: up to here sums are taken in float64
FAINT = 1e-30  # a mean square below which squares are too small for float32
ROW, BLOCK = 1 << 10, 1 << 18  # entries of a row and of a block


@dataclass(frozen=True)
class Sums:
    """Count, sum and sum of squares of a tensor's entries; they add up over several tensors."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def is_finite(self) -> bool:
        """Whether every entry is."""
        return math.isfinite(self.total)

    @property
    def std(self) -> float:
        """The standard deviation of all entries; NaN where one of them is not finite."""
        if not self.is_finite:
            return math.nan
        return max(0.0, self.squares / self.count - (self.total / self.count) ** 2) ** 0.5 if self.count else 0.0


def sums(x: Tensor) -> Sums:
    """The sums of one tensor in a single pass, without a copy of it.

    Rows of some hundred entries are added up in float32, the rows in float64: exact to about seven digits.
    """
    x = _dense(x.detach()).reshape(-1)
    if x.numel() <= SMALL:
        x = x.cpu().double()
        return Sums(x.numel(), float(x.sum()), float(x.square().sum()))
    rows = x[: x.numel() // ROW * ROW].view(-1, ROW)
    dtype = torch.promote_types(x.dtype, torch.float32)
    found = _row_sums(rows, dtype)
    if not FAINT * found.count < found.squares < math.inf:  # squares may be too large, or too small, for float32
        found = _row_sums(rows, torch.float64)
    return found + sums(x[rows.numel() :])


def _row_sums(rows: Tensor, dtype: torch.dtype) -> Sums:
    totals, norms = [], []
    blocks, buffer = _blocks(rows), None
    for block in blocks:
        if block.dtype != dtype and block.device.type == "cpu":
            # A new block each time would be new pages of memory each time.
            buffer = torch.empty_like(blocks[0], dtype=dtype) if buffer is None else buffer
            block = buffer[: len(block)].copy_(block)
        totals.append(block.sum(dim=1, dtype=dtype))
        norms.append(torch.linalg.vector_norm(block, dim=1, dtype=dtype))
    return Sums(rows.numel(), float(_joined(totals).sum()), float(_joined(norms).square().sum()))


def energy(x: Tensor, weights: Mapping[int, Tensor] | None = None) -> float:
    """The sum of squares of all entries, weighted along some axes.

    Args:
        weights: axis -> (length,), at least 0; what is weighted exists for a block of `x` at a time.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    found = _energy(x, weights, compute)
    in_range = FAINT * x.numel() < found < math.inf
    return found if in_range or compute == torch.float64 else _energy(x, weights, torch.float64)


def length_of(x: Tensor) -> float:
    """The Euclidean norm of all entries together, whatever their magnitude."""
    found = float(torch.linalg.vector_norm(x))
    in_range = FAINT * x.numel() < found * found < math.inf
    return found if in_range else float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _energy(x: Tensor, weights: Mapping[int, Tensor] | None, compute: torch.dtype) -> float:
    every = weights or {}
    uneven = {axis: one for axis, one in every.items() if float(one.min()) != float(one.max())}
    scale = math.prod(float(one[0]) for axis, one in every.items() if axis not in uneven)
    flat = _dense(x)
    if uneven or not flat.is_contiguous():  # a part of a larger tensor is not copied to be flat
        return scale * _uneven_energy(x, uneven, compute)
    flat = flat.reshape(-1)
    rows = flat[: x.numel() // ROW * ROW].view(-1, ROW)
    norms = [torch.linalg.vector_norm(block.to(compute), dim=1) for block in _blocks(rows)]
    return scale * (float(_joined(norms).square().sum()) + sums(flat[rows.numel() :]).squares)


def _uneven_energy(x: Tensor, weights: Mapping[int, Tensor], compute: torch.dtype) -> float:
    """Entries are weighted along the last axis, then their norms along the others."""
    if x.dim() == 1:
        x, weights = x[None], {1: weights[0]}
    factors = {axis: one.sqrt().to(x.device, compute) for axis, one in weights.items()}
    last = factors.pop(x.dim() - 1, None)
    found, start = [], 0
    for block in _blocks(x):
        norms = torch.linalg.vector_norm((block if last is None else block * last).to(compute), dim=-1)
        for axis, factor in factors.items():
            own = factor[start : start + len(block)] if axis == 0 else factor
            norms = norms * own.view([-1 if dim == axis else 1 for dim in range(norms.dim())])
        found.append(norms)
        start += len(block)
    return float(_joined(found).square().sum())


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """`x` cut along its first axis, so that a block stays in a core's cache; whole on other devices."""
    length = BLOCK * len(x) // max(1, x.numel()) if x.device.type == "cpu" else len(x)
    return torch.split(x, max(1, length))


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts]).cpu().double()


@dataclass(frozen=True)
class Stretch:
    """What a map does to the length of what it keeps.

    Attributes:
        squares: the sum of the squares of its matrix (Frobenius norm squared).
        undo: what leaves the kept part with its own energy again: (target,) weights on the energy of the
            result's rows, or where such do not tell it a map for the result.
        lossless: it keeps everything.
    """

    squares: float
    undo: Tensor | AxisMap
    lossless: bool = False

    @property
    def undoing(self) -> AxisMap:
        """`undo` as a map in any case."""
        return self.undo if isinstance(self.undo, AxisMap) else _rows_scaled(self.undo.sqrt())


class Stretches:
    """The stretch of every map, worked out once for maps of equal entries."""

    def __init__(self) -> None:
        self._known: dict[bytes, Stretch] = {}
        self._same: dict[AxisMap, Stretch] = {}  # by the object, which most tensors share

    def of(self, axis_map: AxisMap) -> Stretch:
        if axis_map not in self._same:
            key = _digest(axis_map)
            if key not in self._known:
                self._known[key] = _stretch(axis_map)
            self._same[axis_map] = self._known[key]
        return self._same[axis_map]


def _stretch(axis_map: AxisMap) -> Stretch:
    if axis_map.is_identity:
        return Stretch(axis_map.source, torch.ones(axis_map.source, dtype=torch.float64), lossless=True)
    grows = axis_map.target >= axis_map.source
    diagonal = _diagonal(axis_map, grows)
    if diagonal is None:
        return _uneven(axis_map, grows)
    squares, largest = float(diagonal.sum()), float(diagonal.max())
    dead = diagonal <= ROUNDING * largest
    lossless = grows and not bool(dead.any())
    if largest - float(diagonal.min()) <= ROUNDING * largest:
        one_factor = 1 / largest if largest > 0 else 0.0
        return Stretch(squares, torch.full((axis_map.target,), one_factor, dtype=torch.float64), lossless)
    inverse = torch.where(dead, 0.0, 1 / diagonal)
    if not grows:
        return Stretch(squares, inverse)
    return Stretch(squares, axis_map.transposed().then(_rows_scaled(inverse)), lossless)


def _diagonal(axis_map: AxisMap, grows: bool) -> Tensor | None:
    """The Gram matrix where it is diagonal, else None.

    Then G 1 is its diagonal d, and G v is d * v entry by entry. For a random v no other matrix does
    that: sum_j G_ij (v_j - v_i) is 0 by chance only.
    """
    small = min(axis_map.source, axis_map.target)
    probe = torch.randn(small, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answer = _gram(axis_map, grows, torch.stack([torch.ones_like(probe), probe], dim=1))
    diagonal, other = answer[:, 0], answer[:, 1]
    missed = (other - diagonal * probe).abs().max()
    return diagonal if float(missed) <= ROUNDING * float(diagonal.abs().max()) else None


def _gram(axis_map: AxisMap, grows: bool, x: Tensor) -> Tensor:
    """The Gram matrix times `x`."""
    first, then = (axis_map, axis_map.transposed()) if grows else (axis_map.transposed(), axis_map)
    return then.apply(first.apply(x, 0), 0)


def _uneven(axis_map: AxisMap, grows: bool) -> Stretch:
    """The stretch of a map whose rows are not orthogonal: R with R^T R = G^+ is needed as a matrix."""
    small = min(axis_map.source, axis_map.target)
    gram = _gram(axis_map, grows, torch.eye(small, dtype=torch.float64))
    squares = float(gram.trace())
    root, full = _inverse_root(gram)
    if not grows:
        return Stretch(squares, _faded(root))
    return Stretch(squares, axis_map.transposed().then(_faded(root.T @ root)), full)


def _inverse_root(gram: Tensor) -> tuple[Tensor, bool]:
    """R with R^T R = G^+, and whether G is regular."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal().square()
    if not failed and float(pivots.min()) > ROUNDING * float(pivots.max()):
        eye = torch.eye(len(gram), dtype=gram.dtype)
        return torch.linalg.solve_triangular(factor, eye, upper=False), True
    values, vectors = torch.linalg.eigh(gram)
    alive = values > ROUNDING * values[-1]
    return (vectors[:, alive] / values[alive].sqrt()).T, False


def _rows_scaled(factors: Tensor) -> AxisMap:
    length = len(factors)
    return AxisMap(length, length, (Band(np.arange(length)[:, None], factors.numpy()[:, None], length),))


def _faded(matrix: Tensor) -> AxisMap:
    """A matrix as a map: inverses of bands fade away from the diagonal, and what has faded is left out."""
    kept = matrix.abs() > FADED * matrix.abs().max()
    return from_dense(torch.where(kept, matrix, 0.0).numpy())


def _digest(axis_map: AxisMap) -> bytes:
    made = hashlib.blake2b(f"{axis_map.source} {axis_map.target}".encode(), digest_size=16)
    for band in axis_map.bands:
        parts = (band.index, band.weight) if isinstance(band, Band) else (band.matrix,)
        for part in parts:
            made.update(f"{part.shape} {part.dtype}".encode())
            made.update(np.ascontiguousarray(part).data)
    return made.digest()


def _dense(x: Tensor) -> Tensor:
    """The same entries in the order in which they lie in memory: sums ask for no other."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return x.permute(order)
