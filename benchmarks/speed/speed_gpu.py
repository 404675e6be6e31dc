"""Resizing on a GPU: bandwidth of the kernel, the way from host memory, peak device memory, equality with the CPU.

TF32 (and bfloat16 products, where a device has them) are switched on for everything here, as many training scripts do:
a result that used them would be off by 1e-3, and more than float32's rounding is an error. On a CPU the same path runs,
without a clock and a memory count of the device.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import speed_pairs as pairs
import torch
from speed_calls import loaded_model, resized_model
from speed_device import Device
from speed_end_to_end import PLAIN, work_folder
from speed_kernel import Case, WrongResult, difference, ours, stack
from speed_process import forked, read_through

STACKS = (
    ("BERT base", (12, 768, 3072), "float32"),
    ("BERT base", (12, 768, 3072), "bfloat16"),
    ("BERT large", (24, 1024, 4096), "float32"),
    ("GPT-2 XL", (48, 1600, 6400), "float16"),
    ("Llama 7B", (32, 4096, 11008), "bfloat16"),
)
QUICK_STACKS = (("quick", (4, 32, 64), "float32"), ("quick", (4, 32, 64), "bfloat16"))
WAVELETS = ("haar", "db2", "bior6.8")
MODELS = (("bert-large", "bert-base"), ("gpt2-medium", "gpt2"), ("gpt2", "gpt2-medium"))
ON_CPU = "the CPU"
CALLS = 20  # calls in a row between two readings of the device's clock


def run(store: Any, options: Any, say: Callable[[str], None]) -> list[str]:
    """Measure stacks, then models, each in a process of its own; return what went wrong."""
    failures: list[str] = []

    def keep(key: str, function: Callable[..., Any], *args: Any) -> None:
        if not options.wants(key) or (options.resume and store.has(key)):
            return
        try:
            store.add(key, forked(function, *args))
            say(key)
        except WrongResult as error:
            store.remove(key)
            failures.append(f"{key}: {error}")
            say(f"WRONG {failures[-1]}")

    for name, case in cases(options.quick):
        keep(f"{name}, {case.key}", measured_stack, case, options.device, options.repeats)
    with work_folder(options.work / "pairs", options.keep) as folder:
        for source, target in pairs.QUICK_PAIRS if options.quick else MODELS:
            key = f"{source} -> {target}"
            if options.wants(key):
                forked(pairs.make, source, folder)
                keep(key, measured_model, folder / source, target, options.device, options.repeats)
    return failures


def cases(quick: bool) -> Iterator[tuple[str, Case]]:
    for name, shape, dtype in QUICK_STACKS if quick else STACKS:
        for wavelet in WAVELETS:
            for direction in ("analysis", "synthesis"):
                yield name, Case(wavelet, direction, dtype=dtype, large=shape)


def measured_stack(case: Case, device_name: str, repeats: int) -> dict[str, Any]:
    """Seconds of ours, of the device's copy, and of the way from host memory; peak memory; the error.

    Memory is counted with the input, which is resident: the target is that output and input are all of it.
    """
    device = Device(device_name)
    host = stack(case)
    record: dict[str, Any] = {"kind": "stack", "device": device.title, "shape": list(case.large), "dtype": case.dtype}
    whole, part = (host.element_size() * torch.Size(shape).numel() for shape in (case.large, case.small))
    before, after = (whole, part) if case.direction == "analysis" else (part, whole)
    record |= {"input_bytes": before, "output_bytes": after, "whole_bytes": whole}
    free = device.free()
    if free is not None and free < 4 * whole:
        return {
            **record,
            "left_out": f"{4 * whole / 1e9:.0f} GB of device memory are wanted, {free / 1e9:.0f} are free",
        }
    expected = ours(host, case)
    allow_low_precision()
    device.forget_peak()
    x = host.to(device.name)
    result = ours(x, case)
    record["peak"] = device.peak()
    record["error"] = difference("ours", result, expected.double(), case.dtype, judge=ON_CPU)
    del result
    pinned = device.pinned(host)
    big = torch.zeros(case.large, dtype=x.dtype, device=x.device)
    copy = torch.ones_like(big)
    calls: dict[str, Callable[[], object]] = {"ours": lambda: ours(x, case), "copy": lambda: copy.copy_(big)}
    from_host: dict[str, Callable[[], object]] = {
        "to the device": lambda: pinned.to(device.name, non_blocking=True, copy=True),
        "to the device and ours": lambda: ours(pinned.to(device.name, non_blocking=True, copy=True), case),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*calls, *from_host)}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(device.seconds(call, CALLS if device.is_cuda else 1))
        for name, call in from_host.items():
            seconds[name].append(device.wall_seconds(call))
    return {**record, "seconds": seconds}


def allow_low_precision() -> None:
    """Allow float32 products in TF32 or bfloat16, which results must not use."""
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True


def measured_model(folder: Path, target: str, device_name: str, repeats: int) -> dict[str, Any]:
    """Wall seconds of loading the source to the device and of resizing it to the device; peak memory; the error."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = Device(device_name)
    read_through(folder)
    expected = resized_model(str(folder), target, "", PLAIN).state_dict()
    allow_low_precision()
    device.synchronise()
    device.forget_peak()
    found = resized_model(str(folder), target, "", PLAIN, device_map=device.name)
    peak = device.peak()
    weights = _floats(found)
    error = max(difference(name, w, expected[name].double(), _dtype(w), judge=ON_CPU) for name, w in weights)
    output = sum(w.nbytes for _, w in weights)
    del found, weights
    calls: dict[str, Callable[[], object]] = {
        "load source": lambda: loaded_model(str(folder), "", device_map=device.name),
        "ours": lambda: resized_model(str(folder), target, "", PLAIN, device_map=device.name),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(device.wall_seconds(call))
    memory = {"peak": peak, "output_bytes": output, "largest_stack": largest_stack(folder)}
    return {"kind": "model", "device": device.title, "error": error, **memory, "seconds": seconds}


def _floats(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in model.state_dict().items() if tensor.is_floating_point()]


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def largest_stack(folder: Path) -> int:
    """Bytes of the largest stack of the source: all tensors whose names differ in numbers only."""
    from safetensors import safe_open

    stacks: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names = file.keys()
            for name in names:
                kind = re.sub(r"\d+", "*", name)
                part = file.get_slice(name)
                size = torch.Size(part.get_shape()).numel() * BYTES[part.get_dtype()]
                stacks[kind] = stacks.get(kind, 0) + size
    return max(stacks.values())


BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
