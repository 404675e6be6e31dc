"""How a transfer report is read: in a terminal, as a markdown page, as a few lines of a model card."""

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any, TypeAlias

import transformers

from ..architectures import ADAPTERS
from ..architectures.roles import Roles
from ..console.tables import ending, html_table, lines, markdown_table, page, some, table
from ..console.text import (
    NONE,
    SENTENCE,
    cut,
    figure,
    figures,
    literal,
    named,
    percent,
    percents,
    printable,
    shape,
    size,
    wrapped,
)
from ..planning.render import merge_layers

# What is printed is handed over by the class that is printed, which imports this module: no import goes back to it.
Report: TypeAlias = Any
Role: TypeAlias = Any
Stack: TypeAlias = Any
Tensor: TypeAlias = Any

WIDTH = 80
SHORT_NAME = 16  # characters of a role or action in a terminal
SHORT = 6  # names listed before "and n more"
ROLE_HEAD = ("role", "side", "source", "target", "tensors", "gain", "energy kept")
TENSOR_HEAD: tuple[str, ...] = (
    *("tensor", "action", "source", "target", "inherited", "gain", "energy kept"),
    *("by role", "noise", "std before", "std after", "how"),
)
MEANING = (
    "Energy kept: of the layers that are read, as the method may have ordered or turned them, the share of the "
    "squared weights that the maps can see. "
    "Gain: 1 for orthonormal maps. A dash: not measured, or without a meaning there."
)


def terminal(report: Report) -> str:
    """At most 80 columns: sizes, what each role kept, tensors with their layers merged, warnings."""
    before, after = report.classes
    head = f"{before} -> {after}, method {_method(report)}"
    source = report.provenance.get("source")
    lines = [*wrap(printable(head), WIDTH), *([cut(f"source {printable(str(source))}", WIDTH)] if source else [])]
    lines += [*wrapped(sizes_of(report), WIDTH), *wrap("; ".join(totals(report)), WIDTH), ""]
    if report.roles:
        lines += [*table([ROLE_HEAD, *map(role_row, report.roles)], WIDTH, right=range(2, 7)), ""]
    lines += [line for text in depth_of(report) for line in wrap(text, WIDTH)]
    lines += [*_tensor_table(report), "", *wrap(f"{MEANING} std: after / before.", WIDTH)]
    lines += [line for text in losses_of(report) for line in wrap(printable(text), WIDTH)]
    lines += [line for text in warnings_of(report) for line in wrap(f"warning: {text}", WIDTH)]
    return "\n".join(lines)


def summary(report: Report) -> str:
    """Markdown for a model card: sizes, inherited share, one table of roles, warnings."""
    told = (", ".join(sizes_of(report)), *totals(report), *depth_of(report), *losses_of(report))
    lines = [f"- {_arrows(literal(text))}" for text in told]
    lines += [f"- **Warning:** {literal(text)}" for text in warnings_of(report)]
    if report.roles:
        rows = [tuple(map(literal, role_row(one))) for one in report.roles]
        lines += ["", *markdown_table([ROLE_HEAD, *rows], right=range(2, 7)), "", literal(MEANING)]
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """The whole report: the summary, every tensor, what was dropped, the method and the source."""
    before, after = report.classes
    lines = [f"# Transfer report: {named(before)} to {named(after)}", "", summary(report), "", "## Tensors", ""]
    rows = [TENSOR_HEAD, *(tuple(map(named, _tensor_row(one))) for one in report.tensors)]
    lines += [*markdown_table(rows, right=(4, 5, 6, 8, 9, 10)), ""]
    sections = {
        "Layers": [("stack", "layers"), *((one.name, _left_out(one)) for one in report.stacks)],
        "Dropped source tensors": [("tensor", "reason"), *report.dropped.items()],
        "Method": [("name", "value"), *((name, str(value)) for name, value in report.method.items())],
        "Provenance": [("name", "value"), *((name, str(value)) for name, value in report.provenance.items())],
    }
    for title, (head, *facts) in sections.items():
        if facts:
            cells = [(named(name), literal(value)) for name, value in facts]
            lines += [f"## {title}", "", *markdown_table([head, *cells]), ""]
    return "\n".join(lines)


