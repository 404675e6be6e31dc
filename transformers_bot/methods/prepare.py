"""What BoT does to a source before it shrinks it: another basis, another order of units, fitted readers.

Options and sizes decide what is allowed (`ordered`, `basis_of`), the weights whether it helps: a source whose
units are copies that the low-pass merges without loss is not rewritten, so that shrinking undoes growing
weight by weight.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import pairwise

import numpy as np
import pywt
import torch
from torch import Tensor

from ..architectures.adapter import Adapter, At, Factor
from ..compat import check_room
from ..console import progress
from ..errors import BadOption
from ..ops.axis_map import AxisMap, Matrix, from_dense, identity, remembered
from ..ops.blocks import length_of
from ..ops.dct import low_frequencies
from ..ops.recipe import Segment
from ..options import BoTConfig
from ..rewrite.calibration import input_axis, measure_inputs
from ..rewrite.folding import fold_norms, folded_readers, norms
from ..rewrite.network import KeptLayers, Network, is_kept
from ..rewrite.order import Groups, leaves, merge_shapes, order_by_strength, order_units, order_whole_units
from ..rewrite.principal import Moments, Opened, to_principal_basis
from .base import Task
from .maps import Pair, group_sizes
from .unit_scores import Scores, from_tallies, watching


@dataclass(frozen=True)
class Shrink:
    """The choices of the method that decide how a source is rewritten.

    Attributes:
        basis: "principal" or "plain".
        flat: heads and head_dim are one axis.
        whole: heads are picked, not filtered.
        groups: stack -> groups of layers that a filter over depth averages; empty if none is averaged.
        kept: stack -> the layers that are read; units are compared in these.
        ranked: the stacks whose layers are chosen by their scores on calibration batches.
    """

    basis: str
    flat: bool
    whole: bool
    groups: Mapping[str, Groups] = field(default_factory=dict)
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranked: tuple[str, ...] = ()

    @property
    def averages(self) -> bool:
        """Whether layers of any stack are averaged."""
        return any(self.groups.values())


def averaged_layers(task: Task, stack: str, rule: str, wavelet: str) -> Groups:
    """The groups of layers that a filter over depth averages: Haar averages neighbours, longer filters all layers."""
    source, target = task.lengths(stack)
    if rule != "wavelet" or target >= source:
        return ()
    if wavelet not in ("haar", "db1"):
        return (tuple(range(source)),)
    return _neighbours(source, target)


@remembered
def _neighbours(source: int, target: int) -> Groups:
    """The source layers that Haar merges into each target layer."""
    starts = np.cumsum([0, *(leaves(shape) for shape in merge_shapes(source, target))])
    return tuple(tuple(range(first, last)) for first, last in pairwise(starts))


def _obstacle(adapter: Adapter) -> str:
    """What is in the way of a turn of a pre-norm stream."""
    if adapter.activated:
        return f"an activation of {adapter.model_type} stands before the stream"
    return f"norms of {adapter.model_type} stand behind its blocks, or have no weight"


def basis_of(options: BoTConfig, task: Task, wavelets: Sequence[str]) -> str:
    """ "principal" or "plain" for this task.

    When a pre-norm model shrinks, the principal basis keeps far more than a wavelet alone, before and
    after training (benchmarks/results, "bot" against "bot plain"). A post-norm stream cannot be turned,
    because its norm weights act on the stream itself and cannot be folded.
    """
    skew = next((name for name in wavelets if not pywt.Wavelet(name).orthogonal or name == "dmey"), "")
    reasons = {
        "gain='raw' is the paper as written": options.gain == "raw",
        f"{task.adapter.model_type} is post-norm: use order='similar'": task.adapter.norm != "pre",
        f"{' and '.join(task.roles.streams)} does not shrink": not shrinking_streams(task),
        f"{_obstacle(task.adapter)}: use order='similar'": not turning_streams(task),
        f"wavelet {skew} is not orthogonal": bool(skew),
    }
    obstacle = next((reason for reason, holds in reasons.items() if holds), None)
    if options.basis == "principal" and obstacle:
        raise BadOption(f"basis='principal' cannot be used here: {obstacle}. Leave it at 'auto'.")
    return "plain" if options.basis == "plain" or obstacle else "principal"


def ordered(options: BoTConfig, task: Task, shrink: Shrink) -> list[str]:
    """The roles whose units are put in another order; flat heads have no order of their own."""
    roles = task.roles
    averaged = roles.units if shrink.averages else ()  # units of averaged layers must be matched to each other
    regrouped = {role for member in task.regrouped for role in (member, roles[member].within)}
    movable = [
        r for r in (*roles.streams, *roles.units) if task.is_sized(r) and r not in regrouped and not roles[r].grouped
    ]
    changed = [role for role in movable if task.ratio(role) < 1 or (role in averaged and task.ratio(role) == 1)]
    shrinking = [role for role in changed if not (shrink.flat and roles.is_whole(role))]
    if options.order in ("similar", "strongest") and not shrinking:
        raise BadOption(f"order={options.order!r} puts units together that shrinking merges, and nothing shrinks here.")
    reorders = options.order in ("similar", "strongest") or (options.order == "auto" and options.gain == "consistent")
    turned = turning_streams(task) if shrink.basis == "principal" else []
    return [role for role in shrinking if reorders and role not in turned]


def shrinking_streams(task: Task) -> list[str]:
    """The streams that get fewer units."""
    return [stream for stream in task.roles.streams if task.ratio(stream) < 1]


def turning_streams(task: Task) -> list[str]:
    """The streams that get fewer units and may be turned to another basis."""
    return [stream for stream in shrinking_streams(task) if stream in task.adapter.turned]


def principal_pair(source: int, target: int, dyadic: Pair) -> Pair:
    """The low-pass that follows the turn to the principal basis: the wavelet's at a power of two, else a DCT's.

    Its rows must be orthonormal up to one factor, and those of a partial wavelet level are not.
    """
    if source % target == 0 and (source // target).bit_count() == 1:
        return dyadic
    return _cosines(source, target)


def _cosines(source: int, target: int) -> Pair:
    return dense_pair(Matrix(lambda: low_frequencies(source, target), (target, source)), "dct")


def dense_pair(low_pass: Matrix, label: str) -> Pair:
    """The pair of a (target, source) low-pass with orthonormal rows: R has unit gain on constants, C is its dual."""
    target, source = low_pass.target, low_pass.source
    gain = (target / source) ** 0.5
    maps = [AxisMap(source, target, (low_pass.scaled(factor),)) for factor in (gain, 1 / gain)]
    return Pair(maps[0], maps[1], label)


def picks_strongest(options: BoTConfig, task: Task, shrink: Shrink) -> bool:
    """Whether the strongest units are picked instead of merging similar ones.

    If their readers are fitted, picked units keep more of a post-norm model, before and after training.
    In pre-norm models merging similar units keeps as much or more (benchmarks/results/transfer-levers.md,
    "bot calibrated" against "bot strongest").

    Raises:
        BadOption: units or layers are to be ranked without calibration batches, or batches would not be used.
    """
    for option in ("order", "depth"):
        if getattr(options, option) == "strongest" and not task.calibrated:
            raise BadOption(
                f"{option}='strongest' ranks by scores on calibration= batches; pass a few batches, or use 'auto'."
            )
    if not task.calibrated:
        return False
    widths = (*task.roles.streams, *task.roles.units, *task.roles.entries)
    no_width_shrinks = all(task.ratio(role) >= 1 for role in widths if task.is_sized(role))
    picks = options.order == "strongest" or (options.order == "auto" and not task.adapter.turns)
    reasons = {
        "gain='raw' is the paper as written": options.gain == "raw",
        "no width shrinks and no layers are ranked": no_width_shrinks and not shrink.ranked,
        "depth='wavelet' averages layers whose units are ranked": picks and shrink.averages,
    }
    obstacle = next((reason for reason, holds in reasons.items() if holds), None)
    if obstacle:
        raise BadOption(f"calibration= ranks and fits what shrinking keeps, but {obstacle}. Leave calibration= out.")
    return picks


def picked_roles(options: BoTConfig, task: Task, shrink: Shrink) -> list[str]:
    """The roles whose strongest units are picked, unless their units are copies that merge without loss."""
    if not picks_strongest(options, task, shrink):
        return []
    roles = [role for role in ordered(options, task, shrink) if not task.roles.is_whole(role) or shrink.whole]
    return [*roles, *(stream for stream in shrinking_streams(task) if task.roles[stream].grouped)]


SQUARES = 4  # (unit, unit) matrices in float64 that are in memory at once while the principal basis is computed
LOSSLESS = 1e-3  # relative; copies stored in float16 differ by less, units of a trained model by far more


UNREAD = (
    "calibration= decides which layers and units stay, and fits what reads them; a plan from configs shows only sizes"
)


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`.

    Attributes:
        options: with "auto" replaced by what was chosen.
        opened: the source, with the moments that calibration measured.
        ordered: roles whose units were put in another order.
        strongest: those of them whose strongest units are picked.
        layers: stack whose layers were ranked -> the layers that are kept.
        known: name of a matrix -> moments of its input, if they were measured when the stream was turned.
        streams: stream that is turned to its principal basis -> its maps.
    """

    options: BoTConfig
    opened: Opened
    ordered: tuple[str, ...] = ()
    strongest: frozenset[str] = frozenset()
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    known: Mapping[str, Moments] = field(default_factory=dict)
    streams: Mapping[str, Pair] = field(default_factory=dict)


