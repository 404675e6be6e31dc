"""Arithmetic over large tensors, block by block: memory for what lies between, and products."""

import contextlib
import math
import threading
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 22  # entries: larger ones leave the cache, in smaller ones the calls take longer than the sums

HELD = 32 << 20  # bytes: of larger tensors there are few, and holding one would cost more memory than its pages time


class Scratch:
    """Memory for tensors that lie between two maps, used by one step after another.

    Freed one by one they would come from fresh pages in every step, at a microsecond for 4 KiB: results, which
    stay, move into what was freed before.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[Hashable, torch.dtype], Tensor] = {}

    def empty(self, use: Hashable, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of any content, which is valid until the next one for the same `use`."""
        count = math.prod(shape)
        if device.type != "cpu" or count * dtype.itemsize > HELD:
            self._held.clear()  # at the largest tensors nothing else is held
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


def at_least_float32(x: Tensor) -> Tensor:
    """What is computed with instead of `x`: itself, unless its dtype is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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


LEAF = 256  # units whose products with each other are computed both ways, rather than half and mirrored
PIECE = 4096  # rows that are made at a time, before they go where they belong
_LOCK = threading.Lock()
_INSIDE: dict[str, tuple[int, str]] = {}  # kind of device -> how many are inside, and what was set before
SMALL = 2**16  # multiply-adds below which the call would outweigh the product
# What torch's compiler calls for a linear layer; a build of torch without oneDNN has none. Private, read in torch 2.4
# and 2.13; not in `compat`, because wavelets alone need no transformers.
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
    """`matrix @ vector`, the vector first: so the matrix is read as it lies, where it is transposed, too."""
    return product(vector[None], matrix)[0]


def aligned(x: Tensor) -> Tensor:
    """Where a tensor lies in its file must not change the last bit of a product (BLAS looks at addresses)."""
    return x if x.data_ptr() % 64 == 0 else x.clone()


def along(matrix: Tensor, x: Tensor, dim: int, out: Tensor) -> Tensor:
    """`matrix` (target, source) times axis `dim` of `x` into `out`, in the dtype of all three."""
    target, source = matrix.shape
    if dim == x.dim() - 1:
        flat, into = x.reshape(-1, source), out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype)
        product(flat, matrix, into.view(-1, target))
        return out if into is out else out.copy_(into)
    moved = x.movedim(dim, 0)
    made = product(matrix, moved.reshape(source, -1).T)
    return out.copy_(made.view(target, *moved.shape[1:]).movedim(0, dim))


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products of float32 matrices in full precision, whatever the caller allows its own (TF32, bfloat16).

    The setting is one for all threads: the first that comes in makes it, the last that leaves takes it back.
    """
    kind = "cuda" if device.type == "cuda" else "mkldnn"
    with _LOCK:
        inside, before = _INSIDE.get(kind, (0, ""))
        _INSIDE[kind] = (inside + 1, before if inside else _made_exact(kind))
    try:
        yield
    finally:
        with _LOCK:
            inside, before = _INSIDE[kind]
            _INSIDE[kind] = (inside - 1, before)
            if inside == 1 and before:
                _allow(kind, before)


def _made_exact(kind: str) -> str:
    """Ask for full precision; what was asked for before, empty where it was that."""
    holder = _holder(kind)
    before: str = holder.fp32_precision if holder else torch.get_float32_matmul_precision()
    if before in ("ieee", "none", "highest"):
        return ""
    _allow(kind, "ieee" if holder else "highest")
    return before


def _allow(kind: str, precision: str) -> None:
    holder = _holder(kind)
    if holder is None:
        torch.set_float32_matmul_precision(precision)
        return
    holder.fp32_precision = "none"  # what is asked for all devices then holds for this one
    if holder.fp32_precision != precision:
        holder.fp32_precision = precision


def _holder(kind: str) -> Any:
    """Where one device's setting is; None before torch 2.9, which has one for all."""
    found = getattr(getattr(torch.backends, kind), "matmul", None)
    return found if hasattr(found, "fp32_precision") else None


def add_gram(total: Tensor, x: Tensor, factor: float = 1.0) -> None:
    """Add `factor * x @ x.T` to blocks of `total` on and above its diagonal; `mirrored` fills the others."""
    count = len(x)
    if count <= LEAF:
        total.add_(product(x, x), alpha=factor)
        return
    half = count // 2
    add_gram(total[:half, :half], x[:half], factor)
    add_gram(total[half:, half:], x[half:], factor)
    total[:half, half:].add_(product(x[:half], x[half:]), alpha=factor)


def mirrored(total: Tensor) -> Tensor:
    """`total` with what stands above its diagonal below it, too: symmetric to the last bit."""
    for start in range(0, len(total), LEAF):
        stop = start + LEAF
        block = total[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)
        total[stop:, start:stop] = total[start:stop, stop:].T.contiguous()
    return total


def gram(x: Tensor) -> Tensor:
    """`x @ x.T`, symmetric to the last bit."""
    total = x.new_zeros(len(x), len(x))
    add_gram(total, x.contiguous())
    return mirrored(total)


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    # It reads a transposed matrix as it lies; for other strides it takes a loop a thousand times slower.
    b = b if b.T.is_contiguous() else b.contiguous()
    made: Tensor = _ONEDNN(a.detach().contiguous(), b.detach(), None, "none", [], "")  # type: ignore[misc]
    return made


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    if _ONEDNN is None or a.dtype != torch.float32 or a.device.type != "cpu" or len(a) * b.numel() < SMALL:
        return False
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)  # type: ignore[no-untyped-call]


ROUNDING = 1e-9  # beside a Gram matrix's largest entry: what a product of filters misses zero by
FADED = 1e-7  # beside a matrix's largest entry: what no figure of the report shows
