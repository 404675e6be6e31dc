"""Reads untrusted JSON with limits, checks a config.json before transformers acts on it, and names its folder.

A config may be pushed, with a record of where its model was made from: paths and user names are private, so that a
folder is called by its own name alone.
"""

import contextlib
import getpass
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers import __version__ as version
from transformers.configuration_utils import get_configuration_file
from transformers.utils import CONFIG_NAME, cached_file

from ..architectures import ADAPTERS
from ..architectures.sizes import label_number
from ..compat import NO_ERROR
from ..errors import (
    BadCheckpoint,
    BadOption,
    HubError,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedCheckpoint,
    suggest,
)
from .config_lengths import OTHER_OBJECTS, check_lengths, numbers_in
from .files import LFS_POINTER, Folder, clean, from_hub, hub_keywords, is_plain, opened, shown, shown_path

# Why not json.load alone: it accepts duplicate names and any depth, and needs gigabytes for a file of many lists.
# The largest index on the hub has some 10 MB and 100,000 entries, the largest config some 3 MB.
MAX_BYTES = 16_000_000
MAX_VALUES = 500_000
MAX_DEPTH = 32


def read_json(path: Path, most: int = MAX_BYTES, values: int = MAX_VALUES) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Needs at most some 140 MB of memory, whatever the file holds: each value costs a comma or a bracket, and
    these are counted before the file is parsed.

    Args:
        most: bytes that the file may have.
        values: names, numbers, lists and objects that it may hold.

    Raises:
        BadCheckpoint: too large, too deep, not JSON, not an object, or a duplicate name.
    """
    value = read_value(path, most, values)
    if not isinstance(value, dict):
        raise BadCheckpoint(
            f"{shown_path(path)} holds a {type(value).__name__}, not an object with named fields. Download it again."
        )
    return value


def read_value(path: Path, most: int = MAX_BYTES, values: int = MAX_VALUES) -> Any:
    """Whatever a JSON file of a checkpoint holds; see `read_json`."""
    with opened(path) as (stream, size):
        if size > most:
            raise BadCheckpoint(
                f"{shown_path(path)} has {size:,} bytes; {most:,} is the most it can have. Download it again."
            )
        data = stream.read(most)
    if data.startswith(LFS_POINTER):
        raise BadCheckpoint(
            f"{shown_path(path)} is a Git LFS pointer. Run `git lfs pull` in its folder, or use the Hub id."
        )
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > values:
        raise BadCheckpoint(f"{shown_path(path)} holds more than {values:,} values. Download it again.")
    try:
        # str, not bytes: json would guess UTF-16 from bytes, where transformers reads UTF-8 only.
        value = json.loads(data.decode(), object_pairs_hook=_unique_fields)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else _reason(error)
        raise BadCheckpoint(f"{shown_path(path)} cannot be read as JSON: {reason}. Download it again.") from None
    if _depth(value) > MAX_DEPTH:
        raise BadCheckpoint(f"{shown_path(path)} is nested deeper than {MAX_DEPTH} levels. Download it again.")
    return value


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} in line {error.lineno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error)


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(duplicate)} is given twice")
    return fields


def _depth(value: Any) -> int:
    """Levels of nesting, counted without recursion, which deep nesting would break."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        level = [member for members in inner for member in members]
    return depth


# -- the fields of a config.json ---------------------------------------------------------------------

MAX_NUMBER = 1 << 63
NAMES = ("revision", "subfolder", "variant")
OBJECT_FIELDS = ("id2label", "label2id", *OTHER_OBJECTS)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
ADAPTER = "adapter_config.json"
MODULES = "modules.json"  # of sentence-transformers
CLASS_FIELDS = ("attribute_map", "sub_configs", "sub_configs_defaults")
ATTENTION_FIELDS = ("attn_implementation", "_attn_implementation", "experts_implementation")


ConfigFile = tuple[Path, dict[str, Any]]  # a config.json and its fields, checked


