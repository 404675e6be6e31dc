"""The tables of `gpu`, from its JSON alone."""

from typing import Any

from speed_figures import Spread, ratio, short, spread

NOTES = """\
TF32 and bfloat16 products were allowed for everything but our results, which are equal to the CPU's within the rounding
of their dtype ("off by": the largest difference as a share of the largest entry).

- bandwidth: bytes of the input and of the result over the seconds of one call, and as a share of what the device's own
  copy of the larger stack (`Tensor.copy_`) moves; by the device's clock, 20 calls in a row.
- from host: from pinned memory to a result on the device, over the transfer of the input alone.
- peak: most device memory in tensors, and the same less input and result (stacks), or less the result and the
  source's largest stack (models); "-" on a CPU, whose allocator does not count.
"""
STACK_HEAD = ["stack", "shape", "ours, ms", "copy, ms", "GB/s", "share of copy", "from host", "peak, MiB", "over, MiB"]
STACK_HEAD += ["off by"]
MODEL_HEAD = ["models", "load source, s", "ours, s", "of loading", "peak, MiB", "over, MiB", "off by"]


def share_of_copy(case: dict[str, Any]) -> Spread:
    """Bytes a second of ours over bytes a second of the copy, which reads and writes the whole stack."""
    moved = (case["input_bytes"] + case["output_bytes"]) / (2 * case["whole_bytes"])
    time = ratio(case["seconds"]["copy"], case["seconds"]["ours"])
    return Spread(moved * time.median, moved * time.low, moved * time.high)


def stack_rows(data: dict[str, Any]) -> list[list[str]]:
    made = []
    for key, case in _of(data, "stack"):
        shape = " x ".join(map(str, case["shape"]))
        if "left_out" in case:
            made.append([key, shape, f"left out: {case['left_out']}", *[""] * (len(STACK_HEAD) - 3)])
            continue
        ours, copy = (spread([1000 * s for s in case["seconds"][name]]) for name in ("ours", "copy"))
        gigabytes = (case["input_bytes"] + case["output_bytes"]) / 1e6 / ours.median
        host = ratio(case["seconds"]["to the device and ours"], case["seconds"]["to the device"])
        cells = [key, shape, str(ours), str(copy), short(gigabytes), str(share_of_copy(case)), str(host)]
        allowed = case["input_bytes"] + case["output_bytes"]
        made.append([*cells, *_memory(case["peak"], allowed), f"{case['error']:.1e}"])
    return made


def model_rows(data: dict[str, Any]) -> list[list[str]]:
    made = []
    for key, case in _of(data, "model"):
        load, ours = (case["seconds"][name] for name in ("load source", "ours"))
        cells = [key, str(spread(load)), str(spread(ours)), str(ratio(ours, load))]
        allowed = case["output_bytes"] + case["largest_stack"]
        made.append([*cells, *_memory(case["peak"], allowed), f"{case['error']:.1e}"])
    return made


def _of(data: dict[str, Any], kind: str) -> list[tuple[str, dict[str, Any]]]:
    return [(key, case) for key, case in data["cases"].items() if case["kind"] == kind]


def _memory(peak: int | None, allowed: int) -> list[str]:
    return ["-", "-"] if peak is None else [f"{peak / 2**20:.0f}", f"{(peak - allowed) / 2**20:.0f}"]