def prepare(
    options: BoTConfig, task: Task, opened: Opened, shrink: Shrink, pair_of: Callable[[BoTConfig, Task, str], Pair]
) -> Prepared:
    """Reorder the units and turn the streams of an opened source.

    The network's function does not change, except that norms are matched to what the low-pass will keep.
    """
    picks = picked_roles(options, task, shrink)
    network, batches = opened.network, opened.calibration
    progress.expects(progress.preparing_seconds(task, network, batches))
    scores: Scores = {}
    if batches is not None:
        with progress.part("calibrating", progress.calibrating_seconds(network, batches)):
            opened, scores = _calibrated(opened, task, shrink)
    merged, basis = replace(options, basis="plain", order="kept", depth="auto"), shrink.basis
    roles = ordered(options, task, shrink)
    layers = {stack: best for stack in shrink.ranked if (best := _strongest_layers(task, stack, scores))}
    shrink = replace(shrink, kept={**shrink.kept, **layers})
    pair = partial(pair_of, merged, replace(task, calibrated=False))
    is_lossless = partial(_is_lossless, pair=pair, kept=shrink.kept)
    narrower, turnable = shrinking_streams(task), turning_streams(task)
    fits_stream = task.calibrated and bool(narrower)
    candidates = dict.fromkeys([*roles, *(narrower if basis == "principal" or fits_stream else [])])
    with progress.part("looking for copies among the units", progress.UNSEEN_SECONDS):
        lossy = [role for role in candidates if not is_lossless(opened.network, role)]
    lossy_streams = [stream for stream in narrower if stream in lossy]
    if options.basis == "auto" and not set(lossy_streams).intersection(turnable):
        basis = "plain"
    if options.order in ("auto", "strongest"):
        roles = [role for role in roles if role in lossy or shrink.averages]
    merged_streams = set(lossy_streams) - set(turnable if basis == "principal" else ())
    if fits_stream and not merged_streams.issubset(picks):
        raise _no_fit(options)
    in_place = {stream for stream in lossy_streams if task.roles[stream].grouped}
    strongest = frozenset(role for role in (*roles, *in_place) if role in picks)
    strengths = {role: _scores_of(scores, role) for role in strongest}
    in_order = [_ordered(opened.network, task, shrink, role, strengths.get(role), is_lossless) for role in roles]
    order = "strongest" if picks else "similar" if roles else "kept"
    settled = replace(options, basis=_settled_basis(options, basis, fits_stream), order=order)
    prepared = Prepared(settled, opened, tuple(roles), strongest, layers)
    if basis == "principal":
        wavelet_of = partial(pair_of, replace(merged, basis="principal"), replace(task, calibrated=False))
        turned = [stream for stream in turnable if stream in lossy_streams or options.basis != "auto"]
        prepared = _turned(prepared, task, shrink, {stream: wavelet_of(stream) for stream in turned})
    # Reordering commutes with folding, and the basis does not depend on the order of units. Noted last, it is
    # not computed again for every tensor that is read to find the basis.
    for reordered in in_order:
        opened.network.follow(reordered)
    return prepared