def source_config(name: str, keywords: Mapping[str, Any]) -> ConfigFile:
    """The config.json of a source and its fields, checked; for hub ids it is downloaded.

    Raises:
        BadCheckpoint: there is none, or it is no config; BadSize: a size no model has.
        UnsafeCheckpoint: it lies outside of the folder, or asks for code.
        BadOption: a revision, subfolder or variant that is no name.
        HubError: a hub id that is not there, or cannot be reached.
    """
    check_names(keywords)
    if os.path.isdir(name):
        folder = Folder.at(name, keywords.get("subfolder") or "")
        if folder.holds(ADAPTER):
            raise UnsupportedCheckpoint(
                f"{shown_path(folder.path)} holds an adapter (PEFT), which adds to a model elsewhere. Merge it "
                "(merge_and_unload), save the result, and use that folder."
            )
        if not folder.holds(CONFIG_NAME):
            if folder.holds(MODULES) and (first := _first_module(folder.locate(MODULES))):
                raise _in_module(name, *first)
            raise BadCheckpoint(
                f"{shown_path(folder.path)} has no {CONFIG_NAME}: without it a model's sizes would be guessed. "
                "Copy the file that belongs to the weights."
            )
        return _followed(folder.locate(CONFIG_NAME), folder)
    if os.path.exists(name):
        path = Path(name)
        if name.endswith(WEIGHTS):
            raise BadCheckpoint(
                f"{shown_path(name)} is a file of weights; pass the folder that holds it with its {CONFIG_NAME}."
            )
        fields = read_json(path)
        check_config(fields, path)
        return path, fields
    with from_hub(name, keywords.get("revision")):
        try:
            cached = cached_file(name, CONFIG_NAME, **hub_keywords(keywords))
        except OSError:
            modules = cached_file(name, MODULES, **hub_keywords(keywords), **NO_ERROR)
            if modules and (first := _first_module(Path(modules))):
                raise _in_module(name, *first) from None
            raise
    if cached is None:
        raise BadCheckpoint(f"{shown_path(name)} has no {CONFIG_NAME} on the hub. Use a model repository.")
    path = Path(cached)
    folder = Folder.at(path.parent)
    folder.check(path)
    fields = read_json(path)
    check_config(fields, path)
    return path, fields


def check_names(keywords: Mapping[str, Any]) -> None:
    """Refuse names that no file, folder or branch can have; they would fail later with an obscure system error.

    Raises:
        BadOption: a revision, subfolder or variant that is no text, or holds control characters.
    """
    for name in NAMES:
        value = keywords.get(name)
        if value is not None and not (isinstance(value, str) and value.isprintable()):
            raise BadOption(f"{name} must be a name without control characters, got {shown(value)}.")


def _first_module(path: Path) -> tuple[str, str] | None:
    """Type and folder of the first module of a sentence-transformers folder; None if its list cannot be used."""
    try:
        modules = read_value(path)
    except BadCheckpoint:
        return None
    first = modules[0] if isinstance(modules, list) and modules else None
    kind, place = (first.get("type"), first.get("path")) if isinstance(first, dict) else (None, None)
    if not isinstance(place, str) or not (place == "" or is_plain(place.rstrip("/"))):
        return None
    return (kind.rpartition(".")[2] if isinstance(kind, str) else "", place.rstrip("/"))


def _in_module(name: str, kind: str, place: str) -> BadCheckpoint | UnsupportedCheckpoint:
    """The error for a sentence-transformers folder without a config of its own."""
    if kind and not kind.endswith("Transformer"):  # a router of several models, or a table of vectors
        return UnsupportedCheckpoint(
            f"{shown_path(name)} has no {CONFIG_NAME}: the first module in its {MODULES} is a {clean(kind)}, not a "
            "transformer. If transformers lie in folders of it, resize one at a time: pass subfolder= with its folder."
        )
    if not place:
        return BadCheckpoint(f"{shown_path(name)} has no {CONFIG_NAME}. Copy the file that belongs to the weights.")
    return BadCheckpoint(
        f"{shown_path(name)} has no {CONFIG_NAME}: its {MODULES} says that the model lies in {place}; "
        f"pass subfolder={place!r}."
    )


def _followed(path: Path, folder: Folder) -> tuple[Path, dict[str, Any]]:
    """A folder's config, or the one that it names for this version of transformers."""
    fields = read_json(path)
    check_config(fields, path)
    choices = fields.get("configuration_files")
    if choices is None:
        return path, fields
    try:
        chosen = get_configuration_file(choices)
    except ValueError as error:  # names whose middle is no version
        raise BadCheckpoint(f"{shown_path(path)}: configuration_files cannot be used: {error}. Remove it.") from None
    if chosen == path.name:
        return path, fields
    chosen_path = folder.locate(chosen)
    fields = read_json(chosen_path)
    check_config(fields, chosen_path)
    return chosen_path, fields


def check_config(fields: Mapping[str, Any], path: str | os.PathLike[str] = CONFIG_NAME) -> None:
    """Refuse fields that would run code, overwrite the config class, or never finish building.

    Args:
        path: where they were read, for messages.

    Raises:
        UnsafeCheckpoint: an attention implementation that is downloaded code.
        BadSize: more layers or a longer axis than any model has.
        BadCheckpoint: a field that is not what its name says.
    """
    location = shown_path(path)
    for name in fields:
        if _is_taken(name):
            raise BadCheckpoint(f"{location} has a field {shown(name)}, which is no setting of a model. Remove it.")
    _check_types(location, fields)
    _check_implementations(location, fields)
    check_lengths(location, fields)
    for value in numbers_in(list(fields.values())):
        if value != value or (isinstance(value, int) and abs(value) > MAX_NUMBER):
            raise BadCheckpoint(
                f"{location} holds the number {shown(value)}, which no field of a model can hold. Correct it."
            )


