"""Giving memory back: glibc keeps freed blocks, which over a long run add up to many times what is in use."""

import ctypes
import functools
from collections.abc import Callable

EVERY = 32 << 20  # bytes


def release() -> None:
    """Return freed memory to the system where the C library is glibc; elsewhere nothing needs to be done."""
    trim = _trim()
    if trim is not None:
        trim(0)


class Releasing:
    """Gives freed memory back after every `every` bytes of tensors: doing so after each would take its time."""

    def __init__(self, every: int = EVERY) -> None:
        self._every, self._since = every, 0

    def made(self, size: int) -> None:
        """A tensor of `size` bytes was made, or read and done with."""
        self._since += size
        if self._since >= self._every:
            release()
            self._since = 0


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows has no handle of the process itself
        return None
    return found
