"""Tokenizer, processor and chat template files: copied beside the resized weights, then checked there.

Why by hand: transformers copies these files by building the tokenizer or processor and saving it, which can run code
of the source, fail on a damaged file, and write other files than those that were there.
"""

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

from ..architectures.sizes import part_with
from ..compat import NO_ERROR
from ..errors import BadCheckpoint, IncompatibleModels, UnsafeCheckpoint
from .checkpoint import PROCESSOR, TOKENIZER, VOCABULARIES
from .config_files import read_json
from .fast_tokenizer import FILE, FastTokenizer, settings_with
from .files import Folder, clean, opened, shown
from .vocabulary import LARGE, SMALL, VALUES, read_vocabulary

CODED = ("tokenizer_config.json", *PROCESSOR)  # files that can name code to run
PLACE = re.compile(r"(/|~|[A-Za-z]:[/\\]|\\\\|file:)")  # how an absolute path begins
PLACES = ("name_or_path", "_file", "_path", "_dir")  # how the names of fields end that hold a path
TEMPLATES = "additional_chat_templates"  # folder of named templates beside the default one


def find(name: str, hub: Mapping[str, Any], others: tuple[str, ...] = ()) -> dict[str, Path]:
    """Tokenizer and processor files of a source by their names in it; those it does not have are left out.

    Args:
        name: hub id or folder.
        hub: hub keywords (revision, subfolder, token, ...).
        others: names of further settings files.

    Raises:
        UnsafeCheckpoint: a link out of the folder, or a file too large to be what its name says.
        BadCheckpoint: something of that name that is no file.
    """
    keywords = {key: value for key, value in hub.items() if key not in ("trust_remote_code", "code_revision")}
    if os.path.isdir(name):
        folder = Folder.at(name, keywords.get("subfolder") or "")
        templates = [f"{TEMPLATES}/{path.name}" for path in sorted((folder.path / TEMPLATES).glob("*.jinja"))]
        files = {
            filename: _located(folder, filename)
            for filename in (*TOKENIZER, *PROCESSOR, *templates, *others)
            if folder.holds(filename)
        }
    else:
        listing = {key: keywords[key] for key in ("revision", "cache_dir", "token") if key in keywords}
        names = list_repo_templates(name, local_files_only=bool(keywords.get("local_files_only")), **listing)
        templates = [f"{TEMPLATES}/{filename}.jinja" for filename in names]
        filenames = (*TOKENIZER, *PROCESSOR, *templates, *others)
        paths = {filename: cached_file(name, filename, **keywords, **NO_ERROR) for filename in filenames}
        files = {filename: Path(path) for filename, path in paths.items() if path}
    for filename, file in files.items():
        size, limit = file.stat().st_size, _max_bytes(filename)
        if size > limit:
            raise UnsafeCheckpoint(
                f"{filename} of {name} has {size:,} bytes, more than any such file needs ({limit:,}). "
                "Pass tokenizer=False to leave tokenizer and processor files out."
            )
    return files


def carry(
    files: Mapping[str, Path],
    folder: Path,
    config: PreTrainedConfig,
    positions: int | None = None,
    numbers: Mapping[int, int] | None = None,
) -> list[str]:
    """Copy the files into `folder` and check them against the target.

    Args:
        positions: how many tokens the target takes, None where it has no limit.
        numbers: id in the source -> id in the target, if the target keeps a part of the vocabulary: then only
            tokenizer.json and its settings are written, with these tokens.

    Returns:
        Sentences that a user should read.

    Raises:
        IncompatibleModels: a tokenizer with more entries than the model has embeddings.
        BadCheckpoint, UnsafeCheckpoint: a file that cannot be read, or has grown meanwhile.
    """
    given, files = files, files if numbers is None else _fitting(files)
    for name, file in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        copy(file, folder / name, _max_bytes(name))
    warnings = [sentence for name in CODED if name in files for sentence in _without_code_and_places(folder / name)]
    if numbers is not None and FILE in files:
        _write_subset(folder, numbers)
        others = [name for name in given if name not in files]
        if others:
            warnings.append(f"{FILE} holds the kept tokens; left out is what holds all of them: {', '.join(others)}")
    if set(files) & set(TOKENIZER):
        warnings += _check_tokenizer(folder, config, positions)
    return warnings + check_images(folder, config) if set(files) & set(PROCESSOR) else warnings