def _is_taken(name: str) -> bool:
    """Whether a field would overwrite an attribute that the config class itself needs."""
    attribute = getattr(PreTrainedConfig, name, None)
    computed = isinstance(attribute, property) and attribute.fset is None
    return name.startswith("__") or callable(attribute) or computed or name in CLASS_FIELDS


def _check_types(location: str, fields: Mapping[str, Any]) -> None:
    for name in ("model_type", "dtype", "torch_dtype", "transformers_version"):
        if fields.get(name) is not None and not isinstance(fields[name], str):
            raise BadCheckpoint(f"{location}: {name} is {shown(fields[name])}, not a name. Correct it.")
    for name in ("architectures", "configuration_files"):
        value = fields.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise BadCheckpoint(f"{location}: {name} is {shown(value)}, not a list of names. Correct it.")
    for name in OBJECT_FIELDS:
        if fields.get(name) is not None and not isinstance(fields[name], dict):
            raise BadCheckpoint(f"{location}: {name} is {shown(fields[name])}, not an object. Correct it.")
    for key in fields.get("id2label") or ():
        if label_number(key) is None:
            raise BadCheckpoint(
                f"{location}: id2label has the key {shown(key)}, which is no label's number. Correct it."
            )
    for name in fields.get("configuration_files") or ():
        if not is_plain(name):
            raise UnsafeCheckpoint(
                f"{location} names the config {shown(name)}, outside of the model folder. Remove it."
            )
    for name in ("dtype", "torch_dtype"):
        value = fields.get(name)
        if value is not None and not isinstance(getattr(torch, value, None), torch.dtype):
            raise BadCheckpoint(f"{location}: {name} is {shown(value)}, which is no dtype of torch. Correct it.")


def _check_implementations(location: str, fields: Mapping[str, Any]) -> None:
    for name in ATTENTION_FIELDS:
        value = fields.get(name)
        for implementation in value.values() if isinstance(value, dict) else (value,):
            if implementation is not None and (not isinstance(implementation, str) or "/" in implementation):
                raise UnsafeCheckpoint(
                    f"{location}: {name} is {shown(implementation)}: that is code from the hub. Remove it; pass "
                    "attn_implementation= yourself where you trust it."
                )


# -- the config object of transformers ---------------------------------------------------------------


def model_config(
    name: str, keywords: Mapping[str, Any], like: type[PreTrainedConfig] | None = None
) -> tuple[PreTrainedConfig, ConfigFile]:
    """The config of a folder, a JSON file or a hub id, built by transformers after its fields were checked, and these.

    Args:
        keywords: hub keywords. Code from the hub runs only with `trust_remote_code=True` among them; there is
            no prompt for it at the terminal.
        like: the class to use where an old config.json does not name its model type.

    Raises:
        UnsupportedArchitecture: a config of timm, or a model type that this transformers does not have.
        BadCheckpoint, BadSize, UnsafeCheckpoint: see `source_config`, and what transformers cannot build.
        HubError: a hub id that is not there, or cannot be reached.
    """
    path, fields = source_config(name, keywords)
    if not (keywords.get("trust_remote_code") and "auto_map" in fields):
        _check_type(path, fields, must_name_type=like is None)
    reader = like if like is not None and "model_type" not in fields else AutoConfig
    try:
        with from_hub(name, keywords.get("revision")):
            config: PreTrainedConfig = reader.from_pretrained(name, **{"trust_remote_code": False, **keywords})
    except Exception as error:  # config classes compute with their fields, and can raise anything
        if isinstance(error, HubError):
            raise
        reason = clean(str(error)).rstrip(".") or type(error).__name__
        raise BadCheckpoint(
            f"the config of {shown_path(name)} cannot be used: {reason}. Correct its {path.name}, or download it again."
        ) from None
    return config, (path, fields)


