"""Refuses lengths in a config.json that no model has, before transformers builds anything with them.

Which fields are lengths is what adapters say of their roles, so that those of a new family are checked without a word
here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from ..architectures import ADAPTERS
from ..architectures.adapter import LABEL, Role
from ..architectures.sizes import MAX_LAYERS, MAX_LENGTH
from ..errors import BadSize
from .files import shown

MAX_LABELS = 1 << 18  # transformers makes two dicts of them, some 200 bytes a label
OTHER_OBJECTS = ("quantization_config", "compression_config")  # named like a config within the config


def check_lengths(location: str, fields: Mapping[str, Any]) -> None:
    """Refuse a length that no model has, in a config or in the configs within it.

    Raises:
        BadSize: what is no number, or a number that is too large.
    """
    largest, lengths = _largest_lengths()
    for path, field, value in _paths(fields):
        # A list is valid: some families give a length per layer, or height and width.
        if field in lengths and isinstance(value, (str, bool, dict)):
            raise BadSize(f"{path} is {shown(value)} in {location}; it must be a whole number. Correct it.")
        for number in numbers_in(value) if field in largest else ():
            if number > largest[field]:
                most = f"{largest[field]:,}"
                raise BadSize(f"{path} is {shown(number)} in {location}; no model has more than {most}. Correct it.")


def _largest_lengths() -> tuple[dict[str, int], set[str]]:
    """Config field -> the largest length that it may give, and the fields that can only give lengths.

    They are the fields that any known architecture reads a length from. A config within the config has the same names,
    so that a path such as "text_config.hidden_size" counts by its end. What follows from other fields (`derived`) need
    not be a length.
    """
    adapters = [known for adapter in ADAPTERS.values() for known in (adapter, *(v.adapter for v in adapter.variants))]
    roles = {(role.name, role.size, role.field): role for adapter in adapters for role in adapter.roles.values()}
    named = {(_last(field), role.kind == "depth") for role in roles.values() for field in _fields_of(role)}
    largest = {_last(field): MAX_LENGTH for adapter in adapters for field in adapter.derived}
    largest |= {field: MAX_LENGTH for field, _ in named}
    largest |= {field: MAX_LAYERS for field, counts_layers in named if counts_layers}
    return {**largest, LABEL.field: MAX_LABELS}, {LABEL.field, *(field for field, _ in named)}


def _fields_of(role: Role) -> list[str]:
    """The config fields that a role's length comes from, without a role's own name in the place of one."""
    named = re.split(" and | or ", role.field) if role.field != role.name else []
    return [*named, *([role.size] if isinstance(role.size, str) else [])]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _paths(fields: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Path, name and value of the fields of a config and of the configs within it.

    A field may have another name in the file, which its class tells (`attribute_map`); transformers ends the names of
    configs within a config in `_config`.
    """
    model_type = fields.get("model_type")
    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    names: Mapping[str, str] = getattr(CONFIG_MAPPING[model_type], "attribute_map", {}) if known else {}
    others = {stored: general for general, stored in names.items()}
    for field, value in fields.items():
        for name in {field, names.get(field, field), others.get(field, field)}:
            yield f"{path}{field}", name, value
        if field.endswith("_config") and field not in OTHER_OBJECTS and isinstance(value, dict):
            yield from _paths(value, f"{path}{field}.")


def numbers_in(value: Any) -> list[float]:
    """All numbers in a field, nested ones included, booleans excluded."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [value]
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [number for member in members for number in numbers_in(member)]
