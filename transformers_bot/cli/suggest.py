"""`transformers-bot suggest`: valid sizes near what is asked for, and the command that makes the best of them."""

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

LEGEND = "off: from what was asked; FLOPs: of a token, beside the source's; kept: of the source's parameters."
TRAIN = " What keeps less than all has lost the rest and must be trained before use."


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "suggest",
        usage="transformers-bot suggest SOURCE\n"
        "       (--params N | --ratio R | --memory SIZE | --like MODEL) [options]",
        help="propose valid sizes near a number of parameters, a share, or another model",
        description="Propose valid target sizes: heads divide the width and stay as wide as they are, the MLP keeps "
        "its proportion, width and depth both shrink or both grow. Every width has the depth that comes nearest. "
        "What is within 5 % of the wish comes first, then within 15 and 30 %; of equally near ones those for which "
        "least has to be merged. Only the config.json of the source is read.",
        epilog="examples:\n"
        "  transformers-bot suggest gpt2 --params 60M\n"
        "  transformers-bot suggest gpt2 --memory 200MB --dtype bfloat16\n"
        "  transformers-bot suggest bert-base-uncased --like bert-small",
    )
    add_source(parser)
    add_head(parser)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--params", metavar="N", help="how many parameters the result shall have, such as 60M or 1.5B")
    asked.add_argument("--ratio", metavar="R", help="parameters beside the source's, such as 0.5, 50%% or 1/2")
    asked.add_argument("--memory", metavar="SIZE", help="the most that the weights may take, such as 200MB or 1.5GiB")
    asked.add_argument(
        "--like",
        metavar="MODEL",
        help="layers, width and MLP of another model: a ready config such as bert-small, a folder, or a Hub id",
    )
    parser.add_argument("--dtype", metavar="TYPE", help="of the result, for its bytes (default: the source's)")
    count = number(int, "how many sizes to propose is a whole number such as 5")
    parser.add_argument("--count", metavar="N", type=count, default=5, help="how many at most (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the proposals as JSON on standard output")
    add_hub(parser)
    add_adapter(parser)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    from ..tools.suggesting import suggest

    read_adapters(chosen)
    asked = {name: getattr(chosen, name) for name in ("params", "ratio", "memory", "dtype", "count", "task")}
    asked["like"] = chosen.like and target(chosen.like, {})
    found = suggest(chosen.source, **asked, **hub_keywords(chosen))
    if chosen.json:
        say(json.dumps([one.to_dict() for one in found], indent=2))
        return 0
    columns = width()
    head = ("", *found.columns, *HEADING)
    rows = [head, *(_row(number, one, found.columns) for number, one in enumerate(found, 1))]
    notes = [fill(f"{number:>2}  {'; '.join(one.notes)}", columns, hang=" " * 4) for number, one in enumerate(found, 1)]
    legend = f"{LEGEND}{TRAIN if any(one.kept < 1 for one in found) else ''} The first one is made by"
    lines = [
        *table(rows, columns, right=range(len(head))),
        "",
        *notes,
        "",
        fill(legend, columns),
        *_command(chosen, found[0]),
    ]
    say("\n".join(lines))
    return 0


def _row(number: int, one: "Suggestion", roles: Sequence[str]) -> tuple[str, ...]:
    sizes = (str(one.sizes[role]) for role in roles)
    return (
        str(number),
        *sizes,
        _short(one.parameters),
        f"{100 * one.off:+.1f} %",
        size(one.bytes),
        f"{one.flops:.2f}x",
        f"{100 * one.kept:.{0 if one.kept >= 0.1 else 1}f} %",
    )


def _short(count: int) -> str:
    """A number of parameters in three or four digits: 60.9M."""
    for unit, unit_size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= unit_size:
            return f"{count / unit_size:.{1 if count < 1000 * unit_size else 0}f}{unit}"
    return str(count)


def _command(chosen: argparse.Namespace, best: "Suggestion") -> list[str]:
    """The line for the shell, broken after the folders."""
    name = PurePath(chosen.source.rstrip("/")).name or "model"
    layers, stream = list(best.fields.values())[:2]  # as `suggest` gives them
    out = f"{name}-{layers}x{stream}"
    words = [f"--set {field}={json.dumps(value)}" for field, value in best.fields.items()]
    words += [f"--{name} {shlex.quote(value)}" for name, value in hub_keywords(chosen).items()]
    words += [f"--task {chosen.task}"] if chosen.task else []
    words += [f"--dtype {shlex.quote(chosen.dtype)}"] if chosen.dtype else []
    words += [f"--adapter {shlex.quote(path)}" for path in chosen.adapter]
    places = [shlex.quote(chosen.source), shlex.quote(out)]
    first = f"  transformers-bot resize {' '.join(places)} \\"
    if len(first) > width():
        return [f"  transformers-bot resize {places[0]} \\", f"    {places[1]} \\", f"    {' '.join(words)}"]
    return [first, f"    {' '.join(words)}"]
