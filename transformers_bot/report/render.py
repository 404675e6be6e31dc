"""A transfer report as text for a terminal, as a Markdown page, and as a summary for a model card."""

import re
from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any, TypeAlias

import transformers

from ..architectures import ADAPTERS
from ..architectures.adapter import DEPTH, Roles
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

# The class of a report imports this module, so this module does not import the class.
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
    """Text of at most 80 columns: sizes, energy kept by role, a row for every stack of layers, warnings."""
    before, after = report.classes
    title = f"{before} -> {after}, method {_method(report)}"
    source = report.provenance.get("source")
    lines = [*wrap(printable(title), WIDTH), *([cut(f"source {printable(str(source))}", WIDTH)] if source else [])]
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
    facts = (", ".join(sizes_of(report)), *totals(report), *depth_of(report), *losses_of(report))
    lines = [f"- {_arrows(literal(text))}" for text in facts]
    lines += [f"- **Warning:** {literal(text)}" for text in warnings_of(report)]
    if report.roles:
        rows = [tuple(map(literal, role_row(role))) for role in report.roles]
        lines += ["", *markdown_table([ROLE_HEAD, *rows], right=range(2, 7)), "", literal(MEANING)]
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """The whole report: the summary, every tensor, the dropped ones, the method and the source."""
    before, after = report.classes
    lines = [f"# Transfer report: {named(before)} to {named(after)}", "", summary(report), "", "## Tensors", ""]
    rows = [TENSOR_HEAD, *(tuple(map(named, _tensor_row(entry))) for entry in report.tensors)]
    lines += [*markdown_table(rows, right=(4, 5, 6, 8, 9, 10)), ""]
    sections = {
        "Layers": [("stack", "layers"), *((entry.name, _left_out(entry)) for entry in report.stacks)],
        "Dropped source tensors": [("tensor", "reason"), *report.dropped.items()],
        "Method": [("name", "value"), *((name, str(value)) for name, value in report.method.items())],
        "Provenance": [("name", "value"), *((name, str(value)) for name, value in report.provenance.items())],
    }
    for title, (head, *facts) in sections.items():
        if facts:
            cells = [(named(name), literal(value)) for name, value in facts]
            lines += [f"## {title}", "", *markdown_table([head, *cells]), ""]
    return "\n".join(lines)


# -- facts as sentences -----------------------------------------------------------------------------


def _arrows(text: str) -> str:
    """The text with every escaped `->` written as an arrow character, which needs no escape."""
    return text.replace("-\\>", "→")


def _method(report: Report) -> str:
    return str(report.method.get("method", NONE))


def sizes_of(report: Report) -> list[str]:
    """Every role with its length on both sides."""
    return [f"{role} {a}" if a == b else f"{role} {a} -> {b}" for role, (a, b) in _own_sizes(report).items()]


def _own_sizes(report: Report) -> dict[str, tuple[int, int]]:
    """The sizes without those of roles that only repeat another role."""
    echoes = known_roles(report).echoes
    return {role: pair for role, pair in report.sizes.items() if role not in echoes}


def known_roles(report: Report) -> Roles:
    """The roles of the report's architecture; none if this process has no adapter for it."""
    model_class = getattr(transformers, report.classes[0], None)
    adapter = ADAPTERS.get(getattr(getattr(model_class, "config_class", None), "model_type", ""))
    return adapter.roles if adapter else Roles()


def totals(report: Report) -> list[str]:
    """Parameters and bytes of both sides, how much of the source is in the result, and the counts of actions."""
    verbs = {"copy": "copied", "resample": "resampled", "fresh": "initialised anew", "tie": "tied"}
    actions = [tensor.action for tensor in report.tensors]
    words = [f"{actions.count(action)} {verb}" for action, verb in verbs.items() if action in actions]
    (before, after), (small, large) = report.parameters, report.bytes
    dtypes = " -> ".join(dict.fromkeys(report.dtypes))
    return [
        f"{before:,} -> {after:,} parameters, {size(small)} -> {size(large)} ({dtypes})",
        _inherited(report),
        f"tensors: {', '.join(words)}",
    ]


def _inherited(report: Report) -> str:
    """How much of the source is in the result.

    For a smaller model this is a share of the source: all of the result comes from it, which would say nothing.
    """
    if report.method.get("fitted") is False:
        return f"nothing is learned yet: method {_method(report)} must be fitted"
    if not report.shrinks:
        return f"{percent(report.inherited)} of the parameters inherited from the source"
    parameters = percent(report.parameters_kept)
    if report.energy_kept is None:
        return f"keeps {parameters} of the source's parameters, must be trained"
    return (
        f"keeps {percent(report.energy_kept)} of the source's energy in {parameters} of its parameters, must be trained"
    )


def depth_of(report: Report) -> list[str]:
    """A sentence for every group of stacks that are made of the same layers."""
    groups: dict[str, list[str]] = {}
    for stack in report.stacks:
        groups.setdefault(_left_out(stack), []).append(stack.name)
    if len(groups) == 1:
        return [f"layers: {stack}" for stack in groups]
    return [f"layers: {stack} ({len(names)} stacks, such as {printable(names[0])})" for stack, names in groups.items()]


