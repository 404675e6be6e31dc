"""Finds the class that wrote a checkpoint from its tensors, if config.json does not name it.

A config whose `architectures` is missing, or names a class that transformers does not have, leaves open
whether a checkpoint is a base model or has a head. The names and shapes in its files decide: it is the class
of its model type that has exactly these tensors outside of the layers. If several classes have the same
tensors, the config's fields decide, and otherwise the caller has to.
"""

import copy
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures.adapter import Adapter, Rule, find_rule
from ..architectures.inventory import ModelClass, class_in_mapping, named_class, predict, tasks_of
from ..architectures.sizes import get_field, set_field, without_crossing
from ..compat import quiet
from ..errors import BadCheckpoint, BadOption, PlanError, UnsafeCheckpoint, UnsupportedCheckpoint
from ..io.checkpoint import Checkpoint
from ..io.files import is_folder, listed, shown_path
from .request import Call, Request

Named = TypeVar("Named", bound=Call)
Shapes = Mapping[str, tuple[int, ...]]
# Endings of names in older versions -> the endings that transformers reads them as. It renames them in checkpoints of
# every model type, so that no family has them as its own.
RENAMED = {".gamma": ".weight", ".beta": ".bias"}


def with_class(call: Named, *, fetch: bool = True) -> Named:
    """The call with the class of the source's weights, a note if it was found from the files, and these files.

    Args:
        fetch: download weights that only the Hub has, and raise if the files cannot be used; otherwise such a
            source stays as it is, and the note says so.

    Raises:
        BadOption: no class fits the tensors, or several do; the message names `task=`.
        What `check_files` raises.
    """
    config, name = call.source, call.name
    if named_class(config) is not None:
        return call
    reason, checkpoint = ("", call.files()) if fetch else _files_if_local(call)
    if checkpoint is None:
        return call.with_source(config, (_unseen(config, name, reason),))
    call = replace(call, checkpoint=checkpoint)
    adapter = call.adapter.of(config)
    fits = fitting_classes(adapter, config, checkpoint, call.keywords.strict)
    if len(fits) != 1:
        raise BadOption(_undecided(adapter, config, name, checkpoint, fits))
    note = f"config.json of {shown_path(name)} names no class that transformers has{_claimed(config)}; its tensors are "
    note += f"those of {fits[0].__name__}. If that is wrong, pass task=."
    return call.with_source(_with_class_name(config, fits[0]), (note,))


