"""Checks that an adapter fits the models of its type: every tensor has one rule, with the right shape and roles."""

import difflib
import importlib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ...architectures.adapter import DEPTH, Adapter, Sizes, find_rule, matching_rules
from ...architectures.inventory import Inventory, own_class, predict
from ...architectures.sizes import check_fields, fields_for, get_field, rebuild, role_sizes, size_fields
from ...architectures.valid import names_of_rule, older_fields, validate
from ...compat import quiet
from ...errors import BadOption, BoTError, UnsupportedArchitecture
from .running import LAYERS, Sentences, try_models

CLOSE = 0.9  # of letters in common: the name of a rule that is misspelt, rather than another tensor's
ModelClass = type[PreTrainedModel]


@dataclass
class Check:
    """The result of `check`.

    Attributes:
        classes: the model classes whose tensors were compared with the rules.
        tensors: number of their tensors together, with two layers.
        run: the classes that were run.
        tried: class -> what was tried with a tiny model of it.
        not_run: class -> why it could not be built or run.
        problems: sentences; empty if the adapter fits.
        notes: parts that could not be checked, and rules that match no tensor.
    """

    classes: list[str] = field(default_factory=list)
    tensors: int = 0
    run: list[str] = field(default_factory=list)
    tried: dict[str, list[str]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempts(self) -> list[str]:
        """What was tried, a line for all classes with which the same was tried."""
        told = Sentences()
        for name, tried in self.tried.items():
            told.add(name, "; ".join(tried) or "nothing beyond the first step that found a problem")
        return told.lines()

    def failures(self) -> list[str]:
        """Why classes could not be run, a line for all classes with the same reason."""
        told = Sentences()
        for name, why in self.not_run.items():
            told.add(name, why)
        return told.lines()


def class_names(model_type: str) -> list[str]:
    """The classes of a model type in transformers' Auto classes, the base model first.

    >>> class_names("gpt2")[:2]
    ['GPT2Model', 'GPT2LMHeadModel']
    """
    names: dict[str, None] = {}
    tables = [name for name in dir(modeling_auto) if name.startswith("MODEL_") and name.endswith("MAPPING_NAMES")]
    for name in sorted(tables, key=lambda table: table != "MODEL_MAPPING_NAMES"):
        entry = getattr(modeling_auto, name).get(model_type, ())
        names.update(dict.fromkeys((entry,) if isinstance(entry, str) else entry))
    return list(names)


def check(adapter: Adapter, config: PreTrainedConfig) -> Check:
    """Compare an adapter with the model classes of its type, at a config's sizes and at others.

    Only a config is needed. Models are built on the meta device to compare shapes. Tiny models with random weights are
    run to see that their outputs stay the same if the entries of a role are permuted on all axes that the rules name,
    and if the width is doubled: shapes alone cannot distinguish the axes of a square matrix.

    Args:
        config: of any model of that type.

    Raises:
        BadOption: the adapter contradicts itself (see `validate`), or is for another model type.
    """
    validate(adapter)
    if config.model_type != adapter.model_type:
        raise BadOption(f"the adapter is for {adapter.model_type!r} and the model is a {config.model_type!r} model.")
    adapter = adapter.of(config)
    classes = list(dict.fromkeys([*_own(config), *classes_of(config)]))
    try:
        check_fields(adapter, config, "given")
        role_sizes(adapter, config, "given")
    except BoTError as error:
        return Check(problems=[f"the adapter refuses this config: {error} Name one that it is for with --model."])
    result, used = Check(), set()
    problems, notes = Sentences(), Sentences()
    with quiet():
        for model_class in classes:
            used |= _compare(adapter, model_class, config, result, problems, notes)
        result.problems, result.notes = problems.lines(), notes.lines()
        if not result.problems:
            _run(adapter, [each for each in classes if each.__name__ in result.classes], config, result)
    if not result.problems:
        result.problems += _nothing_done(result)
        result.notes += _idle(adapter, config, used)
    return result


def _own(config: PreTrainedConfig) -> Iterator[ModelClass]:
    """The class that a config names, or the base model; none if transformers' Auto classes do not have it."""
    with suppress(UnsupportedArchitecture):
        yield own_class(config)


def classes_of(config: PreTrainedConfig) -> Iterator[ModelClass]:
    """The classes of a model type: those of transformers' Auto classes, then others that take its config."""
    names = class_names(config.model_type)
    for name in (*names, *(name for name in dir(_module_of(config)) if name not in names)):
        model_class: Any = getattr(transformers, name, None)
        is_model = isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)
        if is_model and model_class.forward is not nn.Module.forward and model_class.config_class is type(config):
            yield model_class


