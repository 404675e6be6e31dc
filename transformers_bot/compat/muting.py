"""Mutes transformers for the calling thread alone; its own switches are for a whole process."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from transformers.utils import logging as transformers_logging

THEIRS = "transformers"
_LOCK = threading.Lock()
_THREAD = threading.local()


def _count(kind: str) -> int:
    """How many blocks of a kind the calling thread is inside of."""
    found: int = getattr(_THREAD, kind, 0)
    return found


class _Muting(logging.Filter):
    """Lets pass what other threads log, and errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not _count("messages")


class _Filters:
    """The filter on all of transformers' loggers, from the first thread that mutes to the last."""

    def __init__(self) -> None:
        self._filter, self._users = _Muting(), 0
        self._loggers: list[logging.Logger] = []

    def add(self) -> None:
        known = list(logging.root.manager.loggerDict.items())
        theirs = [one for name, one in known if name == THEIRS or name.startswith(f"{THEIRS}.")]
        with _LOCK:
            self._users += 1
            for logger in theirs:
                if isinstance(logger, logging.Logger) and self._filter not in logger.filters:
                    logger.addFilter(self._filter)
                    self._loggers.append(logger)

    def remove(self) -> None:
        with _LOCK:
            self._users -= 1
            if not self._users:
                for logger in self._loggers:
                    logger.removeFilter(self._filter)
                self._loggers.clear()


class _Bars:
    """The hook on transformers' bars, from the first thread that hides them to the last."""

    def __init__(self) -> None:
        self._users = 0
        self._before: Any = None  # the hook of others
        self._mine: Any = None  # bound once, to be known again
        # transformers before its hook for bars: the switch for all threads is what there is.
        self._set_hook = getattr(transformers_logging, "set_tqdm_hook", None)

    def add(self) -> None:
        with _LOCK:
            self._users += 1
            if self._users > 1:
                return
            if self._set_hook is not None:
                self._mine = self._made
                self._before = self._set_hook(self._mine)
            else:
                self._before = transformers_logging.is_progress_bar_enabled()
                transformers_logging.disable_progress_bar()

    def remove(self) -> None:
        with _LOCK:
            self._users -= 1
            if self._users:
                return
            if self._set_hook is not None:
                now = self._set_hook(self._before)
                if now is not self._mine:  # somebody has set another one meanwhile
                    self._set_hook(now)
            elif self._before:
                transformers_logging.enable_progress_bar()

    def _made(self, factory: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if _count("bars"):
            return transformers_logging.EmptyTqdm(*args, **keywords)
        return self._before(factory, args, keywords) if self._before else factory(*args, **keywords)


_FILTERS, _BARS = _Filters(), _Bars()


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hide the progress bars that transformers starts in this thread."""
    _BARS.add()
    _THREAD.bars = _count("bars") + 1
    try:
        yield
    finally:
        _THREAD.bars -= 1
        _BARS.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Mute transformers' load report and bars in this thread, while our own table tells the same; errors pass."""
    _FILTERS.add()
    _THREAD.messages = _count("messages") + 1
    try:
        with no_bars():
            yield
    finally:
        _THREAD.messages -= 1
        _FILTERS.remove()
