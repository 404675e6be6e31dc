"""A folder is written whole or not at all, in a place where that is safe; see test_save_processes.py for kills."""

import errno
import os
import re
import shutil
import stat
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from saving import left_over, read_save, write_save

from transformers_bot import SaveError
from transformers_bot.io import atomic_folder
from transformers_bot.io.atomic_folder import whole_folder


def save_number(out: Path, number: int, then=lambda: None, **options) -> None:
    with whole_folder(out, **options) as folder:
        write_save(folder, number)
        then()


def fail_with(error: BaseException):
    """Return a function that raises `error`, whatever it is called with."""

    def fail(*_, **__):
        raise error

    return fail


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def old(tmp_path):
    """A saved model, number 1, alone in its parent."""
    save_number(tmp_path / "out", 1)
    return tmp_path / "out"


class TestWhatStandsThere:
    def test_nothing_before_the_end(self, tmp_path):
        with whole_folder(tmp_path / "a" / "b" / "out") as folder:
            assert folder.parent == tmp_path / "a" / "b"
            assert folder.name.startswith(f".out.bot-{os.getpid()}-")
            assert not (tmp_path / "a" / "b" / "out").exists()
            write_save(folder, 1)
        assert read_save(tmp_path / "a" / "b" / "out") == 1
        assert left_over(tmp_path / "a" / "b" / "out") == []

    def test_an_empty_folder_is_filled_and_keeps_its_mode(self, tmp_path):
        (tmp_path / "out").mkdir(mode=0o700)
        save_number(tmp_path / "out", 1)
        assert read_save(tmp_path / "out") == 1
        assert mode(tmp_path / "out") == 0o700

    def test_a_folder_with_files_is_refused(self, old):
        with pytest.raises(SaveError, match=r"out exists and is not empty\..* overwrite=True\."):
            save_number(old, 2)
        assert read_save(old) == 1

    def test_overwrite_replaces_the_whole_folder(self, old):
        (old / "model-9.safetensors").write_bytes(b"an old shard")
        old.chmod(0o750)
        save_number(old, 2, overwrite=True)
        assert read_save(old) == 2
        assert mode(old) == 0o750
        assert left_over(old) == []

    def test_the_old_one_is_whole_until_the_end(self, old):
        with whole_folder(old, overwrite=True) as folder:
            write_save(folder, 2)
            assert read_save(old) == 1

    def test_a_link_is_followed_and_stays(self, old, tmp_path):
        link = tmp_path / "link"
        link.symlink_to("out")
        save_number(link, 2, overwrite=True)
        assert link.is_symlink()
        assert read_save(old) == read_save(link) == 2

    def test_a_name_relative_to_the_current_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save_number("out", 1)
        assert read_save(tmp_path / "out") == 1

    def test_files_have_the_mode_of_new_files(self, tmp_path):
        before = os.umask(0o027)
        try:
            with whole_folder(tmp_path / "out") as folder:
                save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
                (folder / "config.json").write_text("{}")
                (folder / "config.json").chmod(0o600)
                (folder / "additional_chat_templates").mkdir()
                (folder / "additional_chat_templates" / "a.jinja").touch(0o600)
        finally:
            os.umask(before)
        assert mode(tmp_path / "out") == 0o750
        assert {mode(path) for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0o640}


