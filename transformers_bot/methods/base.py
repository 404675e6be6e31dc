"""The protocol of a resizing method: sizes in, one recipe per target tensor out."""

from dataclasses import dataclass
from typing import Any, Protocol

from ..adapters import Adapter
from ..axes import Rule
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


class Method(Protocol):
    """A way to resize. Registering a new one takes one file and one line in `methods/__init__`."""

    name: str

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe:
        """How the target tensor `name` (its {layer} left open) of `rule` is made."""

    def describe(self, task: Task) -> dict[str, Any]:
        """The choices the method made, for provenance and the plan."""

    def warnings(self, task: Task) -> list[str]:
        """What a user should know before running it."""
