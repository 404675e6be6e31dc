"""The vocabulary that a call keeps: its rows, and the target config that goes with them."""

import copy
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ..architectures.adapter import Adapter
from ..architectures.sizes import get_field, set_field
from ..errors import BadOption
from ..io.companions import find
from ..io.kept_tokens import IDS, KeptTokens, kept_rows, named_tokens


def kept_tokens(
    given: Any,
    name: str,
    adapter: Adapter,
    configs: tuple[PreTrainedConfig, PreTrainedConfig],
    hub: dict[str, Any],
    generation: Any = None,
) -> KeptTokens:
    """The rows that `vocab_keep=` picks.

    Args:
        name: hub id or folder of the source, empty for a config alone.
        configs: of source and target.
        hub: hub keywords.
        generation: settings for the target that the call gives, with the source's token ids.

    Raises:
        BadOption: a model without vocabulary, and what `named_tokens` and `kept_rows` raise.
    """
    role, (source, target) = adapter.roles.vocabulary, configs
    length = get_field(source, adapter.roles[role].field, None) if role else None
    if role is None or not isinstance(length, int):
        raise BadOption(f"vocab_keep= picks rows of a vocabulary, and {adapter.model_type} models have none.")
    named = named_tokens(given)
    files = find(name, hub, (GENERATION_CONFIG_NAME,)) if name and not named.exact else {}
    first = _anchored(adapter, source, role, length)
    settings: list[Any] = [*_owners(source, adapter, role), *([generation] if hasattr(generation, "__dict__") else [])]
    if get_field(target, adapter.roles[role].field) == length:  # its token ids are the source's
        settings += _owners(target, adapter, role)
    rows = kept_rows(named, length, files, source, settings, first)
    return KeptTokens(role, rows, named.exact)


def with_kept(kept: KeptTokens, adapter: Adapter, target: PreTrainedConfig, renumbered: bool) -> PreTrainedConfig:
    """The target config with the kept number of rows, and with the new numbers of token ids.

    Args:
        renumbered: whether the token ids of a target of so many rows are new numbers already; otherwise they are the
            source's.

    Raises:
        BadOption: a target with another number of rows.
    """
    field, rows = adapter.roles[kept.role].field, kept.rows
    said, count = get_field(target, field), len(rows.index)
    if said not in (rows.length, count):
        raise BadOption(
            f"{field} is {said} in the target, and vocab_keep= keeps {count:,} of {rows.length:,} rows. Leave {field} "
            "at the source's value: it follows from the rows."
        )
    target = copy.deepcopy(target)
    set_field(target, field, count)
    if not renumbered or said != count or count == rows.length:
        renumber(kept, adapter, target)
    return target


def renumber(kept: KeptTokens, adapter: Adapter, config: PreTrainedConfig) -> None:
    """Give the token ids of a config their new numbers."""
    for owner in _owners(config, adapter, kept.role):
        kept.renumber(owner)


def _owners(config: PreTrainedConfig, adapter: Adapter, role: str) -> Iterator[PreTrainedConfig]:
    """The config whose field counts the rows, and those that it lies in."""
    yield config
    for part in adapter.roles[role].field.split(".")[:-1]:
        config = getattr(config, part)
        yield config


def _anchored(adapter: Adapter, config: PreTrainedConfig, role: str, length: int) -> int:
    """How many of the first rows keep their numbers: the model computes with them, or a size is counted from them."""
    own = adapter.roles[role].anchored
    first = own(config) if own else 0
    for other in adapter.roles.values():
        number = get_field(config, other.field, None) if IDS.search(other.field) else None
        if isinstance(number, int) and not isinstance(number, bool):
            first = max(first, number + 1)
    return min(first, length)
