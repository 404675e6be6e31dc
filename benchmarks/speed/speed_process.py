"""Fresh processes, and what a call costs in them: seconds, CPU seconds, memory."""

import importlib
import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

PERIOD = 0.005  # seconds between two readings of the memory
STATUS = Path("/proc/self/status")
READY = [  # imported once, by the server that forked processes come from
    "pywt",
    "transformers.modeling_utils",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("bert", "deit", "gpt2", "vit")),
    "transformers_bot.run.loading",
    "transformers_bot.tools.resize_checkpoint",
    "transformers_bot.ops.wavelets",
]


def forked(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a call in a new process that has imported everything and computed nothing yet.

    It is forked from a server that has only imported: its memory is that of a new interpreter after the same imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(READY)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_ready, function, args).result()


def _ready(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    for name in READY:  # does nothing unless the server could not import one, which it does not report
        importlib.import_module(name)
    return function(*args)


class Meter:
    """Costs of the block it is around, as a dict in `costs`: seconds, and memory in bytes.

        wall, cpu        seconds; cpu is that of all threads
        faults           pages of memory that were handed out or mapped meanwhile, each an interruption
        anonymous_peak   most anonymous memory (RssAnon) over that before the block, looked at every 5 ms
        anonymous_end    the same at its end
        rss_before       resident memory before the block, mapped files and libraries included
        rss_peak         most resident memory since the process began (ru_maxrss): exact, nothing subtracted

    Memory comes from /proc/self/status: it is measured on Linux only, elsewhere the block raises OSError. The
    measuring thread takes less than one per cent of a core.
    """

    def __enter__(self) -> "Meter":
        self.costs: dict[str, float] = {}
        self._before, self._faults = memory(), faults()
        self._peak = self._before["RssAnon"]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        faulted, end = faults() - self._faults, memory()["RssAnon"]
        self._ended.set()
        self._thread.join()
        before = self._before["RssAnon"]
        self.costs = {
            "wall": wall,
            "cpu": cpu,
            "faults": faulted,
            "anonymous_peak": max(self._peak, end) - before,
            "anonymous_end": end - before,
            "rss_before": self._before["VmRSS"],
            "rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def _watch(self) -> None:
        while not self._ended.wait(PERIOD):
            self._peak = max(self._peak, memory()["RssAnon"])


def memory() -> dict[str, int]:
    """VmRSS and RssAnon of this process in bytes."""
    lines = STATUS.read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon")}


def faults() -> int:
    """Page faults of this process so far that needed no disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def read_through(folder: str | os.PathLike[str]) -> int:
    """Read every file of a folder, so that the system has them in memory; their bytes."""
    total, buffer = 0, bytearray(16 * 2**20)
    for path in sorted(Path(folder).iterdir()):
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total
