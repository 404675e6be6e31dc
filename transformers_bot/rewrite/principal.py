"""The principal basis: the residual stream turned so that a low-pass keeps its directions of largest energy.

A pre-norm network with folded norms computes the same function in every basis of its stream that keeps the
mean direction (the norm subtracts the mean; RMS norms do not, and allow any basis). Let A be the low-pass, m x n
with orthonormal rows and `A 1/sqrt(n) = 1/sqrt(m)`. After a turn Q it keeps the principal subspace if the rows of
`A Q = P` span the mean direction and the first eigenvectors of the stream's centred second moments. Only the
product P is needed: `basis` computes it, and Q is never applied by itself.
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
from ..architectures.sizes import get_field
from ..console import progress
from ..ops.blocks import add_gram, aligned, gram, mirrored, product, times
from .folding import NormPlace, folded_readers, is_foldable, norms, readers_of, reads_once, scales, takes_mean
from .network import Block, KeptLayers, Network, OutOfRange, Place, is_kept

# Attention averages values over tokens, which removes most of their variance. The value is assumed, not fitted.
ATTENTION_SHARE = 0.25
ENTRIES = 4096  # entries of a table that are multiplied at a time
ENOUGH = 16  # entries of a table per hidden unit; more give practically the same principal directions
VANISHED = 1e-30  # below this size of the stream its squares are too small for float32
NEIGHBOUR = 0.95  # correlation of neighbouring pixels
Batches = Iterable[Mapping[str, Any]]


@dataclass
class Moments:
    """Mean and covariance of a random vector, in float64."""

    mean: Tensor  # (unit,)
    covariance: Tensor  # (unit, unit)
    tokens: int | None = None  # how many were measured; None for an estimate from weights

    def add(self, mean: Tensor, covariance: Tensor) -> None:
        """Add an independent random vector."""
        self.mean = self.mean + mean
        self.covariance.add_(covariance)

    def mapped(self, matrix: Tensor) -> "Moments":
        """The moments of `matrix @ x`."""
        return Moments(matrix @ self.mean, matrix @ self.covariance @ matrix.T, self.tokens)

    def uncentred(self) -> "Moments":
        """Mean 0 and second moments in place of the covariance."""
        second = self.covariance + torch.outer(self.mean, self.mean)
        return Moments(torch.zeros_like(self.mean), second, self.tokens)

    @property
    def size(self) -> Tensor:
        """Trace of the second moments after the mean over units was subtracted."""
        off = self.mean - self.mean.mean()
        return self.covariance.trace() - self.covariance.sum() / len(off) + off.square().sum()

    @property
    def power(self) -> Tensor:
        """Trace of the second moments."""
        return self.covariance.trace() + self.mean.square().sum()

    def normalised(self) -> "Moments":
        """The moments after a norm: without the mean over units, and with variance 1 over units on average."""
        mean = self.mean - self.mean.mean()
        scale = (self.size / len(mean)).clamp_min(1e-300)
        rows, columns = (self.covariance.mean(dim, keepdim=True) for dim in (1, 0))
        covariance = self.covariance - rows - columns + rows.mean()  # (I - 1 1^T / n) C (I - 1 1^T / n)
        return Moments(mean / scale.sqrt(), covariance / scale, self.tokens)


@dataclass(frozen=True)
class InputMoments:
    """What was measured while a source ran on a few batches.

    Attributes:
        norms: name of a norm -> moments of its input, with every token at mean square 1 over units, and at mean 0
            if the norm subtracts the mean.
        inputs: name of a linear module -> moments of its input.
    """

    norms: Mapping[str, Moments]
    inputs: Mapping[str, Moments]


@dataclass(frozen=True)
class Opened:
    """A source that a method may rewrite, with its calibration batches and the moments measured on them, if any."""

    network: Network
    model: nn.Module
    calibration: Batches | None = None
    moments: InputMoments | None = None


def to_principal_basis(
    opened: Opened, stream: str, low_pass: Tensor, kept_layers: KeptLayers | None = None
) -> tuple[Tensor, dict[str, Moments]]:
    """Find the product of turn and low-pass for a stream, and match the norms to it.

    Args:
        opened: of a pre-norm architecture, with folded norms.
        stream: the residual stream that is turned.
        low_pass: (target width, source width) with orthonormal rows, in float64.
        kept_layers: the layers whose norms count for the second moments of the stream; None for all.

    Returns:
        P (target width, source width), which replaces the low-pass and keeps the principal part, and name ->
        moments of the input of every matrix behind a folded norm, if they were measured.
    """
    network = opened.network
    places = norms(network, stream)
    counted = [is_kept(place.at, kept_layers) for place in places]
    low_band, shares = _principal(opened, stream, places, counted, low_pass)
    weights = {place: _weight(network, place) for place in places}
    measured: dict[NormPlace, Moments] = {}
    if opened.moments is not None:
        measured = dict(zip(places, _norm_moments(network, opened.moments, places), strict=True))
    readers = [(name, place) for place in measured for name in folded_readers(network, place)]
    readers = [(name, place) for name, place in readers if reads_once(network, name)]
    inputs = {name: _after(network, place, measured[place]) for name, place in readers}
    squares = low_band.square()
    for place, share, counts in zip(places, shares, counted, strict=True):
        if counts:
            match_norm(network, place, squares @ weights[place], share, low_band)
    ones = low_band.T @ torch.ones(len(low_band), dtype=torch.float64) * (low_band.shape[1] / len(low_band)) ** 0.5
    for name in scales(network, stream):  # folded: the low-pass of the resize maps this to ones
        network.edit(name, lambda x: ones.to(x))
    return low_band, inputs


def match_norm(network: Network, place: NormPlace, diagonal: Tensor, share: Tensor, low_band: Tensor) -> None:
    """Give a norm the weight that the low-passed stream needs.

    Of a stream with second moments M the low-pass P keeps the share rho^2 = tr(P M P^T) / tr(M). The norm
    scales that to variance 1 again, so its weight is multiplied by rho. A weight gamma that could not be
    folded becomes P diag(gamma) P^T, and a norm can only have the diagonal of that matrix. The weight set
    here is at the source's size: the low-pass of the resize, with a gain of sqrt(m / n) on written axes,
    maps it to rho times that diagonal.

    Args:
        diagonal: (target width,), of P diag(gamma) P^T.
        share: rho^2.
        low_band: (target width, source width), orthonormal rows: P.
    """
    target, source = low_band.shape
    weight = low_band.T @ diagonal * share.sqrt() * (source / target) ** 0.5
    place.set_gamma(network, lambda x: weight.to(x))


def basis_in_groups(moments: Tensor, groups: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """P (m x n), which spans the principal directions, and the n - m directions it leaves out, of an RMS stream.

    No direction goes over two groups: a norm in front of a tied output embedding keeps its weight, and after a turn
    this is a weight per unit only if the turned units have like weights. Groups of one unit are kept.

    Args:
        moments: (n, n) second moments of the stream, in float64.
        groups: (n,) the number of every unit's group.
        target: m.

    Raises:
        OutOfRange: moments that are not finite.
    """
    if not bool(moments.isfinite().all()):
        raise OutOfRange("second moments of the stream")
    values, vectors = torch.zeros(len(moments), dtype=torch.float64), torch.zeros_like(moments)
    alone = torch.zeros(len(moments), dtype=torch.bool)
    for number in sorted(set(groups.tolist())):
        units = (groups == number).nonzero().flatten()
        values[units], own = torch.linalg.eigh(moments[units[:, None], units])
        vectors[units[:, None], units] = own
        alone[units] = len(units) == 1
    # Units of their own come first: the norm's weight marks them as unlike the rest.
    order = sorted(range(len(values)), key=lambda i: (not alone[i], -float(values[i])))
    rows = vectors.T[order]
    return rows[:target].contiguous(), rows[target:].contiguous()


LIKE = 0.1  # relative: weights of a norm that count as one


def like_weights(weights: Tensor) -> Tensor:
    """A number for every unit, the same for those of which all norms have nearly the median weight.

    Args:
        weights: (norm, unit) of norms that keep their weight.
    """
    median = weights.median(1, keepdim=True).values
    alike = ((weights - median).abs() <= LIKE * median.abs()).all(0)
    numbers = torch.arange(1, len(alike) + 1)
    return torch.where(alike, 0, numbers)


def basis(moments: Tensor, low_pass: Tensor) -> tuple[Tensor, Tensor]:
    """P (m x n), which spans the mean and the principal directions, and the other n - m directions.

    Of all orthonormal bases of that span, P is the one nearest to the low-pass. It maps the constant vector as
    the low-pass does.

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
    # The mean direction comes first. It is also the eigenvector with eigenvalue 0, which QR then leaves out.
    frame, _ = torch.linalg.qr(torch.cat([mean, vectors.flip(1)], dim=1))  # (source, source), by falling energy
    return _aligned(frame[:, :target].T, low_pass), frame[:, target:].T.contiguous()


