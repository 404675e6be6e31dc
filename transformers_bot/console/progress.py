"""The progress bar of a call and its log messages.

A call opens one bar (`bar`). The functions that it calls divide the bar into parts with rough weights (`part`) and
move through them (`at`, `tracked`); they need not know which call opened it. Without a bar all of this does nothing.
The bar belongs to the context that has opened it: other threads and calls have their own. It is shown if
transformers shows its bars, and only by the first process of a job.

The bar is transformers' own tqdm, not one of rich, so that `disable_progress_bar()`, `set_tqdm_hook()` and the bars
of notebooks work for it. If its stream fails, only the bar ends, not the call.

Messages go to the logger `transformers_bot`, which passes them to the handlers of the logger `transformers`. So
`transformers.logging.set_verbosity`, `TRANSFORMERS_VERBOSITY`, `add_handler`, `disable_default_handler` and
`enable_propagation` apply to them, too.

torch and transformers are imported only where they are needed: the command line shows its bar while they load.
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
LIBRARY = "transformers"  # whose settings of messages and bars apply
WHOLE = 100.0  # what the bar counts to: per cent
WIDTH = 44  # columns of the label, always the same, so that the bar beside it keeps its length
FORMAT = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {desc}"
RANKS = (
    "RANK",
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
)  # environment variables in which launchers give a process its number
UNKNOWN = 30.0  # seconds assumed for a call until it has estimated them (`expects`)
LIBRARIES = 4.0  # rough seconds to import torch and transformers
UNDRAWN = (OSError, ValueError)  # errors of writing to a stream that is full or closed
UNPLANNED = 0.5  # share of the rest of the bar for a part that `expects` did not count


class _Shown(Protocol):
    """The part of tqdm's interface that is used."""

    leave: bool
    disable: bool

    def update(self, n: float) -> Any: ...
    def refresh(self) -> Any: ...
    def clear(self) -> Any: ...
    def close(self) -> None: ...
    def set_description_str(self, desc: str, refresh: bool) -> None: ...


class _Line:
    """The bar on the screen; it never goes back.

    If its stream cannot be written to, such as a full disk or a closed pipe, the bar ends and the call goes on.
    """

    def __init__(self, shown: _Shown) -> None:
        self._shown, self._position, self._label, self._open = shown, 0.0, "", True

    def to(self, at: float, label: str, now: bool = False) -> None:
        """Move to a share of the whole; `now` draws at once, otherwise tqdm limits how often it draws."""
        if not self._open:
            return
        step = max(0.0, WHOLE * at - self._position)
        self._position += step  # summed as tqdm sums, so that rounding cannot pass the whole
        with self._drawing():
            if label != self._label:
                self._label = label
                self._shown.set_description_str(_fitted(label), refresh=False)
            self._shown.update(step)
            if now:
                self._shown.refresh()

    def close(self, leave: bool) -> None:
        """End the bar: remove it from the screen, or leave it there."""
        if not self._open:
            return
        self._open = False
        self._shown.leave = leave
        with self._drawing():
            self._shown.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the bar inside, so that other text can be written."""
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
            self._shown.disable = True  # otherwise it is drawn again when it is garbage collected


class Span:
    """An interval of a bar that belongs to one task: move through it, or divide it into parts."""

    def __init__(self, line: _Line | None, start: float = 0.0, end: float = 1.0, label: str = "") -> None:
        self.line, self.label = line, label
        self._start, self._end, self._left = start, end, 1.0

    def expects(self, weight: float) -> None:
        """Set the total weight of all parts that follow."""
        self._left = max(weight, 0.0)

    def at(self, share: float, label: str = "") -> None:
        """Move to a share of the interval."""
        if self.line:
            self.line.to(self._place(share), label or self.label)

    def take(self, label: str, weight: float) -> "Span":
        """Take the next part."""
        is_expected = 0 < weight <= self._left * (1 + 1e-9)
        end = self._place(weight / self._left if is_expected else UNPLANNED if weight > 0 else 0.0)
        span = Span(self.line, self._start, end, label or self.label)
        self._start, self._left = end, self._left - weight if is_expected else self._left
        if self.line:
            self.line.to(span._start, span.label, now=bool(label))
        return span

    def _place(self, share: float) -> float:
        return self._start + (self._end - self._start) * min(max(share, 0.0), 1.0)


_HERE: ContextVar[Span | None] = ContextVar("progress", default=None)


def here() -> Span:
    """The interval of the current task; without a bar, one that draws nothing."""
    return _HERE.get() or Span(None)


@contextmanager
def bar(label: str) -> Iterator[None]:
    """Show a bar while the block runs; it is complete if the block succeeds. Inside another bar, show no second one.

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
    line = _open_line(label) if _is_shown() else None
    span = Span(line, label=label)
    span.expects(UNKNOWN)
    token = _HERE.set(span)
    succeeded = False
    try:
        if line:
            line.to(0.0, label, now=True)
        yield
        succeeded = True
    finally:
        _HERE.reset(token)
        if line:
            try:
                if succeeded:
                    line.to(1.0, "done", now=True)
            finally:
                line.close(leave=succeeded)


