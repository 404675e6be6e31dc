"""What the learned operators share: the source's tensors stacked by layer, and whose axes are learned."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...architectures.adapter import Adapter, Factor, Rule, Sizes
from ...architectures.inventory import rules_of
from ...ops.axis_map import identity
from ...ops.recipe import TensorMap, apply
from ...planning.planner import Plan, Step

WIDTH_NOISE = 0.01  # standard deviation around the one-hot rows: without it copied units never part


@dataclass(frozen=True)
class Stack:
    """The source tensors of one name over all layers, and the target tensors made of them.

    Attributes:
        name: the tensors' name with {layer} where the layer stands, without the base model's prefix.
        rule: what the axes mean.
        targets: the target tensor of every target layer; a single one outside of the blocks.
        tensor: (source layers or 1, *shape); axes that no operator learns (text positions, image
            grids) have the target's length already.
    """

    name: str
    rule: Rule
    targets: tuple[str, ...]
    tensor: Tensor

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Growth:
    """All that an operator is built from: the architecture, stacks, and role -> length on both sides."""

    adapter: Adapter
    stacks: tuple[Stack, ...]
    source: Sizes
    target: Sizes

    def lengths(self, role: str) -> tuple[int, int]:
        source, target = self.source[role], self.target[role]
        if source is None or target is None:
            raise KeyError(f"role {role!r} has a length only in its tensor")
        return source, target

    @property
    def layer_counts(self) -> tuple[int, int]:
        """Of the only stack of layers."""
        return self.lengths(self.adapter.roles.depths[0])

    @property
    def widths(self) -> tuple[int, int]:
        """Of the only residual stream."""
        return self.lengths(self.adapter.roles.streams[0])

    def matrix(self, segment: tuple[Factor, ...]) -> str:
        """Which of LiGO's width matrices a segment of an axis takes; empty where nothing is learned.

        Queries, keys and values have a matrix of their own over heads x head_dim; the attention output
        reads with the values' one. Everything on the residual stream shares one, and what follows the
        stream has it, too, where it is as long.
        """
        roles = self.adapter.roles
        scored = next((factor for factor in segment if factor.role in self.adapter.scored), None)
        if scored is not None:
            return "key" if scored.reads else "query"
        if any(roles.kind(factor.role) == "entry" for factor in segment):
            return "value"
        role = segment[0].role
        if roles.kind(role) not in ("stream", "unit"):
            return ""
        leader = roles.leader(role)
        return leader if roles.kind(role) == "stream" or self.lengths(role) == self.lengths(leader) else role

    def matrix_lengths(self, segment: tuple[Factor, ...]) -> tuple[int, int]:
        """Entries of a segment in source and target."""
        return segment_length(segment, self.source), segment_length(segment, self.target)


class Operator(nn.Module):
    """A differentiable map from a frozen source to the tensors of the target.

    `operator()` gives {target name: tensor}. Its parameters are what is learned; the source's
    tensors are buffers, so that they follow `.to(device)` and take no gradient.

    Args:
        growth: what it grows.
        seed: of the noise around the one-hot start; None starts without noise, where the operator
            gives what `from_pretrained` gave.
    """

    def __init__(self, growth: Growth, seed: int | None) -> None:
        super().__init__()
        self.growth, self.seed = growth, seed

    def forward(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def hold(self, name: str, tensor: Tensor) -> None:
        """Keep a source tensor."""
        self.register_buffer(name, tensor, persistent=False)

    def normal(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Noise of standard deviation `WIDTH_NOISE` for the parameter `name`; zeros without a seed."""
        if self.seed is None:
            return torch.zeros(shape, dtype=like.dtype)
        return torch.randn(shape, generator=_generator(self.seed, name), dtype=like.dtype) * WIDTH_NOISE

    def uniform(self, name: str, shape: tuple[int, ...], high: float, like: Tensor) -> Tensor:
        """Noise between 0 and `high` for the parameter `name`; zeros without a seed."""
        if self.seed is None:
            return torch.zeros(shape, dtype=like.dtype)
        return torch.rand(shape, generator=_generator(self.seed, name), dtype=like.dtype) * high


def growth_of(plan: Plan, adapter: Adapter, tensors: Mapping[str, Tensor]) -> Growth:
    """Stack the source's tensors as the plan of an unfitted learned method reads them.

    Args:
        plan: grows by one-hot maps, so that every source layer is read by some target layer.
        adapter: of both sides.
        tensors: source name -> tensor; computed with in float32, or float64 where stored so.
    """
    growth = Growth(adapter, (), plan.source_sizes, plan.target_sizes)
    rules = rules_of(adapter, plan.target, plan.target_sizes)
    steps: dict[str, list[tuple[int | None, Step]]] = {}
    for step in plan.steps:
        if step.recipe is not None:
            rule, layer = rules[step.target]
            steps.setdefault(rule.template(plan.target.canonical(step.target)), []).append((layer, step))
    stacks = []
    for name, made in steps.items():
        rule, _ = rules[made[0][1].target]
        made = sorted(made, key=lambda pair: pair[0] or 0)
        sources = {read.layer or 0: source for _, step in made for read, source in step.reads.items()}
        maps = _unlearned(made[0][1], rule, growth)
        stored = [apply(_upcast(tensors[sources[layer]]), maps) for layer in sorted(sources)]
        stacks.append(Stack(name, rule, tuple(step.target for _, step in made), torch.stack(stored)))
    return replace(growth, stacks=tuple(stacks))


def segment_length(segment: tuple[Factor, ...], sizes: Sizes) -> int:
    """Entries of a segment whose roles all have a known length."""
    return math.prod(factor.length(sizes) or 1 for factor in segment)


def _unlearned(step: Step, rule: Rule, growth: Growth) -> TensorMap:
    """The step's maps where nothing is learned, and the identity where a matrix will be."""
    if step.recipe is None:
        raise ValueError(f"{step.target} is {step.action}: nothing makes it")
    return tuple(
        tuple(
            (identity(segment_length(segment, growth.source)),) if growth.matrix(segment) else maps
            for segment, maps in zip(axis.segments, axis_maps, strict=True)
        )
        for axis, axis_maps in zip(rule.axes, step.recipe.maps, strict=True)
    )


def _upcast(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _generator(seed: int, name: str) -> torch.Generator:
    """Noise depends on the seed and the parameter's name alone, not on the order of drawing."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