def _no_fit(options: BoTConfig) -> BadOption:
    return BadOption(
        "calibration= fits matrices to hidden units that are turned to the principal basis or picked, but with "
        f"basis={options.basis!r}, order={options.order!r} and this wavelet they are only merged. "
        "Leave calibration= out, or these options at 'auto'."
    )


def _turned(prepared: Prepared, task: Task, shrink: Shrink, wavelets: Mapping[str, Pair]) -> Prepared:
    """Turn these streams to their principal basis."""
    opened = prepared.opened
    known: dict[str, Moments] = {}
    streams: dict[str, Pair] = {}
    fold_norms(opened.network, list(wavelets))
    for stream, wavelet in wavelets.items():
        source, target = task.lengths(stream)
        check_room(
            SQUARES * 8 * source**2,
            f"turning a stream of {source} units to its principal basis",
            "Pass bot_config={'basis': 'plain'}, which keeps less of the source, or use a machine with more.",
        )
        low_pass = torch.from_numpy(wavelet.produce.dense() * (source / target) ** 0.5)
        with progress.part("finding the basis", progress.basis_seconds(task, opened.network, stream)):
            principal, inputs = to_principal_basis(opened, stream, low_pass, shrink.kept)
        known |= inputs
        streams[stream] = dense_pair(Matrix(principal.numpy()), wavelet.label)
    return replace(prepared, known=known, streams=streams)