@contextmanager
def part(label: str, weight: float = 1.0) -> Iterator[Span]:
    """Begin the next part of the current task.

    Args:
        label: what is done in it; if empty, the label of the whole stays.
        weight: rough seconds, or another unit if `expects` uses it too.
    """
    span = here().take(label, weight)
    token = _HERE.set(span)
    try:
        yield span
    finally:
        _HERE.reset(token)
    span.at(1.0)


@contextmanager
def loading(module: str) -> Iterator[None]:
    """A part for importing a module of this package, and torch and transformers with it; none if it is imported."""
    if f"{PACKAGE}.{module}" in sys.modules:
        yield
        return
    with part("loading torch and transformers", LIBRARIES):
        yield


def expects(weight: float) -> None:
    """Set the total weight of all parts that follow in the current task."""
    here().expects(weight)


def tracked(items: Iterable[T], weights: Sequence[float], labels: Sequence[str] = ()) -> Iterator[T]:
    """Yield the items and move through the current interval, even if another thread iterates.

    Args:
        weights: one per item.
        labels: one per item.
    """
    return _moving(here(), items, weights, labels)


def _moving(span: Span, items: Iterable[T], weights: Sequence[float], labels: Sequence[str]) -> Iterator[T]:
    total, done = sum(weights) or 1.0, 0.0
    for number, item in enumerate(items):
        span.at(done / total, labels[number] if labels else "")
        yield item
        done += weights[number]
    span.at(1.0)


def withdraw() -> None:
    """End the bar: what follows shows bars of its own."""
    line = here().line
    if line:
        line.close(leave=False)


@contextmanager
def aside() -> Iterator[None]:
    """Hide the bar inside, so that other text can be written in its place."""
    line = here().line
    if line is None:
        yield
        return
    with line.aside():
        yield


def _open_line(label: str) -> _Line | None:
    from transformers.utils import (
        logging as library,
    )  # imported late: it takes a second, which a program without a bar need not spend

    # Without smoothing: the mean rate estimates the time left better than the latest one. Every update may be drawn.
    settings: dict[str, Any] = {"bar_format": FORMAT, "smoothing": 0, "miniters": 0, "dynamic_ncols": True}
    try:
        with _unlocking():
            return _Line(library.tqdm(total=WHOLE, desc=_fitted(label), **settings))
    except UNDRAWN:
        return None


@contextmanager
def _unlocking() -> Iterator[None]:
    """Release tqdm's lock if drawing raises: tqdm keeps it then, and bars of other threads would wait for ever."""
    from tqdm.auto import tqdm  # the class of transformers' bars

    lock = tqdm.get_lock()
    free = [part for part in getattr(lock, "locks", [lock]) if not _is_held(part)]
    try:
        yield
    except BaseException:  # including an interrupt
        for part in reversed(free):
            while _is_held(part):
                part.release()
        raise


def _is_held(lock: Any) -> bool:
    """Whether this thread holds a re-entrant lock of threading or multiprocessing."""
    is_owned = getattr(lock, "_is_owned", None) or getattr(getattr(lock, "_semlock", None), "_is_mine", None)
    return is_owned is not None and bool(is_owned())


def _is_shown() -> bool:
    """Whether transformers shows bars and this is the first process of its job."""
    from transformers.utils import logging as library  # late, as above

    return library.is_progress_bar_enabled() and _rank() == "0"


def _rank() -> str:
    dist = sys.modules.get("torch.distributed")  # without importing torch
    if dist is not None and dist.is_available() and dist.is_initialized():
        return str(dist.get_rank())
    return next((os.environ[name] for name in RANKS if name in os.environ), "0")


