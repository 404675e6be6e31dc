"""Parameters and operations of a model at any sizes, from its adapter's rules: nothing is built."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from . import Adapter
from .axes import Factor, Rule
from .inventory import Inventory, rules_of
from .roles import Roles

Sizes = Mapping[str, int | None]
INSIDE = ("entry", "frequency")
# Of the sequences that operations are counted for: a rotary model says what it could take, not what it is given.
LONGEST = 4096


@dataclass(frozen=True)
class Shapes:
    """One tensor of every stack: its rule, its shape, and whether it is a tied one's second name."""

    roles: Roles
    scored: tuple[str, ...]
    parts: tuple[tuple[Rule, tuple[int, ...], bool], ...]

    @classmethod
    def of(cls, adapter: Adapter, inventory: Inventory, sizes: Sizes) -> "Shapes":
        stacks: dict[str, tuple[Rule, tuple[int, ...], bool]] = {}
        for name, (rule, _) in rules_of(adapter, inventory, sizes).items():
            template = rule.template(inventory.canonical(name))
            stacks.setdefault(template, (rule, inventory.shapes[name], name in inventory.ties))
        return cls(adapter.roles, adapter.scored, tuple(stacks.values()))

    def parameters(self, sizes: Sizes) -> int:
        """How many parameters a model of these sizes has, tied ones once."""
        return sum(
            _times(rule, sizes) * math.prod(rule.shape(sizes, shape)) for rule, shape, tie in self.parts if not tie
        )

    def flops(self, sizes: Sizes) -> int:
        """Operations of a forward pass per token at the longest sequence; a multiply-add counts as two.

        Every matrix is taken to read each token, which task heads and poolers do not; they are small. A
        token's query meets `sequence` keys, and their values are added up: 2 * sequence for every entry of
        queries, and of what the attention's output reads.
        """
        matrices = sum(
            2 * _times(rule, sizes) * math.prod(rule.shape(sizes, shape)) for rule, shape, _ in self.parts if rule.maps
        )
        sequence = min(LONGEST, self._sequence(sizes))
        entries = sum(_times(rule, sizes) * self._attended(rule, sizes) for rule, _, tie in self.parts if not tie)
        return matrices + 2 * sequence * entries

    def _sequence(self, sizes: Sizes) -> int:
        places = [sizes.get(role) or 1 for role in self.roles.of("place")]
        return max(places) if places else math.prod(sizes.get(role) or 1 for role in self.roles.of("grid"))

    def _attended(self, rule: Rule, sizes: Sizes) -> int:
        """Entries of queries that a matrix writes, and of added up values that it reads."""
        segments = [segment for axis in rule.axes for segment in axis.segments] if rule.maps else []
        held = [segment for segment in segments if any(self.roles.kind(f.role) in INSIDE for f in segment)]
        attended = [s for s in held if all(f.reads for f in s) or self._is_query(s)]
        return sum(math.prod(factor.length(sizes) or 1 for factor in segment) for segment in attended)

    def _is_query(self, segment: tuple[Factor, ...]) -> bool:
        return any(f.role in self.scored and not f.reads for f in segment)


def _times(rule: Rule, sizes: Sizes) -> int:
    return (sizes[rule.depth] or 0) if rule.layered else 1