def _module_of(config: PreTrainedConfig) -> object:
    """The module with the models of a config; None if it has none."""
    name = type(config).__module__.replace(".configuration_", ".modeling_")
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _nothing_done(result: Check) -> Iterator[str]:
    if not result.classes:
        yield (
            "no model could be built, so nothing was compared; check with --model and a config whose "
            "architectures name a class"
        )
    elif not result.run:  # shapes alone cannot distinguish the axes of a square matrix
        yield (
            "no model could be run, so nothing shows that axes have the right roles; check with "
            "--model and a config whose model class has outputs of its own"
        )


def _idle(adapter: Adapter, config: PreTrainedConfig, used: set[str]) -> Iterator[str]:
    """Notes on what an adapter says of nothing here: rules without a tensor, and fields that the config lacks."""
    rules = [repr(" ".join(rule.text.split())) for rule in adapter.rules if rule.text not in used]
    if rules:
        yield f"rules without a tensor in these classes: {', '.join(rules)}"
    fields = [f"{name!r} ({where})" for name, where in older_fields(adapter, config)]
    if fields:
        yield f"fields that {type(config).__name__} does not have in this version: {', '.join(fields)}"


def _compare(
    adapter: Adapter,
    model_class: ModelClass,
    config: PreTrainedConfig,
    result: Check,
    told: Sentences,
    notes: Sentences,
) -> set[str]:
    """Compare the rules with the tensors of a class, with each size as it is and doubled; return the rules used."""
    name = model_class.__name__
    try:
        adapter.refuse(name)
        small = rebuild(adapter, config, {adapter.roles[stack].field: LAYERS for stack in adapter.roles.depths})
        inventory = predict(model_class, small)
    except BoTError as error:
        result.not_run[name] = str(error).removeprefix(f"{name} ")
        return set()
    result.classes.append(name)
    result.tensors += len(inventory.shapes)
    used = {
        rule.text for tensor in inventory.shapes for rule in adapter.rules if rule.match(inventory.canonical(tensor))[0]
    }
    problems = list(_misfits(adapter, inventory, role_sizes(adapter, small, "source")))
    for entry, role in size_fields(adapter).items() if not problems else ():
        if isinstance(get_field(small, entry), bool):
            continue
        length = 2 * get_field(small, entry)
        try:
            sizes, doubled = _doubled(adapter, model_class, small, {entry: length, **_members(adapter, small, role)})
        except BoTError as error:
            notes.add(name, f"not compared with {entry}={length}, because {error}")
            continue
        if role in used_roles(adapter, inventory) and doubled.shapes == inventory.shapes:
            problems.append(f"{entry} is the size of {role}, but doubling it changes no tensor")
        problems += [f"{text}, with {entry}={length}" for text in _misfits(adapter, doubled, sizes)]
    for text in problems:
        told.add(name, text)
    return used


def _doubled(
    adapter: Adapter, model_class: ModelClass, config: PreTrainedConfig, fields: dict[str, int]
) -> tuple[Sizes, Inventory]:
    """The lengths and tensors with these fields; if that is refused, as where heads would be too short, with streams
    of twice the width, too.
    """
    streams = (adapter.roles[stream].field for stream in adapter.roles.streams)
    wide = {name: 2 * get_field(config, name) for name in streams}
    try:
        wider = rebuild(adapter, config, fields)
        return role_sizes(adapter, wider, "source"), predict(model_class, wider)
    except BoTError:
        wider = rebuild(adapter, config, {**wide, **fields})
        return role_sizes(adapter, wider, "source"), predict(model_class, wider)


