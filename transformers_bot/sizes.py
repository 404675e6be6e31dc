"""From configs to lengths: role -> size, validity, and configs rebuilt from overrides."""

import copy
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .adapters import Adapter
from .errors import BadKeyword, BadOption, BadSize, UnsupportedArchitecture, suggest

# Axes whose entries have an identity of their own: they are never filtered, only kept.
FIXED = ("vocab", "segment", "label", "channel", "patch_h", "patch_w", "special", "offset", "pixel")


def role_sizes(adapter: Adapter, config: PreTrainedConfig, which: str) -> dict[str, int | None]:
    """The length of every role in a config; `BadSize` names the field and the nearest valid values.

    Args:
        which: "source" or "target", for the message.
    """
    for entry in adapter.sizes.values():
        if isinstance(entry, str):
            _check_positive(entry, getattr(config, entry), which)
    _check_heads(adapter, config, which)
    sizes: dict[str, int | None] = {}
    for role, entry in adapter.sizes.items():
        sizes[role] = _length(entry, config)
        length = sizes[role]
        if length is not None and length < 1:
            raise BadSize(f"the {which} config leaves {length} entries for {role}: {_why_empty(role, config)}")
    return sizes


def rebuild(adapter: Adapter, config: PreTrainedConfig, overrides: dict[str, Any]) -> PreTrainedConfig:
    """A new config with `overrides`, in which fields derived from others follow them.

    A field counts as derived while it has the value its rule gives (BERT's `intermediate_size` of
    4 * hidden_size); patching a config in place would leave it stale.

    Raises:
        BadKeyword: an override that the config does not have, with the nearest field.
    """
    known = config.to_dict()
    aliases = dict(getattr(config, "attribute_map", {}))
    for name in overrides:
        if name not in known and name not in aliases and callable(getattr(config, name, len)):
            hint = suggest(name, [*known, *aliases])
            raise BadKeyword(f"{type(config).__name__} has no field {name!r}.{hint}")
    chosen = {aliases.get(name, name): value for name, value in overrides.items()}
    fields = {**known, **chosen}
    if "num_labels" in chosen:  # the names of the labels give their count, too
        fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id")}
    for name, value in chosen.items():
        if name in adapter.sizes.values():
            _check_positive(name, value, "target")
    try:
        for name, rule in adapter.derived.items():
            follows = name in known and name not in chosen and known[name] is not None and known[name] == rule(config)
            if follows:
                fields[name] = rule(_with_fields(config, fields))
        for name in ("model_type", "transformers_version", "transformers_bot"):
            fields.pop(name, None)
        return type(config)(**fields)
    except (StrictDataclassError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadOption(f"{type(config).__name__} cannot be built with {overrides}: {reason}") from error


def differing_roles(source: dict[str, int | None], target: dict[str, int | None]) -> list[str]:
    return [role for role in source if source[role] != target[role]]


def config_field(adapter: Adapter, role: str) -> str:
    """The config field that sets a role, for messages."""
    entry = adapter.sizes.get(role)
    named = {"label": "num_labels", "special": "the model type", "offset": "pad_token_id"}
    patch = {"patch_h": "patch_size", "patch_w": "patch_size", "grid_h": "image_size", "grid_w": "image_size"}
    return entry if isinstance(entry, str) else {**named, **patch}.get(role, role)


def _length(entry: Any, config: PreTrainedConfig) -> int | None:
    if isinstance(entry, str):
        return int(getattr(config, entry))
    return int(entry(config)) if callable(entry) else entry


def _with_fields(config: PreTrainedConfig, fields: dict[str, Any]) -> Any:
    trial = copy.copy(config)
    for name, value in fields.items():
        if name in config.to_dict():
            setattr(trial, name, value)
    return trial


def _check_positive(name: str, value: object, which: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadSize(f"{name} is {value!r} in the {which} config; it must be a whole number of at least 1.")


def _check_heads(adapter: Adapter, config: PreTrainedConfig, which: str) -> None:
    hidden, heads = str(adapter.sizes["hidden"]), str(adapter.sizes["heads"])
    width, count = getattr(config, hidden), getattr(config, heads)
    if width % count:
        below = width // count * count
        near = f"sizes are {below} and {below + count}" if below else f"size is {count}"
        raise BadSize(
            f"{hidden} {width} is not divisible by {heads} {count} in the {which} config; nearest valid {near}."
        )


def _why_empty(role: str, config: Any) -> str:
    if role.startswith("grid"):
        return f"image_size {config.image_size} is smaller than patch_size {config.patch_size}."
    if role == "position":
        return (
            f"max_position_embeddings {config.max_position_embeddings} must exceed pad_token_id + 1 = "
            f"{config.pad_token_id + 1} rows that are no text positions."
        )
    return f"set {role} to at least 1."


def check_depth_flag(
    adapter: Adapter, config: Any, source: dict[str, int | None], target: dict[str, int | None]
) -> None:
    """Refuse a depth change where the config makes a layer's meaning depend on its number."""
    flag = adapter.depth_flag
    if flag and getattr(config, flag, False) and source["layer"] != target["layer"]:
        raise UnsupportedArchitecture(
            f"{flag}=True divides attention scores by the layer's number, so layers cannot be moved; "
            f"keep {config_field(adapter, 'layer')} at {source['layer']}."
        )
