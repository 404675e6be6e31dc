"""The principal basis: the residual stream turned so that low-pass keeps what it carries most.

A pre-norm network whose norms are folded computes the same in every basis of its stream that keeps
the mean direction (the norm subtracts the mean). `basis` picks the one in which a given low-pass `A`
(m x n, orthonormal rows, `A 1/sqrt(n) = 1/sqrt(m)`) keeps the principal subspace: `A Q = P`, the rows of
P span the top eigenvectors of the stream's second moments, centred, and the mean direction.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .moments import Moments
from .network import Network

# Attention averages values over tokens, which takes away most of their variance: an assumption, not fitted.
ATTENTION_SHARE = 0.25
NEIGHBOUR = 0.95  # correlation of neighbouring pixels


def basis(moments: Tensor, low_pass: Tensor) -> Tensor:
    """The orthogonal Q (n x n) with `low_pass @ Q` spanning the mean and the principal directions.

    Args:
        moments: (n, n) second moments of the stream, in float64.
        low_pass: (m, n) with orthonormal rows.
    """
    source, target = len(moments), len(low_pass)
    mean = torch.full((source, 1), source**-0.5, dtype=torch.float64)
    centred = moments - mean @ (mean.T @ moments)
    centred = centred - (centred @ mean) @ mean.T
    _, vectors = torch.linalg.eigh(centred)
    # The mean direction comes first; among the eigenvectors it is one of value 0, which QR then skips.
    frame, _ = torch.linalg.qr(torch.cat([mean, vectors.flip(1)], dim=1))  # (source, source), by falling energy
    kept = _aligned(frame[:, :target].T, low_pass)  # (target, source): P
    complete, _ = torch.linalg.qr(low_pass.T, mode="complete")
    turned: Tensor = low_pass.T @ kept + complete[:, target:] @ frame[:, target:].T
    return turned


def weight_moments(network: Network, activation: Callable[[Tensor], Tensor]) -> list[Moments]:
    """What every norm of a folded pre-norm network sees, estimated from the weights alone.

    Tokens and positions count alike, a norm's output has variance 1 in every direction, MLP units
    see a normal variable of the mean and variance that their weights give it.

    Returns:
        Moments of the normalised stream: before each attention, before each MLP, at the end.
    """
    stream = _embedded(network)
    seen = []
    for layer in network.layers:
        seen.append(stream.normalised())
        stream.add(*_attention(network, layer))
        seen.append(stream.normalised())
        stream.add(*_mlp(network, layer, activation))
    return [*seen, stream.normalised()]


def _embedded(network: Network) -> Moments:
    nothing = torch.zeros(network.hidden, dtype=torch.float64)
    stream = Moments(nothing, torch.diag(nothing))
    for name, place in network.having("hidden"):
        if place.layer is not None or place.reads_stream or place.stem in network.adapter.norms:
            continue
        for _, x in network.along(name, "hidden"):  # (hidden, entries)
            if place.rule.maps:  # (hidden, channel x row x column) of a patch
                stream.add(torch.zeros_like(stream.mean), x @ _pixels(network) @ x.T)
            else:
                mean = x.mean(1)
                spread = x - mean[:, None]
                stream.add(mean, spread @ spread.T / x.shape[1])
    return stream


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


def _attention(network: Network, layer: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what an attention block adds."""
    out, bias = network.writer(layer, "head_dim")  # (hidden, heads * head_dim), (hidden,)
    values, shift = network.reader(layer, "head_dim")  # (heads * head_dim, hidden), (heads * head_dim,)
    mixed = out @ values
    return out @ shift + bias, ATTENTION_SHARE * mixed @ mixed.T


def _mlp(network: Network, layer: int, activation: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what an MLP block adds."""
    out, bias = network.writer(layer, "ffn")
    units, shift = network.reader(layer, "ffn")
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(16))
    weights = weights / weights.sum()
    inputs = shift[:, None] + units.norm(dim=1)[:, None] * nodes  # (ffn, nodes)
    outputs = activation(inputs)
    mean = outputs @ weights
    variance = outputs.square() @ weights - mean.square()
    return out @ mean + bias, (out * variance) @ out.T


def _aligned(rows: Tensor, reference: Tensor) -> Tensor:
    """The span of `rows` in the orthonormal frame nearest to `reference` (Procrustes)."""
    u, _, v = torch.linalg.svd(reference @ rows.T)
    aligned: Tensor = u @ v @ rows
    return aligned
