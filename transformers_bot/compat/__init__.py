"""Everything that depends on internals of transformers, torch, glibc and Linux: check it again with each release.

Names that begin with an underscore may disappear with any release. Unless a comment says otherwise, they were read in
transformers 5.0 and 5.24, torch 2.4 and 2.13, accelerate 1.3 and 1.15. Process-wide state is changed only for as long
as one call needs it, and settings that other threads make meanwhile are kept.
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
# dtype is set, all three for the whole process. If two calls overlap, the one that ends last restores what the other
# had set. So our calls run one at a time (`building`), and files of the Hub are downloaded before. Models without
# memory (`blank`) and random numbers (`drawn_from`) need no such lock: torch's function modes work in one thread.

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
    """Let one thread at a time call `from_pretrained`; the same thread may enter again inside."""
    with _BUILDING:
        if _UNDIVIDED.get():
            with _without_splitting():
                yield
        else:
            yield


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Inside, transformers reads and builds whole models, whatever ZeRO-3 or FSDP is set up for training.

    It takes effect only while this package builds models (`building`); in between, a training in another thread
    has its setup back.
    """
    token = _UNDIVIDED.set(True)
    try:
        yield
    finally:
        _UNDIVIDED.reset(token)


@contextlib.contextmanager
def _without_splitting() -> Iterator[None]:
    """Hide the setup for split models from transformers."""
    reference = zero._hf_deepspeed_config_weak_ref  # private: the only access to the object to restore
    config = reference() if reference is not None else None
    fsdp = os.environ.get(FSDP)
    zero.unset_hf_deepspeed_config()
    if fsdp is not None:
        os.environ[FSDP] = "false"
    try:
        yield
    finally:
        if config is not None and zero._hf_deepspeed_config_weak_ref is None:  # else a new one was set meanwhile
            zero.set_hf_deepspeed_config(config)
        if fsdp is not None and os.environ.get(FSDP) == "false":
            os.environ[FSDP] = fsdp


def blank() -> "contextlib.AbstractContextManager[object]":
    """Inside, this thread makes tensors without memory and without values, which costs next to nothing.

    Our own, because both existing ways affect other threads: accelerate's `init_empty_weights` replaces
    `nn.Module.register_parameter` for all of them (read in 1.15), so that a model built in another thread loses
    its weights, and `with torch.device("meta")` stores the device in a global variable of torch.
    """
    return _Blank("meta")


