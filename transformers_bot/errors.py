"""The errors a user can meet: each message says what is wrong, why, and the remedy."""

import difflib
from collections.abc import Iterable


class BoTError(Exception):
    """Base of every error raised on purpose by transformers_bot."""


class BadSize(BoTError, ValueError):
    """A size that no model, or no wavelet level, can have."""


class BadOption(BoTError, ValueError):
    """An option of `BoTConfig` (or of a public function) with a value it does not take."""


class BadKeyword(BoTError, TypeError):
    """A keyword that neither transformers, nor the config, nor BoT knows."""


class BadCheckpoint(BoTError, ValueError):
    """A source whose weights cannot be used as they are."""


class UnsafeCheckpoint(BoTError, ValueError):
    """A source that could run code, or that names files outside of its own folder."""


class BadWeights(BoTError, ValueError):
    """Weights that are not numbers: NaN or infinity, in the source or in the result."""


class UnsupportedCheckpoint(BoTError, ValueError):
    """A source whose weights have a form that cannot be resampled, such as quantised ones."""


class IncompatibleModels(BoTError, ValueError):
    """Source and target differ in something that resampling must not decide."""


class UnsupportedArchitecture(BoTError, ValueError):
    """A model type, or a task for it, without an adapter."""


class HubError(BoTError, OSError):
    """A model or file that the Hub does not give: no such name, no access, no connection."""


class SaveError(BoTError, OSError):
    """A result that could not be written; what stood in its place is untouched."""


class TooLittleMemory(BoTError, MemoryError):
    """A resize that needs more memory than there is; nothing was written."""


class RankError(BoTError, RuntimeError):
    """Processes of one job that cannot make or load a model together."""


class PlanError(BoTError, RuntimeError):
    """A tensor that the adapter's rules do not account for exactly once."""


def suggest(word: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" when a known name is close to `word`, else an empty string.

    >>> suggest("harr", ["haar", "db2"])
    " Did you mean 'haar'?"
    """
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
