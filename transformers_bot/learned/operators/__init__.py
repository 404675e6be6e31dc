"""Growth operators that are learned: differentiable maps from a frozen source to the target's tensors."""

from .base import Growth, Operator, Stack, growth_of
from .ligo import LiGOOperator
from .mango import MangoOperator, ring_trace

__all__ = ["Growth", "LiGOOperator", "MangoOperator", "Operator", "Stack", "growth_of", "ring_trace"]
