"""The table of `scale`, from its JSON alone: costs by size, and the line through them."""

from typing import Any

from speed_figures import fitted_line, ratio, short, spread

NOTES = """\
Sharded GPT-2-shaped checkpoints in bfloat16, made on the fly, resized by `resize_checkpoint` to half the layers, width
and heads, each call in a process of its own, imports not counted; median [least, most]. Files were in the page cache
where twice their bytes fitted into free memory, and had been written just before in any case.

- "read and write" reads the source and writes as many bytes as the target has, waits until they are on the disk (as
  `resize_checkpoint` does), and does nothing else.
- seconds per GB: of the source's and the target's bytes together.
- anonymous: most anonymous memory over that before the call; "bound" is what `memory_bound` promises.
"""
SIDES = ("source", "target")
HEAD = ["parameters", "GB read", "GB written", "options", "wall, s", "of reading and writing", "CPU, s", "s per GB"]
HEAD += ["anonymous, MiB", "bound, MiB", "files"]


def moved(case: dict[str, Any]) -> float:
    """Gigabytes that are read and written."""
    return float(case["source_bytes"] + case["target_bytes"]) / 1e9


def rows(data: dict[str, Any]) -> list[list[str]]:
    made = []
    for case in data["cases"].values():
        first = [f"{case['parameters'] / 1e9:.3f} B", *(short(case[f"{side}_bytes"] / 1e9) for side in SIDES)]
        base = [r["wall"] for r in case["costs"]["read and write"]] if "costs" in case else []
        for label, rounds in case.get("costs", {}).items():
            wall, cpu, peak = (spread([r[field] for r in rounds]) for field in ("wall", "cpu", "anonymous_peak"))
            compared = str(ratio([r["wall"] for r in rounds], base)) if label in case["options"] else ""
            bound = f"{case['memory_bound'] / 2**20:.0f}" if label in case["options"] else ""
            cells = [*first, label, str(wall), compared, str(cpu), short(wall.median / moved(case))]
            made.append([*cells, f"{peak.median / 2**20:.0f}", bound, "cached" if case["cached"] else "partly cached"])
    return made


def lines(data: dict[str, Any]) -> list[str]:
    """The least-squares line of each set of options, its residuals, and its prediction for sizes that were left out."""
    cases = data["cases"]
    labels = {label: None for case in cases.values() for label in case.get("options", {})}
    said = []
    for label in labels:
        found = {key: case for key, case in cases.items() if label in case.get("costs", {})}
        x = [moved(case) for case in found.values()]
        y = [spread([r["wall"] for r in case["costs"][label]]).median for case in found.values()]
        if len(set(x)) < 2:
            said.append(f"- {label}: one size only, so no line.")
            continue
        start, slope, residuals = fitted_line(x, y)
        rest = ", ".join(f"{key} {value:+.2f}" for key, value in zip(found, residuals, strict=True))
        said.append(f"- {label}: {start:.2f} s + {slope:.3f} s per GB; residuals in s: {rest}.")
        for key, case in cases.items():
            if "left_out" in case:
                seconds = start + slope * moved(case)
                said.append(
                    f"- {label}, {key}: not run ({case['left_out']}); the line extrapolates to {seconds:.0f} s."
                )
    return said
