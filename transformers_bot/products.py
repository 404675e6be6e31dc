"""Products of large matrices on the CPU, through the faster of the two libraries that torch comes with.

torch multiplies float32 matrices with MKL, which leaves the wide vector units of CPUs that are not Intel's
unused: one core of an AMD Zen 5 does 90 GFlop/s with it and 180 with oneDNN, copies counted.
"""

import torch
from torch import Tensor
from torch.nn import functional

LEAF = 512  # units whose products with each other are computed both ways, rather than half and mirrored
SMALL = 2**20  # multiply-adds below which copies would outweigh the product


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` of two matrices of one dtype, in that dtype."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and len(a) * b.numel() >= SMALL and _has_mkldnn():
        made: Tensor = functional.linear(_packed(a), _packed(b)).to_dense()
        return made
    return a @ b.T


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add `x @ x.T` to blocks of `total` on and above its diagonal; `mirrored` fills the others."""
    count = len(x)
    if count <= LEAF:
        total.add_(product(x, x))
        return
    half = count // 2
    add_gram(total[:half, :half], x[:half])
    add_gram(total[half:, half:], x[half:])
    total[:half, half:].add_(product(x[:half], x[half:]))


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


def _packed(x: Tensor) -> Tensor:
    return x.detach().contiguous().to_mkldnn()


def _has_mkldnn() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)  # type: ignore[no-untyped-call]
