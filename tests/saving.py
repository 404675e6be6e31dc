"""Folders whose every file says which save wrote it, and a process that has imported save.py and forks on demand.

As a script it reads one task a line from stdin (`["kills", "/place", 60, 0, true]`), runs it in a forked child, which
costs no second import, and answers with one line of JSON: the task's result, or the text of its traceback.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

BYTES = 20_000


def write_save(folder: Path, number: int) -> None:
    """Write a folder of 2 to 5 weight files: another count each time, so that an old file that stays shows."""
    count = 2 + number % 4
    (folder / "config.json").write_text(json.dumps({"number": number, "count": count}))
    for i in range(count):
        (folder / f"model-{i}.safetensors").write_bytes(number.to_bytes(4, "little") * (BYTES // 4))


def read_save(folder: Path) -> int:
    """Return the number of the one save that all of `folder` is from; fail where it is not whole."""
    config = json.loads((folder / "config.json").read_text())
    names = {"config.json", *(f"model-{i}.safetensors" for i in range(config["count"]))}
    assert {path.name for path in folder.iterdir()} == names
    for name in names - {"config.json"}:
        assert (folder / name).read_bytes() == config["number"].to_bytes(4, "little") * (BYTES // 4), name
    return config["number"]


def left_over(out: Path) -> list[Path]:
    """Return what stands beside `out` that is not `out`."""
    return sorted(path for path in out.parent.iterdir() if path != out)


@contextmanager
def driver():
    """Yield `ask(task, *arguments)`, answered by one process for all tasks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, __file__], **pipes) as process:

        def ask(task: str, *arguments):
            process.stdin.write(json.dumps([task, *map(_plain, arguments)]) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert "traceback" not in answer, answer["traceback"]
            return answer["result"]

        yield ask
        process.stdin.close()


def _plain(argument):
    return str(argument) if isinstance(argument, Path) else argument


def in_child(work) -> int:
    """Fork a child that runs `work()` and ends; return its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def kills(place: str, count: int, seed: int, exchange: bool) -> dict:
    """Kill a saving loop at `count` random moments; return how often each state of the disk was found."""
    from transformers_bot.io import atomic_folder
    from transformers_bot.io.atomic_folder import whole_folder

    if not exchange:
        atomic_folder._exchange = lambda first, second: False  # noqa: ARG005
    out, clock, found, number = Path(place, "out"), random.Random(seed), Counter(), 0

    def save_for_ever() -> None:
        n = number
        os.write(started[1], b"x")
        while True:
            n += 1
            with whole_folder(out, overwrite=True) as folder:
                write_save(folder, n)

    with whole_folder(out) as folder:
        write_save(folder, 0)
    for _ in range(count):
        started = os.pipe()
        child = in_child(save_for_ever)
        os.read(started[0], 1)
        time.sleep(clock.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        os.close(started[0]), os.close(started[1])
        if not exchange and not out.exists():  # the documented gap: both are whole, beside `out`
            (aside,) = (path for path in left_over(out) if path.suffix == ".old")
            assert read_save(aside) < read_save(aside.with_suffix(""))
            aside.rename(out)
            found["between"] += 1
        before, number = number, read_save(out)
        assert number >= before
        found["saves"] += number - before
        for path in left_over(out):
            found[_state(path, number)] += 1
            subprocess.run(["rm", "-rf", str(path)], check=True)
    return dict(found)


def _state(path: Path, number: int) -> str:
    if path.name.endswith("-lock"):
        return "lock"
    try:
        return "finished" if read_save(path) > number else "replaced"
    except (AssertionError, ValueError, FileNotFoundError):
        return "partial"


def rivals(place: str, seconds: float) -> dict:
    """Two processes replace one folder over and over; return their wins and refusals."""
    from transformers_bot import SaveError
    from transformers_bot.io.atomic_folder import whole_folder

    out = Path(place, "out")

    def compete(rival: int) -> None:
        counts, end = Counter(), time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                with whole_folder(out, overwrite=True) as folder:
                    write_save(folder, 2 * counts["won"] + rival)
                counts["won"] += 1
            except SaveError as error:
                counts["refused" if "Another process is writing" in str(error) else "failed"] += 1
        Path(place, f"{rival}.json").write_text(json.dumps(counts))

    children = [in_child(lambda rival=rival: compete(rival)) for rival in (0, 1)]
    codes = [os.waitpid(child, 0)[1] for child in children]
    files = [Path(place, f"{rival}.json") for rival in (0, 1)]
    counts = [json.loads(file.read_text()) for file in files if file.exists()]
    for file in files:
        file.unlink(missing_ok=True)
    return {"codes": codes, "counts": counts, "number": read_save(out), "left": [p.name for p in left_over(out)]}


def hold(place: str, number: int) -> int:
    """Start a process that writes to `out` until it is told to go on by a file `go`; return its process id."""
    from transformers_bot.io.atomic_folder import whole_folder

    def write() -> None:
        with whole_folder(Path(place, "out")) as folder:
            write_save(folder, number)
            Path(place, "ready").touch()
            while not Path(place, "go").exists():
                time.sleep(0.01)

    if (middle := os.fork()) == 0:  # the holder outlives the task: it is nobody's child
        pid = in_child(write)
        Path(place, "pid").write_text(str(pid))
        os._exit(0)
    os.waitpid(middle, 0)
    while not Path(place, "ready").exists():
        time.sleep(0.01)
    return int(Path(place, "pid").read_text())


def interrupt(place: str) -> int:
    """Press Ctrl-C in the middle of a save; return how the process ended."""
    from transformers_bot.io.atomic_folder import whole_folder

    def write() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with whole_folder(Path(place, "deep", "out")) as folder:
            write_save(folder, 1)
            os.write(started[1], b"x")
            for _ in range(3000):  # one long sleep would not see a signal that comes just before it
                time.sleep(0.01)

    started = os.pipe()
    child = in_child(write)
    os.read(started[0], 1)
    os.kill(child, signal.SIGINT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def limited(place: str, writer: str) -> str:
    """Write more than the process may; return what the error says."""
    import torch
    from safetensors.torch import save_file

    from transformers_bot import SaveError
    from transformers_bot.io.atomic_folder import whole_folder
    from transformers_bot.io.safetensors_writer import Entry, ShardWriter, lay_out

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    tensor = torch.zeros(10**6)
    try:
        with whole_folder(Path(place, "out"), overwrite=True, needs=4_000_000) as folder:
            if writer == "plain":
                (folder / "a.bin").write_bytes(bytes(60_000))
                (folder / "b.bin").write_bytes(bytes(10**6))
            elif writer == "safetensors":
                save_file({"a": tensor}, folder / "model.safetensors")
            else:
                with ShardWriter(folder, lay_out([Entry("a", tensor.dtype, (10**6,))]), parameters=1) as shards:
                    shards.put("a", tensor)
    except SaveError as error:
        return str(error)
    raise AssertionError("the limit was not met")


TASKS = {"kills": kills, "rivals": rivals, "hold": hold, "interrupt": interrupt, "limited": limited}


def serve() -> None:
    """Answer tasks, each in a child of its own."""
    import transformers_bot.io.atomic_folder  # noqa: F401 - so that no child has to

    for line in sys.stdin:
        task, *arguments = json.loads(line)
        child = in_child(lambda task=task, arguments=arguments: _answer(task, arguments))
        os.waitpid(child, 0)


def _answer(task: str, arguments: list) -> None:
    try:
        answer = {"result": TASKS[task](*arguments)}
    except BaseException:
        answer = {"traceback": traceback.format_exc()}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
