"""`transformers-bot adapters`: list the supported architectures; check that an adapter fits its models."""

import argparse
import json
import os
from typing import Any

from .. import errors
from ..console.tables import table
from .terminal import fill, say, shown, width

MISFIT = 4
MANY = 12  # the most problems that are printed


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "adapters",
        usage="transformers-bot adapters [--json]\n       transformers-bot adapters check ADAPTER [--model MODEL]",
        help="list the supported architectures, or check an adapter of your own",
        description="List the architectures that can be resized and their model classes. `adapters check` tells "
        "whether an adapter, built in or your own, fits the models of its type.",
        epilog="examples:\n"
        "  transformers-bot adapters\n"
        "  transformers-bot adapters check bert\n"
        "  transformers-bot adapters check my_adapter.py --model me/my-model\n"
        "How to write one is in docs/adapters.md.",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON on standard output")
    parser.set_defaults(run=run_list)
    inner = parser.add_subparsers(title="commands", metavar="COMMAND")
    check = inner.add_parser(
        "check",
        usage="transformers-bot adapters check ADAPTER [--model MODEL] [--json]",
        help="compare an adapter with the tensors of its models",
        description="Compare an adapter's rules with the tensors of every model class of its type: each must be named "
        "by one rule and have the shape that it predicts, at the model's sizes and at others. Then tiny models with "
        "random weights are run to see that every axis has the right role. No weights are read. WARNING: a file that "
        "is given as ADAPTER is run as Python code, so name only files that you trust.",
        epilog="Exit codes: 0 nothing was found, 4 the adapter does not fit.\n"
        "examples:\n"
        "  transformers-bot adapters check gpt2\n"
        "  transformers-bot adapters check distilbert.py --model distilbert-base-uncased",
    )
    check.add_argument(
        "adapter_name", metavar="ADAPTER", help="a .py file that defines an adapter, or a built-in model type"
    )
    check.add_argument(
        "--model",
        metavar="MODEL",
        help="the model whose config is used: a Hub id, a folder or a config.json; default: the type's default config",
    )
    check.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    check.set_defaults(run=run_check, adapter=[])


def run_list(args: argparse.Namespace) -> int:
    from ..architectures import ADAPTERS
    from ..tools.conformance.check import class_names

    facts = {name: (adapter.norm, class_names(name)) for name, adapter in ADAPTERS.items()}
    if args.json:
        say(json.dumps({name: {"norm": norm, "classes": names} for name, (norm, names) in facts.items()}, indent=2))
        return 0
    rows = [(name, f"{norm}-norm", ", ".join(names)) for name, (norm, names) in facts.items()]
    say("\n".join(table([("model type", "blocks", "model classes"), *rows], width())))
    return 0


def run_check(args: argparse.Namespace) -> int:
    from ..tools.conformance.check import check

    adapter = _adapter(args.adapter_name)
    result = check(adapter, _config(args.model, adapter.model_type))
    if args.json:
        facts = {"model_type": adapter.model_type, **vars(result)}
        say(json.dumps(facts, indent=2))
        return MISFIT if result.problems else 0
    columns = width()
    lines = [
        f"{adapter.model_type}: {len(adapter.rules)} rules, {len(result.classes)} classes, {result.tensors} tensors"
    ]
    lines += [fill(f"compared: {', '.join(result.classes)}", columns, hang="  ")]
    lines += [fill(f"run:      {', '.join(result.run)}", columns, hang="  ")] if result.run else []
    lines += [fill(f"tried:    {told}", columns, hang="  ") for told in result.attempts()]
    lines += [fill(f"COULD NOT RUN {shown(told)}", columns, hang="  ") for told in result.failures()]
    lines += [fill(f"note: {shown(note)}", columns, hang="  ") for note in result.notes]
    lines += [fill(f"problem: {shown(problem)}", columns, hang="  ") for problem in result.problems[:MANY]]
    if len(result.problems) > MANY:
        lines.append(f"... and {len(result.problems) - MANY} more problems (--json lists all)")
    count = len(result.problems)
    missing = f" {len(result.not_run)} of its classes could not be run, see above." if result.not_run else ""
    fits = f"The adapter fits.{missing}"
    lines.append(fits if not count else f"The adapter does not fit: {count} problem{'s' * (count > 1)}.")
    say("\n".join(lines))
    return MISFIT if result.problems else 0


def _adapter(name: str) -> Any:
    from ..architectures import ADAPTERS, get, load, validate

    if name in ADAPTERS and not os.path.isfile(name):
        return get(name)
    if not name.endswith(".py"):
        hint = errors.suggest(name, ADAPTERS)
        raise errors.BadOption(f"{name!r} is neither a .py file nor a known model type ({', '.join(ADAPTERS)}).{hint}")
    adapters = load(name)
    if len(adapters) > 1:
        types = ", ".join(repr(adapter.model_type) for adapter in adapters)
        raise errors.BadOption(f"{name} defines adapters for {types}; check them in files of their own.")
    validate(adapters[0])
    return adapters[0]


def _config(model: str | None, model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    if model is None or (model == model_type and not os.path.exists(model)):
        return CONFIG_MAPPING[model_type]()
    from ..request.request import named_config

    return named_config(model)
