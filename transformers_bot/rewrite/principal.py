"""The principal basis: the residual stream turned so that low-pass keeps what it carries most.

A pre-norm network whose norms are folded computes the same in every basis of its stream that keeps
the mean direction (the norm subtracts the mean). Of all turns Q, one that a given low-pass `A` follows
(m x n, orthonormal rows, `A 1/sqrt(n) = 1/sqrt(m)`) keeps the principal subspace if `A Q = P`: the rows of
P span the top eigenvectors of the stream's second moments, centred, and the mean direction. The turn and
the low-pass are one product, so P is all that `basis` finds, and nothing is ever turned.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..console import progress
from ..ops.matmul import add_gram, gram, mirrored, product, times
from .moments import Moments
from .network import Network, OutOfRange

# Attention averages values over tokens, which takes away most of their variance: an assumption, not fitted.
ATTENTION_SHARE = 0.25
ENTRIES = 4096  # of a table, that are multiplied at a time
ENOUGH = 16  # entries of a table for every hidden unit: their principal directions keep what those of all do
VANISHED = 1e-30  # the size of a stream whose squares are too small for float32
NEIGHBOUR = 0.95  # correlation of neighbouring pixels


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


def weight_moments(
    network: Network, activation: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Moments, "_Block | None"]]:
    """What every norm of a folded pre-norm network sees, estimated from the weights alone.

    Tokens and positions count alike, a norm's output has variance 1 in every direction, MLP units
    see a normal variable of the mean and variance that their weights give it.

    Yields:
        Moments of the stream before its norm, and the block that was added last: before each attention,
        before each MLP, at the end. The moments are one and the same object, to which the next block is added.
    """
    stream = _embedded(network)
    yield stream, None
    for layer in network.layers:
        for block in (_attention(network, layer), _mlp(network, layer, activation)):
            stream.add(block.mean.double(), gram(block.factor()))
            yield stream, block


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


def estimated(network: Network, activation: Callable[[Tensor], Tensor], counted: Sequence[bool]) -> Estimate:
    """What the norms see by `weight_moments`; those that are `counted` are averaged."""
    hidden = network.hidden
    total, embedded = torch.zeros(2, hidden, hidden, dtype=torch.float64)
    means, sizes, spreads = [], [], []
    seen = zip(weight_moments(network, activation), counted, strict=True)
    for (stream, block), counts in progress.tracked(seen, [1.0] * len(counted)):
        if block is None:
            embedded.copy_(stream.covariance)
        elif block.right.ndim == 1:
            spreads.append(block.right)
        means.append(stream.mean)
        size = float(stream.size)
        if not (size > VANISHED or network.dtype == torch.float64) or size == math.inf:
            raise OutOfRange("the size of the stream")
        sizes.append(max(size, 1e-300))
        if counts:
            weight = hidden / sizes[-1] / sum(counted)
            total.add_(stream.covariance, alpha=weight).addr_(stream.mean, stream.mean, alpha=weight)
    total -= total.mean(0)
    total -= total.mean(1, keepdim=True)
    return Estimate(total, embedded, means, sizes, spreads)


def kept_shares(network: Network, kept: Tensor, dropped: Tensor, estimate: Estimate) -> Iterator[Tensor]:
    """Of what each norm sees by this estimate, the share of second moments that P keeps.

    Args:
        kept, dropped: of `basis`: (target hidden, source hidden) and what completes it.
    """
    less = len(kept) <= len(dropped)
    for share in _shares(network, kept if less else dropped, estimate):
        if not bool(share.isfinite()):
            raise OutOfRange("the share of the stream that is kept")
        yield share if less else (1 - share).clamp_min(0)


def _shares(network: Network, rows: Tensor, estimate: Estimate) -> Iterator[Tensor]:
    """tr(P M P^T) / tr(M) of a sum of blocks B B^T is a sum of squares of P B: a second look at the weights
    instead of one (hidden, hidden) matrix held for every norm.
    """
    centred = rows - rows.mean(1, keepdim=True)  # P (I - 1 1^T / n)
    inside = ((centred @ estimate.embedded) * centred).sum()
    left = iter([(centred @ mean).square().sum() for mean in estimate.means])
    sizes, centred = iter(estimate.sizes), centred.to(network.dtype)
    yield (inside + next(left)) / next(sizes)
    for layer, spread in zip(network.layers, estimate.spreads, strict=True):
        for factor in (
            _attention(network, layer).factor(centred),
            product(centred, network.writer(layer, "ffn")[0].T) * spread,
        ):
            inside = inside + factor.square().sum()
            yield (inside + next(left)) / next(sizes)


@dataclass(frozen=True)
class _Block:
    """What a block adds to the stream: its mean, and the factors of its covariance (L R)(L R)^T."""

    mean: Tensor  # (hidden,)
    left: Tensor  # (hidden, units)
    right: Tensor  # (units, entries), or (units,) for a diagonal

    def factor(self, kept: Tensor | None = None) -> Tensor:
        """L R, with `kept` in front of it."""
        left = self.left if kept is None else product(kept, self.left.T)
        if self.right.ndim == 2:
            return product(left, self.right.T)
        return left.clone(memory_format=torch.contiguous_format).mul_(self.right)  # as `gram` reads it


def _embedded(network: Network) -> Moments:
    nothing = torch.zeros(network.hidden, dtype=torch.float64)
    stream = Moments(nothing, torch.diag(nothing))
    for name, place in network.having("hidden"):
        if place.layer is not None or place.reads_stream or place.stem in network.adapter.norms:
            continue
        if place.rule.maps:  # (hidden, channel x row x column) of a patch
            for _, x in network.along(name, "hidden"):
                stream.add(torch.zeros_like(stream.mean), x.double() @ _pixels(network) @ x.double().T)
        else:
            stream.add(*_entries(network, name))
    return stream


def _entries(network: Network, name: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance over the entries of a table; of a long one, every k-th stands for its neighbours."""
    hidden = network.hidden
    count, first = 0, torch.zeros(hidden, dtype=torch.float64)
    second = torch.zeros(hidden, hidden, dtype=torch.float64)
    for _, table in network.along(name, "hidden"):  # (hidden, entries)
        for part in torch.split(table[:, :: max(1, table.shape[1] // (ENOUGH * hidden))], ENTRIES, dim=1):
            x = part.to(network.dtype).contiguous()
            count, first = count + x.shape[1], first + x.sum(1)
            add_gram(second, x)
    mean = first / count
    return mean, mirrored(second).div_(count).sub_(torch.outer(mean, mean))


def _pixels(network: Network) -> Tensor:
    """Covariance of the pixels of a patch, normalised to variance 1, as (channel x row x column) twice.

    Neighbours in natural images correlate by about .95, and a distance d by .95^d, the usual
    first-order model; so do their colours. White pixels instead would weigh fine patterns, which
    images hardly hold, like the brightness that carries most of them.
    """
    rows, columns = (network.sizes[role] or 1 for role in ("patch_h", "patch_w"))
    channels = network.sizes["channel"] or 1
    near = [NEIGHBOUR ** (torch.arange(n)[:, None] - torch.arange(n)).abs().double() for n in (rows, columns)]
    colours = NEIGHBOUR + (1 - NEIGHBOUR) * torch.eye(channels, dtype=torch.float64)
    return torch.kron(colours, torch.kron(near[0], near[1]))


def _attention(network: Network, layer: int) -> _Block:
    out, bias = network.writer(layer, "head_dim")  # (hidden, heads * head_dim), (hidden,)
    values, shift = network.reader(layer, "head_dim")  # (heads * head_dim, hidden), (heads * head_dim,)
    return _Block(times(out, shift) + bias, out, ATTENTION_SHARE**0.5 * values)


def _mlp(network: Network, layer: int, activation: Callable[[Tensor], Tensor]) -> _Block:
    out, bias = network.writer(layer, "ffn")
    units, shift = network.reader(layer, "ffn")
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(16))
    weights = weights / weights.sum()
    inputs = shift[:, None] + units.square().sum(1).double().sqrt()[:, None] * nodes  # (ffn, nodes)
    outputs = activation(inputs)
    mean = outputs @ weights
    spread = ((outputs - mean[:, None]).square() @ weights).sqrt()
    return _Block(times(out, mean.to(out.dtype)) + bias, out, spread.to(out.dtype))


def _aligned(rows: Tensor, reference: Tensor) -> Tensor:
    """The span of `rows` in the orthonormal frame nearest to `reference` (Procrustes)."""
    u, _, v = torch.linalg.svd(reference @ rows.T)
    aligned: Tensor = u @ v @ rows
    return aligned
