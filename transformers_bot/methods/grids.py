"""Maps for axes whose index is a place: text positions and image grids."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from ..maps import AxisMap, from_dense, gather
from .pairs import Pair


def periodic(source: int, target: int) -> AxisMap:
    """Keep every position at its index; positions beyond the source start over at its first."""
    return gather(np.arange(target) % source, source)


@lru_cache(maxsize=64)
def interpolation(source: int, target: int, mode: str = "bilinear", antialias: bool = True) -> AxisMap:
    """Resample positions over the whole length, as torch's `interpolate` does.

    Args:
        mode: "bilinear" or "bicubic".
        antialias: low-pass when shrinking, so that no position is skipped; growing is the same either way.
    """
    eye = torch.eye(source, dtype=torch.float64)[None, None]  # (1, 1, position, source)
    low_passed = antialias and target < source
    mapped = F.interpolate(eye, size=(target, source), mode=mode, align_corners=False, antialias=low_passed)
    return from_dense(mapped[0, 0].numpy())


def grid(source: int, target: int, how: str) -> Pair:
    """The maps of one side of an image grid.

    Args:
        how: "bicubic" is what transformers computes at every forward pass with
            `interpolate_pos_encoding=True`; "antialiased" also low-passes a grid that shrinks.
    """
    resampled = interpolation(source, target, "bicubic", antialias=how == "antialiased")
    return Pair(resampled, resampled, f"{'antialiased ' if how == 'antialiased' else ''}bicubic")
