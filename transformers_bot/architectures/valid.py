"""Checks of an adapter when it is registered, so that its mistakes do not appear in the middle of a resize."""

import difflib
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from numbers import Integral, Real
from typing import Any

from ..errors import BadOption, suggest
from ..ops.wavelets import NAMES
from .adapter import ADAPTERS, DEPTH, KINDS, RESIZED, Adapter, Norm, Role, Roles, Rule, Scale, Variant
from .families import BUILT_IN
from .sizes import flat, has_field

TEXTS = (
    "meaning",
    "tensors",
    "inert",
    "crossing",
    "buffers",
    "with_width",
    "activated",
    "implied_ties",
)  # lists of names
TABLES = ("derived", "gains", "weight_norms", "only", "refused", "foreign")
FIELD_KINDS = ("depth", "stream")  # error messages name their config field
MISSPELT = 0.89  # of letters in common: so similar to a field that is there, a name is not one of an older version
LISTS = (
    "divides",
    "meaning",
    "tensors",
    "inert",
    "checks",
    "crossing",
    "buffers",
    "norms",
    "scales",
    "variants",
    "with_width",
    "activated",
    "implied_ties",
)  # a lone text or function is no list


def register(adapter: Adapter) -> Adapter:
    """Make an architecture known for the rest of this process; return the adapter.

    A model type that is registered again replaces the earlier adapter, also a built-in one, unless that is locked
    so that published results can be repeated (see `Adapter.locked`).

    Example:
        >>> from transformers_bot.adapters import get, register
        >>> register(get("gpt2")) is get("gpt2")
        True

    Raises:
        BadOption: an adapter that contradicts itself or transformers' config of that model type, or another one
            in place of a locked one.
    """
    validate(adapter)
    locked = {built_in.model_type: built_in for built_in in BUILT_IN if built_in.locked}
    if locked.get(adapter.model_type, adapter) is not adapter:
        raise BadOption(f"model type {adapter.model_type!r} is built in and cannot be replaced.")
    ADAPTERS[adapter.model_type] = adapter
    return adapter


def validate(adapter: Any) -> None:
    """Raise `BadOption` for an adapter that contradicts itself or the config of its model type.

    Whether its rules fit a model's tensors is tested by `adapters.check`.
    """
    if not isinstance(adapter, Adapter):
        raise BadOption(f"an adapter must be a transformers_bot.adapters.Adapter, got {type(adapter).__name__}.")
    problem = next(itertools.chain(_problems(adapter), _function_problems(adapter)), None)
    if problem:
        raise BadOption(f"the adapter for {adapter.model_type!r} cannot be used: {problem}")


def _problems(adapter: Adapter) -> Iterator[str]:
    if adapter.norm not in ("pre", "post"):
        yield f"norm must be 'pre' or 'post', got {adapter.norm!r}."
    is_list = isinstance(adapter.rules, (tuple, list))
    if not is_list or not adapter.rules or not all(isinstance(rule, Rule) for rule in adapter.rules):
        yield "rules must be what parse_rules() returns, and not empty."
    for name in LISTS:
        if not isinstance(getattr(adapter, name), (tuple, list)):
            yield f"{name} must be a tuple, got {type(getattr(adapter, name)).__name__}. A comma makes one: (...,)."
    for name in TEXTS:
        yield from (f"{name} must hold names, got {n!r}." for n in getattr(adapter, name) if not isinstance(n, str))
    for name in TABLES:
        if not isinstance(getattr(adapter, name), Mapping):
            yield f"{name} must be a dict, got {type(getattr(adapter, name)).__name__}."
    yield from _role_problems(adapter)
    yield from _rule_problems(adapter)
    yield from _config_problems(adapter)
    yield from _gain_problems(adapter)
    yield from _norm_problems(adapter)
    yield from _module_problems(adapter)
    yield from _scale_problems(adapter)
    yield from _default_problems(adapter)
    for variant in adapter.variants:
        if not isinstance(variant, Variant) or not callable(variant.holds):
            yield f"variants must be Variant(when, function of the config, adapter) each, got {variant!r}."
            return
        yield from _problems(variant.adapter)


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
        for other in filter(None, (role.follows, role.within, role.grouped)):
            if other not in roles:
                yield f"role {role.name!r} names {other!r}, which roles does not have.{suggest(other, roles)}"
        if role.kind in FIELD_KINDS and not role.follows and not isinstance(role.size, str):
            yield f"the size of role {role.name!r} must be the name of a config field, got {role.size!r}."
        if role.kind in ("entry", "frequency") and not role.within:
            yield f"role {role.name!r} has no within=: entries are those of a unit, such as heads."
        if role.within and role.within in roles and roles.kind(role.within) != "unit":
            yield f"role {role.name!r} is within {role.within!r}, whose kind is not 'unit'."
        if not isinstance(role.lists, (tuple, list)):
            yield f"lists of role {role.name!r} must be a tuple of names: ({role.lists!r},)."
    for kind in ("depth", "stream", "unit"):
        if not roles.leading(kind):
            yield f"roles has none of kind {kind!r}, of which a transformer has at least one."


