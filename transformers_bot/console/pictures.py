"""Matplotlib's part of every picture: figures that notebooks show and files keep, without pyplot and a screen."""

import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadOption

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100  # of a figure in a notebook


def picture(width: float, height: float) -> "Figure":
    """An empty figure, in inches. Pyplot knows nothing of it, so nothing has to be closed; a notebook shows it.

    Raises:
        BadOption: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise BadOption('a picture needs matplotlib: pip install "transformers-bot[plot]".') from None
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    made._repr_png_ = partial(_png, made)  # type: ignore[attr-defined]  # what notebooks ask for
    return made


def save(figure: "Figure", path: Path, dpi: int) -> Path:
    """Write a figure to a file, whose ending says its format; without one it gets `.png`.

    Raises:
        BadOption: an ending that matplotlib does not write.
    """
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    endings = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in endings:
        raise BadOption(f"{path.name} must end in one of {', '.join('.' + one for one in endings)}.")
    figure.savefig(path, dpi=dpi)
    return path


def _png(figure: "Figure") -> bytes:
    made = io.BytesIO()
    figure.savefig(made, dpi=DPI, format="png")
    return made.getvalue()
