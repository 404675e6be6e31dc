"""The data and metrics of a task: one `Task` per `task:` entry of a suite."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Tensor]


class MissingData(FileNotFoundError):
    """A data set is not on this machine; the message names the folder."""


@dataclass(frozen=True)
class Task:
    """Training batches, an evaluation, and the settings that the target needs.

    Attributes:
        factory: the task class of transformers_bot, by name.
        higher: metric -> whether more is better. All metrics that `evaluate` returns are here.
        batches: seed and batch size -> endless training batches, the same for every method.
        evaluate: a wrapped model -> its metrics, always on the same samples.
        fields: of the target's config that the task decides, such as the number of labels.
        wrap: a model -> a module whose output on a batch has a `loss`; the model itself if it has one.
        probe: a wrapped model -> the metrics of a ridge classifier on its frozen features: what a model
            with a fresh head knows before training. None where no head is fresh.
    """

    factory: str
    higher: dict[str, bool]
    batches: Callable[[int, int], Iterator[Batch]]
    evaluate: Callable[[Any], dict[str, float]]
    fields: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[Any], Any] = lambda model: model
    probe: Callable[[Any], dict[str, float]] | None = None


def need(path: Path) -> Path:
    """The path, if it exists."""
    if not path.exists():
        raise MissingData(
            f"{path} is not there; give the folder of the research data by --data or TRANSFORMERS_BOT_DATA."
        )
    return path


def on(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of the model's parameters."""
    return next(model.parameters()).device


def ridge(features: Tensor, labels: Tensor, unseen: Tensor, strength: float = 1.0) -> Tensor:
    """Class scores of `unseen` features by a ridge classifier on standardised `features` (samples, width)."""
    mean, spread = features.mean(0), features.std(0).clamp(min=1e-6)
    known, new = ((x.double() - mean) / spread for x in (features, unseen))
    wanted = torch.nn.functional.one_hot(labels).double()
    penalty = strength * len(known) * torch.eye(known.shape[1], dtype=torch.double)
    weights = torch.linalg.solve(known.T @ known + penalty, known.T @ (wanted - wanted.mean(0)))
    return new @ weights + wanted.mean(0)
