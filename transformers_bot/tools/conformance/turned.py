"""Checks that the residual stream may be turned into another basis, as shrinking does where the adapter allows it.

With the norms folded, every tensor reads and writes the stream as a matrix, so a turn on all axes of the stream changes
nothing. What acts on single units (a vector that multiplies them, an activation function) breaks this.
"""

import copy

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...architectures.adapter import Adapter
from ...architectures.inventory import inventory_of
from ...architectures.sizes import role_sizes
from ...architectures.tiny import STREAM_ONLY, change, inputs, outputs
from ...ops.axis_map import from_dense
from ...planning.planner import Side
from ...rewrite.folding import fold_norms, is_foldable, norms
from ...rewrite.network import Network
from ...run.opening import network_of
from .norms import Tensors

TOLERANCE = 1e-5  # relative to the largest output, see `permuted`


def change_by_folding(adapter: Adapter, model: PreTrainedModel) -> float:
    """The relative change of the outputs if norms are folded into the matrices that read them by the rules."""
    if adapter.norm != "pre":
        return 0.0
    network = _network(adapter, model)
    last = any(place.at is None and is_foldable(network, place) for place in norms(network))
    if last and STREAM_ONLY in outputs(model, inputs(model)):
        return 0.0  # what the norm gives is returned, too
    fold_norms(network)
    relative = _change(model, _rewritten(model, network))
    return 0.0 if relative < TOLERANCE else relative


def turnable(adapter: Adapter, model: PreTrainedModel) -> tuple[str, ...]:
    """The streams that are turned: none if the stream itself is all that the model returns."""
    return () if STREAM_ONLY in outputs(model, inputs(model)) else adapter.turned


def changes_by_turning(adapter: Adapter, model: PreTrainedModel) -> dict[str, float]:
    """Stream -> relative change of the outputs, for the streams whose turn changes them.

    Args:
        model: without tied tensors. Norms that cannot be folded, because they have no readers, get a weight of 1.
    """
    changes = {}
    for stream in turnable(adapter, model):
        plain = _with_equal_weights(adapter, model, stream)
        network = _network(adapter, plain)
        fold_norms(network, [stream])
        turn = from_dense(random_turn(network.length(stream)))
        for role in adapter.roles.followers(stream):
            network.map_role(role, turn)
        changes[stream] = _change(plain, _rewritten(plain, network))
    return {stream: size for stream, size in changes.items() if not size < TOLERANCE}


def vectors_that_multiply(adapter: Adapter, model: PreTrainedModel, stream: str) -> list[str]:
    """Names of vectors, as adapters write them, without which the stream may be turned: one that multiplies units."""
    tensors = Tensors.of(adapter, model)
    norm_weights = {f"{norm.name}.weight" for norm in adapter.norms}
    vectors = [
        template
        for template, names in tensors.templates.items()
        if template not in norm_weights
        and not template.endswith("bias")
        and [f.role for f in tensors.rules[names[0]].factors] == [stream]
    ]
    found = [name for name in vectors if stream not in changes_by_turning(adapter, _with_ones(model, tensors, [name]))]
    if found or stream in changes_by_turning(adapter, _with_ones(model, tensors, vectors)):
        return found
    return vectors  # none alone


def random_turn(length: int) -> np.ndarray:
    """An orthogonal matrix that keeps the direction of the mean, which norms may take away.

    >>> turn = random_turn(4)
    >>> bool(np.allclose(turn @ turn.T, np.eye(4)) and np.allclose(turn @ np.ones(4), 1))
    True
    """
    generator = torch.Generator().manual_seed(0)

    def frame() -> Tensor:
        drawn = torch.randn(length, length, generator=generator, dtype=torch.float64)
        drawn[:, 0] = 1
        orthogonal: Tensor = torch.linalg.qr(drawn)[0]
        return orthogonal

    turn: np.ndarray = (frame() @ frame().T).numpy()
    return turn


def _network(adapter: Adapter, model: PreTrainedModel) -> Network:
    side = Side(model.config, role_sizes(adapter, model.config, "source"), inventory_of(model), torch.float64)
    return network_of(adapter, side, model.state_dict(), side)


def _rewritten(model: PreTrainedModel, network: Network) -> PreTrainedModel:
    """A copy of the model with a network's tensors."""
    rewritten = copy.deepcopy(model)
    state, ties = rewritten.state_dict(), inventory_of(model).ties
    with torch.no_grad():
        for name in [name for name in network if name not in ties]:
            tensor = network[name]
            for alternation in network.alternations(name):
                tensor = alternation.stored(tensor)
            state[name].copy_(tensor)
    return rewritten


def _with_equal_weights(adapter: Adapter, model: PreTrainedModel, stream: str) -> PreTrainedModel:
    """A copy in which the norms of a stream that cannot be folded multiply by 1."""
    plain = copy.deepcopy(model)
    state, network = plain.state_dict(), _network(adapter, model)
    with torch.no_grad():
        for place in norms(network, stream):
            if not is_foldable(network, place):
                state[str(place.part(network, "weight"))].fill_(0.0 if place.norm.gain == "1+w" else 1.0)
    return plain


def _with_ones(model: PreTrainedModel, tensors: Tensors, templates: list[str]) -> PreTrainedModel:
    plain = copy.deepcopy(model)
    state = plain.state_dict()
    with torch.no_grad():
        for name in [name for template in templates for name in tensors.templates[template]]:
            state[name].fill_(1.0)
    return plain


def _change(model: PreTrainedModel, other: PreTrainedModel) -> float:
    batch = inputs(model)
    return change(outputs(other, batch), outputs(model, batch))
