"""A plan as text, HTML and JSON types, the tensors of all layers in one row."""

import math
import re
import textwrap
from collections import Counter
from typing import Any, TypeAlias

from ..console.tables import ending, html_table, lines, page, some, table
from ..console.text import cut, printable, size, wrapped
from ..console.text import shape as shape_of

# The class of a plan imports this module, so this module does not import the class.
Plan: TypeAlias = Any
Step: TypeAlias = Any

Shape = tuple[int, ...]


def render(plan: Plan, width: int | None = None) -> str:
    """A table: sizes, one row per stack of layers, totals, warnings.

    Args:
        width: columns to fit it in, at least 60; None for rows of any length.
    """
    sizes, rows = sizes_of(plan), rows_of(plan)
    lines = table([HEADING, *rows])
    if width is not None and max(map(len, lines)) > width:
        lines = _narrow(rows, width)
    title = f"{plan.source.model_class} -> {plan.target.model_class}, method {plan.method['method']}"
    if width is not None:
        title = textwrap.fill(title, width, subsequent_indent="  ")
    sizes_and_totals = ("\n".join(wrapped(items, min(110, width or 110))) for items in (sizes, totals(plan)))
    notes = [f"warning: {printable(text)}" for text in plan.warnings]
    if width is not None:
        notes = [textwrap.fill(text, width, subsequent_indent="  ") for text in notes]
    return "\n".join([title, next(sizes_and_totals), "", *lines, "", next(sizes_and_totals), *notes])


def sizes_of(plan: Plan, changed: bool = False) -> list[str]:
    """Every role with its length on both sides; with `changed`, only the roles whose length differs."""
    return [
        f"{role} {before} -> {plan.target_sizes[role]}" if before != plan.target_sizes[role] else f"{role} {before}"
        for role, before in plan.source_sizes.items()
        if before is not None and role not in plan.roles.echoes and not (changed and before == plan.target_sizes[role])
    ]


def rows_of(plan: Plan) -> "list[Row]":
    """A row for every stack of layers, then the dropped tensors."""
    return [_printable(row) for row in (*_rows(plan), *_dropped_rows(plan))]


def merge_layers(names: list[str]) -> dict[str, list[str]]:
    """Group names that differ only in one layer number, shown as `h.{0...11}.attn`.

    >>> merge_layers(["h.0.w", "h.1.w", "wte"])
    {'h.{0, 1}.w': ['h.0.w', 'h.1.w'], 'wte': ['wte']}
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_pattern(name), []).append(name)
    return {_merged(pattern, members): members for pattern, members in groups.items()}


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", name, count=1)


def _merged(pattern: str, members: list[str]) -> str:
    if "#" not in pattern:
        return pattern
    numbers = sorted({int(match[1]) for name in members if (match := re.search(r"\.(\d+)\.", name))})
    if len(numbers) == 1:
        return pattern.replace("#", str(numbers[0]))
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        shown = f"{numbers[0]}...{numbers[-1]}"
    elif len(numbers) > 4:
        shown = f"{numbers[0]}, {numbers[1]}, ... {numbers[-1]}"
    else:
        shown = ", ".join(map(str, numbers))
    return pattern.replace("#", "{" + shown + "}")


Row = tuple[str, str, str, str, str]
LONGEST = 160  # characters of a name
HEADING: Row = ("action", "tensor", "source", "target", "how")


def _printable(row: Row) -> Row:
    """The row with names escaped and cut: a checkpoint can name its tensors anything, even terminal commands."""
    action, name, source, target, how = row
    return action, cut(printable(name), LONGEST), source, target, printable(how)


def _narrow(rows: list[Row], width: int) -> list[str]:
    """The table for few columns: a heading for each stack of layers, and `how` as the number of a note below."""
    notes = {how: str(number) for number, how in enumerate(dict.fromkeys(row[4] for row in rows if row[4]), 1)}
    cells: list[Row] = [HEADING]
    last = ""
    for action, name, source, target, how in rows:
        stem, indented = _stem(name)
        if stem and stem != last:
            cells.append(("", stem, "", "", ""))
        last = stem
        cells.append((action, indented, source, target, notes.get(how, "")))
    explanations = [textwrap.fill(f"{n:>3}  {how}", width, subsequent_indent=" " * 5) for how, n in notes.items()]
    return [*table(cells, width, right=(4,)), "", "how", *"\n".join(explanations).splitlines()]


def _stem(name: str) -> tuple[str, str]:
    """Split the name of a stack of layers: the part up to the layers, and the indented rest.

    >>> _stem("h.{0...5}.attn.weight"), _stem("wte.weight")
    (('h.{0...5}.', '  attn.weight'), ('', 'wte.weight'))
    """
    match = re.match(r"(.*?\.\{\d[^}]*\}\.)(?!\*$)(.+)", name)
    return (match[1], "  " + match[2]) if match else ("", name)


def _rows(plan: Plan) -> list[Row]:
    """One row per stack of layers; weight and bias share a row if action, shapes and reason are the same."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for step in plan.steps:
        stem, _, ending = _pattern(step.target).rpartition(".")
        source = shape_of(step.source_shape) if step.source_shape else "-"
        key = (step.action, stem, source, shape_of(step.shape), step.reason)
        groups.setdefault(key, []).append(step.target)
    rows = []
    for (action, stem, source, target, reason), members in groups.items():
        endings = list(dict.fromkeys(name.rpartition(".")[2] for name in members))
        ending = endings[0] if len(endings) == 1 else "{" + ",".join(endings) + "}"
        rows.append((action, _merged(f"{stem}.{ending}" if stem else ending, members), source, target, reason))
    return rows


