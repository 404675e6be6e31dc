"""Where noise may go when a model grows: along what a matrix reads, into what the grown signal never reaches.

A grown axis carries R x, so a matrix may have noise Z D^T there without a change of the function if
D^T R = 0: the columns of D are the detail bands. Of copies they are the contrasts between these, taken
orthonormal, so that Z has no more entries than there are details; of longer filters D^T is I - R C^T.
"""

from collections.abc import Callable

import numpy as np

from ..axes import Factor, Rule
from ..maps import AxisMap, Band, banded, identity, merged
from ..recipe import Segment
from .pairs import Pair, remembered

PairsOf = Callable[[tuple[Factor, ...]], tuple[Pair, ...]]  # of a segment's factors, or one of all of them


def unseen_along(rule: Rule, pairs_of: PairsOf) -> tuple[int, tuple[Segment, ...]] | None:
    """The axis along which a tensor gets noise, and the maps from there; None if it reads nothing that grows.

    One axis is enough to part what would be twins. Of two that are read (by keys: the stream and queries)
    the one that is read as a whole is taken (queries and values stand beside the keys in a fused matrix).
    """
    found = {dim: [_unseen(segment, pairs_of) for segment in axis.segments] for dim, axis in enumerate(rule.axes)}
    dims = [dim for dim, maps in found.items() if any(maps)]
    if not dims:
        return None
    dim = max(dims, key=lambda one: all(found[one]))
    pairs = zip(found[dim], rule.axes[dim].segments, strict=True)
    return dim, tuple(maps or _silent(pairs_of(segment)) for maps, segment in pairs)


def _unseen(segment: tuple[Factor, ...], pairs_of: PairsOf) -> Segment | None:
    """Maps of a segment's factors from noise to what is not reached; None where it reads nothing that grows."""
    pairs = pairs_of(segment)
    reads = [factor.reads for factor in segment] if len(pairs) == len(segment) else [all(f.reads for f in segment)]
    grown = [i for i, (pair, one) in enumerate(zip(pairs, reads, strict=True)) if one and pair.grows]
    if not grown:
        return None
    # What one factor does not reach is not reached, whatever the others do.
    return tuple(details(pair) if i == grown[-1] else identity(pair.produce.target) for i, pair in enumerate(pairs))


@remembered
def details(pair: Pair) -> AxisMap:
    """The map D of a pair that grows, from its detail bands to the target: D^T R = 0.

    >>> from transformers_bot.methods.pairs import dual
    >>> details(dual(2, 3, "haar")).dense().round(3).T
    array([[ 0.   , -0.707,  0.707]])
    """
    produce, target = pair.produce, pair.produce.target
    owner = _owner(produce)
    if owner is None:
        there_and_back = merged(pair.consume.transposed().then(pair.produce).transposed())  # C R^T
        rows, here = np.repeat(np.arange(target), there_and_back.index.shape[1]), np.arange(target)
        columns, weights = there_and_back.index.reshape(-1), -there_and_back.weight.reshape(-1)
        every = (np.append(rows, here), np.append(columns, here), np.append(weights, np.ones(target)))
        return AxisMap(target, target, (banded(*every, target, target),))
    return _contrasts(owner)


def _owner(produce: AxisMap) -> np.ndarray | None:
    """Of which source entry every target entry is a copy, with one factor for all of them; None if it is none."""
    index, weight = np.arange(produce.source), np.ones(produce.source)
    for band in produce.bands:
        if not isinstance(band, Band) or band.index.shape[1] != 1:
            return None
        index, weight = index[band.index[:, 0]], weight[band.index[:, 0]] * band.weight[:, 0]
    return index if np.all(weight == weight[0]) else None


def _contrasts(owner: np.ndarray) -> AxisMap:
    """Orthonormal contrasts between copies: of the first few of a unit against the next one."""
    order = np.argsort(owner, kind="stable")
    rows, columns, values, count = [], [], [], 0
    for members in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        for size in range(1, len(members)):
            rows.append(members[: size + 1])
            columns.append(np.full(size + 1, count))
            values.append(np.append(np.full(size, -1.0), size) / (size * (size + 1)) ** 0.5)
            count += 1
    band = banded(np.concatenate(rows), np.concatenate(columns), np.concatenate(values), len(owner), count)
    return AxisMap(count, len(owner), (band,))


@remembered
def _silent(pairs: tuple[Pair, ...]) -> Segment:
    """No noise on a segment: one entry of it that goes nowhere."""
    length, nothing = int(np.prod([pair.produce.target for pair in pairs])), np.zeros(0, dtype=np.int64)
    return (AxisMap(1, length, (banded(nothing, nothing, np.zeros(0), length, 1),)),)