def _members(adapter: Adapter, config: PreTrainedConfig, group: str) -> dict[str, int]:
    """The fields of the members of twice as many groups, such as the queries of key-value heads."""
    lengths = role_sizes(adapter, config, "source")
    roles = adapter.roles
    members = {unit: lengths[unit] for unit in roles.of("unit") if roles[unit].within == group}
    return fields_for(roles, {**members, group: 2 * (lengths[group] or 1)}) if members else {}


def used_roles(adapter: Adapter, inventory: Inventory) -> set[str]:
    """The roles that are alone on an axis of some tensor, so that its shape shows their length."""
    roles = set()
    for name in inventory.shapes:
        for rule in adapter.rules:
            if rule.match(inventory.canonical(name))[0]:
                single = (axis.segments[0] for axis in rule.axes if len(axis.segments) == 1)
                roles |= {segment[0].role for segment in single if len(segment) == 1}
    return roles - {""}


def _misfits(adapter: Adapter, inventory: Inventory, sizes: Sizes) -> Iterator[str]:
    """A line for every tensor that has no rule, several rules, or another shape than its rule predicts."""
    for name, shape in inventory.shapes.items():
        rules = [rule for rule, _ in matching_rules(adapter.rules, inventory.canonical(name), sizes)]
        where = f"tensor {inventory.canonical(name)!r} of shape {'x'.join(map(str, shape))}"
        if not rules:
            yield f"{where} is named by no rule{_misspelt(adapter, inventory, name)}"
        elif len(rules) > 1:
            yield f"{where} is named by {len(rules)} rules: {'; '.join(' '.join(rule.text.split()) for rule in rules)}"
        elif rules[0].shape(sizes, shape) != shape:
            predicted = "x".join("?" if length < 0 else str(length) for length in rules[0].shape(sizes, shape))
            yield f"{where}, but its rule {' '.join(rules[0].text.split())!r} predicts {predicted}"


def _misspelt(adapter: Adapter, inventory: Inventory, name: str) -> str:
    """A clause on a rule for no tensor of this model that was probably meant for this one."""
    tensors = [inventory.canonical(tensor) for tensor in inventory.shapes]
    for rule in adapter.rules:
        if not any(rule.match(tensor)[0] for tensor in tensors):
            if rule.match(name)[0]:
                return f"; rules leave out the prefix {inventory.prefix!r} of the base model"
            written = [re.sub(DEPTH, "0", each) for each in names_of_rule(rule)]
            if difflib.get_close_matches(re.sub(r"\.\d+\.", ".0.", inventory.canonical(name)), written, cutoff=CLOSE):
                return f"; is it meant by {' '.join(rule.text.split())!r}?"
    return ""


def _run(adapter: Adapter, classes: list[ModelClass], config: PreTrainedConfig, result: Check) -> None:
    """Run tiny models of the classes."""
    try:
        trial = try_models(adapter, classes, config)
    except BoTError as error:
        result.not_run |= dict.fromkeys(result.classes, str(error))
        return
    result.run, result.tried = trial.run, trial.tried
    result.not_run |= trial.not_run
    result.problems += [*_about_readout(adapter, classes, config), *trial.problems.lines()]


def _about_readout(adapter: Adapter, classes: list[ModelClass], config: PreTrainedConfig) -> Iterator[str]:
    """Whether `readout` is right: a role of the base model that follows the stream, in a family with tied heads."""
    inventories = [predict(model_class, config) for model_class in classes]
    base = next((inventory for inventory in inventories if not inventory.prefix), None)
    if base is None or not any(inventory.ties for inventory in inventories):
        return
    roles = adapter.roles
    sizes = role_sizes(adapter, config, "given")
    rules = [find_rule(adapter.rules, base.canonical(name), sizes)[0] for name in base.shapes]
    used = {role for rule in rules for role in rule.roles}
    followers = [role for role in used if roles.is_network_wide(role) and roles.leader(role) != role]
    if bool(followers) != adapter.readout:
        have = f"has the role {' and '.join(followers)}" if followers else "has no role that follows a stream"
        yield (
            f"{base.model_class}: the base model {have}: set readout={bool(followers)}, so that it is resized without "
            "its head as it is with a head that is tied to the embeddings"
        )
