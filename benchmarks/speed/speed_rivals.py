"""The same low-pass by PyWavelets and by ptwt, called so that all of them give the same numbers.

Both sides are wavelet low-passes with the signal continued periodically. PyWavelets has that as a mode. ptwt has not
for axes shorter than the filter, so analysis runs in its mode "zero", whose longer result folds onto the period (a
convolution is linear), and synthesis is given the low band continued periodically, as long as ptwt needs it. With
filters of F coefficients the two grids differ by one place where F/2 is even; then ptwt's input (or result) is rolled.
Only ptwt's own call is timed: rolling, continuing and folding are not.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pywt
import torch
from torch import Tensor

MODE = "periodization"
PTWT_MOST = {"analysis": 1e12, "synthesis": 1e11}  # multiply-adds; with more, one call takes minutes
PTWT_MEMORY = 8e9  # bytes
FLOAT64 = 8  # bytes
PTWT_FULL = 1e13  # with more, one call takes hours
DETAILS = ("aad", "ada", "add", "daa", "dad", "dda", "ddd")


def has_ptwt() -> bool:
    return importlib.util.find_spec("ptwt") is not None


def low_band(x: np.ndarray, wavelet: str, level: int, axes: tuple[int, ...]) -> np.ndarray:
    """Analysis axis by axis; PyWavelets makes the detail band of each axis, too, and it is dropped."""
    for _ in range(level):
        for axis in axes:
            x = pywt.dwt(x, wavelet, MODE, axis)[0]
    return x


def grown(x: np.ndarray, wavelet: str, level: int, axes: tuple[int, ...]) -> np.ndarray:
    """Synthesis axis by axis without detail bands."""
    for _ in range(level):
        for axis in axes:
            x = pywt.idwt(x, None, wavelet, MODE, axis)
    return x


def all_bands(x: np.ndarray, wavelet: str, level: int, axes: tuple[int, ...]) -> np.ndarray:
    """Analysis by the transform in several axes, with all of its bands; the low one is returned."""
    for _ in range(level):
        x = pywt.dwtn(x, wavelet, MODE, axes)["a" * len(axes)]
    return x


def from_bands(x: np.ndarray, wavelet: str, level: int, axes: tuple[int, ...]) -> np.ndarray:
    """Synthesis by the transform in several axes, of which only the low band is given."""
    for _ in range(level):
        x = pywt.idwtn({"a" * len(axes): x}, wavelet, MODE, axes)
    return x


def oracle(x: Tensor, case: Any) -> Tensor:
    """The result in float64 by PyWavelets."""
    exact = low_band if case.direction == "analysis" else grown
    return torch.from_numpy(exact(x.cpu().double().numpy(), case.wavelet, case.level, case.axes))


def pywt_subjects(x: Tensor, case: Any) -> dict[str, Callable[[], np.ndarray]]:
    """PyWavelets twice: the transform in all axes at once, and axis by axis the low band alone."""
    array = x.cpu().numpy()
    if case.direction == "analysis":
        calls = {"pywt.dwtn": all_bands, "pywt.dwt low band": low_band}
    else:
        calls = {"pywt.idwtn": from_bands, "pywt.idwt low band": grown}
    return {name: partial(call, array, case.wavelet, case.level, case.axes) for name, call in calls.items()}


def ptwt_refuses(case: Any, full: bool = False) -> str | None:
    """The reason why ptwt is not measured on a case; None if it is measured. `full` allows calls of minutes."""
    if case.axes != (0, 1, 2) or case.level != 1 or case.dtype not in ("float32", "float64"):
        return "only one level on all axes of float32 and float64 is compared"
    if not has_ptwt():
        return "not installed (pip install ptwt)"
    work = ptwt_multiply_adds(case.large, pywt.Wavelet(case.wavelet).dec_len)
    unfolded = work / 8 * FLOAT64  # torch copies what a filter reads for every place, where oneDNN has no such type
    if case.dtype == "float64" and unfolded > PTWT_MEMORY:
        return f"torch's float64 convolution would take {unfolded / 1e9:.0f} GB of memory"
    if work > PTWT_FULL:
        return f"a call takes {work:.0e} multiply-adds, which is hours"
    if work > PTWT_MOST[case.direction] and not full:
        return f"a call takes {work:.0e} multiply-adds, which is minutes; measured with --full"
    return None


def ptwt_multiply_adds(large: tuple[int, ...], taps: int) -> float:
    """What eight filters of taps x taps x taps cost at every place of ptwt's longer low band."""
    places = [(length + taps - 1) // 2 for length in large]
    return 8.0 * taps**3 * float(np.prod(places))


def ptwt_subject(x: Tensor, case: Any) -> tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]:
    """ptwt's call, and the function that turns its result into the common low-pass."""
    import ptwt

    half = pywt.Wavelet(case.wavelet).dec_len // 2
    if case.direction == "analysis":
        rolled = torch.roll(x, (1, 1, 1), (0, 1, 2)) if half % 2 == 0 else x
        call = partial(ptwt.wavedec3, rolled, case.wavelet, mode="zero", level=1)
        return lambda: call()[0], lambda low: _folded(low, case.small, half // 2)
    low = _continued(x, case.large, half)
    nothing = torch.zeros_like(low)
    coefficients = (low, dict.fromkeys(DETAILS, nothing))
    after = partial(torch.roll, shifts=(1, 1, 1), dims=(0, 1, 2)) if half % 2 == 0 else _same
    return partial(ptwt.waverec3, coefficients, case.wavelet), after


def _same(x: Tensor) -> Tensor:
    return x


def _folded(low: Tensor, period: tuple[int, ...], shift: int) -> Tensor:
    """On every axis, sum entries that are whole periods apart, and begin at the place `shift`."""
    for axis, length in enumerate(period):
        places = torch.arange(low.shape[axis], device=low.device) % length
        shape = [*low.shape]
        shape[axis] = length
        low = torch.zeros(shape, dtype=low.dtype, device=low.device).index_add_(axis, places, low)
        low = torch.roll(low, -shift, axis)
    return low


def _continued(x: Tensor, large: tuple[int, ...], half: int) -> Tensor:
    """The low band as long as ptwt needs it for `large`, continued periodically on every axis."""
    start = -(half // 2) + (half % 2 == 0)
    for axis, length in enumerate(large):
        places = (torch.arange(length // 2 + half - 1) + start) % x.shape[axis]
        x = x.index_select(axis, places.to(x.device))
    return x.contiguous()
