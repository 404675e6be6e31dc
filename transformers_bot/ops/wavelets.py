"""One-axis wavelet low-pass on torch tensors, exact against PyWavelets' `periodization` mode.

With filters of length F and a signal x of even length N (indices modulo N and N/2):

    analysis    a[k] = sum_j dec_lo[j] x[2k + F/2 - j]
    synthesis   x[2k + j - F/2 + 1] += rec_lo[j] a[k]        (detail band empty)

so analysis halves an axis and synthesis doubles it. Both filters of every PyWavelets wavelet sum
to sqrt(2): analysis multiplies a constant by sqrt(2), synthesis by 1/sqrt(2).

Ratios that are no power of two are not in the paper. Here as many whole levels as fit are followed by one
*partial level*, which splits (or merges) only as many evenly spread places as needed and leaves the others
unchanged. If every place is split it is the wavelet's own level. It never mixes more entries than the wavelet,
costs no more than one level, and analysis still inverts synthesis exactly. The alternative, averages of areas on
a finer grid, nearly cancels alternating signals at ratios close to one, and its exact dual is dense.

Sources: https://pywavelets.readthedocs.io/en/latest/ref/signal-extension-modes.html and
supplement A of the BoT paper (eqs. 5 and 6).
"""

import math
import operator
from collections.abc import Sequence
from functools import partial

import numpy as np
import pywt
from torch import Tensor

from ..errors import BadOption, BadSize, suggest
from .axis_map import AxisMap, Band, Matrix, apply_along, banded, remembered, split_places

NAMES: tuple[str, ...] = tuple(pywt.wavelist(kind="discrete"))
SQRT2 = math.sqrt(2.0)
MAX_LENGTH = 2**31  # entries of one axis; only a mistyped level exceeds it


def names() -> list[str]:
    """The names of all discrete wavelets of PyWavelets, in its order."""
    return list(NAMES)


def check_name(name: object) -> str:
    """Return `name` if it is a discrete wavelet; raise `BadOption` with the nearest name if not."""
    if isinstance(name, str) and name in NAMES:
        return name
    hint = suggest(name, NAMES)
    raise BadOption(f"unknown wavelet {name!r}: it is none of PyWavelets' discrete wavelets.{hint}")


def analysis(x: Tensor, wavelet: str = "haar", level: int = 1, axis: int | Sequence[int] = -1) -> Tensor:
    """The low band of `x` after `level` wavelet analyses along `axis`; the axis has its length over 2**level.

    Of several axes, such as those of a stack of layers (layer, row, column), it is the band that is low on all.

    Example:
        >>> import torch
        >>> (analysis(torch.ones(4), "db2") / 2**0.5).round(decimals=4)
        tensor([1., 1.])
        >>> analysis(torch.ones(12, 8, 4), axis=(0, 1, 2)).shape
        torch.Size([6, 4, 2])

    Args:
        x: a floating-point tensor on any device; computed in float32 or better, returned in its dtype. No
            gradient flows through.
        wavelet: a discrete PyWavelets wavelet.
        level: number of times the axis is halved; 0 returns `x`.
        axis: the axis to halve, or several.

    Raises:
        BadOption: unknown wavelet, or an axis that `x` does not have.
        BadSize: the axis length is not a multiple of 2**level.

    Equal to `pywt.dwt(x, wavelet, mode="periodization", axis=axis)[0]` at level 1 (supplement eq. 5), for
    several axes to the band `a...a` of `pywt.dwtn(x, wavelet, mode="periodization", axes=axis)`.
    """
    maps = {}
    for dim in _check_call(x, level, axis):
        length = x.shape[dim]
        if length % 2**level or length < 2**level:
            deepest = (length & -length).bit_length() - 1 if length else 0
            raise BadSize(
                f"{level} levels of analysis need an axis length that is a multiple of {2**level}, but axis {dim} "
                f"of shape {tuple(x.shape)} has {length}; at most level {deepest} is possible."
            )
        maps[dim] = analysis_map(length, length >> level, wavelet, unit_dc=False)
    return apply_along(x.detach(), maps)


def synthesis(x: Tensor, wavelet: str = "haar", level: int = 1, axis: int | Sequence[int] = -1) -> Tensor:
    """The signal whose low band is `x` and whose detail bands are empty; the axis has its length times 2**level.

    Example:
        >>> import torch
        >>> (synthesis(torch.tensor([1.0, 2.0]), "haar") * 2**0.5).round(decimals=4)
        tensor([1., 1., 2., 2.])

    Arguments, dtype, device and errors are those of `analysis`. Equal to
    `pywt.idwt(x, None, wavelet, mode="periodization", axis=axis)` at level 1 (supplement eq. 6); of several
    axes one after the other.
    """
    maps = {}
    for dim in _check_call(x, level, axis):
        length = x.shape[dim]
        if length < 1:
            raise BadSize(f"axis {dim} of shape {tuple(x.shape)} is empty; synthesis needs at least one entry.")
        if level > 40 or length << level > MAX_LENGTH:
            raise BadSize(
                f"{level} levels of synthesis on {length} entries exceed {MAX_LENGTH} entries; use fewer levels."
            )
        maps[dim] = synthesis_map(length, length << level, wavelet, unit_dc=False)
    return apply_along(x.detach(), maps)


