"""The files of a source: where they lie, which of them transformers loads, how each is opened.

A model folder is untrusted data. A link in it can point to any file of the machine, reading a named pipe can wait
for ever, and a file name can hold escape codes for the terminal. So only regular files inside of the source's own
folder are opened, and a file that changes while it is read is refused.

Why by hand: transformers chooses the weight files inside of its own loading, too late to check them first, and opens
what it finds; huggingface_hub, which finds and downloads files here as well, looks at none of them.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file
from transformers.utils.hub import cached_files

from ..compat import NO_ERROR, NO_MISSING_ENTRY
from ..errors import BadCheckpoint, BoTError, HubError, UnsafeCheckpoint

LFS_POINTER = b"version https://git-lfs"
SHOWN = 80  # characters of an untrusted name in a message
LISTED = 50  # names in one message
# What transformers, or this package, opens in a model folder besides the weights it is asked for.
READ_SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja", ".md")
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def shown(value: object) -> str:
    """An untrusted name or value for a message: as Python writes it, control characters escaped, cut to 80 characters.

    >>> shown("h.0.w"), shown([1, 2])
    ("'h.0.w'", '[1, 2]')
    >>> shown("a" * 1000)[-18:]
    '(1,000 characters)'
    """
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= SHOWN:
        return repr(value)
    return f"{repr(text[:SHOWN]) if isinstance(value, str) else text[:SHOWN]}... ({len(text):,} characters)"


def clean(text: str, most: int = 300) -> str:
    """Another library's message for one of ours: on one line, control characters escaped, cut.

    >>> clean("type \x1b[31m\\n  unknown")
    'type \\\\x1b[31m unknown'
    """
    line = " ".join(text.split())[: most + 1]
    escaped = "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in line)
    return escaped if len(line) <= most else f"{escaped[:most]}..."


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "tensor"), count(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path for a message: unchanged if a terminal can show it, else quoted, escaped and cut.

    >>> shown_path("my model/config.json")
    'my model/config.json'
    """
    text = os.fspath(path)
    return text if text.isprintable() and len(text) < 300 else shown(text)


def listed(names: list[str]) -> str:
    """Names for a message: all of them up to 50, then how many more there are."""
    rest = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(shown(name) for name in names[:LISTED]) + rest


def is_plain(name: str) -> bool:
    """Whether a name inside a checkpoint is a relative path that stays below its folder on every system.

    Wildcards are refused too: the hub's client takes names as patterns.

    >>> [is_plain(name) for name in ("model-1.safetensors", "../x", "/etc/passwd", "c:x", "a//b", "*")]
    [True, False, False, False, False, False]
    """
    if not name.isprintable() or len(name) > 255 or any(mark in name for mark in '\\:*?[]<>|"'):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


