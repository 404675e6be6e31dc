"""Tiny encoders of images and texts with their inputs, a row for every class, as data for the laws.

Every parameter is random. Images have more rows of patches than columns where the type allows it.
"""

import copy
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from families import randomise
from transformers import PreTrainedModel

import transformers_bot

SIZES = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 20}
IMAGE = {"image_size": 12, "patch_size": 4, "num_channels": 3, "num_labels": 5}
UNITS = {"intermediate_size": 40}


@dataclass(frozen=True)
class Row:
    """A class of models, how a tiny one is built, and what its MLP units are called.

    Attributes:
        model_class: of transformers.
        fields: of the config.
        units: the field that doubles the MLP units.
        factory: our factory for it; empty where transformers has no Auto class for it.
    """

    model_class: str
    fields: dict[str, Any]
    units: dict[str, int] = field(default_factory=lambda: UNITS)
    factory: str = "BoTModel"


DINOV2 = {**{name: size for name, size in SIZES.items() if name != "intermediate_size"}, **IMAGE, "mlp_ratio": 2}
DINOV3 = {**SIZES, **IMAGE, "num_register_tokens": 2}
TEXT = {"vocab_size": 37, "max_position_embeddings": 9, "eos_token_id": 2}
TOWER = {**SIZES, **IMAGE}
LABELS = "BoTModelForImageClassification"
BEIT = {**SIZES, **IMAGE, "vocab_size": 11}
ROWS = {
    "beit": Row("BeitForImageClassification", {**BEIT, "use_relative_position_bias": True}, factory=LABELS),
    "beit shared": Row("BeitModel", {**BEIT, "use_shared_relative_position_bias": True, "use_mean_pooling": False}),
    "beit plain": Row("BeitModel", {**BEIT, "layer_scale_init_value": 0.0, "use_absolute_position_embeddings": True}),
    "dinov2": Row("Dinov2ForImageClassification", DINOV2, {"mlp_ratio": 4}, factory=LABELS),
    "dinov2 base": Row("Dinov2Model", {**DINOV2, "qkv_bias": False}, {"mlp_ratio": 4}),
    "dinov2 gated": Row(
        "Dinov2ForImageClassification", {**DINOV2, "use_swiglu_ffn": True}, {"mlp_ratio": 4}, factory=LABELS
    ),
    "dinov2 registers": Row(
        "Dinov2WithRegistersForImageClassification",
        {**DINOV2, "num_register_tokens": 2},
        {"mlp_ratio": 4},
        factory=LABELS,
    ),
    "dinov3": Row("DINOv3ViTModel", DINOV3),
    "dinov3 gated": Row("DINOv3ViTModel", {**DINOV3, "use_gated_mlp": True, "key_bias": True, "mlp_bias": False}),
    "dinov3 plain": Row("DINOv3ViTModel", {**DINOV3, "num_register_tokens": 0, "image_size": [16, 12]}),
    "clip text": Row("CLIPTextModel", {**SIZES, **TEXT}),
    "clip text projected": Row("CLIPTextModelWithProjection", {**SIZES, **TEXT, "projection_dim": 6}, factory=""),
    "clip images": Row("CLIPVisionModel", TOWER),
    "clip images projected": Row("CLIPVisionModelWithProjection", {**TOWER, "projection_dim": 6}, factory=""),
    "siglip text": Row("SiglipTextModel", {**SIZES, **TEXT, "projection_size": 6}, factory=""),
    "siglip images": Row("SiglipVisionModel", TOWER),
    "siglip images without a head": Row("SiglipVisionModel", {**TOWER, "vision_use_head": False}),
}
PAIR = {
    "text_config": {**SIZES, **TEXT},
    "vision_config": {**SIZES, **IMAGE, "hidden_size": 36, "num_hidden_layers": 2, "intermediate_size": 28},
}
PAIRS = {
    "clip": Row("CLIPModel", {**PAIR, "projection_dim": 6}, factory="BoTModelForZeroShotImageClassification"),
    "siglip": Row(
        "SiglipModel",
        {**PAIR, "text_config": {**PAIR["text_config"], "projection_size": 36}},
        factory="BoTModelForZeroShotImageClassification",
    ),
    "clip classifier": Row("CLIPForImageClassification", {**PAIR, "num_labels": 5}, factory=LABELS),
    "siglip classifier": Row(
        "SiglipForImageClassification",
        {**PAIR, "text_config": {**PAIR["text_config"], "projection_size": 36}, "num_labels": 5},
        factory=LABELS,
    ),
}


def build(name: str, seed: int = 0, **changes) -> PreTrainedModel:
    """A tiny model in float64 with every parameter random."""
    row = {**ROWS, **PAIRS}[name]
    model_class = getattr(transformers, row.model_class)
    config = model_class.config_class(**{**copy.deepcopy(row.fields), **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    return randomise(model_class(config).to(torch.float64).eval(), seed)


def batch(model: PreTrainedModel, seed: int = 0, count: int = 2) -> dict[str, torch.Tensor]:
    """Inputs of a model."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    needs = inspect.signature(model.forward).parameters
    inputs = {}
    if "input_ids" in needs:
        words = getattr(config, "text_config", config).vocab_size
        inputs["input_ids"] = torch.randint(3, words, (count, 7), generator=generator)
    if "pixel_values" not in needs:
        return inputs
    size = getattr(config, "vision_config", config).image_size
    shape = size if isinstance(size, list) else (size, size)
    dtype = next(model.parameters()).dtype
    return {**inputs, "pixel_values": torch.randn(count, 3, *shape, generator=generator, dtype=dtype)}


def resized(model: PreTrainedModel, folder: Path, factory: str, **keywords) -> PreTrainedModel:
    """The model at other sizes, through a folder, as a user does it."""
    model.save_pretrained(folder)
    if factory:
        target = getattr(transformers_bot, factory).from_pretrained(folder, dtype=torch.float64, **keywords)
    else:
        transformers_bot.resize_checkpoint(folder, folder / "resized", dtype="float64", **keywords)
        target = type(model).from_pretrained(folder / "resized", dtype=torch.float64)
    target.config._attn_implementation = "eager"
    return target.double()  # tables of angles too, as in the source


OUTPUTS = ("logits", "logits_per_image", "image_embeds", "text_embeds", "pooler_output", "last_hidden_state")


@torch.no_grad()
def outputs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a model says: what its head gives, or a base model's summary."""
    given = model(**inputs)
    return next(given[name] for name in OUTPUTS if given.get(name) is not None)


def change(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry; units of a wider base model are neighbouring copies."""
    if actual.shape != expected.shape:
        expected = expected.repeat_interleave(actual.shape[-1] // expected.shape[-1], -1)
    return float((actual - expected).abs().max() / expected.abs().max())
