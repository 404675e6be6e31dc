"""Whether an adapter fits the models of its type: every tensor named once, every shape and axis as they are."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ...architectures.adapter import Adapter, Sizes
from ...architectures.inventory import Inventory, own_class, predict
from ...architectures.sizes import rebuild, role_sizes, size_fields
from ...architectures.tiny import random_model
from ...architectures.valid import validate
from ...compat import quiet
from ...errors import BadOption, BoTError
from .grown import change_by_folding, changes_by_doubling
from .permuted import wrong_roles

LAYERS = 2  # enough to see a layer's number in a name, and quick to build
HEADS, WIDTH, FFN = 3, 4, 20  # of the tiny models that are run
ModelClass = type[PreTrainedModel]


@dataclass
class Check:
    """What was looked at and what is wrong.

    Attributes:
        classes: the model classes whose tensors were compared with the rules.
        tensors: how many tensors they have together, at two layers.
        run: those of the classes that were run.
        problems: sentences; empty if the adapter fits.
        notes: what could not be looked at, and rules that name nothing.
    """

    classes: list[str] = field(default_factory=list)
    tensors: int = 0
    run: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def class_names(model_type: str) -> list[str]:
    """The model classes that transformers' Auto classes have for a model type, the base model first.

    >>> class_names("gpt2")[:2]
    ['GPT2Model', 'GPT2LMHeadModel']
    """
    found: dict[str, None] = {}
    tables = [name for name in dir(modeling_auto) if name.startswith("MODEL_") and name.endswith("MAPPING_NAMES")]
    for name in sorted(tables, key=lambda table: table != "MODEL_MAPPING_NAMES"):
        entry = getattr(modeling_auto, name).get(model_type, ())
        found.update(dict.fromkeys((entry,) if isinstance(entry, str) else entry))
    return list(found)


def check(adapter: Adapter, config: PreTrainedConfig) -> Check:
    """Compare an adapter with the model classes of its type, at a config's sizes and at others.

    Nothing but a config is needed: models are built on the meta device, and tiny ones with random
    weights to see that permuting a role's entries wherever the rules say it stands, and doubling the
    width, leave the outputs as they are. Shapes alone cannot tell the axes of a square matrix apart.

    Args:
        config: of any model of that type.

    Raises:
        BadOption: an adapter that contradicts itself (see `validate`), or one for another model type.
    """
    validate(adapter)
    if config.model_type != adapter.model_type:
        raise BadOption(f"the adapter is for {adapter.model_type!r} and the model is a {config.model_type!r} model.")
    named = [getattr(transformers, name, None) for name in class_names(config.model_type)]
    classes: list[ModelClass] = list(dict.fromkeys([own_class(config), *(one for one in named if one is not None)]))
    done, used = Check(), set()
    with quiet():
        for model_class in classes:
            used |= _compare(adapter, model_class, config, done)
        if not done.problems:
            _run(adapter, [one for one in classes if one.__name__ in done.classes], config, done)
    if not done.run and not done.problems:  # shapes alone do not tell the axes of a square matrix apart
        done.problems.append(
            "no model could be run (see the notes), so nothing shows that axes have the right roles; check with "
            "--model and a config whose model class has outputs of its own"
        )
    idle = [" ".join(rule.text.split()) for rule in adapter.rules if rule.text not in used]
    done.notes += [f"rule {text!r} names no tensor of these classes" for text in idle if not done.problems]
    return done


def _compare(adapter: Adapter, model_class: ModelClass, config: PreTrainedConfig, done: Check) -> set[str]:
    """Rules against the tensors of one class, at the config's own sizes and with each one doubled; the rules used."""
    name = model_class.__name__
    try:
        small = rebuild(adapter, config, {adapter.roles[stack].field: LAYERS for stack in adapter.roles.depths})
        inventory = predict(model_class, small)
    except BoTError as error:
        done.notes.append(f"{name} was not compared: {error}")
        return set()
    done.classes.append(name)
    done.tensors += len(inventory.shapes)
    used = {rule.text for one in inventory.shapes for rule in adapter.rules if rule.match(inventory.canonical(one))[0]}
    found = list(_misfits(adapter, inventory, role_sizes(adapter, small, "source")))
    for entry, role in size_fields(adapter).items() if not found else ():
        if isinstance(getattr(small, entry), bool):
            continue
        twice = 2 * getattr(small, entry)
        try:
            larger = rebuild(adapter, small, {entry: twice})
            sizes, doubled = role_sizes(adapter, larger, "source"), predict(model_class, larger)
        except BoTError as error:
            done.notes.append(f"{name} was not compared with {entry}={twice}: {error}")
            continue
        if role in used_roles(adapter, inventory) and doubled.shapes == inventory.shapes:
            found.append(f"{name}: {entry} is the size of {role}, but doubling it changes no tensor")
        found += [f"{text}, with {entry}={twice}" for text in _misfits(adapter, doubled, sizes)]
    done.problems += [text for text in dict.fromkeys(found) if text not in done.problems]
    return used


