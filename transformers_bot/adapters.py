"""Architectures of your own: `transformers_bot.adapters.register` makes one known, `docs/adapters.md` shows how.

>>> get("gpt2").norm
'pre'
"""

from .architectures import ADAPTERS, get, load, register, validate
from .architectures.adapter import LABEL, SEGMENT, VOCAB, Adapter, Norm, Numbered, Role, Roles, Scale, Variant
from .architectures.language import parse_rules

__all__ = [
    "ADAPTERS",
    "LABEL",
    "SEGMENT",
    "VOCAB",
    "Adapter",
    "Norm",
    "Numbered",
    "Role",
    "Roles",
    "Scale",
    "Variant",
    "get",
    "load",
    "parse_rules",
    "register",
    "validate",
]


def __dir__() -> list[str]:
    return sorted(__all__)
