"""The command line: which parts run, with which settings, and where their results go."""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"
PARTS = {"kernel": "speed_kernel", "end-to-end": "speed_end_to_end", "scale": "speed_scale", "imports": "speed_imports"}
GPU = {"gpu": "speed_gpu"}
REPEATS = {"kernel": 5, "end-to-end": 3, "scale": 3, "imports": 5, "gpu": 5}


@dataclass(frozen=True)
class Options:
    """The options of a part."""

    quick: bool = False
    repeats: int = 1
    device: str = "cpu"
    only: tuple[str, ...] = ()
    resume: bool = False
    full: bool = False
    work: Path | None = None
    keep: bool = False

    def wants(self, key: str) -> bool:
        """Whether a case is measured: with --only, those whose key holds one of its words."""
        return not self.only or any(text in key for text in self.only)


def main(argv: list[str], description: str | None = None) -> int:
    args = _parser(description).parse_args(argv)
    out = args.out.resolve()
    if args.part == "table":
        return redraw(out)
    if args.device and args.part not in ("kernel", "gpu"):
        print(f"run.py: --device is for kernel and gpu; {args.part} runs on the CPU. Leave it out.", file=sys.stderr)
        return 2
    if args.threads:  # before torch is imported, here and in the processes to come
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    device = args.device or ("cuda" if args.part in GPU else "cpu")
    if device not in ("cpu", "cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))) or (
        device == "cuda" and not torch.cuda.is_available()
    ):
        print(f"run.py: torch finds no {device} here; --device cpu runs the same path on the CPU.", file=sys.stderr)
        return 2
    args.device = device
    return _measure_all(list(PARTS) if args.part == "all" else [args.part], args, out)


def _measure_all(chosen: list[str], args: argparse.Namespace, out: Path) -> int:
    failures: list[str] = []
    measured = 0
    try:
        for part in chosen:
            wrong, count = measure(part, args, out)
            failures += wrong
            measured += count
    except KeyboardInterrupt:
        print("run.py: interrupted; what is done is kept, and --resume goes on there.", file=sys.stderr)
        return 130
    if args.only and not measured and not failures and not args.resume:
        print(f"run.py: no case of {', '.join(chosen)} has {' or '.join(args.only)} in its name.", file=sys.stderr)
        return 2
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def measure(part: str, args: argparse.Namespace, out: Path) -> tuple[list[str], int]:
    """Run one part and write its JSON and table; return its failures and the number of measured cases."""
    from speed_store import SpeedStore

    fields = ("quick", "device", "resume", "full", "work", "keep")
    chosen = {name: getattr(args, name) for name in fields}
    repeats = args.repeats or (1 if args.quick else REPEATS[part])
    options = Options(repeats=repeats, only=tuple(args.only or ()), **chosen)
    settings = {"quick": args.quick, "repeats": repeats, "device": args.device, "full": args.full}
    path = result_path(out, part, args.quick, args.device)
    store = SpeedStore(path, part, settings, keep=bool(args.only) or args.resume)
    start = time.perf_counter()
    failures: list[str] = importlib.import_module((PARTS | GPU)[part]).run(store, options, _say)
    if store.measured:
        draw(path)
    _say(f"{part}: {(time.perf_counter() - start) / 60:.1f} minutes, {path}")
    return failures, store.measured


def result_path(out: Path, part: str, quick: bool, device: str) -> Path:
    """The path of a part's results; quick results, and those of another device, have names of their own."""
    own = "cuda" if part in GPU else "cpu"
    return out / f"speed-{part}{'' if device == own else f'-{device}'}{'-quick' if quick else ''}.json"


def draw(path: Path) -> Path:
    """Write the table of a JSON beside it."""
    from speed_tables import markdown

    table = path.with_suffix(".md")
    table.write_text(markdown(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    return table


def redraw(out: Path) -> int:
    """Write the tables of all results in a folder."""
    found = sorted(out.glob("speed-*.json"))
    if not found:
        print(f"run.py: no speed-*.json in {out}; run a part first.", file=sys.stderr)
        return 2
    for path in found:
        print(f"wrote {draw(path)}")
    return 0


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    temporary = Path(tempfile.gettempdir()) / "transformers-bot-speed"
    parser.add_argument("part", choices=[*PARTS, *GPU, "all", "table"], nargs="?", default="all")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round; results are named ...-quick")
    parser.add_argument(
        "--repeats", type=_positive, help="rounds (default: 5, of end-to-end and scale 3; 1 with --quick)"
    )
    parser.add_argument("--device", help="of kernel (default: cpu) and gpu (default: cuda)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only cases whose name has TEXT; others stay")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    parser.add_argument(
        "--full",
        action="store_true",
        help="also what takes long: ptwt with long filters, scale with the default options",
    )
    parser.add_argument("--work", type=Path, default=temporary, help="folder for checkpoints made on the fly")
    parser.add_argument("--keep", action="store_true", help="keep these checkpoints for the next run")
    parser.add_argument("--threads", type=_positive, help="of torch (default: torch's own)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a whole number of at least 1, got {text!r}")
    return int(text)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
