"""LiGO's operator: one width matrix per kind of unit, one depth matrix per kind of module.

    W_l_hat = B_l W_l A_l^T,    W'_m = sum_l w_{m,l} W_l_hat

with B the matrix of the axis that a tensor writes and A that of the axis it reads. Embeddings and everything
else on the residual stream share B_e. Queries, keys, values and MLP units have B_Q, B_K, B_V and B_f in every
source layer; the attention output reads with B_V, the second MLP matrix with B_f. Biases and norms are mapped
with B.

A width matrix is [identity; learned rows]. The identity is fixed, so the first n units are those of the
source, and an axis that keeps its length has nothing to learn. All depth weights are learned if the number of
layers grows; the parts of a fused q|k|v count as separate modules.

Start (with a seed): rows one-hot at unit i mod n plus N(0, 0.01^2), depth one-hot at layer m mod L_s plus
U(0, 0.03), with each row then divided by its sum.

Source: Wang et al., ICLR 2023, arXiv 2303.00980, section 3.
"""

import torch
from torch import Tensor, nn

from ...architectures.adapter import Axis, Factor
from .base import Growth, Operator, Stack, segment_length

DEPTH_NOISE = 0.03


class LiGOOperator(Operator):
    """See the module.

    Attributes:
        rows: the stream (and roles that follow it at another length) -> (t - s, s); "query", "key", "value" and
            the MLP's units -> (source layers, t - s, s).
        depths: module -> (target layers, source layers); dots are written as "/".
    """

    def __init__(self, growth: Growth, seed: int | None) -> None:
        super().__init__(growth, seed)
        self.rows, self.depths = nn.ParameterDict(), nn.ParameterDict()
        for index, stack in enumerate(growth.stacks):
            self.hold(f"source_{index}", stack.tensor)
            for axis in stack.rule.axes:
                for segment in axis.segments:
                    name = self._matrix(segment)
                    if name and name not in self.rows:
                        self._add_rows(name, segment, stack.tensor)
            if self._mixes(stack):
                for module in self._parts(stack):
                    if module not in self.depths:
                        self.depths[module] = nn.Parameter(self._depth(module, stack.tensor))

    def forward(self) -> dict[str, Tensor]:
        grown: dict[str, Tensor] = {}
        for index, stack in enumerate(self.growth.stacks):
            x = self.get_buffer(f"source_{index}")
            for dim, axis in enumerate(stack.rule.axes, start=1):
                x = self._widen(x, dim, axis)
            grown.update(zip(stack.targets, self._deepen(x, stack), strict=True))
        return grown

    def _widen(self, x: Tensor, dim: int, axis: Axis) -> Tensor:
        """Multiply along `dim` by [identity; rows]: source units, then new units."""
        names = [self._matrix(segment) for segment in axis.segments]
        if not any(name in self.rows for name in names if name):
            return x
        pieces = torch.split(x, [segment_length(segment, self.growth.source) for segment in axis.segments], dim)
        widened = [
            torch.cat([piece, _along(piece, self.rows[name], dim)], dim) if name else piece
            for name, piece in zip(names, pieces, strict=True)
        ]
        return torch.cat(widened, dim)

    def _deepen(self, x: Tensor, stack: Stack) -> Tensor:
        if not self._mixes(stack):
            return x
        dim, parts = _fused(stack)
        pieces = x.chunk(parts, dim)
        modules = self._parts(stack)
        mixed = [torch.tensordot(self.depths[m], piece, dims=1) for m, piece in zip(modules, pieces, strict=True)]
        return torch.cat(mixed, dim)

    def _mixes(self, stack: Stack) -> bool:
        source, target = self.growth.layer_counts
        return stack.rule.layered and source != target

    def _parts(self, stack: Stack) -> list[str]:
        module = stack.module.replace(".", "/")
        _, parts = _fused(stack)
        return [module] if parts == 1 else [f"{module} part {part}" for part in range(parts)]

    def _matrix(self, segment: tuple[Factor, ...]) -> str:
        """The name of a segment's width matrix; empty if the segment keeps its length."""
        name = self.growth.matrix(segment)
        return name if name and len(set(self.growth.matrix_lengths(segment))) == 2 else ""

    def _add_rows(self, name: str, segment: tuple[Factor, ...], like: Tensor) -> None:
        source, target = self.growth.matrix_lengths(segment)
        one_hot = torch.eye(source, dtype=like.dtype)[torch.arange(source, target) % source]
        network_wide = self.growth.adapter.roles.is_network_wide(segment[0].role)
        layers = () if network_wide else (self.growth.layer_counts[0],)
        start = one_hot.expand(*layers, *one_hot.shape)
        self.rows[name] = nn.Parameter(start + self.normal(f"rows.{name}", tuple(start.shape), like))

    def _depth(self, module: str, like: Tensor) -> Tensor:
        source, target = self.growth.layer_counts
        one_hot = torch.eye(source, dtype=like.dtype)[torch.arange(target) % source]
        noisy = one_hot + self.uniform(f"depth.{module}", (target, source), DEPTH_NOISE, like)
        return noisy / noisy.sum(1, keepdim=True)


def _along(x: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """`matrix` (t, s), or (layers, t, s) with one per layer, times axis `dim` of x (layers, ...)."""
    moved = x.movedim(dim, -1)  # (layers, ..., s)
    is_vector = moved.dim() == 2
    moved = moved.unsqueeze(1) if is_vector else moved
    if matrix.dim() == 3:
        matrix = matrix.view(len(matrix), *(1,) * (moved.dim() - 3), *matrix.shape[1:])
    product = moved @ matrix.mT
    return (product.squeeze(1) if is_vector else product).movedim(-1, dim)


def _fused(stack: Stack) -> tuple[int, int]:
    """The axis of a fused tensor (layers counted as axis 0) and the number of its modules; 1 if not fused."""
    counts = [len(axis.segments) for axis in stack.rule.axes]
    return counts.index(max(counts)) + 1, max(counts)
