"""The protocol of a resizing method: sizes in, one recipe per target tensor out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..architectures import Adapter
from ..architectures.axes import Rule
from ..errors import BadOption
from ..ops.recipe import Recipe
from ..rewrite import Opened


@dataclass(frozen=True)
class Task:
    """What a method may know: two lists of sizes and the facts that decide gains. No weights.

    Attributes:
        adapter: the architecture.
        source: role -> length in the source.
        target: role -> length in the target.
        tied: the output embedding is the input embedding, so one matrix is written and read.
        scaled_scores: attention scores are divided by sqrt(head_dim).
        calibrated: the source may be run on a few batches first.
    """

    adapter: Adapter
    source: dict[str, int | None]
    target: dict[str, int | None]
    tied: bool
    scaled_scores: bool = True
    calibrated: bool = False

    def lengths(self, role: str) -> tuple[int, int]:
        source, target = self.source[role], self.target[role]
        if source is None or target is None:
            raise KeyError(f"role {role!r} has a length only in its tensor")
        return source, target

    def ratio(self, role: str) -> float:
        source, target = self.lengths(role)
        return target / source

    @property
    def reheaded(self) -> bool:
        """Another head count at equal width."""
        return self.ratio("hidden") == 1 and self.ratio("heads") != 1

    def score_gain(self, reads: bool) -> float:
        """Queries and keys share what keeps the score q k / sqrt(head_dim) when head_dim changes by g.

        Keys read what queries write; their map carries 1/g already, so g^(-1/4) is left on one side
        and g^(3/4) on the other.
        """
        power = -0.25 if self.scaled_scores else -0.5
        return float(self.ratio("score") ** (power + 1 if reads else power))


@dataclass(frozen=True)
class Fresh:
    """A target tensor that a method leaves to transformers' own initialisation, and why."""

    reason: str


class AsStored:
    """For methods that take the source's tensors as they are."""

    name: str

    def prepare(self, task: Task, opened: Opened) -> tuple[Any, Mapping[str, Tensor]]:
        if opened.calibration is not None:
            raise BadOption(f"calibration= is for method='bot' and 'importance'; {self.name!r} has no use for it.")
        return self, opened.network


class Method(Protocol):
    """A way to resize. Registering a new one takes one file and one line in `methods/__init__`."""

    name: str

    def check(self, task: Task) -> None:
        """Raise `BadOption` if the method's formula does not cover this direction, ratio or family."""

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        """How the target tensor `name` (its {layer} left open) of `rule` is made."""

    def prepare(self, task: Task, opened: Opened) -> "tuple[Method, Mapping[str, Tensor]]":
        """Look at the opened source once before the plan: the method as it then is, and the tensors to read."""

    def config_fields(self, task: Task, config: Any) -> dict[str, Any]:
        """Fields of the target config that the method's formula sets (LEMON's norm epsilon), usually none."""

    def describe(self, task: Task) -> dict[str, Any]:
        """The choices the method made, for provenance and the plan."""

    def warnings(self, task: Task) -> list[str]:
        """What a user should know before running it."""