# -- facts in words -----------------------------------------------------------------------------


def _arrows(text: str) -> str:
    """Escaped `->` as one arrow, which needs no escape."""
    return text.replace("-\\>", "→")


def _method(report: Report) -> str:
    return str(report.method.get("method", NONE))


def sizes_of(report: Report) -> list[str]:
    """Every role with its length on both sides."""
    return [f"{role} {a}" if a == b else f"{role} {a} -> {b}" for role, (a, b) in _told_sizes(report).items()]


def _told_sizes(report: Report) -> dict[str, tuple[int, int]]:
    """The sizes of the roles that do not only repeat another one's."""
    echoes = known_roles(report).echoes
    return {role: pair for role, pair in report.sizes.items() if role not in echoes}


def known_roles(report: Report) -> Roles:
    """The roles of the architecture that a report is of; none where this process does not know it."""
    model_class = getattr(transformers, report.classes[0], None)
    adapter = ADAPTERS.get(getattr(getattr(model_class, "config_class", None), "model_type", ""))
    return adapter.roles if adapter else Roles()


def totals(report: Report) -> list[str]:
    """Parameters and bytes of both sides, what of the source is in the result, and how many tensors became what."""
    counts = {"copy": "copied", "resample": "resampled", "fresh": "initialised anew", "tie": "tied"}
    actions = [one.action for one in report.tensors]
    told = [f"{actions.count(action)} {word}" for action, word in counts.items() if action in actions]
    (before, after), (small, large) = report.parameters, report.bytes
    dtypes = " -> ".join(dict.fromkeys(report.dtypes))
    return [
        f"{before:,} -> {after:,} parameters, {size(small)} -> {size(large)} ({dtypes})",
        _inherited(report),
        f"tensors: {', '.join(told)}",
    ]


def _inherited(report: Report) -> str:
    """What of the source is in the result; that all of a smaller model comes from it would say nothing."""
    if report.method.get("fitted") is False:
        return f"nothing is learned yet: method {_method(report)} is to be fitted"
    if not report.shrinks:
        return f"{percent(report.inherited)} of the parameters inherited from the source"
    parameters = percent(report.parameters_kept)
    if report.energy_kept is None:
        return f"keeps {parameters} of the source's parameters, must be trained"
    return (
        f"keeps {percent(report.energy_kept)} of the source's energy in {parameters} of its parameters, must be trained"
    )


def depth_of(report: Report) -> list[str]:
    """One sentence for all stacks that are made of the same layers."""
    groups: dict[str, list[str]] = {}
    for one in report.stacks:
        groups.setdefault(_left_out(one), []).append(one.name)
    if len(groups) == 1:
        return [f"layers: {one}" for one in groups]
    return [f"layers: {one} ({len(names)} stacks, such as {printable(names[0])})" for one, names in groups.items()]


def _left_out(one: Stack) -> str:
    used = one.source_layers - len(one.left_out)
    what = f"{one.target_layers} made of {used} of {one.source_layers}"
    return f"{what}, left out: {', '.join(map(str, one.left_out))}" if one.left_out else what


def losses_of(report: Report) -> list[str]:
    """What did not come from the source, and what of the source went nowhere."""
    fresh = [one.name for one in report.tensors if one.action == "fresh"]
    told = [f"initialised anew: {_few(fresh)}"] if fresh else []
    stacks = {one.name.replace("{layer}", str(layer)) for one in report.stacks for layer in one.left_out}
    known = [name for name in report.dropped if name in stacks or name.partition(".")[2] in stacks]
    dropped = list(_merge(name for name in report.dropped if name not in known))
    return told + ([f"source tensors that nothing is made of: {_few(dropped)}"] if dropped else [])


def warnings_of(report: Report) -> list[str]:
    """The warnings, each of a length that can be shown."""
    return [cut(printable(text), SENTENCE) for text in report.warnings]


