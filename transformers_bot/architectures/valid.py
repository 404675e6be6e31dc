"""What an adapter must say, checked where it is registered rather than somewhere in a resize."""

from collections.abc import Iterator
from typing import Any

from ..errors import BadOption, suggest
from .adapter import Adapter
from .axes import Rule

NEEDED = ("layer", "hidden", "heads", "head_dim", "score", "ffn")  # roles that methods ask for
FIELDS = ("layer", "hidden", "heads")  # of these, errors must name the config field


def validate(adapter: Any) -> None:
    """Refuse, with `BadOption`, an adapter that contradicts itself or the config of its model type.

    Whether its rules fit a model's tensors is what `check` finds out.
    """
    if not isinstance(adapter, Adapter):
        raise BadOption(f"an adapter must be a transformers_bot.adapters.Adapter, got {type(adapter).__name__}.")
    problem = next(_problems(adapter), None)
    if problem:
        raise BadOption(f"the adapter for {adapter.model_type!r} cannot be used: {problem}")


def _problems(adapter: Adapter) -> Iterator[str]:
    if adapter.norm not in ("pre", "post"):
        yield f"norm must be 'pre' or 'post', got {adapter.norm!r}."
    if not adapter.rules or not all(isinstance(rule, Rule) for rule in adapter.rules):
        yield "rules must be what parse_rules() returns, and not empty."
    missing = [role for role in NEEDED if role not in adapter.sizes]
    if missing:
        yield f"sizes has no {', '.join(missing)}. Every adapter needs {', '.join(NEEDED)}."
    for role in FIELDS:
        if not isinstance(adapter.sizes[role], str):
            yield f"sizes[{role!r}] must be the name of a config field, got {adapter.sizes[role]!r}."
    for rule in adapter.rules:
        unknown = [role for role in rule.roles if role not in adapter.sizes]
        if unknown:
            hint = suggest(unknown[0], adapter.sizes)
            yield f"rule {rule.text!r} has the role {unknown[0]!r}, which sizes does not have.{hint}"
    if not any(rule.layered for rule in adapter.rules):
        yield "no rule has {layer} in its names, so that no tensor belongs to a layer."
    yield from _config_problems(adapter)
    yield from _norm_problems(adapter)


def _config_problems(adapter: Adapter) -> Iterator[str]:
    from transformers import CONFIG_MAPPING

    if adapter.model_type not in CONFIG_MAPPING:
        hint = suggest(adapter.model_type, CONFIG_MAPPING)
        yield f"transformers knows no such model type.{hint} A new one is made known by AutoConfig.register."
        return
    default = CONFIG_MAPPING[adapter.model_type]()
    for role, entry in adapter.sizes.items():
        if isinstance(entry, str) and not hasattr(default, entry):
            hint = suggest(entry, default.to_dict())
            yield f"sizes[{role!r}] is {entry!r}, which {type(default).__name__} does not have.{hint}"


def _norm_problems(adapter: Adapter) -> Iterator[str]:
    """Norms, and the matrices that read them, are named without ".weight"; each must be somebody's."""
    named = [*adapter.undoes, *adapter.undoes.values(), *adapter.norms]
    named += [reader for readers in adapter.norms.values() for reader in readers]
    for name in named:
        weight = name.replace("{layer}", "0") + ".weight"
        if not any(rule.match(weight)[0] for rule in adapter.rules):
            yield f"norms or undoes name {name!r}, but no rule names {weight!r}."
