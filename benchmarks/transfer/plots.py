"""One figure per setting: the metric against training FLOPs, and savings as bars whose labels are the legend."""

import math
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter
from summary import Result, Row, headline

# Okabe and Ito's colours, which colour-blind people can distinguish; after the fifth rival dashes and hatches change
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00")
OURS = ("#0072B2", "#243B55", "#8FB8DE")
DASHES = ("-", "--", ":", "-.")


def draw(found: list[Result], folder: Path, stem: str) -> list[Path]:
    """Write all pictures of a suite as PNG; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for result in found:
        if result.trained():
            drawn.append(_setting(result, folder / f"{stem}-{result.setting.name}.png"))
    if any(result.trained() and result.row("scratch") for result in found):
        drawn.append(_overview(found, folder / f"{stem}-savings.png"))
    return drawn


def _styles(result: Result) -> dict[str, dict[str, object]]:
    """Method -> line style: BoT with its defaults thick and solid, scratch grey, each other one its own."""
    styles: dict[str, dict[str, object]] = {
        "bot": {"color": OURS[0], "linestyle": "-", "linewidth": 2.6},
        "scratch": {"color": "#7F7F7F", "linestyle": "-", "linewidth": 1.8},
    }
    others = [row for row in result.trained() if row.method.name not in styles]
    for place, row in enumerate(row for row in others if row.ours):
        colour, dash = OURS[(place + 1) % len(OURS)], DASHES[(place + 1) % len(DASHES)]
        styles[row.method.name] = {"color": colour, "linestyle": dash, "linewidth": 2.0}
    for place, row in enumerate(row for row in others if not row.ours):
        dash = DASHES[place // len(COLOURS) % len(DASHES)]
        styles[row.method.name] = {"color": COLOURS[place % len(COLOURS)], "linestyle": dash, "linewidth": 1.4}
    return styles


def _setting(result: Result, path: Path) -> Path:
    rows = sorted(result.trained(), key=lambda row: row.mean(result.setting.metric), reverse=result.higher)
    styles = _styles(result)
    height = max(3.6, 0.3 * len(rows) + 1.4)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, height), width_ratios=(3, 2), layout="constrained")
    _curves(left, result, rows, styles)
    if result.row("scratch"):
        _bars(right, rows, styles)
    else:
        _ends(right, result, rows)
    _label(right, rows, styles)
    figure.suptitle(result.setting.title, fontsize=12)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _curves(axes: Axes, result: Result, rows: list[Row], styles: dict[str, dict[str, object]]) -> None:
    for row in reversed(rows):
        flops, values = _stacked(row)
        axes.plot(flops, values.mean(0), label=row.method.name, **styles[row.method.name])
        if len(values) > 1:
            axes.fill_between(flops, values.min(0), values.max(0), color=styles[row.method.name]["color"], alpha=0.12)
    first = min(flops for row in rows for curve in row.curves.values() for flops, _ in curve if flops > 0)
    axes.set_xscale("symlog", linthresh=first, linscale=0.3)
    axes.set_xlim(left=0)
    last = max(flops for row in rows for curve in row.curves.values() for flops, _ in curve)
    decades = [10.0**power for power in range(math.ceil(math.log10(first)), math.ceil(math.log10(last)) + 1)]
    axes.set_xticks([0.0, *decades], ["0", *(f"$10^{{{round(math.log10(decade))}}}$" for decade in decades)])
    axes.set_xlim(right=last * 1.3)
    axes.xaxis.set_minor_formatter(NullFormatter())
    values = [value for row in rows for curve in row.curves.values() for _, value in curve]
    if result.setting.metric.startswith("loss") and max(values) > 1.6 * min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training FLOPs (linear up to the first step, then logarithmic)")
    axes.set_ylabel(f"{result.setting.metric} on held-out data ({'higher' if result.higher else 'lower'} is better)")
    axes.grid(alpha=0.25)


def _stacked(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(FLOPs, values as (seed, evaluation)); FLOPs of different seeds differ only by the lengths of their texts."""
    curves = list(row.curves.values())
    points = min(map(len, curves))
    flops = np.mean([[flops for flops, _ in curve[:points]] for curve in curves], axis=0)
    return flops, np.array([[value for _, value in curve[:points]] for curve in curves])


