"""The tensors of a model class at given sizes, without weights: names, shapes, ties."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..compat import blank
from ..console.text import printable
from ..errors import BadOption, PlanError
from . import Adapter
from .axes import Rule, Sizes, find_rule


@dataclass(frozen=True, repr=False)
class Inventory:
    """Every tensor of a model, under the names that the model itself uses.

    Attributes:
        model_class: name of the class.
        prefix: the base model's prefix ("bert."), empty for a base model.
        shapes: name -> shape, in the model's order, tied names included.
        ties: tied name -> the name that holds the tensor.
    """

    model_class: str
    prefix: str
    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]

    def __repr__(self) -> str:
        return f"<Inventory: {self.model_class}, {len(self.shapes)} tensors, {len(self.ties)} of them tied>"

    def canonical(self, name: str) -> str:
        """The name without the base model's prefix, as rules are written."""
        return name.removeprefix(self.prefix)


def inventory_of(model: PreTrainedModel) -> Inventory:
    """Read the inventory off a model, real or on the meta device."""
    state = model.state_dict()
    prefix = model.base_model_prefix
    has_base = bool(prefix) and hasattr(model, prefix)
    return Inventory(
        type(model).__name__,
        f"{prefix}." if has_base else "",
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        dict(getattr(model, "all_tied_weights_keys", {}) or {}),
    )


def predict(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, init: Mapping[str, Any] | None = None
) -> Inventory:
    """The inventory that `model_class(config, **init)` would have; allocates nothing."""
    try:
        with blank():
            # A copy: some classes write into the config they are given (GPT2DoubleHeadsModel).
            return inventory_of(model_class(copy.deepcopy(config), **(init or {})))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = printable(" ".join(str(error).split()))[:300].rstrip(".")  # it may quote the config at any length
        if fields := _unknown(config, error):
            said = f"it knows no {fields}. Choose another value"
        else:
            said = f"{type(error).__name__} {said}. Correct that field of the config"
        raise BadOption(f"transformers cannot build {model_class.__name__} from this config: {said}.") from None


def _unknown(config: PreTrainedConfig, error: Exception) -> str:
    """The fields whose value is the name that transformers looked for in vain, such as an activation's."""
    sought = str(error.args[0]) if isinstance(error, KeyError) and error.args else ""
    fields = {name: value for name, value in vars(config).items() if isinstance(value, str) and value}
    found = [name for name, value in fields.items() if value == sought or f"function {value} not found" in sought]
    return printable(" or ".join(f"{name}={fields[name][:80]!r}" for name in found))


def rules_of(adapter: Adapter, inventory: Inventory, sizes: Sizes) -> dict[str, tuple[Rule, int | None]]:
    """The rule of every tensor; a tensor without one, or of another shape than predicted, is an error."""
    found = {}
    for name, shape in inventory.shapes.items():
        rule, layer = find_rule(adapter.rules, inventory.canonical(name))
        if rule.shape(sizes, shape) != shape:
            raise PlanError(
                f"{inventory.model_class}: tensor {name!r} has shape {shape}, but its rule {rule.text!r} "
                f"predicts {rule.shape(sizes, shape)}. The config and the model do not belong together."
            )
        found[name] = (rule, layer)
    return found
