"""What a user may have meant: the one change with which a check that failed succeeds."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from ...architectures.adapter import Adapter, Rule
from ...architectures.language import parse_rules
from ...architectures.sizes import get_field
from ...architectures.valid import names_of_rule
from ...errors import BoTError, PlanError

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, StopIteration)

LONGEST = 4  # factors of a product
Edit = Callable[[str], str]  # of the axes of a rule


@dataclass
class Remedies:
    """What was found for one model class, which is tried first for the others; it is searched for once."""

    changes: list[tuple[Adapter, str]] | None = None

    def clause(self, adapter: Adapter, succeeds: Callable[[Adapter], bool]) -> str:
        """A clause that says what to change, or empty if no single change is enough."""
        if self.changes is None:
            self.changes = list(islice((each for each in _changes(adapter) if _holds(succeeds, each[0])), 1))
        return next((f"; it does not with {text}" for changed, text in self.changes if _holds(succeeds, changed)), "")


def _holds(succeeds: Callable[[Adapter], bool], changed: Adapter) -> bool:
    try:
        return succeeds(changed)
    except (BoTError, *FAILURES):  # axes in that order have other lengths
        return False


def _changes(adapter: Adapter) -> Iterator[tuple[Adapter, str]]:
    """The adapter with another gain of scores or of a table of words, or with one module's rules in another way."""
    for role in adapter.scored:
        others = {name: gain for name, gain in adapter.gains.items() if name != role}
        if role in adapter.gains:
            yield replace(adapter, gains=others), f"no {role!r} in gains"
        yield replace(adapter, gains={**others, role: _unscaled}), f"gains={{{role!r}: lambda config: 1.0}}"
    for table, stream in _tables(adapter):
        if table in adapter.gains:
            others = {name: gain for name, gain in adapter.gains.items() if name != table}
            yield replace(adapter, gains=others), f"no {table!r} in gains"
        else:
            field = adapter.roles[stream].field
            root = partial(_root, field)
            text = f"gains={{{table!r}: lambda config: config.{field}**0.5}}"
            yield replace(adapter, gains={**adapter.gains, table: root}), text
    for product in dict.fromkeys(re.findall(r"\(\w+ \w+\)", " ".join(rule.text for rule in adapter.rules))):
        turned = " ".join(_reordered(product).split())
        rules = parse_rules("\n".join(rule.text.replace(product, turned) for rule in adapter.rules))
        yield replace(adapter, rules=rules), f"{turned} in place of {product} in all rules"
    orders = [partial(_reordered, place=place) for place in range(LONGEST - 1)]
    edits: list[Edit] = [_turned, _exchanged, _mirrored, *orders, _crossed, _uncrossed, *_followed(adapter)]
    modules: dict[str, list[int]] = {}
    for i, rule in enumerate(adapter.rules):
        modules.setdefault(rule.names.rpartition(".")[0], []).append(i)
    for numbers in modules.values():
        for edit in edits:
            edited = {i: text for i in numbers if (text := _edited(adapter.rules[i], edit))}
            try:
                parsed = {i: parse_rules(text)[0] for i, text in edited.items()}
            except PlanError:
                continue  # such as a ~ on the side that reads
            if parsed:
                rules = tuple(parsed.get(i, rule) for i, rule in enumerate(adapter.rules))
                yield replace(adapter, rules=rules), " and ".join(map(repr, edited.values()))


def _unscaled(_: object) -> float:
    return 1.0


def _root(field: str, config: object) -> float:
    width: int = get_field(config, field)
    return math.sqrt(width)


def _tables(adapter: Adapter) -> Iterator[tuple[str, str]]:
    """Modules with a table that writes a stream, such as that of words, and the stream."""
    for rule in adapter.rules:
        roles = [factor.role for factor in rule.factors]
        if not rule.maps and not rule.layered and len(roles) == 2 and roles[1] in adapter.roles.streams:
            yield from ((name.removesuffix(".weight"), roles[1]) for name in names_of_rule(rule))


def _followed(adapter: Adapter) -> list[Callable[[str], str]]:
    """Edits that write the role that follows a stream, such as a readout, in place of the stream, or the stream."""
    roles = adapter.roles
    pairs = [(name, other) for name in roles.streams for other in roles.moved_with(name)[1:]]
    return [partial(re.sub, rf"\b{a}\b", b) for pair in pairs for a, b in (pair, pair[::-1])]


def _edited(rule: Rule, edit: Callable[[str], str]) -> str:
    """The rule with other axes; empty if the edit changes nothing."""
    names, _, axes = " ".join(rule.text.split()).partition(":")
    changed = edit(axes.strip())
    return f"{names.strip()} : {changed}" if changed != axes.strip() else ""


def _turned(axes: str) -> str:
    """The arrow the other way.

    >>> _turned("ffn <- hidden")
    'ffn -> hidden'
    """
    return _swap(axes, "<-", "->")


def _swap(text: str, one: str, other: str) -> str:
    return text.replace(one, other) if one in text else text.replace(other, one)


def _exchanged(axes: str) -> str:
    """The sides exchanged.

    >>> _exchanged("+hidden <- ffn")
    'ffn -> +hidden'
    """
    parts = re.split(r"\s*(<-|->)\s*", axes)
    return f"{parts[2]} {_swap(parts[1], '<-', '->')} {parts[0]}" if len(parts) == 3 else axes


def _mirrored(axes: str) -> str:
    """The sides exchanged, with the arrow as it is.

    >>> _mirrored("+hidden <- ffn")
    'ffn <- +hidden'
    """
    return re.sub(r"(.+\S)\s*(<-|->)\s*(.+)", r"\3 \2 \1", axes)


def _reordered(axes: str, place: int = 0) -> str:
    """Two neighbouring factors of every product in the other order.

    >>> _reordered("(head_dim heads) <- hidden")
    '(heads head_dim) <- hidden'
    """

    def exchanged(product: re.Match[str]) -> str:
        factors = product[1].split()
        factors[place : place + 2] = reversed(factors[place : place + 2])
        return f"({' '.join(factors)})"

    return re.sub(r"\(([^()+]+)\)", exchanged, axes)


def _crossed(axes: str) -> str:
    """The last factor of every product on the reading side of a score.

    >>> _crossed("(heads score) <- hidden")
    '(heads ~score) <- hidden'
    """
    return re.sub(r"(?<=\s)([a-z]\w*)\)", r"~\1)", axes)


def _uncrossed(axes: str) -> str:
    return axes.replace("~", "")
