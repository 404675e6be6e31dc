"""Rough seconds of what a resize does, on one core: they divide its progress bar and decide nothing else."""

import math
from collections.abc import Iterable, Mapping, Sized
from typing import Any, Protocol

from torch import Tensor

READING, CHECKING, OPENING, LOOKING = 0.3, 0.4, 1.0, 0.2  # of a source of usual size, most of it whatever the size
RATE = 2e10  # multiply-adds in float32; in float64 half as many
COPYING = 150  # multiply-adds that take as long as moving one number through memory and measuring it
BYTES = 1e9  # written or copied
TOKENS = 4096  # of calibration batches that nobody can count before they are run
LEARNT = 1024  # tokens of a batch that an operator learns from
DATA = 1.0  # to make batches of files
UNSEEN = 0.1  # of what this module knows nothing about

Lengths = Mapping[str, int | None]


class Task(Protocol):
    """What is used of a method's task."""

    @property
    def target(self) -> Lengths: ...
    def ratio(self, role: str) -> float: ...


class Network(Protocol):
    """What is used of an opened source."""

    @property
    def sizes(self) -> Lengths: ...
    @property
    def places(self) -> Mapping[str, Any]: ...
    @property
    def layers(self) -> Sized: ...
    @property
    def hidden(self) -> int: ...
    def numel(self, name: str) -> int: ...
    def having(self, role: str) -> Iterable[tuple[str, Any]]: ...


class Step(Protocol):
    """What is used of a plan's step."""

    @property
    def recipe(self) -> object: ...
    @property
    def parameters(self) -> int: ...
    @property
    def reads(self) -> Mapping[Any, str]: ...


class Inventory(Protocol):
    """What is used of a model's tensors."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...


class Plan(Protocol):
    """What is used of a plan."""

    @property
    def source(self) -> Inventory: ...
    @property
    def source_sizes(self) -> Lengths: ...
    @property
    def target_sizes(self) -> Lengths: ...
    @property
    def steps(self) -> Iterable[Step]: ...


def preparing(task: Task, network: Network, calibration: Iterable[Mapping[str, Any]] | None) -> float:
    """What a method does to an opened source before the plan."""
    if calibration is None:
        return sum(ordering(network, role) for role in shrunk(task)) + basis(task, network) + UNSEEN
    return calibrating(network, calibration) + preparing(task, network, None) + fitting(task, network)


def shrunk(task: Task) -> list[str]:
    """The roles whose units become fewer."""
    return [role for role in ("hidden", "ffn", "heads") if task.target[role] and task.ratio(role) < 1]


def ordering(network: Network, role: str) -> float:
    """Inner products of all units of a role, half of which are computed."""
    products = sum(network.numel(name) for name, place in network.having(role) if place.rule.maps)
    return products * (network.sizes[role] or 0) / 2 / RATE


def basis(task: Task, network: Network) -> float:
    """Moments of the stream after every block, their eigenvectors, and what is kept of the moments."""
    if "hidden" not in shrunk(task):
        return 0.0
    return (0.7 * _matrices(network) * network.hidden + 60 * network.hidden**3) / RATE


def calibrating(network: Network, batches: Iterable[Mapping[str, Any]]) -> float:
    """Running the source, and in float64 the products of all that its matrices read."""
    moments = sum(2 * width**2 for width in _read_widths(network))
    return _tokens(batches) * (_matrices(network) + moments) / RATE


def fitting(task: Task, network: Network) -> float:
    """In float64: moments in the order of the units, and a least-squares fit, for every matrix."""
    ratio = min((task.ratio(role) for role in shrunk(task)), default=0)
    return sum(2 * (2 + 1.5 * ratio) * width**3 for width in _read_widths(network)) / RATE if ratio else 0.0


def after(network: Network) -> float:
    """All that comes after the plan, where nothing is known of the target yet."""
    return sum(network.numel(name) for name in network.places) * (COPYING + network.hidden / 2) / RATE + UNSEEN


def resizing(plan: Plan) -> float:
    """All steps of a plan."""
    shrinks = (plan.target_sizes["hidden"] or 0) < (plan.source_sizes["hidden"] or 0)
    each = COPYING + (plan.target_sizes["hidden"] or 0 if shrinks else 0)
    return sum(elements(plan, step) for step in plan.steps if step.recipe is not None) * each / RATE + UNSEEN


def elements(plan: Plan, step: Step) -> int:
    """Numbers that a step reads and makes."""
    return step.parameters + sum(math.prod(plan.source.shapes.get(name, ())) for name in set(step.reads.values()))


def learning(plan: Plan, steps: int) -> float:
    """An operator's fit: in every step it makes the target's matrices, and the target runs, forward and backward."""
    widths = (plan.source_sizes["hidden"] or 0) + (plan.target_sizes["hidden"] or 0)
    return steps * sum(step.parameters for step in plan.steps) * 3 * (LEARNT + widths) / RATE + UNSEEN


def finishing(plan: Plan) -> float:
    """Building the target around its tensors, or writing what stands beside them."""
    return sum(step.parameters for step in plan.steps) * 4 / BYTES + UNSEEN


def _matrices(network: Network) -> int:
    return sum(network.numel(name) for name, place in network.places.items() if place.rule.maps)


def _read_widths(network: Network) -> list[int]:
    """Of everything that is linear: how many units it reads."""
    sizes = network.sizes
    of_layer = (sizes["hidden"] or 0,) * 3 + (sizes["ffn"] or 0,)
    return list(of_layer) * len(network.layers)


def _tokens(batches: Iterable[Mapping[str, Any]]) -> int:
    """How many tokens a list of batches has; of what cannot be counted without running it, some thousand."""
    if not isinstance(batches, (list, tuple)):
        return TOKENS
    found = [batch.get("input_ids") for batch in batches if isinstance(batch, Mapping)]
    return sum(x.numel() for x in found if isinstance(x, Tensor)) or TOKENS
