"""Which files of a source may be opened: regular ones, inside its own folder, and nothing else.

A model folder is data from somewhere else. A link in it can name any file of the machine, a named
pipe in it can hold a reader for ever, and a name in it can hold terminal commands.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...errors import BadCheckpoint, UnsafeCheckpoint

SHOWN = 80  # characters of a foreign name in a message
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
    """A foreign name or value for a message: as Python writes it, control characters escaped, cut to 80 characters.

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


def count(number: int, what: str) -> str:
    """
    >>> count(1, "tensor"), count(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as it is where a terminal can show it, else quoted, escaped and cut.

    >>> shown_path("my model/config.json")
    'my model/config.json'
    """
    text = os.fspath(path)
    return text if text.isprintable() and len(text) < 300 else shown(text)


def listed(names: list[str]) -> str:
    """Names for a message: all of them up to 50, then how many more there are."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(shown(name) for name in names[:LISTED]) + more


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
    """A model folder and the places that its files may really lie in.

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
                # Not resolved further: where `blobs` is itself a link, what it names is elsewhere.
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
            found = os.stat(path)
        except FileNotFoundError:
            what = f"is a broken link to {shown(os.readlink(path))}" if path.is_symlink() else "does not exist"
            raise BadCheckpoint(f"{shown_path(path)} {what}. Download it again.") from None
        except OSError as error:
            raise _unreadable(path, error) from None
        if not stat.S_ISREG(found.st_mode):
            kind = KINDS.get(stat.S_IFMT(found.st_mode), "a special file")
            raise BadCheckpoint(f"{shown_path(path)} is {kind}, not a file. Remove it and download the file.")
        return found

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
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):  # asked of the handle: os.fdopen takes no folder
        os.close(handle)
        what = "is a folder, not a file" if stat.S_ISDIR(found.st_mode) else "is not a regular file"
        raise BadCheckpoint(f"{shown_path(path)} {what}. Download it again.")
    with os.fdopen(handle, "rb", buffering=0) as stream:
        try:
            yield stream, found.st_size
        except OSError as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> BadCheckpoint:
    reason = (error.strerror or type(error).__name__).lower()
    return BadCheckpoint(f"{shown_path(path)} cannot be read: {reason}. Check its permissions and its disk.")
