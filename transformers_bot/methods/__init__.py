"""Resizing methods by name. A new one is one file here and one entry below, or one file anywhere and `register`.

`"tile+stack"` takes the widths from one method and the depth from another.
"""

import os
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..architectures.user_file import names_of
from ..errors import BadOption, suggest
from ..ops.axis_map import AxisMap, gather
from ..options import BoTConfig, Options, option
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
from .maps import Depth, Pair
from .scratch import Scratch
from .stack import Stack
from .tile import Tile
from .weight_selection import WeightSelection

CLASSES: tuple[type[BoT] | type[Linear] | type[Scratch], ...] = (
    *(BoT, WeightSelection, Importance, FPI, AKI, Stack, Interpolate, DepthUpscale),
    *(Tile, Lemon, Front, Scratch, LiGO, Mango),
)
METHODS: dict[str, Callable[[Any], Method]] = {method.name: method for method in CLASSES}


def register(method: type[Linear]) -> type[Linear]:
    """Make a method known by its name for the rest of this process; returns the class, so it can stand above it.

    Registering a name again replaces what was registered before, built-in ones excepted. `docs/methods.md`
    shows a method of one file, with an option of its own.

    Example:
        >>> from transformers_bot import methods
        >>> @methods.register
        ... class First(methods.Linear):
        ...     name = "first"
        ...
        ...     def pair(self, task, role, source, target, at):
        ...         kept = methods.gather(range(target), source)
        ...         return methods.Pair(kept, kept, "first units")
        >>> del methods.METHODS["first"]

    Raises:
        BadOption: no class with a name and a recipe, a name that is built in or that cannot be one, or options that
            are no `Options`.
    """
    name = getattr(method, "name", None)
    if not isinstance(method, type) or not callable(getattr(method, "recipe", None)):
        raise BadOption(f"a method must be a class such as a subclass of methods.Linear, got {method!r}.")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise BadOption(f"{method.__name__}.name is {name!r}; it must be the method's name in small letters.")
    if any(name == known.name for known in CLASSES if known is not method):
        raise BadOption(f"method {name!r} is built in and cannot be replaced. Choose another name.")
    own = getattr(method, "options_class", None)
    if own is not None and not (isinstance(own, type) and issubclass(own, Options) and is_dataclass(own)):
        raise BadOption(f"{method.__name__}.options_class must be a frozen dataclass made of methods.Options.")
    METHODS[name] = method
    return method


def load(path: str | os.PathLike[str]) -> list[type[Linear]]:
    """Run a Python file and register the methods that it defines.

    Raises:
        BadOption: no such file, a file that fails, or one that defines no method.
    """
    names = names_of(path, "method")
    own = [v for v in names.values() if isinstance(v, type) and issubclass(v, Linear) and v.__module__ == "<run_path>"]
    if not own:
        raise BadOption(f"{Path(path).name} defines no method: a class in it must be a subclass of methods.Linear.")
    for method in own:
        method.__doc__ = names.get("__doc__") or method.__doc__  # what `transformers-bot methods` shows
    return [register(method) for method in dict.fromkeys(own)]


def options_of(name: str, given: Any) -> Any:
    """`bot_config=` as the options of a method: its own `Options`, or a `BoTConfig`.

    Raises:
        BadOption, BadKeyword: an unknown method, or options that are not its own.
    """
    parts = [_known(part) for part in name.split("+", 1)]
    own = next((own for part in parts if (own := getattr(part, "options_class", None))), None)
    return BoTConfig.from_any(given) if own is None else own.from_any(given)


def get(name: str, options: Any) -> Method:
    """The method of that name with its options; `BadOption` lists the known ones.

    Args:
        options: of `options_of`.

    Raises:
        BadOption: an unknown name, or an option, set to other than its default, that the method would
            not look at.
    """
    parts = name.split("+", 1)
    made = [_made(part, options) for part in parts]
    known = [getattr(part, "option_names", tuple(field.name for field in fields(BoTConfig))) for part in made]
    names = list(dict.fromkeys(option for of_part in known for option in of_part))
    for chosen, value in _set_options(options).items():
        if chosen not in names:
            takes = f"it takes {', '.join(names)}" if names else "it takes none"
            raise BadOption(f"method {name!r} has no option {chosen}={value!r} in bot_config: {takes}.")
    return made[0] if len(parts) == 1 else Combined(*(_linear(part) for part in made))


def _known(name: str) -> Callable[[Any], Method]:
    if name not in METHODS:
        hint = suggest(name, METHODS)
        raise BadOption(f"unknown method {name!r}; known methods are {', '.join(METHODS)}.{hint}")
    return METHODS[name]


def _made(name: str, options: Any) -> Method:
    method = _known(name)
    kind = getattr(method, "options_class", None) or BoTConfig
    return method(options if isinstance(options, kind) else kind())  # of two that are combined one has options


def _linear(part: Method) -> Linear:
    if isinstance(part, Linear) and part.combines:
        return part
    raise BadOption(f"method {part.name!r} cannot be combined: it resizes widths and depth together.")


def _set_options(options: Any) -> dict[str, Any]:
    """The options that differ from their defaults; those of a method's own class are all its own."""
    if not isinstance(options, BoTConfig):
        return {}
    plain = BoTConfig().to_dict()
    return {name: value for name, value in options.to_dict().items() if value != plain[name]}


__all__ = [
    "METHODS",
    "AxisMap",
    "Depth",
    "Fresh",
    "Linear",
    "Method",
    "Options",
    "Pair",
    "Scratch",
    "Task",
    "gather",
    "get",
    "load",
    "option",
    "options_of",
    "register",
]
