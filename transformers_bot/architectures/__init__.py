"""What every supported architecture's tensors mean. A new architecture is one file and one line here.

An architecture that is not built in is one file, too, wherever it lies: `register` makes it known.
`docs/adapters.md` shows how to write one.
"""

from ..errors import BadOption, UnsupportedArchitecture, suggest
from .adapter import Adapter
from .families.bert import BERT, ROBERTA
from .families.gpt2 import GPT2
from .families.vit import DEIT, VIT
from .user_file import load
from .valid import validate

BUILT_IN = (BERT, ROBERTA, GPT2, VIT, DEIT)
ADAPTERS: dict[str, Adapter] = {adapter.model_type: adapter for adapter in BUILT_IN}


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
        "A new one is a file of data, see docs/adapters.md."
    )


def register(adapter: Adapter) -> Adapter:
    """Make an architecture known for the rest of this process; returns the adapter.

    Registering a model type again replaces what was registered before, built-in ones excepted.

    Example:
        >>> register(get("gpt2")) is get("gpt2")
        True

    Raises:
        BadOption: an adapter that contradicts itself or transformers' config of that model type, or one
            for a model type that is built in.
    """
    validate(adapter)
    if adapter.model_type in (one.model_type for one in BUILT_IN if one is not adapter):
        raise BadOption(f"model type {adapter.model_type!r} is built in and cannot be replaced.")
    ADAPTERS[adapter.model_type] = adapter
    return adapter


__all__ = ["ADAPTERS", "Adapter", "get", "load", "register", "validate"]


def __dir__() -> list[str]:
    return sorted(__all__)
