"""Pairs of maps for one role: how it is resized where it is written and where it is read."""

from dataclasses import dataclass

import numpy as np

from ..ops.axis_map import AxisMap, banded, gather, identity, remembered
from ..ops.wavelets import analysis_map, split_places, synthesis_map


@dataclass(frozen=True)
class Pair:
    """How a role is resized where it is written (`produce`) and where it is read (`consume`).

    Growing keeps the function where `consume.T @ produce` is the identity, shrinking where
    `produce @ consume.T` is: every linear method is `W_t = R_out W_s C_in^T` with such pairs.
    """

    produce: AxisMap
    consume: AxisMap
    label: str = ""

    def swapped(self) -> "Pair":
        return Pair(self.consume, self.produce, self.label)

    @property
    def grows(self) -> bool:
        return self.produce.target > self.produce.source

    def reached(self) -> AxisMap:
        """Projection of a read axis onto what the grown signal reaches, C R^T; all of it if not grown."""
        return there_and_back(self.produce, self.consume) if self.grows else identity(self.produce.target)

    def low_band(self) -> AxisMap:
        """Projection onto what analysis takes for the low band, R C^T; all of it if not grown."""
        return there_and_back(self.consume, self.produce) if self.grows else identity(self.produce.target)

    @property
    def makes_twins(self) -> bool:
        """Whether two grown units are copies of one source unit, which training would never part."""
        return self.grows and self.produce.is_copy


@remembered
def there_and_back(one: AxisMap, other: AxisMap) -> AxisMap:
    return one.transposed().then(other)


@remembered
def kept(length: int) -> Pair:
    return Pair(identity(length), identity(length))


@remembered
def dual(source: int, target: int, wavelet: str) -> Pair:
    """(R, C) of unit gain and dual: synthesis and the adjoint of analysis, or the other way round."""
    if target > source:
        produce, adjoint = synthesis_map(source, target, wavelet, True), analysis_map(target, source, wavelet, True)
    else:
        produce, adjoint = analysis_map(source, target, wavelet, True), synthesis_map(target, source, wavelet, True)
    return Pair(produce, adjoint.transposed(), wavelet)


@remembered
def low_band_of_layers(source: int, target: int, wavelet: str) -> np.ndarray:
    """(target, target): the projection of a grown stack of layers onto its low band."""
    return dual(source, target, wavelet).low_band().dense()


@remembered
def raw(source: int, target: int, wavelet: str) -> Pair:
    """The orthonormal transform on either side, as the paper applies it (eqs. 1, 5 and 6)."""
    low_pass = synthesis_map if target > source else analysis_map
    one = low_pass(source, target, wavelet, False)
    return Pair(one, one, f"{wavelet} raw")


def low_pass(source: int, target: int, wavelet: str, module: bool) -> Pair:
    """The wavelet's maps: as the paper writes them on its modules, dual everywhere else."""
    if source == target:
        return kept(source)
    return raw(source, target, wavelet) if module else dual(source, target, wavelet)


def group_sizes(large: int, small: int) -> np.ndarray:
    """How many of `large` units each of `small` ones stands for, as even as integers allow.

    >>> group_sizes(5, 2).tolist()
    [2, 3]
    """
    return np.asarray(np.full(small, large // small) + split_places(small, large % small))


@remembered
def whole_units(source: int, target: int) -> Pair:
    """Copy or pick units without ever mixing two.

    The readers of a copied unit share its weight among the copies. A picked unit stands for its
    whole group: its readers add up what the group's readers had, so that copies shrink back.
    """
    small, large = min(source, target), max(source, target)
    counts = group_sizes(large, small)
    group = np.repeat(np.arange(small), counts)  # (large,): which small unit each belongs to
    copies = gather(group, small)
    if target > source:
        shares = banded(np.arange(large), group, 1.0 / counts[group], large, small)
        return Pair(copies, AxisMap(small, large, (shares,)), "copied")
    first = np.cumsum(counts) - counts
    return Pair(gather(first, source), copies.transposed(), "picked")


@remembered
def picked_units(source: int, target: int) -> Pair:
    """Pick the units that `whole_units` picks, for readers that are fitted to them alone."""
    counts = group_sizes(source, target)
    one = gather(np.cumsum(counts) - counts, source)
    return Pair(one, one, "picked")
