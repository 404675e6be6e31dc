"""The calls that are measured end to end: loading, resizing, reading every byte; also as whole processes."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import speed_pairs as pairs


def loaded_model(folder: str, head: str, **placing: Any) -> Any:
    """The source as it is, by the Auto class."""
    import transformers

    return getattr(transformers, f"AutoModel{head}").from_pretrained(folder, **placing)


def resized_model(folder: str, target: str, head: str, chosen: dict[str, Any], **placing: Any) -> Any:
    """The source at the target's sizes, by this package."""
    import transformers_bot

    factory = getattr(transformers_bot, f"BoTModel{head}")
    return factory.from_pretrained(folder, config=pairs.Size(target).config(), bot_config=chosen, **placing)


def touch(model: Any) -> int:
    """Read every byte of every parameter once; return their number."""
    import torch

    total = 0
    for parameter in model.parameters():
        flat = parameter.detach().reshape(-1).view(torch.uint8)
        whole = flat.numel() // 8 * 8
        flat[:whole].view(torch.int64).sum()
        flat[whole:].sum()
        total += flat.numel()
    return total


def operations(folder: str, target: str, head: str, chosen: dict[str, Any]) -> dict[str, int]:
    """The main operations of a resize: multiply-adds of matrix products, and random numbers drawn."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found = {"products": 0, "drawn": 0}

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.name().split(".")[0]
            if name in ("aten::mm", "aten::bmm", "aten::mv"):  # b as (..., reads, writes)
                found["products"] += args[0].numel() * (args[1].shape[-1] if args[1].dim() > 1 else 1)
            elif name == "mkldnn::_linear_pointwise":  # b as (writes, reads)
                found["products"] += args[0].numel() * args[1].shape[0]
            elif name in ("aten::normal_", "aten::uniform_") and not args[0].is_meta:
                found["drawn"] += args[0].numel()
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Counting():
        resized_model(folder, target, head, chosen)
    return found


def whole(folders: list[str], target: str, head: str, chosen: dict[str, Any] | None) -> float:
    """Seconds of a new interpreter from start to end, imports included, as for a user's script.

    Args:
        folders: of the source and the target.
        chosen: options of resizing the source to the target's size; None: both are loaded as they are.
    """
    asked = json.dumps({"folders": folders, "target": target, "head": head, "chosen": chosen})
    start = time.perf_counter()
    ended = subprocess.run([sys.executable, str(Path(__file__).resolve()), asked], stderr=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    if ended.returncode:
        raise RuntimeError(f"a process that was to be measured ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return seconds


def main(asked: dict[str, Any]) -> None:
    if asked["chosen"] is None:
        for folder in asked["folders"]:
            touch(loaded_model(folder, asked["head"]))
    else:
        touch(resized_model(asked["folders"][0], asked["target"], asked["head"], asked["chosen"]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
