"""How much memory there is, and an error before the work where a resize cannot do with it."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from ..errors import TooLittleMemory

GROUPS = Path("/sys/fs/cgroup")
# memory's limit and use of a container, in version 2 and 1 of Linux's control groups
LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
# what torch and numpy say when an allocation fails
FAILED = re.compile(r"can't allocate memory|Unable to allocate|not enough memory|Cannot allocate memory")


def available() -> int:
    """Bytes that this process can still take: of the machine with its swap, its container, and its own limit."""
    found = [int(psutil.virtual_memory().available + psutil.swap_memory().free)]
    for limit, used in LIMITS:
        most, now = _number(GROUPS / limit), _number(GROUPS / used)
        if most is not None and now is not None:
            found.append(most - now + _reclaimable((GROUPS / used).parent))
    return max(0, min([*found, *_own_limit()]))


def check_room(needs: int, what: str, remedy: str) -> None:
    """Raise where fewer than `needs` bytes can be had.

    Args:
        needs: what is certainly held at one time; never more, so that nothing is refused that would fit.
        what: needs it, for the message.
        remedy: for the message.

    Raises:
        TooLittleMemory: there is less.
    """
    there = available()
    if needs > there:
        raise TooLittleMemory(f"{what} takes {_size(needs)} of memory, and {_size(there)} can be had here. {remedy}")


@contextlib.contextmanager
def told_of_memory(doing: str, needs: int) -> Iterator[None]:
    """Turn a failed allocation into an error of ours.

    Args:
        needs: the most that this may take, for the message.
    """
    try:
        yield
    except TooLittleMemory:
        raise
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not FAILED.search(str(error)):
            raise
        raise TooLittleMemory(
            f"{doing} ran out of memory: it takes up to {_size(needs)} beside the source's mapped files, and "
            f"{_size(available())} can be had here. Resize on a machine with more, or to smaller sizes."
        ) from error


def _own_limit() -> list[int]:
    """What is left of the address space where this process is held to some (`ulimit -v`)."""
    try:
        import resource  # not on Windows
    except ImportError:
        return []
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return [] if most == resource.RLIM_INFINITY else [most - int(psutil.Process().memory_info().vms)]


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none ("max"), or no file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(group: Path) -> int:
    """Bytes of files that a container has cached and would drop."""
    try:
        found = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(found.get("inactive_file", 0)) + int(found.get("active_file", 0))


def _size(count: float) -> str:
    """
    >>> _size(1_500_000_000)
    '1.5 GB'
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