def _rule_problems(adapter: Adapter) -> Iterator[str]:
    """Problems of rules: unknown roles, roles that no rule has, and streams that leave no layer."""
    roles = adapter.roles
    for rule in adapter.rules:
        unknown = [role for role in (*rule.roles, *filter(None, [rule.depth])) if role not in roles]
        if unknown:
            hint = suggest(unknown[0], roles)
            yield f"rule {rule.text!r} has the role {unknown[0]!r}, which roles does not have.{hint}"
        elif rule.adds and not any(roles.is_network_wide(f.role) for f in rule.factors if f.role and not f.reads):
            yield f"rule {' '.join(rule.text.split())!r} has a +, but nothing that it writes is of kind 'stream'."
    if not any(rule.layered for rule in adapter.rules):
        yield "no rule has {layer} in its names, so that no tensor belongs to a layer."
    used = {role for rule in adapter.rules for role in (*rule.roles, rule.depth)}
    for name in roles.of(*RESIZED):
        if name not in used and not roles.is_whole(name):
            where = f"name has {{{name}}}" if roles.kind(name) == "depth" else "rule has it"
            yield f"role {name!r} stands for nothing, because no {where}. Remove it, or write it into the rules."
    for name in roles.streams:
        members = roles.moved_with(name)
        if all(rule.layered for rule in adapter.rules if set(members) & set(rule.roles)):
            yield (
                f"role {name!r} is of kind 'stream', but only tensors inside of layers have it: a residual stream goes "
                "through all layers, from the embeddings on. What each layer has of its own is of kind 'unit'."
            )


def _config_problems(adapter: Adapter) -> Iterator[str]:
    from transformers import CONFIG_MAPPING

    if adapter.model_type not in CONFIG_MAPPING:
        hint = suggest(adapter.model_type, CONFIG_MAPPING)
        yield f"transformers has no such model type.{hint} A new one is made known by AutoConfig.register."
        return
    default = CONFIG_MAPPING[adapter.model_type]()
    known = [*flat(default, default.to_dict()), *getattr(default, "attribute_map", {})]
    for field, where in _present_fields(adapter):
        if not has_field(default, field):
            hint = suggest(field, known)
            if where == "activation":
                functions = [name for name in known if "act" in name.split("_") or "activation" in name]
                hint = f" Did you mean {' or '.join(map(repr, functions))}?" if functions else ""
                hint += " If the config does not name the function, set activation=''."
            yield f"{where} is {field!r}, which {type(default).__name__} does not have.{hint}"
    for field, where in older_fields(adapter, default):
        if difflib.get_close_matches(field, known, n=1, cutoff=MISSPELT):
            yield f"{where} has {field!r}, which {type(default).__name__} does not have.{suggest(field, known)}"


def older_fields(adapter: Adapter, config: Any) -> list[tuple[str, str]]:
    """Fields that this version's config lacks and older config files may have, and where an adapter names them."""
    named = ((field, where) for where in ("derived", "only", "meaning") for field in getattr(adapter, where))
    return [(field, where) for field, where in named if not has_field(config, field)]


def _present_fields(adapter: Adapter) -> Iterator[tuple[str, str]]:
    """The config fields that an adapter reads, and where it names them."""
    for role in adapter.roles.values():
        yield from ((field, f"the size of role {role.name!r}") for field in _fields(role))
    yield from ((field, "with_width") for field in adapter.with_width)
    yield from ((field, "in divides") for pair in adapter.divides for field in pair)
    for where in ("activation", "epsilon", "causal_flag", "depth_flag"):
        yield from ((field, where) for field in [getattr(adapter, where)] if field)


def _fields(role: Role) -> tuple[str, ...]:
    numbered = tuple(name for layers in role.numbered for name in layers.fields(()))
    return ((role.size,) if isinstance(role.size, str) else ()) + role.lists + numbered


