"""Which source layers make up which target layers, as (target, source) matrices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..architectures.axes import Rule
from ..errors import BadOption
from ..ops.axis_map import remembered
from ..ops.recipe import Read
from .base import Task
from .pairs import Pair

GROWS = ("wavelet", "repeat", "identity")
SHRINKS = ("wavelet", "first", "even", "strongest")


@dataclass(frozen=True)
class Depth:
    """The layers of a target.

    Attributes:
        layers: (target, source) weights for tensors that do not write onto the residual stream.
        updates: the same for those that do; zero rows are identity blocks.
        label: in words, for the plan.
    """

    layers: np.ndarray
    updates: np.ndarray
    label: str = ""

    @cached_property
    def read(self) -> tuple[int, ...]:
        """The source layers that any target layer is made of."""
        return tuple(np.flatnonzero(self.layers.any(0)).tolist())

    @staticmethod
    @remembered
    def unchanged(length: int) -> "Depth":
        """Every layer as it is."""
        return Depth(np.eye(length), np.eye(length))

    def is_new(self, layer: int) -> bool:
        """Whether a target layer is an identity block, which adds nothing to the stream."""
        return not self.updates[layer].any()


def reads_of(
    task: Task, depth: Depth | None, rule: Rule, layer: int | None, name: str
) -> tuple[tuple[Read, ...], str | None, str]:
    """What a target tensor is made of over depth, which part of a norm it undoes if any, and a note."""
    if layer is None or depth is None:
        return (Read(name, None),), None, ""
    row = (depth.updates if rule.adds else depth.layers)[layer]
    new = depth.is_new(layer)
    if new and rule.adds:
        return (Read(name, int(np.argmax(depth.layers[layer])), 0.0),), None, "zero update"
    stem, _, part = name.rpartition(".")
    last = task.adapter.norm_names[stem].undoes if stem in task.adapter.norm_names else ""
    if new and last:
        below = int(np.argmax(depth.layers[layer]))
        return (Read(f"{last}.weight", below), Read(f"{last}.bias", below)), part, "undoes the norm below"
    return tuple(Read(name, int(i), float(row[i])) for i in np.flatnonzero(row)), None, depth.label


def check_direction(rule: str, source: int, target: int) -> None:
    """Refuse a rule that works only in the other direction."""
    allowed, verb = (GROWS, "grow") if target > source else (SHRINKS, "shrink")
    if rule not in allowed:
        choices = ", ".join(repr(name) for name in allowed)
        raise BadOption(f"depth={rule!r} cannot {verb} {source} layers to {target}; use one of {choices}.")


@remembered
def filtered(pair: Pair, label: str, share_updates: bool) -> Depth:
    """Low-pass over layers. Sharing keeps the sum of updates: written with C instead of R."""
    layers = pair.produce.dense()
    return Depth(layers, pair.consume.dense() if share_updates else layers, label)


@remembered
def repeated(source: int, target: int) -> Depth:
    """Every layer several times in a row, each copy with its share of the layer's update."""
    layers = _rows(np.arange(target) * source // target, source)
    return Depth(layers, layers / layers.sum(0), "layers repeated")


@remembered
def identity_blocks(source: int, target: int) -> Depth:
    """New layers with zero output matrices, spread over the gaps between source layers.

    The source's layers stand where `even` would pick them, so that shrinking undoes growing. A new
    layer copies the one below it. None comes after the last source layer: in a post-norm model a
    new block passes on what the norm below it kept, and the last norm may have dropped a channel.
    """
    real = _even(target, source)
    index = np.searchsorted(real, np.arange(target), side="right") - 1
    layers = _rows(index, source)
    return Depth(layers, layers * np.isin(np.arange(target), real)[:, None], "identity blocks")


@remembered
def stacked(source: int, target: int) -> Depth:
    """The whole stack of layers again on top of itself (StackBERT, G_stack): layer l mod source."""
    layers = _rows(np.arange(target) % source, source)
    return Depth(layers, layers, "layers stacked")


@remembered
def stacked_from_top(source: int, target: int) -> Depth:
    """Whole stacks first, the rest filled with the top layers once more (bert2BERT)."""
    whole, rest = divmod(target, source)
    layers = _rows(np.concatenate([np.tile(np.arange(source), whole), np.arange(source - rest, source)]), source)
    return Depth(layers, layers, "layers stacked, then the top ones")


@remembered
def interpolated(source: int, target: int) -> Depth:
    """Every layer several times in a row, each copy with the whole of the layer's update."""
    layers = _rows(np.arange(target) * source // target, source)
    return Depth(layers, layers, "layers interpolated")


@remembered
def upscaled(source: int, target: int) -> Depth:
    """The first half of the target is the source's lower end, the second half its upper end (SOLAR)."""
    upper = target // 2
    layers = _rows(np.concatenate([np.arange(target - upper), np.arange(source - upper, source)]), source)
    return Depth(layers, layers, "lower and upper layers")


@remembered
def chosen_layers(source: int, layers: Sequence[int]) -> Depth:
    """These layers of the source, unchanged."""
    rows = _rows(np.asarray(layers), source)
    return Depth(rows, rows, f"strongest layers ({', '.join(map(str, layers))})")


@remembered
def picked(source: int, target: int, rule: str) -> Depth:
    """The first layers, or evenly spread ones from the first to the last; none is changed.

    "strongest" ones, which only a source can tell, are shown as evenly spread ones.
    """
    layers = _rows(np.arange(target) if rule == "first" else _even(source, target), source)
    return Depth(layers, layers, "strongest layers, not known yet" if rule == "strongest" else f"{rule} layers")


def kept_layers(chosen: Mapping[str, Sequence[int] | np.ndarray | None]) -> Any:
    """The layers that are kept, as provenance holds them: a list, or one for every stack where there are several."""
    known = {stack: [int(layer) for layer in layers] for stack, layers in chosen.items() if layers is not None}
    return next(iter(known.values()), []) if len(chosen) == 1 else known


def _even(length: int, count: int) -> np.ndarray:
    """Places of `count` layers among `length`, the first and the last among them.

    >>> _even(12, 6).tolist()
    [0, 2, 4, 7, 9, 11]
    """
    return np.round(np.linspace(0, length - 1, count)).astype(int)


def _rows(index: np.ndarray, source: int) -> np.ndarray:
    return np.asarray(np.eye(source)[index])