def _check_type(path: Path, fields: Mapping[str, Any], must_name_type: bool) -> None:
    """Refuse a config that transformers cannot build; its own error would advise to install something.

    Args:
        must_name_type: whether the config must name its model type itself.

    Raises:
        UnsupportedArchitecture: a config of timm, or a model type that this transformers does not have.
        BadCheckpoint: no model type at all.
    """
    location, supported = shown_path(path), f"Supported are {', '.join(ADAPTERS)}"
    model_type = fields.get("model_type")
    if "pretrained_cfg" in fields or model_type == "timm_wrapper":
        architecture = shown(fields.get("architecture", "a model"))
        raise UnsupportedArchitecture(
            f"{location} is a config of timm ({architecture}), whose tensors have other names and shapes. {supported}: "
            "use a checkpoint in transformers' own format, such as google/vit-base-patch16-224 for a ViT."
        )
    if model_type is None and must_name_type:
        raise BadCheckpoint(
            f"the config of {shown_path(path.parent)} cannot be used: it names no model_type. {supported}: write the "
            f"right one into {path.name}."
        )
    if model_type is not None and model_type not in CONFIG_MAPPING:
        raise UnsupportedArchitecture(
            f"{location} is of the model type {shown(model_type)}, which transformers {version} does not have."
            f"{suggest(model_type, ADAPTERS)} {supported}."
        )


# A folder of the Hub's own cache names the repository and the commit that it holds.
SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})(?:[/\\](.*))?$", re.DOTALL)
NAMELESS = "model"  # in place of a folder name that would show a user's name
HOMES = ("home", "Users", "Profiles")


def described(source: str, subfolder: str | None, revision: str | None, record_path: bool = False) -> dict[str, Any]:
    """The fields of a record that describe a source: its place on the Hub, or the bare name of a folder.

    >>> described("gpt2", None, "f" * 40)["source"], described("gpt2", None, None)["local"]
    ('gpt2', False)

    Args:
        source: as the user gave it.
        subfolder: of the source.
        revision: the commit of a source on the Hub.
        record_path: also record a folder's path.
    """
    if not os.path.isdir(source):
        return {"source": source, "local": False, "revision": revision, "subfolder": subfolder}
    place = os.path.abspath(os.path.join(source, subfolder or ""))
    real = os.path.realpath(place)
    cached = in_hub_cache(real)
    if cached:
        name, commit, inside = cached
        root = real.removesuffix(inside or "").rstrip(os.sep)
        fields = {"source": name, "local": False, "revision": commit, "subfolder": inside}
    else:
        within = subfolder.strip("/\\") if subfolder else ""
        keeps_subfolder = bool(within) and os.path.basename(place) == within == folder_name(place)
        root = os.path.abspath(source) if keeps_subfolder else place
        fields = {
            "source": folder_name(root),
            "local": True,
            "revision": None,
            "subfolder": within if keeps_subfolder else None,
        }
    return fields | ({"path": root} if record_path else {})


def folder_name(place: str | os.PathLike[str]) -> str:
    """A folder's own name; `NAMELESS` if that is, or holds, the name of a user or of a folder above.

    >>> folder_name("/data/projects/gpt2-small"), folder_name("/home/alice"), folder_name("/data/x/data")
    ('gpt2-small', 'model', 'model')
    """
    path = Path(os.path.abspath(place))
    name = "".join(mark if mark.isprintable() else "_" for mark in path.name)[:100]
    above = {part.casefold() for part in path.parent.parts}
    parts = set(re.split(r"[^0-9a-z]+", name.casefold())) | {name.casefold()}
    is_private = path.parent.name in HOMES or name.casefold() in above or bool(parts & _users(path))
    return NAMELESS if is_private or not name else name


def _users(path: Path) -> set[str]:
    """The names of this computer's user and of the user whose home a path lies in."""
    names = {os.path.basename(os.path.expanduser("~"))}
    with contextlib.suppress(OSError, KeyError, ImportError):  # no name is known for this process
        names.add(getpass.getuser())
    names |= {owner for home, owner in zip(path.parts, path.parts[1:], strict=False) if home in HOMES}
    return {name.casefold() for name in names if name}


def without_places(texts: Iterable[str], *places: str | os.PathLike[str]) -> tuple[str, ...]:
    """The sentences, with the names of folders instead of their paths.

    Args:
        places: the folders, as the user gave them; a hub id changes nothing.
    """
    names = {}
    for folder in (os.fspath(place) for place in places):
        if os.path.exists(folder):
            for form in (folder, os.path.abspath(folder), os.path.realpath(folder)):
                names[form.rstrip(os.sep) or form] = folder_name(folder)
    forms = sorted((form for form in names if os.sep in form), key=len, reverse=True)
    return tuple(_replaced(text, forms, names) for text in texts)


def _replaced(text: str, forms: list[str], names: Mapping[str, str]) -> str:
    for form in forms:
        text = text.replace(form, names[form])
    return text


def in_hub_cache(place: str) -> tuple[str, str, str | None] | None:
    """The repository, commit and folder in it that a path of the Hub's cache names."""
    match = SNAPSHOT.search(place)
    if not match:
        return None
    name = match[1].replace("--", "/", 1)
    return (name, match[2], (match[3] or "").strip("/\\") or None) if is_repo_id(name) else None


def is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
