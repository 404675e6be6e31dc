"""One bar for a whole call, from its first second to its last, with what is being done in words.

A call opens the bar (`bar`); the code below it divides it into parts of rough weights (`part`) and moves
through them (`at`, `tracked`), without knowing whose they are; outside of a bar all of it does nothing. The
bar belongs to the context that has opened it: other threads and calls have their own. It is shown where
transformers shows its bars, by the first process of a job alone, and it is transformers' own kind, so that
`disable_progress_bar()`, notebooks and hooks on its bars hold for it.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

PACKAGE = __name__.partition(".")[0]
WHOLE = 100.0  # what the bar counts to: per cent
WIDTH = 44  # columns of the words, so that the bar beside them keeps its length
FORMAT = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {desc}"
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # how launchers tell a process its number
UNKNOWN = 30.0  # seconds that a call takes, before anybody has estimated them
LIBRARIES = 4.0  # rough seconds to import torch and transformers
UNDRAWN = (OSError, ValueError)  # what writing to a stream raises that is full, closed or gone
MORE = 0.5  # of what is left goes to a part that nobody has foretold


class _Shown(Protocol):
    """What is used of a tqdm bar."""

    leave: bool
    disable: bool

    def update(self, n: float) -> Any: ...
    def refresh(self) -> Any: ...
    def clear(self) -> Any: ...
    def close(self) -> None: ...
    def set_description_str(self, desc: str, refresh: bool) -> None: ...


class _Line:
    """The bar as it stands; it never goes back.

    What it is drawn on may be full, closed or gone, as a file or a pipe can be: then there is no bar any
    more, and the call goes on.
    """

    def __init__(self, shown: _Shown) -> None:
        self._shown, self._told, self._words, self._open = shown, 0.0, "", True

    def to(self, at: float, words: str, now: bool = False) -> None:
        """Move to a share of the whole; `now` shows it at once, else not more often than one can read."""
        if not self._open:
            return
        step = max(0.0, WHOLE * at - self._told)
        self._told += step  # as the bar adds them up, so that rounding takes it no further than the whole
        with self._drawing():
            if words != self._words:
                self._words = words
                self._shown.set_description_str(_fitted(words), refresh=False)
            self._shown.update(step)
            if now:
                self._shown.refresh()

    def close(self, leave: bool) -> None:
        """Take the bar off the screen, or leave it there as it stands."""
        if not self._open:
            return
        self._open = False
        self._shown.leave = leave
        with self._drawing():
            self._shown.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, the line is free for other text."""
        if self._open:
            with self._drawing():
                self._shown.clear()
        try:
            yield
        finally:
            if self._open:
                with self._drawing():
                    self._shown.refresh()

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        try:
            yield
        except UNDRAWN:
            self._open = False
            self._shown.disable = True  # or it would be drawn once more when it is collected


class Span:
    """A piece of a bar for one thing that is done: it is moved through, or divided into parts."""

    def __init__(self, line: _Line | None, start: float = 0.0, end: float = 1.0, words: str = "") -> None:
        self.line, self.words = line, words
        self._start, self._end, self._left = start, end, 1.0

    def expects(self, weight: float) -> None:
        """What all parts to come weigh together."""
        self._left = max(weight, 0.0)

    def at(self, share: float, words: str = "") -> None:
        """Say how much of it is done."""
        if self.line:
            self.line.to(self._place(share), words or self.words)

    def taken(self, words: str, weight: float) -> "Span":
        """The next part."""
        foretold = 0 < weight <= self._left * (1 + 1e-9)
        end = self._place(weight / self._left if foretold else MORE if weight > 0 else 0.0)
        made = Span(self.line, self._start, end, words or self.words)
        self._start, self._left = end, self._left - weight if foretold else self._left
        if self.line:
            self.line.to(made._start, made.words, now=bool(words))
        return made

    def _place(self, share: float) -> float:
        return self._start + (self._end - self._start) * min(max(share, 0.0), 1.0)


