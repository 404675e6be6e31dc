"""A `resize_checkpoint` that is killed, limited or raced leaves a whole old folder or a whole new one.

TRANSFORMERS_BOT_KILLS sets how many kills there are (15 by default).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from families import build, resized_config, save

import transformers_bot
from transformers_bot import verify

KILLS = int(os.environ.get("TRANSFORMERS_BOT_KILLS", "15"))
# For every line read, a forked child that resizes for ever: two results in turn, each in place of the one before.
RESIZER = """
import os, sys, torch
torch.set_num_threads(1)
import transformers_bot
source, out, small, large = sys.argv[1:]
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print("ended", flush=True)
        continue
    print(os.getpid(), flush=True)
    for config in (small, large) * 1000:
        try:
            transformers_bot.resize_checkpoint(source, out, config, overwrite=True, max_shard_size="2KB")
            print("saved", flush=True)
        except transformers_bot.SaveError as error:
            print("refused" if "Another process is writing" in str(error) else repr(error), flush=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a source, and two target configs."""
    folder = tmp_path_factory.mktemp("faults")
    built = build("gpt2", "GPT2LMHeadModel")
    save(built.model, folder / "source")
    for name, sizes in (("small", {"hidden": 6}), ("large", {"hidden": 24, "heads": 6})):
        resized_config(built.config, **sizes).save_pretrained(folder / name)
        transformers_bot.resize_checkpoint(
            folder / "source", folder / f"wanted-{name}", folder / name, max_shard_size="2KB"
        )
    return folder


def start(place: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", RESIZER, *(str(place / name) for name in ("source", "out", "small", "large"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen) -> int:
    """Let a child resize; return its process id."""
    process.stdin.write("go\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def end(process: subprocess.Popen, child: int) -> list[str]:
    """Kill the child; return what it had said."""
    os.kill(child, signal.SIGKILL)
    return list(iter(process.stdout.readline, "ended\n"))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def clean(place: Path) -> None:
    for left in [*place.glob(".out.bot-*"), *place.glob("out")]:
        subprocess.run(["rm", "-rf", str(left)], check=True)


@pytest.mark.slow
def test_killed_at_random_moments(place):
    clean(place)
    whole = [contents(place / f"wanted-{name}") for name in ("small", "large")]
    clock, seen, process = random.Random(0), set(), start(place)
    for _ in range(KILLS):
        child = go(process)
        said = process.stdout.readline()
        while said != "saved\n":  # whatever comes later replaces a whole folder
            assert said != "ended\n", "the child has ended by itself"
            said = process.stdout.readline()
        time.sleep(clock.uniform(0, 0.5))
        end(process, child)
        found = contents(place / "out")
        assert found in whole
        seen.add(whole.index(found))
    process.kill()
    process.wait()
    assert seen == {0, 1}
    clean(place)


@pytest.mark.slow
def test_two_processes_on_one_target(place):
    clean(place)
    rivals = [start(place) for _ in range(2)]
    children = [go(rival) for rival in rivals]
    said = [rival.stdout.readline() for rival in rivals]  # both are at it
    time.sleep(10)
    said += [line for rival, child in zip(rivals, children, strict=True) for line in end(rival, child)]
    for rival in rivals:
        rival.kill()
        rival.wait()
    assert set(said) <= {"saved\n", "refused\n"}
    assert "saved\n" in said
    assert contents(place / "out") in [contents(place / f"wanted-{name}") for name in ("small", "large")]
    assert verify(place / "out", source=place / "source").equal
    clean(place)


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_folder(place):
    clean(place)
    transformers_bot.resize_checkpoint(place / "source", place / "out", place / "small")
    before = contents(place / "out")
    code = """
import resource, sys
import transformers_bot
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    transformers_bot.resize_checkpoint(sys.argv[1], sys.argv[2], sys.argv[3], overwrite=True)
except transformers_bot.SaveError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, *(str(place / name) for name in ("source", "out", "large"))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert str(place / "out") in said
    assert contents(place / "out") == before
    assert not [left for left in place.glob(".out.bot-*") if left.is_dir()]
    assert json.loads(before["config.json"])["n_embd"] == 6
    clean(place)
