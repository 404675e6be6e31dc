"""The meaning of the tensors of every supported architecture. A new one is one file and one name in `families`.

An architecture that is not built in is also one file, in any folder: `register` makes it known.
`docs/adapters.md` shows how to write one.
"""

from .adapter import ADAPTERS, Adapter, adapter_of, get
from .families import BUILT_IN
from .user_file import load
from .valid import register, validate

ADAPTERS.update({adapter.model_type: adapter for adapter in BUILT_IN})

__all__ = ["ADAPTERS", "Adapter", "adapter_of", "get", "load", "register", "validate"]


def __dir__() -> list[str]:
    return sorted(__all__)
