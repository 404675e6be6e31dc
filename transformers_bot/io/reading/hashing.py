"""SHA-256 of files, also in a thread of its own beside what else is done."""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from .paths import opened
from .stamps import Stamp, changed

PIECE = 1 << 20  # bytes: read and hashed while a core's cache holds them; hashlib lets other threads run meanwhile


def sha256(path: Path, stopped: threading.Event | None = None, stamp: Stamp | None = None) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits.

    Args:
        stopped: ends it after the current piece when set.
        stamp: what the file was when it was checked: the hash is of that file, or there is none.

    Raises:
        BadCheckpoint: the file cannot be read, or is another one than `stamp` says.
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
        # Where the system gives no further thread, they are hashed when they are asked for.
        with contextlib.suppress(RuntimeError):
            self._hashes = self._pool.submit(self._compute, True, self._stopped)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def result(self) -> dict[str, str]:
        """What `Checkpoint.hashes` gives, when all files are read.

        Raises:
            BadCheckpoint: a file cannot be read, or is not the one that was checked.
        """
        return self._compute(True, None) if self._hashes is None else self._hashes.result()
