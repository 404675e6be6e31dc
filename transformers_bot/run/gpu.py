"""A result that is to lie on one GPU as a whole: which GPU, and how transformers takes it over there.

transformers first reserves as much device memory as the model needs (`caching_allocator_warmup`) and lets
it go again for the parameters to take. Results that were on the device already would lie beside that: twice
the model. So each is computed when transformers asks for it, inside what was reserved, and becomes the
parameter: the peak is the model and what one tensor needs. Seen in transformers 5.23.
"""

import contextlib
import os
import re
import threading
from collections.abc import Generator, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .processes import SPLITTING


def gpu_for(target: Mapping[str, Any], config: PreTrainedConfig) -> torch.device | None:
    """The GPU that `device_map` names for the whole model, with its number; None where it names none that is here.

    Then, and where the model is split or quantised, it is computed on the CPU, and placing it (or refusing
    to) is transformers' business.

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
    """Of the one GPU that a `device_map` names, as transformers understands it."""
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


class Arriving:
    """Results that are computed as they are asked for, from any thread: one at a time, always in their own order.

    What comes before the one that is asked for waits on the device, where it has to lie in the end anyway.

    Args:
        results: (name, tensor), computed by `next`.
        device: where; its stream of this moment is the one that they are computed on.
    """

    def __init__(self, results: Generator[tuple[str, Tensor], None, None], device: torch.device) -> None:
        self._results, self._made = results, dict[str, Tensor]()
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def entries(self, names: Iterable[str]) -> dict[str, "Entry"]:
        """What stands for each result in a state dict."""
        return {name: Entry(self, name) for name in names}

    def take(self, name: str) -> Tensor:
        """The result of this name, which is no longer held here.

        Raises:
            LookupError: there is none, or it was taken before.
            What computing it, or one before it, has raised.
        """
        with self._lock, _on_stream(self._stream):
            while name not in self._made:
                self._advance(name)
            return self._made.pop(name)

    def __enter__(self) -> "Arriving":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock, _on_stream(self._stream):
            if error is None:
                self._made.update(self._results)  # nothing is left, but only its end completes a progress bar
            self._results.close()
            self._made.clear()

    def _advance(self, name: str) -> None:
        if self._error is not None:  # all who wait learn the reason
            raise self._error
        try:
            made = next(self._results, None)
        except BaseException as error:
            self._error = error
            raise
        if made is None:
            raise LookupError(f"{name} is no result, or was taken before")
        self._made[made[0]] = made[1]


class Entry:
    """One result in a state dict: `entry[...]` computes it, which is how transformers reads tensors of files."""

    def __init__(self, results: Arriving, name: str) -> None:
        self._results, self._name = results, name

    def __getitem__(self, index: Any) -> Tensor:
        whole = self._results.take(self._name)
        return whole if index is ... else whole[index]


def _on_stream(stream: "torch.cuda.Stream | None") -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)
