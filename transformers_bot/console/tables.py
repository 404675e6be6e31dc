"""Results as the last line of a cell: a few lines of text, and a table in a notebook.

Whatever a checkpoint calls its tensors, nothing of it is markup or steers a terminal. What stands in the lines
and tables of a result is said where the result is made.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from .text import SENTENCE, cut, printable

WIDTH = 110  # columns of a line of text
NAMES = 6  # the most that is listed of sizes that change
FOLLOWERS = ("readout", "score")  # roles whose lengths follow others
Row = Sequence[str]


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
    parts = [f"<p><b>{_text(head)}</b></p>", *(f"<p>{_text(line)}</p>" for line in told if line), *tables]
    parts += [f"<p><b>Warning:</b> {_text(line)}</p>" for line in warnings]
    return f"<div>{''.join(parts)}</div>"


def html_table(rows: Sequence[Row], right: Iterable[int] = ()) -> str:
    """The first row is the head; columns in `right` end flush."""
    flush = set(right)
    head, *body = rows

    def line(cells: Row, tag: str) -> str:
        sides = ("right" if place in flush else "left" for place in range(len(cells)))
        return "".join(
            f'<{tag} style="text-align: {side}">{_text(cell)}</{tag}>' for cell, side in zip(cells, sides, strict=True)
        )

    lines = "".join(f"<tr>{line(row, 'td')}</tr>" for row in body)
    return f"<table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{lines}</tbody></table>"


def _text(value: Any) -> str:
    return html.escape(cut(printable(str(value)), SENTENCE))