def used_roles(adapter: Adapter, inventory: Inventory) -> set[str]:
    """The roles that stand alone on an axis of some tensor, so that their length shows in its shape."""
    found = set()
    for name in inventory.shapes:
        for rule in adapter.rules:
            if rule.match(inventory.canonical(name))[0]:
                alone = (axis.segments[0] for axis in rule.axes if len(axis.segments) == 1)
                found |= {segment[0].role for segment in alone if len(segment) == 1}
    return found - {""}


def _misfits(adapter: Adapter, inventory: Inventory, sizes: Sizes) -> Iterator[str]:
    """Tensors that no rule names, that several name, or that have another shape than predicted."""
    for name, shape in inventory.shapes.items():
        rules = [rule for rule in adapter.rules if rule.match(inventory.canonical(name))[0]]
        where = f"{inventory.model_class}: tensor {name!r} of shape {'x'.join(map(str, shape))}"
        if not rules:
            yield f"{where} is named by no rule"
        elif len(rules) > 1:
            yield f"{where} is named by {len(rules)} rules: {'; '.join(' '.join(rule.text.split()) for rule in rules)}"
        elif rules[0].shape(sizes, shape) != shape:
            predicted = "x".join("?" if one < 0 else str(one) for one in rules[0].shape(sizes, shape))
            yield f"{where}, but its rule {' '.join(rules[0].text.split())!r} predicts {predicted}"


def _run(adapter: Adapter, classes: list[ModelClass], config: PreTrainedConfig, done: Check) -> None:
    """Run tiny models of every class, with one role permuted after the other and at twice the width."""
    try:
        tiny = rebuild(adapter, config, tiny_fields(adapter))
        sizes = role_sizes(adapter, tiny, "source")
    except BoTError as error:
        done.notes.append(f"no model was run: {error}")
        return
    for model_class in classes:
        name = model_class.__name__
        try:
            model = random_model(model_class, tiny)
            wrong = wrong_roles(adapter, model, sizes)
            grown = {} if wrong else changes_by_doubling(adapter, model)
            folded = 0.0 if wrong or grown else change_by_folding(adapter, model)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            done.notes.append(f"{name} was not run: {' '.join(str(error).split())[:120]}")
            continue
        done.run.append(name)
        done.problems += [
            f"{name}: permuting {role} wherever the rules say it stands changes the outputs by {change:.0%}; an axis "
            "of some tensor has the wrong role"
            for role, change in wrong.items()
        ]
        done.problems += [
            f"{name}: doubling {what} changes the outputs by {change:.0%} but should not at all; an arrow points the "
            "wrong way, or a ~ is missing, or a role that follows another (queries and keys, a readout)"
            for what, change in grown.items()
        ]
        if folded:
            done.problems.append(
                f"{name}: folding the norms into the matrices that read them changes the outputs by {folded:.0%} but "
                "should not at all; a Norm names other readers than it has, or another gain"
            )


def tiny_fields(adapter: Adapter) -> dict[str, int]:
    """Config fields of a model that is quickly run."""
    roles = adapter.roles
    units = {unit: HEADS if roles.is_whole(unit) else FFN for unit in roles.units}
    lengths = {**dict.fromkeys(roles.depths, LAYERS), **dict.fromkeys(roles.streams, HEADS * WIDTH), **units}
    return {str(roles[role].size): length for role, length in lengths.items() if isinstance(roles[role].size, str)}
