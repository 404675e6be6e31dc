"""`transformers-bot suggest`: propose valid sizes near a wish, and print the command for the best of them."""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..console.tables import table
from ..console.text import size
from .options import add_adapter, add_head, add_hub, add_source, hub_keywords, number, read_adapters, target
from .terminal import fill, say, width

if TYPE_CHECKING:
    from ..tools.suggesting import Suggestion

HEADING = ("parameters", "off", "weights", "FLOPs", "kept")

LEGEND = "off: from the wish; FLOPs: per token, as a multiple of the source's; kept: of the source's parameters."
TRAIN = " A model that keeps less than 100 % must be trained before use."


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "suggest",
        usage="transformers-bot suggest SOURCE\n"
        "       (--params N | --ratio R | --memory SIZE | --like MODEL) [options]",
        help="propose valid sizes near a number of parameters, a share, or another model",
        description="Propose valid target sizes: heads divide the width and stay as wide as they are, the MLP keeps "
        "its proportion, width and depth both shrink or both grow. Every width gets the depth that comes nearest to "
        "the wish. Sizes within 5 % of the wish come first, then those within 15 and 30 %; among equally near ones, "
        "those that merge least. Only the config.json of the source is read.",
        epilog="examples:\n"
        "  transformers-bot suggest gpt2 --params 60M\n"
        "  transformers-bot suggest gpt2 --memory 200MB --dtype bfloat16\n"
        "  transformers-bot suggest bert-base-uncased --like bert-small",
    )
    add_source(parser)
    add_head(parser)
    wish = parser.add_mutually_exclusive_group(required=True)
    wish.add_argument("--params", metavar="N", help="the number of parameters of the result, such as 60M or 1.5B")
    wish.add_argument("--ratio", metavar="R", help="parameters as a share of the source's, such as 0.5, 50%% or 1/2")
    wish.add_argument("--memory", metavar="SIZE", help="the most memory for the weights, such as 200MB or 1.5GiB")
    wish.add_argument(
        "--like",
        metavar="MODEL",
        help="layers, width and MLP of another model: a ready config such as bert-small, a folder, or a Hub id",
    )
    parser.add_argument("--dtype", metavar="TYPE", help="dtype of the result, for its bytes (default: the source's)")
    count = number(int, "how many sizes to propose is a whole number such as 5")
    parser.add_argument("--count", metavar="N", type=count, default=5, help="how many at most (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the proposals as JSON on standard output")
    add_hub(parser)
    add_adapter(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..tools.suggesting import suggest

    read_adapters(args)
    wishes = {name: getattr(args, name) for name in ("params", "ratio", "memory", "dtype", "count", "task")}
    wishes["like"] = args.like and target(args.like, {})
    suggestions = suggest(args.source, **wishes, **hub_keywords(args))
    if args.json:
        say(json.dumps([suggestion.to_dict() for suggestion in suggestions], indent=2))
        return 0
    columns = width()
    header = ("", *suggestions.columns, *HEADING)
    numbered = list(enumerate(suggestions, 1))
    rows = [header, *(_row(number, suggestion, suggestions.columns) for number, suggestion in numbered)]
    notes = [
        fill(f"{number:>2}  {'; '.join(suggestion.notes)}", columns, hang=" " * 4) for number, suggestion in numbered
    ]
    warning = TRAIN if any(suggestion.kept < 1 for suggestion in suggestions) else ""
    legend = f"{LEGEND}{warning} The first one is made by"
    lines = [
        *table(rows, columns, right=range(len(header))),
        "",
        *notes,
        "",
        fill(legend, columns),
        *_command(args, suggestions[0], suggestions.shape),
    ]
    say("\n".join(lines))
    return 0


def _row(number: int, suggestion: "Suggestion", roles: Sequence[str]) -> tuple[str, ...]:
    sizes = (str(suggestion.sizes[role]) for role in roles)
    return (
        str(number),
        *sizes,
        _short(suggestion.parameters),
        f"{100 * suggestion.off:+.1f} %",
        size(suggestion.bytes),
        f"{suggestion.flops:.2f}x",
        f"{100 * suggestion.kept:.{0 if suggestion.kept >= 0.1 else 1}f} %",
    )


def _short(count: int) -> str:
    """A number of parameters in three or four digits, such as 60.9M."""
    for unit, unit_size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= unit_size:
            return f"{count / unit_size:.{1 if count < 1000 * unit_size else 0}f}{unit}"
    return str(count)


def _command(args: argparse.Namespace, best: "Suggestion", shape: tuple[str, str]) -> list[str]:
    """The shell command for a suggestion, broken after the folders."""
    name = PurePath(args.source.rstrip("/")).name or "model"
    out = f"{name}-{'x'.join(str(best.sizes[role]) for role in shape)}"
    options = [f"--set {field}={json.dumps(value)}" for field, value in best.fields.items()]
    options += [f"--{name} {shlex.quote(value)}" for name, value in hub_keywords(args).items()]
    options += [f"--task {args.task}"] if args.task else []
    options += [f"--dtype {shlex.quote(args.dtype)}"] if args.dtype else []
    options += [f"--adapter {shlex.quote(path)}" for path in args.adapter]
    places = [shlex.quote(args.source), shlex.quote(out)]
    line = f"  transformers-bot resize {' '.join(places)} \\"
    if len(line) > width():
        return [f"  transformers-bot resize {places[0]} \\", f"    {places[1]} \\", f"    {' '.join(options)}"]
    return [line, f"    {' '.join(options)}"]
