"""How one target tensor is computed: layers summed with weights, then a map along every axis."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .maps import AxisMap

# One map per factor of a segment; an axis is one or more segments; a tensor has one entry per axis.
Segment = tuple[AxisMap, ...]
TensorMap = tuple[tuple[Segment, ...], ...]


@dataclass(frozen=True)
class Detail:
    """Noise for the detail bands: whatever of it the grown signal could see is taken away.

    Attributes:
        kind: "gaussian" or "uniform".
        scale: in units of the low band's standard deviation.
        visible: target -> target projection, per axis, onto what the grown signal reaches.
        layers: row of the same projection over depth: target layer -> weight (empty: no depth).
        of_source: measure the standard deviation before the axes are mapped, not after.
        seed: mixed with the tensor's name.
        name: the tensor's name with {layer} where its layer stands.
        layer: the target layer, None outside of the blocks.
    """

    kind: str
    scale: float
    visible: TensorMap
    layers: tuple[tuple[int, float], ...]
    of_source: bool
    seed: int
    name: str
    layer: int | None


@dataclass(frozen=True)
class Recipe:
    """What makes a target tensor out of the source tensors of the same rule.

    Attributes:
        layers: (source layer, weight) pairs that are summed first; ((None, 1.0),) outside of blocks.
        maps: a map per factor, segment and axis.
        detail: noise for the empty bands, if any.
        note: in words, for the plan.
    """

    layers: tuple[tuple[int | None, float], ...]
    maps: TensorMap
    detail: Detail | None = None
    note: str = ""

    @property
    def is_copy(self) -> bool:
        return len(self.layers) == 1 and self.layers[0][1] == 1.0 and is_identity(self.maps) and not self.detail


def is_identity(maps: TensorMap) -> bool:
    return all(m.is_identity for axis in maps for segment in axis for m in segment)


def run(recipe: Recipe, read: Callable[[int | None], Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Compute a target tensor: read, upcast, sum layers, map axes, add detail, downcast once.

    Args:
        recipe: what to compute.
        read: source layer (None outside of the blocks) -> its tensor.
        dtype: of the result; the computation is in float32 or better.
        device: where the computation runs and the result lies.
    """
    if recipe.is_copy:
        return read(recipe.layers[0][0]).to(device, dtype)
    signal = _sum_layers(recipe, read, dtype, device)
    out = apply(signal, recipe.maps)
    if recipe.detail is not None:
        reference = signal if recipe.detail.of_source else out
        spread = recipe.detail.scale * float(reference.std()) if reference.numel() > 1 else 0.0
        out = out + _detail(recipe.detail, out) * spread
    return out.to(dtype).contiguous()


def apply(x: Tensor, maps: TensorMap) -> Tensor:
    """Map every axis of `x`; axes that shrink most go first, so that the later ones move less."""
    order = sorted(range(len(maps)), key=lambda dim: _length(maps[dim], "target") / _length(maps[dim], "source"))
    for dim in order:
        x = _apply_axis(x, dim, maps[dim])
    return x


def _sum_layers(
    recipe: Recipe, read: Callable[[int | None], Tensor], dtype: torch.dtype, device: torch.device
) -> Tensor:
    total: Tensor | None = None
    for layer, weight in recipe.layers:
        stored = read(layer).to(device)
        compute = torch.promote_types(torch.promote_types(stored.dtype, dtype), torch.float32)
        part = stored.to(compute)
        if total is None:
            total = part if weight == 1.0 else part * weight
        else:
            total = total.add(part, alpha=weight)
    assert total is not None, "a recipe reads at least one layer"
    return total


def _apply_axis(x: Tensor, dim: int, segments: tuple[Segment, ...]) -> Tensor:
    if all(m.is_identity for segment in segments for m in segment):
        return x
    lengths = [math.prod(m.source for m in segment) for segment in segments]
    pieces = []
    for piece, segment in zip(x.split(lengths, dim), segments, strict=True):
        piece = piece.unflatten(dim, [m.source for m in segment])
        for offset, axis_map in enumerate(segment):
            piece = axis_map.apply(piece, dim + offset)
        pieces.append(piece.flatten(dim, dim + len(segment) - 1))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _detail(detail: Detail, like: Tensor) -> Tensor:
    """Unit noise in the shape of `like`, less the part that the grown signal sees."""
    own = _noise(detail, detail.layer, like)
    seen = own
    if detail.layers:
        seen = torch.zeros_like(own)
        for layer, weight in detail.layers:
            seen.add_(_noise(detail, layer, like), alpha=weight)
    return own - apply(seen, detail.visible)


def _noise(detail: Detail, layer: int | None, like: Tensor) -> Tensor:
    text = f"{detail.seed}/{detail.name}/{layer}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big"))
    if detail.kind == "uniform":
        drawn = torch.rand(like.shape, generator=generator) * 2 - 1
    else:
        drawn = torch.randn(like.shape, generator=generator)
    return drawn.to(like.device, like.dtype)


def _length(axis: tuple[Segment, ...], side: str) -> int:
    return sum(math.prod(getattr(m, side) for m in segment) for segment in axis)
