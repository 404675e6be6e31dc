"""Giving memory back: glibc keeps freed blocks, which over a long run add up to many times what is in use."""

import ctypes
import functools
from collections.abc import Callable


def release() -> None:
    """Return freed memory to the system where the C library is glibc; elsewhere nothing needs to be done."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows has no handle of the process itself
        return None
    return found
