"""One picture of a transfer report: where energy was lost, and where the weights' spread changed."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..console.pictures import picture, save
from ..console.text import cut, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is printed is handed over by the class that is printed, which imports this module: no import goes back to it.
Report: TypeAlias = Any
Tensor: TypeAlias = Any

ONCE = "-"  # the column of tensors outside of the layers
ROW, COLUMN = 0.19, 0.24  # inches of a cell
WIDEST = 7.0  # inches of a heat map: beyond it columns become narrower
NAME = 60  # characters of a row's label
UNKNOWN = 0.85  # grey of what was not measured


def plot(report: Report, path: Path | None) -> "Path | Figure":
    """Two heat maps with a row per kind of tensor and a column per layer: the figure, or the file it is written to."""
    kinds, columns = _grid(report.tensors)
    height, width = len(kinds), len(columns)
    kept = _values(report, kinds, columns, lambda one: one.energy_kept)
    spread = _values(report, kinds, columns, _log_ratio)
    names = 0.075 * max(len(cut(printable(kind), NAME)) for kind in kinds)
    inches = names + 2 * min(WIDEST, max(2.2, COLUMN * width)) + 1.2, max(2.5, ROW * height + 1.4)
    figure = picture(*inches)
    left, right = figure.subplots(1, 2, sharey=True)
    _heat(figure, left, kept, columns, "energy kept", {"cmap": "viridis", "vmin": 0, "vmax": 1})
    limit = max(1.0, float(np.abs(spread[np.isfinite(spread)]).max(initial=0.0)))
    bounds = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    _heat(figure, right, spread, columns, "std after / before, log2", bounds)
    left.set_yticks(range(height), [cut(printable(kind), NAME) for kind in kinds], fontsize=7, parse_math=False)
    before, after = report.classes
    title = f"{before} to {after}, {report.parameters[0]:,} to {report.parameters[1]:,} parameters"
    figure.suptitle(printable(title), fontsize=10, parse_math=False)
    return figure if path is None else save(figure, path, dpi=150)


def _grid(tensors: "tuple[Tensor, ...]") -> tuple[list[str], list[str]]:
    """Kinds of tensors in the target's order, and the layers, before them one column for all else."""
    placed = [_place(one.name) for one in tensors if one.action != "tie"]
    layers = sorted({int(column) for _, column in placed if column != ONCE})
    once = [ONCE] if any(column == ONCE for _, column in placed) else []
    return list(dict.fromkeys(kind for kind, _ in placed)), once + [str(layer) for layer in layers]


def _place(name: str) -> tuple[str, str]:
    """Kind and column of a tensor.

    >>> _place("h.3.ln_1.weight"), _place("wte.weight")
    (('h.*.ln_1.weight', '3'), ('wte.weight', '-'))
    """
    found = re.search(r"\.(\d+)\.", name)
    return (name, ONCE) if found is None else (f"{name[: found.start()]}.*.{name[found.end() :]}", str(int(found[1])))


def _values(
    report: Report, kinds: list[str], columns: list[str], value: "Callable[[Tensor], float | None]"
) -> np.ndarray:
    """(kind, column): NaN where nothing was measured, infinity where there is no tensor."""
    found = np.full((len(kinds), len(columns)), np.inf)
    for one in report.tensors:
        if one.action != "tie":
            kind, column = _place(one.name)
            shown = value(one)
            found[kinds.index(kind), columns.index(column)] = np.nan if shown is None else shown
    return found


def _log_ratio(one: Tensor) -> float | None:
    return math.log2(one.std_after / one.std_before) if one.std_before and one.std_after else None


def _heat(figure: Any, axes: Any, values: np.ndarray, columns: list[str], title: str, colours: dict[str, Any]) -> None:
    shape = {"aspect": "auto", "interpolation": "nearest"}
    axes.imshow(np.where(np.isnan(values), UNKNOWN, 1.0), cmap="gray", vmin=0, vmax=1, **shape)
    drawn = axes.imshow(np.ma.masked_invalid(values), **shape, **colours)
    step = max(1, len(columns) // 16)
    axes.set_xticks(range(0, len(columns), step), columns[::step], fontsize=7)
    axes.set_xlabel("layer (-: outside of the layers; grey: not measured)", fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.tick_params(length=0)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, aspect=30)
    bar.ax.tick_params(labelsize=7)
