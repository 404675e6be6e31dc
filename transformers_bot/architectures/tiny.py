"""Tiny models with random weights, and inputs that they take."""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..compat import building, drawn_from, use_eager_attention

# Outputs with an axis of the stream or of heads, which change if units are permuted.
STREAM = ("last_hidden_state", "pooler_output", "hidden_states", "attentions", "past_key_values")
SPREAD = 0.3  # standard deviation of the random weights: large enough that every weight changes the outputs


def random_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model in double precision with noise on every parameter, so that no bias is 0 and no norm weight 1."""
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
    """A model's outputs for a batch, without the stream itself; `ValueError` if there are no others."""
    with torch.no_grad():
        output = model(**batch)
    tensors = {n: x for n, x in output.items() if isinstance(x, Tensor) and x.is_floating_point() and n not in STREAM}
    if not tensors:
        raise ValueError("it has no outputs but the stream itself")
    return tensors


def change(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any output, relative to that output's largest entry."""
    return max(float((actual[n] - x).abs().max() / x.abs().max().clamp_min(1e-12)) for n, x in expected.items())