class _Blank(DeviceContext):
    """Like `torch.device("meta")`, but it skips initialisation and sets nothing for the whole process."""

    def __enter__(self) -> Any:
        return TorchFunctionMode.__enter__(self)  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        TorchFunctionMode.__exit__(self, kind, error, trace)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in FILLING or _initialises(func):  # drawing unused numbers would take most of the time
            return args[0] if args else (kwargs or {})["tensor"]
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def drawn_from(seed: int) -> "contextlib.AbstractContextManager[object]":
    """Inside, this thread draws the numbers that follow `torch.manual_seed(seed)`; no existing generator changes.

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
    """Passes its own generator to every random function that is called without one."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if keywords.get("generator") is None and (device := _device_drawn_on(func, args, keywords)) is not None:
            keywords["generator"] = self._generator(device)
        return func(*args, **keywords)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _device_drawn_on(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device on which a function draws numbers; None if it draws none, or only on the meta device."""
    if func in MAKING:
        like = next((x for x in args if isinstance(x, Tensor)), None)  # means and deviations
        requested = like.device if like is not None else kwargs.get("device")
        device = torch.empty(0).device if requested is None else torch.device(requested)
    elif func in DRAWING or ("generator" in kwargs and _initialises(func)):
        device = (args[0] if args else kwargs["tensor"]).device
    else:
        return None
    return None if device.type == "meta" else device


def _initialises(func: Callable[..., Any]) -> bool:
    """Whether it is a function of `torch.nn.init`, or of transformers' replacement for it."""
    return getattr(func, "__module__", None) in INITIALISING


# -- private attributes of transformers and torch -------------------------------------------------

# Keywords of `transformers.utils.cached_file`: return None, not an error, for a file that is missing; with NO_ERROR,
# also for one that cannot be accessed or downloaded.
NO_MISSING_ENTRY = {"_raise_exceptions_for_missing_entries": False}
NO_CONNECTION = {"_raise_exceptions_for_connection_errors": False}
NO_ERROR = NO_MISSING_ENTRY | NO_CONNECTION | {"_raise_exceptions_for_gated_repo": False}


def use_eager_attention(config: "PreTrainedConfig") -> None:
    """Let models of this config compute attention step by step: `attn_implementation=` is a keyword of loading only.

    Experts, too: their faster implementations have no double precision.
    """
    config._attn_implementation = "eager"
    use_eager_experts(config)


def use_eager_experts(config: "PreTrainedConfig") -> None:
    """Let models of this config compute one expert after another, in any precision."""
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"


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
    """Whether an Auto class has found that the checkpoint is an adapter: it passes this on to the model's class."""
    return "_adapter_model_path" in (keywords.get("adapter_kwargs") or {})


def zero_init_is_active() -> bool:
    """Whether `deepspeed.zero.Init` partitions every weight as soon as it is made; no public function tells (0.19)."""
    partition = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    return bool(getattr(partition, "zero_init_context", 0))


def default_store() -> "Store":
    """The key-value store that torch.distributed runs on; public functions only make new stores."""
    return dist.distributed_c10d._get_default_store()  # type: ignore[attr-defined, no-any-return]


# -- muting transformers --------------------------------------------------------------------------
# For the calling thread alone: transformers' own switches are for a whole process.

THEIRS = "transformers"
_MUTING = threading.Lock()
_THREAD = threading.local()


def _depth(kind: str) -> int:
    """The number of nested muting blocks of a kind in the calling thread."""
    depth: int = getattr(_THREAD, kind, 0)
    return depth


class _Muting(logging.Filter):
    """Drops what a muted thread logs below an error."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not _depth("messages")


class _Filters:
    """The filter on all of transformers' loggers, from the first thread that mutes to the last."""

    def __init__(self) -> None:
        self._filter, self._users = _Muting(), 0
        self._loggers: list[logging.Logger] = []

    def add(self) -> None:
        loggers = list(logging.root.manager.loggerDict.items())
        theirs = [logger for name, logger in loggers if name == THEIRS or name.startswith(f"{THEIRS}.")]
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
        self._before: Any = None  # the hook or switch that was set before
        self._ours: Any = None  # one bound method, to recognise it later
        # transformers 5.0 has no hook for bars, only a switch for all threads.
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
                if now is not self._ours:  # another hook was set meanwhile: keep it
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
    """Mute transformers' load report and bars in this thread, since our own table says the same; errors pass."""
    _FILTERS.add()
    _THREAD.messages = _depth("messages") + 1
    try:
        with no_bars():
            yield
    finally:
        _THREAD.messages -= 1
        _FILTERS.remove()


# -- memory ---------------------------------------------------------------------------------------
# glibc (read in 2.36) returns a freed block to the system at once if it is larger than every block freed before (at
# most 32 MiB), and free memory at the end of its heap beyond twice that. torch caches only the memory of devices.

REUSED = 31 << 20  # bytes: a little below the size from which glibc returns every freed block at once
GROUPS = Path("/sys/fs/cgroup")
# A container's memory limit and use, in versions 2 and 1 of Linux's control groups, which psutil does not read.
LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
# Messages of torch and numpy when an allocation fails.
FAILED = re.compile(r"can't allocate memory|Unable to allocate|not enough memory|Cannot allocate memory")


def release() -> None:
    """Return freed memory to the system where the C library is glibc; elsewhere nothing needs to be done."""
    trim = _trim()
    if trim is not None:
        trim(0)


def reuse() -> None:
    """Make glibc reuse the memory of temporary tensors, from the first one on: freeing a large block raises its limit.

    Otherwise the first resize of a process waits for twice as many new pages, a microsecond for each 4 KiB. The
    block itself costs nothing, because it is never touched.
    """
    torch.empty(REUSED, dtype=torch.uint8, device="cpu")


class Releasing:
    """Returns freed memory to the system after every `every` bytes of tensors; after each tensor it would take long."""

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
    """Raise if fewer than `needs` bytes are available.

    Args:
        needs: bytes that are certainly held at one time; never more, or a resize that fits would be refused.
        what: the thing that needs them, for the message.
        remedy: for the message.

    Raises:
        TooLittleMemory: there is less.
    """
    free = available()
    if needs > free:
        raise TooLittleMemory(f"{what} takes {_size(needs)} of memory, and {_size(free)} can be had here. {remedy}")


@contextlib.contextmanager
def told_of_memory(action: str, needs: int) -> Iterator[None]:
    """Turn a failed allocation into a `TooLittleMemory`.

    Args:
        needs: the most bytes that this may take, for the message.
    """
    try:
        yield
    except TooLittleMemory:
        raise
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not FAILED.search(str(error)):
            raise
        raise TooLittleMemory(
            f"{action} ran out of memory: it takes up to {_size(needs)} beside the source's mapped files, and "
            f"{_size(available())} can be had here. Resize on a machine with more, or to smaller sizes."
        ) from error


def _own_limit() -> list[int]:
    """The free address space, if that of this process is limited (`ulimit -v`)."""
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
    """Bytes of cached files, which a container drops when memory is needed."""
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
