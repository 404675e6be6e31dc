"""Arithmetic over large tensors in blocks: memory for intermediate results, products, sums of squares."""

import contextlib
import math
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 22  # entries; larger blocks exceed the cache, in smaller ones the calls take longer than the sums

HELD = 32 << 20  # bytes; larger tensors are few, and the memory to hold one outweighs the time for its pages


class Scratch:
    """Memory for intermediate tensors, which one step after another reuses.

    If every step allocated and freed it, the results, which are kept, would take the freed memory, and every
    step would need new pages, at about a microsecond for 4 KiB.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[Hashable, torch.dtype], Tensor] = {}

    def empty(self, use: Hashable, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor, which is valid until the next call for the same `use`."""
        count = math.prod(shape)
        if device.type != "cpu" or count * dtype.itemsize > HELD:
            self._held.clear()  # no other memory is held beside the largest tensors
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
        """Whether every target entry is a copy of a source entry, which needs no wider dtype."""

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
            result = torch.empty(into.shape, dtype=compute, device=x.device)
            form.run(part, dim, result)
            into.copy_(result)
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
    """`x` in float32 if its dtype is narrower, else itself."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def blocks(source: Sequence[int], target: Sequence[int], dim: int = -1) -> Iterator[tuple[slice, ...]]:
    """Slices that cut tensors of both shapes into blocks, along all axes except `dim`, the first axes first."""
    sizes = [max(pair) for pair in zip(source, target, strict=True)]
    steps = list(sizes)
    for axis in range(len(sizes)):
        if axis != dim:
            rest = math.prod(steps) // max(1, steps[axis])
            steps[axis] = min(sizes[axis], max(1, BLOCK // max(1, rest)))
    ranges = [range(0, size, max(1, step)) for size, step in zip(sizes, steps, strict=True)]
    for number in np.ndindex(*(len(starts) for starts in ranges)):
        block = [starts[i] for starts, i in zip(ranges, number, strict=True)]
        yield tuple(
            slice(None) if axis == dim else slice(start, start + steps[axis]) for axis, start in enumerate(block)
        )


def placed(owner: Hashable, field: str, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """An array of a map as a tensor; copied to a GPU only once, because the copy waits for all work before it."""
    if device.type == "cpu":
        return torch.from_numpy(np.ascontiguousarray(getattr(owner, field))).to(dtype=dtype)
    return _copied(owner, field, device, dtype)


def forget_placed() -> None:
    """Free the arrays that `placed` has copied to devices."""
    _copied.cache_clear()


@lru_cache(maxsize=64)
def _copied(owner: Hashable, field: str, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(getattr(owner, field))).to(device=device, dtype=dtype)


LEAF = 256  # up to this number of units a Gram matrix is computed whole, not by half and mirrored
PIECE = 4096  # rows that are computed at a time before they are copied to the result
_LOCK = threading.Lock()
_INSIDE: dict[str, tuple[int, str]] = {}  # kind of device -> callers inside `exact_products`, precision before them
SMALL = 2**16  # multiply-adds; for smaller products the call would cost more than the product
# The kernel that torch's compiler calls for a linear layer; a build of torch without oneDNN has none. Private: its
# signature was read in torch 2.4 and 2.13. Not in `compat`, because wavelets alone need no transformers.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b.T` of two matrices of one dtype, in that dtype and in its full precision."""
    with exact_products(a.device):
        if not _by_onednn(a, b):
            return torch.matmul(aligned(a), aligned(b).T, out=out)
        if out is None:
            return _onednn(a, b)
        for rows, into in zip(torch.split(a, PIECE), torch.split(out, PIECE), strict=True):
            into.copy_(_onednn(rows, b))
        return out


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """`matrix @ vector`, computed with the vector first, so that a transposed matrix is not copied."""
    return product(vector[None], matrix)[0]


def aligned(x: Tensor) -> Tensor:
    """`x` at an aligned address: BLAS rounds products differently at others, and an address depends on the file."""
    return x if x.data_ptr() % 64 == 0 else x.clone()


