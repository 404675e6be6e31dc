"""The figure of a transfer report: where energy was lost, and where the spread of the weights changed."""

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

# The class of a report imports this module, so this module does not import the class.
Report: TypeAlias = Any
Tensor: TypeAlias = Any

ONCE = "-"  # the column of tensors outside the layers
ROW, COLUMN = 0.19, 0.24  # inches of a cell
WIDEST = 7.0  # inches of a heat map; if that is too little, its columns get narrower
NAME = 60  # characters of a row's label
UNKNOWN = 0.85  # grey of cells that were not measured


def plot(report: Report, path: Path | None) -> "Path | Figure":
    """Two heat maps with a row per kind of tensor and a column per layer; returns the figure, or the written file."""
    kinds, columns = _grid(report.tensors)
    height, width = len(kinds), len(columns)
    kept = _values(report, kinds, columns, lambda tensor: tensor.energy_kept)
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
    """Kinds of tensors in the target's order, and the columns: one for tensors outside the layers, then the layers."""
    places = [_place(tensor.name) for tensor in tensors if tensor.action != "tie"]
    layers = sorted({int(column) for _, column in places if column != ONCE})
    once = [ONCE] if any(column == ONCE for _, column in places) else []
    return list(dict.fromkeys(kind for kind, _ in places)), once + [str(layer) for layer in layers]


def _place(name: str) -> tuple[str, str]:
    """Kind and column of a tensor.

    >>> _place("h.3.ln_1.weight"), _place("wte.weight")
    (('h.*.ln_1.weight', '3'), ('wte.weight', '-'))
    """
    match = re.search(r"\.(\d+)\.", name)
    return (name, ONCE) if match is None else (f"{name[: match.start()]}.*.{name[match.end() :]}", str(int(match[1])))


def _values(
    report: Report, kinds: list[str], columns: list[str], value: "Callable[[Tensor], float | None]"
) -> np.ndarray:
    """(kind, column): NaN if the value was not measured, infinity if there is no such tensor."""
    grid = np.full((len(kinds), len(columns)), np.inf)
    for tensor in report.tensors:
        if tensor.action != "tie":
            kind, column = _place(tensor.name)
            shown = value(tensor)
            grid[kinds.index(kind), columns.index(column)] = np.nan if shown is None else shown
    return grid


def _log_ratio(tensor: Tensor) -> float | None:
    return math.log2(tensor.std_after / tensor.std_before) if tensor.std_before and tensor.std_after else None


def _heat(figure: Any, axes: Any, values: np.ndarray, columns: list[str], title: str, colours: dict[str, Any]) -> None:
    shape = {"aspect": "auto", "interpolation": "nearest"}
    axes.imshow(np.where(np.isnan(values), UNKNOWN, 1.0), cmap="gray", vmin=0, vmax=1, **shape)
    image = axes.imshow(np.ma.masked_invalid(values), **shape, **colours)
    step = max(1, len(columns) // 16)
    axes.set_xticks(range(0, len(columns), step), columns[::step], fontsize=7)
    axes.set_xlabel("layer (-: outside the layers; grey: not measured)", fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, aspect=30)
    bar.ax.tick_params(labelsize=7)
