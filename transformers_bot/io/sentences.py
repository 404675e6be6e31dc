"""The modules of a sentence-transformers folder as they are stored: what is done with a model's token embeddings.

Such a folder is a transformer with modules behind it: pooling, a dense layer, a norm. `modules.json` lists them, and
each has a folder of its own with settings and weights. Settings hold widths, which follow the model's; a module that
reads the stream is resized as the stream's reader. Only data is read: no module is imported, nothing is run.

Why by hand: sentence-transformers, which need not be installed, reads such a folder by importing and building the
modules that it names.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils import cached_file

from ..compat import NO_CONNECTION, NO_MISSING_ENTRY
from ..errors import BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint
from .config_files import read_json, read_value
from .files import Folder, clean, shown, shown_path

LIST = "modules.json"
SETTINGS = "config_sentence_transformers.json"
MOST = 4 * 2**20  # bytes of a settings file
COUNT = 32  # modules of a folder; published ones have three or four
PACKAGE = "sentence_transformers."
PLACE = re.compile(r"[0-9]+_[A-Za-z0-9_]+")  # a module's folder, as the library names it
LEAVE = "Pass modules=False to leave the modules out and get a plain model"
# The transformer's own settings, under the names that versions have given it.
BACKBONE = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
WIDTHS = ("embedding_dimension", "word_embedding_dimension")
# Type -> the file of its settings, and whether weights belong to it.
FILES = {
    "Transformer": ("", False),
    "MLMTransformer": ("", False),
    "Pooling": ("config.json", False),
    "Normalize": ("config.json", False),
    "Dropout": ("config.json", False),
    "Dense": ("config.json", True),
    "LayerNorm": ("config.json", True),
    "WeightedLayerPooling": ("config.json", True),
    "CNN": ("cnn_config.json", True),
    "WordWeights": ("config.json", True),
    "SpladePooling": ("config.json", False),
    "SparseAutoEncoder": ("config.json", True),
    "MultiVectorMask": ("config.json", False),
    "HierarchicalTokenPooling": ("config.json", False),
    "LogitScore": ("config.json", False),
}
BARE = ("Normalize",)  # types that older versions saved without any settings
KINDS = ("SentenceTransformer", "SparseEncoder", "CrossEncoder", "MultiVectorEncoder")


@dataclass(frozen=True)
class Module:
    """One module as it is stored.

    Attributes:
        kind: the last part of its type.
        place: its folder, "" for the model's own.
        settings: the fields of its settings, empty where it has none.
        settings_file: the name of their file in the folder, "" where there is none.
        weights: where its weights are, None where it has none.
    """

    kind: str
    place: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    settings_file: str = ""
    weights: Path | None = None


@dataclass(frozen=True)
class Folders:
    """A sentence-transformers folder as it is stored.

    Attributes:
        name: hub id or folder.
        listed: the entries of modules.json.
        modules: the same modules, read.
        files: name in the result -> path of a file that may be copied unchanged.
        kind: the library's class that loads the folder.
        settings: the fields of config_sentence_transformers.json.
    """

    name: str
    listed: list[dict[str, Any]]
    modules: tuple[Module, ...]
    files: Mapping[str, Path]
    kind: str
    settings: Mapping[str, Any]


def find(name: str, hub: Mapping[str, Any], allow_pickle: bool = False) -> Folders | None:
    """The modules of a source; None where it is no sentence-transformers folder.

    Args:
        name: hub id or folder.
        hub: hub keywords (revision, subfolder, token, ...). A subfolder may be the folder as a whole, or the
            transformer's place in one.
        allow_pickle: read a module's weights from pytorch_model.bin where there is no safetensors file.

    Raises:
        UnsafeCheckpoint: a place that leads out of the folder, pickled weights.
        UnsupportedCheckpoint: a type of module that is not known, with what to pass instead.
        BadCheckpoint: files that are missing or damaged.
    """
    inside = str(hub.get("subfolder") or "").strip("/")
    for base in dict.fromkeys([inside, ""]):
        seek = _seeker(name, hub, base)
        path = seek(LIST)
        if path is not None:
            listed = _listed(path)
            if base == inside or listed[0]["path"].strip("/") == inside:
                return _read(name, listed, seek, "" if base == inside else inside, allow_pickle)
    return None


def folder_class(folder: str | os.PathLike[str]) -> str | None:
    """The library's class that loads a local folder, None where it is a plain model."""
    folders = find(os.fspath(folder), {})
    return folders.kind if folders else None


def _seeker(name: str, hub: Mapping[str, Any], base: str) -> Callable[[str], Path | None]:
    """`seek(file)` -> its path, None where the source has no such file; `base` is the folder's place in the source."""
    if os.path.isdir(name):
        folder = Folder.at(name, base)
        return lambda file: folder.locate(file) if folder.holds(file) else None
    skipped = ("trust_remote_code", "code_revision", "subfolder")
    keywords = {key: value for key, value in hub.items() if key not in skipped}

    def seek(file: str) -> Path | None:
        cached = cached_file(
            name,
            PurePosixPath(base, file).as_posix(),
            **keywords,
            **NO_MISSING_ENTRY,
            **NO_CONNECTION,
        )
        return Path(cached) if cached else None

    return seek


