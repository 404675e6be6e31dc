"""Norm weights and biases moved into the matrices that read them: the norm is left plain."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..architectures.adapter import Norm
from ..architectures.axes import DEPTH, At
from ..ops.blocks import at_least_float32
from ..ops.matmul import times
from .network import KeptLayers, Network

DEAD = 1e-3  # relative; beta / gamma would drown what the other channels carry


@dataclass(frozen=True)
class NormPlace:
    """One norm of a checkpoint: what the architecture says of it, and its layer."""

    norm: Norm
    at: At

    @property
    def layer(self) -> int | None:
        return self.at[1] if self.at else None

    def part(self, network: Network, part: str) -> str | None:
        """The name of its "weight" or "bias", None if the checkpoint has none."""
        return network.find(f"{self.norm.name}.{part}", self.layer)

    def gamma(self, network: Network) -> Tensor:
        """What the norm multiplies by, in float32 or better: its weight, or one more."""
        weight = at_least_float32(network[str(self.part(network, "weight"))])
        return weight + 1 if self.norm.gain == "1+w" else weight

    def set_gamma(self, network: Network, change: Callable[[Tensor], Tensor]) -> None:
        """Let the norm multiply by what `change` makes of it."""
        more = 1 if self.norm.gain == "1+w" else 0
        network.edit(str(self.part(network, "weight")), lambda x: change(x + more) - more if more else change(x))


def fold_norms(network: Network) -> None:
    """Fold every norm of a pre-norm network into its readers: `W <- W diag(gamma)`, `b <- b + W beta`.

    The function stays. A norm without a bias has no beta. A reader without a bias leaves `beta / gamma` in
    the norm, and its dead channels (gamma of 0) as they are. A norm whose output leaves the network, or is
    read by a tied output embedding, stays as it is.
    """
    for place in norms(network):
        if is_foldable(network, place):
            _fold(network, place)


def norms(network: Network, stream: str = "") -> list[NormPlace]:
    """All norms that the checkpoint holds, in the order in which the stream meets them.

    Args:
        stream: only those of this residual stream; of all where it is empty.
    """
    stacks = [(norm, _depth(norm)) for norm in network.adapter.norms]
    every = [NormPlace(norm, at) for at in network.everywhere for norm, stack in stacks if stack == at[0]]
    every += [NormPlace(norm, None) for norm, stack in stacks if not stack]
    held = [(place, name) for place in every for name in [place.part(network, "weight")] if name]
    return [place for place, name in held if not stream or stream_of(network, name) == stream]


def _depth(norm: Norm) -> str:
    found = re.search(DEPTH, norm.name)
    return found[1] if found else ""


def stream_of(network: Network, name: str) -> str:
    """The residual stream that a norm is on."""
    return network.roles.leader(network.places[name].rule.roles[0])


def is_counted(place: NormPlace, kept: KeptLayers | None) -> bool:
    """Whether a norm belongs to a layer that is read, or to none."""
    return kept is None or place.at is None or place.at[0] not in kept or place.at[1] in kept[place.at[0]]


def is_foldable(network: Network, place: NormPlace) -> bool:
    """Whether all that reads a norm's output is a matrix of its own, so that its weight can move there."""
    weights = _readers(network, place)
    return bool(weights) and not any(name in network.tied for name, _ in weights)


def read_by(network: Network, place: NormPlace) -> set[str]:
    """The matrices that read a norm's output."""
    return {weight for weight, _ in _readers(network, place)}


def behind(network: Network, place: NormPlace) -> list[str]:
    """The matrices that read a folded norm's output, and nothing else."""
    return [weight for weight, _ in _readers(network, place)] if is_foldable(network, place) else []


def _readers(network: Network, place: NormPlace) -> list[tuple[str, str | None]]:
    """Weight and bias of every matrix that reads a norm's output."""
    readers = []
    for reader in place.norm.readers:
        weight = network.find(f"{reader}.weight", place.layer)
        if weight is not None:
            readers.append((weight, network.find(f"{reader}.bias", place.layer)))
    return readers


def _fold(network: Network, place: NormPlace) -> None:
    scale, shift = place.part(network, "weight"), place.part(network, "bias")
    if scale is None:
        return
    readers = _readers(network, place)
    biased = shift is None or all(bias for _, bias in readers)
    gamma = place.gamma(network)
    beta = torch.zeros_like(gamma) if shift is None else at_least_float32(network[shift])
    # Of a dead channel only beta is left, which needs a bias to move to: without one it stays in the norm.
    folded = gamma if biased else torch.where(gamma.abs() > DEAD * gamma.abs().mean(), gamma, 1.0)
    for weight, bias in readers:
        dim = network.read_axis(weight)
        if biased and bias is not None and shift is not None:
            rows = network[weight].to(beta.dtype).movedim(dim, -1).reshape(-1, len(beta))  # (everything else, width)
            seen = times(rows, beta)
            network.edit(bias, lambda x, seen=seen: x + seen.reshape(x.shape).to(x.device))  # type: ignore[misc]
        network.edit(weight, lambda x, dim=dim: x * _column(folded, dim, x.dim()).to(x.device))  # type: ignore[misc]
    place.set_gamma(network, lambda x: torch.ones_like(x) if biased else x / folded.to(x.device))
    if shift is not None:
        network.edit(shift, torch.zeros_like if biased else lambda x: x / folded.to(x.device))


def _column(vector: Tensor, dim: int, dims: int) -> Tensor:
    shape = [1] * dims
    shape[dim] = -1
    return vector.view(shape)