def seen_beside(request: Request) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tensors of a source's files that neither the result's class has nor the class that its own config names.

    Returns:
        Names of such tensors outside of the layers, and a sentence if the source names no class and its files
        could not be read.
    """
    adapter, config, model_class = request.adapter, request.source, request.class_for(request.source)
    written_by = named_class(config)
    reason, checkpoint = _files_if_local(request)
    if checkpoint is None:
        consequence = f"({reason}): what is beside {model_class.__name__} is open"
        return (), () if written_by else (
            f"the weights of {shown_path(request.name)} could not be looked at {consequence}",
        )
    base = class_in_mapping("MODEL_MAPPING", config, "the source")
    stored = _stored_tensors(adapter, base, checkpoint.shapes)
    classes = [model_class] if written_by is None else [model_class, written_by]
    expected = [_tensors_of(adapter, candidate, config) for candidate in dict.fromkeys(classes)]
    places = {place for tensors in expected if tensors is not None for place in (*tensors.shapes, *tensors.ties)}
    renamed = {find_rule(adapter.rules, place)[0] for place in places}
    beside = [
        name
        for name in stored.shapes
        if None not in expected and name not in places and not _is_renamed(find_rule(adapter.rules, name)[0], renamed)
    ]
    full_names = [f"{base.base_model_prefix}.{name}" for name in beside]
    beside = [full if full in checkpoint.shapes else name for full, name in zip(full_names, beside, strict=True)]
    # If strict, foreign tensors are refused, not left out.
    foreign = stored.foreign if written_by is None or not request.keywords.strict else ()
    return (*beside, *foreign), ()


def with_likely_class(
    adapter: Adapter, config: PreTrainedConfig, checkpoint: Checkpoint, preferred: ModelClass
) -> PreTrainedConfig:
    """The config naming the class of its weights if the files show it; of several classes, `preferred`."""
    if named_class(config) is not None:
        return config
    fits = fitting_classes(adapter, config, checkpoint, strict=False)
    if preferred in fits:
        return _with_class_name(config, preferred)
    return _with_class_name(config, fits[0]) if len(fits) == 1 else config


def fitting_classes(
    adapter: Adapter, config: PreTrainedConfig, checkpoint: Checkpoint, strict: bool = True
) -> list[ModelClass]:
    """The classes of a model type whose tensors outside of the layers are those of a checkpoint.

    If no class has all of them, those that lack only optional parts such as a pooler, which older versions of
    transformers saved with every head.

    Args:
        strict: a tensor that no class of the type has keeps every class from fitting.
    """
    base = class_in_mapping("MODEL_MAPPING", config, "the source")
    stored = _stored_tensors(adapter, base, checkpoint.shapes)
    if stored.foreign and strict:
        return []
    classes = {cls: _tensors_of(adapter, cls, config) for cls in _classes(base)}
    switches = dict.fromkeys(_switches(base))
    widest = _predicted_tensors(adapter, base, config, dict.fromkeys(switches, True))
    least = _predicted_tensors(adapter, base, config, dict.fromkeys(switches, False))
    body, optional = set(widest.shapes), set(widest.shapes) - set(least.shapes)
    fits = [cls for cls, tensors in classes.items() if tensors is not None and _has_head(tensors, stored.shapes, body)]
    parts = {cls: optional & set(tensors.shapes) for cls, tensors in classes.items() if tensors is not None}
    present = optional & set(stored.shapes)
    fits = [cls for cls in fits if parts[cls] == present] or [cls for cls in fits if parts[cls] <= present]
    if len(fits) > 1 and not set(stored.shapes) - body:  # a base model, or a head that is tied to it
        fits = [cls for cls in fits if (cls is not base) == stored.prefixed]
    return _chosen_by_fields(adapter, config, fits) if len(fits) > 1 else fits


def _files_if_local(call: Call) -> tuple[str, Checkpoint | None]:
    """The files of a folder, or the reason why they cannot be read."""
    if not is_folder(call.name):
        return "they are not here", None
    try:
        return "", call.files()
    except (BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint) as error:
        return str(error).rstrip("."), None


@dataclass(frozen=True)
class _Tensors:
    """Tensors outside of the layers, without the base model's prefix.

    Attributes:
        shapes: by name.
        ties: tied name -> the name that holds the tensor.
        prefixed: whether any name had the prefix.
        foreign: names that no model of the type has.
    """

    shapes: Shapes
    ties: Mapping[str, str]
    prefixed: bool
    foreign: tuple[str, ...] = ()


def _is_renamed(rule: Rule, known: Collection[Rule]) -> bool:
    """Whether a tensor's rule has several names for one tensor, of which transformers has renamed one to another."""
    return rule in known and "|" in rule.names and "," not in rule.names


def _stored_tensors(adapter: Adapter, base: ModelClass, stored: Shapes) -> _Tensors:
    """The tensors of a checkpoint's files outside of the layers."""
    prefix = f"{base.base_model_prefix}."
    outside: dict[str, tuple[int, ...]] = {}
    foreign = []
    for name, shape in stored.items():
        end = next((old for old in RENAMED if name.endswith(f"LayerNorm{old}")), "")
        canonical = (name.removesuffix(end) + RENAMED.get(end, "")).removeprefix(prefix)
        if adapter.is_left_out(canonical):
            continue
        try:
            _, layer = find_rule(adapter.rules, canonical)
        except PlanError:
            foreign.append(name)
        else:
            if layer is None:
                outside[canonical] = shape
    return _Tensors(outside, {}, any(name.startswith(prefix) for name in stored), tuple(foreign))


def _tensors_of(adapter: Adapter, model_class: ModelClass, config: PreTrainedConfig) -> _Tensors | None:
    """The tensors of a class outside of the layers; None if it cannot be built with this config.

    Nor is there a rule for the tensors of a class that is a part of others, such as one of two stacks.
    """
    try:
        return _predicted_tensors(adapter, model_class, config)
    except (BadOption, PlanError):
        return None


def _predicted_tensors(
    adapter: Adapter, model_class: ModelClass, config: PreTrainedConfig, init: Mapping[str, Any] | None = None
) -> _Tensors:
    """The tensors of a class outside of the layers, predicted without memory.

    Raises:
        BadOption: it cannot be built with this config.
    """
    shallow = copy.deepcopy(without_crossing(config))
    for stack in adapter.roles.depths:
        set_field(shallow, adapter.roles[stack].field, 1)
    with quiet():
        inventory = predict(model_class, shallow, init)
    canonical = {inventory.canonical(name): shape for name, shape in inventory.shapes.items()}
    outside = {name: shape for name, shape in canonical.items() if find_rule(adapter.rules, name)[1] is None}
    ties = {inventory.canonical(name): inventory.canonical(holder) for name, holder in inventory.ties.items()}
    return _Tensors(outside, ties, bool(inventory.prefix))


