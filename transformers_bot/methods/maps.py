"""Maps of one axis: pairs of maps for written and read axes, resampled positions, noise, rules for depth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..architectures.adapter import Factor, Rule
from ..errors import BadOption
from ..ops.axis_map import (
    DENSE_TAPS,
    AxisMap,
    Band,
    Matrix,
    banded,
    from_dense,
    gather,
    identity,
    remembered,
    split_places,
    tiled,
)
from ..ops.recipe import Segment, TensorMap
from ..ops.wavelets import analysis_map, synthesis_map


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
        """The projection C R^T of a read axis onto what a grown signal reaches; the identity if it does not grow."""
        return projection(self.produce, self.consume) if self.grows else identity(self.produce.target)

    def low_band(self) -> AxisMap:
        """The projection R C^T onto the low band of analysis; the identity if the axis does not grow."""
        return projection(self.consume, self.produce) if self.grows else identity(self.produce.target)

    @property
    def makes_copies(self) -> bool:
        """Whether grown units are copies of one source unit: without noise training would keep them equal."""
        return self.grows and self.produce.is_copy


@remembered
def projection(reader: AxisMap, writer: AxisMap) -> AxisMap:
    """W R^T for a writer W and a reader R: a projection where R^T W is the identity."""
    return reader.transposed().then(writer)


@remembered
def identity_pair(length: int) -> Pair:
    """The pair of an axis that keeps its length."""
    return Pair(identity(length), identity(length))


@remembered
def dual(source: int, target: int, wavelet: str) -> Pair:
    """R with unit gain on constants and its dual C: synthesis and the adjoint of analysis, or the reverse."""
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
    orthonormal = low_pass(source, target, wavelet, False)
    return Pair(orthonormal, orthonormal, f"{wavelet} raw")


def low_pass(source: int, target: int, wavelet: str, as_written: bool) -> Pair:
    """The wavelet's maps: as the paper writes them for its four modules, or a dual pair."""
    if source == target:
        return identity_pair(source)
    return raw(source, target, wavelet) if as_written else dual(source, target, wavelet)


