"""First and second moments of what modules read, measured on a few batches."""

from collections.abc import Iterable, Mapping
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

    def add(self, mean: Tensor, covariance: Tensor) -> None:
        """Take in an independent summand."""
        self.mean, self.covariance = self.mean + mean, self.covariance + covariance

    def mapped(self, matrix: Tensor) -> "Moments":
        """Of `matrix @ x`."""
        return Moments(matrix @ self.mean, matrix @ self.covariance @ matrix.T)

    def uncentred(self) -> "Moments":
        """Mean 0 and second moments in place of the covariance."""
        return Moments(torch.zeros_like(self.mean), self.covariance + torch.outer(self.mean, self.mean))

    def normalised(self) -> "Moments":
        """After a norm: without the mean over units, of variance 1 over units on average."""
        length = len(self.mean)
        centre = torch.eye(length, dtype=self.mean.dtype) - 1 / length
        centred = self.mapped(centre)
        scale = (centred.uncentred().covariance.trace() / length).clamp_min(1e-300)
        return Moments(centred.mean / scale.sqrt(), centred.covariance / scale)


@dataclass
class _Sums:
    first: Tensor
    second: Tensor
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        """Take in x (token, unit)."""
        self.first, self.second = self.first + x.sum(0).cpu(), self.second + (x.T @ x).cpu()
        self.tokens += len(x)

    def moments(self) -> Moments:
        mean = self.first / max(self.tokens, 1)
        return Moments(mean, self.second / max(self.tokens, 1) - torch.outer(mean, mean))


def measured_norms(model: nn.Module, norms: list[str], batches: Iterable[Mapping[str, Any]]) -> list[Moments]:
    """Moments of what each norm normalises, every token brought to mean 0 and variance 1 over units.

    Args:
        model: the source.
        norms: the names of its norm modules, in the order in which the moments are wanted.
        batches: keyword arguments of the model, see `watch`.
    """

    def normalised(x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-300)

    found = _measured(model, dict.fromkeys(norms, normalised), batches)
    return [found[name] for name in norms]


def measured_inputs(
    model: nn.Module, modules: Iterable[str], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Moments]:
    """Moments of what linear modules read; names that are none in this model are left out."""
    named = dict(model.named_modules())
    linear = [name for name in modules if isinstance(named.get(name), (nn.Linear, Conv1D))]
    return _measured(model, {name: lambda x: x for name in linear}, batches)


def _measured(model: nn.Module, looked: Mapping[str, Any], batches: Iterable[Mapping[str, Any]]) -> dict[str, Moments]:
    sums: dict[str, _Sums] = {}

    def look(name: str) -> See:
        def see(given: Tensor, _made: Tensor, counted: Tensor | None) -> None:
            x = looked[name](given.flatten(0, -2) if counted is None else given[counted])  # (token, unit)
            nothing = torch.zeros((), dtype=torch.float64)
            sums.setdefault(name, _Sums(nothing, nothing)).add(x)

        return see

    watch(model, [(name, look(name)) for name in looked], batches)
    return {name: one.moments() for name, one in sums.items()}
