"""Checks of an adapter when it is registered, so that its mistakes do not appear in the middle of a resize."""

import re
from collections.abc import Iterator
from typing import Any

from ..errors import BadOption, suggest
from .adapter import ADAPTERS, DEPTH, KINDS, Adapter, Norm, Role, Roles, Rule
from .families import BUILT_IN

FIELD_KINDS = ("depth", "stream")  # error messages name their config field


def register(adapter: Adapter) -> Adapter:
    """Make an architecture known for the rest of this process; return the adapter.

    A model type that is registered again replaces the earlier adapter, unless that is built in.

    Example:
        >>> from transformers_bot.adapters import get, register
        >>> register(get("gpt2")) is get("gpt2")
        True

    Raises:
        BadOption: an adapter that contradicts itself or transformers' config of that model type, or one
            for a model type that is built in.
    """
    validate(adapter)
    if adapter.model_type in (built_in.model_type for built_in in BUILT_IN if built_in is not adapter):
        raise BadOption(f"model type {adapter.model_type!r} is built in and cannot be replaced.")
    ADAPTERS[adapter.model_type] = adapter
    return adapter


def validate(adapter: Any) -> None:
    """Raise `BadOption` for an adapter that contradicts itself or the config of its model type.

    Whether its rules fit a model's tensors is tested by `adapters.check`.
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
    yield from _role_problems(adapter)
    yield from _config_problems(adapter)
    yield from _norm_problems(adapter)


def _role_problems(adapter: Adapter) -> Iterator[str]:
    """Problems of roles: unknown kinds, references to missing roles, and rules with unknown roles."""
    roles = adapter.roles
    if not isinstance(roles, Roles):
        yield f"roles must be Roles(Role(...), ...), got {type(roles).__name__}."
        return
    for name in roles.repeated:
        yield f"roles has {name!r} twice. Keep one."
    for role in roles.values():
        if role.kind not in KINDS:
            hint = f"{suggest(role.kind, KINDS)} Kinds are {', '.join(KINDS)}."
            yield f"role {role.name!r} has the kind {role.kind!r}.{hint}"
        for other in filter(None, (role.follows, role.within)):
            if other not in roles:
                yield f"role {role.name!r} names {other!r}, which roles does not have.{suggest(other, roles)}"
        if role.kind in FIELD_KINDS and not role.follows and not isinstance(role.size, str):
            yield f"the size of role {role.name!r} must be the name of a config field, got {role.size!r}."
        if role.kind in ("entry", "frequency") and not role.within:
            yield f"role {role.name!r} has no within=: entries are those of a unit, such as heads."
    for kind in ("depth", "stream", "unit"):
        if not roles.leading(kind):
            yield f"roles has none of kind {kind!r}, of which a transformer has at least one."
    for rule in adapter.rules:
        unknown = [role for role in (*rule.roles, *filter(None, [rule.depth])) if role not in roles]
        if unknown:
            hint = suggest(unknown[0], roles)
            yield f"rule {rule.text!r} has the role {unknown[0]!r}, which roles does not have.{hint}"
    if not any(rule.layered for rule in adapter.rules):
        yield "no rule has {layer} in its names, so that no tensor belongs to a layer."


def _config_problems(adapter: Adapter) -> Iterator[str]:
    from transformers import CONFIG_MAPPING

    if adapter.model_type not in CONFIG_MAPPING:
        hint = suggest(adapter.model_type, CONFIG_MAPPING)
        yield f"transformers has no such model type.{hint} A new one is made known by AutoConfig.register."
        return
    default = CONFIG_MAPPING[adapter.model_type]()
    fields = {field: f"the size of role {role.name!r}" for role in adapter.roles.values() for field in _fields(role)}
    fields |= {field: "in divides" for pair in adapter.divides for field in pair}
    for field, where in fields.items():
        if not hasattr(default, field):
            hint = suggest(field, default.to_dict())
            yield f"{where} is {field!r}, which {type(default).__name__} does not have.{hint}"


def _fields(role: Role) -> tuple[str, ...]:
    return ((role.size,) if isinstance(role.size, str) else ()) + role.lists


def _norm_problems(adapter: Adapter) -> Iterator[str]:
    """Problems of norms: wrong kinds and gains, and names (without ".weight") that no rule has."""
    for norm in adapter.norms:
        if not isinstance(norm, Norm):
            yield f"norms must be Norm(...) each, got {type(norm).__name__}."
            continue
        if norm.kind not in ("layer", "rms") or norm.gain not in ("w", "1+w"):
            yield f"norm {norm.name!r} must be of kind 'layer' or 'rms' and have the gain 'w' or '1+w'."
        for name in (norm.name, norm.undoes, *norm.readers):
            weight = re.sub(DEPTH, "0", name) + ".weight"
            if name and not any(rule.match(weight)[0] for rule in adapter.rules):
                yield f"norms name {name!r}, but no rule names {weight!r}."