def _merge(names: Iterable[str]) -> dict[str, list[str]]:
    """`merge_layers`, which marks the layer by `#`, for names that may have one themselves."""
    every = list(names)
    return merge_layers([name for name in every if "#" not in name]) | {name: [name] for name in every if "#" in name}


def _few(names: list[str]) -> str:
    shown = ", ".join(cut(printable(name), 60) for name in names[:SHORT])
    return shown if len(names) <= SHORT else f"{shown} and {len(names) - SHORT} more"


# -- rows ---------------------------------------------------------------------------------------


def role_row(one: Role) -> tuple[str, ...]:
    """The cells under `ROLE_HEAD`."""
    lengths = str(one.before), str(one.after), str(one.tensors)
    return (
        cut(printable(one.role), SHORT_NAME),
        cut(printable(one.side), SHORT_NAME),
        *lengths,
        figure(one.gain),
        percent(one.energy_kept),
    )


def _tensor_row(one: Tensor) -> tuple[str, ...]:
    by_role = ", ".join(f"{role.role} {role.side} {percent(role.energy_kept)}" for role in one.roles)
    return (
        one.name,
        one.action,
        shape(one.source_shape),
        shape(one.shape),
        percent(one.inherited / one.parameters) if one.parameters else NONE,
        figure(one.gain),
        percent(one.energy_kept),
        by_role or NONE,
        percent(one.noise),
        figure(one.std_before),
        figure(one.std_after),
        one.reason or NONE,
    )


def stack_rows(report: Report) -> list[tuple[str, ...]]:
    """A head, and one row per stack of layers, its name as `h.{0...11}.attn`."""
    rows: list[tuple[str, ...]] = [("tensor", "action", "shape", "gain", "kept", "std")]
    for name, members in _merged(report):
        rows.append(
            (
                printable(name),
                cut(printable(members[0].action), SHORT_NAME),
                shape(members[0].shape),
                figures(one.gain for one in members),
                percents(one.energy_kept for one in members),
                figures(_spread(one) for one in members),
            )
        )
    return rows


def _tensor_table(report: Report) -> list[str]:
    """One row per stack of layers, under a row with what its names begin with."""
    head, *stacks = stack_rows(report)
    rows, last = [head], ""
    for name, *cells in stacks:
        stem, brace, rest = name.rpartition("}.")
        if brace and stem != last:
            rows.append((f"{stem}}}.*", *[""] * len(cells)))
        last = stem if brace else ""
        rows.append((f"  {rest}" if brace else rest, *cells))
    return table(rows, WIDTH, right=(3, 4, 5))


def _merged(report: Report) -> Iterator[tuple[str, list[Tensor]]]:
    """Tensors that differ in their layer alone, in the target's order."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for one in report.tensors:
        groups.setdefault((one.action, one.shape), []).append(one.name)
    merged = {members[0]: (name, members) for names in groups.values() for name, members in _merge(names).items()}
    rows = {one.name: one for one in report.tensors}
    for first in rows:
        if first in merged:
            name, members = merged[first]
            yield name, [rows[member] for member in members]


def _spread(one: Tensor) -> float | None:
    return one.std_after / one.std_before if one.std_before and one.std_after is not None else None


def report_lines(report: Report) -> str:
    """The repr of a report."""
    changed = [f"{role} {a} -> {b}" for role, (a, b) in _told_sizes(report).items() if a != b]
    return lines(
        f"Report: {' -> '.join(report.classes)}, method {report.method.get('method')}; {some(changed)}",
        *totals(report),
        ending(report.warnings, "print() shows every tensor, .plot() draws them"),
    )


def report_page(report: Report) -> str:
    """A report as HTML: what the printed one says, without the widths of a terminal."""
    roles = [html_table([ROLE_HEAD, *map(role_row, report.roles)], right=range(2, 7))] if report.roles else []
    return page(
        f"{' → '.join(report.classes)}, method {report.method.get('method')}",
        [", ".join(sizes_of(report)), "; ".join(totals(report))],
        [*roles, html_table(stack_rows(report), right=(3, 4, 5))],
        report.warnings,
    )
