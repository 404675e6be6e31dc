"""How wide the terminal is, text and tables that fit it."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from ..console.text import cut, printable, visible

PIPED = 100  # columns where nobody looks
NARROWEST = 12  # columns for words
LONGEST, PAGE = 60, 600  # characters of a name, and of a message


def has_width() -> bool:
    """Whether somebody looks through a window of some width: a terminal, or COLUMNS says so."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # none: closed by whoever called
    return is_terminal or os.environ.get("COLUMNS", "").isdigit()


def width() -> int:
    """Columns to print in, at least 40."""
    return max(40, shutil.get_terminal_size((PIPED, 24)).columns) if has_width() else PIPED


def shown(text: str, longest: int = PAGE) -> str:
    """Text that may come from a checkpoint: nothing in it steers the terminal, and it has an end."""
    return cut(printable(text), longest)


def said(text: str) -> str:
    """A message, as `shown`, with the letters of any language: it stands in no column."""
    return cut(visible(text), PAGE)


def fill(text: str, columns: int, indent: str = "", hang: str = "") -> str:
    """A paragraph within `columns`; `hang` indents all lines but the first."""
    return textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=hang, break_on_hyphens=False)


def table(rows: Sequence[Sequence[str] | str], columns: int, right: Sequence[int] = ()) -> str:
    """Rows in columns, the first row as heading; the last column is wrapped to what the others leave.

    Args:
        rows: a plain string is a line of its own.
        right: numbers of the columns that are aligned to the right, the last one not among them.
    """
    cells = [[*(shown(cell, LONGEST) for cell in row[:-1]), shown(row[-1])] for row in rows if not isinstance(row, str)]
    last = len(cells[0]) - 1
    widths = [max(len(row[i]) for row in cells) for i in range(last)]
    least = NARROWEST if any(row[-1] for row in cells) else 0
    widest = widths.index(max(widths))
    widths[widest] = max(NARROWEST, min(widths[widest], columns - least - 2 * last - sum(widths) + widths[widest]))
    start = sum(widths) + 2 * last
    lines, left = [], max(NARROWEST, columns - start)
    given = iter(cells)
    for row in rows:
        if isinstance(row, str):
            lines.append(shown(row, columns))
            continue
        *head, text = next(given)
        fitted = [cut(cell, w) for cell, w in zip(head, widths, strict=True)]
        aligned = [
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(fitted, widths, strict=True))
        ]
        first, *others = textwrap.wrap(text, left, break_on_hyphens=False) or [""]
        lines += ["  ".join([*aligned, first]).rstrip(), *(" " * start + more for more in others)]
    return "\n".join([lines[0], "-" * min(columns, max(map(len, lines))), *lines[1:]])
