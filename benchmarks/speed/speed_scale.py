"""How the cost of streaming `resize_checkpoint` grows with the size of the checkpoint: seconds and memory.

Checkpoints of 0.1 to 7 billion parameters in bfloat16 are written, resized to half the layers and half the width,
and deleted, one after the other. The baseline reads all of the source and writes as many bytes as the target has.
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speed_synthetic as synthetic
from speed_end_to_end import PLAIN, work_folder
from speed_process import Meter, forked, read_through
from speed_synthetic import Scale

ROOM = 2**30  # bytes of the disk that stay free
SLOW = 120  # seconds: cases that take longer are not repeated
PIECE = 16 * 2**20


def run(store: Any, options: Any, say: Callable[[str], None]) -> list[str]:
    """Measure every size that fits on the disk; record the others with their bytes."""
    rows: dict[str, dict[str, Any]] = {"plain": PLAIN, **({"default": {}} if options.full or options.quick else {})}
    with work_folder(options.work / "scale", keep=False) as folder:
        for scale in synthetic.QUICK_SCALES if options.quick else synthetic.SCALES:
            if not options.wants(scale.name) or (options.resume and "costs" in store.data["cases"].get(scale.name, {})):
                continue
            needs, free = 2 * scale.bytes + ROOM, shutil.disk_usage(folder).free
            if needs > free:
                reason = f"{needs / 1e9:.1f} GB are needed on the disk, {free / 1e9:.1f} GB are free"
                store.add(scale.name, {**_sizes(scale), "left_out": reason})
            else:
                store.add(scale.name, {**_sizes(scale), **_made_and_measured(scale, folder, rows, options.repeats)})
            say(summary(scale.name, store.data["cases"][scale.name]))
    return []


def _sizes(scale: Scale) -> dict[str, Any]:
    target = scale.target
    return {"parameters": scale.parameters, "source_bytes": scale.bytes, "target_bytes": target.bytes}


def _made_and_measured(scale: Scale, folder: Path, rows: dict[str, Any], repeats: int) -> dict[str, Any]:
    source = forked(synthetic.write, scale, folder)
    costs: dict[str, list[Any]] = {"read and write": [], **{label: [] for label in rows}}
    cached = 2 * scale.bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        for _ in range(repeats):
            costs["read and write"].append(forked(read_and_write, source, scale.target.bytes, cached))
            for label, chosen in rows.items():
                if not costs[label] or costs[label][0]["wall"] <= SLOW:
                    costs[label].append(forked(streamed, source, scale.target, chosen, cached))
    finally:
        shutil.rmtree(source)
    bound = forked(bound_of, scale)
    return {"options": rows, "cached": cached, "memory_bound": bound, "costs": costs}


def streamed(source: Path, target: Scale, chosen: dict[str, Any], cached: bool) -> dict[str, float]:
    """Costs of one `resize_checkpoint`; its result is deleted."""
    from transformers.utils import logging

    from transformers_bot import resize_checkpoint

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if cached:
        read_through(source)
    out = source.parent / "resized"
    try:
        with Meter() as meter:
            resize_checkpoint(source, out, config=target.config(), bot_config=chosen, tokenizer=False)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return meter.costs


def read_and_write(source: Path, target_bytes: int, cached: bool) -> dict[str, float]:
    """Costs of reading all files of the source and of writing so many bytes to a file, which is deleted."""
    if cached:
        read_through(source)
    out, piece = source.parent / "written", memoryview(bytes(PIECE))
    try:
        with Meter() as meter:
            read_through(source)
            with open(out, "wb", buffering=0) as file:
                while (left := target_bytes - file.tell()) > 0:
                    file.write(piece[: min(PIECE, left)])
                os.fsync(file.fileno())  # as `resize_checkpoint` does
    finally:
        out.unlink(missing_ok=True)
    return meter.costs


def bound_of(scale: Scale) -> int:
    """The bound of `memory_bound` for the resize."""
    import transformers_bot

    return int(transformers_bot.memory_bound(transformers_bot.plan(scale.config(), scale.target.config())))


def summary(key: str, case: dict[str, Any]) -> str:
    """One line per case while the part runs."""
    if "left_out" in case:
        return f"{key}: left out, {case['left_out']}"
    rows = (f"{label} {min(r['wall'] for r in rounds):.1f} s" for label, rounds in case["costs"].items())
    return f"{key}: {', '.join(rows)} at best ({time.strftime('%H:%M')})"
