"""Mango's operator: four cores in a ring, one for each axis of the tensor of all layer matrices.

Every matrix of a layer is cut into blocks of d x d, where d is the hidden size: `M[b, l]` has four blocks of
attention and f/d of each MLP matrix (12 at f = 4d). At rank 1

    M_t[b', l'] = sum_{b,l} S_B[b, b'] S_L[l, l'] S_O^T M_s[b, l] S_I,

At rank r every core has two ring indices more, and the result is the trace around the ring S_B, S_I, S_O, S_L.
A tensor with fewer axes is mapped by the ring of the cores of its axes: embeddings and norms by S_O, a bias in
a layer by S_O and S_L, a head that reads the stream by S_I. All entries of all cores are learned, also if an
axis keeps its length.

Start (with a seed): S_B = I, S_L one-hot at layer m mod L_s, S_I and S_O = [I; one-hot rows + N(0, 0.01^2)]. At a
higher rank these are the entries at ring indices 0, and every other entry is N(0, 0.01^2).

Source: Pan et al., NeurIPS 2023, arXiv 2310.10699. The paper does not state the size of a block and the cores of
a bias; d x d and the rule above are this package's interpretation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...architectures.adapter import Axis
from .base import Growth, Operator, Stack

DEPTH = "layer"  # the name of the core over layers


class MangoOperator(Operator):
    """See the module.

    Attributes:
        block: S_B, (rank, blocks, blocks, rank).
        inner: S_I, (rank, d_s, d_t, rank).
        outer: S_O, (rank, d_s, d_t, rank).
        layer: S_L, (rank, L_s, L_t, rank).
    """

    def __init__(self, growth: Growth, seed: int | None, rank: int = 1) -> None:
        super().__init__(growth, seed)
        self.rank = rank
        self.hidden = growth.widths
        self.matrices = [stack for stack in growth.stacks if stack.rule.layered and stack.rule.maps]
        self.others = [stack for stack in growth.stacks if not (stack.rule.layered and stack.rule.maps)]
        blocks = torch.cat([_cut(stack, self.hidden[0]) for stack in self.matrices], dim=1)
        self.hold("blocks", blocks)  # (L_s, blocks, d_s out, d_s in)
        for index, stack in enumerate(self.others):
            self.hold(f"source_{index}", stack.tensor)
        self.block = self._core("block", blocks.shape[1], blocks.shape[1], blocks)
        self.inner = self._core("inner", *self.hidden, blocks)
        self.outer = self._core("outer", *self.hidden, blocks)
        self.layer = self._core(DEPTH, *growth.layer_counts, blocks)

    def forward(self) -> dict[str, Tensor]:
        ring = [(self.block, 1), (self.inner, 3), (self.outer, 2), (self.layer, 0)]
        blocks = ring_trace(self.get_buffer("blocks"), ring)  # (L_t, blocks, d_t out, d_t in)
        grown: dict[str, Tensor] = {}
        counts = [_block_count(stack, self.hidden[0]) for stack in self.matrices]
        for stack, own in zip(self.matrices, torch.split(blocks, counts, 1), strict=True):
            grown.update(zip(stack.targets, _joined(own, stack, self.hidden[0]), strict=True))
        for index, stack in enumerate(self.others):
            x = self._grow_other(self.get_buffer(f"source_{index}"), stack)
            grown.update(zip(stack.targets, x, strict=True))
        return grown

    def _grow_other(self, x: Tensor, stack: Stack) -> Tensor:
        """Grow a tensor (layers, ...) that is no matrix of a layer, by the ring of the cores of its axes."""
        ring: dict[str, tuple[Tensor, int]] = {DEPTH: (self.layer, 0)} if stack.rule.layered else {}
        dim = 0
        split_axes: list[int] = []
        for axis in stack.rule.axes:
            dim += 1
            if self._is_learned(axis):
                x = _unflatten(x, dim, self.hidden[0])  # several groups of units: q|k|v, MLP groups
                split_axes.append(dim - len(split_axes))
                dim += 1
                ring["inner" if _reads(axis) else "outer"] = (self.inner if _reads(axis) else self.outer, dim)
        order = [ring[name] for name in ("inner", "outer", DEPTH) if name in ring]
        x = ring_trace(x, order) if order else x
        for dim in split_axes:
            x = x.flatten(dim, dim + 1)
        return x

    def _is_learned(self, axis: Axis) -> bool:
        roles = self.growth.adapter.roles
        names = [self.growth.matrix(segment) for segment in axis.segments]
        # A role that follows the stream at another length has a matrix of its own in LiGO, but no core here.
        has_no_core = len(names) == 1 and names[0] in roles and roles.leader(names[0]) != names[0]
        return all(names) and not has_no_core

    def _core(self, name: str, source: int, target: int, like: Tensor) -> nn.Parameter:
        core = self.normal(name, (self.rank, source, target, self.rank), like)
        is_width = name in ("inner", "outer")
        one_hot = torch.eye(source, dtype=like.dtype)[torch.arange(target) % source].T
        core[0, :, :, 0] = one_hot + (core[0, :, :, 0] * (torch.arange(target) >= source) if is_width else 0)
        return nn.Parameter(core)


def ring_trace(x: Tensor, ring: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Map axes of `x` by the cores of a tensor ring.

    Args:
        x: any shape.
        ring: (core, axis of x) in ring order; a core is (rank, source, target, rank).

    Returns:
        The sum over source indices and ring indices p, q, ... of S1[p,i,i',q] S2[q,j,j',..] ... S[..,p] x[i,j,...].
    """
    *before, (last, last_dim) = ring
    if not before:
        matrix = last.diagonal(dim1=0, dim2=3).sum(-1)  # (source, target)
        product: Tensor = torch.tensordot(x, matrix, dims=([last_dim], [0]))
        return product.movedim(-1, last_dim)
    (first, dim), *between = before
    state = torch.tensordot(x, first, dims=([dim], [1]))  # (..., p, target, q)
    state = state.movedim((-3, -1, -2), (0, 1, dim + 2))  # (p, q, *axes of x)
    for core, dim in between:
        state = torch.tensordot(state, core, dims=([1, dim + 2], [0, 1]))  # (p, ..., target, r)
        state = state.movedim((-1, -2), (1, dim + 2))
    closed: Tensor = torch.tensordot(state, last, dims=([0, 1, last_dim + 2], [3, 0, 1]))  # (..., target)
    return closed.movedim(-1, last_dim)


def _reads(axis: Axis) -> bool:
    return all(factor.reads for segment in axis.segments for factor in segment)


def _block_count(stack: Stack, width: int) -> int:
    _, rows, columns = stack.tensor.shape
    return int(rows * columns) // width**2


def _cut(stack: Stack, width: int) -> Tensor:
    """Cut a stack of matrices, (layers, rows, columns), into (layers, blocks, out, in)."""
    x = _unflatten(_unflatten(stack.tensor, 2, width), 1, width)  # (layers, a, rows, b, columns)
    x = x.transpose(2, 3).flatten(1, 2)
    return x.mT if _reads(stack.rule.axes[0]) else x


def _joined(x: Tensor, stack: Stack, source_width: int) -> Tensor:
    """The inverse of `_cut`, at the target's width."""
    x = x.mT if _reads(stack.rule.axes[0]) else x
    columns = stack.tensor.shape[2] // source_width
    x = _unflatten(x, 1, columns)  # (layers, a, b, rows, columns)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _unflatten(x: Tensor, dim: int, last: int) -> Tensor:
    """Split axis `dim` into two, the second of length `last`."""
    return x.reshape(*x.shape[:dim], -1, last, *x.shape[dim + 1 :])
