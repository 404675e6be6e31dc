"""How one target tensor is computed, layers summed with weights, then a map along every axis; and what maps keep."""

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

    The norm below gives x = w * z + b with z of mean 0 and spread 1. A norm on x sees
    (x - m) / s with m = mean(b), s^2 = mean(w^2) + var(b) up to the token's own fluctuation, so
    s / w and (m - b) / w give z again; the block's second norm, with w and b once more, gives x.
    Only the fluctuation of s times (b - m) / w is left, because that second norm rescales z.
    Channels with w close to 0 carry the constant b and nothing of z.
    """
    mean = bias.mean()
    spread = (weight.square().mean() + bias.var(correction=0)).sqrt()
    alive = weight.abs() > 1e-3 * weight.abs().mean()
    safe = torch.where(alive, weight, torch.ones_like(weight))
    zero = torch.zeros_like(weight)
    return {
        "weight": torch.where(alive, spread / safe, zero),
        "bias": torch.where(alive, (mean - bias) / safe, zero),
    }


@dataclass(frozen=True)
class Kept:
    """What the steps of one plan share: mean and spread of stacks measured already, memory for what lies between."""

    moments: dict[Hashable, tuple[float, float]] = field(default_factory=dict)
    scratch: Scratch = field(default_factory=Scratch)


def moments(tensors: Iterable[Tensor]) -> tuple[float, float]:
    """The mean and standard deviation of all entries together, one tensor at a time."""
    found = sum((sums(x) for x in tensors), Sums())
    return found.total / found.count, found.std


def matched(x: Tensor, own: tuple[float, float], wanted: tuple[float, float]) -> Tensor:
    # Below float32's resolution of the mean a spread is rounding: a constant stays a constant.
    scale = wanted[1] / own[1] if own[1] > 1e-6 * abs(own[0]) else 0.0
    return (x - own[0]) * scale + wanted[0]


def drawn(
    kind: str, seed: str, shape: Sequence[int], like: Tensor, empty: Callable[..., Tensor] = torch.empty
) -> Tensor:
    """Unit noise, "uniform" in [-1, 1] or "gaussian", in the dtype of `like`, the same for the same words of `seed`.

    Args:
        empty: gives the memory that is drawn into.
    """
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=7).digest(), "big"))
    made = empty(shape, dtype=torch.float32, device=torch.device("cpu"))
    if kind == "uniform":
        made.uniform_(-1.0, 1.0, generator=generator)
    else:
        made.normal_(generator=generator)
    return made.to(like.device, like.dtype)


# One map per factor of a segment; an axis is one or more segments; a tensor has one entry per axis.
Segment = tuple[AxisMap, ...]
TensorMap = tuple[tuple[Segment, ...], ...]


@dataclass(frozen=True)
class Detail:
    """Noise for the detail bands: drawn there, or everywhere less what is none.

    Attributes:
        kind: "gaussian" or "uniform".
        scale: in units of the low band's standard deviation.
        visible: target -> target projection, per axis, onto what is taken away again; not asked with `bands`.
        layers: row of the same projection over depth: target layer -> weight (empty: no depth).
        stack: all source layers, whose joint standard deviation counts (the paper's); empty: the
            result's own counts.
        seed: mixed with the tensor's name.
        name: the tensor's name with {layer} where its layer stands.
        layer: the target layer, None outside of the blocks.
        dim: the axis along which noise is drawn for the detail bands alone.
        bands: maps of that axis from what is drawn to the target; empty: all of the target is drawn.
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
        """The words that seed the noise of a layer of this stack."""
        return f"{self.seed}/{self.name}/{layer}"


@dataclass(frozen=True)
class Read:
    """A source tensor: its name with {layer} left open, its layer (None outside of the blocks), its weight."""

    name: str
    layer: int | None
    weight: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """What makes a target tensor out of the source tensors of the same rule.

    Attributes:
        reads: the source tensors it takes.
        maps: a map per factor, segment and axis.
        detail: noise for the empty bands, if any.
        undo: None sums what is read; "weight" or "bias" reads a norm's two tensors and makes the
            one of a norm that undoes it (see `undo_norm`).
        note: in words, for the plan.
        plus: recipes whose results are added, for methods that mix layers unit by unit.
        match: the result is shifted and scaled to the mean and spread that these tensors have together.
        shift: what is added to a tensor before it is mapped and taken away again: 1 for a norm that multiplies by
            one more than its weight.
        mates: rows of weights on `match`, one for each tensor of the result's own stack: the shift and
            scale are then those of that stack; empty: the result's own.
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

    @property
    def needs(self) -> tuple[Read, ...]:
        """All source tensors that are looked at, also for their mean and spread alone."""
        own = self.reads + (self.detail.stack if self.detail else ()) + self.match
        return tuple(dict.fromkeys(own + tuple(read for other in self.plus for read in other.needs)))

    @property
    def is_copy(self) -> bool:
        if len(self.reads) != 1 or self.reads[0].weight != 1.0 or self.undo or self.plus:
            return False
        return is_identity(self.maps) and self.detail is None


def is_identity(maps: TensorMap) -> bool:
    return all(m.is_identity for axis in maps for segment in axis for m in segment)


class Watcher(Protocol):
    """What is told how one target tensor comes about, in this order; it looks at tensors and keeps none."""

    def summed(self, signal: Tensor) -> None:
        """The layers that are read have been summed."""

    def mapped(self, dim: int, segments: tuple[Segment, ...], place: tuple[int, int], x: Tensor, out: Tensor) -> None:
        """One map of axis `dim` has been applied.

        Args:
            segments: all maps of that axis.
            place: the segment, and the factor in it.
            x: the segment before, with its factors as axes of their own from `dim` on.
            out: the same after.
        """

    def filled(self, noise: Tensor) -> None:
        """This noise is added for the detail bands."""


def run(
    recipe: Recipe,
    read: Callable[[Read], Tensor],
    dtype: torch.dtype,
    device: torch.device,
    kept: Kept | None = None,
    watch: Watcher | None = None,
) -> Tensor:
    """Compute a target tensor: read, upcast, sum layers, map axes, add detail, downcast once.

    Args:
        recipe: what to compute.
        read: gives the source tensor of a `Read`.
        dtype: of the result; the computation is in float32 or better.
        device: where the computation runs and the result lies.
        kept: between the calls for one plan.
        watch: is told how the result comes about; it changes nothing.
    """
    kept = kept or Kept()
    if recipe.is_copy:
        return read(recipe.reads[0]).to(device, dtype)
    inputs = (read(one).to(device) for one in recipe.reads)  # one at a time: a sum holds two tensors
    if recipe.undo:
        signal = undo_norm(*(x.to(_computed(x.dtype, dtype)) for x in inputs))[recipe.undo]
    else:
        signal = _weighted_sum(recipe, inputs, dtype)
    if recipe.shift:
        signal = signal.to(_computed(signal.dtype, dtype)) + recipe.shift * sum(read.weight for read in recipe.reads)
    if watch:
        watch.summed(signal)
    compute = _computed(signal.dtype, dtype)
    # Round only at the end: what is measured or added to is kept as it was computed.
    goes_on = recipe.detail or recipe.plus or recipe.match or recipe.shift or watch
    out = apply(signal, recipe.maps, watch, compute, compute if goes_on else dtype, kept.scratch)
    for other in recipe.plus:
        out = out + run(other, read, out.dtype, device, kept)
    if recipe.detail is not None:
        stack = recipe.detail.stack
        spread = (_stack_moments(stack, read, kept) if stack else moments([out]))[1] or moments([out])[1]
        noise = _detail(recipe.detail, out, kept.scratch).mul_(recipe.detail.scale * spread)
        if watch:
            watch.filled(noise)
        out = torch.add(out, noise, out=None if is_identity(recipe.maps) else out)  # it may be the source's own
    if recipe.match:
        own = _mates_moments(recipe, read, out, kept) if recipe.mates else moments([out])
        out = matched(out, own, _stack_moments(recipe.match, read, kept))
    if recipe.shift:
        out = out - recipe.shift
    return out.to(dtype).contiguous()


def apply(
    x: Tensor,
    maps: TensorMap,
    watch: Watcher | None = None,
    compute: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    scratch: Scratch | None = None,
) -> Tensor:
    """Map every axis of `x`, in the order of least work: first what shrinks most for its own work.

    Args:
        compute: the dtype that is computed in; None for that of `x`.
        dtype: of the result; None for `compute`.
        scratch: memory for what lies between two axes.
    """
    compute = compute or x.dtype
    dims = [dim for dim, axis in enumerate(maps) if not all(m.is_identity for one in axis for m in one)]
    order = sorted(dims, key=lambda dim: _turn(maps[dim]))
    for number, dim in enumerate(order, 1):
        between = partial(scratch.empty, number % 2) if scratch and number < len(order) else torch.empty
        x = apply_axis(x, dim, maps[dim], watch, compute, dtype if number == len(order) else None, between)
    return x if order else x.to(dtype or compute)


def _computed(stored: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(torch.promote_types(stored, dtype), torch.float32)


def _weighted_sum(recipe: Recipe, inputs: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """In float32 or better where anything is summed; a single tensor is left as it is stored."""
    pairs = zip(recipe.reads, inputs, strict=True)
    one, x = next(pairs)
    if len(recipe.reads) == 1 and one.weight == 1.0:
        return x
    total = torch.empty_like(x, dtype=_computed(x.dtype, dtype))
    add_into(total, x, one.weight, first=True)
    for one, x in pairs:
        total = total.to(_computed(x.dtype, total.dtype))
        add_into(total, x, one.weight, first=False)
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
    """Map every segment of one axis, factor by factor, into what `empty` gives; the dtypes are those of `apply`."""
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


def _stack_moments(stack: tuple[Read, ...], read: Callable[[Read], Tensor], kept: Kept) -> tuple[float, float]:
    if stack not in kept.moments:
        kept.moments[stack] = moments(read(one) for one in stack)
    return kept.moments[stack]


def _mates_moments(recipe: Recipe, read: Callable[[Read], Tensor], like: Tensor, kept: Kept) -> tuple[float, float]:
    """The mean and spread of a whole resized stack, made once for all of its layers."""
    key = ("resized", *recipe.match)
    if key not in kept.moments:
        kept.moments[key] = moments(_mate(recipe, row, read, like) for row in recipe.mates)
    return kept.moments[key]


def _mate(recipe: Recipe, row: tuple[float, ...], read: Callable[[Read], Tensor], like: Tensor) -> Tensor:
    weighted = tuple(replace(one, weight=weight) for one, weight in zip(recipe.match, row, strict=True))
    inputs = (read(one).to(like.device, like.dtype) for one in recipe.match)
    return apply(_weighted_sum(replace(recipe, reads=weighted), inputs, like.dtype), recipe.maps)


def _detail(detail: Detail, like: Tensor, scratch: Scratch) -> Tensor:
    """Unit noise in the shape of `like`, in its detail bands; with `bands` in memory of the scratch."""
    if detail.bands:
        shape = list(like.shape)
        shape[detail.dim] = _length(detail.bands, "source")
        inner = drawn(detail.kind, detail.seed_of(detail.layer), shape, like, partial(scratch.empty, "drawn"))
        return apply_axis(inner, detail.dim, detail.bands, empty=partial(scratch.empty, "noise"))
    own = drawn(detail.kind, detail.seed_of(detail.layer), like.shape, like)
    seen = own
    if detail.layers:
        seen = torch.zeros_like(own)
        for layer, weight in detail.layers:
            seen.add_(drawn(detail.kind, detail.seed_of(layer), like.shape, like), alpha=weight)
    return own.sub_(apply(seen, detail.visible))


def _unflattened(x: Tensor, dim: int, lengths: list[int]) -> Tensor:
    """A view in which an axis is several."""
    return x.view(*x.shape[:dim], *lengths, *x.shape[dim + 1 :]) if len(lengths) > 1 else x


def _turn(axis: tuple[Segment, ...]) -> float:
    return turn(_length(axis, "source"), _length(axis, "target"), max(m.work for segment in axis for m in segment))


def _length(axis: tuple[Segment, ...], side: str) -> int:
    return sum(math.prod(getattr(m, side) for m in segment) for segment in axis)


ROUNDING = 1e-9  # beside a Gram matrix's largest entry: what a product of filters misses zero by
FADED = 1e-7  # beside a matrix's largest entry: what no figure of the report shows


@dataclass(frozen=True)
class Stretch:
    """What a map does to the length of what it keeps.

    A map M (target x source) keeps the part of x that lies in its row space: ||P x||^2 with P = M^+ M.
    What is measured is y = M x, so M's own stretch has to be taken out again. With the small Gram matrix

        shrinking   G = M M^T:   ||P x||^2 = y^T G^-1 y = ||L^-1 y||^2 for G = L L^T,
        growing     G = M^T M:   P = I if G is regular, and x = G^-1 M^T y.

    Where G = c I, as for a wavelet's whole levels, ||P x||^2 = ||y||^2 / c and nothing is solved. Rows
    that are orthogonal, but not equally long (uneven groups, partial levels), need one factor a row.

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
