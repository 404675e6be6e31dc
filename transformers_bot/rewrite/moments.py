"""First and second moments of what modules read, measured on a few batches."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .calibration import See, watch


@dataclass
class Moments:
    """Mean and covariance of a vector, in float64."""

    mean: Tensor  # (unit,)
    covariance: Tensor  # (unit, unit)
    tokens: int | None = None  # how many were measured; None for an estimate

    def add(self, mean: Tensor, covariance: Tensor) -> None:
        """Take in an independent summand."""
        self.mean = self.mean + mean
        self.covariance.add_(covariance)

    def mapped(self, matrix: Tensor) -> "Moments":
        """Of `matrix @ x`."""
        return Moments(matrix @ self.mean, matrix @ self.covariance @ matrix.T, self.tokens)

    def uncentred(self) -> "Moments":
        """Mean 0 and second moments in place of the covariance."""
        second = self.covariance + torch.outer(self.mean, self.mean)
        return Moments(torch.zeros_like(self.mean), second, self.tokens)

    @property
    def size(self) -> Tensor:
        """Trace of the second moments, after the mean over units is taken away."""
        off = self.mean - self.mean.mean()
        return self.covariance.trace() - self.covariance.sum() / len(off) + off.square().sum()

    def normalised(self) -> "Moments":
        """After a norm: without the mean over units, of variance 1 over units on average."""
        mean = self.mean - self.mean.mean()
        scale = (self.size / len(mean)).clamp_min(1e-300)
        rows, columns = (self.covariance.mean(dim, keepdim=True) for dim in (1, 0))
        covariance = self.covariance - rows - columns + rows.mean()  # (I - 1 1^T / n) C (I - 1 1^T / n)
        return Moments(mean / scale.sqrt(), covariance / scale, self.tokens)


@dataclass(frozen=True)
class Seen:
    """What was measured while a source ran on a few batches.

    Attributes:
        norms: name of a norm -> what it normalises, every token at mean 0 and variance 1 over units.
        inputs: name of a linear module -> what it reads.
    """

    norms: Mapping[str, Moments]
    inputs: Mapping[str, Moments]


def measured(
    model: nn.Module,
    norms: Iterable[str],
    linear: Iterable[str],
    batches: Iterable[Mapping[str, Any]],
    also: Iterable[tuple[str, See]] = (),
) -> Seen:
    """Run the batches once, and measure what norms and linear modules read.

    Args:
        model: the source.
        norms, linear: names of modules; what is no linear module of this model is left out.
        batches: keyword arguments of the model, see `watch`.
        also: what else looks at the modules meanwhile.
    """
    named = dict(model.named_modules())
    behind, before = _Sums(_normalised), _Sums(lambda x: x)
    matrices = [name for name in linear if isinstance(named.get(name), (nn.Linear, Conv1D))]
    watched = [(name, behind.of(name)) for name in norms] + [(name, before.of(name)) for name in matrices]
    watch(model, [*watched, *also], batches)
    return Seen(behind.moments(), before.moments())


class _Sums:
    """First and second sums of what modules take in, once for modules that take in the same."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change
        self.sums: dict[str, tuple[Tensor, Tensor, int]] = {}
        self.owner: dict[str, str] = {}  # name of a module -> the first one that took in the same
        self.last: tuple[Tensor | None, str] = (None, "")

    def of(self, name: str) -> See:
        def see(given: Tensor, _made: Tensor, counted: Tensor | None) -> None:
            before, owner = self.last
            if given is before:  # queries, keys and values
                self.owner[name] = owner
                return
            self.last, self.owner[name] = (given, name), name
            x = self.change((given.flatten(0, -2) if counted is None else given[counted]).double())  # (token, unit)
            nothing = torch.zeros((), dtype=torch.float64)
            first, second, tokens = self.sums.get(name, (nothing, nothing, 0))
            self.sums[name] = (first + x.sum(0).cpu(), second + (x.T @ x).cpu(), tokens + len(x))

        return see

    def moments(self) -> dict[str, Moments]:
        found: dict[str, Moments] = {}
        for name in list(self.sums):
            first, second, tokens = self.sums.pop(name)
            mean = first / tokens
            found[name] = Moments(mean, second.div_(tokens).sub_(torch.outer(mean, mean)), tokens)
        return {name: found[owner] for name, owner in self.owner.items()}


def _normalised(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-300)