def _listed(path: Path) -> list[dict[str, Any]]:
    """The entries of a modules.json; each must lie in a folder below it."""
    location, entries = shown_path(path), read_value(path, MOST)
    if not isinstance(entries, list) or not 0 < len(entries) <= COUNT:
        raise BadCheckpoint(f"{location} is no list of 1 to {COUNT} modules. Download it again. {LEAVE}.")
    for entry in entries:
        texts = [entry.get(key) for key in ("type", "path")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) for text in texts) or not isinstance(entry.get("name", ""), str):
            raise BadCheckpoint(f"{location} holds {shown(entry)}, which is no module. Download it again. {LEAVE}.")
        place = entry["path"].rstrip("/")
        if place and not PLACE.fullmatch(place):
            raise UnsafeCheckpoint(
                f"{location} has a module in {shown(entry['path'])}; modules lie in folders such as 1_Pooling. {LEAVE}."
            )
    places = [entry["path"].rstrip("/") for entry in entries]
    if len(set(places)) < len(places):
        raise BadCheckpoint(f"{location} has two modules in the same folder. Download it again. {LEAVE}.")
    return entries


def _kind(entry: Mapping[str, Any], name: str) -> str:
    kind: str = entry["type"].rpartition(".")[2]
    if not entry["type"].startswith(PACKAGE) or kind not in FILES:
        raise UnsupportedCheckpoint(
            f"{shown_path(name)} has a module of the type {shown(entry['type'])}, which is not known here, and code is "
            f"never copied; known are {', '.join(FILES)}. {LEAVE}."
        )
    return kind


def _read(
    name: str,
    listed: list[dict[str, Any]],
    seek: Callable[[str], Path | None],
    backbone: str,
    allow_pickle: bool,
) -> Folders:
    """The modules of a list with their settings, each file checked by `seek`."""
    kinds = [_kind(entry, name) for entry in listed]
    places = [entry["path"].rstrip("/") for entry in listed]
    transformers = [kind for kind in kinds if kind in ("Transformer", "MLMTransformer")]
    if len(transformers) != 1 or kinds[0] != transformers[0]:
        raise UnsupportedCheckpoint(
            f"{shown_path(name)} begins with a {kinds[0]}, not with its one transformer: {', '.join(kinds)}. {LEAVE}."
        )
    if places[0] != backbone:
        raise UnsupportedCheckpoint(
            f"{LIST} of {shown_path(name)} says that the model lies in {shown(places[0])}: "
            f"pass subfolder={places[0]!r}. {LEAVE}."
        )
    files = {}
    backbone_files = [file for file in BACKBONE if seek(PurePosixPath(backbone, file).as_posix())][:1]
    for file in backbone_files:
        files[file] = _required(seek(PurePosixPath(backbone, file).as_posix()), name, file)
    for file in (LIST, SETTINGS):
        if path := seek(file):
            files[file] = path
    settings = _object(files.get(SETTINGS))
    modules = [
        Module(
            kinds[0],
            "",
            _object(files[backbone_files[0]]) if backbone_files else {},
            backbone_files[0] if backbone_files else "",
        )
    ]
    for kind, place in list(zip(kinds, places, strict=True))[1:]:
        module = _module(name, kind, place, seek, allow_pickle)
        modules.append(module)
        if module.settings_file:
            files[module.settings_file] = _required(seek(module.settings_file), name, module.settings_file)
        if module.weights and module.weights.suffix == ".safetensors":
            files[f"{place}/model.safetensors"] = module.weights
    kind = settings.get("model_type", KINDS[0])
    return Folders(name, listed, tuple(modules), files, kind if kind in KINDS else KINDS[0], settings)


def _module(name: str, kind: str, place: str, seek: Callable[[str], Path | None], allow_pickle: bool) -> Module:
    settings_file, weighted = FILES[kind]
    path = seek(f"{place}/{settings_file}")
    if path is None and kind not in BARE:
        raise BadCheckpoint(f"{shown_path(name)} lacks {place}/{settings_file}. Use a complete folder. {LEAVE}.")
    weights = None
    if weighted:
        weights = seek(f"{place}/model.safetensors")
        if weights is None and kind != "WordWeights":
            weights = _required(seek(f"{place}/pytorch_model.bin"), name, f"{place}/model.safetensors")
            if not allow_pickle:
                raise UnsafeCheckpoint(
                    f"{shown_path(name)}: the weights of {place} are pickled, and pickle files can run code when they "
                    f"are opened. Save the folder anew with sentence-transformers, or pass allow_pickle=True for a "
                    f"file you trust. {LEAVE}."
                )
    return Module(kind, place, _object(path), f"{place}/{settings_file}" if path else "", weights)


def _required(path: Path | None, name: str, file: str) -> Path:
    if path is None:
        raise BadCheckpoint(f"{shown_path(name)} lacks {file}. Use a complete folder. {LEAVE}.")
    return path


def _object(path: Path | None) -> dict[str, Any]:
    return {} if path is None else read_json(path, MOST)


def as_json(fields: object) -> bytes:
    """The text of a settings file."""
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()


def whole_number(where: str, settings: Mapping[str, Any], name: str) -> int:
    """A length in a module's settings.

    Raises:
        BadCheckpoint: it is missing, or no whole number above 0.
    """
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
        raise BadCheckpoint(f"{name} in {clean(where)} is {shown(value)}, not a length. Correct it. {LEAVE}.")
    return value
