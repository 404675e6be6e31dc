"""Taking and giving back memory: large pages for large results, freed blocks back to the system.

glibc keeps freed blocks, which over a long run add up to many times what is in use.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LARGE = 4 << 20  # bytes from which a result is worth large pages of 2 MiB


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """An uninitialised tensor; on the CPU a large one may lie in large pages.

    The system clears every page when it is first written, and with pages of 4 KiB that takes several times
    as long as writing them. Linux has large ones for who asks; elsewhere nothing changes.
    """
    made = torch.empty(tuple(shape), dtype=dtype, device=device)
    size, advise = made.numel() * made.element_size(), _advise()
    if size >= LARGE and made.device.type == "cpu" and advise is not None:
        first = -(-made.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (made.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE)  # advice: it may be declined
    return made


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


@functools.cache
def _advise() -> Callable[[ctypes.c_void_p, ctypes.c_size_t, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        found: Callable[[ctypes.c_void_p, ctypes.c_size_t, int], int] = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    return found