def _fitted(label: str) -> str:
    """The label padded or cut to `WIDTH` columns; of a long name the end stays, which tells most."""
    if len(label) <= WIDTH:
        return label.ljust(WIDTH)
    head, space, name = label.partition(" ")
    return f"{head}{space}...{name[len(head) + len(space) + 3 - WIDTH :]}"


# -- rough seconds on one core: they only divide the bar -----------------------

READING_SECONDS, CHECKING_SECONDS, OPENING_SECONDS, LOOKING_SECONDS = 0.3, 0.4, 1.0, 0.2  # for a source of usual size
DATA_SECONDS = 1.0  # to read files into batches
UNSEEN_SECONDS = 0.1  # for work that is not estimated
RATE = 2e10  # multiply-adds per second in float32; in float64 half as many
COPYING = 150  # multiply-adds that take as long as moving one number through memory and measuring it
BYTES = 1e9  # written or copied per second
TOKENS = 4096  # assumed for calibration batches that cannot be counted without running them
LEARNT = 1024  # tokens in a batch that an operator learns from

Lengths = Mapping[str, int | None]


class Roles(Protocol):
    """The part of an architecture's roles that is used here."""

    @property
    def streams(self) -> tuple[str, ...]: ...
    @property
    def units(self) -> tuple[str, ...]: ...
    def is_whole(self, name: str) -> bool: ...


class Task(Protocol):
    """The part of a method's task that is used here."""

    @property
    def roles(self) -> Roles: ...
    @property
    def target(self) -> Lengths: ...
    def ratio(self, role: str) -> float: ...


class Network(Protocol):
    """The part of an opened source that is used here."""

    @property
    def roles(self) -> Roles: ...
    @property
    def sizes(self) -> Lengths: ...
    @property
    def places(self) -> Mapping[str, Any]: ...
    @property
    def all_layers(self) -> Sized: ...
    def numel(self, name: str) -> int: ...
    def tensors_with(self, role: str) -> Iterable[tuple[str, Any]]: ...


class Plan(Protocol):
    """The part of a plan that is used here; a step has a recipe, parameters and the names that it reads."""

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
    """Seconds to rewrite an opened source before the plan is made."""
    if calibration is None:
        ordering = sum(ordering_seconds(network, role) for role in _shrunk(task))
        turning = sum(basis_seconds(task, network, stream) for stream in task.roles.streams)
        return ordering + turning + UNSEEN_SECONDS
    running = calibrating_seconds(network, calibration) + fitting_seconds(task, network)
    return running + preparing_seconds(task, network, None)


def ordering_seconds(network: Network, role: str) -> float:
    """Inner products of all pairs of units of a role; symmetry saves half of them."""
    products = sum(network.numel(name) for name, place in network.tensors_with(role) if place.rule.maps)
    return products * (network.sizes[role] or 0) / 2 / RATE


def basis_seconds(task: Task, network: Network, stream: str) -> float:
    """Moments of a stream after every block, their eigenvectors, and the moments in the smaller basis."""
    if stream not in _shrunk(task):
        return 0.0
    width = network.sizes[stream] or 0
    return (0.7 * _matrices(network) * width + 60 * width**3) / RATE


def calibrating_seconds(network: Network, batches: Iterable[Mapping[str, Any]]) -> float:
    """Running the source, and the second moments of the inputs of its matrices, in float64."""
    moments = sum(2 * width**2 for width in _read_widths(network))
    return _tokens(batches) * (_matrices(network) + moments) / RATE


def fitting_seconds(task: Task, network: Network) -> float:
    """For every matrix, in float64: reordering the moments, and a least-squares fit."""
    ratio = min((task.ratio(role) for role in _shrunk(task)), default=0)
    return sum(2 * (2 + 1.5 * ratio) * width**3 for width in _read_widths(network)) / RATE if ratio else 0.0


def after_plan_seconds(network: Network) -> float:
    """All that follows the plan, estimated before the target is known."""
    width = _width(network.roles, network.sizes)
    return sum(network.numel(name) for name in network.places) * (COPYING + width / 2) / RATE + UNSEEN_SECONDS


def resizing_seconds(plan: Plan) -> float:
    """All steps of a plan."""
    before, after = (_width(plan.roles, sizes) for sizes in (plan.source_sizes, plan.target_sizes))
    operations = COPYING + (after if after < before else 0)
    return (
        sum(numbers_of(plan, step) for step in plan.steps if step.recipe is not None) * operations / RATE
        + UNSEEN_SECONDS
    )


