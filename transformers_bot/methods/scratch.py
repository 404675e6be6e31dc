"""Scratch: the target as transformers initialises it, for comparison. Nothing is taken from the source."""

from typing import Any

from ..architectures.adapter import Rule
from ..options import BoTConfig
from .base import AsStored, Fresh, Task


class Scratch(AsStored):
    """The method `scratch`; `torch.manual_seed` before the call fixes the weights."""

    name = "scratch"
    advice = "Nothing is taken from the source but its configuration: random weights, for comparison."
    option_names = ("reheads",)  # new heads may have any size

    def __init__(self, options: BoTConfig) -> None:
        self.options = options

    def check(self, task: Task) -> None:
        """Accept any sizes."""

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Fresh:
        return Fresh("all starts from scratch")

    def config_fields(self, task: Task, config: Any) -> dict[str, Any]:
        return {}

    def describe(self, task: Task) -> dict[str, Any]:
        return {"method": self.name}

    def warnings(self, task: Task) -> list[str]:
        return []
