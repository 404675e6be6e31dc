"""How results look as the last line of a cell: a few lines of text, and a table in a notebook.

Whatever a checkpoint calls its tensors, nothing of it is markup or steers a terminal.
"""

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .report_text import SENTENCE, cut, percent, printable, shape, size
from .table import HEADING, rows_of, sizes_of, totals

if TYPE_CHECKING:
    from .inspecting import Inspection
    from .options import BoTConfig
    from .planner import Plan
    from .report import Report
    from .suggesting import Suggestion
    from .verifying import Verification

WIDTH = 110  # columns of a line of text
NAMES, LINES = 6, 50  # the most that is listed of sizes that change, and of differences in a page
Row = Sequence[str]


# -- text ---------------------------------------------------------------------------------------


def plan_lines(plan: "Plan") -> str:
    """The repr of a plan."""
    actions = {"copy": "copied", "resample": "resampled", "fresh": "initialised anew", "tie": "tied"}
    counts = [f"{len(plan.names(one))} {word}" for one, word in actions.items() if plan.names(one)]
    counts += [f"{len(plan.dropped)} of the source dropped"] if plan.dropped else []
    classes, method = (plan.source.model_class, plan.target.model_class), str(plan.method.get("method"))
    return _lines(
        f"Plan: {' -> '.join(classes)}, method {method}; {_some(sizes_of(plan, changed=True))}",
        "; ".join(totals(plan)),
        f"{len(plan.steps)} tensors: {', '.join(counts)}",
        _more(plan.warnings, "print() shows every tensor, .steps holds them"),
    )


def report_lines(report: "Report") -> str:
    """The repr of a report."""
    from .report_view import totals as told  # numpy, which a plan does without

    changed = [f"{role} {a} -> {b}" for role, (a, b) in report.sizes.items() if a != b and role not in HIDDEN]
    return _lines(
        f"Report: {' -> '.join(report.classes)}, method {report.method.get('method')}; {_some(changed)}",
        *told(report),
        _more(report.warnings, "print() shows every tensor, .plot() draws them"),
    )


def inspection_lines(found: "Inspection") -> str:
    """The repr of an inspection."""
    lengths = [f"{role} {length}" for role, length in found.sizes.items() if length and role not in HIDDEN]
    missing = [f"{len(found.missing)} tensors are missing"] if found.missing else []
    missing += [f"{len(found.unexpected)} are of no such model"] if found.unexpected else []
    return _lines(
        f"Inspection: {found.model_class}, {found.parameters:,} parameters, {size(found.bytes)}",
        ", ".join(lengths),
        f"{len(found.stacks)} kinds of tensors, wavelet {found.wavelet}; {'; '.join([*missing, '.plot() draws them'])}",
    )


def verification_lines(one: "Verification") -> str:
    """The repr of a verification: its verdict, without a line for every tensor."""
    head, *others = str(one).splitlines()
    return _lines(f"Verification: {head}", *([f"{len(others)} more lines: print() shows them"] if others else []))


def suggestion_line(one: "Suggestion") -> str:
    """The repr of a suggestion."""
    fields = ", ".join(f"{name}={value!r}" for name, value in one.fields.items())
    told = f"{one.parameters:,} parameters ({100 * one.off:+.1f} %), {size(one.bytes)}, {one.flops:.2f} of the FLOPs"
    return f"<Suggestion: {printable(fields)}; {told}, keeps {percent(one.kept)} of the source's parameters>"


HIDDEN = ("readout", "score")  # roles that follow others


def _lines(*parts: str) -> str:
    return "<" + "\n ".join(cut(printable(part), 2 * WIDTH) for part in parts if part) + ">"


def _some(changes: list[str]) -> str:
    shown = ", ".join(changes[:NAMES]) or "the same sizes"
    return shown if len(changes) <= NAMES else f"{shown} and {len(changes) - NAMES} more"


def _more(warnings: Sequence[str], where: str) -> str:
    count = len(warnings)
    return f"{count} warning{'s' * (count > 1)}; {where}" if warnings else where


# -- pages --------------------------------------------------------------------------------------


def plan_page(plan: "Plan") -> str:
    """A plan as HTML: sizes, one row per stack of layers, totals, warnings."""
    head = f"{plan.source.model_class} → {plan.target.model_class}, method {plan.method.get('method')}"
    return _page(
        head,
        [", ".join(sizes_of(plan)), "; ".join(totals(plan))],
        [_table([HEADING, *rows_of(plan)])],
        plan.warnings,
    )


