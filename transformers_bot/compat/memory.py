"""Memory between steps: what is freed is used again, or given back before it adds up; full searches for cycles wait."""

import contextlib
import functools
import gc
import threading
from collections.abc import Callable, Iterator

REUSED = 31 << 20  # bytes: a little below what glibc maps apart and hands back at once, whatever came before
NEVER = 2**30  # searches of the younger objects before all are searched
_LOCK = threading.Lock()
_WITHOUT = 0  # how many calls are inside `no_full_search`
_BEFORE = (0, 0, 0)  # what was set before the first of them


def release() -> None:
    """Return freed memory to the system where the C library is glibc; elsewhere nothing needs to be done."""
    trim = _trim()
    if trim is not None:
        trim(0)


def reuse() -> None:
    """Let glibc use the memory of temporary tensors again, from the first one on.

    It hands back at once what is larger than the largest block freed so far (up to 32 MiB), and what is
    free at the end of its heap beyond twice that. A first resize of a process then waits for twice as many
    fresh pages, a microsecond for each 4 KiB. A block that is freed untouched costs nothing.
    """
    import torch  # not for the names of this package alone

    torch.empty(REUSED, dtype=torch.uint8, device="cpu")


class Releasing:
    """Gives freed memory back after every `every` bytes of tensors: doing so after each would take its time."""

    def __init__(self, every: int) -> None:
        self._every, self._since = every, 0

    def made(self, size: int) -> None:
        """A tensor of `size` bytes was made, or read and done with."""
        self._since += size
        if self._since >= self._every:
            release()
            self._since = 0


@contextlib.contextmanager
def no_full_search() -> Iterator[None]:
    """No search of all objects for cycles meanwhile, in any thread; young objects are searched as ever.

    A full search looks at everything that torch and transformers consist of: .1 to .2 s, three times while
    a first call imports and builds models. What a resize leaves in cycles holds no weights.
    """
    global _WITHOUT, _BEFORE
    with _LOCK:
        if not _WITHOUT:
            _BEFORE = gc.get_threshold()
            gc.set_threshold(*_BEFORE[:2], NEVER)
        _WITHOUT += 1
    try:
        yield
    finally:
        with _LOCK:
            _WITHOUT -= 1
            if not _WITHOUT and gc.get_threshold()[2] == NEVER:  # else somebody has set another one meanwhile
                gc.set_threshold(*_BEFORE)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    import ctypes  # a millisecond that the names of this package can do without

    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows has no handle of the process itself
        return None
    return found