@remembered
def synthesis_map(small: int, large: int, wavelet: str, unit_dc: bool) -> AxisMap:
    """The map that grows an axis from `small` to `large` entries with empty detail bands.

    With `unit_dc` a constant keeps its value, else every level multiplies it by 1/sqrt(2).
    """
    if large <= small:
        return AxisMap(small, large)
    taps = np.count_nonzero(pywt.Wavelet(check_name(wavelet)).rec_lo)
    first = min(small, large - small)
    # A target entry is a sum of several taps, except on an axis so short that they wrap around onto one entry.
    mixes = bool(taps > 2) and (bool(taps <= first) or _synthesis_band(first, wavelet).index.shape[1] > 1)
    return AxisMap(small, large, partial(_synthesis_bands, small, large, wavelet, unit_dc), mixes)


def _synthesis_bands(small: int, large: int, wavelet: str, unit_dc: bool) -> tuple[Band | Matrix, ...]:
    bands = []
    length = small
    while length < large:
        count = min(length, large - length)
        band = _synthesis_band(count, wavelet)
        band = _snapped(band.scaled(SQRT2)) if unit_dc else band
        bands.append(band if count == length else _on_split_places(band, length))
        length += count
    return tuple(bands)


@remembered
def analysis_map(large: int, small: int, wavelet: str, unit_dc: bool) -> AxisMap:
    """The map that shrinks an axis from `large` to `small` entries, a left inverse of synthesis.

    With `unit_dc` a constant keeps its value, else every level multiplies it by sqrt(2).
    """
    if large <= small:
        return AxisMap(large, small)
    check_name(wavelet)
    return AxisMap(large, small, partial(_analysis_bands, large, small, wavelet, unit_dc))


def _analysis_bands(large: int, small: int, wavelet: str, unit_dc: bool) -> tuple[Band | Matrix, ...]:
    bands = []
    length = small
    while length < large:
        count = min(length, large - length)
        band = _analysis_band(2 * count, wavelet)
        band = _snapped(band.scaled(1 / SQRT2)) if unit_dc else band
        if count < length:
            band = _on_split_places(band.transposed(), length).transposed()
        bands.append(band)
        length += count
    return tuple(reversed(bands))


def _snapped(band: Band) -> Band:
    """Round weights within an ulp of 1/2 or 1, an error of sqrt(2) * sqrt(1/2), so that Haar copies exactly."""
    near = np.round(band.weight * 2) / 2
    weight = np.where(np.abs(band.weight - near) < 1e-15, near, band.weight)
    return Band(band.index, weight, band.source)


def _on_split_places(level: Band, length: int) -> Band:
    """Embed a synthesis level of `level.source` places into an axis of `length` places."""
    split = split_places(length, level.source)
    places = np.flatnonzero(split)
    width = np.where(split, 2, 1)
    start = np.cumsum(width) - width  # first target entry of every place
    outputs = np.stack([start[places], start[places] + 1], axis=1).reshape(-1)
    whole = np.flatnonzero(~split)
    taps = level.index.shape[1]
    rows = np.concatenate([start[whole], np.repeat(outputs, taps)])
    columns = np.concatenate([whole, places[level.index.reshape(-1)]])
    values = np.concatenate([np.ones(len(whole)), level.weight.reshape(-1)])
    return banded(rows, columns, values, int(width.sum()), length)


def _analysis_band(length: int, wavelet: str) -> Band:
    low = np.asarray(pywt.Wavelet(check_name(wavelet)).dec_lo)
    k, j = np.meshgrid(np.arange(length // 2), np.arange(len(low)), indexing="ij")
    columns = (2 * k + len(low) // 2 - j) % length
    return _filter_band(k, columns, low[j], length // 2, length)


def _synthesis_band(length: int, wavelet: str) -> Band:
    low = np.asarray(pywt.Wavelet(check_name(wavelet)).rec_lo)
    k, j = np.meshgrid(np.arange(length), np.arange(len(low)), indexing="ij")
    rows = (2 * k + j - len(low) // 2 + 1) % (2 * length)
    return _filter_band(rows, k, low[j], 2 * length, length)


def _filter_band(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, target: int, source: int) -> Band:
    keep = values.reshape(-1) != 0  # biorthogonal filters are padded with zeros
    rows, columns, values = (a.reshape(-1)[keep] for a in (rows, columns, values))
    return banded(rows, columns, values, target, source)


def _check_call(x: Tensor, level: int, axis: int | Sequence[int]) -> list[int]:
    """The axes as indices from the first."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise BadOption(f"wavelets need a floating-point torch tensor, got {got}; convert it first.")
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise BadOption(f"level must be a whole number of at least 0, got {level!r}.")
    given = axis if isinstance(axis, Sequence) and not isinstance(axis, str) else [axis]
    axes = [_axis(each, x) for each in given]
    if len(set(axes)) < len(axes):
        raise BadOption(f"axes {axis} of shape {tuple(x.shape)} name one axis twice; use level for several levels.")
    return axes


def _axis(axis: object, x: Tensor) -> int:
    """The index of an axis; an axis that is no integer is refused like one out of range."""
    try:
        index = -1 - x.dim() if isinstance(axis, bool) else operator.index(axis)  # type: ignore[arg-type]
    except TypeError:
        index = -1 - x.dim()
    if not -x.dim() <= index < x.dim():
        raise BadOption(f"axis {axis!r} is not one of the {x.dim()} axes of shape {tuple(x.shape)}.")
    return index % x.dim()


__all__ = ["analysis", "analysis_map", "check_name", "names", "synthesis", "synthesis_map"]


def __dir__() -> list[str]:
    return sorted(__all__)
