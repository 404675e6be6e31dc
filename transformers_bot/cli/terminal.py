"""Output on a terminal: its width, text that fits it, and messages with options instead of Python keywords.

The messages of the package name keywords of Python: `method='tile'`, `allow_pickle=True`. Here every keyword that the
command line has becomes its option, and remedies that the command line does not have are left out. A test checks every
message of the package.

rich lays out tables and progress, but text that is piped must keep its lines, and which keyword is which option only
this package knows: both are therefore written here.
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

PIPED = 100  # columns if the output is no terminal
PAGE = 600  # the most characters of a message


def has_width() -> bool:
    """Whether the output has a width: it is a terminal, or COLUMNS is set."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None if the caller has closed it
    return is_terminal or os.environ.get("COLUMNS", "").isdigit()


def width() -> int:
    """Columns to print in, at least 40."""
    return max(40, shutil.get_terminal_size((PIPED, 24)).columns) if has_width() else PIPED


def say(text: str, result: str = "") -> None:
    """Print to standard output, if the caller has not closed it.

    Args:
        result: what has been written already, for the message of the error.

    Raises:
        BoTError: the stream cannot be written to, for example because the disk is full.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise  # its reader has ended
    except OSError as error:
        drop_output()
        subject = f"{result}, but the description of it" if result else "the output"
        raise BoTError(f"{subject} could not be printed: standard output failed ({error.strerror}).") from None


def complain(text: str) -> None:
    """Print a line to standard error; if that fails, only the exit code reports the error."""
    if sys.stderr is None:  # None if the caller has closed it; `print` would then use standard output
        return
    with suppress(OSError, ValueError):
        print(f"transformers-bot: {said(in_options(text))}", file=sys.stderr, flush=True)


def drop_output() -> None:
    """Discard the rest of the output; otherwise Python reports an error at its exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def shown(text: str, longest: int = PAGE) -> str:
    """Text that may come from a checkpoint, escaped and cut."""
    return cut(printable(text), longest)


def said(text: str) -> str:
    """A message, escaped and cut; unlike `shown` it keeps letters of any width, because it is in no table."""
    return cut(visible(text), PAGE)


def fill(text: str, columns: int, indent: str = "", hang: str = "") -> str:
    """A paragraph within `columns`; `hang` indents all lines but the first."""
    return textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=hang, break_on_hyphens=False)


# -- messages in terms of options -----------------------------------------------------------------

# Keywords of the Python API whose option has the same name.
KEYWORDS = (
    *("config", "task", "method", "dtype", "ignore_mismatched_sizes", "calibration", "allow_pickle", "nonfinite"),
    *("vocab_keep", "overwrite", "max_shard_size", "revision", "subfolder", "variant", "source"),
    *("wavelet", "gain", "depth", "detail_scale", "detail", "heads", "positions", "grids", "reheads", "basis", "order"),
    *("seed", "params", "like", "ratio", "memory"),
)
# Keywords whose option has another name.
RENAMED = {
    "tokens": "--calibration-tokens",
    "fit": "--fit-data",
    "batches": "--fit-data",
    "steps": "--fit-steps",
    "lr": "--fit-lr",
    "rank": "--fit-rank",
}
# What --set takes for a field, and an option says.
SWITCHES = {
    **{"tokenizer": "--no-tokenizer", "modules": "--no-modules", "strict": "--no-strict"},
    **{"record_path": "--record-path", "bot_config": "the options of the method", "torch_dtype": "--dtype"},
}
FLAGS = {
    "strict=False": "--no-strict",
    "tokenizer=False": "--no-tokenizer",
    "modules=False": "--no-modules",
    "overwrite='foreign'": "--overwrite-foreign",
    "fields of the config to change": "--set FIELD=VALUE",
}
# Remedies that only the Python API has.
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
LITERALS = {"True": "true", "False": "false", "None": "null"}  # values of a config field, as --set reads them


def in_options(message: str) -> str:
    """The message with Python keywords written as command-line options.

    >>> in_options("Choose BoTConfig(reheads='resample'), or pass ignore_mismatched_sizes=True.")
    'Choose --reheads resample, or pass --ignore-mismatched-sizes.'
    """
    for text in ONLY_PYTHON:
        message = message.replace(text, "")
    message = re.sub(r" Pass (\w+)= beside the fields, not among them\.", _beside, message)
    message = re.sub(r" \w+= belongs to [\w, ]+\.", "", message)
    message = re.sub(r"BoTConfig\(([^()]*)\)", r"\1", message)
    message = re.sub(r"bot_config=\{'(\w+)': \.\.\.\}", r"\1=", message).replace(" in bot_config", "")
    message = re.sub(r"bot_config=\{'(\w+)': ('[^']*')\}", r"\1=\2", message)
    for python, shell in FLAGS.items():
        message = message.replace(python, shell)
    quoted = r"""(?:'([^']*)'|"([^"]*)"|(True\b)|(\d+))"""
    message = re.sub(KEYWORD + quoted, _with_value, message)
    message = re.sub(KEYWORD + r"(?=[\s,.;:)]|$)", lambda match: option(match[1]), message)
    message = re.sub(r"\bSet (\w+=(?:True|False|None)) in the target config\b", r"Pass \1", message)
    message = re.sub(r"\bPass (\w+)=(True|False|None)\b", _set, message)
    message = re.sub(r"\b(\w+)=(True|False|None)\b", lambda match: f"{match[1]}={LITERALS[match[2]]}", message)
    message = message.replace("resize_checkpoint", "transformers-bot resize")
    return re.sub(r"\bBoTModel\w*", lambda match: _task(match[0]), message)


def option(name: str) -> str:
    """A keyword as an option: `max_shard_size` is `--max-shard-size`."""
    return RENAMED.get(name) or "--" + name.replace("_", "-")


def _beside(match: re.Match[str]) -> str:
    """The remedy for a keyword of the call that was given as a field."""
    name = match[1]
    shell = SWITCHES.get(name) or (option(name) if name in KEYWORDS or name in RENAMED else "")
    return f" Pass {shell} instead." if shell else " The command line has no option for it."


def _with_value(match: re.Match[str]) -> str:
    value = match[2] or match[3] or match[5] or ""  # True: the option has no value
    return f"{option(match[1])} {value}".rstrip()


def _set(match: re.Match[str]) -> str:
    return f"Pass --set {match[1]}={LITERALS[match[2]]}"


def _task(factory: str) -> str:
    return f"--task {FACTORIES[factory]}" if factory in FACTORIES else factory
