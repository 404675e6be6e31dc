"""Figures computed from measured seconds: medians, spreads, ratios, and lower bounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

Shape = Sequence[int]


@dataclass(frozen=True)
class Spread:
    """A median with the lowest and the highest value."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return short(self.median)
        return f"{short(self.median)} [{short(self.low)}, {short(self.high)}]"


def short(value: float) -> str:
    """Three significant digits without an exponent.

    >>> short(0.01234), short(1.5), short(1234.5)
    ('0.0123', '1.50', '1234')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def spread(values: Sequence[float]) -> Spread:
    """
    >>> print(spread([3.0, 1.0, 2.0]))
    2.00 [1.00, 3.00]
    """
    return Spread(median(values), min(values), max(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Our seconds as a multiple of `theirs`: the ratio of the medians, and its range over the rounds.

    Values of the same round were measured one after the other and are divided by each other; if one side was
    measured less often, its median is used for the missing rounds.

    >>> print(ratio([2.0, 4.0, 6.0], [1.0, 2.0, 2.0]))
    2.00 [2.00, 3.00]
    """
    rounds = max(len(ours), len(theirs))
    pairs = zip(_filled(ours, rounds), _filled(theirs, rounds), strict=True)
    quotients = [one / other for one, other in pairs]
    middle = median(ours) / median(theirs)
    return Spread(middle, min(*quotients, middle), max(*quotients, middle))


def _filled(values: Sequence[float], rounds: int) -> list[float]:
    return list(values) if len(values) == rounds else [median(values)] * rounds


def low_pass_multiply_adds(large: Shape, axes: Sequence[int], level: int, taps: int) -> int:
    """Multiply-adds of a separable low-pass between the shape `large` and the one halved `level` times on `axes`.

    One axis after the other, each level of a filter of `taps` coefficients takes `taps` for every entry of the
    smaller side, in both directions (analysis sums `taps` entries into one, synthesis spreads one onto `taps`).

    >>> low_pass_multiply_adds((4, 8), axes=(0, 1), level=1, taps=2)  # 2 x 8 and 2 x 4 sums of 2
    48
    """
    shape, total = list(large), 0
    for _ in range(level):
        for axis in axes:
            shape[axis] //= 2
            total += taps * math.prod(shape)
    return total


def resize_multiply_adds(source: Shape, target: Shape) -> int:
    """Multiply-adds of the shortest filter (Haar: every entry of the longer side counts once), axis after axis.

    Axes that shrink come first and the longest ratio of them leads, so that the rest works on the least.

    >>> resize_multiply_adds((4, 8), (2, 4))
    48
    """
    shape, total = list(source), 0
    for axis in sorted(range(len(shape)), key=lambda axis: target[axis] / source[axis]):
        if source[axis] != target[axis]:
            others = math.prod(shape) // shape[axis]
            total += others * max(source[axis], target[axis])
            shape[axis] = target[axis]
    return total


def floor_seconds(moved: float, copied: float, copy_seconds: float) -> float:
    """Seconds that moving `moved` bytes takes at the bandwidth of a copy that moved `copied` bytes.

    >>> floor_seconds(moved=50.0, copied=200.0, copy_seconds=2.0)
    0.5
    """
    return moved * copy_seconds / copied


def fitted_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, list[float]]:
    """Least squares y = a + b x: a, b and the residuals.

    >>> fitted_line([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    (1.0, 2.0, [0.0, 0.0, 0.0])
    """
    if len(set(x)) < 2:
        raise ValueError(f"a line needs two different sizes, got {list(x)}.")
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    slope = sum((u - x_mean) * (v - y_mean) for u, v in zip(x, y, strict=True)) / sum((u - x_mean) ** 2 for u in x)
    start = y_mean - slope * x_mean
    return start, slope, [v - (start + slope * u) for u, v in zip(x, y, strict=True)]