def along(matrix: Tensor, x: Tensor, dim: int, out: Tensor) -> Tensor:
    """`matrix` (target, source) times axis `dim` of `x` into `out`, in the dtype of all three."""
    target, source = matrix.shape
    if dim == x.dim() - 1:
        flat, into = x.reshape(-1, source), out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype)
        product(flat, matrix, into.view(-1, target))
        return out if into is out else out.copy_(into)
    moved = x.movedim(dim, 0)
    mapped = product(matrix, moved.reshape(source, -1).T)
    return out.copy_(mapped.view(target, *moved.shape[1:]).movedim(0, dim))


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Compute products of float32 matrices in full precision, whatever the caller's setting (TF32, bfloat16).

    The setting is shared by all threads: the first one inside changes it, the last one to leave restores it.
    """
    kind = "cuda" if device.type == "cuda" else "mkldnn"
    with _LOCK:
        inside, before = _INSIDE.get(kind, (0, ""))
        _INSIDE[kind] = (inside + 1, before if inside else _set_exact(kind))
    try:
        yield
    finally:
        with _LOCK:
            inside, before = _INSIDE[kind]
            _INSIDE[kind] = (inside - 1, before)
            if inside == 1 and before:
                _set_precision(kind, before)


def _set_exact(kind: str) -> str:
    """Set full precision; return the setting before, empty if that was full precision."""
    holder = _holder(kind)
    before: str = holder.fp32_precision if holder else torch.get_float32_matmul_precision()
    if before in ("ieee", "none", "highest"):
        return ""
    _set_precision(kind, "ieee" if holder else "highest")
    return before


def _set_precision(kind: str, precision: str) -> None:
    holder = _holder(kind)
    if holder is None:
        torch.set_float32_matmul_precision(precision)
        return
    holder.fp32_precision = "none"  # "none": the setting for all devices holds for this one
    if holder.fp32_precision != precision:
        holder.fp32_precision = precision


def _holder(kind: str) -> Any:
    """The object with the setting of one device; None before torch 2.9, which has one setting for all devices."""
    holder = getattr(getattr(torch.backends, kind), "matmul", None)
    return holder if hasattr(holder, "fp32_precision") else None


def add_gram(total: Tensor, x: Tensor, factor: float = 1.0) -> None:
    """Add `factor * x @ x.T` to the blocks of `total` on and above its diagonal; `mirrored` fills the others."""
    count = len(x)
    if count <= LEAF:
        total.add_(product(x, x), alpha=factor)
        return
    half = count // 2
    add_gram(total[:half, :half], x[:half], factor)
    add_gram(total[half:, half:], x[half:], factor)
    total[:half, half:].add_(product(x[:half], x[half:]), alpha=factor)


def mirrored(total: Tensor) -> Tensor:
    """`total` with the part above its diagonal copied below it, so that it is exactly symmetric."""
    for start in range(0, len(total), LEAF):
        stop = start + LEAF
        block = total[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)
        total[stop:, start:stop] = total[start:stop, stop:].T.contiguous()
    return total


def gram(x: Tensor) -> Tensor:
    """`x @ x.T`, exactly symmetric."""
    total = x.new_zeros(len(x), len(x))
    add_gram(total, x.contiguous())
    return mirrored(total)


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    # It reads transposed matrices without a copy; with other strides it would be a thousand times slower.
    b = b if b.T.is_contiguous() else b.contiguous()
    result: Tensor = _ONEDNN(a.detach().contiguous(), b.detach(), None, "none", [], "")  # type: ignore[misc]
    return result


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    if _ONEDNN is None or a.dtype != torch.float32 or a.device.type != "cpu" or len(a) * b.numel() < SMALL:
        return False
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)  # type: ignore[no-untyped-call]


FLOAT64_UP_TO = 1 << 16  # entries; sums of so few are computed in float64
FAINT = 1e-30  # below this mean square, squares are too small for float32
ROW, CACHED = 1 << 10, 1 << 18  # entries of a row, and of a block that fits into a core's cache


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
        """Whether every entry is finite."""
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
    x = _as_stored(x.detach()).reshape(-1)
    if x.numel() <= FLOAT64_UP_TO:
        x = x.cpu().double()
        return Sums(x.numel(), float(x.sum()), float(x.square().sum()))
    rows = x[: x.numel() // ROW * ROW].view(-1, ROW)
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = _row_sums(rows, dtype)
    if not FAINT * total.count < total.squares < math.inf:  # squares may be too large, or too small, for float32
        total = _row_sums(rows, torch.float64)
    return total + sums(x[rows.numel() :])


def _row_sums(rows: Tensor, dtype: torch.dtype) -> Sums:
    totals, norms = [], []
    blocks, buffer = _cached_blocks(rows), None
    for block in blocks:
        if block.dtype != dtype and block.device.type == "cpu":
            # One buffer for all blocks: new memory for each would cost page faults.
            buffer = torch.empty_like(blocks[0], dtype=dtype) if buffer is None else buffer
            block = buffer[: len(block)].copy_(block)
        totals.append(block.sum(dim=1, dtype=dtype))
        norms.append(torch.linalg.vector_norm(block, dim=1, dtype=dtype))
    return Sums(rows.numel(), float(_joined(totals).sum()), float(_joined(norms).square().sum()))


def energy(x: Tensor, weights: Mapping[int, Tensor] | None = None) -> float:
    """The sum of squares of all entries, weighted along some axes.

    Args:
        weights: axis -> (length,), at least 0; they are applied to one block of `x` at a time.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    squares = _energy(x, weights, compute)
    in_range = FAINT * x.numel() < squares < math.inf
    return squares if in_range or compute == torch.float64 else _energy(x, weights, torch.float64)