class TestPlacesRefused:
    @pytest.mark.parametrize(
        ("out", "message"),
        [
            ("", r"'' is no name of a folder"),
            (" ", r"' ' is no name of a folder"),
            ("a\0b", r"'a\\x00b' is no name of a folder"),
            ("/", r"/ is a whole filesystem"),
            ("file", r"file is a file\. Choose another name"),
            ("to-file", r"file is a file\. Choose another name"),
            ("dangling", r"dangling is a link to nowhere, which does not exist"),
            ("loop", r"loop is a link to loop, which does not exist"),
            ("loop/out", r"Cannot .*: (Too many levels of symbolic links|File exists)"),
            ("file/out", r"Cannot .*: (Not a directory|File exists)"),
            ("n" * 300, r"Cannot .*: File name too long"),
            (".", r" is, or holds, the current folder"),
            ("..", r" is, or holds, the current folder"),
        ],
    )
    def test_no_place_for_a_folder(self, tmp_path, monkeypatch, out, message):
        work = tmp_path / "work"
        work.mkdir()
        monkeypatch.chdir(work)
        Path("file").write_text("mine")
        Path("to-file").symlink_to("file")
        Path("dangling").symlink_to("nowhere")
        Path("loop").symlink_to("loop")
        with pytest.raises(SaveError, match=message):
            save_number(out, 1, overwrite=True)
        assert sorted(os.listdir()) == ["dangling", "file", "loop", "to-file"]
        assert Path("file").read_text() == "mine"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (".git/HEAD", r"it holds '\.git'\. overwrite=True replaces saved models only\."),
            ("onnx/model.json", r"it holds 'onnx'\."),
            ("model.json/x", r"it holds 'model\.json'\."),
            ("train.py", r"it holds 'train\.py'\."),
            (".bashrc", r"it holds '\.bashrc'\."),
            *((name, f"it holds '{name}'") for name in ("notes.txt", "results.json", "plot.png", "training_args.bin")),
        ],
    )
    def test_overwrite_deletes_saved_models_only(self, old, name, message):
        (old / name).parent.mkdir(exist_ok=True)
        (old / name).write_text("mine")
        with pytest.raises(SaveError, match=rf"out does not look like a saved model: {message}"):
            save_number(old, 2, overwrite=True)
        assert (old / name).read_text() == "mine"

    @pytest.mark.parametrize(
        ("names", "why"), [(["pytorch_model.bin"], "no config.json"), (["config.json"], "no weights")]
    )
    def test_a_saved_model_has_a_config_and_weights(self, tmp_path, names, why):
        for name in names:
            (tmp_path / name).touch()
        with pytest.raises(SaveError, match=f"it has {why}"):
            save_number(tmp_path, 2, overwrite=True)
        assert os.listdir(tmp_path) == names

    def test_what_appears_while_it_writes_is_not_deleted(self, old, tmp_path):
        def appear(folder):
            folder.mkdir(exist_ok=True)
            (folder / "notes.doc").write_text("mine")

        with pytest.raises(SaveError, match=r"it holds 'notes\.doc'"):
            save_number(old, 2, lambda: appear(old), overwrite=True)
        with pytest.raises(SaveError, match="exists and is not empty"):
            save_number(tmp_path / "new", 2, lambda: appear(tmp_path / "new"))
        assert (old / "notes.doc").read_text() == (tmp_path / "new" / "notes.doc").read_text() == "mine"
        assert left_over(old) == [tmp_path / "new"]

    def test_many_foreign_files_are_cut(self, old):
        for i in range(9):
            (old / f"{i}.doc").touch()
        with pytest.raises(SaveError, match=r"it holds '0\.doc', '1\.doc', '2\.doc' and 6 more\."):
            save_number(old, 2, overwrite=True)

    def test_the_source_is_kept(self, old, tmp_path):
        source = tmp_path / "source"
        source.symlink_to(old)
        stored = tmp_path / "blob.safetensors"
        shutil.move(old / "model-0.safetensors", stored)
        (old / "model-0.safetensors").symlink_to(stored)
        for path in (old, source, source / "config.json", old / "model-0.safetensors"):
            with pytest.raises(SaveError, match=rf"out holds the source: {path} would be deleted\. Choose another"):
                save_number(old, 2, overwrite=True, keep=[path])
        save_number(old, 2, overwrite=True, keep=[stored, tmp_path, tmp_path / "elsewhere"])
        assert read_save(old) == 2

    def test_a_place_without_permission(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Path, "mkdir", fail_with(PermissionError(errno.EACCES, "Permission denied", "/there")))
        with pytest.raises(SaveError, match=r"Cannot make .*: Permission denied \(/there\)\. Choose another folder\."):
            save_number(tmp_path / "a" / "out", 1)


