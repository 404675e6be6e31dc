"""What a checkpoint lacks of its own architecture, and what it holds beyond any of its family."""

import copy

from transformers import PreTrainedConfig, PreTrainedModel

from .adapters import Adapter
from .axes import find_rule
from .classes import class_in_mapping, own_class
from .errors import PlanError
from .inventory import Inventory, inventory_of, predict
from .keywords import init_keywords
from .source import Source, quiet


def lost_tensors(config: PreTrainedConfig, opened: Source) -> list[str]:
    """Tensors that the source's own architecture has, the opened class wants, and the files do not hold.

    A head of another class than the source's own is no loss: it is new in the target. Where the
    config names no architecture, the base model without its optional pooler counts.
    """
    if not opened.missing:
        return []
    with quiet():
        own = _own_inventory(config)
    present = {own.canonical(name) for name in own.shapes}
    here = inventory_of(opened.model)
    return [name for name in here.shapes if name in opened.missing and here.canonical(name) in present]


def foreign_tensors(adapter: Adapter, opened: Source) -> list[str]:
    """Tensors of the files that no model of this family has: without a rule, or of a layer beyond the config's."""
    prefix = f"{type(opened.model).base_model_prefix}."
    layers = getattr(opened.model.config, str(adapter.sizes["layer"]))
    return [name for name in opened.unexpected if not _is_known(adapter, name.removeprefix(prefix), layers)]


def _own_inventory(config: PreTrainedConfig) -> Inventory:
    own = own_class(config)
    if own.__name__ in (config.architectures or []):
        return predict(own, copy.deepcopy(config))
    base: type[PreTrainedModel] = class_in_mapping("MODEL_MAPPING", config, "the source")
    optional = {"add_pooling_layer": False} if "add_pooling_layer" in init_keywords(base) else {}
    return predict(base, copy.deepcopy(config), optional)


def _is_known(adapter: Adapter, name: str, layers: int) -> bool:
    """Whether a rule names it, as a tensor of one of the config's layers or outside of them."""
    try:
        _, layer = find_rule(adapter.rules, name)
    except PlanError:
        return False
    return layer is None or layer < layers
