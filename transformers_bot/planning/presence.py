"""Sizes at which a model has other tensors, such as a matrix between two widths that becomes one between equal ones."""

from typing import Any

import transformers

from ..architectures.adapter import Adapter
from ..architectures.inventory import Inventory, predict
from ..architectures.sizes import changed_fields, get_field, kind_of
from ..errors import IncompatibleModels


def check_tensors_stay(
    adapter: Adapter,
    configs: tuple[Any, Any],
    inventories: tuple[Inventory, Inventory],
    outside: tuple[set[str], set[str]],
) -> None:
    """Refuse sizes that take a tensor away from a model, or give it a new one.

    Args:
        configs, inventories: of source and target.
        outside: the names of their tensors outside of the layers, without the base model's prefix.

    Raises:
        IncompatibleModels: such tensors, and the sizes that decide.
    """
    before, after = outside
    model_class = getattr(transformers, inventories[0].model_class, None)
    if model_class is None or inventories[0].model_class != inventories[1].model_class:
        return  # another class has other tensors for reasons of its own
    changed = set(changed_fields(*configs))
    sizes = sorted(name for name in changed if kind_of(adapter, name) == "size")
    if not sizes or len(sizes) < len(changed) or not before ^ after <= _differences(model_class, configs):
        return  # another field decides, or a keyword of the class
    lost, new = sorted(before - after), sorted(after - before)
    told = f"no {' and no '.join(lost)}: its function would be lost" if lost else f"a {' and a '.join(new)} that is new"
    fields = [" and ".join(f"{name}={get_field(config, name)}" for name in sizes) for config in configs]
    raise IncompatibleModels(
        f"with {fields[1]} the target has {told}. Choose sizes at which both models have the same tensors, as the "
        f"source has with {fields[0]}."
    )


def _differences(model_class: Any, configs: tuple[Any, Any]) -> set[str]:
    """The tensors that a class has with one config and not with the other, whatever keywords it is built with."""
    before, after = ({made.canonical(n) for n in made.shapes} for made in (predict(model_class, c) for c in configs))
    return before ^ after
