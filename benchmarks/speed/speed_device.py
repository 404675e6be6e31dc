"""Clocks, memory peaks and pinned memory of a device; all other code is the same for CPU and GPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Device:
    """A device by torch's name, "cpu" or "cuda"."""

    name: str = "cpu"

    @property
    def is_cuda(self) -> bool:
        return self.name.startswith("cuda")

    @property
    def title(self) -> str:
        return torch.cuda.get_device_name(self.name) if self.is_cuda else "cpu"

    def seconds(self, function: Callable[[], object], calls: int = 1) -> float:
        """Mean seconds of `calls` calls in a row, on the device's own clock if it has one."""
        if not self.is_cuda:
            start = time.perf_counter()
            for _ in range(calls):
                function()
            return (time.perf_counter() - start) / calls
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.name)
        begin.record()
        for _ in range(calls):
            function()
        end.record()
        torch.cuda.synchronize(self.name)
        return begin.elapsed_time(end) / 1000 / calls

    def wall_seconds(self, function: Callable[[], object]) -> float:
        """Wall-clock seconds until the device has finished one call."""
        self.synchronise()
        start = time.perf_counter()
        function()
        self.synchronise()
        return time.perf_counter() - start

    def synchronise(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.name)

    def forget_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.name)

    def peak(self) -> int | None:
        """Most device bytes in tensors since `forget_peak`; None on a CPU, where no allocator counts them."""
        return torch.cuda.max_memory_allocated(self.name) if self.is_cuda else None

    def free(self) -> int | None:
        """Bytes that are free on the device; None on a CPU."""
        return torch.cuda.mem_get_info(self.name)[0] if self.is_cuda else None

    def pinned(self, tensor: Tensor) -> Tensor:
        """A host tensor that the device can copy by itself."""
        return tensor.pin_memory() if self.is_cuda else tensor
