"""What is said in a terminal: how wide it is, text that fits it, and messages in terms of options.

The package speaks to whoever calls it from Python: `method='tile'`, `allow_pickle=True`. A keyword that the command
line has too becomes its option, in whatever message it stands; a remedy that the command line does not have is left
out. A test goes through every message of the package.
"""

import os
import re
import shutil
import sys
import textwrap
from contextlib import suppress

from ..console.text import cut, printable, visible
from ..errors import BoTError
from ..tasks import TASKS

PIPED = 100  # columns where nobody looks
PAGE = 600  # characters of a message


def has_width() -> bool:
    """Whether somebody looks through a window of some width: a terminal, or COLUMNS says so."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # none: closed by whoever called
    return is_terminal or os.environ.get("COLUMNS", "").isdigit()


def width() -> int:
    """Columns to print in, at least 40."""
    return max(40, shutil.get_terminal_size((PIPED, 24)).columns) if has_width() else PIPED


def say(text: str, done: str = "") -> None:
    """Print to standard output; one that was closed by whoever called gets nothing.

    Args:
        done: what is there already, for the error, with a comma or a full stop after it.

    Raises:
        BoTError: the stream takes no more: the disk is full, for one.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise  # its reader has what it wanted
    except OSError as error:
        drop_output()
        what = f"{done}, but what there is to say of it" if done else "what was asked for"
        raise BoTError(f"{what} could not be printed: standard output takes no more ({error.strerror}).") from None


def complain(text: str) -> None:
    """Print a line to standard error; where that is closed or takes no more, the exit code alone tells."""
    if sys.stderr is None:  # closed by whoever called; `print` would take standard output for it
        return
    with suppress(OSError, ValueError):
        print(f"transformers-bot: {said(in_options(text))}", file=sys.stderr, flush=True)


def drop_output() -> None:
    """Let what is still to be printed go nowhere, or Python complains of it at its exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def shown(text: str, longest: int = PAGE) -> str:
    """Text that may come from a checkpoint: nothing in it steers the terminal, and it has an end."""
    return cut(printable(text), longest)


def said(text: str) -> str:
    """A message, as `shown`, with the letters of any language: it stands in no column."""
    return cut(visible(text), PAGE)


def fill(text: str, columns: int, indent: str = "", hang: str = "") -> str:
    """A paragraph within `columns`; `hang` indents all lines but the first."""
    return textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=hang, break_on_hyphens=False)


# -- messages in terms of options -----------------------------------------------------------------

# Keywords of the Python API that are options of the same name here.
KEYWORDS = (
    *("config", "task", "method", "dtype", "ignore_mismatched_sizes", "calibration", "allow_pickle", "nonfinite"),
    *("overwrite", "max_shard_size", "revision", "subfolder", "variant", "source"),
    *("wavelet", "gain", "depth", "detail_scale", "detail", "heads", "positions", "grids", "reheads", "basis", "order"),
    *("seed", "params", "like", "ratio", "memory"),
)
# And those that are called otherwise.
RENAMED = {
    "tokens": "--calibration-tokens",
    "fit": "--fit-data",
    "batches": "--fit-data",
    "steps": "--fit-steps",
    "lr": "--fit-lr",
    "rank": "--fit-rank",
}
FLAGS = {
    "strict=False": "--no-strict",
    "tokenizer=False": "--no-tokenizer",
    "modules=False": "--no-modules",
    "overwrite='foreign'": "--overwrite-foreign",
    "fields of the config to change": "--set FIELD=VALUE",
}
# Remedies that only Python has.
ONLY_PYTHON = (
    " or use_safetensors=",
    ", or pass generation_config=",
    "; pass attn_implementation= yourself where you trust it",
    ", or use_safetensors=False",
    ", or a DataLoader",
    ", or pass token=",
    ", or local_files_only=True forbids it",
)
NAMES = "|".join((*KEYWORDS, *RENAMED))
KEYWORD = rf"(?<![\w.-])({NAMES})="
FACTORIES = {task.factory: name for name, task in TASKS.items()}
LITERALS = {"True": "true", "False": "false", "None": "null"}  # of a config's field, as --set reads them


def in_options(message: str) -> str:
    """The message with Python keywords written as command-line options.

    >>> in_options("Choose BoTConfig(reheads='resample'), or pass ignore_mismatched_sizes=True.")
    'Choose --reheads resample, or pass --ignore-mismatched-sizes.'
    """
    for text in ONLY_PYTHON:
        message = message.replace(text, "")
    message = re.sub(r"BoTConfig\(([^()]*)\)", r"\1", message)
    message = re.sub(r"bot_config=\{'(\w+)': \.\.\.\}", r"\1=", message).replace(" in bot_config", "")
    message = re.sub(r"bot_config=\{'(\w+)': ('[^']*')\}", r"\1=\2", message)
    for python, shell in FLAGS.items():
        message = message.replace(python, shell)
    quoted = r"""(?:'([^']*)'|"([^"]*)"|(True\b)|(\d+))"""
    message = re.sub(KEYWORD + quoted, _with_value, message)
    message = re.sub(KEYWORD + r"(?=[\s,.;:)]|$)", lambda found: option(found[1]), message)
    message = re.sub(r"\bSet (\w+=(?:True|False|None)) in the target config\b", r"Pass \1", message)
    message = re.sub(r"\bPass (\w+)=(True|False|None)\b", _set, message)
    message = re.sub(r"\b(\w+)=(True|False|None)\b", lambda found: f"{found[1]}={LITERALS[found[2]]}", message)
    return re.sub(r"\bBoTModel\w*", lambda found: _task(found[0]), message)


def option(name: str) -> str:
    """A keyword as an option: `max_shard_size` is `--max-shard-size`."""
    return RENAMED.get(name) or "--" + name.replace("_", "-")


def _with_value(found: re.Match[str]) -> str:
    value = found[2] or found[3] or found[5] or ""  # True needs none: the option is its own value
    return f"{option(found[1])} {value}".rstrip()


def _set(found: re.Match[str]) -> str:
    return f"Pass --set {found[1]}={LITERALS[found[2]]}"


def _task(factory: str) -> str:
    return f"--task {FACTORIES[factory]}" if factory in FACTORIES else factory