def _settled_basis(options: BoTConfig, basis: str, fits_stream: bool) -> str:
    """The basis for provenance: "auto" is kept if the same call with "plain" would be refused."""
    return "auto" if options.basis == "auto" and basis == "plain" and fits_stream else basis


def _ordered(
    network: Network,
    task: Task,
    shrink: Shrink,
    role: str,
    strength: Mapping[At, Tensor] | None,
    is_lossless: Callable[[Network, str], bool],
) -> Network:
    """The source with the units of one role in another order. Orders of several roles commute."""
    source, target = task.lengths(role)
    counts = group_sizes(source, target).tolist()
    network = network.over(network.stored)
    with progress.part(f"finding the order of {task.roles[role].noun}", progress.ordering_seconds(network, role)):
        _put_in_order(network, shrink, role, counts, strength, is_lossless)
    return network


def _put_in_order(
    network: Network,
    shrink: Shrink,
    role: str,
    counts: list[int],
    strength: Mapping[At, Tensor] | None,
    is_lossless: Callable[[Network, str], bool],
) -> None:
    if strength is not None:
        order_by_strength(network, role, counts, strength)
        return
    order_units(network, role, len(counts), shrink.groups, shrink.kept)
    # Whole heads are picked, not merged: any one of several copies, otherwise the strongest.
    if network.roles.is_whole(role) and shrink.whole and not is_lossless(network, role):
        order_whole_units(network, role, counts, shrink.groups, shrink.kept)


