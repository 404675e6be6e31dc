"""Architectures of your own: `transformers_bot.adapters.register` makes one known, `docs/adapters.md` shows how.

>>> get("gpt2").norm
'pre'
"""

from .architectures import ADAPTERS, Adapter, get, load, register, validate
from .architectures.adapter import Norm
from .architectures.axes import parse_rules
from .architectures.roles import LABEL, SEGMENT, VOCAB, Role, Roles

__all__ = [
    "ADAPTERS",
    "LABEL",
    "SEGMENT",
    "VOCAB",
    "Adapter",
    "Norm",
    "Role",
    "Roles",
    "get",
    "load",
    "parse_rules",
    "register",
    "validate",
]


def __dir__() -> list[str]:
    return sorted(__all__)
