"""Where a resized model comes from: its record, and the Hub repository behind it.

A record names a source on the Hub by its id and commit, and a folder by its own name alone: paths and user names are
private. A record is only a claim, so nothing that it names is opened here.
"""

import contextlib
import getpass
import os
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import PreTrainedConfig, PreTrainedModel

from ..compat import has_peft_adapter
from ..errors import BadCheckpoint, BadOption
from ..io.files import Stamp, check_unchanged, shown, stamps_of
from ..io.fingerprints import sha256

if TYPE_CHECKING:
    from ..report.report import Report

COMMIT = re.compile(r"[0-9a-f]{40}")
# A folder of the Hub's own cache names the repository and the commit that it holds.
SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})(?:[/\\](.*))?$", re.DOTALL)
NAMELESS = "model"  # in place of a folder name that would show a user's name
HOMES = ("home", "Users", "Profiles")
LONGEST = 4096  # characters of a text in a record
# The types of a record's fields; fields that are not listed are up to the method.
TEXTS = ("source", "method", "path", "revision", "subfolder", "variant", "dtype", "nonfinite")
FLAGS = ("local", "ignore_mismatched_sizes", "strict", "allow_pickle", "calibrated")
TABLES = ("source_sizes", "target_sizes", "files", "versions", "config", "options", "claimed_source", "fit")
NEEDED = ("source", "method", "source_sizes", "target_sizes")


@dataclass(frozen=True)
class Place:
    """Where the source of a model in memory is; kept with the model, never saved or pushed."""

    source: str
    subfolder: str | None = None

    @classmethod
    def of(cls, source: str, subfolder: str | None) -> "Place":
        """The place with an absolute path, which stays valid if the current folder changes."""
        return cls(os.path.abspath(source) if os.path.isdir(source) else source, subfolder)


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
    cached = _cached(real)
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


def public(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without local paths, for a push."""
    fields = {key: value for key, value in record.items() if key != "path"}
    place = recorded_path(record)
    if place is None or record.get("path"):
        return fields
    cached = _cached(place)
    if cached:
        return {**fields, "source": cached[0], "local": False, "revision": cached[1], "subfolder": cached[2]}
    return {**fields, "source": _last(place)}


def recorded_path(record: Mapping[str, Any]) -> str | None:
    """The path of the source folder in a record; None for most records, which hold only its name."""
    if record.get("path"):
        return str(record["path"])
    # Records of earlier versions hold the path as the source; a name alone does not say where the folder was.
    source = str(record.get("source"))
    is_path = re.search(r"[/\\]|^(\.{1,2}|~.*)$", source)
    return source if is_path and record.get("local", not _is_repo_id(source)) else None


def names_of(path: str) -> tuple[str, ...]:
    """The names that a record may have for the folder at a path: its own, or the repository that it is a copy of."""
    cached = _cached(path)
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
    cached = _cached(source)
    if cached:
        return cached[:2]
    if not record.get("local") and COMMIT.fullmatch(revision) and _is_repo_id(source):
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


def _cached(place: str) -> tuple[str, str, str | None] | None:
    """The repository, commit and folder in it that a path of the Hub's cache names."""
    match = SNAPSHOT.search(place)
    if not match:
        return None
    name = match[1].replace("--", "/", 1)
    return (name, match[2], (match[3] or "").strip("/\\") or None) if _is_repo_id(name) else None


def _last(place: str) -> str:
    """The folder name of a recorded path, which may come from another operating system."""
    name = re.split(r"[/\\]", place.rstrip("/\\"))[-1]
    return folder_name(place) if name in ("", ".", "..", "~") else folder_name(place.replace("\\", "/"))


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


# -- attributes of a model in memory --------------------------------------------------------------------

Push = Callable[..., CommitInfo]  # `push.push_to_hub`, which stands above this module
Stamps = Mapping[str, tuple[Path, Stamp]]  # name in the record -> path of the file, and its state when it was read


def attach(
    model: PreTrainedModel,
    report: "Report | None",
    push: Push,
    files: Mapping[str, Path] | None = None,
    place: Place | None = None,
) -> None:
    """Give a model its report, and make its own `push_to_hub` write our card.

    The class is not changed: both are attributes of this instance, which its copies and pickles keep.

    Args:
        push: the function `push.push_to_hub`, which its `push_to_hub` calls with the model.
        files: the source's files, by their names in the record. A push hashes them if they have not changed;
            loading does not wait for that.
        place: where the source is.
    """
    stamps: dict[str, tuple[Path, Stamp]] = {}
    with contextlib.suppress(BadCheckpoint):  # a file is gone: its hash is not recorded
        stamps = {name: (path, stamps_of([path])[path]) for name, path in (files or {}).items()}
    model.transfer_report = report
    model.push_to_hub = _Push(model, push, stamps, place)


def place_of(model: PreTrainedModel) -> Place | None:
    """Where the source of a model in memory is; None for one that was loaded from its own files."""
    push = vars(model).get("push_to_hub")
    return push.place if isinstance(push, _Push) else None


class _Push:
    """A model's own `push_to_hub`: `transformers_bot.push_to_hub` for it, with the same keywords.

    It holds the model weakly: with a strong reference the model would refer to itself, and its memory would
    be freed late.
    """

    def __init__(self, model: PreTrainedModel, push: Push, files: Stamps, place: Place | None = None) -> None:
        self._model, self._push, self._files, self.place = weakref.ref(model), push, files, place

    def __call__(self, repo_id: str, **keywords: Any) -> CommitInfo:
        model = self._held()
        if has_peft_adapter(model):  # only the adapter is pushed, by transformers
            pushed: CommitInfo = type(model).push_to_hub(model, repo_id, **keywords)
            return pushed
        self._hash_files(model)
        return self._push(model, repo_id, **keywords)

    def _hash_files(self, model: PreTrainedModel) -> None:
        """Add the hashes of the source's files to the record; loading adds only those that need no reading."""
        record = model.config.transformers_bot
        recorded = record.get("files") or {}
        if not set(self._files) - set(recorded):
            return
        with contextlib.suppress(BadCheckpoint):  # the files have changed since they were read: no hashes
            check_unchanged(dict(self._files.values()))
            hashes = {
                name: recorded.get(name) or sha256(path, stamp=stamp) for name, (path, stamp) in self._files.items()
            }
            model.config.transformers_bot = {**record, "files": hashes}

    def _held(self) -> PreTrainedModel:
        model = self._model()
        if model is None:
            raise ReferenceError(
                "this push_to_hub belongs to a model that is gone (it was copied by copy.copy). "
                "Call transformers_bot.push_to_hub(model, repo_id)."
            )
        return model

    def __reduce__(self) -> tuple[type["_Push"], tuple[PreTrainedModel, Push, Stamps, Place | None]]:
        return _Push, (self._held(), self._push, self._files, self.place)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Push":
        model = self._held()
        return _Push(memo.get(id(model), model), self._push, self._files, self.place)
