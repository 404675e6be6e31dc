"""Folders that are written whole or not at all (Linux and macOS).

Everything is written to a staging folder `.<name>.bot-<pid>-<random>` beside the target, synced to the disk, and then
moved by one rename, or exchanged with the folder that it replaces (renameat2, renamex_np). So at any moment, even if
the process is killed, there is the whole old folder or the whole new one. If the system cannot exchange folders, the
old one is moved aside first, and back if the new one cannot be moved in. A kill between these two renames leaves both
folders beside the target and none in its place; the next run says so.

Leftovers of a killed run are named in a warning, not deleted: one of them can be the folder that was moved aside. The
lock file `.<name>.bot-lock` keeps other processes out; the system releases the lock of a killed process.

Why by hand: libraries for atomic writes (atomicwrites, tempfile) replace one file, not a folder that others may be
reading, and none of them locks, checks the free space or decides what may be replaced.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from ..console import progress
from ..console.progress import logger
from ..errors import SaveError

# Files that save_pretrained of models, tokenizers and processors writes, and files that we add. A folder that holds
# anything else is more than a saved model, and is never replaced.
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
TOKENS = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*.txt", "vocab*.json", "merges.txt")
PIECES = ("tokenizer.model", "spiece.model", "sentencepiece*.model", "*.spm", "*.tiktoken", "bpe.codes")
OTHERS = ("*config.json", "model*.index*.json", "pytorch_model*.index*.json", "chat_template.*", "README.md", "LICENSE")
LISTS = ("modules.json", "config_sentence_transformers.json")  # of sentence-transformers
SAVED = (*WEIGHTS, *TOKENS, *PIECES, *OTHERS, *LISTS, "transfer_report.json", ".gitattributes", ".DS_Store")
TEMPLATES = "additional_chat_templates"
Foreign = Callable[[Path], str | None]
WRITING = 0.1  # rough seconds to sync the files to the disk
MODULE = "[0-9]*_[A-Z]*"  # a folder of one of its modules: 1_Pooling
IN_MODULE = ("*config.json", "model.safetensors", "pytorch_model.bin")
LOOKS = 5  # at a folder that other processes go on exchanging


@contextmanager
def whole_folder(
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    needs: int = 0,
    keep: Sequence[Path] = (),
    foreign: Foreign | None = None,
) -> Iterator[Path]:
    """Yield an empty folder to write into; it replaces `out` in one step if the block succeeds.

    >>> import tempfile
    >>> place = tempfile.TemporaryDirectory()
    >>> out = Path(place.name, "small")
    >>> with whole_folder(out) as folder:
    ...     (folder / "config.json").write_text("{}")
    ...     out.exists()
    2
    False
    >>> [file.name for file in out.iterdir()]
    ['config.json']
    >>> place.cleanup()

    When the block raises, the staging folder and the parents made for it are removed, and `out` is as it was. Files
    get the mode that the umask gives to new ones; a replaced folder's own mode is kept.

    Args:
        out: the folder to make. A link to a folder is followed, and stays.
        overwrite: replace an existing folder as a whole; only one that looks like a saved model, with a config.json
            and weights, and with nothing in it that is no part of one. An empty folder is always replaced.
        needs: bytes that must be free.
        keep: paths that must not lie in the replaced folder: the source's files.
        foreign: returns why a saved model must not be replaced, None if it may be; called again only if another
            process exchanges the folder meanwhile.

    Raises:
        SaveError: `out` cannot or must not be written, another process is writing to it, or the disk is full or
            fails in the block (ENOSPC, EDQUOT, EFBIG, EIO). Other errors of the block pass unchanged.
    """
    target = check_place(out, overwrite=overwrite, keep=keep, foreign=foreign)
    _check_space(target, needs)
    with _parents(target.parent), _lock(target):
        staging = target.with_name(f".{target.name}.bot-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with _as_save_error(f"write to {target}", FAILURES):
                _check_replaceable(target, overwrite, keep)  # again: it may have changed before we held the lock
                _warn_of_leftovers(target)
                staging.mkdir()
            yield staging
            with (
                progress.part("bringing the files to the disk", WRITING),
                _as_save_error(f"write to {target}", FAILURES),
            ):
                settle(staging, target)
                _check_replaceable(target, overwrite, keep)  # and again: the block may have run for hours
                move(staging, target)
        except Exception as error:
            if (code := _os_code(error)) not in FAILURES:
                raise
            done = f"{_size(_weigh(staging))} of {_size(needs)}" if needs else _size(_weigh(staging))
            raise SaveError(
                f"Cannot write {target}: {FAILURES[code]}; {done} were written or reserved in {target.parent}."
                " Whatever was there is unchanged. Free some space, or choose another folder."
            ) from None
        finally:
            remove(staging)  # the unfinished result if the block failed; the old folder if it was exchanged


@contextmanager
def _as_save_error(action: str, exempt: Container[int] = ()) -> Iterator[None]:
    """Turn an `OSError` into a `SaveError`, except for the exempt error codes."""
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        if error.errno in exempt:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise SaveError(f"Cannot {action}: {error.strerror or error}{where}. Choose another folder.") from None


def check_place(
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    keep: Sequence[Path] = (),
    foreign: Foreign | None = None,
) -> Path:
    """The folder that `out` names; raises what `whole_folder` raises for a folder that it cannot write."""
    with _as_save_error(f"write to {os.fspath(out)!r}"):
        target = _resolve(out)
        _check_replaceable(target, overwrite, keep, foreign)
    return target


def _resolve(out: str | os.PathLike[str]) -> Path:
    """Return the folder to make or replace, links followed; raise if no folder can be there."""
    text = os.fspath(out)
    if not text.strip() or "\0" in text:
        raise SaveError(f"{text!r} is no name of a folder. Give the folder to write to.")
    path = Path(text)
    if path.is_symlink() and not path.exists():
        raise SaveError(
            f"{path} is a link to {os.readlink(path)}, which does not exist. Remove the link, or make its target."
        )
    target = Path(os.path.realpath(path))
    if os.path.ismount(target):
        raise SaveError(f"{target} is a whole filesystem, which cannot be replaced. Choose a folder in it.")
    if target.exists() and Path.cwd().is_relative_to(target):
        raise SaveError(f"{target} is, or holds, the current folder, which cannot be replaced. Choose another folder.")
    return target


def _check_replaceable(
    target: Path, overwrite: bool, keep: Sequence[Path] = (), foreign: Foreign | None = None
) -> None:
    """Raise where something stands at `target` that must not be replaced.

    Another process may exchange the folder while it is looked at, so that files of both seem to be in one. What was
    seen then says nothing: look again.
    """
    for _ in range(LOOKS):
        before = _identity(target)
        try:
            return _refuse_irreplaceable(target, overwrite, keep, foreign)
        except (SaveError, FileNotFoundError):
            if _identity(target) == before:
                raise
    raise SaveError(f"Another process is writing to {target}. Wait for it, or choose another folder.")


def _identity(path: Path) -> tuple[int, int] | None:
    """Which folder stands there, None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _refuse_irreplaceable(target: Path, overwrite: bool, keep: Sequence[Path], foreign: Foreign | None) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise SaveError(f"{target} is a file. Choose another name for the folder, or remove the file.")
    names = sorted(os.listdir(target))
    if not names:
        return
    for path in keep:
        if _lies_in(path, target):
            raise SaveError(f"{target} holds the source: {path} would be deleted. Choose another folder.")
    if why := _why_no_model(target, names):
        raise SaveError(
            f"{target} does not look like a saved model: {why}. overwrite=True replaces saved models only."
            " Choose another folder, or remove this one yourself."
            if overwrite
            else f"{target} exists and is not empty: {why}. Choose another folder."
        )
    if why := foreign(target) if foreign else None:
        raise SaveError(
            f"{target} holds a model that was not written by a resize, or that was trained or changed since ({why})."
            " Choose another folder. To delete that model for good, pass overwrite='foreign'."
        )
    if not overwrite:
        raise SaveError(
            f"{target} exists and is not empty. Choose another folder, or replace it as a whole with overwrite=True."
        )


