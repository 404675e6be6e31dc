"""What a call shows while it runs: one bar from its first second to its last, and messages beside it.

A call opens the bar (`bar`); the code below it divides it into parts of rough weights (`part`) and moves
through them (`at`, `tracked`), without knowing whose they are; outside of a bar all of it does nothing. The
bar belongs to the context that has opened it: other threads and calls have their own. It is shown where
transformers shows its bars, by the first process of a job alone.

The bar is transformers' own tqdm, not one of rich: `disable_progress_bar()`, `set_tqdm_hook()` and the bars
of notebooks hold for it that way, and a stream that takes no more ends the bar and not the call.

Messages go to the logger `transformers_bot`, which hands them to the handlers of the logger `transformers`, so
that `transformers.logging.set_verbosity`, `TRANSFORMERS_VERBOSITY`, `add_handler`, `disable_default_handler` and
`enable_propagation` hold for them, too.

Nothing of torch and transformers is imported before it is needed: the command line shows its bar while they load.
"""

import copy
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

PACKAGE = __name__.partition(".")[0]
LIBRARY = "transformers"  # whose loggers and bars are followed
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
            with _unlocking():
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
            try:
                if whole:
                    line.to(1.0, "done", now=True)
            finally:
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
    from transformers.utils import logging as library  # a second that a program which shows no bar can do without

    # An overall rate tells the time left better than the last moments; every update may be shown.
    look: dict[str, Any] = {"bar_format": FORMAT, "smoothing": 0, "miniters": 0, "dynamic_ncols": True}
    try:
        with _unlocking():
            return _Line(library.tqdm(total=WHOLE, desc=_fitted(words), **look))
    except UNDRAWN:
        return None


@contextmanager
def _unlocking() -> Iterator[None]:
    """Inside, bars are drawn: tqdm keeps its lock when that raises, and bars of other threads would wait for ever."""
    from tqdm.auto import tqdm  # whose bars transformers' are

    lock = tqdm.get_lock()
    free = [one for one in getattr(lock, "locks", [lock]) if not _is_held(one)]
    try:
        yield
    except BaseException:  # an interrupt, too
        for one in reversed(free):
            while _is_held(one):
                one.release()
        raise


def _is_held(lock: Any) -> bool:
    """Whether this thread holds a lock that can be taken more than once, of threading or multiprocessing."""
    asked = getattr(lock, "_is_owned", None) or getattr(getattr(lock, "_semlock", None), "_is_mine", None)
    return asked is not None and bool(asked())


def _is_shown() -> bool:
    """Whether this is the first process of its job, and transformers shows bars."""
    from transformers.utils import logging as library  # as above

    return library.is_progress_bar_enabled() and _rank() == "0"


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


# -- rough seconds on one core: they divide the bar and decide nothing else -----------------------

READING_SECONDS, CHECKING_SECONDS, OPENING_SECONDS, LOOKING_SECONDS = 0.3, 0.4, 1.0, 0.2  # of a source of usual size
DATA_SECONDS = 1.0  # to make batches of files
UNSEEN_SECONDS = 0.1  # of what this module knows nothing about
RATE = 2e10  # multiply-adds in float32; in float64 half as many
COPYING = 150  # multiply-adds that take as long as moving one number through memory and measuring it
BYTES = 1e9  # written or copied
TOKENS = 4096  # of calibration batches that nobody can count before they are run
LEARNT = 1024  # tokens of a batch that an operator learns from

Lengths = Mapping[str, int | None]


class Roles(Protocol):
    """What is used of an architecture's roles."""

    @property
    def streams(self) -> tuple[str, ...]: ...
    @property
    def units(self) -> tuple[str, ...]: ...
    def is_whole(self, name: str) -> bool: ...


class Task(Protocol):
    """What is used of a method's task."""

    @property
    def roles(self) -> Roles: ...
    @property
    def target(self) -> Lengths: ...
    def ratio(self, role: str) -> float: ...


