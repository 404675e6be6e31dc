"""What every supported architecture's tensors mean. A new architecture is one file and one word in `families`.

An architecture that is not built in is one file, too, wherever it lies: `register` makes it known.
`docs/adapters.md` shows how to write one.
"""

from .adapter import ADAPTERS, Adapter, get
from .families import BUILT_IN
from .user_file import load
from .valid import register, validate

ADAPTERS.update({adapter.model_type: adapter for adapter in BUILT_IN})

__all__ = ["ADAPTERS", "Adapter", "get", "load", "register", "validate"]


def __dir__() -> list[str]:
    return sorted(__all__)
