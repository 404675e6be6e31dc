"""Which class wrote a checkpoint, told by its tensors where config.json does not say.

A config whose `architectures` is missing, or names a class that transformers does not have, leaves open
whether a checkpoint is a base model or has a head. The names and shapes in its files tell: of the classes
of its model type, the one that has exactly these tensors outside of the layers. Some classes have the same
tensors; where the config does not tell them apart either, the caller has to.
"""

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures import Adapter
from ..architectures.axes import find_rule
from ..architectures.inventory import ModelClass, class_in_mapping, named_class, predict, tasks_of
from ..architectures.sizes import without_crossing
from ..compat import quiet
from ..errors import BadCheckpoint, BadOption, PlanError, UnsafeCheckpoint, UnsupportedCheckpoint
from ..io.checkpoint import Checkpoint, check_files
from ..io.files import is_folder, listed, shown_path
from .request import Keywords, Request

Shapes = Mapping[str, tuple[int, ...]]
# Names of older versions, as transformers reads them.
RENAMED = {".gamma": ".weight", ".beta": ".bias"}


def with_class(request: Request, *, fetch: bool = True) -> Request:
    """The request with the class of the source's weights, and a note where the files had to tell it.

    Args:
        fetch: download weights that only the Hub has, and raise what is wrong with the files; without, what
            cannot be looked at leaves the source as it is, and the note says so.

    Raises:
        What `told_class` raises.
    """
    config, notes = told_class(request.adapter, request.source, request.name, request.keywords, fetch=fetch)
    return request.with_source(config, notes) if notes else request


def told_class(
    adapter: Adapter, config: PreTrainedConfig, name: str, keywords: Keywords, *, fetch: bool = True
) -> tuple[PreTrainedConfig, tuple[str, ...]]:
    """The source's config naming the class of its weights, and a sentence where the files had to tell it.

    Args:
        fetch: as in `with_class`.

    Raises:
        BadOption: no class fits the tensors, or several do; the message names `task=`.
        What `check_files` raises.
    """
    if named_class(config) is not None:
        return config, ()
    reason, checkpoint = ("", _check(name, keywords)) if fetch else _checked(name, keywords)
    if checkpoint is None:
        return config, (_unseen(config, name, reason),)
    fits = fitting_classes(adapter, config, checkpoint, keywords.strict)
    if len(fits) != 1:
        raise BadOption(_undecided(adapter, config, name, checkpoint, fits))
    told = f"config.json of {shown_path(name)} names no class that transformers has{_named(config)}; its tensors are "
    return _naming(config, fits[0]), (f"{told}those of {fits[0].__name__}. If that is wrong, pass task=.",)


