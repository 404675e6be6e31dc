"""An image processor's settings against a model's: sizes, channels, the numbers that normalise them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..errors import BadCheckpoint
from .reading import clean, read_json, shown

SETTINGS = "preprocessor_config.json"
# Where newer versions keep the image processor's settings: in this object of this file.
JOINT, IMAGES = "processor_config.json", "image_processor"
MOST = 4 * 2**20  # bytes of a settings file


def check_images(folder: Path, config: PreTrainedConfig) -> list[str]:
    """Sentences on what the folder's image processor gives and the model does not take."""
    if not hasattr(config, "image_size"):
        return []
    for name in (SETTINGS, JOINT):
        if not (folder / name).is_file():
            continue
        try:
            fields = read_json(folder / name, MOST)
        except BadCheckpoint as error:
            reason = clean(str(error).replace(f"{folder}/", ""))
            return [f"the source's {name} was copied but cannot be read: {reason}"]
        settings = fields.get(IMAGES) if name == JOINT else fields
        if isinstance(settings, dict):
            return [*_check_size(name, settings, config), *_check_channels(name, settings, config)]
    return []


def _check_size(name: str, settings: Mapping[str, Any], config: PreTrainedConfig) -> list[str]:
    """The last size that an image gets: a crop's, else what it is resized to."""
    wanted = _pair(config.image_size)
    crops = settings.get("do_center_crop") is True or (
        "crop_size" in settings and settings.get("do_center_crop") is None
    )
    field = "crop_size" if crops else "size"
    if not crops and settings.get("do_resize") is False:
        return []  # images are taken in whatever size they come
    value = settings.get(field)
    if value is None or wanted is None:
        return []
    made, edge = _given(value)
    if made is None:
        return [f"{field} in {name} is {shown(value)}, which is no size of an image: the processor cannot be loaded"]
    if made == wanted:
        return []
    what = f"images whose {edge} is {made[0]}" if edge else f"images of {_words(made)}"
    return [f"{name} makes {what} pixels, the model takes {_words(wanted)}: set its {field}"]


def _given(value: Any) -> tuple[tuple[int, int] | None, str]:
    """Height and width that a size stands for; where only one edge is set, a square of it and that edge in words."""
    if not isinstance(value, dict):
        return _pair(value), ""
    if {"height", "width"} <= value.keys():
        return _pair([value["height"], value["width"]]), ""
    for edge in ("shortest_edge", "longest_edge"):
        if value.get(edge) is not None:
            return _pair(value[edge]), edge.replace("_", " ")
    return None, ""


def _pair(value: Any) -> tuple[int, int] | None:
    sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
    whole = len(sides) == 2 and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    return (sides[0], sides[1]) if whole else None


def _words(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]} x {size[1]}"


def _check_channels(name: str, settings: Mapping[str, Any], config: PreTrainedConfig) -> list[str]:
    """What normalises images, and the colours that they are converted to, against the model's channels."""
    channels = getattr(config, "num_channels", None)
    said = []
    for field in ("image_mean", "image_std"):
        value = settings.get(field)
        if value is None or settings.get("do_normalize") is False or isinstance(value, (int, float)):
            continue
        if not isinstance(value, list) or not all(isinstance(one, (int, float)) for one in value):
            said.append(f"{field} in {name} is {shown(value)}, not a list of numbers: the processor cannot be loaded")
        elif channels is not None and len(value) != channels:
            said.append(f"{field} in {name} is for {len(value)} channels, the model takes {channels}: set its {field}")
    if settings.get("do_convert_rgb") is True and channels not in (None, 3):
        said.append(
            f"{name} converts images to 3 channels, the model takes {channels}: set its do_convert_rgb to false"
        )
    return said
