"""`transformers-bot methods`: every method, when to choose it, its options and the directions it accepts."""

import argparse
import dataclasses
import inspect
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from .. import errors
from ..console.tables import table
from .options import add_method_file, meaning_of, options_of_method
from .terminal import fill, option, say, width

if TYPE_CHECKING:
    from ..architectures.adapter import Adapter, Roles

# One example task for each direction, from BASE to these numbers of layers and heads.
MULTIPLES = "wider (whole multiples)"
BASE = (4, 4)
DIRECTIONS = {"wider": (4, 6), MULTIPLES: (4, 8), "deeper": (8, 4), "narrower": (4, 3), "shallower": (2, 4)}
EXAMPLE: dict[str, int] = {"entry": 16, "frequency": 8, "place": 16, "grid": 4, "pixel": 4, "identity": 50}


@dataclasses.dataclass(frozen=True)
class About:
    """The description of a method.

    Attributes:
        name: of the method.
        directions: what it makes of a model, of `DIRECTIONS`.
        what: one sentence on what it does.
        source: the paper.
        text: what it does and when to choose it.
        options: names of its options.
    """

    name: str
    directions: tuple[str, ...]
    what: str
    source: str
    text: str
    options: tuple[str, ...]


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "methods",
        usage="transformers-bot methods [NAME] [--json]",
        help="list the resizing methods, or explain one",
        description="List the resizing methods: the directions in which each works, what it does, and its paper. "
        "With NAME, explain that one and its options. Two can be combined, widths from the first and depth from the "
        "second: --method tile+stack.",
        epilog="examples:\n  transformers-bot methods\n  transformers-bot methods lemon",
    )
    add_method_file(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the method to explain")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..methods import METHODS

    if args.name is not None and args.name not in METHODS:
        hint = errors.suggest(args.name, METHODS)
        raise errors.BadOption(f"unknown method {args.name!r}; known methods are {', '.join(METHODS)}.{hint}")
    methods = [about(name) for name in METHODS if args.name in (None, name)]
    if args.json:
        say(json.dumps([dataclasses.asdict(method) for method in methods], indent=2))
    elif args.name:
        say(_explained(methods[0], width()))
    else:
        rows = [(method.name, _in_short(method.directions), _short(method)) for method in methods]
        note = fill("* at whole multiples only. `transformers-bot methods NAME` explains one.", width())
        say("\n".join([*table([("method", "makes models", "what it does"), *rows], width()), "", note]))
    return 0


def about(name: str) -> About:
    """The description of a method: from its module's docstring, and from the example tasks that it accepts."""
    from ..methods import METHODS
    from ..methods.base import option_names

    method: Any = METHODS[name]
    module = sys.modules.get(method.__module__)
    described = module if module is not None and module.__name__ != "__main__" else method
    text = inspect.cleandoc(described.__doc__ or "It says nothing of itself.")  # not what a base class says
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    source = next((part.removeprefix("Source: ") for part in paragraphs if part.startswith("Source: ")), "")
    # A docstring may begin with the method's name and a colon.
    own = paragraphs[0].partition(": ")[2] or paragraphs[0]
    advice = method.advice if isinstance(getattr(method, "advice", ""), str) else ""
    first_sentence = re.split(r"(?<=[.])\s", advice)[0] if advice else own
    summary = first_sentence.rstrip(".:")
    summary = summary[:1].upper() + summary[1:]
    rest = [part for part in paragraphs[1:] if not part.startswith("Source: ")]
    advice = advice or " ".join([f"{summary}.", *rest])
    return About(name, _directions(name), summary, source, advice, option_names(method))


def _directions(name: str) -> tuple[str, ...]:
    """The directions whose example task the method accepts, for at least one known architecture."""
    from ..architectures import ADAPTERS
    from ..methods import Linear, Task, get, options_of

    def accepts(adapter: "Adapter", sizes: tuple[int, int]) -> bool:
        task = Task(adapter, _lengths(adapter.roles, *BASE), _lengths(adapter.roles, *sizes), True)
        method = get(name, options_of(name, None))
        if task.changes("depth") and getattr(type(method), "depth", None) is Linear.depth:
            return False  # it has a rule for widths alone
        if task.changes("stream", "unit") and getattr(type(method), "pair", None) is Linear.pair:
            return False
        try:
            method.check(task)
        except errors.BadOption:
            return False
        return True

    accepted = [
        direction for direction, sizes in DIRECTIONS.items() if any(accepts(a, sizes) for a in ADAPTERS.values())
    ]
    return tuple(direction for direction in accepted if not (direction == MULTIPLES and "wider" in accepted))


def _lengths(roles: "Roles", layers: int, heads: int) -> dict[str, int | None]:
    """The length of every role in a small model."""
    width = heads * EXAMPLE["entry"]
    kinds = {**EXAMPLE, "depth": layers, "stream": width}
    units = {unit: heads if roles.is_whole(unit) else 4 * width for unit in roles.leading("unit")}
    return {role: units.get(roles.leader(role)) or kinds[roles.kind(roles.leader(role))] for role in roles}


def _short(method: About) -> str:
    papers = ", ".join(re.findall(r"(?:arXiv )?\d{4}\.\d{4,5}", method.source))
    authors = re.match(r"[A-Z][\w-]+ et al\.", method.source)
    reference = ", ".join(part for part in (authors[0] if authors else "", papers) if part)
    return f"{method.what}. {reference}".rstrip()


def _in_short(directions: tuple[str, ...]) -> str:
    """Directions for a narrow column; a star: the width grows to whole multiples only."""
    if {"wider", "deeper", "narrower", "shallower"} <= set(directions):
        return "any size"
    return " ".join("wider*" if direction == MULTIPLES else direction for direction in directions)


def _explained(method: About, columns: int) -> str:
    lines = [f"{method.name}: makes models {', '.join(method.directions)}", "", fill(method.text, columns), ""]
    lines += [fill(f"Source: {method.source}", columns), ""] if method.source else []
    if not method.options:
        return "\n".join([*lines, "It has no options."])
    lines.append("Options:")
    fields = options_of_method(method.name)
    for name in method.options:
        lines.append(fill(f"{option(name):<15} {meaning_of(fields[name])}", columns, "  ", " " * 18))
    return "\n".join(lines)
