"""Resizing methods by name. A new one is one file here and one entry below.

`"tile+stack"` takes the widths from one method and the depth from another.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ..errors import BadOption, suggest
from ..options import BoTConfig
from .aki import AKI
from .base import Combined, Fresh, Linear, Method, Task
from .bot import BoT
from .depth_upscale import DepthUpscale
from .fpi import FPI
from .front import Front
from .importance import Importance
from .interpolate import Interpolate
from .lemon import Lemon
from .ligo import LiGO
from .mango import Mango
from .scratch import Scratch
from .stack import Stack
from .tile import Tile
from .weight_selection import WeightSelection

CLASSES: tuple[type[BoT] | type[Linear] | type[Scratch], ...] = (
    *(BoT, WeightSelection, Importance, FPI, AKI, Stack, Interpolate, DepthUpscale),
    *(Tile, Lemon, Front, Scratch, LiGO, Mango),
)
METHODS: dict[str, Callable[[BoTConfig], Method]] = {method.name: method for method in CLASSES}


def get(name: str, options: BoTConfig) -> Method:
    """The method of that name with its options; `BadOption` lists the known ones.

    Raises:
        BadOption: an unknown name, or an option, set to other than its default, that the method would
            not look at.
    """
    parts = name.split("+", 1)
    made = [_made(part, options) for part in parts]
    known = [getattr(part, "option_names", tuple(field.name for field in fields(BoTConfig))) for part in made]
    names = list(dict.fromkeys(option for of_one in known for option in of_one))
    for option, value in _set_options(options).items():
        if option not in names:
            takes = f"it takes {', '.join(names)}" if names else "it takes none"
            raise BadOption(f"method {name!r} has no option {option}={value!r} in bot_config: {takes}.")
    return made[0] if len(parts) == 1 else Combined(*(_linear(part) for part in made))


def _made(name: str, options: BoTConfig) -> Method:
    if name not in METHODS:
        hint = suggest(name, METHODS)
        raise BadOption(f"unknown method {name!r}; known methods are {', '.join(METHODS)}.{hint}")
    return METHODS[name](options)


def _linear(part: Method) -> Linear:
    if isinstance(part, Linear) and part.combines:
        return part
    raise BadOption(f"method {part.name!r} cannot be combined: it resizes widths and depth together.")


def _set_options(options: BoTConfig) -> dict[str, Any]:
    """The options that differ from their defaults."""
    plain = BoTConfig().to_dict()
    return {name: value for name, value in options.to_dict().items() if value != plain[name]}


__all__ = ["METHODS", "Fresh", "Method", "Scratch", "Task", "get"]
