"""From a config to a model class, by transformers' own task mappings."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ..errors import BadCheckpoint, BadOption, UnsupportedArchitecture, check_writable, suggest
from ..tasks import TASKS

ModelClass = type[PreTrainedModel]


def own_class(config: PreTrainedConfig) -> ModelClass:
    """The class that a config names as its architecture, the base model if it names none that transformers has.

    Raises:
        BadCheckpoint: a class of another model type.
    """
    return named_class(config) or class_in_mapping("MODEL_MAPPING", config, "plan")


def named_class(config: PreTrainedConfig) -> ModelClass | None:
    """The class that a config names as its architecture, None if it names none that transformers has.

    Raises:
        BadCheckpoint: a class of another model type.
    """
    for name in config.architectures or []:
        # Anything may stand there: what is no model with a forward of its own is nobody's business.
        found: Any = getattr(transformers, name, None) if isinstance(name, str) else None
        is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
        if not is_model or found.forward is nn.Module.forward:
            continue
        if found.config_class is not type(config):
            raise BadCheckpoint(
                f"architectures in config.json names {name}, which is no {config.model_type} model. Correct that field."
            )
        return cast(ModelClass, found)
    return None


def class_in_mapping(mapping: str, config: PreTrainedConfig, asked_by: str) -> ModelClass:
    """Look a config up in one of transformers' task mappings, as the Auto classes do."""
    table = getattr(modeling_auto, mapping)
    if type(config) not in table:
        raise UnsupportedArchitecture(
            f"transformers has no head of {config.model_type} models for {asked_by}. "
            f"Use {' or '.join(_factories(config)) or 'a supported model type'}."
        )
    found = table[type(config)]
    if not isinstance(found, (list, tuple)):
        return cast(ModelClass, found)
    # Several classes share a task (DeiT with and without a teacher): the config names its own.
    named = {candidate.__name__: candidate for candidate in found}
    chosen = next((named[a] for a in config.architectures or [] if a in named), found[0])
    return cast(ModelClass, chosen)


def class_for_task(task: str | None) -> Callable[[PreTrainedConfig], ModelClass]:
    """How the class of a task follows from a config; without a task it is the config's own.

    Raises:
        BadOption: no such task, with the nearest one.
    """
    if task is None:
        return own_class
    check_writable({"task": task})
    if task not in TASKS:
        raise BadOption(f"task must be one of {', '.join(TASKS)}, got {task!r}.{suggest(task, TASKS)}")
    return partial(_class_for, task)


def _class_for(task: str, config: PreTrainedConfig) -> ModelClass:
    return class_in_mapping(TASKS[task].mapping, config, TASKS[task].factory)


def tasks_of(config: PreTrainedConfig, model_class: ModelClass) -> list[str]:
    """The tasks whose class for this config is `model_class`."""
    tables = ((name, getattr(modeling_auto, task.mapping)) for name, task in TASKS.items())
    known = ((name, table[type(config)]) for name, table in tables if type(config) in table)
    return [name for name, found in known if model_class is (found[0] if isinstance(found, (list, tuple)) else found)]


def _factories(config: PreTrainedConfig) -> list[str]:
    """The factories that have a class for this model type."""
    tables = ((task.factory, getattr(modeling_auto, task.mapping)) for task in TASKS.values())
    return [name for name, table in tables if type(config) in table]


def auto_class_of(config: PreTrainedConfig, model_class: str) -> tuple[str, str] | None:
    """The task and the Auto class that make a class of this name; None where no Auto class does."""
    for name, task in TASKS.items():
        try:
            made = _class_for(name, config).__name__
        except UnsupportedArchitecture:
            continue  # this model type has no such head
        if made == model_class:
            return name, task.auto_class
    return None
