"""Growth operators that are learned: differentiable maps from a frozen source to the target's tensors."""

from .base import Growth, Operator, Stack, growth_of
from .ligo import LiGOOperator
from .mango import MangoOperator, ring_trace

# A method names its operator by `Linear.operator`.
OPERATORS: dict[str, type[LiGOOperator] | type[MangoOperator]] = {"ligo": LiGOOperator, "mango": MangoOperator}

__all__ = ["OPERATORS", "Growth", "LiGOOperator", "MangoOperator", "Operator", "Stack", "growth_of", "ring_trace"]