def _calibrated(opened: Opened, task: Task, shrink: Shrink) -> tuple[Opened, Scores]:
    """The source with the inputs of shrinking axes measured in one run of the calibration batches, and all scores.

    Matrices behind a norm that will be folded are not measured: their input follows from the norm's.
    """
    network = opened.network
    shrinks = {role for role, length in task.source.items() if length is not None and task.ratio(role) < 1}
    axes = {name: input_axis(place.rule) for name, place in network.places.items()}
    turned = turning_streams(task) if shrink.basis != "plain" else []
    folds = [place for stream in turned for place in norms(network, stream)]
    folded = {name for place in folds for name in folded_readers(network, place)}
    matrices = [n for n, axis in axes.items() if axis and n not in folded and shrinks & {f.role for f in axis[1]}]
    tallies, watched = watching(network)
    opened = measure_inputs(opened, matrices, watched)
    return opened, from_tallies(tallies, network)


def _scores_of(scores: Scores, role: str) -> dict[At, Tensor]:
    own = {at: score for (scored, at), score in scores.items() if scored == role}
    return {None: own[None]} if None in own else own


def _strongest_layers(task: Task, stack: str, scores: Scores) -> tuple[int, ...]:
    source, target = task.lengths(stack)
    if not scores or target >= source:
        return ()
    ranked = torch.sort(scores[stack, None], descending=True, stable=True).indices
    return tuple(sorted(ranked[:target].tolist()))


def about_calibration(prepared: Prepared | None, task: Task) -> list[str]:
    """Warnings: a plan without a source cannot show the choice, and few tokens make a poor fit."""
    if prepared is None:
        return [UNREAD]
    known = prepared.opened.moments
    measured = (*known.norms.values(), *known.inputs.values()) if known else ()
    tokens = [moments.tokens for moments in measured if moments.tokens]
    # If all widths grow, nothing is fitted: the batches only ranked the layers.
    widths = [role for role in (*task.roles.streams, *task.roles.units) if not task.roles.is_whole(role)]
    units = max((task.target[role] or 0 for role in widths if task.ratio(role) <= 1), default=0)
    if not tokens or max(tokens) >= units:
        return []
    return [f"calibration= showed {max(tokens)} tokens to fit {units} units with: give several times as many"]


def both_sides(
    segment_of: Callable[[tuple[Factor, ...]], Segment], factors: tuple[Factor, ...]
) -> tuple[AxisMap, AxisMap]:
    """R and C of a whole axis, from a method's maps of its factors."""
    produce, consume = (
        _whole_axis(segment_of(tuple(replace(factor, reads=reads) for factor in factors))) for reads in (False, True)
    )
    return produce, consume


def _whole_axis(maps: Segment) -> AxisMap:
    """The maps of an axis' factors as one map of the axis, their Kronecker product."""
    if len(maps) == 1 or all(factor_map.is_identity for factor_map in maps):
        return maps[0] if len(maps) == 1 else identity(math.prod(factor_map.source for factor_map in maps))
    return from_dense(reduce(np.kron, (factor_map.dense() for factor_map in maps)))


def _is_lossless(network: Network, role: str, pair: Callable[[str], Pair], kept: KeptLayers) -> bool:
    """Whether shrinking `role` and growing it again restores every tensor that writes it.

    Read axes are shrunk first, because what they read beyond the written signal, such as the noise that is
    added to copies, has no effect. Small tensors come first: most lossy sources already fail there.

    Args:
        kept: stack -> the layers that are read.
    """
    round_trip = pair(role).produce.then(pair(role).consume.transposed())
    writers = [
        (name, place)
        for name, place in network.tensors_with(role)
        if is_kept(place.at, kept) and any(f.role == role and not f.reads for f in place.rule.factors)
    ]
    for name, place in sorted(writers, key=lambda writer: network.numel(writer[0])):
        reads = {f.role: pair(f.role).consume for f in place.rule.factors if f.reads and f.role}
        before = network.mapped(name, reads, {})
        after = network.mapped(name, reads, {role: round_trip})
        if not length_of(after - before) <= LOSSLESS * length_of(before):  # also if a sum overflows to NaN
            return False
    return True