Event = NormPlace | Block  # a norm reads the stream, or a block adds to it


def events(network: Network, stream: str) -> Iterator[Event]:
    """The norms and blocks of a stream in order: every norm comes just before the block that reads it.

    Norms that no block of their layer reads come at the end of the layer, norms outside of the layers at the end.
    """
    places = norms(network, stream)
    for at in network.all_layers:
        waiting = [place for place in places if place.at == at]
        for block in network.blocks(at):
            if block.stream != stream:
                continue
            parts = _parts(network, block)
            before = [place for place in waiting if not readers_of(network, place).isdisjoint(parts)]
            waiting = [place for place in waiting if place not in before]
            yield from before
            yield block
        yield from waiting
    yield from (place for place in places if place.at is None)


def _parts(network: Network, block: Block) -> set[str]:
    """The matrices of a block: those that write its units, and all others in the same module, such as queries."""
    at, module = network.places[block.out].at, network.places[block.out].stem.rpartition(".")[0]
    if module.endswith("}"):  # the layer itself, which holds other blocks, too
        return set(block.writers)
    beside = (n for n, place in network.places.items() if place.at == at and place.stem.startswith(f"{module}."))
    return {*block.writers, *beside}


def weight_moments(
    network: Network, stream: str, activation: Callable[[Tensor], Tensor], embedded: Moments | None = None
) -> Iterator[tuple[Moments, "list[Added]"]]:
    """Moments of a stream before every norm of a folded pre-norm network, estimated from the weights alone.

    It is assumed that all tokens and positions are equally frequent, that a norm's output has variance 1 in
    every direction, and that the input of an MLP unit is normal with the mean and variance that its weights
    then give.

    Args:
        embedded: moments of the stream in front of the first block, if they are known; they are overwritten.

    Yields:
        Moments of the stream before a norm, and the blocks that were added since the previous norm. The moments
        are always the same object, to which the next block is added.
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
    """Moments of a stream before its norms, without a (hidden, hidden) matrix for every norm.

    Attributes:
        second: (hidden, hidden) second moments, normalised (and centred) and averaged over norms.
        embedded: covariance of the stream in front of the first block.
        means: per norm, (hidden,) mean of the stream before it.
        sizes: per norm, the size of the stream before it, see `Moments.size` (of RMS norms: `power`).
        spreads: per layer, (ffn,) standard deviation of the outputs of MLP units.
    """

    second: Tensor
    embedded: Tensor
    means: Sequence[Tensor]
    sizes: Sequence[float]
    spreads: Sequence[Tensor]


def estimated(
    network: Network, stream: str, activation: Callable[[Tensor], Tensor], counted: Sequence[bool]
) -> Estimate:
    """The estimate by `weight_moments`; second moments are averaged over the norms that are `counted`."""
    width, centred = network.length(stream), takes_mean(network, stream)
    start = embedded_moments(network, stream)
    total, embedded = torch.zeros(width, width, dtype=torch.float64), start.covariance.clone()
    means, sizes, spreads = [], [], []
    steps = zip(weight_moments(network, stream, activation, start), counted, strict=True)
    for (moments, added), counts in progress.tracked(steps, [1.0] * len(counted)):
        spreads += [block.right for block in added if block.right.ndim == 1]
        means.append(moments.mean)
        size = float(moments.size if centred else moments.power)
        if not (size > VANISHED or network.dtype == torch.float64) or size == math.inf:
            raise OutOfRange("the size of the stream")
        sizes.append(max(size, 1e-300))
        if counts:
            weight = width / sizes[-1] / sum(counted)
            total.add_(moments.covariance, alpha=weight).addr_(moments.mean, moments.mean, alpha=weight)
    if centred:
        total -= total.mean(0)
        total -= total.mean(1, keepdim=True)
    return Estimate(total, embedded, means, sizes, spreads)


def kept_shares(network: Network, stream: str, kept: Tensor, dropped: Tensor, estimate: Estimate) -> Iterator[Tensor]:
    """For every norm, the share of the stream's second moments before it that P keeps.

    Args:
        kept, dropped: from `basis`: P (target width, source width), and the other directions.
    """
    keeps_fewer = len(kept) <= len(dropped)  # the smaller of the two matrices is multiplied
    for share in _shares(network, stream, kept if keeps_fewer else dropped, estimate):
        if not bool(share.isfinite()):
            raise OutOfRange("the share of the stream that is kept")
        yield share if keeps_fewer else (1 - share).clamp_min(0)


def _shares(network: Network, stream: str, rows: Tensor, estimate: Estimate) -> Iterator[Tensor]:
    """tr(P M P^T) / tr(M) before every norm.

    M is a sum of products B B^T over blocks, so the trace is a sum of squares of P B. The weights are read a
    second time for that; otherwise one (width, width) matrix for every norm would have to be kept.
    """
    centred = rows - rows.mean(1, keepdim=True) if takes_mean(network, stream) else rows  # P (I - 1 1^T / n)
    variance = ((centred @ estimate.embedded) * centred).sum()
    mean_squares = iter([(centred @ mean).square().sum() for mean in estimate.means])
    sizes, centred, spreads = iter(estimate.sizes), centred.to(network.dtype), iter(estimate.spreads)
    for event in events(network, stream):
        if isinstance(event, Block):
            variance = variance + _projected(network, event, centred, spreads).square().sum()
        else:
            yield (variance + next(mean_squares)) / next(sizes)


def _projected(network: Network, block: Block, rows: Tensor, spreads: Iterator[Tensor]) -> Tensor:
    """P B of a block whose covariance is B B^T; the spreads of MLP units are known from the estimate."""
    if holds_entries(network, block):
        return _values(network, block).factor(rows)
    return product(rows, network.out_matrix(block)[0].T) * next(spreads)


@dataclass(frozen=True)
class Added:
    """Moments of what a block adds to the stream: its mean, and the factors of its covariance (L R)(L R)^T."""

    mean: Tensor  # (width,)
    left: Tensor  # (width, units)
    right: Tensor  # (units, entries), or (units,) for a diagonal

    def factor(self, rows: Tensor | None = None) -> Tensor:
        """L R, or the product of `rows` and L R."""
        left = self.left if rows is None else product(rows, self.left.T)
        if self.right.ndim == 2:
            return product(left, self.right.T)
        return left.clone(memory_format=torch.contiguous_format).mul_(self.right)  # contiguous, as `gram` needs it


def embedded_moments(network: Network, stream: str) -> Moments:
    """Moments of a stream in front of its first block: the sum of token, position and patch embeddings."""
    zero = torch.zeros(network.length(stream), dtype=torch.float64)
    moments = Moments(zero, torch.diag(zero))
    for name, place in network.tensors_with(stream):
        if place.layer is not None or network.reads_stream(place) or place.stem in network.adapter.norm_names:
            continue
        if place.rule.maps:  # (width, channel x row x column) of a patch
            for _, x in network.along(name, stream):
                moments.add(torch.zeros_like(moments.mean), x.double() @ _inputs(network, place) @ x.double().T)
        else:
            moments.add(*_entries(network, name, stream))
    return moments


def _entries(network: Network, name: str, stream: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance over the entries of a table; of a long table only every k-th entry is used."""
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
    """Covariance of the network's input to a matrix, normalised to variance 1.

    In natural images pixels at distance d have a correlation of about 0.95^d (the usual first-order model),
    and colours of one pixel a correlation of about 0.95. If pixels were taken as uncorrelated, fine patterns,
    which are rare in images, would count as much as brightness, which has most of their energy. Inputs of
    other kinds are taken as uncorrelated, because nothing is known about them.
    """
    read = [factor for factor in place.rule.factors if factor.reads]
    patch = any(network.roles.kind(factor.role) == "pixel" for factor in read)
    covariance = torch.eye(1, dtype=torch.float64)
    for factor in reversed(read):
        length = factor.length(network.sizes) or 1
        correlation = torch.eye(length, dtype=torch.float64)
        if patch and network.roles.kind(factor.role) == "pixel":
            correlation = NEIGHBOUR ** (torch.arange(length)[:, None] - torch.arange(length)).abs().double()
        elif patch:
            correlation = NEIGHBOUR + (1 - NEIGHBOUR) * correlation
        covariance = torch.kron(correlation, covariance)
    return covariance


