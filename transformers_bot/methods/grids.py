"""Maps for axes whose index is a place: text positions and image grids."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from ..maps import AxisMap, from_dense, gather


def periodic(source: int, target: int) -> AxisMap:
    """Keep every position at its index; positions beyond the source start over at its first."""
    return gather(np.arange(target) % source, source)


@lru_cache(maxsize=64)
def interpolation(source: int, target: int, bicubic: bool = False) -> AxisMap:
    """Resample positions over the whole length: linear, or bicubic as transformers does for ViT grids.

    Shrinking is low-passed (torch's `antialias`), so that no position is skipped.
    """
    eye = torch.eye(source, dtype=torch.float64)[None, None]  # (1, 1, position, source)
    mode = "bicubic" if bicubic else "bilinear"
    mapped = F.interpolate(eye, size=(target, source), mode=mode, align_corners=False, antialias=target < source)
    return from_dense(mapped[0, 0].numpy())
