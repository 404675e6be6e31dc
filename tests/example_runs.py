"""Running the training examples: in this process, in two, and killed; small real data and models for them."""

import csv
import importlib
import inspect
import json
import multiprocessing
import os
import pydoc_data.topics
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PRELOADED = ["transformers_bot.learned.flops", "transformers.trainer", "transformers.models.bert.modeling_bert"]
PRELOADED += ["transformers.models.gpt2.modeling_gpt2", "transformers.models.deit.modeling_deit", "accelerate.utils"]
CPU = ["--use_cpu", "--disable_tqdm", "true"]


def write_texts(folder):
    """(training file, evaluation file): Python's own help topics, and docstrings of its library."""
    train, held = folder / "topics.txt", folder / "docstrings.txt"
    train.write_text("\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))[:300_000])
    modules = [importlib.import_module(name) for name in ("argparse", "csv", "logging", "shutil", "textwrap", "typing")]
    docs = [inspect.getdoc(value) for module in modules for value in vars(module).values() if callable(value)]
    held.write_text("\n".join(doc for doc in docs if doc)[:20_000])
    return str(train), str(held)


def train_tokenizer(text, special, size=400):
    """A small byte-level BPE tokenizer trained on a text file."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train([text], trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet))
    return made


def run_here(script, *arguments):
    """Run a script in this process, as `python examples/SCRIPT ARGUMENTS` would; returns the summary."""
    words = [str(word) for word in arguments]
    execute(script, words)
    return summary_of(words)


def execute(script, words):
    before, path, threads = sys.argv, list(sys.path), torch.get_num_threads()
    sys.argv, sys.path = [script, *words, *CPU], [str(EXAMPLES), *sys.path]
    torch.set_num_threads(1)  # sums in one order, in every process
    try:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    finally:
        sys.argv, sys.path = before, path
        torch.set_num_threads(threads)


def run_launched(*runs):
    """Run scripts, each given as (name, arguments), in two processes; returns their summaries.

    One launch serves all runs, because two processes take long to start. `accelerate launch --cpu
    --num_processes 2` starts one process only (accelerate 1.15): its launcher for GPUs starts both,
    and the variable keeps them on the CPU.
    """
    plan = [[script, *(str(word) for word in arguments)] for script, *arguments in runs]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launcher, __file__, json.dumps(plan)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [summary_of(words) for words in plan]


def run_killed(script, *arguments, checkpoint):
    """Run a script in another process and kill it (SIGKILL) when it has written this checkpoint."""
    words = [str(word) for word in arguments]
    context = multiprocessing.get_context("forkserver")  # imports once, then forks for every run
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=execute, args=(script, words))
    process.start()
    written = output_folder(words) / checkpoint / "trainer_state.json"  # the last of its files
    while process.is_alive() and not written.exists():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"{script} had ended before {checkpoint}: {process.exitcode}"
    assert not (output_folder(words) / "summary.json").exists()


def output_folder(words):
    return Path(words[words.index("--output-dir") + 1])


def summary_of(words):
    return json.loads((output_folder(words) / "summary.json").read_text())


def log_of(folder):
    """The rows of log.csv as dicts of numbers; empty cells are left out."""
    with (Path(folder) / "log.csv").open() as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def check_budget(rows, steps):
    """One row a step, from 0 to the end, in which everything spent only grows."""
    numbers = [row["step"] for row in rows]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    assert numbers[-1] == steps
    for name in ("examples", "flops", "seconds"):
        values = [row[name] for row in rows]
        assert values == sorted(values)
    first = rows[1]
    for row in rows:  # each example costs the same
        assert (
            row["flops"] - rows[0]["flops"] == row["examples"] * (first["flops"] - rows[0]["flops"]) / first["examples"]
        )


def check_same_run(one, other, tolerance=1e-4):
    """Two runs logged the same: every loss and metric, and what was spent except seconds."""
    assert [row["step"] for row in one] == [row["step"] for row in other]
    for row, twin in zip(one, other, strict=True):
        assert row.keys() == twin.keys()
        for name in row.keys() - {"seconds"}:
            assert abs(row[name] - twin[name]) <= tolerance * max(1, abs(row[name])), (name, row, twin)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, *given in json.loads(sys.argv[1]):
        execute(name, given)