def _bars(axes: Axes, rows: list[Row], styles: dict[str, dict[str, object]]) -> None:
    """Savings, the best final figure on top; each label has a piece of its line."""
    lowest = -100.0
    for place, row in enumerate(reversed(rows)):
        style = styles[row.method.name]
        saved, bound = row.saved(), row.bound()
        if saved:
            values = [100 * value for value in saved]
            mean = sum(values) / len(values)
            hatch = "" if style["linestyle"] == "-" else "///"
            axes.barh(place, max(mean, lowest), color=style["color"], height=0.62, hatch=hatch, edgecolor="white")
            if len(values) > 1 and max(values) > lowest:
                axes.plot([max(min(values), lowest), max(values)], [place, place], color="black", linewidth=1)
            axes.text(max(0.0, *values) + 2, place, f"{mean:.0f} %", va="center", fontsize=9)
        elif bound is not None:
            axes.text(2, place, f"not reached (< {100 * bound:.0f} %)", va="center", fontsize=9, color="#444444")
        else:
            axes.text(2, place, "n/a: scratch gained nothing", va="center", fontsize=9, color="#444444")
    shown = [100 * value for row in rows for value in row.saved() or []]
    axes.set_xlim(min(0, max(lowest, min(shown, default=0))) - 3, 120)
    axes.set_xticks([tick for tick in (-100, -50, 0, 50, 100) if tick >= axes.get_xlim()[0]])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("training FLOPs saved against scratch, %")


def _ends(axes: Axes, result: Result, rows: list[Row]) -> None:
    """The figure at the end of training and its spread, if scratch did not run."""
    metric = result.setting.metric
    for place, row in enumerate(reversed(rows)):
        values = row.finals[metric]
        axes.plot([min(values), max(values)], [place, place], color="black", linewidth=1)
        axes.plot(row.mean(metric), place, "o", color="black", markersize=5)
    axes.set_xlabel(f"{metric} at the end of training")
    axes.grid(axis="x", alpha=0.25)


def _label(axes: Axes, rows: list[Row], styles: dict[str, dict[str, object]]) -> None:
    """The methods' names, the best on top, each with a piece of its line: the legend of both panels."""
    for place, row in enumerate(reversed(rows)):
        style = styles[row.method.name]
        axes.plot([-0.09, -0.015], [place, place], transform=axes.get_yaxis_transform(), clip_on=False, **style)
    axes.set_yticks(range(len(rows)), [row.method.name for row in reversed(rows)])
    axes.tick_params(axis="y", length=0, pad=30)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _overview(found: list[Result], path: Path) -> Path:
    """BoT with its defaults and the best rival in every setting."""
    kept = [result for result in found if result.trained() and result.row("scratch")]
    figure, axes = plt.subplots(figsize=(9, 0.62 * len(kept) + 1.6), layout="constrained")
    for place, result in enumerate(reversed(kept)):
        default, _, rival = headline(result)
        for shift, row, colour in ((0.2, default, OURS[0]), (-0.2, rival, COLOURS[0])):
            if row is None:
                continue
            saved = row.saved()
            mean = 100 * sum(saved) / len(saved) if saved else 0.0
            axes.barh(place + shift, max(mean, -100), height=0.36, color=colour)
            missed = "not reached" if row.bound() is not None else "scratch gained nothing"
            label = f"{row.method.name}: {mean:.0f} %" if saved else f"{row.method.name}: {missed}"
            axes.text(max(mean, 0) + 1, place + shift, label, va="center", fontsize=8)
    axes.set_yticks(range(len(kept)), [result.setting.title for result in reversed(kept)])
    axes.set_xlim(right=145)
    axes.set_ylim(-0.6, len(kept) - 0.4)
    axes.set_xticks([tick for tick in (-100, -50, 0, 25, 50, 75, 100) if tick >= axes.get_xlim()[0]])
    axes.axvline(0, color="black", linewidth=0.8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (OURS[0], COLOURS[0])]
    figure.legend(handles, ["BoT with its defaults", "best rival"], loc="outside upper center", ncols=2, frameon=False)
    axes.set_xlabel("training FLOPs saved against scratch, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
