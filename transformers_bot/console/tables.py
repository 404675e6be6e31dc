"""Tables as text for a terminal or a file, as Markdown, and as HTML for notebooks.

Names of tensors come from checkpoints: they are escaped, so that they cannot act as markup or control a terminal.
`rich` lays out the columns. It always writes plain text, so that a file never holds escape codes.
"""

import html
import io
import random
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from .text import SENTENCE, cut, printable

WIDTH = 110  # columns of a line of text
WIDEST = 2000  # columns of a table without a given width
NAMES = 6  # the most changed sizes that are listed
Row = Sequence[str]
RULE = "    \n    \n----\n    \n    \n    \n    \n    \n"  # rich's box with only the line under the head


def table(rows: Sequence[Row], width: int | None = None, right: Iterable[int] = ()) -> list[str]:
    """The lines of a table whose first row is the head; a long cell continues on the next line, nothing is cut.

    Example:
        >>> print(*table([("name", "count"), ("wte", "7")], right=(1,)), sep="\\n")
        name  count
        -----------
        wte       7

    Args:
        width: columns to fit it in, if needed by folding the widest cells; None for no limit.
        right: numbers of the columns that are aligned to the right.
    """
    _load_rich()
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    flush, (head, *body) = set(right), rows
    laid_out = Table(box=Box(RULE, ascii=True), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column, name in enumerate(head):
        justify: Any = "right" if column in flush else "left"
        laid_out.add_column(Text(name), justify=justify, overflow="fold", header_style="none")
    for row in body:
        laid_out.add_row(*(Text(printable(cell)) for cell in row))
    file = io.StringIO()
    plain = {"color_system": None, "force_terminal": False, "force_jupyter": False, "legacy_windows": False}
    Console(file=file, width=width or WIDEST, **plain).print(laid_out, crop=False)  # type: ignore[arg-type]
    return [line.rstrip() for line in file.getvalue().splitlines()]


def _load_rich() -> None:
    """Import rich, which takes a tenth of a second and so is not done with this module.

    Its first import draws a number from Python's generator, whose numbers belong to the caller: they start again where
    they were.
    """
    if "rich.style" in sys.modules:
        return
    import rich.color
    import rich.terminal_theme  # all that the next import needs, so that it is over at once

    state = random.getstate()
    import rich.style  # noqa: F401

    random.setstate(state)


def markdown_table(rows: Sequence[Row], right: Iterable[int] = ()) -> list[str]:
    """The lines of a Markdown table; the cells must be Markdown already."""
    flush = set(right)
    rule = ("---:" if column in flush else "---" for column in range(len(rows[0])))
    return ["| " + " | ".join(row) + " |" for row in (rows[0], tuple(rule), *rows[1:])]


def lines(*parts: str) -> str:
    """A repr with one line per part; empty parts are left out."""
    return "<" + "\n ".join(cut(printable(part), 2 * WIDTH) for part in parts if part) + ">"


def some(changes: Sequence[str]) -> str:
    """The first few changed sizes, and the number of the others."""
    shown = ", ".join(changes[:NAMES]) or "the same sizes"
    return shown if len(changes) <= NAMES else f"{shown} and {len(changes) - NAMES} more"


def ending(warnings: Sequence[str], where: str) -> str:
    """The last line of a repr: the number of warnings, and where to find more."""
    count = len(warnings)
    return f"{count} warning{'s' * (count > 1)}; {where}" if warnings else where


def page(title: str, sentences: Iterable[str], tables: Iterable[str], warnings: Iterable[str] = ()) -> str:
    """HTML of a title, sentences, tables and warnings."""
    parts = [f"<p><b>{_escaped(title)}</b></p>", *(f"<p>{_escaped(line)}</p>" for line in sentences if line), *tables]
    parts += [f"<p><b>Warning:</b> {_escaped(line)}</p>" for line in warnings]
    return f"<div>{''.join(parts)}</div>"


def html_table(rows: Sequence[Row], right: Iterable[int] = ()) -> str:
    """HTML of a table whose first row is the head; the columns in `right` are aligned to the right."""
    flush = set(right)
    head, *body = rows

    def line(cells: Row, tag: str) -> str:
        sides = ("right" if column in flush else "left" for column in range(len(cells)))
        return "".join(
            f'<{tag} style="text-align: {side}">{_escaped(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )

    lines = "".join(f"<tr>{line(row, 'td')}</tr>" for row in body)
    return f"<table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{lines}</tbody></table>"


def _escaped(value: Any) -> str:
    return html.escape(cut(printable(str(value)), SENTENCE))