class Network(Protocol):
    """What is used of an opened source."""

    @property
    def roles(self) -> Roles: ...
    @property
    def sizes(self) -> Lengths: ...
    @property
    def places(self) -> Mapping[str, Any]: ...
    @property
    def everywhere(self) -> Sized: ...
    def numel(self, name: str) -> int: ...
    def having(self, role: str) -> Iterable[tuple[str, Any]]: ...


class Plan(Protocol):
    """What is used of a plan; a step has a recipe, parameters, and names that it reads."""

    @property
    def roles(self) -> Roles: ...
    @property
    def source(self) -> Any: ...
    @property
    def source_sizes(self) -> Lengths: ...
    @property
    def target_sizes(self) -> Lengths: ...
    @property
    def steps(self) -> Iterable[Any]: ...


def preparing_seconds(task: Task, network: Network, calibration: Iterable[Mapping[str, Any]] | None) -> float:
    """What a method does to an opened source before the plan."""
    if calibration is None:
        ordering = sum(ordering_seconds(network, role) for role in _shrunk(task))
        turning = sum(basis_seconds(task, network, stream) for stream in task.roles.streams)
        return ordering + turning + UNSEEN_SECONDS
    running = calibrating_seconds(network, calibration) + fitting_seconds(task, network)
    return running + preparing_seconds(task, network, None)


def ordering_seconds(network: Network, role: str) -> float:
    """Inner products of all units of a role, half of which are computed."""
    products = sum(network.numel(name) for name, place in network.having(role) if place.rule.maps)
    return products * (network.sizes[role] or 0) / 2 / RATE


def basis_seconds(task: Task, network: Network, stream: str) -> float:
    """Moments of a stream after every block, their eigenvectors, and what is kept of the moments."""
    if stream not in _shrunk(task):
        return 0.0
    width = network.sizes[stream] or 0
    return (0.7 * _matrices(network) * width + 60 * width**3) / RATE


def calibrating_seconds(network: Network, batches: Iterable[Mapping[str, Any]]) -> float:
    """Running the source, and in float64 the products of all that its matrices read."""
    moments = sum(2 * width**2 for width in _read_widths(network))
    return _tokens(batches) * (_matrices(network) + moments) / RATE


def fitting_seconds(task: Task, network: Network) -> float:
    """In float64: moments in the order of the units, and a least-squares fit, for every matrix."""
    ratio = min((task.ratio(role) for role in _shrunk(task)), default=0)
    return sum(2 * (2 + 1.5 * ratio) * width**3 for width in _read_widths(network)) / RATE if ratio else 0.0


def after_plan_seconds(network: Network) -> float:
    """All that comes after the plan, where nothing is known of the target yet."""
    width = _width(network.roles, network.sizes)
    return sum(network.numel(name) for name in network.places) * (COPYING + width / 2) / RATE + UNSEEN_SECONDS


def resizing_seconds(plan: Plan) -> float:
    """All steps of a plan."""
    before, after = (_width(plan.roles, sizes) for sizes in (plan.source_sizes, plan.target_sizes))
    each = COPYING + (after if after < before else 0)
    return sum(numbers_of(plan, step) for step in plan.steps if step.recipe is not None) * each / RATE + UNSEEN_SECONDS


def numbers_of(plan: Plan, step: Any) -> int:
    """How many numbers a step reads and makes."""
    read = sum(math.prod(plan.source.shapes.get(name, ())) for name in set(step.reads.values()))
    return int(step.parameters + read)


def learning_seconds(plan: Plan, steps: int) -> float:
    """An operator's fit: in every step it makes the target's matrices, and the target runs, forward and backward."""
    widths = sum(_width(plan.roles, sizes) for sizes in (plan.source_sizes, plan.target_sizes))
    return steps * _parameters(plan) * 3 * (LEARNT + widths) / RATE + UNSEEN_SECONDS


