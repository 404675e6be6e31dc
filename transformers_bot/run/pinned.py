"""Source tensors on a GPU: copied there through pinned memory, the next one while this one is computed with.

A tensor of a mapped file is in pageable memory, from which a GPU copies only while the caller waits. So
pieces of it go into one of two pinned buffers, from where the GPU fetches them by itself, while the other
buffer is filled. All copies are queued on the caller's stream: what is computed there later finds them
done, and memory that is freed there can be filled again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

PIECE = 32 << 20  # bytes of each of the two buffers


class Engine(Protocol):
    """What copies to a device by itself."""

    def buffer(self, size: int) -> Tensor:
        """`size` bytes that the device can read."""

    def empty(self, like: Tensor) -> Tensor:
        """Memory on the device for a tensor of this shape and dtype."""

    def start(self, staged: Tensor, into: Tensor) -> Callable[[], None]:
        """Start copying; what is returned waits until `staged` may be changed."""

    def same_queue(self) -> AbstractContextManager[object]:
        """Inside, another thread's copies join those that the thread which made this engine queues."""


class CudaEngine:
    """A GPU, as `Engine`."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.current_stream(device)

    def buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def empty(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device=self._device)

    def start(self, staged: Tensor, into: Tensor) -> Callable[[], None]:
        into.copy_(staged, non_blocking=True)
        return self._stream.record_event().synchronize  # type: ignore[no-any-return]

    def same_queue(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)


class Staging:
    """Copies tensors to a device through two buffers that are used in turn."""

    def __init__(self, engine: Engine, piece: int = PIECE) -> None:
        self._engine = engine
        self._buffers = deque((engine.buffer(piece), _nothing) for _ in range(2))

    def sent(self, x: Tensor) -> Tensor:
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


class Sent(Mapping[str, Tensor]):
    """The tensors of a mapping on a device, each copied there when it is asked for, the next one ahead of that.

    Example:
        with Sent(tensors, CudaEngine(device), order) as there:
            x = there["wte.weight"]

    Args:
        tensors: name -> tensor in ordinary memory.
        engine: of the device.
        order: the names in which tensors are likely to be asked for. Another order costs time, nothing else.
        piece: bytes that are copied at a time.
    """

    def __init__(self, tensors: Mapping[str, Tensor], engine: Engine, order: Iterable[str], piece: int = PIECE) -> None:
        self._tensors, self._engine = tensors, engine
        self._staging = Staging(engine, piece)
        self._order = deque(order)
        self._ahead: tuple[str, Future[Tensor]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="transformers-bot-reader")

    def __getitem__(self, name: str) -> Tensor:
        known, self._ahead = self._ahead, None
        mine = known[1] if known and known[0] == name else self._asked(name)
        del known
        while name in self._order and self._order.popleft() != name:
            pass
        if self._order:
            self._ahead = self._order[0], self._asked(self._order[0])
        return mine.result()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self) -> "Sent":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ahead = None
        self._reader.shutdown(cancel_futures=True)

    def _asked(self, name: str) -> Future[Tensor]:
        return self._reader.submit(self._read, name)

    def _read(self, name: str) -> Tensor:
        with self._engine.same_queue(), torch.no_grad():
            return self._staging.sent(self._tensors[name])


def _pieces(x: Tensor, entries: int) -> tuple[Tensor, ...]:
    return torch.split(x.reshape(-1), entries)


def _nothing() -> None:
    """No copy has to be waited for."""
