"""Parameters and operations of a model at any sizes, from its adapter's rules: nothing is built."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from . import Adapter
from .axes import Rule
from .inventory import Inventory, rules_of

Sizes = Mapping[str, int | None]


@dataclass(frozen=True)
class Shapes:
    """One tensor of every stack: its rule, its shape, and whether it is a tied one's second name."""

    parts: tuple[tuple[Rule, tuple[int, ...], bool], ...]

    @classmethod
    def of(cls, adapter: Adapter, inventory: Inventory, sizes: Sizes) -> "Shapes":
        stacks: dict[str, tuple[Rule, tuple[int, ...], bool]] = {}
        for name, (rule, _) in rules_of(adapter, inventory, sizes).items():
            template = rule.template(inventory.canonical(name))
            stacks.setdefault(template, (rule, inventory.shapes[name], name in inventory.ties))
        return cls(tuple(stacks.values()))

    def parameters(self, sizes: Sizes) -> int:
        """How many parameters a model of these sizes has, tied ones once."""
        return sum(
            _times(rule, sizes) * math.prod(rule.shape(sizes, shape)) for rule, shape, tie in self.parts if not tie
        )

    def flops(self, sizes: Sizes) -> int:
        """Operations of a forward pass per token at the longest sequence; a multiply-add counts as two.

        Every matrix is taken to read each token, which task heads and poolers do not; they are small.
        Attention scores and their use cost 2 * 2 * sequence * hidden per layer.
        """
        matrices = (
            2 * _times(rule, sizes) * math.prod(rule.shape(sizes, shape)) for rule, shape, _ in self.parts if rule.maps
        )
        sequence = sizes.get("position") or (sizes.get("grid_h") or 1) * (sizes.get("grid_w") or 1)
        inner = (sizes["heads"] or 1) * ((sizes["score"] or 1) + (sizes["head_dim"] or 1))
        return sum(matrices) + 2 * sequence * inner * (sizes["layer"] or 1)


def _times(rule: Rule, sizes: Sizes) -> int:
    layers = sizes["layer"]
    return (0 if layers is None else layers) if rule.layered else 1
