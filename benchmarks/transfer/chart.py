"""The README's chart, from the stored results alone: GPT-2 shrunk and grown, against random weights and the best rival.

python benchmarks/transfer/chart.py  # writes docs/images/gpt2.svg
"""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from plots import COLOURS, OURS
from store import Store
from summary import Result, Row, results

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "transfer-cpu.json"
CHART = ROOT / "docs" / "images" / "gpt2.svg"
PANELS = ("gpt2-shrink", "gpt2-grow")
# Text stays text; the same results give the same bytes.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "gpt2", "font.family": "sans-serif", "font.size": 10}


def draw(path: Path) -> None:
    """Write the chart as SVG, on a white card, so that it can be read in dark pages, too."""
    found = {result.setting.name: result for result in results(Store(RESULTS))}
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(PANELS), figsize=(9, 3.4), layout="constrained", facecolor="white")
        for axes, name in zip(panels, PANELS, strict=True):
            _panel(axes, found[name])
        panels[0].set_ylabel("loss on held-out text, lower is better")
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def curve(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(training FLOPs in units of 10^9, means over the seeds) at each evaluation of a method."""
    curves = np.array([points for _, points in sorted(row.curves.items())])  # (seed, evaluation, (FLOPs, metric))
    flops, values = curves.mean(axis=0).T
    return flops / 1e9, values


def _panel(axes: Axes, result: Result) -> None:
    lines = (
        (result.row("scratch"), "random weights", "#7F7F7F", "-", 1.8),
        (result.row("bot"), "transformers-bot", OURS[0], "-", 4.0),
        (result.rival(), f"best other method ({result.rival().method.name})", COLOURS[4], "--", 1.8),  # on top
    )
    for row, label, colour, dash, width in lines:
        flops, values = curve(row)
        axes.plot(flops, values, label=label, color=colour, linestyle=dash, linewidth=width)
    axes.set_title(result.setting.title.replace("x", " x "))
    axes.set_xlabel("training FLOPs, billions")
    axes.set_xlim(left=0)
    axes.set_ylim(2.5, 8.6)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=CHART, help="where to write it; docs/images/gpt2.svg by default")
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