def _gain_problems(adapter: Adapter) -> Iterator[str]:
    """Problems of gains and derived fields: names that nothing has, and values that are no functions."""
    for name, gain in (*adapter.gains.items(), *adapter.derived.items()):
        if not callable(gain):
            yield f"{name!r} must have a function of the config, such as lambda config: ..., got {gain!r}."
    for name in adapter.gains:
        if name not in adapter.scored and not _rules_of(adapter, name):
            hint = suggest(name, [*adapter.scored, *_modules(adapter)])
            yield (
                f"gains name {name!r}, which is neither a role that scores sum over "
                f"({', '.join(adapter.scored) or 'no rule has a ~'}) nor a module that a rule names.{hint}"
            )


def _norm_problems(adapter: Adapter) -> Iterator[str]:
    """Problems of norms: wrong kinds and gains, and names (without ".weight") that no rule has."""
    for norm in adapter.norms:
        if not isinstance(norm, Norm):
            yield f"norms must be Norm(...) each, got {type(norm).__name__}."
            continue
        if norm.kind not in ("layer", "rms") or norm.gain not in ("w", "1+w"):
            yield f"norm {norm.name!r} must be of kind 'layer' or 'rms' and have the gain 'w' or '1+w'."
        if not isinstance(norm.readers, (tuple, list)):
            hint = f"({norm.readers!r},)" if isinstance(norm.readers, str) else f"(...,), got {norm.readers!r}"
            yield f"readers of norm {norm.name!r} must be a tuple of names: {hint}."
            continue
        behind = norm.behind[0] if norm.behind else ""
        for name in filter(None, (norm.name, norm.undoes, behind, *norm.readers)):
            if not _rules_of(adapter, name):
                hint = suggest(name, _modules(adapter))
                yield f"norms name {name!r}, but no rule names {re.sub(DEPTH, '0', name)}.weight.{hint}"
        yield from _reader_problems(adapter, norm)


def _reader_problems(adapter: Adapter, norm: Norm) -> Iterator[str]:
    """Matrices that are said to read a norm of the stream and whose rule does not read that stream."""
    written = {adapter.roles.leader(role) for rule in _rules_of(adapter, norm.name) for role in rule.roles}
    for reader in norm.readers if written & set(adapter.roles.streams) else ():
        for rule in _rules_of(adapter, reader):
            if written.isdisjoint(adapter.roles.leader(factor.role) for factor in rule.factors if factor.reads):
                yield (
                    f"norm {norm.name!r} names the reader {reader!r}, but its rule {' '.join(rule.text.split())!r} "
                    f"does not read {' or '.join(sorted(written))}."
                )


def _module_problems(adapter: Adapter) -> Iterator[str]:
    """Problems of `activated` and `weight_norms`: names that no rule has."""
    for name in adapter.activated:
        if not _rules_of(adapter, name):
            yield f"activated names {name!r}, a module that no rule names.{suggest(name, _modules(adapter))}"
    for name in (*adapter.weight_norms, *adapter.weight_norms.values()):
        if not any(rule.match(re.sub(DEPTH, "0", name))[0] for rule in adapter.rules):
            every = [tensor for rule in adapter.rules for tensor in names_of_rule(rule)]
            yield f"weight_norms names {name!r}, a tensor that no rule names.{suggest(name, every)}"


def _scale_problems(adapter: Adapter) -> Iterator[str]:
    """Problems of scales: names that no rule has."""
    for scale in adapter.scales:
        if not isinstance(scale, Scale):
            yield f"scales must be Scale(...) each, got {type(scale).__name__}."
            continue
        if isinstance(scale.writers, str):
            yield f"writers of scale {scale.name!r} must be a tuple of names: ({scale.writers!r},)."
            continue
        for name in (scale.name, *(f"{writer}.weight" for writer in scale.writers)):
            tensor = re.sub(DEPTH, "0", name)
            if not any(rule.match(tensor)[0] for rule in adapter.rules):
                yield f"scales name {name!r}, but no rule names {tensor}.{suggest(name, _modules(adapter))}"


def _default_problems(adapter: Adapter) -> Iterator[str]:
    """Problems of what an adapter says on methods: its wavelets and its learning rate."""
    wavelets, rate = adapter.wavelets, adapter.learning_rate
    if not isinstance(wavelets, (tuple, list)) or len(wavelets) != 2:
        yield f"wavelets must be two names, to shrink and to grow, such as ('haar', 'db2'), got {wavelets!r}."
    else:
        yield from (
            f"wavelets has {n!r}, which is none of PyWavelets'.{suggest(n, NAMES)}" for n in wavelets if n not in NAMES
        )
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf):
        yield f"learning_rate must be None or a number above 0, got {rate!r}."


Case = tuple[
    str, Any, str, Callable[[Any], bool]
]  # whose function it is, the function, what it returns, a test of that


