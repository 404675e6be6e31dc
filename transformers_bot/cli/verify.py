"""`transformers-bot verify`: check that a resized folder is what its provenance says."""

import argparse
import json
from typing import Any

from .options import add_adapter, add_method_file, read_adapters
from .terminal import fill, say, shown, width

DIFFERS = 1
MANY = 20  # the most lines that are printed


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        usage="transformers-bot verify FOLDER [--source PLACE] [--json]",
        help="compute a resized model again and compare every bit",
        description="Compute a resized model again from what its config.json says of its source and method, and "
        "compare: the source's files by their hashes, the result's weights bit by bit.",
        epilog="Exit codes: 0 it is the same, 1 it differs, 3 the folder does not name its source.\n"
        "examples:\n"
        "  transformers-bot verify my-gpt2\n"
        "  transformers-bot verify my-bert --source ./bert",
    )
    parser.add_argument("folder", metavar="FOLDER", help="what `transformers-bot resize` wrote")
    parser.add_argument(
        "--source",
        metavar="PLACE",
        help="where the source is; needed for a local folder, of which the result holds only the name",
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read .bin files, if it was made from such files")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    add_method_file(parser)
    add_adapter(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import transformers_bot as bot

    read_adapters(args)
    verification = bot.verify(args.folder, source=args.source, allow_pickle=args.allow_pickle)
    if args.json:
        say(json.dumps(verification.to_dict(), indent=2))
    else:
        lines = str(verification).splitlines()
        hidden = len(lines) - MANY
        last = [f"  ... and {hidden} more lines (--json has all)"] if hidden > 0 else []
        say("\n".join([*(fill(shown(line), width(), hang="    ") for line in lines[:MANY]), *last]))
    return 0 if verification.equal else DIFFERS
