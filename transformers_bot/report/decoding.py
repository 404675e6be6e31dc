"""From JSON types to the frozen classes of a report: what a file holds is checked before it is believed."""

from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


def decode(hint: Any, value: Any, where: str) -> Any:
    """The value that a type hint describes, made of JSON types.

    >>> decode(tuple[int, ...], [1, 2], "shape")
    (1, 2)

    Args:
        hint: a dataclass, a tuple, a dict with text keys, `X | None`, str, int, float or Any.
        where: what the value is, for the message.

    Raises:
        ValueError: the value is of another type.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is UnionType:
        inner = next(one for one in args if one is not NoneType)
        return None if value is None else decode(inner, value, where)
    if origin is tuple:
        return _decode_tuple(args, value, where)
    if origin is dict:
        return {name: decode(args[1], one, f"{where}.{name}") for name, one in _checked(value, dict, where).items()}
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        optional = {one.name for one in fields(hint) if one.metadata.get("optional")}  # what older reports lack
        odd = (set(_checked(value, dict, where)) ^ set(hints)) - (optional - set(value))
        if odd:
            raise ValueError(f"{where} has missing or unknown fields: {', '.join(sorted(map(str, odd)))}")
        given = ((name, inner) for name, inner in hints.items() if name in value)
        return hint(**{name: decode(inner, value[name], f"{where}.{name}") for name, inner in given})
    if hint is Any:
        return value
    return float(_checked(value, (int, float), where)) if hint is float else _checked(value, hint, where)


def _decode_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    items = _checked(value, list, where)
    hints = [args[0]] * len(items) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(items):
        raise ValueError(f"{where} has {len(items)} entries instead of {len(hints)}")
    return tuple(decode(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(hints, items, strict=True)))


def _checked(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where} is {type(value).__name__} where it should be another type")
    return value
