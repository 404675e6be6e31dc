"""Tiny models with random weights, and inputs that they take."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..compat import building, drawn_from, use_eager_attention
from .sizes import inner

# Outputs with an axis of the stream or of heads, which change if units are permuted.
STREAM = (
    "last_hidden_state",
    "pooler_output",
    "hidden_states",
    "attentions",
    "past_key_values",
    "encoder_last_hidden_state",
)
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
    """One example for a model of text, of images, or of both; `ValueError` for others."""
    name = model.main_input_name
    if name not in ("input_ids", "pixel_values"):
        raise ValueError(f"its inputs are {name}")
    batch = {}
    if name == "input_ids":
        several = "MultipleChoice" in type(model).__name__
        batch[name] = (torch.arange(12).view(1, 2, 6) if several else torch.arange(7).view(1, 7)) + 3
        if getattr(model.config, "is_encoder_decoder", False):
            batch["decoder_input_ids"] = batch[name]
    if "pixel_values" in inspect.signature(model.forward).parameters:
        batch["pixel_values"] = _images(model.config)
    return batch


def _images(config: Any) -> Tensor:
    """Two images for a model with this config, or for its tower of images."""
    own = next(part for part in (config, *inner(config).values()) if hasattr(part, "image_size"))
    size = own.image_size if isinstance(own.image_size, (list, tuple)) else (own.image_size,) * 2
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, own.num_channels, *size), generator=generator, dtype=torch.float64)


def outputs(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's outputs for a batch, without the stream itself; `ValueError` if there are no others."""
    with torch.no_grad():
        output = model(**batch)
    tensors = {n: x for n, x in output.items() if isinstance(x, Tensor) and x.is_floating_point() and n not in STREAM}
    if any("logits" in name for name in tensors):  # they are what embeddings of a whole text or image are for
        tensors = {name: x for name, x in tensors.items() if not name.endswith("_embeds")}
    if not tensors:
        raise ValueError("it has no outputs but the stream itself")
    return tensors


def change(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any output, relative to that output's largest entry."""
    return max(float((actual[n] - x).abs().max() / x.abs().max().clamp_min(1e-12)) for n, x in expected.items())
