"""The command line: `transformers-bot plan`, `resize`, `suggest` and the others, one module each.

A command is one function that adds its parser and names the function to run; `COMMANDS` lists them.

Exit codes: 0 done, 1 a comparison that found differences, 2 a mistake in the call (options, sizes,
keywords), 3 a bad or unsafe checkpoint, 4 an unsupported or incompatible model, 5 reading or writing
failed, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import errors
from ..version import __version__
from . import adapters, demo, inspect, methods, plan, resize, suggest, verify
from .options import load_methods
from .parser import USAGE, Parser
from .terminal import complain, drop_output

CHECKPOINT, UNSUPPORTED, IO, INTERRUPTED, PIPE_CLOSED = 3, 4, 5, 130, 141
EXIT_CODES: dict[type[Exception], int] = {
    errors.BadSize: USAGE,
    errors.BadOption: USAGE,
    errors.BadKeyword: USAGE,
    errors.BadCheckpoint: CHECKPOINT,
    errors.UnsafeCheckpoint: CHECKPOINT,
    errors.BadWeights: CHECKPOINT,
    errors.UnsupportedCheckpoint: UNSUPPORTED,
    errors.IncompatibleModels: UNSUPPORTED,
    errors.UnsupportedArchitecture: UNSUPPORTED,
    errors.PlanError: UNSUPPORTED,
    errors.BoTError: IO,  # all others: a file could not be fetched, or the folder is taken
    OSError: IO,
}
COMMANDS: tuple[Callable[[Any], None], ...] = (
    *(plan.add, resize.add, verify.add, suggest.add, inspect.add),
    *(methods.add, adapters.add, demo.add),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = argparse.Namespace()
    try:
        code = _run(arguments, args)
        if sys.stdout is not None:  # None if the caller has closed it
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        complain("interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        drop_output()  # its reader (head, less) has ended
        return PIPE_CLOSED
    except Exception as error:
        exit_code = _exit_code(error)
        if exit_code is None:
            raise  # a bug of this package: its traceback is needed
        complain(" ".join(_message(error, args).split()))
        return exit_code


def _run(arguments: Sequence[str] | None, args: argparse.Namespace) -> int:
    load_methods(list(sys.argv[1:] if arguments is None else arguments))
    build_parser().parse_args(arguments, args)
    run: Callable[[argparse.Namespace], int] = args.run
    with _bars_only_in_a_terminal():
        return run(args)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="transformers-bot",
        description="Change the size of a trained transformer: smaller or larger, without training.",
        epilog="first steps:\n"
        "  transformers-bot suggest gpt2 --params 60M\n"
        "  transformers-bot plan gpt2 --set n_layer=6 --set n_embd=384 --set n_head=6\n"
        "  transformers-bot resize gpt2 my-gpt2 --set n_layer=6 --set n_embd=384 \\\n"
        "    --set n_head=6\n"
        "`transformers-bot COMMAND --help` explains a command.\n"
        "Exit codes: 0 done, 1 verify found a difference, 2 a mistake in the call, 3 a bad or unsafe "
        "checkpoint, 4 an unsupported or incompatible model, 5 reading or writing failed, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"transformers-bot {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    try:
        for add in COMMANDS:
            add(commands)
    except argparse.ArgumentError as error:  # two options of one name, and one of them is from a file
        raise errors.BadOption(
            f"the command line has {error.argument_name} already, so a method's own option needs another name."
        ) from None
    return parser


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that is not a bug of this package; None for any other."""
    from huggingface_hub.errors import (
        StrictDataclassError,
    )  # imported late: it loads an HTTP client, which --help does not need

    kinds = {**EXIT_CODES, StrictDataclassError: USAGE}  # a config field of the wrong type
    return next((code for kind, code in kinds.items() if isinstance(error, kind)), None)


@contextmanager
def _bars_only_in_a_terminal() -> Iterator[None]:
    """Turn progress bars off if standard error, which they go to, is a file or a pipe."""
    if sys.stderr is not None and sys.stderr.isatty():
        yield
        return
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()  # turns off those of huggingface_hub, too
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _message(error: Exception, args: argparse.Namespace) -> str:
    """The error's message; to one of the Hub's client, add the model's name and that it is no folder either."""
    name = getattr(args, "source", None) or getattr(args, "folder", None)
    from_hub = isinstance(error, OSError) and not isinstance(error, errors.BoTError) and error.errno is None
    if not (from_hub and isinstance(name, str)) or name in str(error) or os.path.exists(name):
        return str(error)
    return f"{name!r} is no folder here, and as a model on the Hub: {error}"


__all__ = ["COMMANDS", "EXIT_CODES", "build_parser", "main"]
