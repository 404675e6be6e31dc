"""Checks of a method of one's own, so that its mistakes are told by name and not in the middle of a resize."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from ..errors import BadOption
from ..options import PLAIN, Options, declared_types, is_of

SIGNATURES = {"pair": ("task", "role", "source", "target", "at"), "depth": ("task", "stack"), "check": ("task",)}
MEMBERS = (
    *("check", "recipe", "prepare", "config_fields", "describe", "warnings", "undirected"),  # functions
    "is_directed",
)  # of the protocol `base.Method`, beside the name


def check_class(method: type) -> None:
    """Refuse a class whose functions or options could not be used.

    Raises:
        BadOption: the first problem, with what to write.
    """
    missing = [name for name in MEMBERS if not hasattr(method, name)]
    if missing:
        raise BadOption(
            f"{method.__name__} has no {', '.join(missing)}. Derive it from methods.Linear, which has all that a "
            "method needs but its maps."
        )
    if not _takes(method, 0):
        raise BadOption(f"{method.__name__} must take (options) when it is made, as methods.Linear does.")
    for name, arguments in SIGNATURES.items():
        function = getattr(method, name, None)
        if callable(function) and not _takes(function, len(arguments)):
            raise BadOption(f"{method.__name__}.{name} must take (self, {', '.join(arguments)}).")
    own = getattr(method, "options_class", None)
    problem = None if own is None else next(_option_problems(method, own), None)
    if problem:
        raise BadOption(problem)


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function takes so many arguments after its first one, such as `self`."""
    try:
        inspect.signature(function).bind(*range(count + 1))
    except TypeError:
        return False
    except ValueError:  # written in C, without a signature that Python can read
        return True
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
    for name, kind in declared_types(own).items():
        value = getattr(defaults, name)
        if kind in PLAIN and not is_of(value, kind):
            yield f"option {name!r} of {own.__name__} is declared as {kind.__name__}, but its default is {value!r}."
