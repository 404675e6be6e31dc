"""The paper's model structures by name (supplement Tables 6, 10 and 12).

Heads have 64 entries, and the MLP is four times as wide as the stream. Fields that the tables do not give
have transformers' defaults.
"""

from typing import Any

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


def names() -> list[str]:
    """All names that `get` accepts: bert-tiny ... deit-large."""
    return [f"{family}-{size}" for family, sizes in SIZES.items() for size in sizes]


def get(name: str, **overrides: Any) -> PreTrainedConfig:
    """The config of one of the paper's models, a fresh object each time.

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


__all__ = ["SIZES", "STRUCTURES", "get", "names"]


def __dir__() -> list[str]:
    return sorted(__all__)
