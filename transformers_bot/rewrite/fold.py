"""Norm weights and biases moved into the matrices that read them: the norm is left plain."""

import torch
from torch import Tensor

from ..ops.blocks import at_least_float32
from ..ops.matmul import times
from .network import Network

DEAD = 1e-3  # relative; beta / gamma would drown what the other channels carry


def fold_norms(network: Network) -> None:
    """Fold every norm of a pre-norm network into its readers: `W <- W diag(gamma)`, `b <- b + W beta`.

    The function stays. A reader without a bias leaves `beta / gamma` in the norm, and its dead channels
    (gamma of 0) as they are. A norm whose output leaves the network, or is read by a tied output
    embedding, stays as it is.
    """
    for stem, layer in norms(network):
        if is_foldable(network, stem, layer):
            _fold(network, stem, layer)


def norms(network: Network) -> list[tuple[str, int | None]]:
    """All norms that the checkpoint holds, in the order in which the stream meets them."""
    layered = [stem for stem in network.adapter.norms if "{layer}" in stem]
    single = [stem for stem in network.adapter.norms if "{layer}" not in stem]
    every = [(stem, layer) for layer in network.layers for stem in layered] + [(stem, None) for stem in single]
    return [(stem, layer) for stem, layer in every if network.find(f"{stem}.weight", layer)]


def is_foldable(network: Network, stem: str, layer: int | None) -> bool:
    """Whether all that reads a norm's output is a matrix of its own, so that its weight can move there."""
    weights = _readers(network, stem, layer)
    return bool(weights) and not any(name in network.tied for name, _ in weights)


def behind(network: Network, stem: str, layer: int | None) -> list[str]:
    """The matrices that read a folded norm's output, and nothing else."""
    return [weight for weight, _ in _readers(network, stem, layer)] if is_foldable(network, stem, layer) else []


def _readers(network: Network, stem: str, layer: int | None) -> list[tuple[str, str | None]]:
    """Weight and bias of every matrix that reads a norm's output."""
    found = []
    for reader in network.adapter.norms[stem]:
        weight = network.find(f"{reader}.weight", layer)
        if weight is not None:
            found.append((weight, network.find(f"{reader}.bias", layer)))
    return found


def _fold(network: Network, stem: str, layer: int | None) -> None:
    scale, shift = network.find(f"{stem}.weight", layer), network.find(f"{stem}.bias", layer)
    if scale is None or shift is None:
        return
    readers = _readers(network, stem, layer)
    biased = all(bias for _, bias in readers)
    gamma, beta = (at_least_float32(network[name]) for name in (scale, shift))
    # Of a dead channel only beta is left, which needs a bias to move to: without one it stays in the norm.
    folded = gamma if biased else torch.where(gamma.abs() > DEAD * gamma.abs().mean(), gamma, 1.0)
    for weight, bias in readers:
        dim = network.read_axis(weight)
        if biased and bias is not None:
            rows = network[weight].to(beta.dtype).movedim(dim, -1).reshape(-1, len(beta))  # (everything else, hidden)
            seen = times(rows, beta)
            network.edit(bias, lambda x, seen=seen: x + seen.reshape(x.shape).to(x.device))  # type: ignore[misc]
        network.edit(weight, lambda x, dim=dim: x * _column(folded, dim, x.dim()).to(x.device))  # type: ignore[misc]
    network.edit(scale, torch.ones_like if biased else lambda x: x / folded.to(x.device))
    network.edit(shift, torch.zeros_like if biased else lambda x: x / folded.to(x.device))


def _column(vector: Tensor, dim: int, dims: int) -> Tensor:
    shape = [1] * dims
    shape[dim] = -1
    return vector.view(shape)
