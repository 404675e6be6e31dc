"""`transformers-bot methods`: every method, when to choose it, its options, and what it accepts when asked."""

import argparse
import dataclasses
import inspect
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from .. import errors
from ..console.tables import table
from .options import BOT_OPTIONS, add_method_file, meaning_of
from .terminal import fill, option, say, width

if TYPE_CHECKING:
    from ..architectures.adapter import Adapter, Roles

# When to choose which method, for whoever decides; how each works is in its module and its paper.
ADVICE = {
    "bot": "Neighbouring units and layers are blended by a wavelet low-pass, in both directions. The default, for any "
    "change of size: grown models compute what the source does as far as the sizes allow, shrunk ones keep the largest "
    "part of it, most of all with --calibration. --gain raw gives the published method as written, for comparison.",
    "weight_selection": "The small model is made of evenly spaced entries of the first layers. Choose it to compare, "
    "or where a smaller model is to be trained for long and only needs a good start.",
    "importance": "The small model is made of the units, heads and layers that do most, measured on --calibration data "
    "where such is given. Choose it to prune a model before it is trained on.",
    "fpi": "The large model is made of copies of units, drawn at random, whose readers share their weight: it computes "
    "what the source does at whole multiples of the width. Choose it to reproduce bert2BERT.",
    "aki": "As fpi, but new units come from the layer above: it computes less of what the source does and may train "
    "faster. Choose it to reproduce bert2BERT.",
    "stack": "The layers are put on top of themselves as often as needed. Choose it for growing in depth during "
    "pre-training; it does not keep what the model computes.",
    "interpolate": "Every layer is repeated in its place. Choose it for growing in depth; it does not keep what the "
    "model computes, and suits residual networks that are trained on.",
    "depth_upscale": "Two copies of the model are joined, one without its last and one without its first layers. "
    "Choose it for growing in depth up to twice the layers, with much training after it.",
    "tile": "Whole copies stand side by side and their readers share the weight: the large model computes what the "
    "source does. Only whole multiples of the width. Combine it with a method for depth: tile+stack.",
    "lemon": "Growth without any change of what the model computes, also at widths that are no whole multiples where "
    "the architecture allows it. Choose it where the grown model must start exactly where the source is.",
    "front": "The stack of layers is seen as a signal and its low frequencies are kept, in all directions. Choose it "
    "to compare.",
    "scratch": "Nothing is taken from the source but its configuration: random weights, for comparison.",
    "ligo": "How to grow is learned from data, a linear combination of units and layers: give data with --fit-data. "
    "Without a fit the result is of no use. Choose it where some compute can be spent before training.",
    "mango": "As ligo with one small operator for all layers together: give data with --fit-data. Without a fit the "
    "result is of no use. The MLP must stay the same multiple of the width.",
}
# One example task for each direction: layers and heads, beside BASE.
MULTIPLES = "wider (whole multiples)"
BASE = (4, 4)
DIRECTIONS = {"wider": (4, 6), MULTIPLES: (4, 8), "deeper": (8, 4), "narrower": (4, 3), "shallower": (2, 4)}
EXAMPLE: dict[str, int] = {"entry": 16, "frequency": 8, "place": 16, "grid": 4, "pixel": 4, "identity": 50}


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
    add_method_file(parser)
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
        say(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    elif chosen.name:
        say(_explained(found[0], width()))
    else:
        rows = [(one.name, _in_short(one.directions), _short(one)) for one in found]
        note = fill("* at whole multiples only. `transformers-bot methods NAME` explains one.", width())
        say("\n".join([*table([("method", "makes models", "what it does"), *rows], width()), "", note]))
    return 0


def about(name: str) -> About:
    """What a method says of itself in its module's docstring, and what it accepts of the example tasks."""
    from ..methods import METHODS

    made: Any = METHODS[name]
    module = sys.modules.get(made.__module__)
    text = inspect.getdoc(module if module is not None and module.__name__ != "__main__" else made) or ""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    source = next((part.removeprefix("Source: ") for part in paragraphs if part.startswith("Source: ")), "")
    plain = re.split(r"(?<=[.])\s", ADVICE[name])[0] if name in ADVICE else paragraphs[0].partition(": ")[2]
    what = plain.rstrip(".:")
    options = getattr(made, "option_names", tuple(BOT_OPTIONS))
    return About(name, _directions(name), what[:1].upper() + what[1:], source, ADVICE.get(name, what), tuple(options))


def _directions(name: str) -> tuple[str, ...]:
    """The directions whose example task the method's own check accepts, of one known architecture at least."""
    from ..architectures import ADAPTERS
    from ..methods import Task, get, options_of

    def accepts(adapter: "Adapter", sizes: tuple[int, int]) -> bool:
        task = Task(adapter, _lengths(adapter.roles, *BASE), _lengths(adapter.roles, *sizes), True)
        try:
            get(name, options_of(name, None)).check(task)
        except errors.BadOption:
            return False
        return True

    found = [direction for direction, sizes in DIRECTIONS.items() if any(accepts(a, sizes) for a in ADAPTERS.values())]
    return tuple(one for one in found if not (one == MULTIPLES and "wider" in found))


def _lengths(roles: "Roles", layers: int, heads: int) -> dict[str, int | None]:
    """All lengths of a small model."""
    width = heads * EXAMPLE["entry"]
    kinds = {**EXAMPLE, "depth": layers, "stream": width}
    units = {unit: heads if roles.is_whole(unit) else 4 * width for unit in roles.leading("unit")}
    return {role: units.get(roles.leader(role)) or kinds[roles.kind(roles.leader(role))] for role in roles}


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
        lines.append(fill(f"{option(name):<15} {meaning_of(name)}", columns, "  ", " " * 18))
    return "\n".join(lines)