_HERE: ContextVar[Span | None] = ContextVar("progress", default=None)


def here() -> Span:
    """The piece that belongs to what is being done; one that shows nothing where there is no bar."""
    return _HERE.get() or Span(None)


@contextmanager
def bar(words: str) -> Iterator[None]:
    """A bar for what happens inside, complete when it ends well; within another one nothing of its own.

    Example:
        with bar("resizing"):
            expects(3)
            with part("reading", 1):
                ...
            with part("computing", 2):
                for tensor in tracked(tensors, [x.numel() for x in tensors]):
                    ...
    """
    if _HERE.get() is not None:
        yield
        return
    line = _opened(words) if _is_shown() else None
    span = Span(line, words=words)
    span.expects(UNKNOWN)
    token = _HERE.set(span)
    whole = False
    try:
        if line:
            line.to(0.0, words, now=True)
        yield
        whole = True
    finally:
        _HERE.reset(token)
        if line:
            if whole:
                line.to(1.0, "done", now=True)
            line.close(leave=whole)


@contextmanager
def part(words: str, weight: float = 1.0) -> Iterator[Span]:
    """The next part of what is being done.

    Args:
        words: what it is; nothing for the words of the whole.
        weight: rough seconds, or whatever else the whole `expects` is in.
    """
    span = here().taken(words, weight)
    token = _HERE.set(span)
    try:
        yield span
    finally:
        _HERE.reset(token)
    span.at(1.0)


@contextmanager
def loading(module: str) -> Iterator[None]:
    """The part in which a module of ours is imported, if it was not before, and torch and transformers with it."""
    if f"{PACKAGE}.{module}" in sys.modules:
        yield
        return
    with part("loading torch and transformers", LIBRARIES):
        yield


def expects(weight: float) -> None:
    """Say what the parts to come weigh together."""
    here().expects(weight)


def tracked(items: Iterable[T], weights: Sequence[float], words: Sequence[str] = ()) -> Iterator[T]:
    """The items, while the bar moves through its present piece, whichever thread asks for them.

    Args:
        weights: of each item.
        words: what is being done with each.
    """
    return _moving(here(), items, weights, words)


def _moving(span: Span, items: Iterable[T], weights: Sequence[float], words: Sequence[str]) -> Iterator[T]:
    total, done = sum(weights) or 1.0, 0.0
    for number, item in enumerate(items):
        span.at(done / total, words[number] if words else "")
        yield item
        done += weights[number]
    span.at(1.0)


def withdraw() -> None:
    """Take the bar away: what follows shows its own."""
    line = here().line
    if line:
        line.close(leave=False)


@contextmanager
def aside() -> Iterator[None]:
    """Inside, other text may be written where the bar stands."""
    line = here().line
    if line is None:
        yield
        return
    with line.aside():
        yield


def _opened(words: str) -> _Line | None:
    from transformers.utils import logging  # a second that a program which shows no bar can do without

    # An overall rate tells the time left better than the last moments; every update may be shown.
    look: dict[str, Any] = {"bar_format": FORMAT, "smoothing": 0, "miniters": 0, "dynamic_ncols": True}
    try:
        return _Line(logging.tqdm(total=WHOLE, desc=_fitted(words), **look))
    except UNDRAWN:
        return None


def _is_shown() -> bool:
    """Whether this is the first process of its job, and transformers shows bars."""
    from transformers.utils import logging  # as above

    return logging.is_progress_bar_enabled() and _rank() == "0"


def _rank() -> str:
    dist = sys.modules.get("torch.distributed")  # as above
    if dist is not None and dist.is_available() and dist.is_initialized():
        return str(dist.get_rank())
    return next((os.environ[name] for name in RANKS if name in os.environ), "0")


def _fitted(words: str) -> str:
    """Words in as many columns as all others: of a long name the end tells most."""
    if len(words) <= WIDTH:
        return words.ljust(WIDTH)
    head, space, name = words.partition(" ")
    return f"{head}{space}...{name[len(head) + len(space) + 3 - WIDTH :]}"
