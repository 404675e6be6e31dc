"""Puts a finished folder in its place: on the disk first, then in one step."""

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from ..console.progress import logger

FAILURES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file is larger than the limit (ulimit -f) or the filesystem allows",
    errno.EIO: "a disk failed",
}
# What a kernel, a filesystem or a container answers that does not know a call; EPERM is what some sandboxes say.
UNKNOWN_CALL = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})


def settle(staging: Path, target: Path) -> None:
    """Give every file the mode of new files, `staging` that of `target`, and bring all to the disk."""
    mode = staging.stat().st_mode & 0o666  # mkdir has applied the umask; safetensors leaves 0600
    if target.exists():
        shutil.copymode(target, staging)
    for folder, _, names in os.walk(staging, topdown=False):
        for path in (Path(folder, name) for name in names):
            if not path.is_symlink():
                path.chmod(mode)
                _sync(path)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNKNOWN_CALL:  # some network filesystems know no fsync of a folder
            raise
    finally:
        os.close(handle)


def move(staging: Path, target: Path) -> None:
    """Put `staging` at `target`; what stood there is at `staging` afterwards."""
    if not target.exists() or not os.listdir(target):
        staging.rename(target)  # replaces an empty folder; fails on one that was filled in this moment
    elif not _exchange(staging, target):
        aside = staging.with_name(f"{staging.name}.old")
        try:
            target.rename(aside)
            staging.rename(target)
        finally:
            if aside.exists():
                aside.rename(staging if target.exists() else target)
    try:
        _sync(target.parent)
    except OSError as error:  # too late for "nothing has changed": the new folder is in place
        logger.warning(f"{target} is in place, but a power cut could undo that: {error.strerror} ({target.parent}).")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return False where the system cannot."""
    libc, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(first), os.fsencode(second))
    if sys.platform == "darwin":
        call, arguments = getattr(libc, "renamex_np", None), (*names, 2)  # RENAME_SWAP
    else:
        here = -100  # AT_FDCWD
        call, arguments = getattr(libc, "renameat2", None), (here, names[0], here, names[1], 2)  # RENAME_EXCHANGE
    if call is None:
        return False
    if call(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNKNOWN_CALL:
        return False
    raise OSError(code, os.strerror(code), str(second))


def remove(staging: Path) -> None:
    """Delete a folder that is no longer needed; one that cannot be deleted is named, and is no reason to fail."""
    try:
        if staging.exists():
            shutil.rmtree(staging)
    except OSError as error:
        logger.warning(f"{staging} could not be removed ({error.strerror}: {error.filename}). Delete it yourself.")
