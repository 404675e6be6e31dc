"""Whether files are still what they were when they were checked."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import BadCheckpoint
from .paths import shown_path


@dataclass(frozen=True)
class Stamp:
    """What changes when a file is replaced, rewritten, cut or grown: its place on the disk, its length, its time."""

    device: int
    inode: int
    size: int
    changed: int  # nanoseconds

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """The stamp of each file, links followed.

    Raises:
        BadCheckpoint: one is not there (any more).
    """
    return {path: _stamp(path) for path in paths}


def check_unchanged(stamps: Mapping[Path, Stamp]) -> None:
    """Refuse to go on where a file is not what it was.

    Raises:
        BadCheckpoint: it names the file.
    """
    for path, stamp in stamps.items():
        if _stamp(path) != stamp:
            raise changed(path)


def changed(path: Path) -> BadCheckpoint:
    """The error for a file that somebody else has changed."""
    return BadCheckpoint(
        f"{shown_path(path)} was changed or replaced while it was read. Wait until nothing writes to it any more, then "
        "run it again."
    )


def _stamp(path: Path) -> Stamp:
    try:
        return Stamp.of(os.stat(path))
    except OSError:
        raise changed(path) from None
