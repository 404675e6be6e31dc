"""The principal basis: the residual stream turned so that low-pass keeps what it carries most.

A pre-norm network whose norms are folded computes the same in every basis of its stream that keeps
the mean direction (the norm subtracts the mean). Of all turns Q, one that a given low-pass `A` follows
(m x n, orthonormal rows, `A 1/sqrt(n) = 1/sqrt(m)`) keeps the principal subspace if `A Q = P`: the rows of
P span the top eigenvectors of the stream's second moments, centred, and the mean direction. The turn and
the low-pass are one product, so P is all that `basis` finds, and nothing is ever turned.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..architectures.adapter import Adapter
from ..console import progress
from ..ops.blocks import add_gram, aligned, gram, mirrored, product, times
from .network import Block, KeptLayers, Network, NormPlace, OutOfRange, Place, behind, is_kept, norms, read_by

# Attention averages values over tokens, which takes away most of their variance: an assumption, not fitted.
ATTENTION_SHARE = 0.25
ENTRIES = 4096  # of a table, that are multiplied at a time
ENOUGH = 16  # entries of a table for every hidden unit: their principal directions keep what those of all do
VANISHED = 1e-30  # the size of a stream whose squares are too small for float32
NEIGHBOUR = 0.95  # correlation of neighbouring pixels
Batches = Iterable[Mapping[str, Any]]


@dataclass
class Moments:
    """Mean and covariance of a vector, in float64."""

    mean: Tensor  # (unit,)
    covariance: Tensor  # (unit, unit)
    tokens: int | None = None  # how many were measured; None for an estimate

    def add(self, mean: Tensor, covariance: Tensor) -> None:
        """Take in an independent summand."""
        self.mean = self.mean + mean
        self.covariance.add_(covariance)

    def mapped(self, matrix: Tensor) -> "Moments":
        """Of `matrix @ x`."""
        return Moments(matrix @ self.mean, matrix @ self.covariance @ matrix.T, self.tokens)

    def uncentred(self) -> "Moments":
        """Mean 0 and second moments in place of the covariance."""
        second = self.covariance + torch.outer(self.mean, self.mean)
        return Moments(torch.zeros_like(self.mean), second, self.tokens)

    @property
    def size(self) -> Tensor:
        """Trace of the second moments, after the mean over units is taken away."""
        off = self.mean - self.mean.mean()
        return self.covariance.trace() - self.covariance.sum() / len(off) + off.square().sum()

    def normalised(self) -> "Moments":
        """After a norm: without the mean over units, of variance 1 over units on average."""
        mean = self.mean - self.mean.mean()
        scale = (self.size / len(mean)).clamp_min(1e-300)
        rows, columns = (self.covariance.mean(dim, keepdim=True) for dim in (1, 0))
        covariance = self.covariance - rows - columns + rows.mean()  # (I - 1 1^T / n) C (I - 1 1^T / n)
        return Moments(mean / scale.sqrt(), covariance / scale, self.tokens)


@dataclass(frozen=True)
class Seen:
    """What was measured while a source ran on a few batches.

    Attributes:
        norms: name of a norm -> what it normalises, every token at mean 0 and variance 1 over units.
        inputs: name of a linear module -> what it reads.
    """

    norms: Mapping[str, Moments]
    inputs: Mapping[str, Moments]


@dataclass(frozen=True)
class Opened:
    """A source as a method may rewrite it; with calibration, batches to run it on and what they have shown."""

    network: Network
    model: nn.Module
    calibration: Batches | None = None
    seen: Seen | None = None


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


def basis(moments: Tensor, low_pass: Tensor) -> tuple[Tensor, Tensor]:
    """P (m x n), which spans the mean and the principal directions, and the n - m directions it leaves out.

    Of the frames of that span P is the one nearest to the low-pass; it maps the constant vector as that does.

    Args:
        moments: (n, n) second moments of the stream, in float64.
        low_pass: (m, n) with orthonormal rows.

    Raises:
        OutOfRange: moments that are not finite.
    """
    if not bool(moments.isfinite().all()):
        raise OutOfRange("second moments of the stream")
    source, target = len(moments), len(low_pass)
    mean = torch.full((source, 1), source**-0.5, dtype=torch.float64)
    centred = moments - mean @ (mean.T @ moments)
    centred = centred - (centred @ mean) @ mean.T
    _, vectors = torch.linalg.eigh(centred)
    # The mean direction comes first; among the eigenvectors it is one of value 0, which QR then skips.
    frame, _ = torch.linalg.qr(torch.cat([mean, vectors.flip(1)], dim=1))  # (source, source), by falling energy
    return _aligned(frame[:, :target].T, low_pass), frame[:, target:].T.contiguous()


Event = NormPlace | Block  # a norm looks at the stream, or a block adds to it


def events(network: Network, stream: str) -> Iterator[Event]:
    """What happens to a stream, in order: every norm comes just before the block that reads it.

    Norms that no block of their layer reads look at the end of it; those outside of the layers at the very end.
    """
    every = norms(network, stream)
    for at in network.everywhere:
        waiting = [place for place in every if place.at == at]
        for block in network.blocks(at):
            if block.stream != stream:
                continue
            before = [place for place in waiting if not read_by(network, place).isdisjoint(block.writers)]
            waiting = [place for place in waiting if place not in before]
            yield from before
            yield block
        yield from waiting
    yield from (place for place in every if place.at is None)


def weight_moments(
    network: Network, stream: str, activation: Callable[[Tensor], Tensor], embedded: Moments | None = None
) -> Iterator[tuple[Moments, "list[Added]"]]:
    """What every norm of a folded pre-norm network sees of a stream, estimated from the weights alone.

    Tokens and positions count alike, a norm's output has variance 1 in every direction, MLP units
    see a normal variable of the mean and variance that their weights give it.

    Args:
        embedded: the stream in front of the first block, if it is known; it is added to.

    Yields:
        Moments of the stream before its norm, and the blocks that were added since the norm before. The moments
        are one and the same object, to which the next block is added.
    """
    moments = embedded or embedded_moments(network, stream)
    added: list[Added] = []
    for event in events(network, stream):
        if isinstance(event, Block):
            added.append(added_by(network, event, activation))
            moments.add(added[-1].mean.double(), gram(added[-1].factor()))
        else:
            yield moments, added
            added = []


@dataclass(frozen=True)
class Estimate:
    """What norms see of a stream, without a (hidden, hidden) matrix for every one of them.

    Attributes:
        second: (hidden, hidden) second moments of what they see, centred and normalised, on average.
        embedded: covariance of the stream in front of the first block.
        means: (hidden,) of the stream before every norm.
        sizes: of the stream before every norm, see `Moments.size`.
        spreads: (ffn,) of every layer: of what MLP units give.
    """

    second: Tensor
    embedded: Tensor
    means: Sequence[Tensor]
    sizes: Sequence[float]
    spreads: Sequence[Tensor]


def estimated(
    network: Network, stream: str, activation: Callable[[Tensor], Tensor], counted: Sequence[bool]
) -> Estimate:
    """What the norms of a stream see by `weight_moments`; those that are `counted` are averaged."""
    width = network.length(stream)
    start = embedded_moments(network, stream)
    total, embedded = torch.zeros(width, width, dtype=torch.float64), start.covariance.clone()
    means, sizes, spreads = [], [], []
    seen = zip(weight_moments(network, stream, activation, start), counted, strict=True)
    for (moments, added), counts in progress.tracked(seen, [1.0] * len(counted)):
        spreads += [block.right for block in added if block.right.ndim == 1]
        means.append(moments.mean)
        size = float(moments.size)
        if not (size > VANISHED or network.dtype == torch.float64) or size == math.inf:
            raise OutOfRange("the size of the stream")
        sizes.append(max(size, 1e-300))
        if counts:
            weight = width / sizes[-1] / sum(counted)
            total.add_(moments.covariance, alpha=weight).addr_(moments.mean, moments.mean, alpha=weight)
    total -= total.mean(0)
    total -= total.mean(1, keepdim=True)
    return Estimate(total, embedded, means, sizes, spreads)


def kept_shares(network: Network, stream: str, kept: Tensor, dropped: Tensor, estimate: Estimate) -> Iterator[Tensor]:
    """Of what each norm sees by this estimate, the share of second moments that P keeps.

    Args:
        kept, dropped: of `basis`: (target width, source width) and what completes it.
    """
    less = len(kept) <= len(dropped)
    for share in _shares(network, stream, kept if less else dropped, estimate):
        if not bool(share.isfinite()):
            raise OutOfRange("the share of the stream that is kept")
        yield share if less else (1 - share).clamp_min(0)


def _shares(network: Network, stream: str, rows: Tensor, estimate: Estimate) -> Iterator[Tensor]:
    """tr(P M P^T) / tr(M) of a sum of blocks B B^T is a sum of squares of P B: a second look at the weights
    instead of one (width, width) matrix held for every norm.
    """
    centred = rows - rows.mean(1, keepdim=True)  # P (I - 1 1^T / n)
    inside = ((centred @ estimate.embedded) * centred).sum()
    left = iter([(centred @ mean).square().sum() for mean in estimate.means])
    sizes, centred, spreads = iter(estimate.sizes), centred.to(network.dtype), iter(estimate.spreads)
    for event in events(network, stream):
        if isinstance(event, Block):
            inside = inside + _seen_through(network, event, centred, spreads).square().sum()
        else:
            yield (inside + next(left)) / next(sizes)


def _seen_through(network: Network, block: Block, rows: Tensor, spreads: Iterator[Tensor]) -> Tensor:
    """P B of a block whose covariance is B B^T; of MLP units the spreads are known."""
    if holds_entries(network, block):
        return _values(network, block).factor(rows)
    return product(rows, network.written(block)[0].T) * next(spreads)


@dataclass(frozen=True)
class Added:
    """What a block adds to the stream: its mean, and the factors of its covariance (L R)(L R)^T."""

    mean: Tensor  # (width,)
    left: Tensor  # (width, units)
    right: Tensor  # (units, entries), or (units,) for a diagonal

    def factor(self, kept: Tensor | None = None) -> Tensor:
        """L R, with `kept` in front of it."""
        left = self.left if kept is None else product(kept, self.left.T)
        if self.right.ndim == 2:
            return product(left, self.right.T)
        return left.clone(memory_format=torch.contiguous_format).mul_(self.right)  # as `gram` reads it


def embedded_moments(network: Network, stream: str) -> Moments:
    """Moments of a stream in front of its first block: of what tables, positions and patches put there."""
    nothing = torch.zeros(network.length(stream), dtype=torch.float64)
    moments = Moments(nothing, torch.diag(nothing))
    for name, place in network.having(stream):
        if place.layer is not None or network.reads_stream(place) or place.stem in network.adapter.norm_names:
            continue
        if place.rule.maps:  # (width, channel x row x column) of a patch
            for _, x in network.along(name, stream):
                moments.add(torch.zeros_like(moments.mean), x.double() @ _inputs(network, place) @ x.double().T)
        else:
            moments.add(*_entries(network, name, stream))
    return moments


def _entries(network: Network, name: str, stream: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance over the entries of a table; of a long one, every k-th stands for its neighbours."""
    width = network.length(stream)
    count, first = 0, torch.zeros(width, dtype=torch.float64)
    second = torch.zeros(width, width, dtype=torch.float64)
    for _, table in network.along(name, stream):  # (width, entries)
        for part in torch.split(table[:, :: max(1, table.shape[1] // (ENOUGH * width))], ENTRIES, dim=1):
            x = part.to(network.dtype).contiguous()
            count, first = count + x.shape[1], first + x.sum(1)
            add_gram(second, x)
    mean = first / count
    return mean, mirrored(second).div_(count).sub_(torch.outer(mean, mean))


def _inputs(network: Network, place: Place) -> Tensor:
    """Covariance of what a matrix reads from outside, normalised to variance 1.

    Neighbouring pixels in natural images correlate by about .95, and a distance d by .95^d, the usual
    first-order model; so do their colours. White pixels instead would weigh fine patterns, which
    images hardly hold, like the brightness that carries most of them. Of anything else nothing is known: it
    is taken to be white.
    """
    read = [factor for factor in place.rule.factors if factor.reads]
    patch = any(network.roles.kind(factor.role) == "pixel" for factor in read)
    covariance = torch.eye(1, dtype=torch.float64)
    for factor in reversed(read):
        length = factor.length(network.sizes) or 1
        alike = torch.eye(length, dtype=torch.float64)
        if patch and network.roles.kind(factor.role) == "pixel":
            alike = NEIGHBOUR ** (torch.arange(length)[:, None] - torch.arange(length)).abs().double()
        elif patch:
            alike = NEIGHBOUR + (1 - NEIGHBOUR) * alike
        covariance = torch.kron(alike, covariance)
    return covariance


def holds_entries(network: Network, block: Block) -> bool:
    """Whether a block reads units that hold entries, as attention reads heads."""
    return any(network.roles.is_whole(factor.role) for factor in block.segment if factor.role)


def added_by(network: Network, block: Block, activation: Callable[[Tensor], Tensor]) -> Added:
    """What a block adds to the stream, by its weights."""
    return _values(network, block) if holds_entries(network, block) else _units(network, block, activation)


def _values(network: Network, block: Block) -> Added:
    """Attention averages the values of tokens."""
    out, bias = network.written(block)  # (width, heads * head_dim), (width,)
    values, shift = network.writing(block.writers[0], block.segment[-1].role)  # (heads * head_dim, width), ...
    return Added(times(out, shift) + bias, out, ATTENTION_SHARE**0.5 * values)


def _units(network: Network, block: Block, activation: Callable[[Tensor], Tensor]) -> Added:
    """MLP units are independent of each other; their mean and spread are integrals over a normal variable."""
    out, bias = network.written(block)
    units, shift = network.writing(block.writers[0], block.segment[-1].role)
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(16))
    weights = weights / weights.sum()
    inputs = shift[:, None] + units.square().sum(1).double().sqrt()[:, None] * nodes  # (units, nodes)
    outputs = activation(inputs)
    mean = outputs @ weights
    spread = ((outputs - mean[:, None]).square() @ weights).sqrt()
    return Added(times(out, mean.to(out.dtype)) + bias, out, spread.to(out.dtype))


def _aligned(rows: Tensor, reference: Tensor) -> Tensor:
    """The span of `rows` in the orthonormal frame nearest to `reference` (Procrustes)."""
    u, _, v = torch.linalg.svd(reference @ rows.T)
    aligned: Tensor = u @ v @ rows
    return aligned


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
    return [seen.norms[name] for name in modules_of(network, every)]


def modules_of(network: Network, places: list[NormPlace]) -> list[str]:
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