def _function_problems(adapter: Adapter) -> Iterator[str]:
    """Functions of an adapter that fail with the default config of its type, or return what they must not."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[adapter.model_type]()
    holds = [
        ("holds of a variant", v.holds, "True or False", lambda made: isinstance(made, bool)) for v in adapter.variants
    ]
    yield from _calls(holds, config)
    own = adapter.of(config)  # a variant's functions may need fields that other configs have not
    yield from _calls(_functions(own), config)
    clash = own.clash
    if not callable(clash):
        yield from _calls([] if clash is None else [("clash", clash, "", _is_text)], config)
        return
    role = own.roles.streams[0]
    tensor = next(name for rule in own.rules if role in rule.roles for name in names_of_rule(rule))
    named = partial(clash, role, re.sub(DEPTH, "0", tensor), config)
    yield from _calls([("clash", named, "a text or None", _is_text)], config)


def _calls(cases: Iterable[Case], config: Any) -> Iterator[str]:
    """Problems of functions that are called with a config."""
    name = f"{type(config).__name__}()"
    for owner, function, wanted, fits in cases:
        if not callable(function):
            yield f"{owner} must be a function of the config, got {function!r}."
            continue
        try:
            made = function(config)
        except Exception as error:  # a function of somebody else's may raise anything
            why = f"{type(error).__name__}: {error}"
            yield f"{owner} fails for {name}: {why}. It must work for every config of the type."
            continue
        if not fits(made):
            yield f"{owner} returns {made!r} for {name}, but it must be {wanted}."


def _functions(adapter: Adapter) -> Iterator[Case]:
    """Every function of a config that an adapter has, but those of its variants."""
    for role in adapter.roles.values():
        of = f"of role {role.name!r}"
        if callable(role.size):
            yield f"the size {of}", role.size, "a whole number or None", lambda made: made is None or _is_count(made)
        for name, function in (("stays", role.stays), ("empty", role.empty)):
            if function is not None:
                yield f"{name} {of}", function, "a text, which is empty if nothing is wrong", _is_text
        if role.anchored is not None:
            yield f"anchored {of}", role.anchored, "a whole number", _is_count
        for layers in role.numbered:
            yield f"numbers {of}", layers.numbers, "whole numbers", _are_counts
    for name, gain in adapter.gains.items():
        yield f"gains of {name!r}", gain, "a number above 0 or None", lambda made: made is None or _is_factor(made)
    for where, table in (("derived", adapter.derived), ("only", adapter.only)):
        for name, function in table.items():
            if callable(function):
                yield f"{where} of {name!r}", function, "", lambda _: True
    for check in adapter.checks:
        yield "checks", check, "None or two texts", _is_advice


def _is_text(made: Any) -> bool:
    return made is None or isinstance(made, str)


def _is_count(made: Any) -> bool:
    return isinstance(made, Integral) and not isinstance(made, bool)


def _are_counts(made: Any) -> bool:
    return isinstance(made, Collection) and all(map(_is_count, made))


def _is_advice(made: Any) -> bool:
    return made is None or (isinstance(made, (tuple, list)) and len(made) == 2 and all(map(_is_text, made)))


def _is_factor(made: Any) -> bool:
    return isinstance(made, Real) and not isinstance(made, bool) and 0 < float(made) < math.inf


def _rules_of(adapter: Adapter, module: str) -> list[Rule]:
    """The rules of a module's weight, or of a parameter that has this name itself."""
    name = re.sub(DEPTH, "0", module)
    return [rule for rule in adapter.rules if rule.match(f"{name}.weight")[0] or rule.match(name)[0]]


def _modules(adapter: Adapter) -> list[str]:
    """The names of all modules with a weight, as an adapter writes them."""
    every = (name for rule in adapter.rules for name in names_of_rule(rule))
    return sorted({name.removesuffix(".weight") for name in every if name.endswith(".weight")})


def names_of_rule(rule: Rule) -> list[str]:
    """The names of the tensors of a rule, with the layer's number left open."""
    return [name for pattern in rule.names.split("|") for name in _alternatives(pattern.strip())]


def _alternatives(pattern: str) -> Iterable[str]:
    """The names that a pattern stands for, with the layer's number left open.

    >>> list(_alternatives("h.{layer}.{fc,out}"))
    ['h.{layer}.fc', 'h.{layer}.out']
    """
    parts = re.split(r"(\{[^{}]*\})", pattern)
    choices = [part[1:-1].split(",") if "," in part and part.startswith("{") else [part] for part in parts]
    return ("".join(choice) for choice in itertools.product(*choices))
