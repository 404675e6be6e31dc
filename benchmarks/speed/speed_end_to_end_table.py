"""The table of `end-to-end`, from its JSON alone."""

from typing import Any

from speed_figures import Spread, floor_seconds, ratio, short, spread

COPY_MOVES = 2 * 64 * 2**20  # bytes that the yardstick's copy reads and writes
NOTES = """\
Seeded weights at the real sizes (tiny ones with --quick), float32; every call in a process of its own, files in the
page cache, every parameter of every result read once (that is in the seconds). Imports are not counted, except under
"process".

- wall, CPU: seconds of ours. "of loading": over those of loading and touching the source plus the target with the Auto
  class; the median, [least, most] of the rounds. "of copying": the same with the target copied into memory of its own,
  where a result that did not exist before has to be; what the Auto class loads stays mapped from its file.
- process: seconds of a new interpreter, imports and all, that resizes; "of both": over those of one that loads and
  touches the source and the target.
- anonymous: most anonymous memory over that before the call (RssAnon every 5 ms), and what of it is over the result's
  own bytes. max RSS also counts mapped pages of files and all libraries.
- floor: reading the source and writing the target once at the bandwidth of `Tensor.copy_`; "to it": ours over that.
- sums: multiply-adds of the shortest low-pass (Haar) of all resampled tensors, one axis after the other, and ours over
  what they take at the rate of a 1024 x 1024 matrix product.
- products: multiply-adds of all matrix products, counted in a run of its own, and ours over what they take at the
  rate of a 1024 x 1024 product by the same code. drawn: random numbers, counted likewise.
- faults: seconds that the pages of memory which were handed out or mapped meanwhile take at what one costs here.
- Shrinking, "default" also turns the residual stream to its principal part (GPT-2, ViT, DeiT) and puts similar units
  next to each other first; "plain" is `basis="plain", order="kept"`. Growing, "default" fills some detail bands with
  noise; "detail zero" leaves them empty.
"""

HEAD = [
    "pair",
    "options",
    "wall, s",
    "of loading",
    "of copying",
    "process, s",
    "of both",
    "CPU, s",
    "of loading's",
    "anonymous, MiB",
    "over result, MiB",
    "max RSS, MiB",
    "floor, s",
    "to it",
    "sums, 1e9",
    "to them",
    "products, 1e9",
    "to them",
    "drawn, 1e6",
    "faults, s",
]


def totals(case: dict[str, Any], field: str, target: str = "load target") -> list[float]:
    """Round by round: loading the source plus loading the target."""
    pairs = zip(case["costs"]["load source"], case["costs"][target], strict=True)
    return [source[field] + target[field] for source, target in pairs]


def ratios(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options -> wall, process and CPU over loading's, and the anonymous peak less the result's bytes."""
    found = {}
    for label in case["options"]:
        rounds = case["costs"][label]
        wall, cpu = (ratio([r[f] for r in rounds], totals(case, f)) for f in ("wall", "cpu"))
        copied = ratio([r["wall"] for r in rounds], totals(case, "wall", "load target, copied"))
        over = spread([r["anonymous_peak"] - r["bytes"] for r in rounds]).median
        process = case["processes"][label]
        both = ratio(process, case["processes"]["load both"])
        found[label] = {"wall": wall, "copied": copied, "process": spread(process), "both": both, "cpu": cpu}
        found[label]["over"] = over
    return found


def floors(case: dict[str, Any]) -> tuple[float, float]:
    """Seconds for the bytes at the bandwidth of the copy, and for the sums at torch's rate of a product."""
    moved = case["source_bytes"] + case["target_bytes"]
    copy, matmul = (spread(case["machine"][name]).median for name in ("copy", "matmul"))
    return floor_seconds(moved, COPY_MOVES, copy), floor_seconds(case["multiply_adds"], 1024**3, matmul)


def rows(data: dict[str, Any]) -> list[list[str]]:
    made = []
    for key, case in data["cases"].items():
        found, (moving, adding) = ratios(case), floors(case)
        loading = spread(case["processes"]["load both"])
        made.append([key, "load both", "", "", "", str(loading), *[""] * (len(HEAD) - 6)])
        for label in case["costs"]:
            rounds = case["costs"][label]
            wall, cpu, peak, rss = (_of(rounds, f) for f in ("wall", "cpu", "anonymous_peak", "rss_peak"))
            compared = ["", "", "", "", ""]
            ends = [""] * 7
            if label in found:
                compared = [str(found[label][name]) for name in ("wall", "copied", "process", "both", "cpu")]
                ends = [short(moving), short(wall.median / moving), short(case["multiply_adds"] / 1e9)]
                ends += [_over(wall.median, adding), *_operations(case, label, wall.median)]
            over = spread([r["anonymous_peak"] - r["bytes"] for r in rounds]).median
            cells = [key, label, str(wall), *compared[:4], str(cpu), compared[4]]
            paged = _of(rounds, "faults").median * spread(case["machine"]["fault"]).median
            made.append([*cells, _mebi(peak.median), _mebi(over), _mebi(rss.median), *ends, short(paged)])
    return made


def _operations(case: dict[str, Any], label: str, wall: float) -> list[str]:
    """Multiply-adds of products, the call over what they take at the rate of ours, and random numbers."""
    done = case["operations"][label]
    taken = floor_seconds(done["products"], 1024**3, spread(case["machine"]["product"]).median)
    return [short(done["products"] / 1e9), _over(wall, taken), short(done["drawn"] / 1e6)]


def _over(seconds: float, floor: float) -> str:
    return short(seconds / floor) if floor else ""


def _of(rounds: list[dict[str, float]], field: str) -> Spread:
    return spread([r[field] for r in rounds])


def _mebi(value: float) -> str:
    return f"{value / 2**20:.0f}"
