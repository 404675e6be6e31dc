"""NaN and infinity in tensors, found in one pass without a copy of them."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...console import progress
from .paths import shown

BLOCK = 1 << 22  # elements looked at together: at most 32 MB of temporaries (float64 of one block)
ROW = 1 << 10
HALVES = (torch.bfloat16, torch.float16)  # their norms are summed up in float32 without a copy
NAMED = 10


def find_nonfinite(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> index of the first NaN or infinity, for every tensor that holds one.

    A sum, or a norm, is NaN or infinite wherever a term is, and costs a block of memory traffic and nothing
    else; since honest terms may overflow it too, only suspect blocks are looked at term by term.

    Example:
        >>> find_nonfinite({"a": torch.ones(3), "b": torch.tensor([[0.0, 1.0], [float("inf"), 2.0]])})
        {'b': (1, 0)}
    """
    looked_at = progress.tracked(tensors.items(), [x.numel() for x in tensors.values()])
    return {name: place for name, tensor in looked_at if (place := _first(tensor)) is not None}


def nonfinite_message(found: Mapping[str, tuple[int, ...]]) -> str:
    """What `find_nonfinite` found, as one clause.

    >>> nonfinite_message({"h.0.w": (0, 17), "s": ()})
    "2 tensors hold NaN or Inf: 'h.0.w' (first at [0, 17]), 's'"
    """
    parts = [shown(name) + (f" (first at {list(place)})" if place else "") for name, place in found.items()]
    more = f" and {len(parts) - NAMED:,} more" if len(parts) > NAMED else ""
    count = "1 tensor holds" if len(parts) == 1 else f"{len(parts):,} tensors hold"
    return f"{count} NaN or Inf: {', '.join(parts[:NAMED])}{more}"


def _first(tensor: Tensor) -> tuple[int, ...] | None:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return None
    for offset, block in _blocks(tensor.detach()):
        if bool(torch.isfinite(_total(block)).all()):
            continue
        bad = ~torch.isfinite(block.to(torch.float32) if block.element_size() == 1 else block)
        place = int(bad.flatten().to(torch.uint8).argmax())
        if bool(bad.flatten()[place]):
            inside = [int(index) for index in torch.unravel_index(torch.tensor(place), block.shape)]
            return _shifted(offset, inside)
    return None


def _total(block: Tensor) -> Tensor:
    """One number or several that are not finite if any entry is not."""
    if block.dtype in HALVES and block.is_contiguous() and block.numel() % ROW == 0:
        norms: Tensor = torch.linalg.vector_norm(block.view(-1, ROW), dim=1)
        return norms
    # float8 has no sum of its own; float16 would overflow at 65504.
    return block.to(torch.float32).sum() if block.element_size() < 4 else block.sum()


def _shifted(offset: tuple[int, ...], inside: list[int]) -> tuple[int, ...]:
    """The index in the tensor of an index in a block: fixed leading indices, then a first row."""
    if not inside:
        return offset
    return (*offset[:-1], offset[-1] + inside[0], *inside[1:])


def _blocks(tensor: Tensor, leading: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Views of at most `BLOCK` elements in row-major order, each with the index of its first element's row."""
    if tensor.numel() == 0:
        return
    if tensor.dim() == 0 or tensor.numel() <= BLOCK:
        yield (*leading, 0) if tensor.dim() else leading, tensor
        return
    row = tensor.numel() // len(tensor)
    if row > BLOCK:
        for place in range(len(tensor)):
            yield from _blocks(tensor[place], (*leading, place))
        return
    step = BLOCK // row
    for place in range(0, len(tensor), step):
        yield (*leading, place), tensor[place : place + step]
