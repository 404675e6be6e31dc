"""Tables of the results, made from the JSON alone."""

import math
from typing import Any

import speed_end_to_end_table as end_to_end
import speed_gpu_table as gpu
import speed_imports_table as imports
import speed_scale_table as scale
from speed_figures import Spread, floor_seconds, ratio, spread

Case = dict[str, Any]
KERNEL_NOTES = """\
The low-pass of one stack of matrices (12 x 768 x 3072 unless quick), growing to it (synthesis) or shrinking from it
(analysis). Before anything is timed, every result is found equal to PyWavelets' in float64.

- ours: milliseconds, median of the rounds [least, most], one fresh process a case, all columns in turn in every round.
- in copies: over copying the whole (larger) stack into memory that has been touched (`Tensor.copy_`); `clone` is that
  into fresh memory.
- times pywt, pywt low, ptwt: how many times longer they take than ours. pywt is `dwtn`/`idwtn`; "low" makes the low
  band alone, axis by axis (`dwt`/`idwt`); ptwt is `wavedec3`/`waverec3` (its mode "zero", equal after folding).
- floor: reading the input and writing the result once at the copy's bandwidth; "to it": ours over that.
- sums: multiply-adds of a separable low-pass, and ours over what they take at the rate of a 1024 x 1024 matrix
  product; the larger of the two floors is the one that binds.
"""


def markdown(data: dict[str, Any]) -> str:
    """The report of one part."""
    lines = [f"# Speed: {data['part']}", "", _where(data), ""]
    return "\n".join([*lines, *BODIES[data["part"]](data)]) + "\n"


def _where(data: dict[str, Any]) -> str:
    machine, versions = data["machine"], data["versions"]
    found = ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())
    quick = "; quick sizes" if data["settings"]["quick"] else ""
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} torch threads, {memory}"
    return f"{hardware}; {found}; {data['date']}{quick}."


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Rows of cells as markdown."""
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def kernel_floors(case: Case) -> tuple[float, float]:
    """Seconds for the bytes at the bandwidth of the copy, and for the sums at the rate of the product."""
    whole = math.prod(case["case"]["large"]) * case["itemsize"]
    part = math.prod(case["small"]) * case["itemsize"]
    seconds = case["seconds"]
    moving = floor_seconds(whole + part, 2 * whole, spread(seconds["memcpy"]).median)
    adding = floor_seconds(case["multiply_adds"], 1024**3, spread(seconds["matmul"]).median)
    return moving, adding


def kernel_ratios(case: Case) -> dict[str, Spread | None]:
    """Our time as a multiple of a copy's, and the rivals' as multiples of ours; None if one was not measured."""
    seconds = case["seconds"]
    ours = seconds["ours"]

    def rival(*names: str) -> Spread | None:
        return next((ratio(seconds[name], ours) for name in names if name in seconds), None)

    return {
        "in copies": ratio(ours, seconds["memcpy"]),
        "times pywt": rival("pywt.dwtn", "pywt.idwtn"),
        "times pywt low": rival("pywt.dwt low band", "pywt.idwt low band"),
        "times ptwt": rival("ptwt"),
    }


def _kernel(data: dict[str, Any]) -> list[str]:
    head = ["case", "ours, ms", "copy, ms", "clone, ms", "in copies", "times pywt", "times pywt low", "times ptwt"]
    head += ["floor, ms", "to it", "sums, 1e6", "to them", "off by"]
    rows = []
    for key, case in data["cases"].items():
        ours, copy, clone = (spread([1000 * s for s in case["seconds"][n]]) for n in ("ours", "memcpy", "clone"))
        moving, adding = kernel_floors(case)
        cells = [key, str(ours), f"{copy.median:.2f}", f"{clone.median:.2f}"]
        cells += [str(value) if value is not None else "-" for value in kernel_ratios(case).values()]
        cells += [f"{1000 * moving:.2f}", f"{ours.median / moving / 1000:.1f}", f"{case['multiply_adds'] / 1e6:.0f}"]
        cells += [f"{ours.median / adding / 1000:.1f}", f"{case['errors']['ours']:.1e}"]
        rows.append(cells)
    missing = sorted({f"- {name}: {reason}." for case in data["cases"].values() for name, reason in _missing(case)})
    return [*KERNEL_NOTES.splitlines(), "", *table(head, rows), "", 'Not compared ("-"):', "", *missing]


def _end_to_end(data: dict[str, Any]) -> list[str]:
    return [*end_to_end.NOTES.splitlines(), "", *table(end_to_end.HEAD, end_to_end.rows(data))]


def _imports(data: dict[str, Any]) -> list[str]:
    return [*imports.NOTES.splitlines(), "", *table(imports.HEAD, imports.rows(data))]


def _scale(data: dict[str, Any]) -> list[str]:
    lines = ["Seconds by gigabytes read and written, least squares over the sizes:", "", *scale.lines(data)]
    return [*scale.NOTES.splitlines(), "", *table(scale.HEAD, scale.rows(data)), "", *lines]


def _gpu(data: dict[str, Any]) -> list[str]:
    stacks, models = table(gpu.STACK_HEAD, gpu.stack_rows(data)), table(gpu.MODEL_HEAD, gpu.model_rows(data))
    devices = ", ".join(sorted({case["device"] for case in data["cases"].values()}))
    return [f"Device: {devices}.", "", *gpu.NOTES.splitlines(), "", *stacks, "", *models]


def _missing(case: Case) -> list[tuple[str, str]]:
    return list(case["notes"].items())


BODIES = {"kernel": _kernel, "end-to-end": _end_to_end, "imports": _imports, "scale": _scale, "gpu": _gpu}
