"""Tiny models with random weights, and inputs that they take."""

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..compat import building, drawn_from, use_eager_attention
from .sizes import part_with

# Outputs with an axis of the stream or of heads, which change if units are permuted, or from in front of the stream.
STREAM = (
    "extract_features",
    "last_hidden_state",
    "pooler_output",
    "hidden_states",
    "attentions",
    "past_key_values",
    "encoder_last_hidden_state",
)
STREAM_ONLY = "stream"  # stands for the outputs of a class that returns nothing else
STRIDE = 320  # samples of sound between two frames, and enough for the first one
FRAMES = 24  # of sound: more than the layers of a speaker's head see at once
SPREAD = 0.3  # standard deviation of the random weights: large enough that every weight changes the outputs


def random_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model in double precision with noise on every parameter, so that no bias is 0 and no norm weight 1."""
    config = copy.deepcopy(config)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # a cache may count the layers of another stack
    use_eager_attention(config)
    generator = torch.Generator().manual_seed(0)
    with building(), drawn_from(0):
        model = model_class(config).to(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += SPREAD * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """One example for a model of text, images, both, or sound; `ValueError` for others."""
    name, config = model.main_input_name, model.config
    batch = {}
    if name == "input_ids":
        several = "MultipleChoice" in type(model).__name__
        batch[name] = (torch.arange(12).view(1, 2, 6) if several else torch.arange(7).view(1, 7)) + 3
    elif name == "input_values":
        stride = math.prod(getattr(config, "conv_stride", (STRIDE,)))
        batch[name] = _drawn(2, FRAMES * stride + STRIDE)
    elif name == "input_features":
        frames = 2 * config.max_source_positions  # a convolution takes every second one
        batch[name] = _drawn(2, config.num_mel_bins, frames)
    elif name != "pixel_values":
        raise ValueError(f"its inputs are {name}")
    if getattr(config, "is_encoder_decoder", False):
        text = batch[name] if name == "input_ids" else torch.arange(5).repeat(2, 1) + 3
        text[..., -1] = config.eos_token_id  # where a classifier reads
        batch["decoder_input_ids"] = text
    if "pixel_values" in inspect.signature(model.forward).parameters:
        batch["pixel_values"] = _images(config)
    return batch


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _images(config: Any) -> Tensor:
    """Two images for a model with this config, or for its tower of images."""
    own = part_with(config, "image_size")
    size = own.image_size if isinstance(own.image_size, (list, tuple)) else (own.image_size,) * 2
    return _drawn(2, own.num_channels, *size)


def outputs(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's outputs for a batch: those without an axis of the stream or, if there are none, what is known of the
    stream without its order; `ValueError` if there is no stream either.
    """
    with torch.no_grad():
        output = model(**batch)
    tensors = {n: x for n, x in output.items() if isinstance(x, Tensor) and x.is_floating_point() and n not in STREAM}
    if any("logits" in name for name in tensors):  # they are what embeddings of a whole text or image are for
        tensors = {name: x for name, x in tensors.items() if not name.endswith("_embeds")}
    if not tensors and isinstance(output.get("last_hidden_state"), Tensor):
        return {STREAM_ONLY: _moments(output["last_hidden_state"])}
    if not tensors and output.get("feature_maps"):
        return {STREAM_ONLY: _moments(output["feature_maps"][-1].movedim(1, -1))}  # (image, hidden, row, column)
    if not tensors:
        raise ValueError("it has no outputs but the stream itself")
    return tensors


def _moments(x: Tensor) -> Tensor:
    """Mean powers of the entries at every place: they stay if entries are renumbered, doubled, or all scaled alike."""
    scaled = x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
    return torch.stack([scaled.pow(power).mean(-1) for power in (1, 3, 4, 5)], -1)


def change(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any output, relative to that output's largest entry."""
    return max(float((actual[n] - x).abs().max() / x.abs().max().clamp_min(1e-12)) for n, x in expected.items())
