"""Checks that an adapter fits the models of its type: every tensor has one rule, with the right shape and roles."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ...architectures.adapter import Adapter, Sizes
from ...architectures.inventory import Inventory, own_class, predict
from ...architectures.sizes import get_field, rebuild, role_sizes, size_fields
from ...architectures.tiny import random_model
from ...architectures.valid import validate
from ...compat import quiet
from ...errors import BadOption, BoTError
from .grown import change_by_folding, changes_by_doubling
from .permuted import wrong_roles

LAYERS = 2  # enough for layer numbers in names, and quick to build
HEADS, WIDTH, FFN = 3, 4, 20  # of the tiny models that are run
ModelClass = type[PreTrainedModel]


@dataclass
class Check:
    """The result of `check`.

    Attributes:
        classes: the model classes whose tensors were compared with the rules.
        tensors: number of their tensors together, with two layers.
        run: the classes that were run.
        problems: sentences; empty if the adapter fits.
        notes: parts that could not be checked, and rules that match no tensor.
    """

    classes: list[str] = field(default_factory=list)
    tensors: int = 0
    run: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    candidates = [getattr(transformers, name, None) for name in class_names(config.model_type)]
    classes: list[ModelClass] = list(
        dict.fromkeys([own_class(config), *(model_class for model_class in candidates if model_class is not None)])
    )
    result, used = Check(), set()
    with quiet():
        for model_class in classes:
            used |= _compare(adapter, model_class, config, result)
        if not result.problems:
            _run(
                adapter,
                [model_class for model_class in classes if model_class.__name__ in result.classes],
                config,
                result,
            )
    if not result.run and not result.problems:  # shapes alone cannot distinguish the axes of a square matrix
        result.problems.append(
            "no model could be run (see the notes), so nothing shows that axes have the right roles; check with "
            "--model and a config whose model class has outputs of its own"
        )
    idle = [" ".join(rule.text.split()) for rule in adapter.rules if rule.text not in used]
    result.notes += [f"rule {text!r} names no tensor of these classes" for text in idle if not result.problems]
    return result


def _compare(adapter: Adapter, model_class: ModelClass, config: PreTrainedConfig, result: Check) -> set[str]:
    """Compare the rules with the tensors of a class, with each size as it is and doubled; return the rules used."""
    name = model_class.__name__
    try:
        small = rebuild(adapter, config, {adapter.roles[stack].field: LAYERS for stack in adapter.roles.depths})
        inventory = predict(model_class, small)
    except BoTError as error:
        result.notes.append(f"{name} was not compared: {error}")
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
            larger = rebuild(adapter, small, {entry: length})
            sizes, doubled = role_sizes(adapter, larger, "source"), predict(model_class, larger)
        except BoTError as error:
            result.notes.append(f"{name} was not compared with {entry}={length}: {error}")
            continue
        if role in used_roles(adapter, inventory) and doubled.shapes == inventory.shapes:
            problems.append(f"{name}: {entry} is the size of {role}, but doubling it changes no tensor")
        problems += [f"{text}, with {entry}={length}" for text in _misfits(adapter, doubled, sizes)]
    result.problems += [text for text in dict.fromkeys(problems) if text not in result.problems]
    return used


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
        rules = [rule for rule in adapter.rules if rule.match(inventory.canonical(name))[0]]
        where = f"{inventory.model_class}: tensor {name!r} of shape {'x'.join(map(str, shape))}"
        if not rules:
            yield f"{where} is named by no rule"
        elif len(rules) > 1:
            yield f"{where} is named by {len(rules)} rules: {'; '.join(' '.join(rule.text.split()) for rule in rules)}"
        elif rules[0].shape(sizes, shape) != shape:
            predicted = "x".join("?" if length < 0 else str(length) for length in rules[0].shape(sizes, shape))
            yield f"{where}, but its rule {' '.join(rules[0].text.split())!r} predicts {predicted}"


def _run(adapter: Adapter, classes: list[ModelClass], config: PreTrainedConfig, result: Check) -> None:
    """Run a tiny model of every class with each role permuted, with each size doubled, and with folded norms."""
    try:
        tiny = rebuild(adapter, config, tiny_fields(adapter))
        sizes = role_sizes(adapter, tiny, "source")
    except BoTError as error:
        result.notes.append(f"no model was run: {error}")
        return
    for model_class in classes:
        name = model_class.__name__
        try:
            model = random_model(model_class, tiny)
            wrong = wrong_roles(adapter, model, sizes)
            grown = {} if wrong else changes_by_doubling(adapter, model)
            folded = 0.0 if wrong or grown else change_by_folding(adapter, model)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            result.notes.append(f"{name} was not run: {' '.join(str(error).split())[:120]}")
            continue
        result.run.append(name)
        result.problems += [
            f"{name}: permuting {role} wherever the rules say it stands changes the outputs by {change:.0%}; an axis "
            "of some tensor has the wrong role"
            for role, change in wrong.items()
        ]
        result.problems += [
            f"{name}: doubling {what} changes the outputs by {change:.0%} but should not at all; an arrow points the "
            "wrong way, or a ~ is missing, or a role that follows another (queries and keys, a readout)"
            for what, change in grown.items()
        ]
        if folded:
            result.problems.append(
                f"{name}: folding the norms into the matrices that read them changes the outputs by {folded:.0%} but "
                "should not at all; a Norm names other readers than it has, or another gain"
            )


def tiny_fields(adapter: Adapter) -> dict[str, int]:
    """The config fields of a model that runs quickly."""
    roles = adapter.roles
    units = {unit: HEADS if roles.is_whole(unit) else FFN for unit in roles.units}
    streams = {stream: HEADS * WIDTH * (number + 1) for number, stream in enumerate(roles.streams)}  # none alike
    lengths = {**dict.fromkeys(roles.depths, LAYERS), **streams, **units}
    return {str(roles[role].size): length for role, length in lengths.items() if isinstance(roles[role].size, str)}
