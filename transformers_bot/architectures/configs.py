"""Model structures by name: those of the paper (supplement Tables 6, 10 and 12), and published models.

In the paper heads have 64 entries, and the MLP is four times as wide as the stream. Fields that the tables do not give
have transformers' defaults.
"""

import copy
from typing import Any, cast

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..errors import BadKeyword, BadOption, suggest

# size -> (layers, hidden, heads)
STRUCTURES = {"tiny": (3, 192, 3), "small": (6, 384, 6), "base": (12, 768, 12), "large": (24, 1024, 16)}
SIZES = {
    "bert": ("tiny", "small", "base", "large"),
    "roberta": ("small", "base"),
    "gpt2": ("small", "base"),
    "deit": ("tiny", "small", "base", "large"),
}
# layers, hidden, MLP units, heads, key-value heads
DECODER = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def _decoder(*sizes: int, **fields: Any) -> dict[str, Any]:
    return {**dict(zip(DECODER, sizes, strict=True)), **fields}


# Scaling of rotary positions from 8,192 to 131,072 tokens.
_LLAMA_3 = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}
_SMOLLM2: dict[str, Any] = {
    **{"vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    **{"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "bos_token_id": 0, "eos_token_id": 0},
}
_GEMMA_3: dict[str, Any] = {
    **{"vocab_size": 262144, "max_position_embeddings": 32768, "head_dim": 256},
    **{"query_pre_attn_scalar": 256, "sliding_window": 512},
}
_QWEN_3: dict[str, Any] = {
    **{"vocab_size": 151936, "max_position_embeddings": 40960, "head_dim": 128, "rms_norm_eps": 1e-6},
    **{"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
}
_LLAMA_32: dict[str, Any] = {
    **{"vocab_size": 128256, "max_position_embeddings": 131072, "head_dim": 64, "rms_norm_eps": 1e-5},
    **{"tie_word_embeddings": True, "rope_parameters": _LLAMA_3, "bos_token_id": 128000, "eos_token_id": 128001},
}
# Name -> model type and fields, from the config.json of the models' own pages on the Hub.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    # Qwen/Qwen3-0.6B; layers and heads also in its report (arXiv 2505.09388), Table 1
    "qwen3-0.6b": ("qwen3", _decoder(28, 1024, 3072, 16, 8, **_QWEN_3)),
    # meta-llama/Llama-3.2-1B
    "llama-3.2-1b": ("llama", _decoder(16, 2048, 8192, 32, 8, **_LLAMA_32)),
    # HuggingFaceTB/SmolLM2-135M and -360M
    "smollm2-135m": ("llama", _decoder(30, 576, 1536, 9, 3, **_SMOLLM2)),
    "smollm2-360m": ("llama", _decoder(32, 960, 2560, 15, 5, **_SMOLLM2)),
    # google/gemma-3-270m and -1b-pt; every sixth layer sees the whole text, which is the class's default
    "gemma-3-270m": ("gemma3_text", _decoder(18, 640, 2048, 4, 1, **_GEMMA_3)),
    "gemma-3-1b": ("gemma3_text", _decoder(26, 1152, 6912, 4, 1, **_GEMMA_3)),
    # answerdotai/ModernBERT-base and -large; also in their report (arXiv 2412.13663), the table of the model design
    "modernbert-base": ("modernbert", {"classifier_pooling": "mean"}),  # the sizes are the class's defaults
    "modernbert-large": (
        "modernbert",
        {
            **{"num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size": 2624, "num_attention_heads": 16},
            **{"classifier_pooling": "mean"},
        },
    ),
}


def names() -> list[str]:
    """All names that `get` accepts: bert-tiny ... deit-large, then those of published models."""
    return [*(f"{family}-{size}" for family, sizes in SIZES.items() for size in sizes), *PUBLISHED]


def get(name: str, **overrides: Any) -> PreTrainedConfig:
    """The config of one of the paper's models, or of a published one, a fresh object each time.

    Example:
        >>> get("bert-small").hidden_size, get("gpt2-base", vocab_size=4096).n_layer
        (384, 12)

    Args:
        name: family and size, as listed by `names()`. "gpt2-base" is the public gpt2.
        overrides: fields of the config class with other values (vocabulary, labels, ...).

    Raises:
        BadOption: an unknown name; the message suggests the nearest one.
        BadKeyword: a field that the config class does not have.
    """
    if name not in names():
        raise BadOption(f"unknown config {name!r}; known are {', '.join(names())}.{suggest(name, names())}")
    if name in PUBLISHED:
        model_type, known = PUBLISHED[name]
        _check_fields(CONFIG_MAPPING[model_type], overrides)
        return cast(PreTrainedConfig, CONFIG_MAPPING[model_type](**copy.deepcopy({**known, **overrides})))
    family, size = name.split("-")
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[family]  # imports the module of this family only
    _check_fields(config_class, overrides)
    layers, hidden, heads = STRUCTURES[size]
    if family == "gpt2":  # Table 12; sequences of 1024
        fields: dict[str, Any] = {"n_layer": layers, "n_embd": hidden, "n_head": heads, "n_positions": 1024}
        return config_class(**{**fields, "vocab_size": 50257, **overrides})
    fields = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }
    if family == "deit":  # Table 6
        return config_class(**{**fields, "image_size": 224, "patch_size": 16, **overrides})
    if family == "bert":  # Table 10; trained on sequences of 128, but with 512 positions as public BERTs have
        return config_class(**{**fields, "vocab_size": 30522, "max_position_embeddings": 512, **overrides})
    # Table 12; 512 text positions behind RoBERTa's two rows for padding
    roberta = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return config_class(**{**fields, **roberta, **overrides})


def _check_fields(family: type[PreTrainedConfig], overrides: dict[str, Any]) -> None:
    default = family()
    for name in overrides:
        if not hasattr(default, name) or callable(getattr(default, name)):
            hint = suggest(name, default.to_dict())
            raise BadKeyword(f"{family.__name__} has no field {name!r}.{hint}")


__all__ = ["PUBLISHED", "SIZES", "STRUCTURES", "get", "names"]


def __dir__() -> list[str]:
    return sorted(__all__)
