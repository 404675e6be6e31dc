"""Fields of a config by name. Those of a config within a config have a path as name, such as "text_config.hidden_size".

>>> from types import SimpleNamespace
>>> config = SimpleNamespace(text_config=SimpleNamespace(hidden_size=8))
>>> get_field(config, "text_config.hidden_size"), get_field(config, "vision_config.hidden_size", None)
(8, None)
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

_NONE = object()


def get_field(config: Any, name: str, default: Any = _NONE) -> Any:
    """The value of a field; `default` where a config has none, or `AttributeError` without a default."""
    for part in name.split("."):
        if not hasattr(config, part) and default is not _NONE:
            return default
        config = getattr(config, part)
    return config


def has_field(config: Any, name: str) -> bool:
    """Whether a config has a field of this name."""
    absent = object()
    return get_field(config, name, absent) is not absent


def set_field(config: Any, name: str, new: Any) -> None:
    """Set a field."""
    path, _, last = name.rpartition(".")
    setattr(get_field(config, path) if path else config, last, new)


def inner(config: Any) -> dict[str, PreTrainedConfig]:
    """Field -> config, of the configs within a config."""
    return {name: part for name, part in vars(config).items() if isinstance(part, PreTrainedConfig)}


def flat(config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config as `to_dict` gives them, those of the configs within it by their paths."""
    whole = dict(fields)
    for name in inner(config):
        whole |= {f"{name}.{part}": entry for part, entry in whole.pop(name).items()}
    return whole


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `flat`.

    >>> nested({"text_config.hidden_size": 8, "projection_dim": 4})
    {'text_config': {'hidden_size': 8}, 'projection_dim': 4}
    """
    whole: dict[str, Any] = {}
    for name, entry in fields.items():
        path, _, last = name.rpartition(".")
        (whole.setdefault(path, {}) if path else whole)[last] = entry
    return whole
