"""Tiny decoders, a row for every model type, as data for the laws.

Every type has key-value heads that are fewer than heads, heads that are not as long as the width suggests where the
config allows it, and layers that are not all of one kind where the type has several.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from families import randomise
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

import transformers_bot

SIZES = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 20, "head_dim": 8}
TEXT = {"vocab_size": 37, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Granite's and Gemma's factors are none that a size gives by accident; a window of 5 is shorter than the text.
FACTORS = {"query_pre_attn_scalar": 12, "attention_multiplier": 0.3, "embedding_multiplier": 2.0}
FACTORS |= {"residual_multiplier": 0.5, "logits_scaling": 3.0, "sliding_window": 5, "logit_scale": 0.3}
EXPERTS = {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 6}
FULL, SLIDING = "full_attention", "sliding_attention"
# Model type -> what its layers differ in; no pattern is the type's default, so that a list that does not travel shows.
OWN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {"use_sliding_window": True, "layer_types": [SLIDING, FULL, FULL]},
    "qwen3": {"use_sliding_window": True, "layer_types": [FULL, SLIDING, FULL]},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "granite": {},
    "phi3": {},
    "olmo2": {},
    "gemma2": {"layer_types": [FULL, SLIDING, SLIDING]},
    "gemma3_text": {"layer_types": [SLIDING, FULL, SLIDING]},
    "starcoder2": {},
    "glm4": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "cohere2": {"layer_types": [FULL, SLIDING, SLIDING]},
    "mixtral": EXPERTS,
    "qwen3_moe": {**EXPERTS, "mlp_only_layers": [0]},
    "qwen2_moe": {**EXPERTS, "decoder_sparse_step": 2, "shared_expert_intermediate_size": 10},
}
# The first matrix of the MLP in the first layer.
FIRST = dict.fromkeys(OWN, "mlp.gate_proj.weight") | dict.fromkeys(("phi3", "glm4"), "mlp.gate_up_proj.weight")
FIRST |= {"starcoder2": "mlp.c_fc.weight", "mixtral": "mlp.experts.gate_up_proj"}
BY_PAIRS = ("cohere2", "glm4")  # the entries of a rotary pair lie side by side
TYPES = tuple(OWN)
NORMED = ("qwen3", "gemma3_text", "olmo2")  # a norm stands behind queries and keys
IDS = torch.arange(3, 17).view(2, 7)


def has_head_dim(model_type: str) -> bool:
    """Whether the length of heads is a field of the config."""
    return "head_dim" in CONFIG_MAPPING[model_type]().to_dict()


def heads_may_grow(model_type: str) -> bool:
    """Whether the length of heads may change: it is a field, and all of a head turns with the position."""
    return has_head_dim(model_type) and "rope_parameters" not in OWN[model_type]


def eager(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config, with attention and experts computed one step after another, as double precision needs it."""
    config._attn_implementation = config._experts_implementation = "eager"
    return config


def build(model_type: str, task: str = "CausalLM", seed: int = 0, **changes) -> PreTrainedModel:
    """A tiny decoder in float64 with every parameter random."""
    known = CONFIG_MAPPING[model_type]()
    fields = {**TEXT, **SIZES, **FACTORS, "num_hidden_layers": 3, "tie_word_embeddings": True, **OWN[model_type]}
    fields |= changes
    for name in {"layer_types", "no_rope_layers"} - changes.keys():
        if name in fields:
            fields[name] = fields[name][: fields["num_hidden_layers"]]
    config = CONFIG_MAPPING[model_type](**{n: x for n, x in fields.items() if hasattr(known, n)})
    torch.manual_seed(seed)
    model = getattr(transformers, f"AutoModelFor{task}").from_config(eager(config))
    return randomise(model.to(torch.float64).eval(), seed)


def resized(model: PreTrainedModel, folder: Path, task: str = "CausalLM", **keywords) -> PreTrainedModel:
    """The model at other sizes, through a folder, as a user does it."""
    model.save_pretrained(folder)
    factory = getattr(transformers_bot, f"BoTModelFor{task}")
    target = factory.from_pretrained(folder, dtype=torch.float64, **keywords)
    eager(target.config)
    return target


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    """What a model says of a text."""
    output = model(input_ids=ids)
    return output.logits if "logits" in output else output.start_logits


def change(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((actual - expected).abs().max() / expected.abs().max())
