"""What other processes do to files while they are read: it is said, and nothing is left of the work."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import transformers_bot.hub.push as hub
import transformers_bot.run.execute as resizing
import transformers_bot.run.opening as opening
import transformers_bot.run.unchanged as unchanged
from transformers_bot import BadCheckpoint, BoTModelForCausalLM, SaveError, resize_checkpoint
from transformers_bot.io.checkpoint import check_files

SIZES = {"n_layer": 1, "n_embd": 6, "n_head": 3}


def replaced(file: Path) -> None:
    """As a download or a trainer does it: a new file takes the name."""
    new = file.with_name("new")
    save_file({name: 2 * x for name, x in load_file(file).items()}, new, {"format": "pt"})
    os.replace(new, file)


def rewritten(file: Path) -> None:
    data = file.read_bytes()
    with open(file, "r+b") as stream:
        stream.seek(len(data) - 4)
        stream.write(b"\0\0\1\0")
    os.utime(file, ns=(1, 1))


def linked(file: Path) -> None:
    """Another model behind a link takes the name."""
    other = file.with_name("other.safetensors")
    save_file({name: 2 * x for name, x in load_file(file).items()}, other, {"format": "pt"})
    file.unlink()
    file.symlink_to(other.name)


def cut(file: Path) -> None:
    os.truncate(file, 600)


CHANGES = {"replaced": replaced, "rewritten": rewritten, "linked": linked, "cut": cut, "removed": os.unlink}


@pytest.fixture
def source(saved, tmp_path):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    return Path(shutil.copytree(folder, tmp_path / "source"))


def once(monkeypatch, holder, name, change, after=False):
    """Let `change()` happen at the first call of a function, before it or after it."""
    real, done = getattr(holder, name), []

    def wrapped(*args, **keywords):
        if not done and not after:
            done.append(change())
        result = real(*args, **keywords)
        if not done:
            done.append(change())
        return result

    monkeypatch.setattr(holder, name, wrapped)
    return done


MOMENTS = {
    "between check and open": (opening, "as_checked", True),
    "before the first tensor": (resizing, "_order", True),
}


@pytest.mark.covering("moment", "change")
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_while_it_is_read_is_named(source, tmp_path, monkeypatch, moment, change):
    file = source / "model.safetensors"
    holder, name, after = MOMENTS[moment]
    done = once(monkeypatch, holder, name, lambda: CHANGES[change](file), after)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors was changed or replaced while it was read"):
        resize_checkpoint(source, tmp_path / "out", **SIZES)
    assert done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("change", CHANGES)
def test_also_for_a_model_in_memory(source, monkeypatch, change):
    once(monkeypatch, resizing, "_order", lambda: CHANGES[change](source / "model.safetensors"), after=True)
    with pytest.raises(BadCheckpoint, match="was changed or replaced"):
        BoTModelForCausalLM.from_pretrained(source, **SIZES)


@pytest.mark.parametrize("change", ["cut", "removed", "replaced"])
def test_also_at_its_own_size(source, monkeypatch, change):
    once(monkeypatch, unchanged, "check_files", lambda: CHANGES[change](source / "model.safetensors"), after=True)
    with pytest.raises(BadCheckpoint, match="was changed or replaced"):
        BoTModelForCausalLM.from_pretrained(source)


def test_a_change_at_the_very_end_is_seen(source, tmp_path, monkeypatch):
    import transformers_bot.tools.resize_checkpoint as streaming

    once(monkeypatch, streaming, "make_report", lambda: replaced(source / "model.safetensors"))
    with pytest.raises(BadCheckpoint, match="was changed or replaced"):
        resize_checkpoint(source, tmp_path / "out", **SIZES)
    assert not (tmp_path / "out").exists()


def test_the_hash_is_of_the_file_that_was_checked(source):
    checkpoint = check_files(str(source), {})
    file = source / "model.safetensors"
    assert checkpoint.hashes(True) == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    replaced(file)
    with pytest.raises(BadCheckpoint, match="was changed or replaced"):
        checkpoint.hashes(True)


@pytest.mark.slow
def test_without_a_further_thread_files_are_hashed_in_line(source, tmp_path, monkeypatch):
    first = resize_checkpoint(source, tmp_path / "first", **SIZES)

    start = threading.Thread.start

    def refuse(thread):
        if thread.name.startswith("sha256"):  # transformers needs a thread, too
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        second = resize_checkpoint(source, tmp_path / "second", **SIZES)
    assert first.provenance["files"] == second.provenance["files"]
    assert second.provenance["files"]


@pytest.mark.parametrize("what", ["pipe", "folder", "link"])
def test_a_lock_that_is_no_file_is_named_at_once(source, tmp_path, what):
    lock = tmp_path / ".out.bot-lock"
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda path: os.symlink("nowhere", path)}[what](lock)
    with pytest.raises(SaveError, match=r"\.out\.bot-lock is no ordinary file"):
        resize_checkpoint(source, tmp_path / "out", **SIZES)


def test_what_a_killed_push_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive, foreign = (
        tmp_path / name for name in (f"{hub.SCRATCH}{ended.pid}-ab_1", f"{hub.SCRATCH}1-abc", "mine")
    )
    for folder in (dead, alive, foreign):
        (folder / "deep").mkdir(parents=True)
    with hub._scratch() as folder:
        assert Path(folder).name.startswith(f"{hub.SCRATCH}{os.getpid()}-")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, "mine", Path(folder).name])
    with contextlib.suppress(FileNotFoundError):
        assert not list(Path(folder).iterdir())


def test_reading_says_nothing_of_errors_that_no_change_explains(source):
    with pytest.raises(RuntimeError, match="mine"), check_files(str(source), {}).reading():
        raise RuntimeError("mine")
    assert torch.is_tensor(load_file(source / "model.safetensors")["transformer.wte.weight"])


@pytest.mark.parametrize("change", [*CHANGES.values(), lambda file: file.unlink() or os.mkfifo(file)])
def test_no_library_is_given_what_changed_before(source, change):
    """A pipe that took a file's name would keep it waiting for ever."""
    checkpoint, given = check_files(str(source), {}), []
    change(source / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="was changed or replaced"), checkpoint.reading():
        given.append(source)
    assert not given
