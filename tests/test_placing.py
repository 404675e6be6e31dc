"""The last step of a save: on the disk, then in its place by one call, or by two where there is no such call."""

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
from saving import left_over, read_save, write_save

from transformers_bot import SaveError
from transformers_bot.io import atomic_folder
from transformers_bot.io.atomic_folder import whole_folder


def save_number(out: Path, number: int) -> None:
    with whole_folder(out, overwrite=True) as folder:
        write_save(folder, number)


@pytest.fixture
def old(tmp_path):
    """A saved model, number 1, alone in its parent."""
    save_number(tmp_path / "out", 1)
    return tmp_path / "out"


class Library:
    """A C library whose calls fail with `code`, or do nothing if it is 0; `calls` is what was asked of it."""

    def __init__(self, name: str, code: int):
        self.calls = []

        def call(*arguments):
            self.calls.append(arguments)
            ctypes.set_errno(code)
            return -1 if code else 0

        setattr(self, name, call)


@pytest.fixture
def library(monkeypatch):
    def put(name: str, code: int) -> Library:
        fake = Library(name, code)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: fake)
        return fake

    return put


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="other systems have no call that exchanges folders")
def test_exchange(tmp_path):
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        write_save(tmp_path / name, number)
    assert atomic_folder._exchange(tmp_path / "a", tmp_path / "b")
    assert [read_save(tmp_path / name) for name in "ab"] == [1, 0]
    with pytest.raises(FileNotFoundError, match="nothing"):
        atomic_folder._exchange(tmp_path / "a", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("platform", "name", "arguments"),
    [("linux", "renameat2", (-100, b"/a", -100, b"/b", 2)), ("darwin", "renamex_np", (b"/a", b"/b", 2))],
)
def test_the_call_of_each_system(library, monkeypatch, platform, name, arguments):
    monkeypatch.setattr(sys, "platform", platform)
    fake = library(name, 0)
    assert atomic_folder._exchange(Path("/a"), Path("/b"))
    assert fake.calls == [arguments]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_a_system_that_cannot_exchange_moves_aside(old, library, code):
    fake = library("renamex_np" if sys.platform == "darwin" else "renameat2", code)
    save_number(old, 2)
    assert len(fake.calls) == 1
    assert read_save(old) == 2
    assert left_over(old) == []


def test_a_library_without_the_call_moves_aside(old, library):
    library("another_call", 0)
    save_number(old, 2)
    assert read_save(old) == 2
    assert left_over(old) == []


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [0, 1])
def test_the_old_folder_comes_back_where_the_new_one_cannot_move_in(old, library, monkeypatch, error, failing):
    library("another_call", 0)
    rename, moves = Path.rename, []

    def fail(path, to):
        moves.append(path)
        if len(moves) == failing + 1:
            raise error
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(SaveError if isinstance(error, OSError) else KeyboardInterrupt):
        save_number(old, 2)
    assert read_save(old) == 1
    assert left_over(old) == []


def test_ctrl_c_after_the_move_leaves_the_new_folder(old, library, monkeypatch):
    library("another_call", 0)
    rename = Path.rename

    def interrupted(path, to):
        rename(path, to)
        if to == old:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_number(old, 2)
    assert read_save(old) == 2
    assert left_over(old) == []


def test_a_failing_exchange_leaves_the_old_folder(old, library):
    library("renamex_np" if sys.platform == "darwin" else "renameat2", errno.EBUSY)
    with pytest.raises(SaveError, match=rf"Cannot write to {old}: Device or resource busy"):
        save_number(old, 2)
    assert read_save(old) == 1
    assert left_over(old) == []


def test_everything_is_on_the_disk_before_the_move(old, monkeypatch):
    synced, fsync, exchange = set(), os.fsync, atomic_folder._exchange

    def note(handle):
        synced.add((os.fstat(handle).st_dev, os.fstat(handle).st_ino))
        fsync(handle)

    def check(staging, target):
        stats = [path.stat() for path in (staging, *staging.rglob("*"))]
        assert {(at.st_dev, at.st_ino) for at in stats} <= synced
        assert (old.parent.stat().st_dev, old.parent.stat().st_ino) not in synced
        return exchange(staging, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(atomic_folder, "_exchange", check)
    save_number(old, 2)
    assert (old.parent.stat().st_dev, old.parent.stat().st_ino) in synced  # the move itself, too


def test_a_parent_that_cannot_be_synced_is_named(old, monkeypatch, caplog):
    sync = atomic_folder._sync

    def fail(path):
        if path == old.parent:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    monkeypatch.setattr(atomic_folder, "_sync", fail)
    save_number(old, 2)
    assert read_save(old) == 2
    assert f"{old} is in place, but a power cut could undo that: Input/output error" in caplog.text


def test_a_filesystem_that_cannot_sync_folders(old, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    save_number(old, 2)
    assert read_save(old) == 2


def test_an_old_folder_that_cannot_be_removed_is_named(old, monkeypatch, caplog):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    save_number(old, 2)
    assert read_save(old) == 2
    (rest,) = left_over(old)
    assert read_save(rest) == 1
    assert f"{rest} could not be removed (Permission denied: {rest}). Delete it yourself." in caplog.text


def test_a_folder_moved_aside_by_a_killed_run_is_named(tmp_path, caplog):
    aside = tmp_path / ".out.bot-1-0123abcd.old"
    aside.mkdir()
    for name in (".out.bot-x", ".outer.bot-1-0123abcd", "out.bot-1-0123abcd"):
        (tmp_path / name).mkdir()  # somebody else's
    write_save(aside, 1)
    save_number(tmp_path / "out", 2)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{aside} (60.0 KB) was left by a run that was killed. It holds what stood at")
    assert warning.endswith("before: rename it to out to have it back.")
    assert read_save(aside) == 1


def test_a_folder_that_another_process_exchanges_meanwhile_is_looked_at_again(old, tmp_path):
    save_number(tmp_path / "other", 2)
    looked = []

    def foreign(target: Path) -> str | None:
        looked.append(target)
        if len(looked) == 1:  # files of the old folder and of the new one, as one look would see them
            os.rename(old, tmp_path / "aside")
            os.rename(tmp_path / "other", old)
            return "model.safetensors is gone since"
        return None

    with whole_folder(old, overwrite=True, foreign=foreign) as folder:
        write_save(folder, 3)
    assert len(looked) == 2
    assert read_save(old) == 3


def test_a_folder_that_others_go_on_exchanging_is_left_to_them(old, tmp_path):
    def foreign(_: Path) -> str | None:
        os.rename(old, tmp_path / "aside")
        shutil.copytree(tmp_path / "aside", old)
        shutil.rmtree(tmp_path / "aside")
        return "model.safetensors is gone since"

    with (
        pytest.raises(SaveError, match="Another process is writing"),
        whole_folder(old, overwrite=True, foreign=foreign),
    ):
        pytest.fail("nothing may be written")
    assert read_save(old) == 1
    with (
        pytest.raises(SaveError, match="trained or changed since"),
        whole_folder(old, overwrite=True, foreign=lambda _: "it was trained"),
    ):
        pytest.fail("nothing may be written")
