"""What BoT does to a source before it shrinks it: another basis, another order of units, fitted readers.

Which of it, is decided by the options and the sizes; whether there is anything to gain, by the
weights: a source whose units are copies that the low-pass merges without loss is left as it is, so
that shrinking undoes growing weight by weight.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import pairwise

import numpy as np
import pywt
import torch

from ..errors import BadOption
from ..maps import AxisMap, Matrix, from_dense, identity
from ..options import BoTConfig
from ..recipe import Segment
from ..rewrite import (
    Groups,
    Opened,
    look,
    merge_shapes,
    order_by_strength,
    order_heads,
    order_units,
    to_principal_basis,
)
from ..rewrite.moments import Moments
from ..rewrite.network import Network, factors
from ..rewrite.order import leaves
from ..rewrite.readers import input_axis
from .base import Task
from .dct import low_frequencies
from .pairs import Pair, group_sizes
from .unit_scores import Scores, from_tallies, watching

UNITS = ("hidden", "ffn", "heads")
LOSSLESS = 1e-3  # relative; copies stored in float16 differ by less, units of a trained model by far more


@dataclass(frozen=True)
class Shrink:
    """What of the method decides how a source is rewritten.

    Attributes:
        basis: "principal" or "plain".
        flat: heads and head_dim are one axis.
        whole: heads are picked, not filtered.
        groups: layers that a filter over depth averages; empty if none is.
    """

    basis: str
    flat: bool
    whole: bool
    groups: Groups = ()


def averaged_layers(task: Task, rule: str, wavelet: str) -> Groups:
    """Which layers a filter over depth averages: Haar those of one place, longer filters all with all."""
    source, target = task.lengths("layer")
    if rule != "wavelet" or target >= source:
        return ()
    if wavelet not in ("haar", "db1"):
        return (tuple(range(source)),)
    starts = np.cumsum([0, *(leaves(shape) for shape in merge_shapes(source, target))])
    return tuple(tuple(range(first, last)) for first, last in pairwise(starts))


def basis_of(options: BoTConfig, task: Task, wavelet: str) -> str:
    """ "principal" or "plain" for this task.

    Shrinking a pre-norm model, the principal basis keeps far more than a wavelet alone, before and
    after training (benchmarks/results, "bot" against "bot plain"). A post-norm stream cannot be
    turned, because its norm weights stay in it.
    """
    reasons = {
        "gain='raw' is the paper as written": options.gain == "raw",
        f"{task.adapter.model_type} is post-norm: use order='similar'": task.adapter.norm != "pre",
        "hidden does not shrink": task.ratio("hidden") >= 1,
        f"wavelet {wavelet} is not orthogonal": not pywt.Wavelet(wavelet).orthogonal or wavelet == "dmey",
    }
    against = next((reason for reason, holds in reasons.items() if holds), None)
    if options.basis == "principal" and against:
        raise BadOption(f"basis='principal' cannot be used here: {against}. Leave it at 'auto'.")
    return "plain" if options.basis == "plain" or against else "principal"


def ordered(options: BoTConfig, task: Task, shrink: Shrink) -> list[str]:
    """The roles whose units are put in another order; flat heads have no order of their own."""
    averaged = UNITS[1:] if shrink.groups else ()  # units of layers that are averaged must match
    changed = [role for role in UNITS if task.ratio(role) < 1 or (role in averaged and task.ratio(role) == 1)]
    shrinking = [role for role in changed if not (shrink.flat and role == "heads")]
    if options.order in ("similar", "strongest") and not shrinking:
        raise BadOption(f"order={options.order!r} puts units together that shrinking merges, and nothing shrinks here.")
    wanted = options.order in ("similar", "strongest") or (options.order == "auto" and options.gain == "consistent")
    return [role for role in shrinking if wanted and not (role == "hidden" and shrink.basis == "principal")]


def principal_pair(source: int, target: int, dyadic: Pair) -> Pair:
    """The low-pass that the principal basis is turned to: the wavelet's where whole levels fit, else a DCT's.

    Its rows must be orthonormal up to one factor, which a partial level's are not.
    """
    if source % target == 0 and (source // target).bit_count() == 1:
        return dyadic
    low_pass = low_frequencies(source, target)
    gain = (target / source) ** 0.5
    maps = [AxisMap(source, target, (Matrix(low_pass * factor),)) for factor in (gain, 1 / gain)]
    return Pair(maps[0], maps[1], "dct")


def keeps_strongest(options: BoTConfig, task: Task, shrink: Shrink, calibrated: bool) -> bool:
    """Whether the units that do most are kept as they are, rather than similar ones merged.

    With readers fitted to them, picked units keep more of a post-norm model, before and after training;
    in pre-norm models merging similar units keeps more (benchmarks/results, "bot calibrated").

    Raises:
        BadOption: calibration batches that nothing could be measured for, or a need of them.
    """
    picks = options.order == "strongest" or (options.order == "auto" and task.adapter.norm == "post")
    if options.order == "strongest" and (not calibrated or shrink.groups):
        raise BadOption(
            "order='strongest' ranks units by what they do on calibration= batches"
            + (", but depth='wavelet' averages layers." if shrink.groups else "; pass a few, or order='similar'.")
        )
    if not calibrated:
        return False
    reasons = {
        "gain='raw' is the paper as written": options.gain == "raw",
        "no width shrinks": all(task.ratio(role) >= 1 for role in (*UNITS, "head_dim")),
        "depth='wavelet' averages the layers of a post-norm model": picks and bool(shrink.groups),
        "the stream is merged as it is": task.ratio("hidden") < 1 and shrink.basis == "plain" and not picks,
    }
    against = next((reason for reason, holds in reasons.items() if holds), None)
    if against:
        raise BadOption(
            f"calibration= fits matrices to a stream in its principal basis or of its strongest units, but {against}. "
            "Leave calibration= out, or basis and order at 'auto'."
        )
    return picks


@dataclass(frozen=True)
class Prepared:
    """What preparing came to.

    Attributes:
        options: with "auto" replaced by what was chosen.
        opened: with what calibration has shown.
        strongest: roles of which the strongest units are picked.
        known: name of a matrix -> moments of what it reads, where turning the stream has shown them.
    """

    options: BoTConfig
    opened: Opened
    strongest: frozenset[str] = frozenset()
    known: Mapping[str, Moments] = field(default_factory=dict)


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
    by_strength = keeps_strongest(options, task, shrink, opened.calibration is not None)
    opened, scores = (opened, {}) if opened.calibration is None else _looked(opened, task, by_strength)
    basis = shrink.basis
    plain = replace(options, basis="plain")
    roles = ordered(options, task, shrink)
    is_lossless = partial(_is_lossless, opened.network, pair=partial(pair_of, plain, task))
    asked = [*roles, *(["hidden"] if basis == "principal" else [])]
    lossy = [role for role in asked if not is_lossless(role)]
    if options.basis == "auto" and "hidden" not in lossy:
        basis = "plain"
    if options.order == "auto":
        roles = [role for role in roles if role in lossy or shrink.groups]
    strongest = frozenset(role for role in roles if by_strength and (role != "heads" or shrink.whole))
    settled = replace(options, basis=basis, order="strongest" if strongest else "similar" if roles else "kept")
    for role in roles:
        source, target = task.lengths(role)
        counts = group_sizes(source, target).tolist()
        if role in strongest:
            order_by_strength(
                opened.network, role, counts, {at: score for (r, at), score in scores.items() if r == role}
            )
            continue
        order_units(opened.network, role, target, shrink.groups)
        # Whole heads are picked, not merged: of copies any one will do, of others the strongest.
        if role == "heads" and shrink.whole and not is_lossless(role):
            order_heads(opened.network, counts, shrink.groups)
    if basis != "principal":
        return Prepared(settled, opened, strongest)
    source, target = task.lengths("hidden")
    low_pass = pair_of(settled, task, "hidden").produce.dense() * (source / target) ** 0.5
    return Prepared(settled, opened, strongest, to_principal_basis(opened, torch.from_numpy(low_pass)))


def _looked(opened: Opened, task: Task, with_scores: bool) -> tuple[Opened, Scores]:
    """The source after one run of the calibration batches: what is read along axes that shrink, and units' scores."""
    network = opened.network
    shrinks = {role for role, length in task.source.items() if length is not None and task.ratio(role) < 1}
    axes = {name: input_axis(place.rule) for name, place in network.places.items()}
    matrices = [name for name, axis in axes.items() if axis and shrinks & {factor.role for factor in axis[1]}]
    tallies, watched = watching(network)
    opened = look(opened, matrices, watched if with_scores else ())
    return opened, from_tallies(tallies, network) if with_scores else {}


def whole_axis(maps: Segment) -> AxisMap:
    """The maps of an axis' factors as one map of the axis."""
    if len(maps) == 1 or all(one.is_identity for one in maps):
        return maps[0] if len(maps) == 1 else identity(math.prod(one.source for one in maps))
    return from_dense(reduce(np.kron, (one.dense() for one in maps)))


def _is_lossless(network: Network, role: str, pair: Callable[[str], Pair]) -> bool:
    """Whether growing back what was shrunk gives every tensor that writes `role` again.

    Read axes are shrunk first: what they hold beyond what is written to them, such as the noise that
    parts twins when growing, has no effect.
    """
    back = pair(role).produce.then(pair(role).consume.transposed())
    for name, place in network.having(role):
        if not any(f.role == role and not f.reads for axis in place.rule.axes for f in factors(axis)):
            continue
        reads = {f.role: pair(f.role).consume for axis in place.rule.axes for f in factors(axis) if f.reads and f.role}
        seen = network.mapped(name, reads, {})
        again = network.mapped(name, reads, {role: back})
        if float((again - seen).norm()) > LOSSLESS * float(seen.norm()):
            return False
    return True
