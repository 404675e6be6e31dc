"""Whether rules name the right axes: a model whose units are renumbered everywhere computes what it did."""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..axes import Axis, Rule, Sizes
from ..inventory import inventory_of, rules_of
from .base import Adapter

# A permutation of a role moves the entries that other roles have in common with it.
SAME = {"readout": "hidden", "pooler": "hidden"}
ROLES = ("hidden", "heads", "score", "head_dim", "ffn")
# Outputs that are the stream or the attention itself, and so are permuted with it.
STREAM = ("last_hidden_state", "pooler_output", "hidden_states", "attentions", "past_key_values")
SPREAD = 0.3  # of the random weights: large enough that every one of them matters
TOLERANCE = 1e-7  # in double precision, beside the largest output


def wrong_roles(
    adapter: Adapter, model_class: type[PreTrainedModel], config: PreTrainedConfig, sizes: Sizes
) -> dict[str, float]:
    """Role -> relative change of the outputs, for the roles whose permutation changes them.

    Raises:
        ValueError: the class has no inputs that are known here, or no outputs but the stream itself.
        Whatever the model raises for them.
    """
    model = _random(model_class, config)
    inputs = _inputs(model)
    rules = rules_of(adapter, inventory_of(model), sizes)
    expected = _outputs(model, inputs)
    wrong = {}
    for role in ROLES:
        actual = _outputs(_permuted(model, rules, role, sizes), inputs)
        changes = [float((actual[n] - x).abs().max() / x.abs().max().clamp_min(1e-12)) for n, x in expected.items()]
        if not max(changes) < TOLERANCE:
            wrong[role] = max(changes)
    return wrong


def _random(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model in double precision with every parameter moved: no bias is 0 and no norm 1 by accident."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).to(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += SPREAD * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    config, name = model.config, model.main_input_name
    if name == "input_ids":
        if "MultipleChoice" in type(model).__name__:
            return {name: torch.arange(12).view(1, 2, 6) + 3}
        return {name: torch.arange(7).view(1, 7) + 3}
    if name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
        shape = (2, config.num_channels, *size)
        return {name: torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
    raise ValueError(f"its inputs are {name}")


def _outputs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        found = model(**inputs)
    kept = {n: x for n, x in found.items() if isinstance(x, Tensor) and x.is_floating_point() and n not in STREAM}
    if not kept:
        raise ValueError("it has no outputs but the stream itself")
    return kept


def _permuted(
    model: PreTrainedModel, rules: dict[str, tuple[Rule, int | None]], role: str, sizes: Sizes
) -> PreTrainedModel:
    """A copy of the model with the entries of one role in another order, everywhere; tied tensors are moved once."""
    moved: Any = copy.deepcopy(model)
    state, ties = moved.state_dict(), inventory_of(moved).ties
    for name, (rule, _) in rules.items():
        for dim, axis in enumerate(rule.axes) if name not in ties else ():
            order = _order(axis, role, sizes)
            if order is not None:
                state[name].copy_(state[name].index_select(dim, order))
    return moved  # type: ignore[no-any-return]


def _order(axis: Axis, role: str, sizes: Sizes) -> Tensor | None:
    """Where each entry of an axis comes from when `role` is permuted; None if the axis does not have it."""
    pieces, offset, touched = [], 0, False
    for segment in axis.segments:
        lengths = [factor.length(sizes) for factor in segment]
        known = [length for length in lengths if length is not None]
        if len(known) < len(lengths):
            return None
        piece = torch.arange(math.prod(known)).view(known) + offset
        for dim, factor in enumerate(segment):
            if factor.role and SAME.get(factor.role, factor.role) == role:
                # Turned by one: no entry stays where it was, whatever the length.
                piece, touched = piece.roll(1, dim), True
        offset += piece.numel()
        pieces.append(piece.flatten())
    return torch.cat(pieces) if touched else None