@dataclass(frozen=True)
class Folder:
    """A model folder, and the places where its files may be once links are followed.

    Attributes:
        path: the folder with config.json.
        roots: real paths; a file may lie below any of them.
    """

    path: Path
    roots: tuple[str, ...]

    @classmethod
    def at(cls, folder: str | os.PathLike[str], subfolder: str = "") -> "Folder":
        """The folder that a user names; below a snapshot of the hub's cache, that repository's blobs too."""
        path = Path(folder, subfolder)
        roots = [os.path.realpath(folder), os.path.realpath(path)]
        parts = Path(roots[0]).parts
        for place, part in enumerate(parts[1:], 1):
            if part == "snapshots" and parts[place - 1].startswith("models--"):
                # Not resolved: if `blobs` itself is a link, its target is outside of the cache.
                roots.append(os.path.join(*parts[:place], "blobs"))
        return cls(path, tuple(roots))

    def holds(self, name: str) -> bool:
        """Whether there is an entry of this name, of whatever kind, broken links included."""
        return os.path.lexists(self.path / name)

    def locate(self, name: str) -> Path:
        """The path of a file in the folder, safe to open.

        Raises:
            UnsafeCheckpoint: it lies outside of the folder.
            BadCheckpoint: it is missing, or no regular file, or cannot be reached.
        """
        path = self.path / name
        self.check(path)
        return path

    def check(self, path: Path) -> os.stat_result:
        """Refuse a path that leads out of the folder or that names no regular file; see `locate`."""
        real = os.path.realpath(path)
        if not any(Path(real).is_relative_to(root) for root in self.roots):
            raise UnsafeCheckpoint(
                f"{shown_path(path)} is a link to {shown_path(real)}, outside of the model folder: it is not opened. "
                "Copy the file into the folder if you trust it."
            )
        try:
            status = os.stat(path)
        except FileNotFoundError:
            state = f"is a broken link to {shown(os.readlink(path))}" if path.is_symlink() else "does not exist"
            raise BadCheckpoint(f"{shown_path(path)} {state}. Download it again.") from None
        except OSError as error:
            raise _unreadable(path, error) from None
        if not stat.S_ISREG(status.st_mode):
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
            raise BadCheckpoint(f"{shown_path(path)} is {kind}, not a file. Remove it and download the file.")
        return status

    def check_links(self) -> None:
        """Refuse links out of the folder in every file that a loader might open beside the weights."""
        with self._listing() as entries:
            for entry in entries:
                if entry.is_symlink() and entry.name.endswith(READ_SUFFIXES) and not os.path.isdir(entry):
                    self.check(Path(entry.path))

    def names(self) -> list[str]:
        """The names of all entries."""
        with self._listing() as entries:
            return sorted(entry.name for entry in entries)

    def _listing(self) -> "contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]":
        try:
            return os.scandir(self.path)
        except OSError as error:
            raise _unreadable(self.path, error) from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file, open for reading, with its size; never waits for another process.

    Raises:
        BadCheckpoint: it cannot be opened or read, or is no regular file (any more).
    """
    try:
        # A pipe that took the file's place since the check opens at once with O_NONBLOCK.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise _unreadable(path, error) from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):  # before os.fdopen, which fails on a folder
        os.close(handle)
        kind = "is a folder, not a file" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
        raise BadCheckpoint(f"{shown_path(path)} {kind}. Download it again.")
    with os.fdopen(handle, "rb", buffering=0) as stream:
        try:
            yield stream, status.st_size
        except OSError as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> BadCheckpoint:
    reason = (error.strerror or type(error).__name__).lower()
    return BadCheckpoint(f"{shown_path(path)} cannot be read: {reason}. Check its permissions and its disk.")


# -- whether files have changed since they were checked --------------------------------------------


@dataclass(frozen=True)
class Stamp:
    """Inode, size and time of a file: one of them changes if it is replaced, rewritten, truncated or extended."""

    device: int
    inode: int
    size: int
    changed: int  # nanoseconds

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """The stamp of each file, links followed.

    Raises:
        BadCheckpoint: a file is missing.
    """
    return {path: _stamp(path) for path in paths}


def check_unchanged(stamps: Mapping[Path, Stamp]) -> None:
    """Raise if a file has changed since its stamp was taken.

    Raises:
        BadCheckpoint: the message names the file.
    """
    for path, stamp in stamps.items():
        if _stamp(path) != stamp:
            raise changed(path)


def changed(path: Path) -> BadCheckpoint:
    """The error for a file that another program has changed."""
    return BadCheckpoint(
        f"{shown_path(path)} was changed or replaced while it was read. Wait until nothing writes to it any more, then "
        "run it again."
    )


def _stamp(path: Path) -> Stamp:
    try:
        return Stamp.of(os.stat(path))
    except OSError:
        raise changed(path) from None


# -- what the Hub answers ----------------------------------------------------------------------------

LOG_IN = "log in with `hf auth login`, or pass token="


@contextmanager
def from_hub(name: str, revision: object = None) -> Iterator[None]:
    """Turn errors of fetching files of `name` from the Hub into a `HubError`; those of a local folder pass unchanged.

    The original error is not chained: its traceback, inside transformers and the HTTP client, does not help a caller.
    """
    try:
        yield
    except BoTError:
        raise
    except (OSError, HFValidationError) as error:
        if os.path.exists(name):
            raise
        raise HubError(_hub_message(name, revision, error)) from None


def _hub_message(name: str, revision: object, error: Exception) -> str:
    causes = list(_causes(error))

    def is_a(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    source = shown(name)
    if is_a(HFValidationError):
        return f"{source} is no folder here, and no name that a model on the Hub can have (OWNER/NAME). Correct it."
    if is_a(GatedRepoError):
        page = f"{constants.ENDPOINT}/{name}"
        return f"{source} is a gated model of the Hub: ask for access at {page}, then {LOG_IN}."
    if is_a(RevisionNotFoundError):
        return f"{source} has no revision {shown(revision)} on the Hub: name a branch, tag or commit that it has."
    if is_a(RepositoryNotFoundError):
        return f"{source} is no folder here, and no model of the Hub that you can see. If it is private, {LOG_IN}."
    offline = is_a(OfflineModeIsEnabled) or constants.is_offline_mode()
    if is_a(LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = "offline mode is on" if offline else "the Hub cannot be reached, or local_files_only=True forbids it"
        return f"{source} is no folder here and not whole in the Hub's cache, and {reason}. Connect, or name a folder."
    if is_a(EntryNotFoundError):
        return f"{source} lacks a file on the Hub: {clean(str(error))}"
    return f"{source} is no folder here, and fetching it from the Hub failed: {clean(str(error))}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# -- which files transformers is going to load -------------------------------------------------------

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
    """The file names to look for, in the order in which transformers prefers them."""
    if explicit is not None:
        return [explicit]
    use_safetensors, variant = keywords.get("use_safetensors"), keywords.get("variant")
    safe = [] if use_safetensors is False else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    pickled = [] if use_safetensors else [WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
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
    """Whether a source has a file beside its weights; False also if the Hub cannot be reached."""
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
        cached = cached_files(name, shards, **hub_keywords(keywords)) or []
    # cached_files keeps the given order; if files were missing, names would be paired with the wrong ones.
    if len(cached) != len(shards):
        raise BadCheckpoint(f"{shown_path(name)}: the hub gave {len(cached)} of {len(shards)} shards. Try again.")
    paths = [Path(path) for path in cached]
    for path in paths:
        folder.check(path)
    return paths


def missing_shards(path: Path, shards: list[str], absent: list[str]) -> BadCheckpoint:
    """The error for shards that the index names and the folder does not hold."""
    verb = "is" if len(absent) == 1 else "are"
    return BadCheckpoint(
        f"{len(absent)} of {count(len(shards), 'shard')} {verb} missing: {listed(absent)} "
        f"(named by {shown_path(path)}). Download the missing files."
    )


def hub_keywords(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that say where on the hub a source is; `subfolder=None`, the top folder, is left out."""
    chosen = {key: keywords[key] for key in HUB if key in keywords}
    if chosen.get("subfolder", "") is None:
        del chosen["subfolder"]
    return chosen