def holds_entries(network: Network, block: Block) -> bool:
    """Whether a block reads units that hold entries: attention reads heads."""
    return any(network.roles.is_whole(factor.role) for factor in block.segment if factor.role)


def added_by(network: Network, block: Block, activation: Callable[[Tensor], Tensor]) -> Added:
    """Moments of what a block adds to the stream, estimated from its weights."""
    return _values(network, block) if holds_entries(network, block) else _units(network, block, activation)


def _values(network: Network, block: Block) -> Added:
    """Attention adds averages of values over tokens."""
    out, bias = network.out_matrix(block)  # (width, heads * head_dim), (width,)
    _, values, shift = next(network.writer_parts(block.writers[0], block.segment))  # (heads * head_dim, width), ...
    return Added(times(out, shift) + bias, out, ATTENTION_SHARE**0.5 * values)


def _units(network: Network, block: Block, activation: Callable[[Tensor], Tensor]) -> Added:
    """MLP units are taken as independent; their mean and standard deviation are integrals over a normal variable."""
    out, bias = network.out_matrix(block)
    parts = [part for writer in block.writers for part in network.writer_parts(writer, block.segment)]
    gated = len(parts) > 1  # a family may have its gate in some models only
    _, units, shift = next(part for part in parts if not (gated and part[0].multiplies))
    gates = [part for part in parts if gated and part[0].multiplies]
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(16))
    weights = weights / weights.sum()
    inputs = shift[:, None] + units.square().sum(1).double().sqrt()[:, None] * nodes  # (units, nodes)
    outputs = activation(inputs)
    second = outputs.square()
    for _, other, its_shift in gates:
        given, squared = _given(units, other, its_shift, nodes)
        outputs, second = outputs * given, second * squared
    mean = outputs @ weights
    if gates:
        spread = (second @ weights - mean.square()).clamp_min(0).sqrt()
    else:
        spread = ((outputs - mean[:, None]).square() @ weights).sqrt()
    share = 1 / network.bank(block.out)  # of tokens that go through each matrix of a bank; 1 where there is one
    return Added(times(out, share * mean.to(out.dtype)) + bias, out, share**0.5 * spread.to(out.dtype))


