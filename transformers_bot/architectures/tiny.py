"""Tiny models with random weights, and inputs that they take."""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..compat import building, drawn_from, use_eager_attention

# Outputs that are the stream or the attention itself, and so change with its units.
STREAM = ("last_hidden_state", "pooler_output", "hidden_states", "attentions", "past_key_values")
SPREAD = 0.3  # of the random weights: large enough that every one of them matters


def random_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model in double precision with every parameter moved: no bias is 0 and no norm 1 by accident."""
    config = copy.deepcopy(config)
    use_eager_attention(config)
    generator = torch.Generator().manual_seed(0)
    with building(), drawn_from(0):
        model = model_class(config).to(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += SPREAD * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """One example for a model of text or images; `ValueError` for others."""
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


def outputs(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a model says of a batch, without the stream itself; `ValueError` if that is all it says."""
    with torch.no_grad():
        found = model(**batch)
    kept = {n: x for n, x in found.items() if isinstance(x, Tensor) and x.is_floating_point() and n not in STREAM}
    if not kept:
        raise ValueError("it has no outputs but the stream itself")
    return kept


def change(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any output, beside that output's largest entry."""
    return max(float((actual[n] - x).abs().max() / x.abs().max().clamp_min(1e-12)) for n, x in expected.items())
