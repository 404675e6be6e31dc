"""What BoT does to a source before it shrinks it: another basis, another order of units, fitted readers.

What may be done is decided from options and sizes (`levers`); whether there is anything to gain, by
the weights: a source whose units are copies that the low-pass merges without loss is left as it is,
so that shrinking undoes growing weight by weight.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from ..architectures.axes import Factor
from ..compat import check_room
from ..console import progress
from ..errors import BadOption
from ..ops.axis_map import AxisMap, Matrix, from_dense, identity
from ..ops.energy import length_of
from ..ops.recipe import Segment
from ..options import BoTConfig
from ..rewrite import Opened, look, order_by_strength, order_heads, order_units, to_principal_basis
from ..rewrite.fold import behind, norms
from ..rewrite.moments import Moments
from ..rewrite.network import Network, factors
from ..rewrite.readers import input_axis
from .base import Task
from .levers import Shrink, dense_pair, ordered, picked_roles
from .pairs import Pair, group_sizes
from .unit_scores import Scores, from_tallies, watching

SQUARES = 4  # float64 matrices over the stream's units that finding its principal basis holds at one time
ORDERED = {"hidden": "hidden units", "ffn": "MLP units", "heads": "heads"}
LOSSLESS = 1e-3  # relative; copies stored in float16 differ by less, units of a trained model by far more


UNREAD = (
    "calibration= decides which layers and units stay, and fits what reads them; a plan from configs shows places only"
)


@dataclass(frozen=True)
class Prepared:
    """What preparing came to.

    Attributes:
        options: with "auto" replaced by what was chosen.
        opened: with what calibration has shown.
        ordered: roles whose units were put in another order; `strongest` of them are picked whole.
        layers: the layers that are kept, where they were ranked.
        known: name of a matrix -> moments of what it reads, where turning the stream has shown them.
        stream: the maps of the residual stream, where it is turned to its principal basis.
    """

    options: BoTConfig
    opened: Opened
    ordered: tuple[str, ...] = ()
    strongest: frozenset[str] = frozenset()
    layers: tuple[int, ...] = ()
    known: Mapping[str, Moments] = field(default_factory=dict)
    stream: Pair | None = None


def prepare(
    options: BoTConfig,
    task: Task,
    opened: Opened,
    shrink: Shrink,
    pair_of: Callable[[BoTConfig, Task, str], Pair],
) -> Prepared:
    """Order units and turn the stream of an opened source; what the options then are.

    The network's function stays but for the norms, which are matched to what the low-pass will keep.
    """
    picks = picked_roles(options, task, shrink)
    network, batches = opened.network, opened.calibration
    progress.expects(progress.preparing_seconds(task, network, batches))
    scores: Scores = {}
    if batches is not None:
        with progress.part("calibrating", progress.calibrating_seconds(network, batches)):
            opened, scores = _looked(opened, task, shrink)
    merged, basis = replace(options, basis="plain", order="kept", depth="auto"), shrink.basis
    roles = ordered(options, task, shrink)
    layers = _strongest_layers(task, scores) if shrink.ranked else ()
    shrink = replace(shrink, kept=layers or shrink.kept)
    pair = partial(pair_of, merged, replace(task, calibrated=False))
    is_lossless = partial(_is_lossless, pair=pair, kept=shrink.kept)
    asked = dict.fromkeys([*roles, *(["hidden"] if basis == "principal" or _fits_stream(task) else [])])
    with progress.part("looking for copies among the units", progress.UNSEEN_SECONDS):
        lossy = [role for role in asked if not is_lossless(opened.network, role)]
    if options.basis == "auto" and "hidden" not in lossy:
        basis = "plain"
    if options.order in ("auto", "strongest"):
        roles = [role for role in roles if role in lossy or shrink.groups]
    if _fits_stream(task) and "hidden" in lossy and basis == "plain" and "hidden" not in picks:
        raise BadOption(
            "calibration= fits matrices to hidden units that are turned to the principal basis or picked, but with "
            f"basis={options.basis!r}, order={options.order!r} and this wavelet they are merged as they stand. "
            "Leave calibration= out, or these options at 'auto'."
        )
    strongest = frozenset(role for role in roles if role in picks)
    strengths = {role: _of(scores, role) for role in strongest}
    in_order = [_ordered(opened.network, task, shrink, role, strengths.get(role), is_lossless) for role in roles]
    order = "strongest" if picks else "similar" if roles else "kept"
    settled = replace(options, basis=_settled_basis(options, task, basis), order=order)
    made = Prepared(settled, opened, tuple(roles), strongest, layers)
    if basis == "principal":
        source, target = task.lengths("hidden")
        wavelet = pair_of(replace(merged, basis="principal"), replace(task, calibrated=False), "hidden")
        check_room(
            SQUARES * 8 * source**2,
            f"turning a stream of {source} units to its principal basis",
            "Pass bot_config={'basis': 'plain'}, which keeps less of the source, or use a machine with more.",
        )
        low_pass = torch.from_numpy(wavelet.produce.dense() * (source / target) ** 0.5)
        with progress.part("finding the basis", progress.basis_seconds(task, opened.network)):
            principal, known = to_principal_basis(opened, low_pass, shrink.kept)
        made = replace(made, known=known, stream=dense_pair(Matrix(principal.numpy()), wavelet.label))
    # Moving units commutes with folding, and the basis does not ask for their order: noted last, no order
    # is carried out for a tensor that is only looked at.
    for one in in_order:
        opened.network.follow(one)
    return made


def _fits_stream(task: Task) -> bool:
    return task.calibrated and task.ratio("hidden") < 1


def _settled_basis(options: BoTConfig, task: Task, basis: str) -> str:
    """The basis as provenance holds it; "auto" stays where "plain" would be refused the next time."""
    return "auto" if options.basis == "auto" and basis == "plain" and _fits_stream(task) else basis


def _ordered(
    network: Network,
    task: Task,
    shrink: Shrink,
    role: str,
    strength: Mapping[int | None, Tensor] | None,
    is_lossless: Callable[[Network, str], bool],
) -> Network:
    """The source as it is, but for the order of one role's units; the orders of all roles commute."""
    source, target = task.lengths(role)
    counts = group_sizes(source, target).tolist()
    network = network.over(network.stored)
    with progress.part(f"finding the order of {ORDERED[role]}", progress.ordering_seconds(network, role)):
        _put_in_order(network, shrink, role, counts, strength, is_lossless)
    return network


