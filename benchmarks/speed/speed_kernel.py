"""The low-pass of one stack of matrices against memcpy, PyWavelets and ptwt, results compared first."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pywt
import speed_rivals as rivals
import torch
from speed_device import Device
from speed_figures import low_pass_multiply_adds
from speed_process import forked
from torch import Tensor

from transformers_bot import wavelets

TABLE_5 = ("haar", "db2", "db4", "sym8", "coif3", "bior3.3", "bior4.4", "bior6.8", "rbio3.3", "dmey")
DIRECTIONS = ("analysis", "synthesis")
STACK, QUICK_STACK = (12, 768, 3072), (12, 192, 768)
ALL_AXES = (0, 1, 2)
SLOW = 2.5  # seconds: cases that take longer are not repeated
MATMUL = 1024  # side of the product that shows how fast the machine multiplies and adds


class WrongResult(Exception):
    """A subject's result differs from that of PyWavelets in float64."""


@dataclass(frozen=True)
class Case:
    """One low-pass: `large` is the input of an analysis and the result of a synthesis."""

    wavelet: str
    direction: str
    axes: tuple[int, ...] = ALL_AXES
    dtype: str = "float32"
    level: int = 1
    large: tuple[int, ...] = STACK

    @property
    def small(self) -> tuple[int, ...]:
        return tuple(n >> self.level if axis in self.axes else n for axis, n in enumerate(self.large))

    @property
    def key(self) -> str:
        axes = "all axes" if self.axes == ALL_AXES else " ".join(("depth", "rows", "columns")[a] for a in self.axes)
        return f"{self.wavelet} {self.direction}, {axes}, {self.dtype}, level {self.level}"


def cases(quick: bool = False) -> Iterator[Case]:
    """Every wavelet at float32, level 1, all axes; then axes, dtypes and levels of a few of them."""
    few = ("haar",) if quick else ("haar", "db2", "bior6.8")
    shape = QUICK_STACK if quick else STACK
    for direction in DIRECTIONS:
        base = Case("haar", direction, large=shape)
        yield from (replace(base, wavelet=name) for name in (("haar", "db2", "bior6.8") if quick else TABLE_5))
        for name in ("haar",) if quick else ("haar", "db2", "dmey"):
            yield from (replace(base, wavelet=name, axes=(axis,)) for axis in ALL_AXES)
        for dtype in ("bfloat16", "float16", "float64"):
            yield from (replace(base, wavelet=name, dtype=dtype) for name in few)
        yield from (replace(base, wavelet=name, level=2) for name in few)


def run(store: Any, options: Any, say: Callable[[str], None]) -> list[str]:
    """Measure every case that is wanted, each in a process of its own; return what went wrong."""
    if not rivals.has_ptwt():
        say("ptwt is not installed: pip install ptwt==1.0.1 to compare with it")
    failures = []
    for case in cases(options.quick):
        if not options.wants(case.key) or (options.resume and store.has(case.key)):
            continue
        try:
            store.add(case.key, forked(measured, case, options.device, options.repeats, options.full))
        except WrongResult as error:
            store.remove(case.key)
            failures.append(f"{case.key}: {error}")
            say(f"WRONG {failures[-1]}")
            continue
        say(summary(case.key, store.data["cases"][case.key]))
    return failures


def measured(case: Case, device_name: str, repeats: int, full: bool = False) -> dict[str, Any]:
    """Seconds of every subject in every round, after a check that each result equals the oracle's."""
    device = Device(device_name)
    x = stack(case).to(device.name)
    subjects, notes = _subjects(x, case, device, full)
    taps = taps_of(case)
    expected = rivals.oracle(x, case)
    first, errors = {}, {}
    for name, (call, as_ours) in subjects.items():
        results: list[Any] = []
        first[name] = device.seconds(lambda c=call, r=results: r.append(c()))
        if as_ours is not None:
            errors[name] = difference(name, as_ours(results.pop()), expected, case.dtype, terms=taps ** len(case.axes))
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(repeats):
        for name, (call, _) in subjects.items():
            if first[name] <= SLOW:
                seconds[name].append(device.seconds(call, calls=20 if device.is_cuda else 1))
            elif turn == 0:
                seconds[name].append(first[name])
    multiply_adds = low_pass_multiply_adds(case.large, case.axes, case.level, taps)
    shapes = {"small": list(case.small), "itemsize": x.element_size(), "taps": taps, "multiply_adds": multiply_adds}
    return {
        "case": asdict(case),
        "device": device.title,
        **shapes,
        "seconds": seconds,
        "errors": errors,
        "notes": notes,
    }