def _why_no_model(target: Path, names: Sequence[str]) -> str | None:
    """The reason why a folder is not exactly one saved model; None if it is."""
    if foreign := [name for name in names if not _is_saved(target / name)]:
        return f"it holds {_some(foreign)}"
    if "config.json" not in names:
        return "it has no config.json"
    if not any(_is_file(target / name, WEIGHTS) for name in names):
        return "it has no weights"
    return None


def _is_saved(path: Path) -> bool:
    """Return whether a file or folder is what saving a model leaves."""
    if path.name == TEMPLATES or _is_file(path, SAVED):
        return True
    is_module = fnmatchcase(path.name, MODULE) and path.is_dir() and not path.is_symlink()
    return is_module and all(_is_file(file, IN_MODULE) for file in path.iterdir())


def _is_file(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns) and not path.is_dir()


def _lies_in(path: Path, target: Path) -> bool:
    """Return whether `path`, or what it leads to if it is a link (the hub's cache is full of them), is in `target`."""
    places = (Path(os.path.abspath(path)), Path(os.path.realpath(path)))
    folders = {folder for place in places for folder in (place, *place.parents) if folder.exists()}
    return any(folder.samefile(target) for folder in folders)  # by inode: names can differ in case, and mean the same


def _check_space(target: Path, needs: int) -> None:
    """Raise where fewer than `needs` bytes are free."""
    place = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if needs > free:
        raise SaveError(
            f"the result needs {_size(needs)} in {place}, {_size(free)} are free. Free some space, or choose another"
            " folder."
        )


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make the missing folders of a path, and remove them again if the block raises."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with _as_save_error(f"make {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # not empty: another process has put something there
                path.rmdir()
        raise


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Hold the lock on `target`; raise at once where another process, or thread, holds it.

    Not filelock (which the hub client uses): whether that removes its file depends on its version. Here the holder
    removes it. A process that has opened the file before sees that it is no longer at the path, and opens it again.
    """
    path = target.with_name(f".{target.name}.bot-lock")
    with _as_save_error(f"lock {target}"):
        file = _take(path, target)
        while not _is_at(file, path):
            file.close()
            file = _take(path, target)
    try:
        yield
    finally:
        with suppress(OSError):  # a lock file that is left behind locks nobody out
            path.unlink()
        file.close()


def _take(path: Path, target: Path) -> BinaryIO:
    """Open the file at `path` and lock it."""
    import fcntl  # not on Windows, where the rest of the package works

    # With O_NONBLOCK, opening a named pipe does not wait: it fails (ENXIO), or gives the pipe, which is refused below.
    safe_flags = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = open(path, "ab", opener=lambda name, flags: os.open(name, flags | safe_flags, 0o666))  # noqa: SIM115
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP, errno.EISDIR):
            raise _no_lock_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _no_lock_file(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNKNOWN_CALL:
            logger.warning(f"The filesystem of {path.parent} has no locks: of two processes that write, the last wins.")
            return file
        file.close()
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise SaveError(f"Another process is writing to {target}. Wait for it, or choose another folder.") from None
    return file


def _no_lock_file(path: Path) -> SaveError:
    return SaveError(
        f"{path} is no ordinary file, so it cannot serve as the lock. Remove it, or choose another folder."
    )


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether `path` is still the file that was opened."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _warn_of_leftovers(target: Path) -> None:
    """Warn of folders that killed runs left: since we hold the lock, no other run is writing to them."""
    leftover = re.compile(rf"\.{re.escape(target.name)}\.bot-\d+-[0-9a-f]{{8}}(\.old)?")
    for path in sorted(path for path in target.parent.iterdir() if leftover.fullmatch(path.name)):
        if path.suffix == ".old" and not target.exists():
            advice = f"holds what stood at {target} before: rename it to {target.name} to have it back"
        else:
            advice = "is not used any more: look at it, then delete it"
        logger.warning(f"{path} ({_size(_weigh(path))}) was left by a run that was killed. It {advice}.")


def _os_code(error: BaseException | None) -> int:
    """Return the system's error number behind `error`, 0 if there is none.

    safetensors and tokenizers pass it on as text only: "File too large (os error 27)".
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if match := re.search(r"\(os error (\d+)\)", str(error)):
            return int(match[1])
        error = error.__cause__
    return 0


def _weigh(folder: Path) -> int:
    """Return the bytes that the files of `folder` take on the disk, those that are only reserved counted too."""
    total = 0
    for path in (Path(place, name) for place, _, names in os.walk(folder) for name in names):
        with suppress(FileNotFoundError):  # deleted in this moment, by hand or by a run without locks
            file = path.lstat()
            total += min(file.st_size, file.st_blocks * 512)
    return total


def _size(count: float) -> str:
    """Return a number of bytes for people.

    >>> _size(13_400_000_000), _size(512)
    ('13.4 GB', '512 bytes')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("KB", "MB", "GB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def _some(names: Sequence[str]) -> str:
    """Return up to three names, and how many more there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + rest


# -- the finished folder in its place: on the disk first, then in one step ---------------------------

FAILURES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file is larger than the limit (ulimit -f) or the filesystem allows",
    errno.EIO: "a disk failed",
}
# Error codes of a kernel, filesystem or container that does not support a call; some sandboxes answer EPERM.
UNKNOWN_CALL = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})


def settle(staging: Path, target: Path) -> None:
    """Give every file the mode of new files, give `staging` the mode of `target`, and sync all to the disk."""
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
        if error.errno not in UNKNOWN_CALL:  # some network filesystems cannot fsync a folder
            raise
    finally:
        os.close(handle)


def move(staging: Path, target: Path) -> None:
    """Put `staging` at `target`; the folder that was there is at `staging` afterwards."""
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
    except OSError as error:  # no failure of the save: the new folder is in place
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
    """Delete a folder that is no longer needed; if that fails, warn."""
    try:
        if staging.exists():
            shutil.rmtree(staging)
    except OSError as error:
        logger.warning(f"{staging} could not be removed ({error.strerror}: {error.filename}). Delete it yourself.")
