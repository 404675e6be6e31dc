"""What rests on how transformers, torch, glibc and Linux work inside, in one place, to be read again with each release.

Names that begin with an underscore may go with any release. Each says where it was read: in transformers 5.0 and
5.24, torch 2.4 and 2.13, accelerate 1.3 and 1.15, where nothing else is said. Nothing here changes what a process
shares for longer than one call needs it, and what other threads set meanwhile stays.
"""

import contextlib
import ctypes
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext  # what `with torch.device(...)` enters
from transformers.integrations import deepspeed as zero
from transformers.utils import logging as transformers_logging

from ..errors import TooLittleMemory

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from transformers import PreTrainedConfig, PreTrainedModel

# -- building models ------------------------------------------------------------------------------
# While transformers' `from_pretrained` runs, tying is switched off, initialisation is guarded and another default
# dtype is set, all three for the whole process; of two calls that overlap, the one that ends last leaves behind what
# the other had set. So ours go one at a time (`building`); what needs the files of the Hub fetches them before.
# Models without memory (`blank`) and random numbers (`drawn_from`) need no switch at all: torch's function modes work
# in one thread.

FSDP = "ACCELERATE_USE_FSDP"
INITIALISING = ("torch.nn.init", "transformers.initialization")
FILLING = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_})
DRAWING = frozenset(
    {Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.random_, Tensor.exponential_, Tensor.cauchy_}
    | {Tensor.geometric_, Tensor.log_normal_, torch.bernoulli, torch.multinomial}
)
MAKING = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal})
_BUILDING = threading.RLock()  # a model's constructor may load another one
_UNDIVIDED: ContextVar[bool] = ContextVar("undivided", default=False)


