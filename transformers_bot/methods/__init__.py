"""Resizing methods by name. A new one is one file here and one entry below."""

from collections.abc import Callable

from ..errors import BadOption, suggest
from ..options import BoTConfig
from .base import Method, Task
from .bot import BoT

METHODS: dict[str, Callable[[BoTConfig], Method]] = {BoT.name: BoT}


def get(name: str, options: BoTConfig) -> Method:
    """The method of that name with its options; `BadOption` lists the known ones."""
    if name not in METHODS:
        hint = suggest(name, METHODS)
        raise BadOption(f"unknown method {name!r}; known methods are {', '.join(METHODS)}.{hint}")
    return METHODS[name](options)


__all__ = ["METHODS", "Method", "Task", "get"]
