"""Norms, and vectors that multiply a block's output, folded into the matrices beside them: the function stays."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ..architectures.adapter import DEPTH, At, Norm
from ..ops.blocks import at_least_float32, times
from .network import Network, factors

DEAD = 1e-3  # of a gamma relative to the mean; the quotient beta / gamma would exceed all other channels


@dataclass(frozen=True)
class NormPlace:
    """One norm of a checkpoint: its description in the architecture, and its layer."""

    norm: Norm
    at: At

    @property
    def layer(self) -> int | None:
        return self.at[1] if self.at else None

    def part(self, network: Network, part: str) -> str | None:
        """The name of its "weight" or "bias", None if the checkpoint has none."""
        return network.find(f"{self.norm.name}.{part}", self.layer)

    def gamma(self, network: Network) -> Tensor:
        """The factor of the norm, its weight or one plus its weight, in float32 or better."""
        weight = at_least_float32(network[str(self.part(network, "weight"))])
        return weight + 1 if self.norm.gain == "1+w" else weight

    def set_gamma(self, network: Network, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the factor of the norm by `change` of it."""
        offset = 1 if self.norm.gain == "1+w" else 0
        name = str(self.part(network, "weight"))
        network.edit(name, lambda x: change(x + offset) - offset if offset else change(x))


def fold_norms(network: Network, streams: Collection[str] | None = None) -> None:
    """Fold every norm of a pre-norm network into its readers: `W <- W diag(gamma)`, `b <- b + W beta`.

    Vectors that multiply what a block adds are folded into the block's matrix and its bias. Both depend on the basis
    of the stream; afterwards it may be turned.

    The function does not change. A norm without a bias has no beta. If a reader has no bias, `beta / gamma`
    remains in the norm, and channels with a gamma of about 0 are not folded. Keys need no bias (Whisper's have none):
    what it adds is the same for all keys of a query, and a softmax does not see it. A norm whose output leaves the
    network, or is read by a tied output embedding, is not folded.

    Args:
        streams: only the norms of these residual streams; None for all.
    """
    for stream in network.roles.streams if streams is None else streams:
        for place in norms(network, stream):
            if is_foldable(network, place):
                _fold(network, place)
        for name in scales(network, stream):
            _fold_scale(network, name)


def norms(network: Network, stream: str = "") -> list[NormPlace]:
    """All norms of residual streams in the checkpoint, in the order in which the stream passes them.

    Args:
        stream: only the norms of this residual stream; empty for all.
    """
    stacks = [(norm, _depth(norm.name)) for norm in network.adapter.norms]
    places = [NormPlace(norm, at) for at in network.all_layers for norm, stack in stacks if stack == at[0]]
    places += [NormPlace(norm, None) for norm, stack in stacks if not stack]
    named = [(place, name) for place in places for name in [place.part(network, "weight")] if name]
    streams = [(place, stream_of(network, name)) for place, name in named]
    return [place for place, own in streams if own in network.roles.streams and (not stream or own == stream)]


def takes_mean(network: Network, stream: str) -> bool:
    """Whether the norms of a stream subtract the mean over its units; RMS norms do not."""
    return any(place.norm.kind == "layer" for place in norms(network, stream))


def _depth(module: str) -> str:
    """The stack of a module's layer; empty outside of the layers."""
    depth = re.search(DEPTH, module)
    return depth[1] if depth else ""


def stream_of(network: Network, name: str) -> str:
    """The role that a norm, by the name of its weight, normalises: a residual stream, or queries and keys."""
    return network.roles.leader(next(iter(network.places[name].rule.roles), ""))


def is_foldable(network: Network, place: NormPlace) -> bool:
    """Whether a norm's weight can be moved into its readers: it has some, and none is tied to another tensor."""
    weights = _readers(network, place)
    return bool(weights) and not any(name in network.tied for name, _ in weights)


def readers_of(network: Network, place: NormPlace) -> set[str]:
    """The matrices that read a norm's output."""
    return {weight for weight, _ in _readers(network, place)}


def folded_readers(network: Network, place: NormPlace) -> list[str]:
    """The matrices that read a norm's output if the norm can be folded, else none."""
    return [weight for weight, _ in _readers(network, place)] if is_foldable(network, place) else []


def reads_once(network: Network, weight: str) -> bool:
    """Whether the axis along which a matrix reads the stream is the stream, and not several tokens of it together."""
    return len(factors(network.places[weight].rule.axes[network.read_axis(weight)])) == 1


