"""What recipes measure and draw: moments of stacks, and seeded noise."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .blocks import Scratch
from .energy import Sums, sums


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
