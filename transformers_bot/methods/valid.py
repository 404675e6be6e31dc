"""Checks of a method of one's own, so that its mistakes are told by name and not in the middle of a resize."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

from ..errors import BadOption
from ..options import Options

SIGNATURES = {"pair": ("task", "role", "source", "target", "at"), "depth": ("task", "stack"), "check": ("task",)}
PLAIN = (bool, int, float, str)


def check_class(method: type) -> None:
    """Refuse a class whose functions or options could not be used.

    Raises:
        BadOption: the first problem, with what to write.
    """
    for name, arguments in SIGNATURES.items():
        function = getattr(method, name, None)
        if callable(function) and not _takes(function, len(arguments)):
            raise BadOption(f"{method.__name__}.{name} must take (self, {', '.join(arguments)}).")
    own = getattr(method, "options_class", None)
    problem = None if own is None else next(_option_problems(method, own), None)
    if problem:
        raise BadOption(problem)


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function takes so many arguments after `self`."""
    try:
        inspect.signature(function).bind(*range(count + 1))
    except TypeError:
        return False
    return True


def _option_problems(method: type, own: Any) -> Iterator[str]:
    if not (isinstance(own, type) and issubclass(own, Options) and is_dataclass(own)):
        yield f"{method.__name__}.options_class must be a frozen dataclass derived from methods.Options."
        return
    declared = {name for name, value in vars(own).items() if isinstance(value, Field)}
    if declared and "__dataclass_params__" not in vars(own):
        yield f"{own.__name__} has options, but no @dataclass(frozen=True) above it."
        return
    for option in fields(own):
        if option.default is MISSING and option.default_factory is MISSING:
            yield f"option {option.name!r} of {own.__name__} has no default: write option(default, what it means)."
            return
    try:
        defaults = own()
    except BadOption as error:
        yield f"the defaults of {own.__name__} are not valid: {error}"
        return
    for name, kind in _types(own).items():
        value = getattr(defaults, name)
        if kind in PLAIN and not isinstance(value, (int, float) if kind is float else kind):
            yield f"option {name!r} of {own.__name__} is declared as {kind.__name__}, but its default is {value!r}."


def _types(own: type) -> dict[str, Any]:
    """The types of the options; none if they cannot be evaluated."""
    try:
        hints = get_type_hints(own)
    except (NameError, TypeError):
        return {}
    return {option.name: hints.get(option.name) for option in fields(own)}
