"""Rewriting a source into an equivalent one that a low-pass shrinks with less loss.

Three steps, each with the law that the network's outputs stay: norms are folded (`fold`), units are
put in another order (`order`), the residual stream is turned into another basis (`principal`), which is
one product with the low-pass that follows. A fourth, `match_norm`, then sets the norms to what the
low-pass leaves of the stream. Where the source may run on a few batches, a fifth, `fit_to_low_pass`,
fits every matrix to what is left of its input.

The paper has none of it; Ashkboos et al., "SliceGPT" (arXiv 2401.15024), rotates a pre-norm stream to
its principal components to cut it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..architectures.axes import Factor
from ..console import progress
from ..ops.axis_map import gather
from ..ops.matmul import aligned, mirrored
from .calibration import See
from .fold import behind, fold_norms, norms
from .moments import Moments, Seen, measured
from .network import STREAM, Network, OutOfRange, Place
from .order import add_grams, head_strength, matching_order, merge_shapes, similar_order, strongest_first
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
    opened: Opened, low_pass: Tensor, kept_layers: Collection[int] | None = None
) -> tuple[Tensor, dict[str, Moments]]:
    """Fold the norms, find what turns the stream and low-passes it, and match the norms to that.

    Args:
        opened: of a pre-norm architecture.
        low_pass: (target hidden, source hidden) with orthonormal rows, in float64.
        kept_layers: whose norms say what the stream carries; None for all.

    Returns:
        P (target hidden, source hidden), which takes the place of the low-pass and keeps the principal part,
        and what every matrix behind a folded norm reads.
    """
    network = opened.network
    fold_norms(network)
    every = norms(network)
    counted = [layer is None or kept_layers is None or layer in kept_layers for _, layer in every]
    kept, shares = _principal(opened, every, counted, low_pass)
    weights = {place: _weight(network, *place) for place in every}
    seen = [] if opened.seen is None else list(zip(every, _seen(network, opened.seen, every), strict=True))
    read = {name: _after(network, place, one) for place, one in seen for name in behind(network, *place)}
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
    if norms_too:
        stream, _ = maps_of((Factor("hidden", None, False),))
        kept = torch.from_numpy(network.moved("hidden", None).then(stream).dense())
        every = norms(network)
        for place, name in zip(every, _modules(network, every), strict=True):
            match_norm_scale(network, place, seen.norms[name], kept)


def match_norm(network: Network, place: tuple[str, int | None], diagonal: Tensor, share: Tensor, kept: Tensor) -> None:
    """Give a norm the weight that its low-passed stream needs.

    Of a stream with second moments M the low-pass P keeps the share rho^2 = tr(P M P^T) / tr(M); a norm
    scales it to variance 1 again, so its weight carries rho. A weight gamma that could not be folded is
    P diag(gamma) P^T there, of which a norm can only have the diagonal. The low-pass with its gain of
    sqrt(m / n) on written axes turns the vector set here into exactly that.

    Args:
        diagonal: (target hidden,), of P diag(gamma) P^T.
        share: rho^2.
        kept: (target hidden, source hidden), orthonormal rows: P.
    """
    target, source = kept.shape
    weight = kept.T @ diagonal * share.sqrt() * (source / target) ** 0.5
    name = network.find(f"{place[0]}.weight", place[1])
    if name is not None:
        network.edit(name, lambda x: weight.to(x))


def order_units(
    network: Network, role: str, target: int, groups: Groups = (), kept: Collection[int] | None = None
) -> None:
    """Put similar units of `role` next to each other, so that shrinking it to `target` merges those.

    MLP units and heads have an order in every layer, hidden units one for the whole network. Layers
    of one group are averaged later: their units are first matched to those of the group's first layer.

    Args:
        kept: the layers that are read: the others' units stay, and do not count for hidden ones; None for all.
    """
    length = network.sizes[role] or 0
    shapes = merge_shapes(length, target)
    every: Sequence[Sequence[int | None]] = groups or [[i] for i in network.layers if kept is None or i in kept]
    gram = torch.empty(length, length, dtype=network.dtype)  # the same memory for all of them
    chosen: Sequence[Sequence[int | None]] = [[None]] if role == "hidden" else every
    progress.expects(len(chosen))
    for group in chosen:
        with progress.part(""):
            progress.expects(len(group) + 0.5)
            for layer in group[1:]:
                _permute(network, role, matching_order(network, role, group[0] or 0, layer or 0), layer)
            gram.zero_()
            for layer in group:
                with progress.part(""):
                    add_grams(gram, network, role, layer, kept)
            order = similar_order(mirrored(gram), shapes)
            for layer in group:
                _permute(network, role, order, layer)


def order_by_strength(
    network: Network, role: str, counts: Sequence[int], strength: Mapping[int | None, Tensor]
) -> None:
    """Let every group of units, of which the first is kept, start with one of the strongest.

    Args:
        strength: layer -> (unit,); layer None for hidden units.
    """
    for layer, score in strength.items():
        _permute(network, role, strongest_first(score, counts), layer)


def order_heads(network: Network, counts: list[int], groups: Groups = (), kept: Collection[int] | None = None) -> None:
    """Let every group of heads, of which the first is kept, start with one of the strongest.

    Args:
        kept: the layers that are read; None for all.
    """
    for group in groups or [[i] for i in network.layers if kept is None or i in kept]:
        strength = sum((head_strength(network, layer) for layer in group), torch.zeros((), dtype=torch.float32))
        for layer in group:
            _permute(network, "heads", strongest_first(strength, counts), layer)


def _permute(network: Network, role: str, order: list[int], layer: int | None) -> None:
    for one in STREAM if role == "hidden" else (role,):
        network.map_role(one, gather(order, len(order)), layer)


def _principal(
    opened: Opened, every: list[tuple[str, int | None]], counted: list[bool], low_pass: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """P for what these norms see on average; of every norm, the share of it that P keeps."""
    network = opened.network
    if opened.seen is None:
        activation = _activation(opened.model.config)
        progress.expects(1)
        with progress.part("", 0.5):
            estimate = estimated(network, activation, counted)
        with progress.part("", 0.3):
            kept, dropped = basis(estimate.second, low_pass)
        with progress.part("", 0.2):
            shares = kept_shares(network, kept, dropped, estimate)
            return kept, list(progress.tracked(shares, [1.0] * len(every)))
    seconds = [one.uncentred().covariance for one in _seen(network, opened.seen, every)]
    total = sum(
        (one for one, counts in zip(seconds, counted, strict=True) if counts), torch.zeros((), dtype=torch.float32)
    )
    kept, _ = basis(total / sum(counted), low_pass)
    return kept, [torch.trace(kept @ second @ kept.T).clamp_min(0) / len(second) for second in seconds]


def _seen(network: Network, seen: Seen, every: list[tuple[str, int | None]]) -> list[Moments]:
    """What every norm normalises, as it was measured."""
    return [seen.norms[name] for name in _modules(network, every)]


def _modules(network: Network, places: list[tuple[str, int | None]]) -> list[str]:
    return [str(network.find(f"{stem}.weight", layer)).removesuffix(".weight") for stem, layer in places]


def _activation(config: Any) -> Callable[[Tensor], Tensor]:
    named = getattr(config, "activation_function", None) or config.hidden_act
    found: Callable[[Tensor], Tensor] = ACT2FN[named] if isinstance(named, str) else named
    return found


def _after(network: Network, place: tuple[str, int | None], seen: Moments) -> Moments:
    """What a norm gives, of what it has normalised."""
    gamma, beta = _weight(network, *place), network.find(f"{place[0]}.bias", place[1])
    shift = network[beta].double() if beta else torch.zeros_like(gamma)
    return Moments(gamma * seen.mean + shift, gamma[:, None] * seen.covariance * gamma, seen.tokens)


def _weight(network: Network, stem: str, layer: int | None) -> Tensor:
    return aligned(network[str(network.find(f"{stem}.weight", layer))].double())


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
    "order_heads",
    "order_units",
    "to_principal_basis",
]
