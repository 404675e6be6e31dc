"""Builds models through transformers in many threads, and leaves no trace in what a process shares.

While transformers' `from_pretrained` runs, tying is switched off, initialisation is guarded and another
default dtype is set, all three for the whole process; of two calls that overlap, the one that ends last
leaves behind what the other had set. So ours go one at a time (`building`); what needs the files of the Hub
fetches them before. Models without memory (`blank`) and random numbers (`drawn_from`) need no switch at
all: torch's function modes work in one thread.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext  # what `with torch.device(...)` enters
from transformers.integrations import deepspeed as zero

_LOCK = threading.RLock()  # a model's constructor may load another one
_UNDIVIDED: ContextVar[bool] = ContextVar("undivided", default=False)
FSDP = "ACCELERATE_USE_FSDP"
INITIALISING = ("torch.nn.init", "transformers.initialization")
FILLING = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_})
DRAWING = frozenset(
    {Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.random_, Tensor.exponential_, Tensor.cauchy_}
    | {Tensor.geometric_, Tensor.log_normal_, torch.bernoulli, torch.multinomial}
)
MAKING = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal})


@contextlib.contextmanager
def building() -> Iterator[None]:
    """The right to call `from_pretrained`, of one thread at a time; it may be taken again inside."""
    with _LOCK:
        if _UNDIVIDED.get():
            with _switched_off():
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
def _switched_off() -> Iterator[None]:
    """Hide the setup for split models from transformers."""
    reference = zero._hf_deepspeed_config_weak_ref  # the only way to the object that has to be set again
    config = reference() if reference is not None else None
    fsdp = os.environ.get(FSDP)
    zero.unset_hf_deepspeed_config()
    if fsdp is not None:
        os.environ[FSDP] = "false"
    try:
        yield
    finally:
        if config is not None and zero._hf_deepspeed_config_weak_ref is None:  # else another one was made meanwhile
            zero.set_hf_deepspeed_config(config)
        if fsdp is not None and os.environ.get(FSDP) == "false":
            os.environ[FSDP] = fsdp


def blank() -> "contextlib.AbstractContextManager[object]":
    """Inside, this thread makes tensors without memory and without values, which costs next to nothing."""
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
