"""How a target tensor is computed: a weighted sum of layers, then a map along every axis; and what maps keep."""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .axis_map import AxisMap, Band, from_dense, turn
from .blocks import Scratch, Sums, add_into, sums


def undo_norm(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Parameters of a norm that turns another norm's output back into its normalised input.

    The norm below gives x = w * z + b, where z has mean 0 and variance 1. A norm of x computes (x - m) / s with
    m = mean(b) and s^2 = mean(w^2) + var(b), apart from fluctuations between tokens. So s / w and (m - b) / w give
    z again, and the second norm of the block, which has w and b once more, gives x. The error is the
    fluctuation of s times (b - m) / w, because the second norm rescales z. Channels with w close to 0 have the
    constant b and nothing of z. A norm between these two passes z with the weight 1 and the bias 0.
    """
    mean = bias.mean()
    std = (weight.square().mean() + bias.var(correction=0)).sqrt()
    alive = weight.abs() > 1e-3 * weight.abs().mean()
    safe = torch.where(alive, weight, torch.ones_like(weight))
    zero = torch.zeros_like(weight)
    return {
        "weight": torch.where(alive, std / safe, zero),
        "bias": torch.where(alive, (mean - bias) / safe, zero),
        "passed weight": torch.ones_like(weight),
        "passed bias": zero,
    }


@dataclass(frozen=True)
class Cache:
    """Shared by the steps of one plan: (mean, standard deviation) of measured stacks, and memory that is reused."""

    moments: dict[Hashable, tuple[float, float]] = field(default_factory=dict)
    scratch: Scratch = field(default_factory=Scratch)


def moments(tensors: Iterable[Tensor]) -> tuple[float, float]:
    """The mean and standard deviation of all entries together, one tensor at a time."""
    total = sum((sums(x) for x in tensors), Sums())
    return total.total / total.count, total.std


def matched(x: Tensor, own: tuple[float, float], wanted: tuple[float, float]) -> Tensor:
    """`x`, of mean and standard deviation `own`, shifted and scaled to `wanted`."""
    # A standard deviation below float32's resolution of the mean is rounding: a constant stays a constant.
    scale = wanted[1] / own[1] if own[1] > 1e-6 * abs(own[0]) else 0.0
    return (x - own[0]) * scale + wanted[0]


def drawn(
    kind: str, seed: str, shape: Sequence[int], like: Tensor, empty: Callable[..., Tensor] = torch.empty
) -> Tensor:
    """Unit noise, "uniform" in [-1, 1] or "gaussian", in the dtype of `like`; it depends on the text `seed` alone.

    Args:
        empty: allocates the memory for the noise.
    """
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=7).digest(), "big"))
    noise = empty(shape, dtype=torch.float32, device=torch.device("cpu"))
    if kind == "uniform":
        noise.uniform_(-1.0, 1.0, generator=generator)
    else:
        noise.normal_(generator=generator)
    return noise.to(like.device, like.dtype)


# One map per factor of a segment; an axis is one or more segments; a tensor has one entry per axis.
Segment = tuple[AxisMap, ...]
TensorMap = tuple[tuple[Segment, ...], ...]


@dataclass(frozen=True)
class Detail:
    """Noise for the detail bands: drawn in the bands, or drawn everywhere without the part that is visible.

    Attributes:
        kind: "gaussian" or "uniform".
        scale: in units of the low band's standard deviation.
        visible: per axis, the target -> target projection that is subtracted; not used with `bands`.
        layers: a row of that projection over depth: (target layer, weight); empty if depth is not projected.
        stack: all source layers, if the unit is their common standard deviation (as in the paper); empty if it
            is that of the result.
        seed: mixed with the tensor's name.
        name: the tensor's name with {layer} in place of the layer's number.
        layer: the target layer, None outside of the layers.
        dim: the axis whose detail bands are drawn, with `bands`.
        bands: maps of that axis from the drawn bands to the target; empty if noise is drawn everywhere.
    """

    kind: str
    scale: float
    visible: TensorMap
    layers: tuple[tuple[int, float], ...]
    stack: tuple["Read", ...]
    seed: int
    name: str
    layer: int | None
    dim: int = 0
    bands: tuple[Segment, ...] = ()

    def seed_of(self, layer: int | None) -> str:
        """The text that seeds the noise of a layer of this stack."""
        return f"{self.seed}/{self.name}/{layer}"


@dataclass(frozen=True)
class Alternation:
    """The stored order of an axis whose segments alternate.

    Example:
        >>> order = Alternation(0, 2, (1, 2))  # a b b a b b
        >>> order.sorted(torch.tensor([0, 10, 11, 1, 12, 13])).tolist()
        [0, 1, 10, 11, 12, 13]

    Attributes:
        dim: the axis.
        count: how often every segment has a part.
        lengths: of one part of each segment.
    """

    dim: int
    count: int
    lengths: tuple[int, ...]

    def sorted(self, x: Tensor) -> Tensor:
        """The tensor with its segments one after another."""
        both = self._apart(x)
        parts = torch.split(both, list(self.lengths), self.dim + 1)
        return torch.cat([part.flatten(self.dim, self.dim + 1) for part in parts], self.dim)

    def stored(self, x: Tensor) -> Tensor:
        """The tensor in its stored order."""
        parts = torch.split(x, [self.count * length for length in self.lengths], self.dim)
        both = torch.cat([self._apart(part) for part in parts], self.dim + 1)
        return both.flatten(self.dim, self.dim + 1)

    def _apart(self, x: Tensor) -> Tensor:
        """The tensor with its axis as two: the parts, and the entries of a part."""
        return x.reshape(*x.shape[: self.dim], self.count, -1, *x.shape[self.dim + 1 :])


@dataclass(frozen=True)
class Rows:
    """Entries of an axis that are kept, such as the rows of a vocabulary.

    Attributes:
        index: their places in the source, ascending.
        length: how many there are in the source.
        origin: where the choice comes from, such as the name of a file.
        remarks: sentences on the choice that a user should read.
    """

    index: tuple[int, ...]
    length: int
    origin: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """A phrase for the plan."""
        return f"kept {len(self.index):,} of {self.length:,} rows: {self.origin}"


@dataclass(frozen=True)
class Read:
    """A source tensor: its name with {layer} for the number, its layer (None outside of the layers), its weight."""

    name: str
    layer: int | None
    weight: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How a target tensor is computed from source tensors of the same rule.

    Attributes:
        reads: the source tensors.
        maps: a map per factor, segment and axis.
        detail: noise for the empty bands, if any.
        undo: None for the sum of `reads`; with "weight" or "bias", `reads` are the two tensors of a norm, and the
            result is that tensor of a norm which undoes it; with "passed" before it, of one that passes z (see
            `undo_norm`).
        note: a phrase for the plan.
        plus: recipes whose results are added, for methods that mix layers unit by unit.
        match: tensors whose common mean and standard deviation the result gets.
        shift: added before the maps and subtracted after them: 1 for a norm that multiplies by one plus its weight.
        alternations: the stored order of the result's axes; what is read comes with its segments one after another.
        direction: of the lengths of a weight: the recipe of its direction. They are multiplied by the norm of the
            result of that recipe, relative to the norm of its source, over the axes of length 1.
        mates: rows of weights on `match`, one for each tensor of the result's own stack, whose common mean and
            standard deviation are then matched to those of `match`; empty if the result is matched alone.
        picks: axis -> the entries of the result that are kept. They are picked last, so that they have the very values
            that they would have among all others.
    """

    reads: tuple[Read, ...]
    maps: TensorMap
    detail: Detail | None = None
    undo: str | None = None
    note: str = ""
    plus: "tuple[Recipe, ...]" = ()
    match: tuple[Read, ...] = ()
    mates: tuple[tuple[float, ...], ...] = ()
    shift: float = 0.0
    alternations: tuple[Alternation, ...] = ()
    direction: "Recipe | None" = None
    picks: tuple[tuple[int, Rows], ...] = ()

    @property
    def needs(self) -> tuple[Read, ...]:
        """All source tensors that are read, including those of which only mean and standard deviation are needed."""
        own = self.reads + (self.detail.stack if self.detail else ()) + self.match
        others = (*self.plus, *filter(None, [self.direction]))
        return tuple(dict.fromkeys(own + tuple(read for other in others for read in other.needs)))

    def with_reads(self, change: "Callable[[Read], Read]") -> "Recipe":
        """The same with every read changed."""
        detail = self.detail and replace(self.detail, stack=tuple(map(change, self.detail.stack)))
        reads, match = (tuple(map(change, reads)) for reads in (self.reads, self.match))
        plus = tuple(other.with_reads(change) for other in self.plus)
        return replace(self, reads=reads, match=match, detail=detail, plus=plus)

    @property
    def is_copy(self) -> bool:
        if (
            len(self.reads) != 1
            or self.reads[0].weight != 1.0
            or self.undo
            or self.plus
            or self.direction
            or self.picks
        ):
            return False
        return is_identity(self.maps) and self.detail is None


def is_identity(maps: TensorMap) -> bool:
    return all(m.is_identity for axis in maps for segment in axis for m in segment)


class Watcher(Protocol):
    """Follows the computation of one target tensor; its methods are called in this order and keep no tensor."""

    def summed(self, signal: Tensor) -> None:
        """The source layers were summed."""

    def mapped(self, dim: int, segments: tuple[Segment, ...], place: tuple[int, int], x: Tensor, out: Tensor) -> None:
        """One map of axis `dim` was applied.

        Args:
            segments: all maps of that axis.
            place: the segment, and the factor in it.
            x: the segment before, with its factors as axes of their own from `dim` on.
            out: the same after.
        """

    def filled(self, noise: Tensor) -> None:
        """This noise will be added for the detail bands."""


def run(
    recipe: Recipe,
    read: Callable[[Read], Tensor],
    dtype: torch.dtype,
    device: torch.device,
    cache: Cache | None = None,
    watch: Watcher | None = None,
) -> Tensor:
    """Compute a target tensor: read, upcast, sum layers, map axes, add detail, downcast once.

    Args:
        recipe: what to compute.
        read: returns the source tensor of a `Read`.
        dtype: of the result; the computation is in float32 or better.
        device: of the computation and the result.
        cache: shared by the calls for one plan.
        watch: follows the computation; it changes nothing.
    """
    out = _run(recipe, read, dtype, device, cache or Cache(), watch)
    for alternation in recipe.alternations:
        out = alternation.stored(out)
    for dim, rows in recipe.picks:
        out = out.index_select(dim, torch.tensor(rows.index, device=out.device))
    return out


def _run(
    recipe: Recipe,
    read: Callable[[Read], Tensor],
    dtype: torch.dtype,
    device: torch.device,
    cache: Cache,
    watch: Watcher | None,
) -> Tensor:
    """The target tensor with the segments of every axis one after another."""
    if recipe.is_copy:
        return read(recipe.reads[0]).to(device, dtype)
    inputs = (read(each).to(device) for each in recipe.reads)  # read one at a time: a sum holds two tensors
    if recipe.undo:
        signal = undo_norm(*(x.to(_computed(x.dtype, dtype)) for x in inputs))[recipe.undo]
    else:
        signal = _weighted_sum(recipe, inputs, dtype)
    if recipe.shift:
        signal = signal.to(_computed(signal.dtype, dtype)) + recipe.shift * sum(read.weight for read in recipe.reads)
    if watch:
        watch.summed(signal)
    compute = _computed(signal.dtype, dtype)
    # Round only at the end: a result that is measured or changed further stays in the dtype of the computation.
    is_final = not (recipe.detail or recipe.plus or recipe.match or recipe.shift or recipe.direction or watch)
    out = apply(signal, recipe.maps, watch, compute, dtype if is_final else compute, cache.scratch)
    for other in recipe.plus:
        out = out + _run(other, read, out.dtype, device, cache, None)
    if recipe.detail is not None:
        stack = recipe.detail.stack
        std = (_stack_moments(stack, read, cache) if stack else moments([out]))[1] or moments([out])[1]
        noise = _detail(recipe.detail, out, cache.scratch).mul_(recipe.detail.scale * std)
        if watch:
            watch.filled(noise)
        # With identity maps `out` may be the source's own tensor, which must not change.
        out = torch.add(out, noise, out=None if is_identity(recipe.maps) else out)
    if recipe.match:
        own = _mates_moments(recipe, read, out, cache) if recipe.mates else moments([out])
        out = matched(out, own, _stack_moments(recipe.match, read, cache))
    if recipe.shift:
        out = out - recipe.shift
    if recipe.direction is not None:
        out = out * _lengthened(recipe.direction, read, out, cache)
    return out.to(dtype).contiguous()


def apply(
    x: Tensor,
    maps: TensorMap,
    watch: Watcher | None = None,
    compute: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    scratch: Scratch | None = None,
) -> Tensor:
    """Map every axis of `x`, in the order of least work (see `turn`).

    Args:
        compute: the dtype of the computation; None for that of `x`.
        dtype: of the result; None for `compute`.
        scratch: memory for intermediate tensors.
    """
    compute = compute or x.dtype
    dims = [dim for dim, axis in enumerate(maps) if not all(m.is_identity for segment in axis for m in segment)]
    order = sorted(dims, key=lambda dim: _turn(maps[dim]))
    for number, dim in enumerate(order, 1):
        between = partial(scratch.empty, number % 2) if scratch and number < len(order) else torch.empty
        x = apply_axis(x, dim, maps[dim], watch, compute, dtype if number == len(order) else None, between)
    return x if order else x.to(dtype or compute)


def _computed(stored: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(torch.promote_types(stored, dtype), torch.float32)


def _weighted_sum(recipe: Recipe, inputs: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """The sum of the inputs, in float32 or better; a single tensor of weight 1 is returned as it is stored."""
    pairs = zip(recipe.reads, inputs, strict=True)
    first, x = next(pairs)
    if len(recipe.reads) == 1 and first.weight == 1.0:
        return x
    total = torch.empty_like(x, dtype=_computed(x.dtype, dtype))
    add_into(total, x, first.weight, first=True)
    for read, x in pairs:
        total = total.to(_computed(x.dtype, total.dtype))
        add_into(total, x, read.weight, first=False)
    return total


def apply_axis(
    x: Tensor,
    dim: int,
    segments: tuple[Segment, ...],
    watch: Watcher | None = None,
    compute: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    empty: Callable[..., Tensor] = torch.empty,
) -> Tensor:
    """Map every segment of one axis, factor by factor, into memory from `empty`; dtypes as in `apply`."""
    if all(m.is_identity for segment in segments for m in segment):
        return x
    compute = compute or x.dtype
    ends = [math.prod(m.target for m in segment) for segment in segments]
    shape = (*x.shape[:dim], sum(ends), *x.shape[dim + 1 :])
    out = empty(shape, dtype=dtype or compute, device=x.device)
    pieces = torch.split(x, [math.prod(m.source for m in segment) for segment in segments], dim)
    for number, (piece, into) in enumerate(zip(pieces, torch.split(out, ends, dim), strict=True)):
        segment = segments[number]
        piece = _unflattened(piece, dim, [m.source for m in segment])
        into = _unflattened(into, dim, [m.target for m in segment])
        changed = [offset for offset, m in enumerate(segment) if not m.is_identity]
        for offset, axis_map in enumerate(segment):
            is_last = bool(changed) and offset == changed[-1]
            mapped = axis_map.apply(piece, dim + offset, into if is_last else None, compute)
            if watch:
                watch.mapped(dim, segments, (number, offset), piece, mapped)
            piece = mapped
        if not changed:
            into.copy_(piece)
    return out


def _lengthened(direction: Recipe, read: Callable[[Read], Tensor], like: Tensor, cache: Cache) -> Tensor:
    """The norms of a recipe's result relative to those of what it reads, in the shape of `like`."""
    dims = [dim for dim, length in enumerate(like.shape) if length == 1]
    result = run(direction, read, like.dtype, like.device, cache)
    before = _weighted_sum(direction, (read(each).to(like) for each in direction.reads), like.dtype)
    after, own = (x.square().sum(dims, keepdim=True).sqrt() for x in (result, before))
    return torch.where(own > 0, after / own.clamp_min(1e-300), 1.0)


def _stack_moments(stack: tuple[Read, ...], read: Callable[[Read], Tensor], cache: Cache) -> tuple[float, float]:
    """The mean and standard deviation of a whole source stack, computed once for all of its layers."""
    if stack not in cache.moments:
        cache.moments[stack] = moments(read(layer) for layer in stack)
    return cache.moments[stack]


def _mates_moments(recipe: Recipe, read: Callable[[Read], Tensor], like: Tensor, cache: Cache) -> tuple[float, float]:
    """The mean and standard deviation of a whole resized stack, computed once for all of its layers."""
    key = ("resized", *recipe.match)
    if key not in cache.moments:
        cache.moments[key] = moments(_mate(recipe, row, read, like) for row in recipe.mates)
    return cache.moments[key]


def _mate(recipe: Recipe, row: tuple[float, ...], read: Callable[[Read], Tensor], like: Tensor) -> Tensor:
    """One tensor of the resized stack, from its row of weights."""
    weighted = tuple(replace(layer, weight=weight) for layer, weight in zip(recipe.match, row, strict=True))
    inputs = (read(layer).to(like.device, like.dtype) for layer in recipe.match)
    return apply(_weighted_sum(replace(recipe, reads=weighted), inputs, like.dtype), recipe.maps)


def _detail(detail: Detail, like: Tensor, scratch: Scratch) -> Tensor:
    """Unit noise in the shape of `like`, in its detail bands; with `bands` in memory of `scratch`."""
    if detail.bands:
        shape = list(like.shape)
        shape[detail.dim] = _length(detail.bands, "source")
        inner = drawn(detail.kind, detail.seed_of(detail.layer), shape, like, partial(scratch.empty, "drawn"))
        return apply_axis(inner, detail.dim, detail.bands, empty=partial(scratch.empty, "noise"))
    noise = drawn(detail.kind, detail.seed_of(detail.layer), like.shape, like)
    low_band = noise
    if detail.layers:
        low_band = torch.zeros_like(noise)
        for layer, weight in detail.layers:
            low_band.add_(drawn(detail.kind, detail.seed_of(layer), like.shape, like), alpha=weight)
    return noise.sub_(apply(low_band, detail.visible))


def _unflattened(x: Tensor, dim: int, lengths: list[int]) -> Tensor:
    """A view in which an axis is split into several."""
    return x.view(*x.shape[:dim], *lengths, *x.shape[dim + 1 :]) if len(lengths) > 1 else x


def _turn(axis: tuple[Segment, ...]) -> float:
    return turn(_length(axis, "source"), _length(axis, "target"), max(m.work for segment in axis for m in segment))


def _length(axis: tuple[Segment, ...], side: str) -> int:
    return sum(math.prod(getattr(m, side) for m in segment) for segment in axis)


ROUNDING = 1e-9  # relative to the largest entry of a Gram matrix; rounding errors of a product of filters
FADED = 1e-7  # relative to the largest entry of a matrix; smaller entries change no figure of the report


@dataclass(frozen=True)
class Stretch:
    """How a map changes the length of the part of a tensor that it keeps.

    A map M (target x source) keeps the part of x in its row space, of energy ||P x||^2 with P = M^+ M. Only
    y = M x is measured, so the stretch of M must be undone. With the smaller of the two Gram matrices

        shrinking   G = M M^T:   ||P x||^2 = y^T G^-1 y = ||L^-1 y||^2 for G = L L^T,
        growing     G = M^T M:   P = I if G is regular, and x = G^-1 M^T y.

    If G = c I, as for whole levels of a wavelet, ||P x||^2 = ||y||^2 / c and no system is solved. If the rows of
    M are orthogonal, but not equally long (uneven groups, partial levels), one factor per row is needed.

    Attributes:
        squares: the sum of the squares of its matrix (Frobenius norm squared).
        undo: gives the energy of the kept part from the result: (target,) weights on the energy of its rows or,
            if weights are not enough, a map to apply to it.
        lossless: the map keeps all of x.
    """

    squares: float
    undo: Tensor | AxisMap
    lossless: bool = False

    @property
    def undo_map(self) -> AxisMap:
        """`undo` as a map."""
        return self.undo if isinstance(self.undo, AxisMap) else _rows_scaled(self.undo.sqrt())


class Stretches:
    """The stretch of every map, computed once for maps with equal entries."""

    def __init__(self) -> None:
        self._known: dict[bytes, Stretch] = {}
        self._by_object: dict[AxisMap, Stretch] = {}  # most tensors share their maps

    def of(self, axis_map: AxisMap) -> Stretch:
        if axis_map not in self._by_object:
            key = _digest(axis_map)
            if key not in self._known:
                self._known[key] = _stretch(axis_map)
            self._by_object[axis_map] = self._known[key]
        return self._by_object[axis_map]


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
        factor = 1 / largest if largest > 0 else 0.0
        return Stretch(squares, torch.full((axis_map.target,), factor, dtype=torch.float64), lossless)
    inverse = torch.where(dead, 0.0, 1 / diagonal)
    if not grows:
        return Stretch(squares, inverse)
    return Stretch(squares, axis_map.transposed().then(_rows_scaled(inverse)), lossless)


def _diagonal(axis_map: AxisMap, grows: bool) -> Tensor | None:
    """The diagonal of the Gram matrix G if G is diagonal, else None.

    A diagonal G has G 1 = d, its diagonal, and G v = d * v entry by entry. For a random v no other matrix has
    that property: sum_j G_ij (v_j - v_i) would be 0 by chance only.
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
    """The stretch of a map whose rows are not orthogonal, from a matrix R with R^T R = G^+."""
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
    """A matrix as a map. Inverses of bands fade with the distance from the diagonal; faded entries are left out."""
    kept = matrix.abs() > FADED * matrix.abs().max()
    return from_dense(torch.where(kept, matrix, 0.0).numpy())


def _digest(axis_map: AxisMap) -> bytes:
    digest = hashlib.blake2b(f"{axis_map.source} {axis_map.target}".encode(), digest_size=16)
    for band in axis_map.bands:
        parts = (band.index, band.weight) if isinstance(band, Band) else (band.matrix,)
        for part in parts:
            digest.update(f"{part.shape} {part.dtype}".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.digest()
