"""Noise that does not change the function of a grown model: in the part of a read axis that no signal reaches.

The signal on a grown axis is R x, so noise N in a matrix that reads it does not change the function if N R = 0.
If units are copied, N is drawn in the detail bands alone: N = Z D^T with D^T R = 0, where the columns of D are
orthonormal contrasts between copies. For longer filters it is drawn on the whole axis, and the part that the
signal reaches is removed: N = Z (I - R C^T).
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from ..architectures.adapter import Factor, Rule
from ..ops.axis_map import DENSE_TAPS, AxisMap, Band, Matrix, banded, identity, remembered
from ..ops.recipe import Segment, TensorMap
from .maps import Pair

PairsOf = Callable[[tuple[Factor, ...]], tuple[Pair, ...]]  # the pairs of a segment's factors, or one pair for all
Bands = tuple[int, tuple[Segment, ...]]  # an axis, and its maps from detail bands to target entries


def noise_maps(rule: Rule, pairs_of: PairsOf) -> tuple[TensorMap, Bands | tuple[()]] | None:
    """The projection to remove from a tensor's noise, or the bands to draw it in; None if no read axis grows."""
    sides = [[_sides(segment, pairs_of) for segment in axis.segments] for axis in rule.axes]
    grown = [pair for axis in sides for segment in axis for pair, reads in segment if reads and pair.grows]
    if not grown:
        return None
    if all(_has_contrasts(pair) for pair in grown):
        return (), _bands(sides)
    reached = (
        tuple(
            tuple(pair.reached() if reads else identity(pair.produce.target) for pair, reads in segment)
            for segment in axis
        )
        for axis in sides
    )
    return tuple(reached), ()


def _sides(segment: tuple[Factor, ...], pairs_of: PairsOf) -> list[tuple[Pair, bool]]:
    """The pairs of a segment, each with whether the tensor reads along it."""
    pairs = pairs_of(segment)
    reads = [factor.reads for factor in segment] if len(pairs) == len(segment) else [all(f.reads for f in segment)]
    return list(zip(pairs, reads, strict=True))


def _bands(sides: list[list[list[tuple[Pair, bool]]]]) -> Bands:
    """The one axis that noise is drawn along: it is enough to make copies differ.

    Keys read two axes: the stream, and what queries write. The axis of which every segment is read is chosen,
    because a fused matrix has queries and values beside the keys on the other one.
    """
    unreached = {dim: [_unreached(segment) for segment in axis] for dim, axis in enumerate(sides)}
    dim = max((dim for dim, maps in unreached.items() if any(maps)), key=lambda axis: all(unreached[axis]))
    pairs = (tuple(pair for pair, _ in segment) for segment in sides[dim])
    return dim, tuple(maps or _no_noise(own) for maps, own in zip(unreached[dim], pairs, strict=True))


def _unreached(segment: list[tuple[Pair, bool]]) -> Segment | None:
    """Maps of a segment's factors from noise to what no signal reaches; None if it reads no axis that grows."""
    grown = [i for i, (pair, reads) in enumerate(segment) if reads and pair.grows]
    if not grown:
        return None
    # Of a product of factors, what one factor does not reach is not reached: one factor is enough.
    return tuple(
        contrasts(pair) if i == grown[-1] else identity(pair.produce.target) for i, (pair, _) in enumerate(segment)
    )


@remembered
def copied_from(produce: AxisMap) -> np.ndarray | None:
    """The source entry that each target entry copies, all with one factor; None if the map does not only copy."""
    if produce.mixes:
        return None
    index, weight = np.arange(produce.source), np.ones(produce.source)
    for band in produce.bands:
        if not isinstance(band, Band) or band.index.shape[1] != 1:
            return None
        index, weight = index[band.index[:, 0]], weight[band.index[:, 0]] * band.weight[:, 0]
    return index if np.all(weight == weight[0]) else None


def _has_contrasts(pair: Pair) -> bool:
    """Whether units are copied, but so few times that a contrast between copies is a short filter."""
    owner = copied_from(pair.produce)
    return owner is not None and int(np.bincount(owner).max()) <= DENSE_TAPS


@remembered
def contrasts(pair: Pair) -> AxisMap:
    """The map D of copied units, from contrasts to target entries.

    Contrast k of a unit is its copy k + 1 against the copies 1 to k (Helmert contrasts).

    >>> from transformers_bot.methods.maps import dual
    >>> contrasts(dual(2, 3, "haar")).dense().round(3).T
    array([[ 0.   , -0.707,  0.707]])
    """
    owner = copied_from(pair.produce)
    if owner is None:
        raise ValueError("units that are not copied have no contrasts")
    count = len(owner) - len(np.unique(owner))
    return AxisMap(count, len(owner), partial(_contrast_bands, owner, count))


def _contrast_bands(owner: np.ndarray, count: int) -> tuple[Band | Matrix, ...]:
    order = np.argsort(owner, kind="stable")  # the copies of each unit side by side
    copies = np.bincount(owner)
    first = np.repeat(np.cumsum(copies) - copies, copies)
    before = np.arange(len(owner)) - first  # how many copies of the same unit come before each copy
    later = np.flatnonzero(before)  # one contrast for each of these
    size = before[later]
    column = np.repeat(np.arange(count), size + 1)
    place = np.arange(len(column)) - np.repeat(np.cumsum(size + 1) - size - 1, size + 1)
    rows = order[np.repeat(first[later], size + 1) + place]
    roots = np.array([(n * (n + 1)) ** 0.5 for n in range(int(size.max(initial=0)) + 1)])
    sizes = np.repeat(size, size + 1)
    values = np.where(place == sizes, sizes, -1.0) / roots[sizes]
    return (banded(rows, column, values, len(owner), count),)


@remembered
def _no_noise(pairs: tuple[Pair, ...]) -> Segment:
    """Maps that put no noise on a segment: from one drawn entry to none of its entries."""
    length, nothing = int(np.prod([pair.produce.target for pair in pairs])), np.zeros(0, dtype=np.int64)
    return (AxisMap(1, length, (banded(nothing, nothing, np.zeros(0), length, 1),)),)
