"""Figures of matplotlib for notebooks and files, made without pyplot, so that no screen is needed."""

import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadOption

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100  # of a figure in a notebook


def picture(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches. A notebook shows it; pyplot does not hold it, so it need not be closed.

    Raises:
        BadOption: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise BadOption('a picture needs matplotlib: pip install "transformers-bot[plot]".') from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]  # the method that notebooks call
    return figure


def save(figure: "Figure", path: Path, dpi: int) -> Path:
    """Write a figure to a file in the format of its ending; a path without ending gets `.png`.

    Raises:
        BadOption: an ending that matplotlib does not write.
    """
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    endings = sorted(figure.canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in endings:
        raise BadOption(f"{path.name} must end in one of {', '.join('.' + ending for ending in endings)}.")
    figure.savefig(path, dpi=dpi)
    return path


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    return buffer.getvalue()