def seen_beside(request: Request) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a source's files hold beside the class of a result and the one that its own config names, if it does.

    Returns:
        Names of tensors outside of the layers, and a sentence where the files of a source that names no class
        could not be looked at.
    """
    adapter, config, model_class = request.adapter, request.source, request.class_for(request.source)
    named = named_class(config)
    reason, checkpoint = _checked(request.name, request.keywords)
    if checkpoint is None:
        open_still = f"({reason}): what is beside {model_class.__name__} is open"
        return (), () if named else (f"the weights of {shown_path(request.name)} could not be looked at {open_still}",)
    base = class_in_mapping("MODEL_MAPPING", config, "the source")
    held = _held(adapter, base, checkpoint.shapes)
    classes = [model_class] if named is None else [model_class, named]
    known = [_outside(adapter, one, config) for one in dict.fromkeys(classes)]
    places = {place for has in known if has is not None for place in (*has.shapes, *has.ties)}
    beside = [one for one in held.shapes if None not in known and one not in places]
    stored = [f"{base.base_model_prefix}.{one}" for one in beside]
    beside = [whole if whole in checkpoint.shapes else one for whole, one in zip(stored, beside, strict=True)]
    foreign = held.foreign if named is None or not request.keywords.strict else ()  # what is refused is not left out
    return (*beside, *foreign), ()


def with_likely_class(
    adapter: Adapter, config: PreTrainedConfig, checkpoint: Checkpoint, wanted: ModelClass
) -> PreTrainedConfig:
    """The config naming the class of its weights if the files tell it; of several, the one that is `wanted`."""
    if named_class(config) is not None:
        return config
    fits = fitting_classes(adapter, config, checkpoint, strict=False)
    if wanted in fits:
        return _naming(config, wanted)
    return _naming(config, fits[0]) if len(fits) == 1 else config


def fitting_classes(
    adapter: Adapter, config: PreTrainedConfig, checkpoint: Checkpoint, strict: bool = True
) -> list[ModelClass]:
    """The classes of a model type whose tensors outside of the layers are those of a checkpoint.

    First those that have all of them; if there is none, those that lack at most a pooler or the like, which
    older versions of transformers saved with every head.

    Args:
        strict: a tensor that no class of the type has keeps every class from fitting.
    """
    base = class_in_mapping("MODEL_MAPPING", config, "the source")
    held = _held(adapter, base, checkpoint.shapes)
    if held.foreign and strict:
        return []
    classes = {one: _outside(adapter, one, config) for one in _classes(base)}
    switches = dict.fromkeys(_switches(base))
    widest = _built(adapter, base, config, dict.fromkeys(switches, True))
    least = _built(adapter, base, config, dict.fromkeys(switches, False))
    body, optional = set(widest.shapes), set(widest.shapes) - set(least.shapes)
    fits = [one for one, has in classes.items() if has is not None and _has_head(has, held.shapes, body)]
    parts = {one: optional & set(has.shapes) for one, has in classes.items() if has is not None}
    here = optional & set(held.shapes)
    fits = [one for one in fits if parts[one] == here] or [one for one in fits if parts[one] <= here]
    if len(fits) > 1 and not set(held.shapes) - body:  # a base model, or a head that is tied to it
        fits = [one for one in fits if (one is not base) == held.prefixed]
    return _told_by_fields(config, fits) if len(fits) > 1 else fits


def _check(name: str, keywords: Keywords) -> Checkpoint:
    return check_files(name, keywords.of_files, allow_pickle=keywords.allow_pickle)


def _checked(name: str, keywords: Keywords) -> tuple[str, Checkpoint | None]:
    """The files of a folder, or why they cannot be looked at."""
    if not is_folder(name):
        return "they are not here", None
    try:
        return "", _check(name, keywords)
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


def _held(adapter: Adapter, base: ModelClass, stored: Shapes) -> _Tensors:
    """What a checkpoint's files hold."""
    prefix = f"{base.base_model_prefix}."
    outside: dict[str, tuple[int, ...]] = {}
    foreign = []
    for name, shape in stored.items():
        end = next((old for old in RENAMED if name.endswith(f"LayerNorm{old}")), "")
        plain = (name.removesuffix(end) + RENAMED.get(end, "")).removeprefix(prefix)
        if adapter.is_left_out(plain):
            continue
        try:
            _, layer = find_rule(adapter.rules, plain)
        except PlanError:
            foreign.append(name)
        else:
            if layer is None:
                outside[plain] = shape
    return _Tensors(outside, {}, any(name.startswith(prefix) for name in stored), tuple(foreign))


def _outside(adapter: Adapter, model_class: ModelClass, config: PreTrainedConfig) -> _Tensors | None:
    """What a class has; None if it cannot be built with this config."""
    try:
        return _built(adapter, model_class, config)
    except BadOption:
        return None


def _built(
    adapter: Adapter, model_class: ModelClass, config: PreTrainedConfig, init: Mapping[str, Any] | None = None
) -> _Tensors:
    """What a class has.

    Raises:
        BadOption: it cannot be built with this config.
    """
    shallow = copy.deepcopy(without_crossing(config))
    for stack in adapter.roles.depths:
        setattr(shallow, adapter.roles[stack].field, 1)
    with quiet():
        has = predict(model_class, shallow, init)
    named = {has.canonical(name): shape for name, shape in has.shapes.items()}
    outside = {name: shape for name, shape in named.items() if find_rule(adapter.rules, name)[1] is None}
    ties = {has.canonical(name): has.canonical(holder) for name, holder in has.ties.items()}
    return _Tensors(outside, ties, bool(has.prefix))


