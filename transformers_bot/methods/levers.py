"""What may be done to a source before BoT shrinks it, from options and sizes alone; `prepare` does it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pywt

from ..errors import BadOption
from ..ops.axis_map import AxisMap, Matrix, remembered
from ..ops.dct import low_frequencies
from ..options import BoTConfig
from ..rewrite import Groups, merge_shapes
from ..rewrite.order import leaves
from .base import Task
from .pairs import Pair


@dataclass(frozen=True)
class Shrink:
    """What of the method decides how a source is rewritten.

    Attributes:
        basis: "principal" or "plain".
        flat: heads and head_dim are one axis.
        whole: heads are picked, not filtered.
        groups: of every stack, layers that a filter over depth averages; empty if none is.
        kept: of every stack, the layers that are read, by which units are compared.
        ranked: the stacks whose layers are chosen by what they do.
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
    """Which layers a filter over depth averages: Haar those of one place, longer filters all with all."""
    source, target = task.lengths(stack)
    if rule != "wavelet" or target >= source:
        return ()
    if wavelet not in ("haar", "db1"):
        return (tuple(range(source)),)
    return _places(source, target)


@remembered
def _places(source: int, target: int) -> Groups:
    starts = np.cumsum([0, *(leaves(shape) for shape in merge_shapes(source, target))])
    return tuple(tuple(range(first, last)) for first, last in pairwise(starts))


def basis_of(options: BoTConfig, task: Task, wavelets: Sequence[str]) -> str:
    """ "principal" or "plain" for this task.

    Shrinking a pre-norm model, the principal basis keeps far more than a wavelet alone, before and
    after training (benchmarks/results, "bot" against "bot plain"). A post-norm stream cannot be
    turned, because its norm weights stay in it.
    """
    skew = next((name for name in wavelets if not pywt.Wavelet(name).orthogonal or name == "dmey"), "")
    reasons = {
        "gain='raw' is the paper as written": options.gain == "raw",
        f"{task.adapter.model_type} is post-norm: use order='similar'": task.adapter.norm != "pre",
        f"{' and '.join(task.roles.streams)} does not shrink": not shrinking_streams(task),
        f"wavelet {skew} is not orthogonal": bool(skew),
    }
    against = next((reason for reason, holds in reasons.items() if holds), None)
    if options.basis == "principal" and against:
        raise BadOption(f"basis='principal' cannot be used here: {against}. Leave it at 'auto'.")
    return "plain" if options.basis == "plain" or against else "principal"


def ordered(options: BoTConfig, task: Task, shrink: Shrink) -> list[str]:
    """The roles whose units are put in another order; flat heads have no order of their own."""
    roles = task.roles
    averaged = roles.units if shrink.averages else ()  # units of layers that are averaged must match
    movable = [role for role in (*roles.streams, *roles.units) if task.is_sized(role)]
    changed = [role for role in movable if task.ratio(role) < 1 or (role in averaged and task.ratio(role) == 1)]
    shrinking = [role for role in changed if not (shrink.flat and roles.is_whole(role))]
    if options.order in ("similar", "strongest") and not shrinking:
        raise BadOption(f"order={options.order!r} puts units together that shrinking merges, and nothing shrinks here.")
    wanted = options.order in ("similar", "strongest") or (options.order == "auto" and options.gain == "consistent")
    return [role for role in shrinking if wanted and not (role in roles.streams and shrink.basis == "principal")]


def shrinking_streams(task: Task) -> list[str]:
    """The streams that get fewer units."""
    return [stream for stream in task.roles.streams if task.ratio(stream) < 1]


def principal_pair(source: int, target: int, dyadic: Pair) -> Pair:
    """The low-pass that the principal basis is turned to: the wavelet's where whole levels fit, else a DCT's.

    Its rows must be orthonormal up to one factor, which a partial level's are not.
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
    """Whether the units that do most are picked, rather than similar ones merged.

    With readers fitted to them, picked units keep more of a post-norm model, before and after training;
    in pre-norm models merging similar units keeps as much or more (benchmarks/results/transfer-levers.md,
    "bot calibrated" against "bot strongest").

    Raises:
        BadOption: a rank of units or layers without batches to rank them by, or batches without a use.
    """
    for option in ("order", "depth"):
        if getattr(options, option) == "strongest" and not task.calibrated:
            raise BadOption(
                f"{option}='strongest' ranks by what is done on calibration= batches; pass a few, or use 'auto'."
            )
    if not task.calibrated:
        return False
    widths = (*task.roles.streams, *task.roles.units, *task.roles.entries)
    narrow = all(task.ratio(role) >= 1 for role in widths if task.is_sized(role))
    picks = options.order == "strongest" or (options.order == "auto" and task.adapter.norm == "post")
    reasons = {
        "gain='raw' is the paper as written": options.gain == "raw",
        "no width shrinks and no layers are ranked": narrow and not shrink.ranked,
        "depth='wavelet' averages layers whose units are ranked": picks and shrink.averages,
    }
    against = next((reason for reason, holds in reasons.items() if holds), None)
    if against:
        raise BadOption(f"calibration= ranks and fits what shrinking keeps, but {against}. Leave calibration= out.")
    return picks


def picked_roles(options: BoTConfig, task: Task, shrink: Shrink) -> list[str]:
    """The roles whose strongest units are picked, where they are not copies that merge without loss."""
    if not picks_strongest(options, task, shrink):
        return []
    return [role for role in ordered(options, task, shrink) if not task.roles.is_whole(role) or shrink.whole]