def _dropped_rows(plan: Plan) -> list[Row]:
    """Dropped layers in one row per reason, other dropped tensors by name."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in plan.dropped.items():
        pattern = _pattern(name)
        shown = pattern.split("#")[0] + "#.*" if "#" in pattern else pattern
        groups.setdefault((shown, reason), []).append(name)
    rows = []
    for (shown, reason), members in groups.items():
        shape = plan.source.shapes.get(members[0])
        source = shape_of(shape) if shape and len(members) == 1 else f"{len(members)} tensors"
        rows.append(("drop", _merged(shown, members), source, "-", reason))
    return rows


def totals(plan: Plan) -> list[str]:
    """Parameters and bytes of both sides, and how much of the source is in the target."""
    return [
        f"parameters {plan.source_parameters:,} -> {plan.parameters:,}",
        f"bytes {size(plan.source_bytes)} -> {size(plan.target_bytes)}",
        _inherited(plan),
    ]


def _inherited(plan: Plan) -> str:
    """How much of the source is in the target.

    For a smaller target this is a share of the source: all of the target comes from it, which would say nothing.
    """
    if plan.method.get("fitted") is False:
        return f"nothing is learned yet: method {plan.method['method']} must be fitted"
    if plan.shrinks:
        return f"keeps {100 * parameters_kept(plan):.1f} % of the source's parameters, must be trained"
    return f"inherited {100 * plan.inherited:.1f} % of the target"


def parameters_kept(plan: Plan) -> float:
    """The share of the source's parameters that the target still has; new parameters do not count."""
    inherited = [step for step in plan.steps if step.action in ("copy", "resample")]
    before = Counter(_pattern(plan.source.canonical(name)) for name in plan.source.shapes)
    patterns = [_pattern(plan.target.canonical(step.target)) for step in inherited]
    after = Counter(patterns)
    common = (
        common_numbers(step.source_shape, step.shape, (before[pattern], after[pattern]))
        for step, pattern in zip(inherited, patterns, strict=True)
    )
    return min(1.0, float(sum(common)) / max(1, int(plan.source_parameters)))


def common_numbers(before: Shape | None, after: Shape, layers: tuple[int, int]) -> float:
    """How many entries of the source a target tensor can hold: the shorter length on every axis.

    >>> common_numbers((4, 4), (2, 8), (6, 12))
    4.0

    Args:
        before, after: shapes in the source and in the target.
        layers: of the stack, on both sides; a layer that is repeated counts once.
    """
    same_rank = before is not None and len(before) == len(after)
    common = math.prod(map(min, before, after)) if before is not None and same_rank else math.prod(after)
    return common * min(1.0, layers[0] / max(1, layers[1])) if layers[0] else float(common)


def plan_lines(plan: Plan) -> str:
    """The repr of a plan."""
    actions = {"copy": "copied", "resample": "resampled", "fresh": "initialised anew", "tie": "tied"}
    counts = [f"{len(plan.names(action))} {verb}" for action, verb in actions.items() if plan.names(action)]
    counts += [f"{len(plan.dropped)} of the source dropped"] if plan.dropped else []
    classes, method = (plan.source.model_class, plan.target.model_class), str(plan.method.get("method"))
    return lines(
        f"Plan: {' -> '.join(classes)}, method {method}; {some(sizes_of(plan, changed=True))}",
        "; ".join(totals(plan)),
        f"{len(plan.steps)} tensors: {', '.join(counts)}",
        ending(plan.warnings, "print() shows every tensor, .steps holds them"),
    )


def plan_page(plan: Plan) -> str:
    """A plan as HTML: sizes, one row per stack of layers, totals, warnings."""
    title = f"{plan.source.model_class} → {plan.target.model_class}, method {plan.method.get('method')}"
    return page(
        title,
        [", ".join(sizes_of(plan)), "; ".join(totals(plan))],
        [html_table([HEADING, *rows_of(plan)])],
        plan.warnings,
    )
