"""What processes tell each other, in one process: the others are played by what they leave in the store."""

import contextlib
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from transformers import PreTrainedModel
from transformers.integrations import deepspeed

from transformers_bot.compat import building, undivided
from transformers_bot.errors import BadCheckpoint, RankError
from transformers_bot.run import distributed, rendezvous


@pytest.fixture(autouse=True)
def _group(tmp_path, monkeypatch):
    monkeypatch.setattr(rendezvous, "_calls", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def write(folder):
    folder.mkdir()
    (folder / "weights").write_text("made")
    return 17


def read(folder, made):
    return (folder / "weights").read_text(), made


def left(tmp_path):
    return list(tmp_path.glob("transformers-bot-*"))


def test_made_then_loaded_then_removed(tmp_path):
    assert rendezvous.once_per_node(["a"], write, read) == ("made", 17)
    assert not left(tmp_path)


def test_every_call_is_made_anew():
    made = []
    for _ in range(2):
        rendezvous.once_per_node(["a"], lambda folder: made.append(folder), lambda *_: None)
    assert len(set(made)) == 2


def test_what_make_raises_is_raised_and_told(tmp_path):
    def fails(folder):
        write(folder)
        raise BadCheckpoint("no weights")

    with pytest.raises(BadCheckpoint, match="no weights"):
        rendezvous.once_per_node(["a"], fails, read)
    assert not left(tmp_path)
    rendezvous._calls.clear()  # the next call is another process's share of the same one
    with pytest.raises(BadCheckpoint, match="no weights") as told:
        rendezvous.once_per_node(["a"], write, read)
    assert told.value.__notes__ == ["(raised by rank 0, which resized for this node)"]


def test_an_interrupt_is_told_as_such():
    def stopped(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rendezvous.once_per_node(["a"], stopped, read)
    rendezvous._calls.clear()
    with pytest.raises(RankError, match="rank 0, which resized for this node, ended with KeyboardInterrupt"):
        rendezvous.once_per_node(["a"], write, read)


def test_an_error_that_cannot_be_pickled_keeps_its_words():
    class Local(Exception):
        pass

    def fails(_):
        raise Local("odd")

    with pytest.raises(Local):
        rendezvous.once_per_node(["a"], fails, read)
    rendezvous._calls.clear()
    with pytest.raises(RankError, match="Local: odd"):
        rendezvous.once_per_node(["a"], write, read)


def test_a_process_that_died_is_not_waited_for():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: gone.pid)
        assert rendezvous.join(["a"], "", False).arrive() == 1
    rendezvous._calls.clear()
    with pytest.raises(RankError, match=f"process {gone.pid}, which resized for all processes of this node, has ended"):
        rendezvous.once_per_node(["a"], write, read)


def test_who_asks_after_the_maker_has_ended_makes_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert rendezvous.once_per_node(["a"], write, read) == ("made", 17)
    (kept,) = left(tmp_path)
    shutil.rmtree(kept)  # as the maker does when it ends
    rendezvous._calls.clear()
    assert rendezvous.once_per_node(["a"], write, read) == ("made", 17)
    assert not left(tmp_path)


@pytest.mark.slow
def test_a_script_that_ends_right_after_its_call_leaves_the_files_to_those_that_read(tmp_path):
    code = """
import os, sys, time
from pathlib import Path
import torch.distributed as dist
from transformers_bot.run import rendezvous

def write(folder):
    folder.mkdir()
    (folder / "weights").write_text("made")
    return os.getpid()

def read(folder, maker):
    if maker != os.getpid():
        time.sleep(3)  # by then the other one is at its end
    return (folder / "weights").read_text()

dist.init_process_group("gloo")
print(rendezvous.once_per_node(["a"], write, read), flush=True)
"""
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    del environment["LOCAL_WORLD_SIZE"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["made", "made"]
    assert not left(tmp_path)


def test_a_reader_that_died_keeps_nobody_waiting():
    call = rendezvous.join(["a"], "", False)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert call.arrive() == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: gone.pid)
        assert call.arrive() == 2
    call.is_last_to_load(1)
    start = time.monotonic()
    call.wait_for_readers()
    assert time.monotonic() - start < 5


def test_ranks_that_do_not_come_are_missed_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    start = time.monotonic()
    with pytest.raises(RankError, match="1 of 2 ranks came"):
        rendezvous.once_per_node(["a"], write, read, together=True)
    assert time.monotonic() - start < 5
    assert not left(tmp_path)


def test_another_nodes_error_stops_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    rendezvous.join(["a"], "", True).fail(BadCheckpoint("not on this node"))
    rendezvous._calls.clear()
    with pytest.raises(BadCheckpoint, match="not on this node"):
        rendezvous.once_per_node(["a"], write, read, together=True)
    assert not left(tmp_path)


def test_nodes_draw_the_same_and_keep_their_own_generators():
    torch.manual_seed(1)
    rendezvous.join(["a"], "", False)  # another node was first, with this seed
    drawn = torch.rand(2)
    rendezvous._calls.clear()
    torch.manual_seed(2)
    found = rendezvous.once_per_node(["a"], lambda _: torch.rand(2), lambda _, made: made)
    assert torch.equal(found, drawn)
    own = torch.rand(2)
    torch.manual_seed(2)
    assert torch.equal(own, torch.rand(2))


def test_a_changed_source_is_another_call(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_text("old")
    before = rendezvous.join(["a"], str(source), False).key
    rendezvous._calls.clear()
    assert rendezvous.join(["a"], str(source), False).key == before
    rendezvous._calls.clear()
    (source / "weights").write_text("newer")
    assert rendezvous.join(["a"], str(source), False).key != before


def test_a_folder_that_some_never_ask_for_is_kept_until_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    rendezvous.once_per_node(["a"], write, read)
    assert len(left(tmp_path)) == 1
    rendezvous._calls.clear()
    assert rendezvous.once_per_node(["a"], lambda _: pytest.fail("made twice"), read) == ("made", 17)
    assert not left(tmp_path)


class ZeRO3:
    """What transformers asks an HfDeepSpeedConfig."""

    def is_zero3(self):
        return True


def setup():
    """What transformers finds set up for split models."""
    return deepspeed.is_deepspeed_zero3_enabled(), os.environ["ACCELERATE_USE_FSDP"]


def test_undivided_gives_back_what_was_set_whatever_happens(monkeypatch):
    config = ZeRO3()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    deepspeed.set_hf_deepspeed_config(config)
    try:
        with contextlib.suppress(BadCheckpoint), undivided():
            around = setup()  # a training of another thread goes on
            with building():
                inside = setup()
                raise BadCheckpoint
        assert (around, inside) == ((True, "true"), (False, "false"))
        with building():
            assert setup() == (True, "true")
        assert setup() == (True, "true")
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_undivided_keeps_what_others_set_meanwhile(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    first, second = ZeRO3(), ZeRO3()
    deepspeed.set_hf_deepspeed_config(first)
    try:
        with undivided(), building():
            deepspeed.set_hf_deepspeed_config(second)
            os.environ["ACCELERATE_USE_FSDP"] = "yes"
        assert deepspeed._hf_deepspeed_config_weak_ref() is second
        assert os.environ["ACCELERATE_USE_FSDP"] == "yes"
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_undivided_leaves_unset_what_was_not_set(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    with undivided(), building():
        pass
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert not deepspeed.is_deepspeed_zero3_enabled()


def test_one_process_shares_with_nobody():
    assert not distributed.is_shared(PreTrainedModel, {})


@pytest.mark.parametrize(
    ("keywords", "shared"),
    [
        ({}, True),
        ({"device_map": {"": 0}}, True),
        ({"device_map": "auto"}, False),
        ({"offload_folder": "there"}, False),
        ({"max_memory": {0: 1}}, False),
        ({"device_map": "auto", "tp_plan": "auto"}, True),
    ],
)
def test_a_model_that_may_lie_on_disk_is_not_shared(monkeypatch, keywords, shared):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert distributed.is_shared(PreTrainedModel, keywords) is shared