def _fitting(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files that a part of the vocabulary can be written into: without tokenizer.json, none of a tokenizer."""
    others = {*VOCABULARIES, "added_tokens.json"} - {FILE} if FILE in files else {*TOKENIZER}
    return {name: file for name, file in files.items() if name not in others}


def _write_subset(folder: Path, numbers: Mapping[int, int]) -> None:
    """Leave only these tokens in the copied tokenizer, under their new ids."""
    settings = folder / "tokenizer_config.json"
    written: dict[Path, dict[str, Any]] = {
        folder / FILE: FastTokenizer(read_json(folder / FILE, LARGE, VALUES)).subset(numbers)
    }
    if settings.is_file():
        written[settings] = settings_with(read_json(settings, SMALL), numbers)
    for path, fields in written.items():
        path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy(file: Path, to: Path, most: int) -> None:
    """Copy a regular file of at most so many bytes.

    Raises:
        BadCheckpoint: it cannot be read; UnsafeCheckpoint: it has more bytes.
    """
    with opened(file) as (stream, _), open(to, "wb") as output:
        remaining = most
        while part := stream.read(min(2**20, remaining + 1)):
            remaining -= len(part)
            if remaining < 0:
                raise UnsafeCheckpoint(f"{file.name} has more than {most:,} bytes. Use the file that belongs there.")
            output.write(part)


def code_of(auto_map: object) -> str:
    """The classes of an `auto_map`, for a message."""
    classes = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    return ", ".join(shown(name) for name in classes)


def _max_bytes(name: str) -> int:
    return LARGE if name in VOCABULARIES else SMALL


def _located(folder: Folder, name: str) -> Path:
    try:
        return folder.locate(name)
    except UnsafeCheckpoint as error:
        raise UnsafeCheckpoint(f"{error} Or pass tokenizer=False to leave it out.") from None


def _without_code_and_places(path: Path) -> list[str]:
    """Remove from a copied file what is valid only in its source; warn where code was named.

    That is `auto_map`, whose code is never copied, and the absolute paths of files, which earlier versions of
    transformers wrote into it.
    """
    with suppress(BadCheckpoint):  # the checks that follow report an unreadable file
        fields = read_json(path, SMALL)
        portable = {name: value for name, value in fields.items() if name != "auto_map" and not _is_place(name, value)}
        if len(portable) < len(fields):
            path.write_text(json.dumps(portable, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if "auto_map" in fields:
            classes = code_of(fields["auto_map"])
            return [
                f"auto_map in {path.name} names code of the source ({classes}), which is not copied: it is left out"
            ]
    return []


def _is_place(name: str, value: object) -> bool:
    """Whether a field holds the absolute path of a file or folder."""
    return name.endswith(PLACES) and isinstance(value, str) and bool(PLACE.match(value))


def _check_tokenizer(folder: Path, config: PreTrainedConfig, positions: int | None) -> list[str]:
    """Compare the copied tokenizer with the model's vocabulary and positions."""
    rows = getattr(part_with(config, "vocab_size"), "vocab_size", None)
    try:
        vocabulary = read_vocabulary(folder, config)
    except BadCheckpoint as error:  # no failure: the weights are good without a tokenizer
        reason = clean(str(error).replace(f"{folder}/", ""))
        return [f"the source's tokenizer files were copied but cannot be loaded: {reason}"]
    if rows is not None and vocabulary.entries > rows:
        raise IncompatibleModels(
            f"the source's tokenizer has {vocabulary.entries} entries, the model {rows} embeddings: some token ids "
            "would be out of range. Correct the source with resize_token_embeddings, or pass tokenizer=False."
        )
    if positions is not None and vocabulary.longest is not None and positions < vocabulary.longest < 10**6:
        limit = vocabulary.longest
        return [f"the tokenizer allows {limit} tokens, the model has {positions} positions: truncate at {positions}"]
    return []


# -- an image processor's settings against a model's -------------------------------------------------

SETTINGS = "preprocessor_config.json"
# Newer versions keep the image processor's settings in this object of this file.
JOINT, IMAGES = "processor_config.json", "image_processor"
MOST = 4 * 2**20  # bytes of a settings file


def check_images(folder: Path, config: PreTrainedConfig) -> list[str]:
    """Warnings where the folder's image processor does not fit the model."""
    config = part_with(config, "image_size")
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
    """Compare the final image size, of the crop or else of the resize, with the model's."""
    expected = _pair(config.image_size)
    crops = settings.get("do_center_crop") is True or (
        "crop_size" in settings and settings.get("do_center_crop") is None
    )
    field = "crop_size" if crops else "size"
    if not crops and settings.get("do_resize") is False:
        return []  # images keep the size that they come in
    value = settings.get(field)
    if value is None or expected is None:
        return []
    size, edge = _size_of(value)
    if size is None:
        return [f"{field} in {name} is {shown(value)}, which is not an image size: the processor cannot be loaded"]
    if size == expected:
        return []
    images = f"images whose {edge} is {size[0]}" if edge else f"images of {_size_text(size)}"
    return [f"{name} makes {images} pixels, the model takes {_size_text(expected)}: set its {field}"]


def _size_of(value: Any) -> tuple[tuple[int, int] | None, str]:
    """Height and width of a size setting; if only one edge is set, a square of it and the name of that edge."""
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
    is_size = len(sides) == 2 and all(
        isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides
    )
    return (sides[0], sides[1]) if is_size else None


def _size_text(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]} x {size[1]}"


def _check_channels(name: str, settings: Mapping[str, Any], config: PreTrainedConfig) -> list[str]:
    """Compare normalisation and colour conversion with the model's channels."""
    channels = getattr(config, "num_channels", None)
    warnings = []
    for field in ("image_mean", "image_std"):
        value = settings.get(field)
        if value is None or settings.get("do_normalize") is False or isinstance(value, (int, float)):
            continue
        if not isinstance(value, list) or not all(isinstance(entry, (int, float)) for entry in value):
            warnings.append(
                f"{field} in {name} is {shown(value)}, not a list of numbers: the processor cannot be loaded"
            )
        elif channels is not None and len(value) != channels:
            warnings.append(
                f"{field} in {name} is for {len(value)} channels, the model takes {channels}: set its {field}"
            )
    if settings.get("do_convert_rgb") is True and channels not in (None, 3):
        warnings.append(
            f"{name} converts images to 3 channels, the model takes {channels}: set its do_convert_rgb to false"
        )
    return warnings