def group_sizes(large: int, small: int) -> np.ndarray:
    """How many of `large` units belong to each of `small` groups, as even as integers allow.

    >>> group_sizes(5, 2).tolist()
    [2, 3]
    """
    return np.asarray(np.full(small, large // small) + split_places(small, large % small))


@remembered
def whole_units(source: int, target: int) -> Pair:
    """Copy or pick units; two units are never mixed.

    The readers of a copied unit share its weight equally. A picked unit stands for its whole group: its
    readers take the sum of the weights of the group's readers, so that shrinking undoes copying.
    """
    small, large = min(source, target), max(source, target)
    counts = group_sizes(large, small)
    group = np.repeat(np.arange(small), counts)  # (large,): the group of each unit
    copies = gather(group, small)
    if target > source:
        shares = banded(np.arange(large), group, 1.0 / counts[group], large, small)
        return Pair(copies, AxisMap(small, large, (shares,)), "copied")
    first = np.cumsum(counts) - counts
    return Pair(gather(first, source), copies.transposed(), "picked")


@remembered
def picked_units(source: int, target: int) -> Pair:
    """Pick the units that `whole_units` picks, without sums: their readers are fitted to them afterwards."""
    counts = group_sizes(source, target)
    selection = gather(np.cumsum(counts) - counts, source)
    return Pair(selection, selection, "picked")


@remembered
def frequencies(source: int, target: int) -> Pair:
    """Rotary pairs. Growing puts zeros between the old pairs, shrinking keeps every n-th.

    Pair i of n rotates by theta^(-i / n), as pair i r of r n does. Queries and keys take the same map: a score is a
    sum over the pairs, to which a new pair adds nothing while one side is zero.
    """
    if target > source:
        places = np.round(np.arange(source) * (target / source)).astype(np.int64)
        spread = banded(places, np.arange(source), np.ones(source), target, source)
        both = AxisMap(source, target, (spread,))
        return Pair(both, both, "zeros between frequencies")
    both = gather(np.round(np.arange(target) * (source / target)).astype(np.int64), source)
    return Pair(both, both, "every n-th frequency")


@remembered
def nearest(source: int, target: int) -> AxisMap:
    """The map of what multiplies rotary pairs, such as a norm's weight: each pair takes that of the nearest old one."""
    index = np.round(np.arange(target) * (source / target)).astype(np.int64)
    return gather(index.clip(0, source - 1), source)


SMALL = 1 << 22  # entries of a matrix; up to this size torch interpolates the identity, which gives the weights

periodic = tiled  # every position keeps its index; positions beyond the source repeat it from the start


@remembered
def interpolation(source: int, target: int, mode: str = "bilinear", antialias: bool = True) -> AxisMap:
    """Resample positions over the whole length, as torch's `interpolate` does.

    Args:
        mode: "bilinear" or "bicubic".
        antialias: low-pass when shrinking, so that no position is skipped; it does not change growing.
    """
    low_passed = antialias and target < source
    is_small = source * max(source, target) <= SMALL
    return AxisMap(
        source, target, partial(_measured_weights if is_small else _formula_weights, source, target, mode, low_passed)
    )


def _measured_weights(source: int, target: int, mode: str, low_passed: bool) -> tuple[Band | Matrix, ...]:
    """The weights of torch, read from the result of interpolating the identity."""
    eye = torch.eye(source, dtype=torch.float64)[None, None]  # (1, 1, position, source)
    mapped = F.interpolate(eye, size=(target, source), mode=mode, align_corners=False, antialias=low_passed)
    return from_dense(mapped[0, 0].numpy()).bands


def _formula_weights(source: int, target: int, mode: str, low_passed: bool) -> tuple[Band | Matrix, ...]:
    """The same weights by torch's formula, for lengths whose identity would be too large."""
    bicubic = mode == "bicubic"
    stretch = source / target if low_passed else 1.0
    sharpness = -0.5 if low_passed else -0.75  # torch's parameter of the cubic, with and without `antialias`
    reach = (2.0 if bicubic else 1.0) * stretch
    centre = source / target * (np.arange(target) + 0.5) - 0.5
    if not (bicubic or low_passed):
        centre = centre.clip(0, source - 1)
    first = np.ceil(centre - reach).astype(np.int64)
    index = first[:, None] + np.arange(int(2 * reach) + 1)  # (target, taps)
    distance = np.abs(index - centre[:, None]) / stretch
    weight = _cubic(distance, sharpness) if bicubic else np.maximum(0.0, 1 - distance)
    if low_passed:  # with `antialias` torch drops taps beyond the ends; without, they read the first or last entry
        weight[(index < 0) | (index >= source)] = 0
        weight /= weight.sum(1, keepdims=True)
    rows, taps = np.nonzero(weight)
    return (banded(rows, index[rows, taps].clip(0, source - 1), weight[rows, taps], target, source),)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def grid(source: int, target: int, how: str) -> Pair:
    """The maps of one side of an image grid.

    Args:
        how: "bicubic" is what transformers computes in every forward pass with
            `interpolate_pos_encoding=True`; "antialiased" also low-passes a grid that shrinks.
    """
    resampled = interpolation(source, target, "bicubic", antialias=how == "antialiased")
    return Pair(resampled, resampled, f"{'antialiased ' if how == 'antialiased' else ''}bicubic")


GROWS = ("wavelet", "repeat", "identity")
SHRINKS = ("wavelet", "first", "even", "strongest")


@dataclass(frozen=True)
class Depth:
    """The layers of a target as weighted sums of source layers.

    Attributes:
        layers: (target, source) weights for tensors that do not write onto the residual stream.
        updates: the same for those that do; zero rows are identity blocks.
        label: a phrase for the plan.
    """

    layers: np.ndarray
    updates: np.ndarray
    label: str = ""

    @cached_property
    def read(self) -> tuple[int, ...]:
        """The source layers that have a weight in some target layer."""
        return tuple(np.flatnonzero(self.layers.any(0)).tolist())

    @staticmethod
    @remembered
    def unchanged(length: int) -> "Depth":
        """Every layer unchanged."""
        return Depth(np.eye(length), np.eye(length))

    def is_new(self, layer: int) -> bool:
        """Whether a target layer is an identity block, which adds nothing to the stream."""
        return not self.updates[layer].any()


def check_direction(rule: str, source: int, target: int) -> None:
    """Raise `BadOption` for a rule that only works in the other direction."""
    allowed, verb = (GROWS, "grow") if target > source else (SHRINKS, "shrink")
    if rule not in allowed:
        choices = ", ".join(repr(name) for name in allowed)
        raise BadOption(f"depth={rule!r} cannot {verb} {source} layers to {target}; use one of {choices}.")


@remembered
def filtered(pair: Pair, label: str, share_updates: bool) -> Depth:
    """Low-pass over layers. If updates are shared, they are mapped with C instead of R, which keeps their sum."""
    layers = pair.produce.dense()
    return Depth(layers, pair.consume.dense() if share_updates else layers, label)


@remembered
def repeated(source: int, target: int) -> Depth:
    """Every layer several times in a row; its copies share its update equally."""
    layers = _rows(np.arange(target) * source // target, source)
    return Depth(layers, layers / layers.sum(0), "layers repeated")


@remembered
def identity_blocks(source: int, target: int) -> Depth:
    """New layers with zero output matrices, spread over the gaps between source layers.

    The source's layers lie where `even` would pick them, so that shrinking undoes growing. A new layer
    copies the other matrices of the layer below it. No new layer follows the last source layer: in a
    post-norm model a new block can only pass on the channels that the norm below it has kept, and the
    last norm may have dropped one.
    """
    places = _even(target, source)
    index = np.searchsorted(places, np.arange(target), side="right") - 1
    layers = _rows(index, source)
    return Depth(layers, layers * np.isin(np.arange(target), places)[:, None], "identity blocks")


@remembered
def stacked(source: int, target: int) -> Depth:
    """The whole stack of layers repeated on top of itself (StackBERT, G_stack): layer l mod source."""
    layers = _rows(np.arange(target) % source, source)
    return Depth(layers, layers, "layers stacked")


@remembered
def stacked_from_top(source: int, target: int) -> Depth:
    """Whole stacks first, then the top layers again for the remaining places (bert2BERT)."""
    whole, rest = divmod(target, source)
    layers = _rows(np.concatenate([np.tile(np.arange(source), whole), np.arange(source - rest, source)]), source)
    return Depth(layers, layers, "layers stacked, then the top ones")


@remembered
def interpolated(source: int, target: int) -> Depth:
    """Every layer several times in a row; each copy has the layer's full update."""
    layers = _rows(np.arange(target) * source // target, source)
    return Depth(layers, layers, "layers interpolated")


@remembered
def upscaled(source: int, target: int) -> Depth:
    """The source's lowest layers, then its highest ones, half of the target each (SOLAR)."""
    upper = target // 2
    layers = _rows(np.concatenate([np.arange(target - upper), np.arange(source - upper, source)]), source)
    return Depth(layers, layers, "lower and upper layers")


@remembered
def chosen_layers(source: int, layers: Sequence[int]) -> Depth:
    """These layers of the source, unchanged."""
    rows = _rows(np.asarray(layers), source)
    return Depth(rows, rows, f"strongest layers ({', '.join(map(str, layers))})")


@remembered
def picked(source: int, target: int, rule: str) -> Depth:
    """The first layers, or evenly spread ones from the first to the last; none is changed.

    Which layers are the "strongest" is not known without a source: a plan shows evenly spread ones instead.
    """
    layers = _rows(np.arange(target) if rule == "first" else _even(source, target), source)
    return Depth(layers, layers, "strongest layers, not known yet" if rule == "strongest" else f"{rule} layers")


def kept_layers(chosen: Mapping[str, Sequence[int] | np.ndarray | None]) -> Any:
    """The layers that are kept, for provenance: one list, or a dict with a list per stack if there are several."""
    known = {stack: [int(layer) for layer in layers] for stack, layers in chosen.items() if layers is not None}
    return next(iter(known.values()), []) if len(chosen) == 1 else known


def _even(length: int, count: int) -> np.ndarray:
    """Indices of `count` layers among `length`, spread evenly from the first to the last.

    >>> _even(12, 6).tolist()
    [0, 2, 4, 7, 9, 11]
    """
    return np.round(np.linspace(0, length - 1, count)).astype(int)


def _rows(index: np.ndarray, source: int) -> np.ndarray:
    return np.asarray(np.eye(source)[index])


# -- noise that does not change the function ------------------------------------------------------------
#
# The signal on a grown axis is R x, so noise N in a matrix that reads it does not change the function if N R = 0.
# If units are copied, N is drawn in the detail bands alone: N = Z D^T with D^T R = 0, where the columns of D are
# orthonormal contrasts between copies. For longer filters it is drawn on the whole axis, and the part that the
# signal reaches is removed: N = Z (I - R C^T).

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


def checked_pair(method: str, pair: object, role: str, source: int, target: int) -> Pair:
    """What `pair` of a method has returned, if it fits the lengths.

    Raises:
        BadOption: no `Pair`, sides that are no maps, or maps of other lengths.
    """
    said = f"method={method!r}: pair() for {role}, {source} -> {target},"
    if not isinstance(pair, Pair):
        raise BadOption(f"{said} must return a methods.Pair, got {type(pair).__name__}.")
    for side in ("produce", "consume"):
        made = getattr(pair, side)
        if not isinstance(made, AxisMap):
            raise BadOption(
                f"{said} returns a {type(made).__name__} as {side}, which must be a map. Make one with "
                "methods.gather(index, source), or of a matrix with transformers_bot.ops.axis_map.from_dense(matrix)."
            )
        if (made.source, made.target) != (source, target):
            raise BadOption(f"{said} returns a map {side} from {made.source} to {made.target} entries.")
    return pair


def checked_depth(method: str, depth: object, stack: str, source: int, target: int) -> Depth:
    """What `depth` of a method has returned, if it fits the numbers of layers.

    Raises:
        BadOption: no `Depth`, weights that are no finite numbers, or weights for other numbers of layers.
    """
    said = f"method={method!r}: depth() for {stack}, {source} -> {target},"
    if not isinstance(depth, Depth):
        raise BadOption(f"{said} must return a methods.Depth, got {type(depth).__name__}.")
    for side in ("layers", "updates"):
        weights = getattr(depth, side)
        if not isinstance(weights, np.ndarray) or weights.dtype.kind not in "fiub":
            raise BadOption(
                f"{said} returns {side} that are no array of numbers but a {type(weights).__name__}. "
                "Make one with numpy.array(rows), a row for each layer of the target."
            )
        if weights.shape != (target, source):
            raise BadOption(f"{said} returns {side} of shape {weights.shape}, which must be {(target, source)}.")
        if not np.isfinite(weights).all():
            raise BadOption(f"{said} returns {side} with NaN or infinity. Every weight must be a finite number.")
    return depth
