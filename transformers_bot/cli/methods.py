"""`transformers-bot methods`: every method, when to choose it, its options, and what it accepts when asked."""

import argparse
import dataclasses
import inspect
import json
import re
import sys
from typing import Any

from .. import errors
from .advice import ADVICE
from .options import BOT_OPTIONS
from .terminal import fill, table, width
from .words import option

# One example task for each direction: role -> length beside BASE.
MULTIPLES = "wider (whole multiples)"
BASE = {"layer": 4, "hidden": 64, "heads": 4, "ffn": 256}
DIRECTIONS = {
    "wider": {"hidden": 96, "heads": 6, "ffn": 384},
    MULTIPLES: {"hidden": 128, "heads": 8, "ffn": 512},
    "deeper": {"layer": 8},
    "narrower": {"hidden": 48, "heads": 3, "ffn": 192},
    "shallower": {"layer": 2},
}


@dataclasses.dataclass(frozen=True)
class About:
    """A method in words."""

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
        description="List the resizing methods: in which directions each works, what it does, and where it is from. "
        "With NAME, explain that one and its options. Two can be combined, widths from the first and depth from the "
        "second: --method tile+stack.",
        epilog="examples:\n  transformers-bot methods\n  transformers-bot methods lemon",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="the method to explain")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on standard output")
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    from ..methods import METHODS

    if chosen.name is not None and chosen.name not in METHODS:
        hint = errors.suggest(chosen.name, METHODS)
        raise errors.BadOption(f"unknown method {chosen.name!r}; known methods are {', '.join(METHODS)}.{hint}")
    found = [about(name) for name in METHODS if chosen.name in (None, name)]
    if chosen.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    elif chosen.name:
        print(_explained(found[0], width()))
    else:
        rows = [(one.name, _in_short(one.directions), _short(one)) for one in found]
        print(table([("method", "makes models", "what it does"), *rows], width()))
        print()
        print(fill("* at whole multiples only. `transformers-bot methods NAME` explains one.", width()))
    return 0


def about(name: str) -> About:
    """What a method says of itself in its module's docstring, and what it accepts of the example tasks."""
    from ..methods import METHODS

    made: Any = METHODS[name]
    text = inspect.getdoc(sys.modules[made.__module__]) or ""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    source = next((part.removeprefix("Source: ") for part in paragraphs if part.startswith("Source: ")), "")
    plain = re.split(r"(?<=[.])\s", ADVICE[name])[0] if name in ADVICE else paragraphs[0].partition(": ")[2]
    what = plain.rstrip(".:")
    options = getattr(made, "option_names", tuple(BOT_OPTIONS))
    return About(name, _directions(name), what[:1].upper() + what[1:], source, ADVICE.get(name, what), tuple(options))


def _directions(name: str) -> tuple[str, ...]:
    """The directions whose example task the method's own check accepts."""
    from ..architectures import get
    from ..methods import METHODS, Task
    from ..options import BoTConfig

    def accepts(changes: dict[str, int]) -> bool:
        try:
            METHODS[name](BoTConfig()).check(Task(get("gpt2"), _lengths(BASE), _lengths({**BASE, **changes}), True))
        except errors.BadOption:
            return False
        return True

    found = [direction for direction, changes in DIRECTIONS.items() if accepts(changes)]
    return tuple(one for one in found if not (one == MULTIPLES and "wider" in found))


def _lengths(sizes: dict[str, int]) -> dict[str, int | None]:
    head_dim = sizes["hidden"] // sizes["heads"]
    return {**sizes, "readout": sizes["hidden"], "head_dim": head_dim, "score": head_dim, "position": 16, "vocab": 50}


def _short(one: About) -> str:
    papers = ", ".join(re.findall(r"(?:arXiv )?\d{4}\.\d{4,5}", one.source))
    authors = re.match(r"[A-Z][\w-]+ et al\.", one.source)
    where = ", ".join(part for part in (authors[0] if authors else "", papers) if part)
    return f"{one.what}. {where}".rstrip()


def _in_short(directions: tuple[str, ...]) -> str:
    """Directions for a narrow column; a star says that a width grows to whole multiples only."""
    if {"wider", "deeper", "narrower", "shallower"} <= set(directions):
        return "any size"
    return " ".join("wider*" if one == MULTIPLES else one for one in directions)


def _explained(one: About, columns: int) -> str:
    lines = [f"{one.name}: makes models {', '.join(one.directions)}", "", fill(one.text, columns), ""]
    lines += [fill(f"Source: {one.source}", columns), ""] if one.source else []
    if not one.options:
        return "\n".join([*lines, "It has no options."])
    lines.append("Options:")
    for name in one.options:
        lines.append(fill(f"{option(name):<15} {BOT_OPTIONS[name]}", columns, "  ", " " * 18))
    return "\n".join(lines)