def finishing_seconds(plan: Plan) -> float:
    """Building the target around its tensors, or writing what stands beside them."""
    return _parameters(plan) * 4 / BYTES + UNSEEN_SECONDS


def _shrunk(task: Task) -> list[str]:
    """The roles whose units become fewer."""
    widths = (*task.roles.streams, *task.roles.units)
    return [role for role in widths if task.target.get(role) and task.ratio(role) < 1]


def _width(roles: Roles, sizes: Lengths) -> int:
    """Of the widest residual stream."""
    return max((sizes[stream] or 0 for stream in roles.streams), default=0)


def _parameters(plan: Plan) -> int:
    return sum(int(step.parameters) for step in plan.steps)


def _matrices(network: Network) -> int:
    return sum(network.numel(name) for name, place in network.places.items() if place.rule.maps)


def _read_widths(network: Network) -> list[int]:
    """Of everything that is linear: how many units it reads."""
    roles, sizes = network.roles, network.sizes
    units = [sizes[unit] or 0 for unit in roles.units if not roles.is_whole(unit)]
    return [*[_width(roles, sizes)] * 3, *units[:1]] * len(network.everywhere)


def _tokens(batches: Iterable[Mapping[str, Any]]) -> int:
    """How many tokens a list of batches has; of what cannot be counted without running it, some thousand."""
    if not isinstance(batches, (list, tuple)):
        return TOKENS
    tokens: list[Any] = [batch.get("input_ids") for batch in batches if isinstance(batch, Mapping)]
    return sum(ids.numel() for ids in tokens if hasattr(ids, "numel")) or TOKENS


# -- messages -------------------------------------------------------------------------------------


def _follows(record: logging.LogRecord) -> bool:
    """Whether transformers would show a message of its own of this level."""
    from transformers.utils import logging as library  # as above

    library.get_verbosity()  # sets up their logger, if nobody has yet
    return logging.getLogger(LIBRARY).isEnabledFor(record.levelno)


class _WithTransformers(logging.Handler):
    """Hands every record on to the handlers that transformers' messages reach; no handler gets it twice."""

    def handle(self, record: logging.LogRecord) -> bool:
        theirs, root = logging.getLogger(LIBRARY), logging.getLogger()
        reached = [*theirs.handlers, *(root.handlers if theirs.propagate and not logger.propagate else ())]
        for handler in dict.fromkeys(reached):
            if record.levelno >= handler.level and handler not in logger.handlers:
                with aside():
                    _named(handler).handle(record)
        return True


def _named(handler: logging.Handler) -> logging.Handler:
    """The handler that prints transformers' messages, with our name in front of the message instead of theirs.

    One whose format has the logger's name, or that somebody has added, is taken as it is.
    """
    from transformers.utils import logging as library  # as above

    format_: str = getattr(handler.formatter, "_fmt", None) or "%(message)s"
    default: logging.Handler | None = getattr(library, "_default_handler", None)
    if handler is not default or "%(name)" in format_:
        return handler
    ours = format_.replace(f"[{LIBRARY}] ", "").replace("%(message)s", f"[{PACKAGE}] %(message)s")
    named = copy.copy(handler)  # the same stream, lock and filters
    named.setFormatter(logging.Formatter(ours, getattr(handler.formatter, "datefmt", None)))
    return named


@contextmanager
def diverted(handler: logging.Handler) -> Iterator[None]:
    """Inside, our messages go to this handler alone."""
    before = list(logger.handlers)
    logger.handlers[:] = [handler]
    try:
        yield
    finally:
        logger.handlers[:] = before


logger = logging.getLogger(PACKAGE)
if not any(isinstance(handler, _WithTransformers) for handler in logger.handlers):
    logger.setLevel(logging.DEBUG)  # how much is shown is transformers' setting:
    logger.addFilter(_follows)
    logger.propagate = False
    logger.addHandler(_WithTransformers())
