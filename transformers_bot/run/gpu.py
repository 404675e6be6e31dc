"""Results that go to one GPU as a whole: which GPU, how sources are copied there, how transformers takes results.

Why this is not left to libraries:

- transformers first reserves as much device memory as the model needs (`caching_allocator_warmup`) and frees it again
  for the parameters. Results that were on the device before would need memory beside that: twice the model. So each is
  computed when transformers asks for it, in the reserved memory, and becomes the parameter: the peak is the model and
  the temporaries of one tensor (`LazyResults`). Read in transformers 5.0 and 5.24.
- A tensor of a mapped file is in pageable memory, from which a GPU copies only while the caller waits. `pin_memory()`
  of every tensor would lock as much memory as the largest needs and keep it in torch's cache, and safetensors reads to
  a device without any overlap. So pieces go through two pinned buffers in turn (`Prefetched`).
"""

import contextlib
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..request.names import SPLITTING

PIECE = 32 << 20  # bytes of each of the two buffers


def gpu_for(target: Mapping[str, Any], config: PreTrainedConfig) -> torch.device | None:
    """The GPU that `device_map` names for the whole model, with its number; None where it names none that is here.

    If None, also for a split or quantised model, results are computed on the CPU, and transformers places the
    model or refuses to.

    Args:
        target: the keywords with which the result is to be loaded.
        config: of the target.
    """
    quantised = target.get("quantization_config") or getattr(config, "quantization_config", None)
    if quantised is not None or any(target.get(name) is not None for name in SPLITTING):
        return None
    number = _number(target.get("device_map"))
    return torch.device("cuda", number) if number is not None and number < torch.cuda.device_count() else None


def _number(device_map: Any) -> int | None:
    """The number of the one GPU that a `device_map` names, as transformers understands it."""
    if device_map == "cuda":
        return int(os.environ.get("LOCAL_RANK", "0"))
    if isinstance(device_map, dict):
        return _number_of(device_map[""]) if list(device_map) == [""] else None
    return _number_of(device_map)


def _number_of(device: Any) -> int | None:
    if isinstance(device, int) and not isinstance(device, bool):
        return device if device >= 0 else None
    if isinstance(device, str) and re.fullmatch(r"cuda(:\d+)?", device):
        device = torch.device(device)
    if not isinstance(device, torch.device) or device.type != "cuda":
        return None
    if device.index is None:
        return torch.cuda.current_device() if torch.cuda.is_available() else 0
    return device.index


# -- results --------------------------------------------------------------------------------------


class LazyResults:
    """Results that are computed as they are asked for, from any thread: one at a time, always in their own order.

    Results before the requested one are kept on the device, where they are needed in the end.

    Args:
        results: (name, tensor), computed by `next`.
        device: where they are computed, on the stream that is current now.
    """

    def __init__(self, results: Generator[tuple[str, Tensor], None, None], device: torch.device) -> None:
        self._results, self._waiting = results, dict[str, Tensor]()
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def state_dict(self, names: Iterable[str]) -> dict[str, "LazyTensor"]:
        """What stands for each result in a state dict."""
        return {name: LazyTensor(self, name) for name in names}

    def take(self, name: str) -> Tensor:
        """The result of this name, which is no longer held here.

        Raises:
            LookupError: there is none, or it was taken before.
            What computing it, or one before it, has raised.
        """
        with self._lock, _on_stream(self._stream):
            while name not in self._waiting:
                self._advance(name)
            return self._waiting.pop(name)

    def __enter__(self) -> "LazyResults":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock, _on_stream(self._stream):
            if error is None:
                self._waiting.update(self._results)  # none is left, but its end completes a progress bar
            self._results.close()
            self._waiting.clear()

    def _advance(self, name: str) -> None:
        if self._error is not None:  # every waiting thread gets the reason
            raise self._error
        try:
            result = next(self._results, None)
        except BaseException as error:
            self._error = error
            raise
        if result is None:
            raise LookupError(f"{name} is no result, or was taken before")
        self._waiting[result[0]] = result[1]


