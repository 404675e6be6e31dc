"""`transformers-bot verify`: whether a resized folder is what its provenance says."""

import argparse
import json
from typing import Any

from .options import add_adapter, add_method_file, read_adapters
from .terminal import fill, say, shown, width

DIFFERS = 1
MANY = 20  # lines that are printed


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        usage="transformers-bot verify FOLDER [--source PLACE] [--json]",
        help="compute a resized model again and compare every bit",
        description="Compute a resized model again from what its config.json says of its source and method, and "
        "compare: the source's files by their hashes, the result's weights bit by bit.",
        epilog="Exit codes: 0 it is the same, 1 it differs, 3 the folder says nothing of its source.\n"
        "examples:\n"
        "  transformers-bot verify my-gpt2\n"
        "  transformers-bot verify my-bert --source ./bert",
    )
    parser.add_argument("folder", metavar="FOLDER", help="what `transformers-bot resize` wrote")
    parser.add_argument(
        "--source", metavar="PLACE", help="where the source is: needed for a folder, which a result calls by its name"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read .bin files, where it was made of such")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    add_method_file(parser)
    add_adapter(parser)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    import transformers_bot as bot

    read_adapters(chosen)
    found = bot.verify(chosen.folder, source=chosen.source, allow_pickle=chosen.allow_pickle)
    if chosen.json:
        say(json.dumps(found.to_dict(), indent=2))
    else:
        lines = str(found).splitlines()
        more = len(lines) - MANY
        rest = [f"  ... and {more} more lines (--json has all)"] if more > 0 else []
        say("\n".join([*(fill(shown(line), width(), hang="    ") for line in lines[:MANY]), *rest]))
    return 0 if found.equal else DIFFERS