def _has_head(has: _Tensors, held: Shapes, body: set[str]) -> bool:
    """Whether a class has the tensors of a checkpoint's head, and no others."""
    head = {name: shape for name, shape in has.shapes.items() if name not in body}
    if any(head.get(name) != shape for name, shape in held.items() if name not in body):
        return False
    found = {has.ties.get(name, name) for name in held}
    return all(has.ties.get(name, name) in found | body for name in head)


def _classes(base: ModelClass) -> list[ModelClass]:
    """All classes that transformers has for the model type of a base model."""
    beside: list[Any] = list(vars(sys.modules[base.__module__]).values())
    models: list[ModelClass] = [one for one in beside if isinstance(one, type) and issubclass(one, PreTrainedModel)]
    return [one for one in models if one.config_class is base.config_class and one.forward is not nn.Module.forward]


def _switches(base: ModelClass) -> list[str]:
    """The constructor's switches of optional parts, such as `add_pooling_layer`."""
    import inspect

    named = inspect.signature(base.__init__).parameters.values()
    return [one.name for one in named if isinstance(one.default, bool)]


def _told_by_fields(config: PreTrainedConfig, fits: list[ModelClass]) -> list[ModelClass]:
    """Those of several classes with the same tensors that the config's fields ask for."""
    tasks = {one: tasks_of(config, one) for one in fits}
    masked_or_causal = {task for of in tasks.values() for task in of} & {"masked-lm", "causal-lm"}
    if len(masked_or_causal) == 2:
        asked = "causal-lm" if getattr(config, "is_decoder", False) else "masked-lm"
    elif getattr(config, "problem_type", None) is not None:
        asked = "sequence-classification"
    else:
        return fits
    return [one for one in fits if asked in tasks[one]] or fits


def _naming(config: PreTrainedConfig, model_class: ModelClass) -> PreTrainedConfig:
    named = copy.deepcopy(config)
    named.architectures = [model_class.__name__]
    return named


def _named(config: PreTrainedConfig) -> str:
    return f" (architectures is {listed(config.architectures)})" if config.architectures else ""


def _unseen(config: PreTrainedConfig, name: str, why: str) -> str:
    base = class_in_mapping("MODEL_MAPPING", config, "the source").__name__
    return (
        f"config.json of {shown_path(name)} names no class that transformers has{_named(config)}, and its weights "
        f"could not be looked at ({why}): {base} without a head is taken. For another, pass task=."
    )


def _undecided(
    adapter: Adapter, config: PreTrainedConfig, name: str, checkpoint: Checkpoint, fits: list[ModelClass]
) -> str:
    base = class_in_mapping("MODEL_MAPPING", config, "the source")
    begin = f"config.json of {shown_path(name)} names no class that transformers has{_named(config)}, and its tensors"
    if fits:
        candidates = [f"{one.__name__} ({_how(config, one)})" for one in fits]
        return f"{begin} are those of {' and of '.join(candidates)}. Say which it is."
    held = _held(adapter, base, checkpoint.shapes)
    known = _built(adapter, base, config)
    odd = held.foreign or tuple(one for one in held.shapes if one not in known.shapes)
    tasks = sorted({task for one in _classes(base) for task in tasks_of(config, one)})
    return (
        f"{begin} are those of no {config.model_type} class ({listed(list(odd[:3]))} beside the base model). "
        f"Pass task=, one of {', '.join(tasks)}; 'base' leaves the head out."
    )


def _how(config: PreTrainedConfig, model_class: ModelClass) -> str:
    """How to ask for a class."""
    tasks = tasks_of(config, model_class)
    return f"task={tasks[0]!r}" if tasks else f"architectures in config.json: {model_class.__name__!r}"
