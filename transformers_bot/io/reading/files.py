"""Which files transformers is going to load, found by the order it looks for them in.

That order (transformers 5, `from_pretrained`): the file that config.json names as `transformers_weights`;
model.safetensors; its index; pytorch_model.bin; its index. `use_safetensors` leaves one half out,
`variant` goes before the names' last part.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.hub import cached_files

from ...compat import NO_ERROR, NO_MISSING_ENTRY
from ...errors import BadCheckpoint, HubError, UnsafeCheckpoint
from .from_hub import from_hub
from .index import missing_shards
from .paths import Folder, is_plain, listed, shown, shown_path

HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
SAFE = ".safetensors"
# Weights that transformers 5 does not load by itself: the end of a name -> what they are.
ALIEN = {
    ".gguf": "GGUF",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    "adapter_model.safetensors": "adapter (PEFT)",
    "adapter_model.bin": "adapter (PEFT)",
    ".distcp": "distributed PyTorch",
}


def is_folder(name: str) -> bool:
    """Whether transformers takes a source for a folder, not for a hub id."""
    return os.path.isdir(name)


@dataclass(frozen=True)
class Choice:
    """The file a load begins with.

    Attributes:
        main: weights, or an index of shards.
        sharded: whether it is an index.
        suffix: what weight files end with.
    """

    main: Path
    sharded: bool
    suffix: str

    @property
    def pickled(self) -> bool:
        return self.suffix != SAFE


def candidates(keywords: Mapping[str, Any], explicit: str | None) -> list[str]:
    """The names to look for, first come first loaded."""
    if explicit is not None:
        return [explicit]
    asked, variant = keywords.get("use_safetensors"), keywords.get("variant")
    safe = [] if asked is False else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    pickled = [] if asked else [WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
    return [_with_variant(name, variant) for name in (*safe, *pickled)]


def explicit_name(fields: Mapping[str, Any], source: str) -> str | None:
    """The weight file that config.json itself names, None for most.

    Raises:
        UnsafeCheckpoint: it is no plain name of a safetensors file or index.
    """
    name = fields.get("transformers_weights")
    if name is None:
        return None
    if not isinstance(name, str) or not is_plain(name) or not name.endswith((SAFE, f"{SAFE}.index.json")):
        raise UnsafeCheckpoint(
            f"{source}: config.json names {shown(name)} as its weights, which is no safetensors file of the model "
            "folder. Remove transformers_weights from config.json."
        )
    return name


def choose(find: Callable[[str], Path | None], names: list[str]) -> Choice | None:
    """The first of `names` that `find` has."""
    for name in names:
        path = find(name)
        if path is not None:
            return Choice(path, ".index." in name, SAFE if SAFE in name else ".bin")
    return None


def finder(name: str, folder: Folder, keywords: Mapping[str, Any]) -> Callable[[str], Path | None]:
    """`find(file name)` -> its path, None where the source has no such file.

    For hub ids it downloads the file; what the Hub refuses is a `HubError`.
    """
    if is_folder(name):
        return lambda file: folder.locate(file) if folder.holds(file) else None

    def find(file: str) -> Path | None:
        with from_hub(name, keywords.get("revision")):
            path = cached_file(name, file, **hub_keywords(keywords), **NO_MISSING_ENTRY)
        if path is None:
            return None
        folder.check(Path(path))
        return Path(path)

    return find


def has_file(name: str, file: str, keywords: Mapping[str, Any]) -> bool:
    """Whether a source has a file beside its weights; no way to it counts as none."""
    if is_folder(name):
        return os.path.isfile(os.path.join(name, keywords.get("subfolder") or "", file))
    return cached_file(name, file, **hub_keywords(keywords), **NO_ERROR) is not None


def find_shards(
    name: str, folder: Folder, choice: Choice, shards: list[str], keywords: Mapping[str, Any]
) -> list[Path]:
    """The paths of all shards of an index; for hub ids they are downloaded.

    Raises:
        BadCheckpoint: some are missing from the folder; all of them are named.
        HubError: a hub id that is not there, or cannot be reached.
    """
    if is_folder(name):
        absent = [shard for shard in shards if not folder.holds(shard)]
        if absent:
            raise missing_shards(choice.main, shards, absent)
        return [folder.locate(shard) for shard in shards]
    with from_hub(name, keywords.get("revision")):
        found = cached_files(name, shards, **hub_keywords(keywords)) or []
    # cached_files keeps the order it was given; a short answer would pair names with other files.
    if len(found) != len(shards):
        raise BadCheckpoint(f"{shown_path(name)}: the hub gave {len(found)} of {len(shards)} shards. Try again.")
    paths = [Path(path) for path in found]
    for path in paths:
        folder.check(path)
    return paths


def hub_keywords(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those keywords that say where on the hub a source is; None for `subfolder` is the top."""
    kept = {key: keywords[key] for key in HUB if key in keywords}
    if kept.get("subfolder", "") is None:
        del kept["subfolder"]
    return kept


def no_weights(name: str, folder: Folder, names: list[str], keywords: Mapping[str, Any]) -> Exception:
    """The error for a source without any file that would be loaded: ours for folders, the hub's for ids."""
    if not is_folder(name):
        try:
            with from_hub(name, keywords.get("revision")):
                cached_file(name, names[0], **hub_keywords(keywords))
        except HubError as error:
            return error
    held = folder.names()
    alien = {kind: file for file in held for end, kind in ALIEN.items() if file.endswith(end)}
    plain = [file for file in held if file.endswith((SAFE, ".bin", f"{SAFE}.index.json"))]
    if alien:
        kind, file = next(iter(alien.items()))
        found = f"{shown(file)} are {kind} weights, which cannot be resampled; use a safetensors checkpoint"
    elif plain:
        found = f"there is {listed(plain)}: rename it, or choose it by variant= or use_safetensors="
    else:
        found = "download it again, or name the folder that holds its weights (subfolder=)"
    return BadCheckpoint(f"{shown_path(folder.path)} has no weights: {' or '.join(names)} is looked for; {found}.")


def notes_of(name: str, folder: Folder, choice: Choice, keywords: Mapping[str, Any]) -> tuple[str, ...]:
    """Which other weights of a folder are not read, as sentences."""
    if not is_folder(name):
        return ()
    beside = [
        each
        for each in candidates({"variant": keywords.get("variant")}, None)
        if each != choice.main.name and folder.holds(each)
    ]
    return tuple(f"{each} beside {choice.main.name} is not read." for each in beside)


def _with_variant(name: str, variant: str | None) -> str:
    if variant is None:
        return name
    front, _, last = name.rpartition(".")
    return f"{front}.{variant}.{last}"
