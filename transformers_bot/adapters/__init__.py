"""What every supported architecture's tensors mean. A new architecture is one file and one line here."""

from ..errors import UnsupportedArchitecture, suggest
from .base import Adapter
from .bert import BERT, ROBERTA
from .gpt2 import GPT2
from .vit import DEIT, VIT

ADAPTERS: dict[str, Adapter] = {adapter.model_type: adapter for adapter in (BERT, ROBERTA, GPT2, VIT, DEIT)}


def get(model_type: str) -> Adapter:
    """The adapter of a transformers model type; `UnsupportedArchitecture` names the known ones.

    >>> get("gpt2").norm
    'pre'
    """
    if model_type in ADAPTERS:
        return ADAPTERS[model_type]
    hint = suggest(model_type, ADAPTERS)
    raise UnsupportedArchitecture(
        f"model type {model_type!r} has no adapter. Model type should be one of {', '.join(ADAPTERS)}.{hint} "
        "A new one is one data file in transformers_bot/adapters."
    )


__all__ = ["ADAPTERS", "Adapter", "get"]
