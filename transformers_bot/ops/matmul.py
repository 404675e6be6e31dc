"""Products of large matrices on the CPU, through the faster of the two libraries that torch comes with.

torch multiplies float32 matrices with MKL, which leaves the wide vector units of CPUs that are not Intel's
unused: two cores of an AMD Zen 5 add up 95e9 products a second with it and 200e9 with oneDNN.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

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
