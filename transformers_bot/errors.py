"""The errors a user can meet: each message says what is wrong, why, and the remedy."""

import difflib
from collections.abc import Iterable, Mapping
from numbers import Rational


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


def check_writable(values: Mapping[str, object]) -> None:
    """Refuse a number of thousands of digits, which Python itself refuses to write: no message could quote it.

    Args:
        values: name of a keyword -> its value; containers are looked into.

    Raises:
        BadOption: such a number, by the keyword that holds it.

    >>> check_writable({"n_layer": [10**5000]})
    Traceback (most recent call last):
    transformers_bot.errors.BadOption: n_layer holds a number of thousands of digits. Choose a smaller one.
    """
    keyword = _unwritable("a keyword", values, set())
    if keyword:
        raise BadOption(f"{keyword} holds a number of thousands of digits. Choose a smaller one.")


def _unwritable(keyword: str, value: object, outer: set[int]) -> str | None:
    """The innermost keyword that holds a number of thousands of digits, None where there is none."""
    if isinstance(value, Rational):
        try:
            str(value)
        except ValueError:
            return keyword
    if id(value) in outer:
        return None
    if isinstance(value, Mapping):
        inner = [(keyword, name) for name in value]
        inner += [(name if isinstance(name, str) else keyword, member) for name, member in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = [(keyword, member) for member in value]
    else:
        return None
    keywords = (_unwritable(name, member, {*outer, id(value)}) for name, member in inner)
    return next((name for name in keywords if name), None)