def report_page(report: "Report") -> str:
    """A report as HTML: what the printed one says, without the widths of a terminal."""
    from .report_view import ROLE_HEAD, role_row, sizes_of, stack_rows, totals  # as above

    roles = [_table([ROLE_HEAD, *map(role_row, report.roles)], right=range(2, 7))] if report.roles else []
    return _page(
        f"{' → '.join(report.classes)}, method {report.method.get('method')}",
        [", ".join(sizes_of(report)), "; ".join(totals(report))],
        [*roles, _table(stack_rows(report), right=(3, 4, 5))],
        report.warnings,
    )


def suggestions_page(every: Sequence["Suggestion"]) -> str:
    """Suggestions as one HTML table, the best first."""
    head = ("keywords", *("layers", "hidden", "heads", "ffn"), "parameters", "off", "bytes", "FLOPs", "kept", "notes")
    rows = []
    for one in every:
        fields = ", ".join(f"{name}={value!r}" for name, value in one.fields.items())
        sizes = (str(one.sizes[role]) for role in ("layer", "hidden", "heads", "ffn"))
        cost = f"{one.parameters:,}", f"{100 * one.off:+.1f} %", size(one.bytes), f"{one.flops:.2f}x", percent(one.kept)
        rows.append((fields, *sizes, *cost, "; ".join(one.notes)))
    told = "off: from what was asked; FLOPs: of a token, beside the source's; kept: of the source's parameters"
    return _page("Suggestions", [told], [_table([head, *rows], right=range(1, 10))])


def verification_page(one: "Verification") -> str:
    """A verification as HTML: the verdict, and a list of differences that has an end."""
    head, *lines = str(one).splitlines()
    shown = [line.strip() for line in lines[:LINES]]
    shown += [f"and {len(lines) - LINES} more"] if len(lines) > LINES else []
    return _page(head, [], [_table([("difference",), *((line,) for line in shown)])] if shown else [])


def inspection_page(found: "Inspection") -> str:
    """An inspection as HTML: every kind of tensor, and what halving each of its roles keeps."""
    roles = list(dict.fromkeys(role for stack in found.stacks for role in stack.kept))
    rows: list[Row] = [("tensor", "shape", "layers", "bytes", "axes", *roles)]
    for one in found.stacks:
        kept = (one.kept.get(role) for role in roles)
        shares = ("" if share is None else f"{share:.2f}" for share in kept)
        weight = size(one.bytes) if one.parameters else "tied"
        rows.append((one.name, shape(one.shape), str(one.layers or ""), weight, one.axes, *shares))
    lengths = ", ".join(f"{role} {length}" for role, length in found.sizes.items() if length and role not in HIDDEN)
    gaps = [f"{len(found.missing)} tensors are not in the checkpoint"] if found.missing else []
    gaps += [f"{len(found.unexpected)} tensors are not part of {found.model_class}"] if found.unexpected else []
    return _page(
        f"{found.model_class}: {found.parameters:,} parameters, {size(found.bytes)}",
        [lengths, f"the columns of roles: share of the energy that halving keeps, wavelet {found.wavelet}"],
        [_table(rows, right=(2, 3, *range(5, 5 + len(roles))))],
        [*gaps, *found.notes],
    )


def options_page(options: "BoTConfig") -> str:
    """Options as HTML: all of them, those that differ from the default in bold."""
    from .options import BoTConfig

    usual = BoTConfig().to_dict()
    rows = [(name, str(value), "" if value == usual[name] else "chosen") for name, value in options.to_dict().items()]
    return _page("BoTConfig", [], [_table([("option", "value", ""), *rows])])


def _page(head: str, told: Iterable[str], tables: Iterable[str], warnings: Iterable[str] = ()) -> str:
    parts = [f"<p><b>{_text(head)}</b></p>", *(f"<p>{_text(line)}</p>" for line in told if line), *tables]
    parts += [f"<p><b>Warning:</b> {_text(line)}</p>" for line in warnings]
    return f"<div>{''.join(parts)}</div>"


def _table(rows: Sequence[Row], right: Iterable[int] = ()) -> str:
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
