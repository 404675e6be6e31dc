"""Numbers with a unit, as people write them: 60M parameters, 200MB."""

import math
import re
from typing import Any

from ..errors import BadOption

NUMBERS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def read_number(value: Any) -> float:
    """A count out of a number or text.

    >>> read_number("60M"), read_number("1.5B")
    (60000000.0, 1500000000.0)
    """
    return _read(value, NUMBERS, "a number of parameters such as 60M or 1.5B")


def read_bytes(value: Any) -> float:
    """Bytes out of a number or text.

    >>> read_bytes("200MB"), read_bytes("1 GiB")
    (200000000.0, 1073741824.0)
    """
    return _read(value, BYTES, "an amount of memory such as 200MB or 1.5GiB")


def read_share(value: Any) -> float:
    """A share out of a number or text.

    >>> read_share("50%"), read_share("1/2"), read_share(0.5)
    (0.5, 0.5, 0.5)
    """
    text = _text(value, "a ratio").strip().replace(",", ".")
    found = re.fullmatch(r"(\d*\.?\d+(?:e[+-]?\d+)?|\d+\.)\s*(%|/\s*\d*\.?\d+)?", text, re.IGNORECASE)
    share = 0.0
    if found and not isinstance(value, bool):
        below = 100.0 if found[2] == "%" else float((found[2] or "/1")[1:])
        share = float(found[1]) / below if below else 0.0
    if not 0 < share < math.inf:
        raise BadOption(f"ratio must be a number above 0, got {value!r}. Write it as 0.5, 50% or 1/2.")
    return share


def _read(value: Any, units: dict[str, int], what: str) -> float:
    text = _text(value, what).strip().replace("_", "").replace(",", "")
    found = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d+)?)\s*([a-z]*)", text.lower())
    if isinstance(value, bool) or not found or found[2] not in units:
        raise BadOption(f"{value!r} is not {what}.")
    number = float(found[1]) * units[found[2]]
    if not 1 <= number < math.inf:
        raise BadOption(f"{value!r} is not {what}: it must be at least 1.")
    return number


def _text(value: Any, what: str) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to write so many digits
        raise BadOption(f"a number of thousands of digits is not {what}.") from None
