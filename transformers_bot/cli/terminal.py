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


def table(rows: Sequence[Sequence[str]], columns: int, right: Sequence[int] = ()) -> str:
    """Rows in columns, the first row as heading; the last column is wrapped to what is left.

    Args:
        right: numbers of the columns that are aligned to the right.
    """
    cells = [[printable(cell, longest=200) for cell in row] for row in rows]
    last = len(cells[0]) - 1
    widths = [max(len(row[i]) for row in cells) for i in range(last)]
    left = max(16, columns - sum(widths) - 2 * last)
    lines = []
    for row in cells:
        head = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=False))
        ]
        text = textwrap.wrap(row[last], left, break_on_hyphens=False) or [""]
        if last in right:
            text = [text[0].rjust(min(left, max(len(other[last]) for other in cells)))]
        lines.append("  ".join([*head, text[0]]).rstrip())
        pad = " " * (sum(widths) + 2 * last)
        lines += [pad + more for more in text[1:]]
    heading = max(len(line) for line in lines)
    return "\n".join([lines[0], "-" * min(heading, columns), *lines[1:]])