def numbers_of(plan: Plan, step: Any) -> int:
    """How many entries a step reads and writes."""
    read = sum(math.prod(plan.source.shapes.get(name, ())) for name in set(step.reads.values()))
    return int(step.parameters + read)


def learning_seconds(plan: Plan, steps: int) -> float:
    """Fitting an operator: every step computes the target's matrices and runs the target forward and backward."""
    widths = sum(_width(plan.roles, sizes) for sizes in (plan.source_sizes, plan.target_sizes))
    return steps * _parameters(plan) * 3 * (LEARNT + widths) / RATE + UNSEEN_SECONDS


def finishing_seconds(plan: Plan) -> float:
    """Building the target around its tensors, or writing what stands beside them."""
    return _parameters(plan) * 4 / BYTES + UNSEEN_SECONDS


def _shrunk(task: Task) -> list[str]:
    """The widths that get smaller."""
    widths = (*task.roles.streams, *task.roles.units)
    return [role for role in widths if task.target.get(role) and task.ratio(role) < 1]


def _width(roles: Roles, sizes: Lengths) -> int:
    """The width of the widest residual stream."""
    return max((sizes[stream] or 0 for stream in roles.streams), default=0)


def _parameters(plan: Plan) -> int:
    return sum(int(step.parameters) for step in plan.steps)


def _matrices(network: Network) -> int:
    return sum(network.numel(name) for name, place in network.places.items() if place.rule.maps)


def _read_widths(network: Network) -> list[int]:
    """The input width of every linear module."""
    roles, sizes = network.roles, network.sizes
    units = [sizes[unit] or 0 for unit in roles.units if not roles.is_whole(unit)]
    return [*[_width(roles, sizes)] * 3, *units[:1]] * len(network.all_layers)


def _tokens(batches: Iterable[Mapping[str, Any]]) -> int:
    """How many tokens a list of batches has; for iterables that cannot be counted, a guess."""
    if not isinstance(batches, (list, tuple)):
        return TOKENS
    tokens: list[Any] = [batch.get("input_ids") for batch in batches if isinstance(batch, Mapping)]
    return sum(ids.numel() for ids in tokens if hasattr(ids, "numel")) or TOKENS


# -- messages -------------------------------------------------------------------------------------


def _follows(record: logging.LogRecord) -> bool:
    """Whether transformers shows its own messages of this level."""
    from transformers.utils import logging as library  # late, as above

    library.get_verbosity()  # sets up transformers' logger if it is not yet
    return logging.getLogger(LIBRARY).isEnabledFor(record.levelno)


class _WithTransformers(logging.Handler):
    """Passes every record to the handlers that transformers' messages reach, once to each."""

    def handle(self, record: logging.LogRecord) -> bool:
        library, root = logging.getLogger(LIBRARY), logging.getLogger()
        handlers = [*library.handlers, *(root.handlers if library.propagate and not logger.propagate else ())]
        for handler in dict.fromkeys(handlers):
            if record.levelno >= handler.level and handler not in logger.handlers:
                with aside():
                    _with_our_name(handler).handle(record)
        return True


def _with_our_name(handler: logging.Handler) -> logging.Handler:
    """Transformers' default handler, with our name in front of the message instead of transformers'.

    A handler that the user has added, or whose format has the logger's name, is used as it is.
    """
    from transformers.utils import logging as library  # late, as above

    format_: str = getattr(handler.formatter, "_fmt", None) or "%(message)s"
    # A private name, since the library gives out its handler by no public function; without it nothing is renamed.
    default: logging.Handler | None = getattr(library, "_default_handler", None)
    if handler is not default or "%(name)" in format_:
        return handler
    ours = format_.replace(f"[{LIBRARY}] ", "").replace("%(message)s", f"[{PACKAGE}] %(message)s")
    renamed = copy.copy(handler)  # the same stream, lock and filters
    renamed.setFormatter(logging.Formatter(ours, getattr(handler.formatter, "datefmt", None)))
    return renamed


@contextmanager
def diverted(handler: logging.Handler) -> Iterator[None]:
    """Send our messages to this handler only, inside the block."""
    before = list(logger.handlers)
    logger.handlers[:] = [handler]
    try:
        yield
    finally:
        logger.handlers[:] = before


logger = logging.getLogger(PACKAGE)
if not any(isinstance(handler, _WithTransformers) for handler in logger.handlers):
    logger.setLevel(logging.DEBUG)  # transformers' verbosity decides what is shown:
    logger.addFilter(_follows)
    logger.propagate = False
    logger.addHandler(_WithTransformers())
