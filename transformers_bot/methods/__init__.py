"""Resizing methods by name. A new one is one file here and one entry below.

`"tile+stack"` takes the widths from one method and the depth from another.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ..errors import BadOption, suggest
from ..options import BoTConfig
from .base import Fresh, Method, Task
from .bot import BoT
from .linear import Combined, Linear
from .tile import Tile

CLASSES: tuple[type[BoT] | type[Linear], ...] = (BoT, Tile)
METHODS: dict[str, Callable[[BoTConfig], Method]] = {method.name: method for method in CLASSES}


def get(name: str, options: BoTConfig) -> Method:
    """The method of that name with its options; `BadOption` lists the known ones.

    Raises:
        BadOption: an unknown name, or an option that the method would not look at.
    """
    widths, plus, depth = name.partition("+")
    if not plus:
        return _checked(name, options)
    return Combined(_linear(_checked(widths, options)), _linear(_checked(depth, options)))


def _linear(part: Method) -> Linear:
    if isinstance(part, Linear):
        return part
    raise BadOption(f"method {part.name!r} cannot be combined: it resizes widths and depth together.")


def _checked(name: str, options: BoTConfig) -> Method:
    if name not in METHODS:
        hint = suggest(name, METHODS)
        raise BadOption(f"unknown method {name!r}; known methods are {', '.join(METHODS)}.{hint}")
    method = METHODS[name](options)
    known = getattr(method, "option_names", tuple(field.name for field in fields(BoTConfig)))
    for option, value in _set_options(options).items():
        if option not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise BadOption(f"method {name!r} has no option {option}={value!r} in bot_config: {takes}.")
    return method


def _set_options(options: BoTConfig) -> dict[str, Any]:
    """The options that differ from their defaults."""
    plain = BoTConfig().to_dict()
    return {name: value for name, value in options.to_dict().items() if value != plain[name]}


__all__ = ["METHODS", "Fresh", "Method", "Task", "get"]
