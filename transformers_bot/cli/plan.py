"""`transformers-bot plan`: show what a resize would do to every tensor."""

import argparse
import json
from dataclasses import replace
from typing import Any

from .options import (
    FIELDS,
    add_adapter,
    add_calibration,
    add_hub,
    add_method,
    add_source,
    add_target,
    planner,
    read_adapters,
    required,
    settings,
)
from .terminal import has_width, in_options, say, width


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        usage="transformers-bot plan SOURCE [--set FIELD=VALUE] [options]",
        help="show what a resize would do to every tensor, without reading weights",
        description="Show what a resize would do to every tensor of a model. Only the config.json of the source is "
        "read (and, for a folder whose config.json names no class, the names of its tensors), so this is quick and "
        f"downloads no weights. {FIELDS}",
        epilog="examples:\n"
        "  transformers-bot plan gpt2 --set n_layer=6 --set n_embd=384 --set n_head=6\n"
        "  transformers-bot plan google-bert/bert-base-uncased --config bert-small\n"
        "  transformers-bot plan --recipe small.yaml --json",
    )
    add_source(parser, optional=True)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON on standard output")
    add_target(parser)
    add_method(parser)
    add_calibration(parser, "SOURCE")
    add_hub(parser)
    add_adapter(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..learned.batches import find_files
    from ..planning.render import render

    read_adapters(args)
    recipe = settings(args)
    source = required(recipe, "source")
    if "calibration" in recipe:
        recipe["calibration"] = find_files(recipe["calibration"])
    keywords = {name: value for name, value in recipe.items() if name in PLANNED}
    plan = planner(recipe.get("task"))(source, **keywords)
    shown_plan = replace(plan, warnings=tuple(map(in_options, plan.warnings)))
    say(json.dumps(plan.to_dict(), indent=2) if args.json else render(shown_plan, width() if has_width() else None))
    return 0


# The settings that a plan depends on.
PLANNED = (
    *("config", "bot_config", "method", "dtype", "ignore_mismatched_sizes", "calibration"),
    *("strict", "nonfinite", "allow_pickle", "vocab_keep"),
    *("revision", "subfolder", "variant"),
)
