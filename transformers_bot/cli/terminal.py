"""How wide the terminal is, and tables that fit it."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from .words import printable

PIPED = 100  # columns where nobody looks


def has_width() -> bool:
    """Whether somebody looks through a window of some width: a terminal, or COLUMNS says so."""
    return sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()


def width() -> int:
    """Columns to print in, at least 40."""
    return max(40, shutil.get_terminal_size((PIPED, 24)).columns) if has_width() else PIPED


def fill(text: str, columns: int, indent: str = "", hang: str = "") -> str:
    """A paragraph within `columns`; `hang` indents all lines but the first."""
    return textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=hang, break_on_hyphens=False)


def table(rows: Sequence[Sequence[str] | str], columns: int, right: Sequence[int] = ()) -> str:
    """Rows in columns, the first row as heading; the last column is wrapped to what the others leave.

    Args:
        rows: a plain string is a line of its own.
        right: numbers of the columns that are aligned to the right, the last one not among them.
    """
    cells = [
        [*(printable(cell, longest=200) for cell in row[:-1]), printable(row[-1])]
        for row in rows
        if not isinstance(row, str)
    ]
    last = len(cells[0]) - 1
    widths = [max(len(row[i]) for row in cells) for i in range(last)]
    start = sum(widths) + 2 * last
    lines, left = [], max(12, columns - start)
    given = iter(cells)
    for row in rows:
        if isinstance(row, str):
            lines.append(printable(row, columns))
            continue
        *head, text = next(given)
        aligned = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(head, widths, strict=True))]
        first, *others = textwrap.wrap(text, left, break_on_hyphens=False) or [""]
        lines += ["  ".join([*aligned, first]).rstrip(), *(" " * start + more for more in others)]
    return "\n".join([lines[0], "-" * min(columns, max(map(len, lines))), *lines[1:]])
