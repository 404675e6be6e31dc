"""Finds the checkpoint from which an interrupted run can continue."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import logging

logger = logging.get_logger("transformers." + __name__)


def newest_whole_checkpoint(folder: Path, processes: int = 1) -> Path | None:
    """The `checkpoint-N` with the highest N that was written to its end, None if there is none.

    A killed run may leave a folder with files missing or cut off; such a folder is skipped with a
    warning, and training overwrites it when it reaches that step again.
    """
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(numbered, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        fault = fault_of(path, processes)
        if fault is None:
            return path
        logger.warning(f"{path} was not written to its end ({fault}); an earlier checkpoint is used.")
    return None


def fault_of(checkpoint: Path, processes: int = 1) -> str | None:
    """What is missing or cut off in a checkpoint of the Trainer, None if it is complete."""
    weights = sorted(checkpoint.glob("model*.safetensors"))
    if not weights:
        return "no model.safetensors"
    for path in weights:
        try:
            with safe_open(path, framework="pt"):  # compares the header with the length of the file
                pass
        except SafetensorError as error:
            return f"{path.name}: {error}"
    states = sorted(path.name for path in checkpoint.glob("rng_state*.pth"))  # rng_state.pth, or one a process
    if not states or (states != ["rng_state.pth"] and len(states) < processes):
        return f"{len(states)} random states for {processes} processes"
    for name in ("optimizer.pt", "scheduler.pt", *states):
        if not zipfile.is_zipfile(checkpoint / name):  # torch.save writes the directory of its zip last
            return f"{name} is missing or cut off"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        return f"trainer_state.json: {error}"
    return None