def _put_in_order(
    network: Network,
    shrink: Shrink,
    role: str,
    counts: list[int],
    strength: Mapping[int | None, Tensor] | None,
    is_lossless: Callable[[Network, str], bool],
) -> None:
    if strength is not None:
        order_by_strength(network, role, counts, strength)
        return
    order_units(network, role, len(counts), shrink.groups, shrink.kept)
    # Whole heads are picked, not merged: of copies any one will do, of others the strongest.
    if role == "heads" and shrink.whole and not is_lossless(network, role):
        order_heads(network, counts, shrink.groups, shrink.kept)


def _looked(opened: Opened, task: Task, shrink: Shrink) -> tuple[Opened, Scores]:
    """The source after one run of the calibration batches: what is read along axes that shrink, and all scores.

    What reads a norm that is going to be folded is known from the norm.
    """
    network = opened.network
    shrinks = {role for role, length in task.source.items() if length is not None and task.ratio(role) < 1}
    axes = {name: input_axis(place.rule) for name, place in network.places.items()}
    folded = (
        {name for place in norms(network) for name in behind(network, *place)} if shrink.basis != "plain" else set()
    )
    matrices = [n for n, axis in axes.items() if axis and n not in folded and shrinks & {f.role for f in axis[1]}]
    tallies, watched = watching(network)
    opened = look(opened, matrices, watched)
    return opened, from_tallies(tallies, network)


def _of(scores: Scores, role: str) -> dict[int | None, Tensor]:
    return {layer: score for (one, layer), score in scores.items() if one == role}


def _strongest_layers(task: Task, scores: Scores) -> tuple[int, ...]:
    source, target = task.lengths("layer")
    if not scores or target >= source:
        return ()
    ranked = torch.sort(scores["layer", None], descending=True, stable=True).indices
    return tuple(sorted(ranked[:target].tolist()))


def about_calibration(prepared: Prepared | None, task: Task) -> list[str]:
    """What a user should know: a plan without a source cannot tell, few tokens tell little."""
    if prepared is None:
        return [UNREAD]
    seen = prepared.opened.seen
    tokens = [one.tokens for one in (*seen.norms.values(), *seen.inputs.values()) if one.tokens] if seen else []
    # Where both widths grow, nothing is fitted: the batches only ranked the layers.
    units = max((task.target[role] or 0 for role in ("hidden", "ffn") if task.ratio(role) <= 1), default=0)
    if not tokens or max(tokens) >= units:
        return []
    return [f"calibration= showed {max(tokens)} tokens to fit {units} units with: give some times as many"]


def both_sides(
    segment_of: Callable[[tuple[Factor, ...]], Segment], factors: tuple[Factor, ...]
) -> tuple[AxisMap, AxisMap]:
    """R and C of a whole axis, from a method's maps of its factors."""
    written, read = (
        _whole_axis(segment_of(tuple(replace(factor, reads=reads) for factor in factors))) for reads in (False, True)
    )
    return written, read


def _whole_axis(maps: Segment) -> AxisMap:
    """The maps of an axis' factors as one map of the axis."""
    if len(maps) == 1 or all(one.is_identity for one in maps):
        return maps[0] if len(maps) == 1 else identity(math.prod(one.source for one in maps))
    return from_dense(reduce(np.kron, (one.dense() for one in maps)))


def _is_lossless(network: Network, role: str, pair: Callable[[str], Pair], kept: Collection[int] | None) -> bool:
    """Whether growing back what was shrunk gives every tensor that writes `role` again.

    Read axes are shrunk first: what they hold beyond what is written to them, such as the noise that
    parts twins when growing, has no effect. Small tensors come first: most sources are seen to lose there.

    Args:
        kept: the layers that are read; None for all.
    """
    back = pair(role).produce.then(pair(role).consume.transposed())
    writers = [
        (name, place)
        for name, place in network.having(role)
        if (kept is None or place.layer is None or place.layer in kept)
        and any(f.role == role and not f.reads for axis in place.rule.axes for f in factors(axis))
    ]
    for name, place in sorted(writers, key=lambda one: network.numel(one[0])):
        reads = {f.role: pair(f.role).consume for axis in place.rule.axes for f in factors(axis) if f.reads and f.role}
        seen = network.mapped(name, reads, {})
        again = network.mapped(name, reads, {role: back})
        if not length_of(again - seen) <= LOSSLESS * length_of(seen):  # nor where a sum overflows
            return False
    return True