def _readers(network: Network, place: NormPlace) -> list[tuple[str, str | None]]:
    """Weight and bias of every matrix that reads a norm's output: of its own layer, or of all layers of another stack,
    as all layers of a decoder read an encoder's output.
    """
    readers = []
    for reader in place.norm.readers:
        stack = _depth(reader)
        own = not stack or (place.at is not None and place.at[0] == stack)
        for layer in [place.layer if stack else None] if own else network.layers(stack):
            weight = network.find(f"{reader}.weight", layer) or network.find(reader, layer)
            if weight is not None:
                readers.append((weight, network.find(f"{reader}.bias", layer)))
    return readers


def _fold(network: Network, place: NormPlace) -> None:
    scale, shift = place.part(network, "weight"), place.part(network, "bias")
    if scale is None:
        return
    readers = _readers(network, place)
    biased = shift is None or all(bias or _ignores_shifts(network, weight) for weight, bias in readers)
    gamma = place.gamma(network)
    beta = torch.zeros_like(gamma) if shift is None else at_least_float32(network[shift])
    # beta can only be moved into a bias. Without one it stays in the norm as beta / gamma, if gamma is not about 0.
    folded = gamma if biased else torch.where(gamma.abs() > DEAD * gamma.abs().mean(), gamma, 1.0)
    for weight, bias in readers:
        dim = network.read_axis(weight)
        if biased and bias is not None and shift is not None:
            shifts = _over_axis(network, weight, dim, beta)
            rows = network[weight].to(beta.dtype).movedim(dim, -1).reshape(-1, len(shifts))  # (everything else, read)
            added = times(rows, shifts)
            network.edit(bias, lambda x, added=added: x + added.reshape(x.shape).to(x.device))  # type: ignore[misc]
        _multiply(network, weight, dim, folded)
    place.set_gamma(network, lambda x: torch.ones_like(x) if biased else x / folded.to(x.device))
    if shift is not None:
        network.edit(shift, torch.zeros_like if biased else lambda x: x / folded.to(x.device))


def scales(network: Network, stream: str = "") -> list[str]:
    """The tensors that multiply what a block adds onto a residual stream.

    Args:
        stream: only those of this residual stream; empty for all.
    """
    templates = {scale.name for scale in network.adapter.scales}
    named = [name for name, place in network.places.items() if place.template in templates]
    return [name for name in named if not stream or stream_of(network, name) == stream]


def _fold_scale(network: Network, name: str) -> None:
    place, scale = network.places[name], at_least_float32(network[name])
    writers = next(scale.writers for scale in network.adapter.scales if scale.name == place.template)
    parts = (network.find(f"{writer}.{part}", place.layer) for writer in writers for part in ("weight", "bias"))
    for part in filter(None, parts):
        axes = network.places[part].rule.axes
        dim = next(i for i, axis in enumerate(axes) if any(f.role and not f.reads for f in factors(axis)))
        _multiply(network, part, dim, scale)
    network.edit(name, torch.ones_like)


def _multiply(network: Network, name: str, dim: int, vector: Tensor) -> None:
    """Multiply a tensor with a vector of the stream along one of its axes."""
    whole = _over_axis(network, name, dim, vector)
    network.edit(name, lambda x: x * _column(whole, dim, x.dim()).to(x.device))


def _over_axis(network: Network, name: str, dim: int, vector: Tensor) -> Tensor:
    """A vector of the stream along an axis that may hold the stream several times."""
    parts = []
    for segment in network.places[name].rule.axes[dim].segments:
        lengths = [network.length_of(factor, len(vector)) for factor in segment]
        own = [n if network.is_stream(f) else 1 for f, n in zip(segment, lengths, strict=True)]
        parts.append(vector.view(own).expand(lengths).reshape(-1))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _ignores_shifts(network: Network, weight: str) -> bool:
    """Whether a matrix writes nothing but keys that enter scores as they are: without positions or a norm."""
    segments = [s for axis in network.places[weight].rule.axes for s in axis.segments if not all(f.reads for f in s)]
    written = [s[-1] for s in segments]
    return bool(written) and all(f.crosses and not f.normed and network.roles.kind(f.role) == "entry" for f in written)


def _column(vector: Tensor, dim: int, dims: int) -> Tensor:
    shape = [1] * dims
    shape[dim] = -1
    return vector.view(shape)
