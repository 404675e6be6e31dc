"""SHA-256 of files, and whether a folder is still what this package wrote.

A fingerprint, kept in the transfer report, is SHA-256 over a file's size and its bytes; of a large file of weights over
its header and some stretches of every tensor, so that it costs milliseconds whatever the size. Training changes whole
tensors, so these samples show it; a single value that was edited in a large tensor can be missed.

Why by hand: `huggingface_hub.utils.sha.sha_fileobj` reads a whole file, cannot be stopped, and does not see that the
file changes meanwhile.
"""

import contextlib
import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import BoTError
from .config_files import read_json
from .files import Stamp, changed, opened, shown_path
from .vocabulary import LARGE
from .weights import MAX_HEADER, read_header

PIECE = 1 << 20  # bytes read and hashed at a time: they fit a core's cache, and other threads run while hashlib works


def sha256(path: Path, stopped: threading.Event | None = None, stamp: Stamp | None = None) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits.

    Args:
        stopped: ends it after the current piece when set.
        stamp: taken when the file was checked; a file that has changed since is an error.

    Raises:
        BadCheckpoint: the file cannot be read, or does not fit `stamp`.
        CancelledError: `stopped` was set before the end.
    """
    digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE))
    with opened(path) as (stream, _):
        if stamp is not None and Stamp.of(os.fstat(stream.fileno())) != stamp:
            raise changed(path)
        while count := stream.readinto(piece):  # type: ignore[attr-defined]
            if stopped is not None and stopped.is_set():
                raise CancelledError
            digest.update(piece[:count])
        if stamp is not None and Stamp.of(os.fstat(stream.fileno())) != stamp:
            raise changed(path)
    return digest.hexdigest()


class Hashing:
    """Hashes the files of a checkpoint in a thread while the block runs; a block that raises does not wait for it.

    Example:
        with Hashing(checkpoint.hashes) as hashing:
            ...  # resize
            hashes = hashing.result()
    """

    def __init__(self, hashes: Callable[[bool, threading.Event | None], dict[str, str]]) -> None:
        self._compute, self._stopped = hashes, threading.Event()
        self._pool = ThreadPoolExecutor(1, "sha256")
        self._hashes: Future[dict[str, str]] | None = None

    def __enter__(self) -> "Hashing":
        # If the system can start no further thread, `result` computes the hashes itself.
        with contextlib.suppress(RuntimeError):
            self._hashes = self._pool.submit(self._compute, True, self._stopped)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def result(self) -> dict[str, str]:
        """The hashes of `Checkpoint.hashes`, once all files are read.

        Raises:
            BadCheckpoint: a file cannot be read, or is not the one that was checked.
        """
        return self._compute(True, None) if self._hashes is None else self._hashes.result()


# -- fingerprints of what was written ----------------------------------------------------------------

REPORT = "transfer_report.json"
# Files without a fingerprint: the report itself, the card, which people may edit, and files of git and macOS.
PASSED = (REPORT, "README.md", ".gitattributes", ".DS_Store")
WEIGHTS = ".safetensors"
WHOLE = 1 << 20  # bytes up to which a file is hashed as a whole
STRETCHES, STRETCH = 4, 512  # of every tensor, and bytes in each


def fingerprints(folder: Path) -> dict[str, str]:
    """Name -> fingerprint of every file of a saved model.

    Raises:
        BoTError: a file that cannot be read.
    """
    return {name: fingerprint(folder / name) for name in _names(folder)}


def _names(folder: Path) -> list[str]:
    """The files of a folder that have a fingerprint; a link is one of them, wherever it leads."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [name for name in sorted(path.relative_to(folder).as_posix() for path in paths) if name not in PASSED]


def fingerprint(path: Path) -> str:
    """The fingerprint of one file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with opened(path) as (stream, size):
        digest.update(size.to_bytes(8, "little"))
        small = size <= WHOLE or path.suffix != WEIGHTS
        for start, end in [(0, size)] if small else _spans(stream):
            stream.seek(start)
            _update(digest, stream, end - start)
    return digest.hexdigest()


def why_foreign(folder: Path) -> str | None:
    """The reason why a folder is not, or no longer, what `resize_checkpoint` wrote; None if it is."""
    if not (folder / REPORT).is_file():
        return f"it has no {REPORT}"
    try:
        recorded = read_json(folder / REPORT).get("written")
        if not isinstance(recorded, dict) or not recorded:
            return f"its {REPORT} does not say which files were written"
        return _difference(folder, recorded)
    except (BoTError, OSError) as error:
        return str(error).rstrip(".")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "its weights are no safetensors files"


def _difference(folder: Path, recorded: dict[str, Any]) -> str | None:
    """The first file that is not as it was written; names are compared before any file is opened."""
    present = _names(folder)
    for name in sorted({*recorded} ^ {*present}):
        return f"{shown_path(name)} {'is gone' if name in recorded else 'was added'} since"
    for name in present:
        if not _may_be_ours(folder / name) or fingerprint(folder / name) != recorded[name]:
            return f"{shown_path(name)} was changed since"
    return None


def _may_be_ours(path: Path) -> bool:
    """Whether a resize can have written it: no link, no pipe, and nothing large but weights of a sound header."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        return False
    if path.suffix == WEIGHTS and status.st_size > WHOLE:
        read_header(path)
    return path.suffix == WEIGHTS or status.st_size <= LARGE


def _spans(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """The parts of a file of weights that are hashed: its header, and stretches of every tensor."""
    length = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(min(length, MAX_HEADER)))
    yield 0, 8 + length
    for entry in (entry for name, entry in header.items() if name != "__metadata__"):
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if end - begin <= STRETCHES * STRETCH:
            yield begin, end
            continue
        step = (end - begin - STRETCH) // (STRETCHES - 1)
        yield from ((at, at + STRETCH) for at in range(begin, begin + STRETCHES * step, step))


def _update(digest: "hashlib._Hash", stream: BinaryIO, count: int) -> None:
    while count > 0 and (piece := stream.read(min(count, WHOLE))):
        digest.update(piece)
        count -= len(piece)


__all__ = ["fingerprint", "fingerprints", "why_foreign"]