def taps_of(case: Case) -> int:
    """Coefficients of the filter that are not zero: biorthogonal ones are padded."""
    wavelet = pywt.Wavelet(case.wavelet)
    low = wavelet.dec_lo if case.direction == "analysis" else wavelet.rec_lo
    return sum(value != 0 for value in low)


def stack(case: Case) -> Tensor:
    """The input: normal numbers, the same for the same shape."""
    shape = case.large if case.direction == "analysis" else case.small
    generator = torch.Generator().manual_seed(0)
    double = case.dtype == "float64"
    x = torch.randn(shape, generator=generator, dtype=torch.float64 if double else torch.float32)
    return x.to(getattr(torch, case.dtype))


def ours(x: Tensor, case: Case) -> Tensor:
    function = wavelets.analysis if case.direction == "analysis" else wavelets.synthesis
    return function(x, case.wavelet, level=case.level, axis=case.axes)


def _subjects(x: Tensor, case: Case, device: Device, full: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """name -> (call, what makes its result comparable; None for the yardsticks), and why one is missing."""
    whole = torch.zeros(case.large, dtype=x.dtype, device=x.device)
    copy = torch.ones_like(whole)
    square = torch.ones(MATMUL, MATMUL, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    subjects: dict[str, Any] = {
        "ours": (lambda: ours(x, case), _as_is),
        "memcpy": (lambda: copy.copy_(whole), None),
        "clone": (whole.clone, None),
        "matmul": (lambda: square @ square, None),
    }
    notes = {}
    if case.dtype in ("float32", "float64") and not device.is_cuda:
        subjects |= {name: (call, torch.from_numpy) for name, call in rivals.pywt_subjects(x, case).items()}
    else:
        notes["pywt"] = "runs on a CPU, in float32 and float64"
    reason = rivals.ptwt_refuses(case, full)
    if reason is None:
        subjects["ptwt"] = rivals.ptwt_subject(x, case)
    else:
        notes["ptwt"] = reason
    return subjects, notes


def _as_is(x: Tensor) -> Tensor:
    return x


def difference(
    name: str, got: Tensor, expected: Tensor, dtype: str, terms: int = 1, judge: str = "PyWavelets in float64"
) -> float:
    """The largest difference as a share of the largest entry; more than rounding explains raises `WrongResult`.

    Rounding: 32 units of the last place of the dtype that sums are made in, as many more as the square root of the
    terms of one sum (their errors are of either sign), and one rounding to the dtype itself.
    """
    if got.shape != expected.shape:
        raise WrongResult(f"{name} has shape {tuple(got.shape)}, that of {judge} is {tuple(expected.shape)}.")
    found = getattr(torch, dtype)
    if got.dtype != found:
        raise WrongResult(f"{name} gives {got.dtype} from {found}.")
    compute = torch.promote_types(found, torch.float32)
    allowed = (32 + terms**0.5) * torch.finfo(compute).eps + (torch.finfo(found).eps if found != compute else 0)
    largest = float(expected.abs().max())
    error = float((got.cpu().double() - expected).abs().max()) / (largest or 1.0)
    if not error <= allowed:  # NaN, too
        raise WrongResult(f"{name} is {error:.2g} of the largest entry off {judge}, {allowed:.2g} allowed.")
    return error


def summary(key: str, case: dict[str, Any]) -> str:
    """One line per case: our time as a multiple of a copy's, and the rivals' as multiples of ours."""
    from speed_tables import kernel_ratios

    found = kernel_ratios(case)
    return f"{key}: " + ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)
