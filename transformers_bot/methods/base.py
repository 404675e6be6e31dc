"""The protocol of a resizing method: sizes in, one recipe per target tensor out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..architectures import Adapter
from ..architectures.axes import Factor, Rule
from ..architectures.roles import Roles
from ..architectures.sizes import cut_across
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
        gains: what the forward pass multiplies by in the target, relative to the source, see `Adapter.gains`.
        calibrated: the source may be run on a few batches first.
    """

    adapter: Adapter
    source: dict[str, int | None]
    target: dict[str, int | None]
    tied: bool
    gains: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = False

    @property
    def roles(self) -> Roles:
        """The roles of the architecture, by name and by kind."""
        return self.adapter.roles

    def lengths(self, role: str) -> tuple[int, int]:
        """A role's length in source and target."""
        source, target = self.source[role], self.target[role]
        if source is None or target is None:
            raise KeyError(f"role {role!r} has a length only in its tensor")
        return source, target

    def ratio(self, role: str) -> float:
        """A role's length in the target, relative to the source."""
        source, target = self.lengths(role)
        return target / source

    def is_sized(self, role: str) -> bool:
        """Whether configs tell the role's length, on both sides."""
        return self.source.get(role) is not None and self.target.get(role) is not None

    def changes(self, *kinds: str) -> tuple[str, ...]:
        """The roles of these kinds whose length differs."""
        return tuple(role for role in self.roles.of(*kinds) if self.is_sized(role) and self.ratio(role) != 1)

    def segment_lengths(self, segment: tuple[Factor, ...]) -> tuple[int, int]:
        """The length of a product of factors in source and target."""
        source = target = 1
        for factor in segment:
            before, after = self.lengths(factor.role) if factor.role else (factor.size or 1, factor.size or 1)
            source, target = source * before, target * after
        return source, target

    @property
    def cut_across(self) -> list[str]:
        """Units such as heads that get more or fewer, but that have as many entries together as before."""
        return cut_across(self.roles, self.source, self.target)

    def score_gain(self, role: str, reads: bool) -> float:
        """What the writing (or reading) side of a score takes so that the score stays as it is.

        A score sums over the entries of `role`, of which the target has r times as many, and is then
        multiplied by a factor that becomes s times as large, r^(-1/2) unless the architecture says
        otherwise. Copies on either side make it r s times as large, so each side takes (r s)^(-1/2); the
        maps of the reading side carry 1/r already, which it takes back.
        """
        ratio, scale = self.ratio(role), self.gains.get(role)
        power = -0.25 if scale is None else -0.5
        gain = float(ratio ** (power + 1 if reads else power))
        return gain if scale is None else gain * float(scale**-0.5)


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
    """A way to resize, see docs/methods.md for one in twenty lines."""

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
