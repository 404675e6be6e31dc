"""What a call opened, how long it took and how much memory it held at most.

Files opened by Python raise the audit event "open". The safetensors library opens files natively, without
an event, so places outside of a model folder are watched by inotify as well.
"""

import contextlib
import ctypes
import os
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

import transformers_bot

SECONDS, MEGABYTES = 1.0, 200
IN_OPEN, IN_NONBLOCK, IN_ISDIR = 0x20, 0o4000, 0x40000000
# Python's own files, installed packages, and the kernel's: code, not data that a checkpoint could name.
ALLOWED = tuple(
    os.path.realpath(path)
    for path in (
        sys.prefix,
        sys.base_prefix,
        Path(transformers.__file__).parents[1],
        Path(torch.__file__).parents[1],
        Path(transformers_bot.__file__).parents[1] / "transformers_bot",
        "/proc",
        "/sys",
        "/dev/null",
        "/dev/urandom",
    )
)
_recording: list[str] | None = None


def _hook(event: str, arguments: tuple) -> None:
    if event == "open" and _recording is not None and isinstance(arguments[0], (str, bytes)):
        _recording.append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_hook)


@dataclass
class Watched:
    """What happened in the block.

    Attributes:
        opened: real paths that Python opened and that are not code.
        seconds: processor time of all threads; time on the clock would tell of the machine's other work, and a
            call that waits for ever stops the test run by itself.
        megabytes: growth of the process's resident memory at its highest point in the block.
    """

    opened: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megabytes: float = 0.0

    def outside(self, *folders: Path) -> list[str]:
        """The opened files that lie in none of these folders."""
        roots = [os.path.realpath(folder) for folder in folders]
        return [path for path in self.opened if not any(_below(path, root) for root in roots)]


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Watch a block; the result is filled when the block ends, by an error too."""
    global _recording
    seen = Watched()
    before = _reset_peak()
    opened: list[str] = []
    started = time.process_time()
    _recording = opened
    try:
        yield seen
    finally:
        _recording = None
        seen.seconds = time.process_time() - started
        seen.megabytes = (_status("VmHWM") - before) / 1024
        seen.opened = [path for path in opened if not any(_below(path, root) for root in ALLOWED)]


@contextlib.contextmanager
def nothing_opens(folder: Path) -> Iterator[None]:
    """Fail if anything, native code included, opens a file directly in `folder` while the block runs."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(IN_NONBLOCK)
    assert handle >= 0, os.strerror(ctypes.get_errno())
    try:
        watch = libc.inotify_add_watch(handle, os.fsencode(folder), IN_OPEN)
        assert watch >= 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            names = _names(handle)
        assert names == []
    finally:
        os.close(handle)


def _names(handle: int) -> list[str]:
    """The names in the events that wait in an inotify handle."""
    try:
        data = os.read(handle, 1 << 16)
    except BlockingIOError:
        return []
    names, place = [], 0
    while place < len(data):
        _, mask, _, length = struct.unpack_from("iIII", data, place)
        name = data[place + 16 : place + 16 + length].rstrip(b"\0")
        if not mask & IN_ISDIR:
            names.append(os.fsdecode(name))
        place += 16 + length
    return names


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + os.sep)


def _reset_peak() -> int:
    """Let the kernel forget the highest resident memory so far; the memory now, in kB."""
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith(name))