def _given(units: Tensor, other: Tensor, shift: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square of what is multiplied onto units, where these are at `nodes` of their spread.

    Both read the same normal variable, so that they correlate by the cosine of their rows.
    """
    size = other.square().sum(1).double()  # (units,)
    cosine = (units * other).sum(1).double() / (units.square().sum(1).double() * size).sqrt().clamp_min(1e-300)
    mean = shift[:, None] + (cosine * size.sqrt())[:, None] * nodes
    return mean, mean.square() + (size * (1 - cosine.square()).clamp_min(0))[:, None]


def _aligned(rows: Tensor, reference: Tensor) -> Tensor:
    """The orthonormal basis of the span of `rows` that is nearest to `reference` (Procrustes)."""
    u, _, v = torch.linalg.svd(reference @ rows.T)
    aligned: Tensor = u @ v @ rows
    return aligned


def _principal(
    opened: Opened, stream: str, places: list[NormPlace], counted: list[bool], low_pass: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """P for the mean second moments before the norms that are counted, and the share P keeps before each norm."""
    network = opened.network
    if opened.moments is None:
        activation = _activation(network.adapter, opened.model.config)
        progress.expects(1)
        with progress.part("", 0.5):
            estimate = estimated(network, stream, activation, counted)
        with progress.part("", 0.3):
            low_band, dropped = _basis(network, stream, places, estimate.second, low_pass)
        with progress.part("", 0.2):
            shares = kept_shares(network, stream, low_band, dropped, estimate)
            return low_band, list(progress.tracked(shares, [1.0] * len(places)))
    seconds = [moments.uncentred().covariance for moments in _norm_moments(network, opened.moments, places)]
    total = sum(
        (second for second, counts in zip(seconds, counted, strict=True) if counts),
        torch.zeros((), dtype=torch.float32),
    )
    low_band, _ = _basis(network, stream, places, total / sum(counted), low_pass)
    return low_band, [torch.trace(low_band @ second @ low_band.T).clamp_min(0) / len(second) for second in seconds]


def _basis(
    network: Network, stream: str, places: list[NormPlace], moments: Tensor, low_pass: Tensor
) -> tuple[Tensor, Tensor]:
    """`basis`; for RMS norms, of which some may keep their weights, `basis_in_groups`."""
    if takes_mean(network, stream):
        return basis(moments, low_pass)
    weights = [_weight(network, place) for place in places if not is_foldable(network, place)]
    groups = like_weights(torch.stack(weights)) if weights else torch.zeros(len(moments), dtype=torch.int64)
    return basis_in_groups(moments, groups, len(low_pass))


def _norm_moments(network: Network, measured: InputMoments, places: list[NormPlace]) -> list[Moments]:
    """The measured moments of what every norm normalises."""
    return [measured.norms[name] for name in modules_of(network, places)]


def modules_of(network: Network, places: list[NormPlace]) -> list[str]:
    """The names of the norms' modules."""
    return [str(place.part(network, "weight")).removesuffix(".weight") for place in places]


def _activation(adapter: Adapter, config: Any) -> Callable[[Tensor], Tensor]:
    """The activation function of MLP units; GELU, for the estimate, if the config does not name it."""
    activation = get_field(config, adapter.activation) if adapter.activation else "gelu"
    function: Callable[[Tensor], Tensor] = ACT2FN[activation] if isinstance(activation, str) else activation
    return function


def _after(network: Network, place: NormPlace, moments: Moments) -> Moments:
    """Moments of a norm's output, from those of what it has normalised."""
    gamma, beta = _weight(network, place), place.part(network, "bias")
    shift = network[beta].double() if beta else torch.zeros_like(gamma)
    return Moments(gamma * moments.mean + shift, gamma[:, None] * moments.covariance * gamma, moments.tokens)


def _weight(network: Network, place: NormPlace) -> Tensor:
    return aligned(place.gamma(network).double())
