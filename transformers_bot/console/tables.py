"""Results as tables: in columns for a terminal or a file, in markdown, and in HTML as the last line of a cell.

Whatever a checkpoint calls its tensors, nothing of it is markup or steers a terminal. What stands in the lines
and tables of a result is said where the result is made. `rich` lays the columns out; it is told to write plain
text, whatever it is printed to, so that a file never holds escape codes.
"""

import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

from .text import SENTENCE, cut, printable

WIDTH = 110  # columns of a line of text
WIDEST = 2000  # columns of a table that is as wide as it gets
NAMES = 6  # the most that is listed of sizes that change
Row = Sequence[str]
RULE = "    \n    \n----\n    \n    \n    \n    \n    \n"  # rich's lines of a box: only the one under the head


def table(rows: Sequence[Row], width: int | None = None, right: Iterable[int] = ()) -> list[str]:
    """The lines of a table, the first row its head; what does not fit goes on in the next line, and nothing is lost.

    Example:
        >>> print(*table([("name", "count"), ("wte", "7")], right=(1,)), sep="\\n")
        name  count
        -----------
        wte       7

    Args:
        width: columns to fit it in, if need be by folding the widest; None for as many as it takes.
        right: numbers of the columns that are aligned to the right.
    """
    from rich.box import Box  # a tenth of a second that a call which prints no table can do without
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    flush, (head, *body) = set(right), rows
    laid_out = Table(box=Box(RULE, ascii=True), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(head):
        justify: Any = "right" if place in flush else "left"
        laid_out.add_column(Text(name), justify=justify, overflow="fold", header_style="none")
    for row in body:
        laid_out.add_row(*(Text(printable(cell)) for cell in row))
    file = io.StringIO()
    plain = {"color_system": None, "force_terminal": False, "force_jupyter": False, "legacy_windows": False}
    Console(file=file, width=width or WIDEST, **plain).print(laid_out, crop=False)  # type: ignore[arg-type]
    return [line.rstrip() for line in file.getvalue().splitlines()]


def markdown_table(rows: Sequence[Row], right: Iterable[int] = ()) -> list[str]:
    """The lines of a table in markdown; cells must be markdown already."""
    flush = set(right)
    rule = ("---:" if place in flush else "---" for place in range(len(rows[0])))
    return ["| " + " | ".join(row) + " |" for row in (rows[0], tuple(rule), *rows[1:])]


def lines(*parts: str) -> str:
    """Parts of a repr, a line each."""
    return "<" + "\n ".join(cut(printable(part), 2 * WIDTH) for part in parts if part) + ">"


def some(changes: Sequence[str]) -> str:
    """The first few changes of sizes, and how many more there are."""
    shown = ", ".join(changes[:NAMES]) or "the same sizes"
    return shown if len(changes) <= NAMES else f"{shown} and {len(changes) - NAMES} more"


def ending(warnings: Sequence[str], where: str) -> str:
    """The last line of a repr: how many warnings there are, and where to find more."""
    count = len(warnings)
    return f"{count} warning{'s' * (count > 1)}; {where}" if warnings else where


def page(head: str, told: Iterable[str], tables: Iterable[str], warnings: Iterable[str] = ()) -> str:
    """HTML: a heading, sentences, tables, warnings."""
    parts = [f"<p><b>{_escaped(head)}</b></p>", *(f"<p>{_escaped(line)}</p>" for line in told if line), *tables]
    parts += [f"<p><b>Warning:</b> {_escaped(line)}</p>" for line in warnings]
    return f"<div>{''.join(parts)}</div>"


def html_table(rows: Sequence[Row], right: Iterable[int] = ()) -> str:
    """The first row is the head; columns in `right` end flush."""
    flush = set(right)
    head, *body = rows

    def line(cells: Row, tag: str) -> str:
        sides = ("right" if place in flush else "left" for place in range(len(cells)))
        return "".join(
            f'<{tag} style="text-align: {side}">{_escaped(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )

    lines = "".join(f"<tr>{line(row, 'td')}</tr>" for row in body)
    return f"<table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{lines}</tbody></table>"


def _escaped(value: Any) -> str:
    return html.escape(cut(printable(str(value)), SENTENCE))
