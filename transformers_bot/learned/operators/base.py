"""Shared by the learned operators: the source's tensors stacked by layer, and the matrix of every axis."""

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

WIDTH_NOISE = 0.01  # standard deviation around the one-hot rows; without noise copied units would stay equal


@dataclass(frozen=True)
class Stack:
    """The source tensors of one name over all layers, and the target tensors made of them.

    Attributes:
        name: the tensors' name with {layer} in place of the layer's number, without the base model's prefix.
        rule: the meaning of the axes.
        targets: names of the target tensors of all target layers; a single name outside of the layers.
        tensor: (source layers or 1, *shape); axes that no operator learns (text positions, image grids) have the
            target's length already.
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
    """The input of an operator: the architecture, stacks, and role -> length of source and target."""

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
        """Layers of source and target; a learned operator grows one stack."""
        return self.lengths(self.adapter.roles.depths[0])

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of source and target; a learned operator grows one residual stream."""
        return self.lengths(self.adapter.roles.streams[0])

    def matrix(self, segment: tuple[Factor, ...]) -> str:
        """The name of LiGO's width matrix for a segment of an axis; empty if nothing is learned there.

        Queries, keys and values have a matrix each over heads x head_dim; the attention output reads with that
        of the values. All axes of the residual stream share one matrix; so do roles that follow the stream and
        have its length.
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

    `operator()` returns {target name: tensor}. Its parameters are learned. The source's tensors are buffers, so
    that they follow `.to(device)` and have no gradient.

    Args:
        growth: the source's tensors and the sizes on both sides.
        seed: of the noise around the one-hot start; with None there is no noise, and the operator gives the
            tensors of `from_pretrained`.
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
        plan: of one-hot maps, in which every source layer is read by some target layer.
        adapter: of source and target.
        tensors: source name -> tensor; used in float32, or in float64 if they are stored in it.
    """
    growth = Growth(adapter, (), plan.source_sizes, plan.target_sizes)
    rules = rules_of(adapter, plan.target, plan.target_sizes)
    steps: dict[str, list[tuple[int | None, Step]]] = {}
    for step in plan.steps:
        if step.recipe is not None:
            rule, layer = rules[step.target]
            steps.setdefault(rule.template(plan.target.canonical(step.target)), []).append((layer, step))
    stacks = []
    for name, of_stack in steps.items():
        rule, _ = rules[of_stack[0][1].target]
        ordered = [step for _, step in sorted(of_stack, key=lambda pair: pair[0] or 0)]
        sources = {read.layer or 0: source for step in ordered for read, source in step.reads.items()}
        maps = _unlearned_maps(ordered[0], rule, growth)
        layers = [apply(_upcast(tensors[sources[layer]]), maps) for layer in sorted(sources)]
        stacks.append(Stack(name, rule, tuple(step.target for step in ordered), torch.stack(layers)))
    return replace(growth, stacks=tuple(stacks))


def segment_length(segment: tuple[Factor, ...], sizes: Sizes) -> int:
    """The number of entries of a segment whose roles have known lengths."""
    return math.prod(factor.length(sizes) or 1 for factor in segment)


def _unlearned_maps(step: Step, rule: Rule, growth: Growth) -> TensorMap:
    """The step's maps of axes that are not learned, and the identity for the others."""
    if step.recipe is None:
        raise ValueError(f"{step.target} is {step.action}: no recipe computes it")
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
    """A generator for one parameter, so that noise does not depend on the order of drawing."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