class LazyTensor:
    """One result in a state dict: `tensor[...]` computes it, which is how transformers reads tensors of files."""

    def __init__(self, results: LazyResults, name: str) -> None:
        self._results, self._name = results, name

    def __getitem__(self, index: Any) -> Tensor:
        tensor = self._results.take(self._name)
        return tensor if index is ... else tensor[index]


def _on_stream(stream: "torch.cuda.Stream | None") -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


# -- sources --------------------------------------------------------------------------------------


class Engine(Protocol):
    """A device that copies without the CPU."""

    def buffer(self, size: int) -> Tensor:
        """`size` bytes that the device can read."""

    def empty(self, like: Tensor) -> Tensor:
        """Memory on the device for a tensor of this shape and dtype."""

    def start(self, staged: Tensor, into: Tensor) -> Callable[[], None]:
        """Start copying; return a function that waits until `staged` may be changed."""

    def same_queue(self) -> contextlib.AbstractContextManager[object]:
        """Inside, another thread's copies join those that the thread which made this engine queues."""


class CudaEngine:
    """A GPU, as `Engine`.

    All copies are queued on the caller's stream: what is computed there later finds them done, and memory that is
    freed there can be filled again.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.current_stream(device)

    def buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def empty(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device=self._device)

    def start(self, staged: Tensor, into: Tensor) -> Callable[[], None]:
        into.copy_(staged, non_blocking=True)
        return self._stream.record_event().synchronize  # type: ignore[no-any-return]

    def same_queue(self) -> contextlib.AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)


class StagingBuffers:
    """Copies tensors to a device through two buffers that are used in turn: one is filled while the other is read."""

    def __init__(self, engine: Engine, piece: int = PIECE) -> None:
        self._engine = engine
        self._buffers = deque((engine.buffer(piece), _nothing) for _ in range(2))

    def send(self, x: Tensor) -> Tensor:
        """`x` on the device, where the copy may still be under way."""
        out = self._engine.empty(x)
        entries = self._buffers[0][0].numel() // x.element_size()
        for part, into in zip(_pieces(x, entries), _pieces(out, entries), strict=True):
            buffer, wait = self._buffers.popleft()
            wait()
            staged = buffer.view(x.dtype)[: part.numel()]
            staged.copy_(part)
            self._buffers.append((buffer, self._engine.start(staged, into)))
        return out


class Prefetched(Mapping[str, Tensor]):
    """The tensors of a mapping on a device, each copied there when it is asked for, the next one ahead of that.

    Example:
        with Prefetched(tensors, CudaEngine(device), order) as there:
            x = there["wte.weight"]

    Args:
        tensors: name -> tensor in ordinary memory.
        engine: of the device.
        order: the names in which tensors are likely to be asked for. Another order costs time, nothing else.
        piece: bytes that are copied at a time.
    """

    def __init__(self, tensors: Mapping[str, Tensor], engine: Engine, order: Iterable[str], piece: int = PIECE) -> None:
        self._tensors, self._engine = tensors, engine
        self._buffers = StagingBuffers(engine, piece)
        self._order = deque(order)
        self._ahead: tuple[str, Future[Tensor]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="transformers-bot-reader")

    def __getitem__(self, name: str) -> Tensor:
        ahead, self._ahead = self._ahead, None
        copy = ahead[1] if ahead and ahead[0] == name else self._start(name)
        del ahead
        while name in self._order and self._order.popleft() != name:
            pass
        if self._order:
            self._ahead = self._order[0], self._start(self._order[0])
        return copy.result()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead = None
        self._reader.shutdown(cancel_futures=True)

    def _start(self, name: str) -> Future[Tensor]:
        return self._reader.submit(self._read, name)

    def _read(self, name: str) -> Tensor:
        with self._engine.same_queue(), torch.no_grad():
            return self._buffers.send(self._tensors[name])


def _pieces(x: Tensor, entries: int) -> tuple[Tensor, ...]:
    return torch.split(x.reshape(-1), entries)


def _nothing() -> None:
    """There is no copy to wait for."""
