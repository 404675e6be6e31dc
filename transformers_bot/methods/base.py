"""The protocol of a resizing method: sizes in, one recipe per target tensor out."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..adapters import Adapter
from ..axes import Rule
from ..maps import AxisMap
from ..recipe import Recipe


@dataclass(frozen=True)
class Task:
    """What a method may know: two lists of sizes and the facts that decide gains. No weights.

    Attributes:
        adapter: the architecture.
        source: role -> length in the source.
        target: role -> length in the target.
        tied: the output embedding is the input embedding, so one matrix is written and read.
        scaled_scores: attention scores are divided by sqrt(head_dim).
    """

    adapter: Adapter
    source: dict[str, int | None]
    target: dict[str, int | None]
    tied: bool
    scaled_scores: bool = True

    def lengths(self, role: str) -> tuple[int, int]:
        source, target = self.source[role], self.target[role]
        if source is None or target is None:
            raise KeyError(f"role {role!r} has a length only in its tensor")
        return source, target

    def ratio(self, role: str) -> float:
        source, target = self.lengths(role)
        return target / source


@dataclass(frozen=True)
class Pair:
    """How a role is resized where it is written (`produce`) and where it is read (`consume`).

    Growing keeps the function where `consume.T @ produce` is the identity, shrinking where
    `produce @ consume.T` is (methods of one family of linear maps: W_t = R W_s C^T).
    """

    produce: AxisMap
    consume: AxisMap
    label: str = ""

    def swapped(self) -> "Pair":
        return Pair(self.consume, self.produce, self.label)


@dataclass(frozen=True)
class Depth:
    """Which source layers make up each target layer: (target, source) matrices.

    `updates` is for the tensors that write onto the residual stream, `layers` for all others.
    """

    layers: np.ndarray
    updates: np.ndarray
    label: str = ""


class Method(Protocol):
    """A way to resize. Registering a new one takes one file and one line in `methods/__init__`."""

    name: str

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe:
        """How the target tensor `name` (its {layer} left open) of `rule` is made."""

    def describe(self, task: Task) -> dict[str, Any]:
        """The choices the method made, for provenance and the plan."""

    def warnings(self, task: Task) -> list[str]:
        """What a user should know before running it."""
