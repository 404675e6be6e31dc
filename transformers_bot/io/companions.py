"""The files that go along with weights: tokenizer, processor, chat template. Copied, then checked as they lie there."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.hub import list_repo_templates

from ..compat import NO_ERROR
from ..errors import BadCheckpoint, IncompatibleModels, UnsafeCheckpoint
from .checkpoint import PROCESSOR, TOKENIZER, VOCABULARIES
from .config_files import read_json
from .files import Folder, clean, opened, shown
from .vocabulary import LARGE, SMALL, read_vocabulary

CODED = ("tokenizer_config.json", *PROCESSOR)  # which can name code
PLACE = re.compile(r"(/|~|[A-Za-z]:[/\\]|\\\\|file:)")  # what the path of a computer begins with
PLACES = ("name_or_path", "_file", "_path", "_dir")  # what the names of fields end with that hold one
TEMPLATES = "additional_chat_templates"  # named ones beside the default


def find(name: str, hub: Mapping[str, Any]) -> dict[str, Path]:
    """Tokenizer and processor files of a source by their names in it; those it does not have are left out.

    Args:
        name: hub id or folder.
        hub: hub keywords (revision, subfolder, token, ...).

    Raises:
        UnsafeCheckpoint: a link out of the folder, or a file too large to be what its name says.
        BadCheckpoint: something of that name that is no file.
    """
    keywords = {key: value for key, value in hub.items() if key not in ("trust_remote_code", "code_revision")}
    if os.path.isdir(name):
        folder = Folder.at(name, keywords.get("subfolder") or "")
        templates = [f"{TEMPLATES}/{path.name}" for path in sorted((folder.path / TEMPLATES).glob("*.jinja"))]
        found = {one: _located(folder, one) for one in (*TOKENIZER, *PROCESSOR, *templates) if folder.holds(one)}
    else:
        listing = {key: keywords[key] for key in ("revision", "cache_dir", "token") if key in keywords}
        named = list_repo_templates(name, local_files_only=bool(keywords.get("local_files_only")), **listing)
        templates = [f"{TEMPLATES}/{one}.jinja" for one in named]
        every = (*TOKENIZER, *PROCESSOR, *templates)
        paths = {one: cached_file(name, one, **keywords, **NO_ERROR) for one in every}
        found = {one: Path(path) for one, path in paths.items() if path}
    for one, file in found.items():
        size, most = file.stat().st_size, _most(one)
        if size > most:
            raise UnsafeCheckpoint(
                f"{one} of {name} has {size:,} bytes, more than any such file needs ({most:,}). "
                "Pass tokenizer=False to leave tokenizer and processor files out."
            )
    return found


def carry(files: Mapping[str, Path], folder: Path, config: PreTrainedConfig, positions: int | None = None) -> list[str]:
    """Copy the files into `folder` and check them against the target.

    Args:
        positions: how many tokens the target takes, None where it has no limit.

    Returns:
        Sentences that a user should read.

    Raises:
        IncompatibleModels: a tokenizer with more entries than the model has embeddings.
        BadCheckpoint, UnsafeCheckpoint: a file that cannot be read, or has grown meanwhile.
    """
    for name, file in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        copy(file, folder / name, _most(name))
    said = [sentence for name in CODED if name in files for sentence in _without_code_and_places(folder / name)]
    if set(files) & set(TOKENIZER):
        said += _check_tokenizer(folder, config, positions)
    return said + check_images(folder, config) if set(files) & set(PROCESSOR) else said


def copy(file: Path, to: Path, most: int) -> None:
    """Copy a regular file of at most so many bytes.

    Raises:
        BadCheckpoint: it cannot be read; UnsafeCheckpoint: it has more bytes.
    """
    with opened(file) as (stream, _), open(to, "wb") as copied:
        left = most
        while part := stream.read(min(2**20, left + 1)):
            left -= len(part)
            if left < 0:
                raise UnsafeCheckpoint(f"{file.name} has more than {most:,} bytes. Use the file that belongs there.")
            copied.write(part)


def code_of(auto_map: object) -> str:
    """The classes of an `auto_map`, in words."""
    classes = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    return ", ".join(shown(one) for one in classes)


def _most(name: str) -> int:
    return LARGE if name in VOCABULARIES else SMALL


def _located(folder: Folder, name: str) -> Path:
    try:
        return folder.locate(name)
    except UnsafeCheckpoint as error:
        raise UnsafeCheckpoint(f"{error} Or pass tokenizer=False to leave it out.") from None


def _without_code_and_places(path: Path) -> list[str]:
    """Take out of a file that was copied what holds elsewhere only: `auto_map`, whose code is never copied, and paths.

    Earlier versions of transformers wrote into it where on a computer each file was read.
    """
    with suppress(BadCheckpoint):  # what cannot be read is told where it is checked
        fields = read_json(path, SMALL)
        kept = {name: value for name, value in fields.items() if name != "auto_map" and not _is_place(name, value)}
        if len(kept) < len(fields):
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if "auto_map" in fields:
            named = code_of(fields["auto_map"])
            return [f"auto_map in {path.name} names code of the source ({named}), which is not copied: it is left out"]
    return []


def _is_place(name: str, value: object) -> bool:
    """Whether a field holds the absolute path of a file or folder."""
    return name.endswith(PLACES) and isinstance(value, str) and bool(PLACE.match(value))


def _check_tokenizer(folder: Path, config: PreTrainedConfig, positions: int | None) -> list[str]:
    """The tokenizer that the files give, against the model's vocabulary and positions."""
    rows = getattr(config, "vocab_size", None)
    try:
        found = read_vocabulary(folder, config)
    except BadCheckpoint as error:  # the weights are good without it
        reason = clean(str(error).replace(f"{folder}/", ""))
        return [f"the source's tokenizer files were copied but cannot be loaded: {reason}"]
    if rows is not None and found.entries > rows:
        raise IncompatibleModels(
            f"the source's tokenizer has {found.entries} entries, the model {rows} embeddings: some token ids would "
            "be out of range. Mend the source with resize_token_embeddings, or pass tokenizer=False."
        )
    if positions is not None and found.longest is not None and positions < found.longest < 10**6:
        limit = found.longest
        return [f"the tokenizer allows {limit} tokens, the model has {positions} positions: truncate at {positions}"]
    return []


# -- an image processor's settings against a model's -------------------------------------------------

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
