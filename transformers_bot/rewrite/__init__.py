"""Rewriting a source into an equivalent one that a low-pass shrinks with less loss.

Three steps, each with the law that the network's outputs stay: norms are folded (`fold`), units are
put in another order (`order`), the residual stream is turned into another basis (`principal`), which is
one product with the low-pass that follows. A fourth, `match_norm`, then sets the norms to what the
low-pass leaves of the stream. Where the source may run on a few batches, a fifth, `fit_to_low_pass`,
fits every matrix to what is left of its input.

The paper has none of it; Ashkboos et al., "SliceGPT" (arXiv 2401.15024), rotates a pre-norm stream to
its principal components to cut it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..architectures import Adapter
from ..architectures.axes import At, Factor
from ..console import progress
from ..ops.axis_map import gather
from ..ops.blocks import aligned, mirrored
from .moments import Moments, See, Seen, measured
from .network import KeptLayers, Network, NormPlace, OutOfRange, Place, behind, fold_norms, is_kept, norms
from .order import add_grams, matching_order, merge_shapes, similar_order, strength, strongest_first
from .principal import basis, estimated, kept_shares
from .readers import MapsOf, match_norm_scale, refit_readers

Batches = Iterable[Mapping[str, Any]]
Groups = Sequence[Sequence[int]]  # layers that are averaged together


@dataclass(frozen=True)
class Opened:
    """A source as a method may rewrite it; with calibration, batches to run it on and what they have shown."""

    network: Network
    model: nn.Module
    calibration: Batches | None = None
    seen: Seen | None = None


def look(opened: Opened, matrices: Iterable[str], also: Iterable[tuple[str, See]] = ()) -> Opened:
    """Run the calibration batches once and note what norms and these matrices read.

    Args:
        also: what else looks at modules meanwhile, by their names.
    """
    modules = [name.removesuffix(".weight") for name in matrices]
    every = _modules(opened.network, norms(opened.network))
    return replace(
        opened,
        seen=measured(opened.model, every, modules, () if opened.calibration is None else opened.calibration, also),
    )


def to_principal_basis(
    opened: Opened, stream: str, low_pass: Tensor, kept_layers: KeptLayers | None = None
) -> tuple[Tensor, dict[str, Moments]]:
    """Find what turns a stream and low-passes it, and match the norms to that.

    Args:
        opened: of a pre-norm architecture, its norms folded.
        stream: the residual stream that is turned.
        low_pass: (target width, source width) with orthonormal rows, in float64.
        kept_layers: whose norms say what the stream carries; None for all.

    Returns:
        P (target width, source width), which takes the place of the low-pass and keeps the principal part,
        and what every matrix behind a folded norm reads.
    """
    network = opened.network
    every = norms(network, stream)
    counted = [is_kept(place, kept_layers) for place in every]
    kept, shares = _principal(opened, stream, every, counted, low_pass)
    weights = {place: _weight(network, place) for place in every}
    seen = [] if opened.seen is None else list(zip(every, _seen(network, opened.seen, every), strict=True))
    read = {name: _after(network, place, moments) for place, moments in seen for name in behind(network, place)}
    squares = kept.square()
    for place, share, counts in zip(every, shares, counted, strict=True):
        if counts:
            match_norm(network, place, squares @ weights[place], share, kept)
    return kept, read


def fit_to_low_pass(opened: Opened, maps_of: MapsOf, known: Mapping[str, Moments], norms_too: bool) -> None:
    """Fit every matrix to what the low-pass leaves of its input, as `look` has seen it.

    Args:
        maps_of: the maps R and C of the factors of an axis, as they are going to be applied.
        known: name of a matrix -> moments of its input, where they are known already.
        norms_too: norms of a stream that gets fewer units are matched to those.
    """
    network, seen = opened.network, opened.seen or Seen({}, {})
    inputs = {f"{name}.weight": one for name, one in seen.inputs.items()}
    refit_readers(network, {**inputs, **known}, maps_of)
    for stream in network.roles.streams if norms_too else ():
        low_pass, _ = maps_of((Factor(stream, None, False),))
        kept = torch.from_numpy(network.moved(stream, None).then(low_pass).dense())
        every = norms(network, stream)
        for place, name in zip(every, _modules(network, every), strict=True):
            match_norm_scale(network, place, seen.norms[name], kept)


def match_norm(network: Network, place: NormPlace, diagonal: Tensor, share: Tensor, kept: Tensor) -> None:
    """Give a norm the weight that its low-passed stream needs.

    Of a stream with second moments M the low-pass P keeps the share rho^2 = tr(P M P^T) / tr(M); a norm
    scales it to variance 1 again, so its weight carries rho. A weight gamma that could not be folded is
    P diag(gamma) P^T there, of which a norm can only have the diagonal. The low-pass with its gain of
    sqrt(m / n) on written axes turns the vector set here into exactly that.

    Args:
        diagonal: (target width,), of P diag(gamma) P^T.
        share: rho^2.
        kept: (target width, source width), orthonormal rows: P.
    """
    target, source = kept.shape
    weight = kept.T @ diagonal * share.sqrt() * (source / target) ** 0.5
    place.set_gamma(network, lambda x: weight.to(x))


def order_units(
    network: Network,
    role: str,
    target: int,
    groups: Mapping[str, Groups] | None = None,
    kept: KeptLayers | None = None,
) -> None:
    """Put similar units of `role` next to each other, so that shrinking it to `target` merges those.

    MLP units and heads have an order in every layer, a stream's units one for the whole network. Layers
    of one group are averaged later: their units are first matched to those of the group's first layer.

    Args:
        groups: of a stack, the layers that are averaged together.
        kept: the layers that are read: the others' units stay, and do not count for a stream; None for all.
    """
    length = network.length(role)
    shapes = merge_shapes(length, target)
    gram = torch.empty(length, length, dtype=network.dtype)  # the same memory for all of them
    chosen = _together(network, role, groups, kept)
    progress.expects(len(chosen))
    for places in chosen:
        with progress.part(""):
            progress.expects(len(places) + 0.5)
            for at in places[1:]:
                first, at = _layer(places[0]), _layer(at)
                _permute(network, role, matching_order(network, role, at[0], first[1], at[1]), at)
            gram.zero_()
            for at in places:
                with progress.part(""):
                    add_grams(gram, network, role, at, kept)
            order = similar_order(mirrored(gram), shapes)
            for at in places:
                _permute(network, role, order, at)


def order_by_strength(network: Network, role: str, counts: Sequence[int], strengths: Mapping[At, Tensor]) -> None:
    """Let every group of units, of which the first is kept, start with one of the strongest.

    Args:
        strengths: layer -> (unit,); None for units of the whole network.
    """
    for at, score in strengths.items():
        _permute(network, role, strongest_first(score, counts), at)


def order_whole_units(
    network: Network,
    role: str,
    counts: list[int],
    groups: Mapping[str, Groups] | None = None,
    kept: KeptLayers | None = None,
) -> None:
    """Let every group of units that hold entries, such as heads, start with one of those that write most.

    Args:
        groups, kept: as for `order_units`.
    """
    for places in _together(network, role, groups, kept):
        total = sum((strength(network, role, at) for at in places), torch.zeros((), dtype=torch.float32))
        for at in places:
            _permute(network, role, strongest_first(total, counts), at)


def _together(
    network: Network, role: str, groups: Mapping[str, Groups] | None, kept: KeptLayers | None
) -> Sequence[Sequence[At]]:
    """The layers whose units get one order together; a stream has one everywhere."""
    if network.roles.is_network_wide(role):
        return [[None]]
    chosen: list[list[At]] = []
    for stack in network.stacks_of(role):
        read = network.layers(stack) if kept is None or stack not in kept else kept[stack]
        grouped = (groups or {}).get(stack) or [[layer] for layer in network.layers(stack) if layer in read]
        chosen += [[(stack, layer) for layer in group] for group in grouped]
    return chosen


def _layer(at: At) -> tuple[str, int]:
    if at is None:
        raise ValueError("units of the whole network are in no layer")
    return at


def _permute(network: Network, role: str, order: list[int], at: At) -> None:
    for moved in network.roles.followers(role):
        network.map_role(moved, gather(order, len(order)), at)


def _principal(
    opened: Opened, stream: str, every: list[NormPlace], counted: list[bool], low_pass: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """P for what these norms see on average; of every norm, the share of it that P keeps."""
    network = opened.network
    if opened.seen is None:
        activation = _activation(network.adapter, opened.model.config)
        progress.expects(1)
        with progress.part("", 0.5):
            estimate = estimated(network, stream, activation, counted)
        with progress.part("", 0.3):
            kept, dropped = basis(estimate.second, low_pass)
        with progress.part("", 0.2):
            shares = kept_shares(network, stream, kept, dropped, estimate)
            return kept, list(progress.tracked(shares, [1.0] * len(every)))
    seconds = [moments.uncentred().covariance for moments in _seen(network, opened.seen, every)]
    total = sum(
        (second for second, counts in zip(seconds, counted, strict=True) if counts),
        torch.zeros((), dtype=torch.float32),
    )
    kept, _ = basis(total / sum(counted), low_pass)
    return kept, [torch.trace(kept @ second @ kept.T).clamp_min(0) / len(second) for second in seconds]


def _seen(network: Network, seen: Seen, every: list[NormPlace]) -> list[Moments]:
    """What every norm normalises, as it was measured."""
    return [seen.norms[name] for name in _modules(network, every)]


def _modules(network: Network, places: list[NormPlace]) -> list[str]:
    return [str(place.part(network, "weight")).removesuffix(".weight") for place in places]


def _activation(adapter: Adapter, config: Any) -> Callable[[Tensor], Tensor]:
    """The function behind MLP units."""
    named = getattr(config, adapter.activation)
    function: Callable[[Tensor], Tensor] = ACT2FN[named] if isinstance(named, str) else named
    return function


def _after(network: Network, place: NormPlace, seen: Moments) -> Moments:
    """What a norm gives, of what it has normalised."""
    gamma, beta = _weight(network, place), place.part(network, "bias")
    shift = network[beta].double() if beta else torch.zeros_like(gamma)
    return Moments(gamma * seen.mean + shift, gamma[:, None] * seen.covariance * gamma, seen.tokens)


def _weight(network: Network, place: NormPlace) -> Tensor:
    return aligned(place.gamma(network).double())


__all__ = [
    "Groups",
    "Network",
    "Opened",
    "OutOfRange",
    "Place",
    "fit_to_low_pass",
    "fold_norms",
    "look",
    "merge_shapes",
    "order_by_strength",
    "order_units",
    "order_whole_units",
    "to_principal_basis",
]
