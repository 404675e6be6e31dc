"""What a checkpoint lacks of its own architecture, and what it holds beyond any of its family."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures import Adapter
from ..architectures.axes import find_rule
from ..architectures.classes import class_in_mapping, own_class
from ..architectures.inventory import inventory_of, predict
from ..compat import quiet
from ..errors import PlanError
from ..io.checkpoint import Source
from ..request.keywords import init_keywords


def lost_tensors(config: PreTrainedConfig, opened: Source) -> tuple[list[str], list[str]]:
    """Tensors that the source's own architecture has, the opened class wants, and the files do not hold.

    A head of another class than the source's own is no loss: it is new in the target. Nor is a pooler,
    which checkpoints often leave out.

    Returns:
        Those of the base model, and those of its head.
    """
    if not opened.missing:
        return [], []
    present = _names(own_class(config), config) - optional_tensors(config)
    here = inventory_of(opened.model)
    lost = [name for name in here.shapes if name in opened.missing and here.canonical(name) in present]
    base = _names(class_in_mapping("MODEL_MAPPING", config, "the source"), config)
    inside = [name for name in lost if here.canonical(name) in base]
    return inside, [name for name in lost if name not in inside]


def optional_tensors(config: PreTrainedConfig) -> set[str]:
    """Tensors of the source's own architecture that it can be built without: the pooler."""
    own = own_class(config)
    if "add_pooling_layer" not in init_keywords(own):
        return set()
    return _names(own, config) - _names(own, config, {"add_pooling_layer": False})


def foreign_tensors(adapter: Adapter, opened: Source) -> list[str]:
    """Tensors of the files that no model of this family has: without a rule, or of a layer beyond the config's."""
    prefix = f"{type(opened.model).base_model_prefix}."
    layers = getattr(opened.model.config, str(adapter.sizes["layer"]))
    return [name for name in opened.unexpected if not _is_known(adapter, name.removeprefix(prefix), layers)]


def refused_tensors(adapter: Adapter, names: Iterable[str]) -> dict[str, str]:
    """Tensors without which a checkpoint computes another function, and what they are."""
    patterns = adapter.foreign.items()
    return {name: what for name in names for pattern, what in patterns if re.search(rf"(^|\.){pattern}$", name)}


def _names(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, init: Mapping[str, Any] | None = None
) -> set[str]:
    """The tensors of a class, without the base model's prefix."""
    with quiet():
        inventory = predict(model_class, config, init)
    return {inventory.canonical(name) for name in inventory.shapes}


def _is_known(adapter: Adapter, name: str, layers: int) -> bool:
    """Whether a rule names it, for one of the config's layers or outside of them, or it is one of those left out."""
    if adapter.is_left_out(name):
        return True
    try:
        _, layer = find_rule(adapter.rules, name)
    except PlanError:
        return False
    return layer is None or layer < layers
