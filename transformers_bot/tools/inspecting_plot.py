"""The heat map of `inspect`: what halving each role keeps, kind of tensor by layer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console.pictures import picture, save
from ..errors import BadOption

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .inspecting import Inspection, Stack

NOISE = 0.5  # what weights without order keep of a halved axis
CELL, ROW = 0.46, 0.27  # inches of a cell with its number in it
MANY = 16  # layers; beyond so many a cell has no room for a number


def plot(found: "Inspection", path: Path | None) -> "Path | Figure":
    """A picture of `found`: the figure, or the file it is written to; see `Inspection.plot`."""
    panels = _panels(found)
    if not panels:
        raise BadOption(f"{found.model_class} has no layers to draw.")
    layers = max(stack.layers for stack in found.stacks)
    rows = [len(panel) for panel in panels.values()]
    size = (4.5 + CELL * min(layers, MANY), 1.2 + sum(ROW * count + 0.7 for count in rows))
    figure = picture(*size)
    all_axes = figure.subplots(len(panels), 1, height_ratios=rows, squeeze=False)[:, 0]
    for axes, (role, stacks) in zip(all_axes, panels.items(), strict=True):
        image = _panel(axes, role, stacks, layers)
    figure.suptitle(f"{found.model_class}: share of the energy kept, one {found.wavelet} level", fontsize=11)
    figure.colorbar(image, ax=all_axes.tolist(), label="kept (0.5: no more than of noise)", shrink=0.6)
    return figure if path is None else save(figure, path, dpi=120)


def _panels(found: "Inspection") -> dict[str, list["Stack"]]:
    """Role -> the layered matrices that have it; biases and norms are too short to tell anything."""
    panels: dict[str, list[Stack]] = {}
    for stack in found.stacks:
        for role in stack.by_layer:
            if len(stack.shape) > 1:
                panels.setdefault(role, []).append(stack)
    return panels


def _panel(axes: Any, role: str, stacks: "list[Stack]", layers: int) -> Any:
    values = [list(stack.by_layer[role]) + [float("nan")] * (layers - stack.layers) for stack in stacks]
    image = axes.imshow(values, cmap="RdBu", vmin=0, vmax=2 * NOISE, aspect="auto")
    axes.set_title(f"halving {role}", fontsize=10, loc="left")
    axes.set_yticks(range(len(stacks)), [stack.name.partition("{layer}.")[2] for stack in stacks], fontsize=8)
    axes.set_xticks(range(0, layers, 1 if layers <= MANY else max(1, layers // 8)))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("layer", fontsize=8)
    if layers <= MANY:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7)
    return image
