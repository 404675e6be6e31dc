"""Where noise may go when a model grows: along what a matrix reads, into what the grown signal never reaches.

A grown axis carries R x, so a matrix may have noise N there without a change of the function if N R = 0.
Where units are copied, N is drawn in the detail bands alone: N = Z D^T with D^T R = 0, where the columns of D
are orthonormal contrasts between copies. Of longer filters it is drawn everywhere, less what is reached:
N = Z (I - R C^T).
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from ..architectures.adapter import Factor, Rule
from ..ops.axis_map import DENSE_TAPS, AxisMap, Band, Matrix, banded, identity, remembered
from ..ops.recipe import Segment, TensorMap
from .maps import Pair

PairsOf = Callable[[tuple[Factor, ...]], tuple[Pair, ...]]  # of a segment's factors, or one of all of them
Bands = tuple[int, tuple[Segment, ...]]  # an axis, and its maps from the detail bands to the target


def noise_maps(rule: Rule, pairs_of: PairsOf) -> tuple[TensorMap, Bands | tuple[()]] | None:
    """What is taken away from a tensor's noise, or the bands it is drawn in; None if it reads nothing that grows."""
    sides = [[_sides(segment, pairs_of) for segment in axis.segments] for axis in rule.axes]
    grown = [pair for axis in sides for segment in axis for pair, reads in segment if reads and pair.grows]
    if not grown:
        return None
    if all(_has_contrasts(pair) for pair in grown):
        return (), _bands(sides)
    reached = (
        tuple(tuple(pair.reached() if reads else identity(pair.produce.target) for pair, reads in one) for one in axis)
        for axis in sides
    )
    return tuple(reached), ()


def _sides(segment: tuple[Factor, ...], pairs_of: PairsOf) -> list[tuple[Pair, bool]]:
    """The pairs of a segment, and whether it reads along them."""
    pairs = pairs_of(segment)
    reads = [factor.reads for factor in segment] if len(pairs) == len(segment) else [all(f.reads for f in segment)]
    return list(zip(pairs, reads, strict=True))


def _bands(sides: list[list[list[tuple[Pair, bool]]]]) -> Bands:
    """One axis is enough to part what would be twins. Of two that are read (by keys: the stream and queries) the
    one that is read as a whole is taken (queries and values stand beside the keys in a fused matrix).
    """
    found = {dim: [_unreached(segment) for segment in axis] for dim, axis in enumerate(sides)}
    dim = max((dim for dim, maps in found.items() if any(maps)), key=lambda one: all(found[one]))
    silent = (tuple(pair for pair, _ in segment) for segment in sides[dim])
    return dim, tuple(maps or _silent(pairs) for maps, pairs in zip(found[dim], silent, strict=True))


def _unreached(segment: list[tuple[Pair, bool]]) -> Segment | None:
    """Maps of a segment's factors from noise to what is not reached; None where it reads nothing that grows."""
    grown = [i for i, (pair, reads) in enumerate(segment) if reads and pair.grows]
    if not grown:
        return None
    # What one factor does not reach is not reached, whatever the others do.
    return tuple(
        contrasts(pair) if i == grown[-1] else identity(pair.produce.target) for i, (pair, _) in enumerate(segment)
    )


@remembered
def copied_from(produce: AxisMap) -> np.ndarray | None:
    """Of which source entry every target entry is a copy, with one factor for all of them; None if it is none."""
    if produce.mixes:
        return None
    index, weight = np.arange(produce.source), np.ones(produce.source)
    for band in produce.bands:
        if not isinstance(band, Band) or band.index.shape[1] != 1:
            return None
        index, weight = index[band.index[:, 0]], weight[band.index[:, 0]] * band.weight[:, 0]
    return index if np.all(weight == weight[0]) else None


def _has_contrasts(pair: Pair) -> bool:
    """Whether units are copied, and so few times that a contrast of each against those before it is a short filter."""
    owner = copied_from(pair.produce)
    return owner is not None and int(np.bincount(owner).max()) <= DENSE_TAPS


@remembered
def contrasts(pair: Pair) -> AxisMap:
    """The map D of copied units: from contrasts, of the first few copies of a unit against the next one, to the target.

    >>> from transformers_bot.methods.maps import dual
    >>> contrasts(dual(2, 3, "haar")).dense().round(3).T
    array([[ 0.   , -0.707,  0.707]])
    """
    owner = copied_from(pair.produce)
    if owner is None:
        raise ValueError("units that are not copied have no contrasts")
    count = len(owner) - len(np.unique(owner))
    return AxisMap(count, len(owner), partial(_contrasting, owner, count))


def _contrasting(owner: np.ndarray, count: int) -> tuple[Band | Matrix, ...]:
    order = np.argsort(owner, kind="stable")  # the copies of each unit side by side
    copies = np.bincount(owner)
    first = np.repeat(np.cumsum(copies) - copies, copies)
    before = np.arange(len(owner)) - first  # of every copy, how many of its unit stand before it
    later = np.flatnonzero(before)  # of each, one contrast
    size = before[later]
    column = np.repeat(np.arange(count), size + 1)
    place = np.arange(len(column)) - np.repeat(np.cumsum(size + 1) - size - 1, size + 1)
    rows = order[np.repeat(first[later], size + 1) + place]
    roots = np.array([(n * (n + 1)) ** 0.5 for n in range(int(size.max(initial=0)) + 1)])
    long = np.repeat(size, size + 1)
    values = np.where(place == long, long, -1.0) / roots[long]
    return (banded(rows, column, values, len(owner), count),)


@remembered
def _silent(pairs: tuple[Pair, ...]) -> Segment:
    """No noise on a segment: one entry of it that goes nowhere."""
    length, nothing = int(np.prod([pair.produce.target for pair in pairs])), np.zeros(0, dtype=np.int64)
    return (AxisMap(1, length, (banded(nothing, nothing, np.zeros(0), length, 1),)),)
