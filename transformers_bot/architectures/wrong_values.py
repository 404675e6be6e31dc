"""What messages say of a wrong value or name of a config field: what it must be, and what is near."""

import re
from collections.abc import Mapping
from typing import Any

from ..console.text import brief

TYPES = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "NoneType": "nothing"}
TYPES |= {"list": "a list", "tuple": "a list", "dict": "a mapping"}


def wrong_type(message: str, fields: dict[str, Any]) -> str:
    """A field, its value and what it must be, if `message` is transformers' error on a wrong type; else empty."""
    field = re.search(r"Validation error for field '(\w+)'", message)
    types = list(dict.fromkeys(re.findall(r"expected (\w+), got", message)))
    if not (field and field[1] in fields and types and set(types) <= TYPES.keys()):
        return ""
    if "float" in types and "int" in types:
        types.remove("int")
    return f"{field[1]}={brief(repr(fields[field[1]]))}, which must be {' or '.join(TYPES[name] for name in types)}"


def nearest_divisors(name: str, count: int, whole: int) -> str:
    """The divisors of `whole` next to `count`, after the name of the field."""
    divisors = [number for number in range(1, whole + 1) if whole % number == 0]
    below = [number for number in divisors if number < count][-1:]
    found = below + [number for number in divisors if number > count][:1]
    return f"{name} {'are' if len(found) > 1 else 'is'} {' and '.join(map(str, found))}"


def elsewhere(name: str, known: Mapping[str, Any]) -> str:
    """A hint at the configs within a config that have a field of this name."""
    paths = [path.rpartition(".")[0] for path in known if path.endswith(f".{name}")]
    if not paths:
        return ""
    return f" It is a field of {' and of '.join(paths)}: pass {paths[0]}={{{name!r}: ...}}."
