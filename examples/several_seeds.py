"""One run, or the same run with several seeds and the mean and spread of its metrics."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import training
from accelerate import PartialState
from recipes import Recipes

from transformers_bot.errors import BadOption

Summary = dict[str, Any]


def add_seeds(parser: argparse.ArgumentParser) -> None:
    training.add(parser, "seeds", metavar="N,N,...", help="run once with each of these seeds, in folders seed-N of "
        "--output-dir, and write the mean and spread into its summary.json (the paper: 5 runs)")  # fmt: skip


def run_seeds(
    parser: argparse.ArgumentParser, presets: Recipes, once: Callable[[argparse.Namespace], Summary]
) -> Summary:
    """What `once` returns for the parsed options; with --seeds the metrics of all of its runs.

    Returns:
        The summary of the run, or a dict with `seeds`, `mean`, `spread` (the standard deviation with
        n - 1, 0 for one seed) and `runs`, the metrics of each run.
    """
    call = parser.parse_known_args()[0]
    if call.seeds is None:
        return once(training.parse(parser, presets))
    try:
        seeds = [int(seed) for seed in call.seeds.split(",")]
    except ValueError as error:
        raise BadOption(f"--seeds {call.seeds!r} is not a list of whole numbers such as 0,1,2.") from error
    folder, runs = Path(call.output_dir), []
    for seed in seeds:
        # Parse again for each run, because a run changes its TrainingArguments.
        own_arguments = ["--seed", str(seed), "--output-dir", str(folder / f"seed-{seed}")]
        runs.append(once(training.parse(parser, presets, [*sys.argv[1:], *own_arguments]))["metrics"])
    values = {name: [run[name] for run in runs] for name in runs[0]}
    result = {
        "seeds": seeds,
        "mean": {name: statistics.fmean(each) for name, each in values.items()},
        "spread": {name: statistics.stdev(each) if len(each) > 1 else 0.0 for name, each in values.items()},
        "runs": runs,
    }
    if PartialState().is_main_process:
        training.write_whole(folder / "summary.json", json.dumps(result, indent=2) + "\n")
    return result