def _has_head(model: _Tensors, stored: Shapes, body: set[str]) -> bool:
    """Whether a class has the tensors of a checkpoint's head, and no others."""
    head = {name: shape for name, shape in model.shapes.items() if name not in body}
    if any(head.get(name) != shape for name, shape in stored.items() if name not in body):
        return False
    holders = {model.ties.get(name, name) for name in stored}
    return all(model.ties.get(name, name) in holders | body for name in head)


def _classes(base: ModelClass) -> list[ModelClass]:
    """All classes that transformers has for the model type of a base model."""
    members: list[Any] = list(vars(sys.modules[base.__module__]).values())
    models: list[ModelClass] = [
        model for model in members if isinstance(model, type) and issubclass(model, PreTrainedModel)
    ]
    return [
        model for model in models if model.config_class is base.config_class and model.forward is not nn.Module.forward
    ]


def _switches(base: ModelClass) -> list[str]:
    """The constructor's switches of optional parts, such as `add_pooling_layer`."""
    import inspect

    parameters = inspect.signature(base.__init__).parameters.values()
    return [parameter.name for parameter in parameters if isinstance(parameter.default, bool)]


def _chosen_by_fields(adapter: Adapter, config: PreTrainedConfig, fits: list[ModelClass]) -> list[ModelClass]:
    """Of several classes with the same tensors, those that the config's fields point to."""
    tasks = {model_class: tasks_of(config, model_class) for model_class in fits}
    masked_or_causal = {task for named in tasks.values() for task in named} & {"masked-lm", "causal-lm"}
    if len(masked_or_causal) == 2:
        is_causal = bool(adapter.causal_flag) and get_field(config, adapter.causal_flag or "", False)
        task_of_fields = "causal-lm" if is_causal else "masked-lm"
    elif getattr(config, "problem_type", None) is not None:
        task_of_fields = "sequence-classification"
    else:
        return fits
    return [model_class for model_class in fits if task_of_fields in tasks[model_class]] or fits


def _with_class_name(config: PreTrainedConfig, model_class: ModelClass) -> PreTrainedConfig:
    copied = copy.deepcopy(config)
    copied.architectures = [model_class.__name__]
    return copied


def _claimed(config: PreTrainedConfig) -> str:
    return f" (architectures is {listed(config.architectures)})" if config.architectures else ""


def _unseen(config: PreTrainedConfig, name: str, reason: str) -> str:
    base = class_in_mapping("MODEL_MAPPING", config, "the source").__name__
    return (
        f"config.json of {shown_path(name)} names no class that transformers has{_claimed(config)}, and its weights "
        f"could not be looked at ({reason}): {base} without a head is taken. For another, pass task=."
    )


def _undecided(
    adapter: Adapter, config: PreTrainedConfig, name: str, checkpoint: Checkpoint, fits: list[ModelClass]
) -> str:
    base = class_in_mapping("MODEL_MAPPING", config, "the source")
    begin = f"config.json of {shown_path(name)} names no class that transformers has{_claimed(config)}, and its tensors"
    if fits:
        candidates = [f"{model.__name__} ({_how(config, model)})" for model in fits]
        return f"{begin} are those of {' and of '.join(candidates)}. Say which it is."
    stored = _stored_tensors(adapter, base, checkpoint.shapes)
    expected = _predicted_tensors(adapter, base, config)
    odd = stored.foreign or tuple(name for name in stored.shapes if name not in expected.shapes)
    tasks = sorted({task for model in _classes(base) for task in tasks_of(config, model)})
    return (
        f"{begin} are those of no {config.model_type} class ({listed(list(odd[:3]))} beside the base model). "
        f"Pass task=, one of {', '.join(tasks)}; 'base' leaves the head out."
    )


def _how(config: PreTrainedConfig, model_class: ModelClass) -> str:
    """What a caller writes to choose a class."""
    tasks = tasks_of(config, model_class)
    return f"task={tasks[0]!r}" if tasks else f"architectures in config.json: {model_class.__name__!r}"
