"""`from_pretrained` at another size against loading and touching the source and the target as they are.

The baseline is unavoidable: the Auto class's `from_pretrained` of the source and of the target (each from a
folder of its own, in the stored dtype), and every byte of every parameter read. Ours is touched in the same way. What
transformers loads so stays mapped from the file; a third load copies it into memory of its own, where ours has to be.
All files have been read just before, so that no disk is measured. Every call is made in a process of its own, once in
one that has everything imported and once, for its seconds alone, in a new interpreter.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import speed_pairs as pairs
from speed_calls import loaded_model, operations, resized_model, touch, whole
from speed_figures import resize_multiply_adds
from speed_process import Meter, faults, forked, read_through

COPY = 64 * 2**20  # bytes of the copy that shows the machine's bandwidth
MATMUL = 1024
COPIED = "load target, copied"
LOADS = ("load source", "load target", COPIED)
SLOW = 60  # seconds: cases that take longer are not repeated
PLAIN = {"basis": "plain", "order": "kept"}
SHRINK_OPTIONS: dict[str, dict[str, Any]] = {"default": {}, "plain": PLAIN}
GROW_OPTIONS: dict[str, dict[str, Any]] = {"default": {}, "detail zero": {"detail": "zero"}}
WITH_HEAD = (("gpt2-medium", "gpt2"), ("gpt2", "gpt2-medium"), pairs.QUICK_PAIRS[0])


def run(store: Any, options: Any, say: Callable[[str], None]) -> list[str]:
    """Measure every pair that is wanted; return what went wrong."""
    with work_folder(options.work / "pairs", options.keep) as folder:
        for source, target in pairs.QUICK_PAIRS if options.quick else pairs.PAIRS:
            for head in ("", *([pairs.Size(source).head] if (source, target) in WITH_HEAD else [])):
                key = f"{source} -> {target}, BoTModel{head}"
                if options.wants(key) and not (options.resume and store.has(key)):
                    folders = [forked(pairs.make, name, folder) for name in (source, target)]
                    store.add(key, measured(source, target, head, folders, options.repeats))
                    say(summary(key, store.data["cases"][key]))
    return []


@contextmanager
def work_folder(folder: Path, keep: bool) -> Iterator[Path]:
    """A folder for checkpoints, removed at the end unless it shall be kept."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder)


def measured(source: str, target: str, head: str, folders: list[Path], repeats: int) -> dict[str, Any]:
    """Costs of every row in every round: loading both, and each set of options, one after the other."""
    names = [str(folder) for folder in folders]
    grows = pairs.SIZES[target][3] > pairs.SIZES[source][3]
    rows = GROW_OPTIONS if grows else SHRINK_OPTIONS
    costs: dict[str, list[Any]] = {name: [] for name in (*LOADS, *rows)}
    processes: dict[str, list[float]] = {name: [] for name in ("load both", *rows)}
    machine: dict[str, list[float]] = {"copy": [], "matmul": [], "product": [], "fault": []}
    for _ in range(repeats):
        for name, seconds in forked(yardsticks).items():
            machine[name].append(seconds)
        for label, folder in zip(LOADS, (names[0], names[1], names[1]), strict=True):
            costs[label].append(forked(loaded, folder, head, label == COPIED))
        for label, chosen in rows.items():
            if costs[label] and costs[label][0]["wall"] > SLOW:
                continue
            costs[label].append(forked(resized, names[0], target, head, chosen))
        for label, wanted in {"load both": None, **rows}.items():
            processes[label].append(whole(names, target, head, wanted))
    source_bytes, target_bytes = (costs[name][0]["bytes"] for name in ("load source", "load target"))
    return {
        "grows": grows,
        "options": rows,
        "source_bytes": source_bytes,
        "target_bytes": target_bytes,
        "multiply_adds": forked(multiply_adds, names[0], target, head),
        "operations": {label: forked(operations, names[0], target, head, chosen) for label, chosen in rows.items()},
        "machine": machine,
        "costs": costs,
        "processes": processes,
    }


def loaded(folder: str, head: str, copied: bool) -> dict[str, Any]:
    """Costs of the Auto class's from_pretrained and of touching all it gives; `copied`: in memory of its own."""

    def load(name: str) -> Any:
        model = loaded_model(name, head)
        if copied:
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
        return model

    return _costs(folder, load)


def resized(folder: str, target: str, head: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """Costs of our from_pretrained at the target's sizes and of touching all it gives."""
    return _costs(folder, lambda name: resized_model(name, target, head, chosen))


def _costs(folder: str, load: Callable[[str], Any]) -> dict[str, Any]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    read_through(folder)
    with Meter() as meter:
        start = time.perf_counter()
        model = load(folder)
        called = time.perf_counter() - start
        touched = touch(model)
    return {**meter.costs, "call": called, "bytes": touched}


def yardsticks() -> dict[str, float]:
    """Seconds, the best of five: a copy of `COPY` bytes, a float32 product of torch's and of ours, a page's fault."""
    import torch
    from speed_device import Device

    from transformers_bot.ops.blocks import product

    device = Device()
    whole = torch.zeros(COPY // 4)
    copy = torch.ones_like(whole)
    square = torch.ones(MATMUL, MATMUL)
    calls: dict[str, Callable[[], object]] = {"copy": lambda: copy.copy_(whole), "matmul": lambda: square @ square}
    calls["product"] = lambda: product(square, square)
    best = {name: min(device.seconds(call) for _ in range(5)) for name, call in calls.items()}
    before = faults()
    fresh = [device.seconds(whole.clone) for _ in range(5)]
    pages = (faults() - before) / len(fresh)
    return {**best, "fault": max(0.0, min(fresh) - best["copy"]) / max(pages, 1.0)}


def multiply_adds(folder: str, target: str, head: str) -> int:
    """Multiply-adds for all resampled tensors, with the shortest filter on the axes that change."""
    import transformers_bot

    factory = getattr(transformers_bot, f"BoTModel{head}")
    plan = factory.plan(folder, config=pairs.Size(target).config())
    shapes = [(step.source_shape, step.shape) for step in plan.steps if step.action == "resample"]
    return sum(resize_multiply_adds(before, after) for before, after in shapes if before and math.prod(after))


def summary(key: str, case: dict[str, Any]) -> str:
    """One line per case while the part runs."""
    from speed_end_to_end_table import ratios

    found = ratios(case)
    parts = [f"{row} {value['wall']} x, {value['over'] / 2**20:.0f} MiB over" for row, value in found.items()]
    return f"{key}: " + "; ".join(parts)
