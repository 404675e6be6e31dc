"""What a user should know before running a plan, whatever the method."""

from collections.abc import Sequence
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..architectures import Adapter
from ..architectures.axes import Sizes
from ..architectures.fields import field_warnings
from ..architectures.roles import Roles


def general_warnings(
    adapter: Adapter, configs: tuple[Any, Any], sizes: tuple[Sizes, Sizes], renewed: Sequence[str], model_class: str
) -> list[str]:
    """Sentences about (source, target) configs and sizes, newly initialised tensors and the target's class."""
    found = []
    # transformers says so when it builds the model, which is muted here.
    flag = adapter.causal_flag
    if flag and not getattr(configs[1], flag) and model_class in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        found.append(f"{model_class} sees the words that come next: to generate text, pass {flag}=True")
    found += field_warnings(adapter, *configs)
    if _numbers_lag(*configs):
        found.append("label2id does not fit id2label: it is kept as it is. Give both where one changes")
    if renewed:
        shown = ", ".join(renewed[:4]) + (", ..." if len(renewed) > 4 else "")
        what = "1 tensor is" if len(renewed) == 1 else f"{len(renewed)} tensors are"
        found.append(f"{what} newly initialised, train the model before use: {shown}")
    if smaller := smaller_roles(adapter.roles, sizes):
        lost = " and ".join(smaller)
        found.append(f"shrinking {lost} loses part of the source's function: train the model before use")
    for place in adapter.roles.of("place"):
        if _change(sizes, place) > 0:
            grown = f"{sizes[0][place]} -> {sizes[1][place]}"
            found.append(f"text positions {grown}: the new ones have never been trained")
    return found


def smaller_roles(roles: Roles, sizes: tuple[Sizes, Sizes]) -> list[str]:
    """The roles of which the target has fewer than the source."""
    return [role for role in roles.resized if _change(sizes, role) < 0]


def _change(sizes: tuple[Sizes, Sizes], role: str) -> int:
    before, after = (side.get(role) or 0 for side in sizes)
    return after - before


def _numbers_lag(source: Any, target: Any) -> bool:
    """Whether the target's labels have new names, but not their way back."""
    names, numbers = target.id2label, target.label2id
    changed = names is not None and (names, numbers) != (source.id2label, source.label2id)
    return changed and numbers is not None and numbers != {name: number for number, name in names.items()}
