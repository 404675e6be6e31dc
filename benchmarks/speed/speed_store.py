"""The results of one part in one JSON file, written in one step after every case, with machine and versions."""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the shared modules are in the folder above
from json_file import write_json

PACKAGES = ("torch", "transformers", "pywavelets", "ptwt", "transformers-bot")


class SpeedStore:
    """The cases of a part by their key, in the order in which they were first measured.

    Attributes:
        data: `part`, `machine`, `versions`, `date`, `settings` and `cases`.
        measured: how many cases were added now.
    """

    def __init__(self, path: Path, part: str, settings: dict[str, Any], keep: bool = False) -> None:
        self.path, self.measured = path, 0
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"] if keep and path.exists() else {}
        self.data: dict[str, Any] = {"part": part, **facts(), "settings": settings, "cases": cases}

    def has(self, key: str) -> bool:
        return key in self.data["cases"]

    def add(self, key: str, case: dict[str, Any]) -> None:
        self.data["cases"][key] = {**case, "date": now()}
        self.measured += 1
        self.write()

    def remove(self, key: str) -> None:
        """Remove an earlier result of a case that is wrong now."""
        if self.data["cases"].pop(key, None) is not None:
            self.write()

    def write(self) -> None:
        write_json(self.path, self.data)


def facts() -> dict[str, Any]:
    """Machine, versions (null: not installed) and date."""
    import torch

    machine = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"machine": machine, "versions": versions, "date": now()}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()
