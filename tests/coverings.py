"""Which cases of a product of parameters the fast part runs: a covering array, chosen greedily, the same every time.

    @pytest.mark.covering("head", "family method")
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(("family", "head"), ALL_HEADS)

runs, of all heads times all methods, so many that each head occurs, and each method with each family. All other cases
are marked `slow`. Without arguments each value of each parameter occurs. `covering(few=2)` takes any two cases: of
tests that say the same of each family, and are long.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from zlib import crc32

import pytest


def covering(rows: Mapping[str, Mapping[str, object]], wanted: Sequence[Sequence[str]]) -> set[str]:
    """Names of rows in which every combination of values occurs that these parameters have in any row.

    >>> rows = {f"{a}{b}{c}": {"a": a, "b": b, "c": c} for a in range(3) for b in range(3) for c in range(3)}
    >>> len(covering(rows, ["a", "b", "c"])), len(covering(rows, ["ab", "c"])), len(covering(rows, ["abc"]))
    (3, 9, 27)
    """
    combinations = {
        name: {(parameters, tuple(row[one] for one in parameters)) for parameters in map(tuple, wanted)}
        for name, row in rows.items()
    }
    missing = set().union(*combinations.values())
    chosen, uses = set(), Counter()
    while missing:
        # The most that is new; among equals the values that were used least, so that they mix; among equals the one
        # that its name picks, so that several tests of the same parameters run different cases.
        gains = {name: len(combinations[name] & missing) for name in rows}
        most = max(gains.values())
        best = max(
            (name for name, gain in gains.items() if gain == most),
            key=lambda name: (-sum(uses[pair] for pair in rows[name].items()), crc32(name.encode())),
        )
        chosen.add(best)
        missing -= combinations[best]
        uses.update(rows[best].items())
    return chosen


def mark_slow(items: list[pytest.Item]) -> None:
    """Mark `slow` what the `covering` marks of tests leave out."""
    groups = defaultdict(list)
    for item in items:
        if item.get_closest_marker("covering"):
            if not hasattr(item, "callspec"):
                raise pytest.UsageError(f"{item.nodeid} is marked covering, but has no parameters.")
            groups[item.parent, item.originalname].append(item)
    for group in groups.values():
        rows = {item.name: {name: _key(value) for name, value in item.callspec.params.items()} for item in group}
        mark = group[0].get_closest_marker("covering")
        if few := mark.kwargs.get("few"):
            chosen = sorted(rows, key=lambda name: crc32(name.encode()))[:few]
        else:
            chosen = covering(rows, [one.split() for one in mark.args or group[0].callspec.params])
        for item in group:
            if item.name not in chosen:
                item.add_marker(pytest.mark.slow)


def _key(value: object) -> tuple[type, object]:
    """Equal for equal values, which may be dictionaries."""
    try:
        hash(value)
    except TypeError:
        value = repr(value)
    return type(value), value
