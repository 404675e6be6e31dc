"""Recognises checkpoints whose layers have lost single heads, by the shapes of their tensors."""

from collections.abc import Collection, Iterable

from transformers import PreTrainedConfig

from ..console.text import brief
from ..errors import PlanError, UnsupportedCheckpoint
from . import ADAPTERS
from .adapter import Adapter, find_rule
from .sizes import role_sizes

NAMED = 4  # layers in a message
Mismatch = tuple[str, Collection[int], Collection[int]]  # tensor, its shape in the file, its shape by the config


def refuse_pruned(name: str, config: PreTrainedConfig, mismatched: Iterable[Mismatch]) -> None:
    """Raise if tensors differ from the config in the number of heads and in nothing else.

    Raises:
        UnsupportedCheckpoint: the message gives the layers, their number of heads, and the recorded pruned heads.
    """
    adapter = ADAPTERS.get(config.model_type)
    if adapter is None or not any(adapter.roles.is_whole(role) for role in adapter.roles.units):
        return
    sizes = role_sizes(adapter, config, "source")
    heads_by_layer: dict[int, set[int]] = {}
    for tensor, stored, _ in mismatched:
        layer, heads = _heads_left(adapter, tensor, tuple(stored), sizes)
        if layer is None or heads is None:
            return
        heads_by_layer.setdefault(layer, set()).add(heads)
    if not heads_by_layer or any(len(counts) > 1 for counts in heads_by_layer.values()):
        return
    recorded = getattr(config, "pruned_heads", None)
    recorded = recorded if isinstance(recorded, dict) else {}
    full = sizes[_heads(adapter)]
    layers = []
    for layer, counts in sorted(heads_by_layer.items())[:NAMED]:
        pruned = recorded.get(layer, recorded.get(str(layer)))
        which = f" (without {brief(str(pruned), 60)})" if pruned else ""
        layers.append(f"layer {layer} has {counts.pop()} of {full}{which}")
    more = f" and {len(heads_by_layer) - NAMED} more layers" if len(heads_by_layer) > NAMED else ""
    raise UnsupportedCheckpoint(
        f"{name}: heads were pruned from its weights: {', '.join(layers)}{more}. transformers has no model whose "
        "layers differ in heads. Use the checkpoint from before the pruning, or put zeros where the heads were "
        "(rows of queries, keys and values, columns of the attention's output), which computes the same, and take "
        "pruned_heads out of its config.json."
    )


def _heads_left(
    adapter: Adapter, tensor: str, stored: tuple[int, ...], sizes: dict[str, int | None]
) -> tuple[int | None, int | None]:
    """The layer of a tensor and the number of heads with which its rule gives the stored shape."""
    parts = tensor.split(".")
    for start in range(len(parts)):  # the name may have a prefix of any length
        try:
            rule, layer = find_rule(adapter.rules, ".".join(parts[start:]))
        except PlanError:
            continue
        heads = _heads(adapter)
        if heads not in rule.roles:
            return layer, None
        counts = [n for n in range(sizes[heads] or 0) if rule.shape({**sizes, heads: n}, stored) == stored]
        return layer, counts[0] if counts else None
    return None, None


def _heads(adapter: Adapter) -> str:
    """The units that hold entries, which pruning removes."""
    return next(role for role in adapter.roles.units if adapter.roles.is_whole(role))
