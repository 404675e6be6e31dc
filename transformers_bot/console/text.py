"""Names and figures as safe text, and numbers read from text such as 60M or 200MB.

Written here because names come from files of strangers. rich lays text out, but passes on characters that control a
terminal, change the direction of writing or form markdown; and no dependency reads 60M or 200MB.
"""

import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from ..errors import BadOption

LONGEST = 100  # characters of a name in markdown
SENTENCE = 1000  # characters of a warning
SPECIAL = re.compile(r"[\\`*_\[\]<>|#~&$@]|(?<=http):|(?<=https):|(?<=www)\.")
NONE = "-"


def printable(name: str) -> str:
    r"""The name with every character escaped that does not fill exactly one column of a terminal.

    >>> print(printable("a\nb\x1b[31m"))
    a\nb\x1b[31m
    """
    return "".join(c if _fills_one_column(c) else c.encode("unicode_escape").decode() for c in name)


def visible(text: str) -> str:
    r"""Text of any language, with every character escaped that is invisible or controls a terminal.

    For sentences; `printable` is for tables, where every character must be one column wide.

    >>> print(visible("猫\x1b[31m"))
    猫\x1b[31m
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(text: str, most: int = 300) -> str:
    r"""Text of another library, for a message of ours: on one line, escaped, cut, without its last full stop.

    >>> print(brief("wrong\n value \x1b[31m."))
    wrong value \x1b[31m
    """
    line = visible(" ".join(text[: 4 * most].split())).rstrip(".")
    return line if len(line) <= most else f"{line[:most]}..."


def cut(name: str, width: int) -> str:
    """The name in at most `width` characters: a bit of its beginning and more of its end.

    >>> cut("encoder.attention.weight", 16)
    'enco...on.weight'
    """
    if len(name) <= width:
        return name
    head = max(0, (width - 3) // 3)
    return f"{name[:head]}...{name[len(name) - (width - 3 - head) :]}"


def literal(text: str) -> str:
    r"""Text escaped for Markdown, so that nothing in it is emphasis, a cell, a link, a tag or a mention.

    >>> print(literal("h.{0}.c_fc|<b>"))
    h.{0}.c\_fc\|\<b\>
    """
    return SPECIAL.sub(lambda match: f"\\{match[0]}", printable(text))


def named(name: str) -> str:
    """A name for a cell of a Markdown table, cut if it is very long."""
    return literal(cut(printable(name), LONGEST))


def percent(share: float | None) -> str:
    """A share as `41.3 %`; only exactly 0 and 1 are shown as 0.0 % and 100.0 %."""
    if share is None:
        return NONE
    shown = f"{100 * share:.1f}"
    if shown == "100.0" and share < 1:
        return "99.9 %"
    return "0.1 %" if shown == "0.0" and share > 0 else f"{shown} %"


def percents(shares: Iterable[float | None]) -> str:
    """The range of several shares, in whole per cent."""
    known = [100 * share for share in shares if share is not None]
    if not known:
        return NONE
    low, high = f"{min(known):.0f}", f"{max(known):.0f}"
    return f"{low} %" if low == high else f"{low}-{high} %"


def figure(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}g}"


def figures(values: Iterable[float | None]) -> str:
    """The range of several figures."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    low, high = f"{min(known):.2f}", f"{max(known):.2f}"
    return low if low == high else f"{low}-{high}"


def shape(sizes: Iterable[int] | None) -> str:
    return NONE if sizes is None else "x".join(map(str, sizes)) or "scalar"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def wrapped(items: Iterable[str], width: int, between: str = "   ") -> list[str]:
    """Items one after another in lines of at most `width` characters."""
    lines, line = [], ""
    for item in items:
        if line and len(line) + len(between) + len(item) > width:
            lines.append(line)
            line = ""
        line = f"{line}{between}{item}" if line else item
    return [*lines, line] if line else lines


def _fills_one_column(character: str) -> bool:
    is_wide = unicodedata.east_asian_width(character) in "WF"
    return character.isprintable() and not is_wide and not unicodedata.combining(character)


# -- numbers with a unit: 60M parameters, 200MB -----------------------------------------------------

NUMBERS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def read_number(value: Any) -> float:
    """A count from a number or text.

    >>> read_number("60M"), read_number("1.5B")
    (60000000.0, 1500000000.0)
    """
    return _read(value, NUMBERS, "a number of parameters such as 60M or 1.5B")


def read_bytes(value: Any) -> float:
    """Bytes from a number or text.

    >>> read_bytes("200MB"), read_bytes("1 GiB")
    (200000000.0, 1073741824.0)
    """
    return _read(value, BYTES, "an amount of memory such as 200MB or 1.5GiB")


def read_share(value: Any) -> float:
    """A share from a number or text.

    >>> read_share("50%"), read_share("1/2"), read_share(0.5)
    (0.5, 0.5, 0.5)
    """
    text = _text(value, "a ratio").strip().replace(",", ".")
    match = re.fullmatch(r"(\d*\.?\d+(?:e[+-]?\d+)?|\d+\.)\s*(%|/\s*\d*\.?\d+)?", text, re.IGNORECASE)
    share = 0.0
    if match and not isinstance(value, bool):
        divisor = 100.0 if match[2] == "%" else float((match[2] or "/1")[1:])
        share = float(match[1]) / divisor if divisor else 0.0
    if not 0 < share < math.inf:
        raise BadOption(f"ratio must be a number above 0, got {value!r}. Write it as 0.5, 50% or 1/2.")
    return share


def _read(value: Any, units: dict[str, int], kind: str) -> float:
    text = _text(value, kind).strip().replace("_", "").replace(",", "")
    match = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d+)?)\s*([a-z]*)", text.lower())
    if isinstance(value, bool) or not match or match[2] not in units:
        raise BadOption(f"{value!r} is not {kind}.")
    number = float(match[1]) * units[match[2]]
    if not 1 <= number < math.inf:
        raise BadOption(f"{value!r} is not {kind}: it must be at least 1.")
    return number


def _text(value: Any, kind: str) -> str:
    try:
        return str(value)
    except ValueError:  # Python does not write so many digits
        raise BadOption(f"a number of thousands of digits is not {kind}.") from None
