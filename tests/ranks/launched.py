"""What the jobs of several processes and the tests that judge them share: sources, targets, starting, recording.

A job is a script of scenarios. Every rank runs all of them in the same order and saves what each
returned, or the error that it raised; pytest compares that with what one process makes.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, resized_config, save, tiny_config
from filelock import FileLock
from transformers import PreTrainedConfig, PreTrainedModel

RANKS = 2
HEADS = {"gpt2": "GPT2LMHeadModel", "bert": "BertForMaskedLM"}
GROWN = {"layer": 4, "hidden": 24, "heads": 6, "ffn": 40}
LIMIT = 180  # seconds for a whole job; the longest takes about 20


def make_sources(folder: Path) -> None:
    """One random tiny checkpoint of each family under `folder`, and one that is cut off."""
    for family, head in HEADS.items():
        save(build(family, head, dtype=torch.float32).model, folder / family)
    save(build("gpt2", HEADS["gpt2"], dtype=torch.float32).model, folder / "cut")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def target(family: str, head: str = "", **changes) -> PreTrainedConfig:
    """The config that a job and its test resize to."""
    config = tiny_config(family, head or HEADS[family])
    config.dtype = torch.float32
    wanted = resized_config(config, **{**GROWN, **changes})
    wanted.architectures = [head or HEADS[family]]
    return wanted


def whole_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every tensor of the model by name, gathered where it is split; all ranks must call it."""
    from torch.distributed.tensor import DTensor

    found = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        found[name] = tensor.detach().clone()
    return found


def record(folder: Path, rank: int, scenarios: list[Callable[[Path], Any]]) -> None:
    """Run the scenarios and save {name: (value, error, seconds)} as `folder/rank<rank>.pt`."""
    results = {}
    for scenario in scenarios:
        start, value, error = time.monotonic(), None, None
        try:
            value = scenario(folder)
        except Exception as raised:
            kinds = [kind.__name__ for kind in type(raised).__mro__]
            error = (kinds, str(raised), "".join(traceback.format_exception(raised)))
        results[scenario.__name__] = (value, error, time.monotonic() - start)
    torch.save(results, folder / f"rank{rank}.pt")


def assert_same_state(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same names and, bit for bit, the same values."""
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


class Job:
    """A finished job; `job("ddp")` is what scenario `ddp` returned on each rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]

    def __call__(self, name: str) -> list[Any]:
        for rank, results in enumerate(self.results):
            error = results[name][1]
            assert error is None, f"{name} on rank {rank}:\n{error[2]}"
        return [results[name][0] for results in self.results]

    def errors(self, name: str) -> list[tuple[list[str], str, float]]:
        """(kinds, message, seconds) of the error that scenario `name` raised on each rank."""
        for results in self.results:
            assert results[name][1] is not None, f"{name} raised nothing"
        return [(results[name][1][0], results[name][1][1], results[name][2]) for results in self.results]


def start(script: str, launcher: list[str], factory: pytest.TempPathFactory, **env: str) -> Job:
    """Run a job once for all workers of this pytest run, one job at a time; its results."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / Path(script).stem
    with FileLock(shared / "launched.lock"):
        if not (folder / "done").exists():
            (folder / "tmp").mkdir(parents=True)
            make_sources(folder)
            _run([*launcher, str(Path(__file__).parent / script), str(folder)], folder, env)
            (folder / "done").touch()
    return Job(folder)


def torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]


def accelerate_launch() -> list[str]:
    # --cpu would start one process; --multi_gpu starts all, and ACCELERATE_USE_CPU keeps them on the CPU.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={RANKS}"]
    return [*command, "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]


def _run(command: list[str], folder: Path, env: dict[str, str]) -> None:
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parents[2]), str(here.parents[1]), str(here.parent)])
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "tmp"), "PYTHONPATH": path}
    with (folder / "log").open("w") as log:
        job = subprocess.Popen(
            command, env={**os.environ, **own, **env}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = job.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # the whole group is gone, as it should be
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    tail = (folder / "log").read_text()[-4000:]
    assert code is not None, f"{command} hung for {LIMIT} s:\n{tail}"
    assert code == 0, f"{command} ended with {code}:\n{tail}"


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """The targets of all resamplings that this process runs inside."""
    from transformers_bot.run import execute, loading, writing

    ran: list[str] = []

    def counting(*args, **kwargs):
        for name, tensor in execute.run_plan(*args, **kwargs):
            ran.append(name)
            yield name, tensor

    with pytest.MonkeyPatch.context() as patch:
        for module in (loading, writing):
            patch.setattr(module, "run_plan", counting)
        yield ran
