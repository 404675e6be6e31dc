"""Model structures by name: those of the paper, and of other published models. `families.published` holds them."""

import copy
from typing import Any, cast

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..errors import BadKeyword, BadOption, suggest
from .families.published import PUBLISHED, READY, SIZES, STRUCTURES


def names() -> list[str]:
    """All names that `get` accepts: bert-tiny ... deit-large, then those of published models."""
    return list(READY)


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
    if name not in READY:
        raise BadOption(f"unknown config {name!r}; known are {', '.join(READY)}.{suggest(name, READY)}")
    model_type, fields = READY[name]
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]  # imports the module of this family only
    _check_fields(config_class, overrides)
    return cast(PreTrainedConfig, config_class(**copy.deepcopy({**fields, **overrides})))


def _check_fields(family: type[PreTrainedConfig], overrides: dict[str, Any]) -> None:
    default = family()
    for name in overrides:
        if not hasattr(default, name) or callable(getattr(default, name)):
            hint = suggest(name, default.to_dict())
            raise BadKeyword(f"{family.__name__} has no field {name!r}.{hint}")


__all__ = ["PUBLISHED", "SIZES", "STRUCTURES", "get", "names"]


def __dir__() -> list[str]:
    return sorted(__all__)