def _left_out(stack: Stack) -> str:
    used = stack.source_layers - len(stack.left_out)
    origin = f"{stack.target_layers} made of {used} of {stack.source_layers}"
    return f"{origin}, left out: {', '.join(map(str, stack.left_out))}" if stack.left_out else origin


def losses_of(report: Report) -> list[str]:
    """Sentences on tensors that do not come from the source, and on source tensors that are not used."""
    fresh = [entry.name for entry in report.tensors if entry.action == "fresh"]
    sentences = [f"initialised anew: {_few(fresh)}"] if fresh else []
    stacks = {re.sub(DEPTH, str(layer), entry.name) for entry in report.stacks for layer in entry.left_out}
    layers_left_out = [name for name in report.dropped if name in stacks or name.partition(".")[2] in stacks]
    dropped = list(_merge(name for name in report.dropped if name not in layers_left_out))
    return sentences + ([f"source tensors that nothing is made of: {_few(dropped)}"] if dropped else [])


def warnings_of(report: Report) -> list[str]:
    """The warnings, escaped and cut."""
    return [cut(printable(text), SENTENCE) for text in report.warnings]


def _merge(names: Iterable[str]) -> dict[str, list[str]]:
    """`merge_layers` for names that may hold a `#`, which it uses as its mark for the layer."""
    all_names = list(names)
    return merge_layers([name for name in all_names if "#" not in name]) | {
        name: [name] for name in all_names if "#" in name
    }


def _few(names: list[str]) -> str:
    shown = ", ".join(cut(printable(name), 60) for name in names[:SHORT])
    return shown if len(names) <= SHORT else f"{shown} and {len(names) - SHORT} more"


# -- rows ---------------------------------------------------------------------------------------


def role_row(role: Role) -> tuple[str, ...]:
    """The cells under `ROLE_HEAD`."""
    lengths = str(role.before), str(role.after), str(role.tensors)
    return (
        cut(printable(role.role), SHORT_NAME),
        cut(printable(role.side), SHORT_NAME),
        *lengths,
        figure(role.gain),
        percent(role.energy_kept),
    )


def _tensor_row(tensor: Tensor) -> tuple[str, ...]:
    by_role = ", ".join(f"{role.role} {role.side} {percent(role.energy_kept)}" for role in tensor.roles)
    return (
        tensor.name,
        tensor.action,
        shape(tensor.source_shape),
        shape(tensor.shape),
        percent(tensor.inherited / tensor.parameters) if tensor.parameters else NONE,
        figure(tensor.gain),
        percent(tensor.energy_kept),
        by_role or NONE,
        percent(tensor.noise),
        figure(tensor.std_before),
        figure(tensor.std_after),
        tensor.reason or NONE,
    )


def stack_rows(report: Report) -> list[tuple[str, ...]]:
    """The head, and one row per stack of layers with a name such as `h.{0...11}.attn`."""
    rows: list[tuple[str, ...]] = [("tensor", "action", "shape", "gain", "kept", "std")]
    for name, members in _merged(report):
        rows.append(
            (
                printable(name),
                cut(printable(members[0].action), SHORT_NAME),
                shape(members[0].shape),
                figures(tensor.gain for tensor in members),
                percents(tensor.energy_kept for tensor in members),
                figures(_spread(tensor) for tensor in members),
            )
        )
    return rows


def _tensor_table(report: Report) -> list[str]:
    """One row per stack of layers; stacks whose names begin alike stand under a row with that beginning."""
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
    """Groups of tensors that differ only in their layer, in the target's order."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for tensor in report.tensors:
        groups.setdefault((tensor.action, tensor.shape), []).append(tensor.name)
    merged = {members[0]: (name, members) for names in groups.values() for name, members in _merge(names).items()}
    rows = {tensor.name: tensor for tensor in report.tensors}
    for first in rows:
        if first in merged:
            name, members = merged[first]
            yield name, [rows[member] for member in members]


def _spread(tensor: Tensor) -> float | None:
    return tensor.std_after / tensor.std_before if tensor.std_before and tensor.std_after is not None else None


def report_lines(report: Report) -> str:
    """The repr of a report."""
    changed = [f"{role} {a} -> {b}" for role, (a, b) in _own_sizes(report).items() if a != b]
    return lines(
        f"Report: {' -> '.join(report.classes)}, method {report.method.get('method')}; {some(changed)}",
        *totals(report),
        ending(report.warnings, "print() shows every tensor, .plot() draws them"),
    )


def report_page(report: Report) -> str:
    """A report as HTML."""
    roles = [html_table([ROLE_HEAD, *map(role_row, report.roles)], right=range(2, 7))] if report.roles else []
    return page(
        f"{' → '.join(report.classes)}, method {report.method.get('method')}",
        [", ".join(sizes_of(report)), "; ".join(totals(report))],
        [*roles, html_table(stack_rows(report), right=(3, 4, 5))],
        report.warnings,
    )
