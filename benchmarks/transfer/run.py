"""Methods of resizing side by side: savings in training FLOPs against training from scratch.

    python benchmarks/transfer/run.py cpu                      # the suite in suites/cpu.yaml
    python benchmarks/transfer/run.py cpu --only gpt2-shrink   # one of its settings
    python benchmarks/transfer/run.py cpu --steps 2            # every run cut to two steps, to see that all work
    python benchmarks/transfer/run.py gpu-bert --tiny          # models, data and steps cut, where sources are trained

Results go to benchmarks/results/transfer-SUITE.json after every run, with a table (.md) and plots beside them at
the end; an interrupted suite continues where it stopped, and an entry that was changed in the YAML runs again. Most
settings need the research data beside the repository (`../shared/data`, --data or TRANSFORMERS_BOT_DATA).
Exit status: 0 all ran (a method that cannot do a direction is a result), 1 some run failed, 2 a mistake in the call.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jobs
import report
import suite as suites
import torch
import transformers
from building import Places
from huggingface_hub import constants
from store import FAILED, Store
from task import MissingData
from tiny import at_tiny_sizes

import transformers_bot

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    path = Path(args.suite) if args.suite.endswith(".yaml") else HERE / "suites" / f"{args.suite}.yaml"
    try:
        suite = suites.load(path)
        suite = at_tiny_sizes(suite) if args.tiny else suite
        suite = suites.shortened(suite, args.steps) if args.steps is not None else suite
        settings = _selected(suite, args.only)
    except (suites.BadSuite, FileNotFoundError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    places = Places(args.data.resolve(), args.cache.resolve(), args.device)
    workers = args.workers or (1 if args.device == "cuda" else os.cpu_count() or 1)
    out = args.out or ROOT / "benchmarks" / "results" / f"transfer-{suite.name}.json"
    start = time.perf_counter()
    try:
        with jobs.pool_of(workers, args.threads) as pool:
            jobs.prepare(settings, places, pool, _say)
            if args.sources:
                return 0
            store = Store(out, args.device)
            store.begin(suite, facts(args.device))
            jobs.work(settings, store, places, pool, workers, _say)
    except MissingData as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"run.py: interrupted; the same command goes on where {out} stops.", file=sys.stderr)
        return 130
    _say(f"{(time.perf_counter() - start) / 60:.1f} minutes")
    report.write(store)
    ours = {run.key for run in suites.possible_runs(suite) if run.setting in settings}
    failures = [o for key, o in store.data["runs"].items() if key in ours and o["status"] == FAILED]
    for outcome in failures:
        print(f"failed: {outcome['run']}: {outcome['reason']}", file=sys.stderr)
    return 1 if failures else 0


def facts(device: str) -> dict[str, Any]:
    """The machine, versions and date of the figures."""
    machine = f"{os.cpu_count()} cores, {platform.machine()} CPU"
    if device == "cuda":
        machine += f", {torch.cuda.get_device_name()}"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "transformers_bot": transformers_bot.__version__,
    }
    return {"machine": machine, "versions": versions, "date": datetime.date.today().isoformat()}


def _selected(suite: suites.Suite, only: list[str] | None) -> list[suites.Setting]:
    names = [setting.name for setting in suite.settings]
    unknown = [name for name in only or [] if name not in names]
    if unknown:
        raise suites.BadSuite(f"no setting {', '.join(unknown)} in {suite.name}; it has {', '.join(names)}.")
    return [setting for setting in suite.settings if not only or setting.name in only]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("TRANSFORMERS_BOT_DATA", ROOT.parent / "shared" / "data")
    cache = Path(constants.HF_HOME).expanduser() / "transformers_bot" / "benchmarks"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("suite", help="a name under suites/, or the path of a .yaml file")
    parser.add_argument("--only", action="append", metavar="SETTING", help="this setting only; may be repeated")
    parser.add_argument("--workers", type=int, help="runs at a time (default: number of cores; 1 with cuda)")
    parser.add_argument("--threads", type=int, default=1, help="threads a run (default: 1)")
    parser.add_argument("--device", default=device, help=f"default here: {device}")
    parser.add_argument("--data", type=Path, default=data, help="folder of the research data")
    parser.add_argument("--cache", type=Path, default=cache, help="trained sources and token ids are kept here")
    parser.add_argument("--out", type=Path, help="the JSON file to write or go on with")
    parser.add_argument("--steps", type=int, help="cut every training to so many steps")
    parser.add_argument("--tiny", action="store_true", help="cut models, data and steps, to see that all of it runs")
    parser.add_argument("--sources", action="store_true", help="train the sources and stop")
    return parser


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