@contextlib.contextmanager
def building() -> Iterator[None]:
    """The right to call `from_pretrained`, of one thread at a time; it may be taken again inside."""
    with _BUILDING:
        if _UNDIVIDED.get():
            with _without_splitting():
                yield
        else:
            yield


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Inside, transformers reads and builds whole models, whatever ZeRO-3 or FSDP is set up for training.

    It holds where this package builds models (`building`); a training that goes on in another thread keeps
    its setup in between.
    """
    token = _UNDIVIDED.set(True)
    try:
        yield
    finally:
        _UNDIVIDED.reset(token)


@contextlib.contextmanager
def _without_splitting() -> Iterator[None]:
    """Hide the setup for split models from transformers."""
    reference = zero._hf_deepspeed_config_weak_ref  # private: the only way to the object that has to be set again
    config = reference() if reference is not None else None
    fsdp = os.environ.get(FSDP)
    zero.unset_hf_deepspeed_config()
    if fsdp is not None:
        os.environ[FSDP] = "false"
    try:
        yield
    finally:
        if config is not None and zero._hf_deepspeed_config_weak_ref is None:  # else another one was set meanwhile
            zero.set_hf_deepspeed_config(config)
        if fsdp is not None and os.environ.get(FSDP) == "false":
            os.environ[FSDP] = fsdp


def blank() -> "contextlib.AbstractContextManager[object]":
    """Inside, this thread makes tensors without memory and without values, which costs next to nothing.

    Our own, because both ready ways reach other threads: accelerate's `init_empty_weights` exchanges
    `nn.Module.register_parameter` for all of them (read in 1.15), so that a model built meanwhile elsewhere
    loses its weights, and `with torch.device("meta")` notes the device in a global of torch.
    """
    return _Blank("meta")


class _Blank(DeviceContext):
    """`torch.device("meta")`, which initialises nothing and, unlike that, notes nothing for the whole process."""

    def __enter__(self) -> Any:
        return TorchFunctionMode.__enter__(self)  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        TorchFunctionMode.__exit__(self, kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in FILLING or _initialises(func):  # drawing numbers for nothing is most of the time
            return args[0] if args else (kwargs or {})["tensor"]
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def drawn_from(seed: int) -> "contextlib.AbstractContextManager[object]":
    """Inside, what this thread draws is what follows `torch.manual_seed(seed)`; all generators stay as they are.

    Our own, because `torch.random.fork_rng` with a seed inside changes the generators of all threads meanwhile.

    >>> with drawn_from(3):
    ...     first = torch.nn.init.normal_(torch.empty(4)), torch.rand(2)
    >>> with torch.random.fork_rng(devices=[]):
    ...     _ = torch.default_generator.manual_seed(3)
    ...     again = torch.nn.init.normal_(torch.empty(4)), torch.rand(2)
    >>> torch.equal(first[0], again[0]), torch.equal(first[1], again[1])
    (True, True)
    """
    return _Drawn(seed)


class _Drawn(TorchFunctionMode):
    """Gives every function that draws, and that nobody has given one, a generator of its own."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if given.get("generator") is None and (device := _device_drawn_on(func, args, given)) is not None:
            given["generator"] = self._generator(device)
        return func(*args, **given)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _device_drawn_on(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """Where a function draws numbers; None where it draws none that anybody sees."""
    if func in MAKING:
        like = next((x for x in args if isinstance(x, Tensor)), None)  # means and deviations
        asked = like.device if like is not None else kwargs.get("device")
        device = torch.empty(0).device if asked is None else torch.device(asked)
    elif func in DRAWING or ("generator" in kwargs and _initialises(func)):
        device = (args[0] if args else kwargs["tensor"]).device
    else:
        return None
    return None if device.type == "meta" else device


def _initialises(func: Callable[..., Any]) -> bool:
    """Whether it is one of `torch.nn.init`, or what transformers puts in their place."""
    return getattr(func, "__module__", None) in INITIALISING


# -- private attributes of transformers and torch -------------------------------------------------

# Keywords of `transformers.utils.cached_file`: what is not there is None and no error, and what is not to be had, too.
NO_MISSING_ENTRY = {"_raise_exceptions_for_missing_entries": False}
NO_ERROR = NO_MISSING_ENTRY | {
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_connection_errors": False,
}


def use_eager_attention(config: "PreTrainedConfig") -> None:
    """Let models of this config compute attention step by step: `attn_implementation=` is a keyword of loading only."""
    config._attn_implementation = "eager"


def commit_of(config: "PreTrainedConfig") -> str | None:
    """The commit of the Hub that a config was read from, where transformers noted one."""
    return getattr(config, "_commit_hash", None)


def forget_renames(model: "PreTrainedModel") -> None:
    """Let a model be saved under the names of its class, not under those of the files it was loaded from."""
    if hasattr(model, "_weight_conversions"):  # set by the loader to undo its renames on saving
        del model._weight_conversions


def has_peft_adapter(model: "PreTrainedModel") -> bool:
    """Whether an adapter was loaded on this model; transformers' public `active_adapters` raises where none was."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def names_peft_adapter(keywords: Mapping[str, Any]) -> bool:
    """Whether an Auto class has found that the checkpoint is an adapter; it tells the model's class so."""
    return "_adapter_model_path" in (keywords.get("adapter_kwargs") or {})


def zero_init_is_active() -> bool:
    """Whether DeepSpeed takes every weight away as soon as it is made; no public function says it (0.19)."""
    partition = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    return bool(getattr(partition, "zero_init_context", 0))


def default_store() -> "Store":
    """The key-value store that torch.distributed runs on; the public functions give only stores of one's own."""
    return dist.distributed_c10d._get_default_store()  # type: ignore[attr-defined, no-any-return]


# -- muting transformers --------------------------------------------------------------------------
# For the calling thread alone: transformers' own switches are for a whole process.

THEIRS = "transformers"
_MUTING = threading.Lock()
_THREAD = threading.local()


def _depth(kind: str) -> int:
    """How many blocks of a kind the calling thread is inside of."""
    depth: int = getattr(_THREAD, kind, 0)
    return depth


class _Muting(logging.Filter):
    """Lets pass what other threads log, and errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not _depth("messages")


class _Filters:
    """The filter on all of transformers' loggers, from the first thread that mutes to the last."""

    def __init__(self) -> None:
        self._filter, self._users = _Muting(), 0
        self._loggers: list[logging.Logger] = []

    def add(self) -> None:
        known = list(logging.root.manager.loggerDict.items())
        theirs = [logger for name, logger in known if name == THEIRS or name.startswith(f"{THEIRS}.")]
        with _MUTING:
            self._users += 1
            for logger in theirs:
                if isinstance(logger, logging.Logger) and self._filter not in logger.filters:
                    logger.addFilter(self._filter)
                    self._loggers.append(logger)

    def remove(self) -> None:
        with _MUTING:
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
        self._ours: Any = None  # bound once, to be known again
        # transformers 5.0 has no hook for bars yet: the switch for all threads is what there is.
        self._set_hook = getattr(transformers_logging, "set_tqdm_hook", None)

    def add(self) -> None:
        with _MUTING:
            self._users += 1
            if self._users > 1:
                return
            if self._set_hook is not None:
                self._ours = self._hook
                self._before = self._set_hook(self._ours)
            else:
                self._before = transformers_logging.is_progress_bar_enabled()
                transformers_logging.disable_progress_bar()

    def remove(self) -> None:
        with _MUTING:
            self._users -= 1
            if self._users:
                return
            if self._set_hook is not None:
                now = self._set_hook(self._before)
                if now is not self._ours:  # somebody has set another one meanwhile
                    self._set_hook(now)
            elif self._before:
                transformers_logging.enable_progress_bar()

    def _hook(self, factory: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if _depth("bars"):
            return transformers_logging.EmptyTqdm(*args, **keywords)
        return self._before(factory, args, keywords) if self._before else factory(*args, **keywords)


_FILTERS, _BARS = _Filters(), _Bars()


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hide the progress bars that transformers starts in this thread."""
    _BARS.add()
    _THREAD.bars = _depth("bars") + 1
    try:
        yield
    finally:
        _THREAD.bars -= 1
        _BARS.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Mute transformers' load report and bars in this thread, while our own table tells the same; errors pass."""
    _FILTERS.add()
    _THREAD.messages = _depth("messages") + 1
    try:
        with no_bars():
            yield
    finally:
        _THREAD.messages -= 1
        _FILTERS.remove()


# -- memory ---------------------------------------------------------------------------------------
# glibc (read in 2.36) hands back at once what is larger than the largest block freed so far, up to 32 MiB, and what
# is free at the end of its heap beyond twice that. torch has a cache of its own only for the memory of devices.

REUSED = 31 << 20  # bytes: a little below what glibc maps apart and hands back at once, whatever came before
GROUPS = Path("/sys/fs/cgroup")
# memory's limit and use of a container, in version 2 and 1 of Linux's control groups, which psutil does not look at
LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
# what torch and numpy say when an allocation fails
FAILED = re.compile(r"can't allocate memory|Unable to allocate|not enough memory|Cannot allocate memory")


def release() -> None:
    """Return freed memory to the system where the C library is glibc; elsewhere nothing needs to be done."""
    trim = _trim()
    if trim is not None:
        trim(0)


def reuse() -> None:
    """Let glibc use the memory of temporary tensors again, from the first one on.

    A first resize of a process otherwise waits for twice as many fresh pages, a microsecond for each 4 KiB. A
    block that is freed untouched costs nothing.
    """
    torch.empty(REUSED, dtype=torch.uint8, device="cpu")


class Releasing:
    """Gives freed memory back after every `every` bytes of tensors: doing so after each would take its time."""

    def __init__(self, every: int) -> None:
        self._every, self._since = every, 0

    def made(self, size: int) -> None:
        """A tensor of `size` bytes was made, or read and done with."""
        self._since += size
        if self._since >= self._every:
            release()
            self._since = 0


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows has no handle of the process itself
        return None
    return trim


def available() -> int:
    """Bytes that this process can still take: of the machine with its swap, its container, and its own limit."""
    bounds = [int(psutil.virtual_memory().available + psutil.swap_memory().free)]
    for limit, used in LIMITS:
        most, now = _number(GROUPS / limit), _number(GROUPS / used)
        if most is not None and now is not None:
            bounds.append(most - now + _reclaimable((GROUPS / used).parent))
    return max(0, min([*bounds, *_own_limit()]))


def check_room(needs: int, what: str, remedy: str) -> None:
    """Raise where fewer than `needs` bytes can be had.

    Args:
        needs: what is certainly held at one time; never more, so that nothing is refused that would fit.
        what: needs it, for the message.
        remedy: for the message.

    Raises:
        TooLittleMemory: there is less.
    """
    there = available()
    if needs > there:
        raise TooLittleMemory(f"{what} takes {_size(needs)} of memory, and {_size(there)} can be had here. {remedy}")


@contextlib.contextmanager
def told_of_memory(doing: str, needs: int) -> Iterator[None]:
    """Turn a failed allocation into an error of ours.

    Args:
        needs: the most that this may take, for the message.
    """
    try:
        yield
    except TooLittleMemory:
        raise
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not FAILED.search(str(error)):
            raise
        raise TooLittleMemory(
            f"{doing} ran out of memory: it takes up to {_size(needs)} beside the source's mapped files, and "
            f"{_size(available())} can be had here. Resize on a machine with more, or to smaller sizes."
        ) from error


def _own_limit() -> list[int]:
    """What is left of the address space where this process is held to some (`ulimit -v`)."""
    try:
        import resource  # not on Windows
    except ImportError:
        return []
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return [] if most == resource.RLIM_INFINITY else [most - int(psutil.Process().memory_info().vms)]


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none ("max"), or no file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(group: Path) -> int:
    """Bytes of files that a container has cached and would drop."""
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0))


def _size(count: float) -> str:
    """
    >>> _size(1_500_000_000)
    '1.5 GB'
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