def no_weights(name: str, folder: Folder, names: list[str], keywords: Mapping[str, Any]) -> Exception:
    """The error for a source without weights to load: a `BadCheckpoint`, or the Hub's own for an id."""
    if not is_folder(name):
        try:
            with from_hub(name, keywords.get("revision")):
                cached_file(name, names[0], **hub_keywords(keywords))
        except HubError as error:
            return error
    entries = folder.names()
    alien = {kind: file for file in entries for end, kind in ALIEN.items() if file.endswith(end)}
    plain = [file for file in entries if file.endswith((SAFE, ".bin", f"{SAFE}.index.json"))]
    if alien:
        kind, file = next(iter(alien.items()))
        advice = f"{shown(file)} are {kind} weights, which cannot be resampled; use a safetensors checkpoint"
    elif plain:
        advice = f"there is {listed(plain)}: rename it, or choose it with variant= or use_safetensors="
    else:
        advice = "download it again, or name the folder that holds its weights (subfolder=)"
    return BadCheckpoint(f"{shown_path(folder.path)} has no weights: {' or '.join(names)} is looked for; {advice}.")


def notes_of(name: str, folder: Folder, choice: Choice, keywords: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on other weights of a folder, which are not read."""
    if not is_folder(name):
        return ()
    beside = [
        filename
        for filename in candidates({"variant": keywords.get("variant")}, None)
        if filename != choice.main.name and folder.holds(filename)
    ]
    return tuple(f"{filename} beside {choice.main.name} is not read." for filename in beside)


def _with_variant(name: str, variant: str | None) -> str:
    if variant is None:
        return name
    front, _, last = name.rpartition(".")
    return f"{front}.{variant}.{last}"
