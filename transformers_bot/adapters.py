"""Architectures of your own: `transformers_bot.adapters.register` makes one known, `docs/adapters.md` shows how.

>>> get("gpt2").norm
'pre'
"""

from .architectures import ADAPTERS, Adapter, get, load, register, validate
from .architectures.axes import parse_rules

__all__ = ["ADAPTERS", "Adapter", "get", "load", "parse_rules", "register", "validate"]


def __dir__() -> list[str]:
    return sorted(__all__)
