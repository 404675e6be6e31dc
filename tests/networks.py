"""Rewriting a tiny model by hand: its `Network`, and the model that the rewritten tensors make."""

import copy

import torch
from families import Built, adapter_of
from transformers import PreTrainedModel

from transformers_bot.architectures.inventory import inventory_of
from transformers_bot.architectures.sizes import role_sizes
from transformers_bot.ops.axis_map import AxisMap, Matrix
from transformers_bot.planning.planner import Side
from transformers_bot.rewrite.network import Network
from transformers_bot.run.opening import network_of


def network_for(model: PreTrainedModel, keep_ties: bool = False) -> Network:
    """The network of a model; with `keep_ties` its tied tensors must stay equal to each other."""
    adapter = adapter_of(model.config.model_type)
    sizes = role_sizes(adapter, model.config, "source")
    side = Side(model.config, sizes, inventory_of(model), torch.float64)
    return network_of(adapter, side, model.state_dict(), side if keep_ties else None)


def rewritten(model: PreTrainedModel, network: Network) -> PreTrainedModel:
    """A copy of the model that holds the network's tensors."""
    made = copy.deepcopy(model)
    made.load_state_dict(dict(network))
    return made


def dropped_blocks(built: Built) -> Built:
    """The same GPT-2 with blocks that add nothing, so that its stream is what the embeddings write."""
    with torch.no_grad():
        for name, parameter in built.model.named_parameters():
            if "c_proj" in name:
                parameter.zero_()
    return built


def turn_stream(network: Network, turn: torch.Tensor) -> None:
    """Turn the residual stream by an orthogonal matrix."""
    for role in network.roles.followers("hidden"):
        network.map_role(role, AxisMap(network.length("hidden"), network.length("hidden"), (Matrix(turn.numpy()),)))


def at(layer: int | None) -> tuple[str, int] | None:
    """A layer of the only stack."""
    return None if layer is None else ("layer", layer)


def random_turn(length: int, seed: int = 0) -> torch.Tensor:
    """A random orthogonal matrix that maps the constant vector to itself."""
    drawn = torch.randn(length, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    constant = torch.full((length, 1), length**-0.5, dtype=torch.float64)
    frame, _ = torch.linalg.qr(torch.cat([constant, drawn[:, 1:]], dim=1))
    rotation, _ = torch.linalg.qr(drawn[1:, 1:])
    rest = frame[:, 1:]
    return constant @ constant.T + rest @ rotation @ rest.T


def random_rotation(length: int, seed: int = 0) -> torch.Tensor:
    """A random orthogonal matrix that moves the constant vector."""
    drawn = torch.randn(length, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def shuffled(length: int, seed: int = 0) -> list[int]:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()
