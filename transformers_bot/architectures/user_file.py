"""Runs a user's Python file and finds the adapters in it."""

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from ..errors import BadOption, BoTError
from .adapter import Adapter


def names_of(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """The global names of a Python file after it was run. This runs the file.

    Args:
        what: what the file should define, for the message.

    Raises:
        BadOption: no such file, or one that fails; an error of this package keeps its kind and names the file.
    """
    file = Path(path)
    if not file.is_file():
        raise BadOption(f"there is no {what} file {os.fspath(path)!r}.")
    try:
        return runpy.run_path(str(file))
    except BoTError as error:
        raise type(error)(f"{file.name}: {error}") from error
    except Exception as error:
        raise BadOption(f"{file.name} cannot be run: {type(error).__name__}: {error}") from error


def load(path: str | os.PathLike[str]) -> list[Adapter]:
    """The adapters that a Python file defines. This runs the file.

    Raises:
        BadOption: no such file, a file that fails, or one that defines no `Adapter`.
        PlanError: a rule that cannot be parsed.
    """
    names = names_of(path, "adapter")
    # Leave out the built-in adapters that the file imports.
    ours = [module for name, module in sys.modules.items() if name.startswith(f"{__package__}.")]
    imported = {id(value) for module in ours for value in vars(module).values()}
    adapters = [value for value in names.values() if isinstance(value, Adapter) and id(value) not in imported]
    if not adapters:
        name = Path(path).name
        raise BadOption(f"{name} defines no adapter: a name in it must be a transformers_bot.adapters.Adapter.")
    return list({id(adapter): adapter for adapter in adapters}.values())
