"""Maps for axes whose index is a place: text positions and image grids."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from ..ops.axis_map import AxisMap, Band, Matrix, banded, from_dense, remembered, tiled
from .pairs import Pair

SMALL = 1 << 22  # entries of a matrix that torch interpolates to find the weights

periodic = tiled  # every position at its index; positions beyond the source start over at its first


@remembered
def interpolation(source: int, target: int, mode: str = "bilinear", antialias: bool = True) -> AxisMap:
    """Resample positions over the whole length, as torch's `interpolate` does.

    Args:
        mode: "bilinear" or "bicubic".
        antialias: low-pass when shrinking, so that no position is skipped; growing is the same either way.
    """
    low_passed = antialias and target < source
    is_small = source * max(source, target) <= SMALL
    return AxisMap(source, target, partial(_seen if is_small else _worked_out, source, target, mode, low_passed))


def _seen(source: int, target: int, mode: str, low_passed: bool) -> tuple[Band | Matrix, ...]:
    """The weights that torch gives, seen by what it makes of the identity."""
    eye = torch.eye(source, dtype=torch.float64)[None, None]  # (1, 1, position, source)
    mapped = F.interpolate(eye, size=(target, source), mode=mode, align_corners=False, antialias=low_passed)
    return from_dense(mapped[0, 0].numpy()).bands


def _worked_out(source: int, target: int, mode: str, low_passed: bool) -> tuple[Band | Matrix, ...]:
    """The same weights by torch's formula, where the identity would be too large."""
    bicubic = mode == "bicubic"
    stretch = source / target if low_passed else 1.0
    sharpness = -0.5 if low_passed else -0.75  # of the cubic: what torch takes with and without `antialias`
    reach = (2.0 if bicubic else 1.0) * stretch
    centre = source / target * (np.arange(target) + 0.5) - 0.5
    if not (bicubic or low_passed):
        centre = centre.clip(0, source - 1)
    first = np.ceil(centre - reach).astype(np.int64)
    index = first[:, None] + np.arange(int(2 * reach) + 1)  # (target, taps)
    away = np.abs(index - centre[:, None]) / stretch
    weight = _cubic(away, sharpness) if bicubic else np.maximum(0.0, 1 - away)
    if low_passed:  # torch leaves out what is beyond the ends; without `antialias` it reads the last entry there
        weight[(index < 0) | (index >= source)] = 0
        weight /= weight.sum(1, keepdims=True)
    rows, taps = np.nonzero(weight)
    return (banded(rows, index[rows, taps].clip(0, source - 1), weight[rows, taps], target, source),)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def grid(source: int, target: int, how: str) -> Pair:
    """The maps of one side of an image grid.

    Args:
        how: "bicubic" is what transformers computes at every forward pass with
            `interpolate_pos_encoding=True`; "antialiased" also low-passes a grid that shrinks.
    """
    resampled = interpolation(source, target, "bicubic", antialias=how == "antialiased")
    return Pair(resampled, resampled, f"{'antialiased ' if how == 'antialiased' else ''}bicubic")