class TestSpace:
    def test_too_little(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 2_100_000_000))
        message = rf"needs 13\.4 GB in {tmp_path}, 2\.1 GB are free\."
        with pytest.raises(SaveError, match=message):
            save_number(tmp_path / "a" / "out", 1, needs=13_400_000_000)
        assert list(tmp_path.iterdir()) == []
        save_number(tmp_path / "out", 1, needs=2_100_000_000)

    def test_the_disk_is_really_asked(self, tmp_path):
        with pytest.raises(SaveError, match=r"needs 1000000\.0 TB in .* free"):
            save_number(tmp_path / "out", 1, needs=10**18)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
    def test_a_disk_that_fails(self, old, code):
        with pytest.raises(SaveError, match=re.escape(atomic_folder.FAILURES[code])):
            save_number(old, 2, fail_with(OSError(code, os.strerror(code))), overwrite=True)
        assert read_save(old) == 1
        assert left_over(old) == []

    def test_a_disk_that_fails_at_the_end(self, old, monkeypatch):
        monkeypatch.setattr(os, "fsync", fail_with(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(SaveError, match=r"the disk is full; 80\.\d KB were written or reserved"):
            save_number(old, 2, overwrite=True)
        assert read_save(old) == 1


class TestErrorsOfTheBlock:
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), ValueError("x"), FileNotFoundError(2, "x")])
    def test_pass_unchanged_and_leave_nothing(self, old, tmp_path, error):
        for out in (old, tmp_path / "new" / "deep" / "out"):
            with pytest.raises(type(error)) as caught:
                save_number(out, 2, fail_with(error), overwrite=True)
            assert caught.value is error
        assert read_save(old) == 1
        assert left_over(old) == []

    def test_a_parent_that_somebody_uses_stays(self, tmp_path):
        def fail():
            (tmp_path / "a" / "mine").touch()
            raise ValueError("x")

        with pytest.raises(ValueError, match="x"):
            save_number(tmp_path / "a" / "b" / "out", 1, fail)
        assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "mine"]


class TestLock:
    def test_one_target_at_a_time(self, tmp_path):
        refused = []

        def second():
            with pytest.raises(SaveError, match="Another process is writing") as caught, whole_folder(tmp_path / "out"):
                pass
            refused.append(caught)

        with whole_folder(tmp_path / "out") as folder:
            write_save(folder, 1)
            second()
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        assert len(refused) == 2
        assert read_save(tmp_path / "out") == 1

    def test_a_lock_file_that_its_holder_removed_is_opened_anew(self, tmp_path, monkeypatch):
        answers = [False, True]
        taken = []
        take = atomic_folder._take
        monkeypatch.setattr(atomic_folder, "_take", lambda *places: taken.append(take(*places)) or taken[-1])
        monkeypatch.setattr(atomic_folder, "_is_at", lambda *_: answers.pop(0))
        save_number(tmp_path / "out", 1)
        assert [file.closed for file in taken] == [True, True]

    def test_is_at(self, tmp_path):
        path = tmp_path / "lock"
        with open(path, "ab") as file:
            assert atomic_folder._is_at(file, path)
            path.unlink()
            assert not atomic_folder._is_at(file, path)
            path.touch()
            assert not atomic_folder._is_at(file, path)

    def test_a_filesystem_without_locks_is_named(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr("fcntl.flock", fail_with(OSError(errno.ENOSYS, "Function not implemented")))
        save_number(tmp_path / "out", 1)
        assert read_save(tmp_path / "out") == 1
        assert f"The filesystem of {tmp_path} has no locks" in caplog.text


def test_without_an_exchange_the_old_folder_comes_back_where_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.rename
    save_number(out, 1)
    monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)
    save_number(out, 2, overwrite=True)
    assert read_save(out) == 2
    assert left_over(out) == []

    def rename_old_ones_only(path: Path, target: Path) -> Path:
        if target == out and path.suffix != ".old":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_old_ones_only)
    with pytest.raises(SaveError, match="Cannot write"):
        save_number(out, 3, overwrite=True)
    assert read_save(out) == 2
    assert left_over(out) == []