def length_of(x: Tensor) -> float:
    """The Euclidean norm of all entries, which may be of any magnitude."""
    norm = float(torch.linalg.vector_norm(x))
    in_range = FAINT * x.numel() < norm * norm < math.inf
    return norm if in_range else float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _energy(x: Tensor, weights: Mapping[int, Tensor] | None, compute: torch.dtype) -> float:
    weights = weights or {}
    uneven = {axis: weight for axis, weight in weights.items() if float(weight.min()) != float(weight.max())}
    scale = math.prod(float(weight[0]) for axis, weight in weights.items() if axis not in uneven)
    flat = _as_stored(x)
    if uneven or not flat.is_contiguous():  # a part of a larger tensor is not copied to be flat
        return scale * _uneven_energy(x, uneven, compute)
    flat = flat.reshape(-1)
    rows = flat[: x.numel() // ROW * ROW].view(-1, ROW)
    norms = [torch.linalg.vector_norm(block.to(compute), dim=1) for block in _cached_blocks(rows)]
    return scale * (float(_joined(norms).square().sum()) + sums(flat[rows.numel() :]).squares)


def _uneven_energy(x: Tensor, weights: Mapping[int, Tensor], compute: torch.dtype) -> float:
    """Weight the entries along the last axis, then their norms along the other axes."""
    if x.dim() == 1:
        x, weights = x[None], {1: weights[0]}
    factors = {axis: weight.sqrt().to(x.device, compute) for axis, weight in weights.items()}
    last = factors.pop(x.dim() - 1, None)
    parts, start = [], 0
    for block in _cached_blocks(x):
        norms = torch.linalg.vector_norm((block if last is None else block * last).to(compute), dim=-1)
        for axis, factor in factors.items():
            own = factor[start : start + len(block)] if axis == 0 else factor
            norms = norms * own.view([-1 if dim == axis else 1 for dim in range(norms.dim())])
        parts.append(norms)
        start += len(block)
    return float(_joined(parts).square().sum())


def _cached_blocks(x: Tensor) -> tuple[Tensor, ...]:
    """`x` cut along its first axis, so that a block stays in a core's cache; whole on other devices."""
    length = CACHED * len(x) // max(1, x.numel()) if x.device.type == "cpu" else len(x)
    return torch.split(x, max(1, length))


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts]).cpu().double()


def _as_stored(x: Tensor) -> Tensor:
    """The same entries in their order in memory, which is the fastest and does not matter for sums."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return x.permute(order)
