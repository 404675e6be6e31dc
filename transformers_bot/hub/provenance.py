"""Where a resized model comes from: its record, and the Hub repository behind it.

A record names a source on the Hub by its id and commit, and a folder by its own name alone: paths and user names are
private. A record is only a claim, so nothing that it names is opened here.

Why by hand: the `base_model` of a huggingface_hub card, which is written as well, names a repository without its
commit, and has no form for a folder, a method or sizes.
"""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..errors import BadOption
from ..io.config_files import folder_name, in_hub_cache, is_repo_id
from ..io.files import shown
from ..io.kept_tokens import wrong_record

COMMIT = re.compile(r"[0-9a-f]{40}")
LONGEST = 4096  # characters of a text in a record
# The types of a record's fields; fields that are not listed are up to the method.
TEXTS = ("source", "method", "path", "revision", "subfolder", "variant", "dtype", "nonfinite")
FLAGS = ("local", "ignore_mismatched_sizes", "strict", "allow_pickle", "calibrated")
TABLES = ("source_sizes", "target_sizes", "files", "versions", "config", "options", "claimed_source", "fit")
NEEDED = ("source", "method", "source_sizes", "target_sizes")


def public(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without local paths, for a push."""
    fields = {key: value for key, value in record.items() if key != "path"}
    place = recorded_path(record)
    if place is None or record.get("path"):
        return fields
    cached = in_hub_cache(place)
    if cached:
        return {**fields, "source": cached[0], "local": False, "revision": cached[1], "subfolder": cached[2]}
    return {**fields, "source": _last(place)}


def recorded_path(record: Mapping[str, Any]) -> str | None:
    """The path of the source folder in a record; None for most records, which hold only its name."""
    if record.get("path"):
        return str(record["path"])
    # A record may hold the path as the source; a name alone does not say where the folder was.
    source = str(record.get("source"))
    is_path = re.search(r"[/\\]|^(\.{1,2}|~.*)$", source)
    return source if is_path and record.get("local", not is_repo_id(source)) else None


def names_of(path: str) -> tuple[str, ...]:
    """The names that a record may have for the folder at a path: its own, or the repository that it is a copy of."""
    cached = in_hub_cache(path)
    return (_last(path), cached[0]) if cached else (_last(path),)


def is_local(record: Mapping[str, Any]) -> bool:
    """Whether a record's source was a folder."""
    return hub_source(record) is None and bool(record.get("local", True))


def hub_source(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The repository and commit that a model was made from, None for a folder.

    Only sources that were loaded from the Hub have a commit; a relative folder may look like an id. For a folder in
    the Hub's cache the path names both.
    """
    source, revision = str(record.get("source")), str(record.get("revision"))
    cached = in_hub_cache(source)
    if cached:
        return cached[:2]
    if not record.get("local") and COMMIT.fullmatch(revision) and is_repo_id(source):
        return source, revision
    return None


def claimed_source(config: PreTrainedConfig) -> dict[str, str] | None:
    """The repository and commit that a source's own config claims to be made from, None if it claims none."""
    record = getattr(config, "transformers_bot", None)
    if not isinstance(record, dict):
        return None
    repository = hub_source(record) or claimed_in(record)
    return {"source": repository[0], "revision": repository[1]} if repository else None


def claimed_in(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The repository and commit that a record's source claimed, None if it claimed none."""
    claim = record.get("claimed_source")
    return hub_source({**claim, "local": False}) if isinstance(claim, dict) else None


def base_model(record: Mapping[str, Any]) -> str | None:
    """The Hub id for the card's `base_model`; a folder never is one, whatever its own config claims."""
    repository = hub_source(record)
    return repository[0] if repository else None


def provenance_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The record of how a model was made, from its config.

    Raises:
        BadOption: the config has none, or it is not in the form that resizing writes.
    """
    record = getattr(config, "transformers_bot", None)
    if record is None:
        raise BadOption(
            "this model has no provenance: its config has no field transformers_bot, so it was not resized with this "
            "package. Push it with its own push_to_hub."
        )
    damage = damage_of(record)
    if damage:
        raise BadOption(
            f"the provenance in this model's config (field transformers_bot) is damaged: {damage}. "
            "Resize the model again, or delete the field and push without it."
        )
    return dict(record)


def damage_of(record: Any, printable: bool = False) -> str | None:
    """The first fault of a record, as a clause; None if it has the form that resizing writes.

    Args:
        printable: also refuse control characters in names, because the names will be used, not only shown.
    """
    if not isinstance(record, dict):
        return f"it is {shown(record)}, not a table"
    lacking = [key for key in NEEDED if record.get(key) is None]
    if lacking:
        return f"{lacking[0]} is missing"
    is_text = _is_printable if printable else _is_text
    wrong = [key for key in TEXTS if record.get(key) is not None and not is_text(record[key])]
    wrong += [key for key in FLAGS if not isinstance(record.get(key), (bool, type(None)))]
    wrong += [key for key in TABLES if not isinstance(record.get(key), (dict, type(None)))]
    wrong += [] if _is_number(record.get("inherited", 0)) else ["inherited"]
    wrong += [] if _is_seed(record.get("seed_of_new_heads")) else ["seed_of_new_heads"]
    wrong += [] if _is_inside(record.get("subfolder")) else ["subfolder"]
    wrong += [] if not re.search(r"[/\\\\]", str(record.get("variant"))) else ["variant"]
    wrong += ["vocab_keep"] if record.get("vocab_keep") is not None and wrong_record(record["vocab_keep"]) else []
    values = {"source_sizes": _is_whole, "target_sizes": _is_whole, "files": is_text, "versions": is_text}
    wrong = wrong or [
        key
        for key, is_value in values.items()
        if not all(is_text(name) and is_value(value) for name, value in (record.get(key) or {}).items())
    ]
    return f"{wrong[0]} is {shown(record[wrong[0]])}" if wrong else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST


def _is_printable(value: Any) -> bool:
    return _is_text(value) and value.isprintable()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_seed(value: Any) -> bool:
    return _is_whole(value) and (value is None or 0 <= value < 1 << 64)


def _is_inside(subfolder: Any) -> bool:
    """Whether a record's subfolder stays inside its source."""
    parts = re.split(r"[/\\]", subfolder) if isinstance(subfolder, str) else []
    return ".." not in parts and parts[:1] != [""] and not any(":" in part for part in parts)


def _last(place: str) -> str:
    """The folder name of a recorded path, which may come from another operating system."""
    name = re.split(r"[/\\]", place.rstrip("/\\"))[-1]
    return folder_name(place) if name in ("", ".", "..", "~") else folder_name(place.replace("\\", "/"))
