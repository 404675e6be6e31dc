"""bert2BERT's advanced knowledge initialisation: the added units come from the layer above.

As `fpi`, but the units that a wider axis appends in layer l are copies of units of layer l + 1 (the last
layer has none above it and does as `fpi`). With R split into its first n rows and the rest,

    W_l -> R_top W_l C^T + R_extra W_(l+1) C^T,

and likewise without C for biases and norms. The maps are those of layer l. This changes the function, but
added units differ from the start, so that training makes use of them sooner.

Source: Chen et al., "bert2BERT: Towards Reusable Pretrained Language Models" (arXiv 2110.07143),
section 3.3.
"""

from dataclasses import replace

import numpy as np

from ..architectures.adapter import Axis, Rule
from ..ops.axis_map import AxisMap, Band, Matrix, remembered
from ..ops.recipe import Read, Recipe, Segment, TensorMap
from .base import Fresh, Task
from .fpi import FPI


class AKI(FPI):
    """The method `aki`."""

    name = "aki"
    advice = (
        "As fpi, but new units come from the layer above: the result is less like the source and may train "
        "faster. Choose it to reproduce bert2BERT."
    )

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        recipe = super().recipe(task, rule, layer, name)
        if isinstance(recipe, Fresh) or layer is None:
            return recipe
        above = tuple(self._above(task, rule.depth, read) for read in recipe.reads)
        written = [not _is_read(axis) for axis in rule.axes]
        parts = _parts(recipe.maps, written)
        if above == recipe.reads or len(parts) == 1 or all(read.weight == 0.0 for read in recipe.reads):
            return recipe
        plus = tuple(Recipe(above, maps) for maps in parts[1:])
        return replace(recipe, maps=parts[0], plus=plus, note=f"{recipe.note}, added units from the layer above")

    @staticmethod
    def _above(task: Task, stack: str, read: Read) -> Read:
        last = task.lengths(stack)[0] - 1
        return read if read.layer is None else replace(read, layer=min(read.layer + 1, last))


def _is_read(axis: Axis) -> bool:
    return all(factor.reads for segment in axis.segments for factor in segment)


def _parts(maps: TensorMap, written: list[bool]) -> list[TensorMap]:
    """The maps onto original units, then those onto added ones; their sum is the whole map.

    An added unit of a product (heads head_dim) has an added head, or an original head and an added
    place in it: R1 x R2 = T1 x T2 + E1 x R2 + T1 x E2 with R = T + E.
    """
    factors = max(len(segment) for axis, out in zip(maps, written, strict=True) if out for segment in axis)
    grown = [
        place
        for place in range(factors)
        if any(_grows(segment, place) for axis, out in zip(maps, written, strict=True) if out for segment in axis)
    ]
    return [_part(maps, written, None)] + [_part(maps, written, place) for place in grown]


def _grows(segment: Segment, place: int) -> bool:
    return place < len(segment) and segment[place].target > segment[place].source


def _part(maps: TensorMap, written: list[bool], extra: int | None) -> TensorMap:
    """Factors before number `extra` with original rows only, that one with added rows only, later ones whole.

    With `extra` None all factors have original rows only.
    """

    def part_of(segment: Segment) -> Segment:
        return tuple(
            m if extra is not None and place > extra else _rows(m, added=place == extra)
            for place, m in enumerate(segment)
        )

    return tuple(
        tuple(part_of(segment) for segment in axis) if out else axis for axis, out in zip(maps, written, strict=True)
    )


def _rows(axis_map: AxisMap, added: bool) -> AxisMap:
    """The map with all rows zero except those of added units, or except those of original units."""
    return axis_map if axis_map.target == axis_map.source else _masked_rows(axis_map, added)


@remembered
def _masked_rows(axis_map: AxisMap, added: bool) -> AxisMap:
    def bands() -> tuple[Band | Matrix, ...]:
        rows = (np.arange(axis_map.target) >= axis_map.source) == added
        last = axis_map.bands[-1]
        if not isinstance(last, Band):
            raise TypeError(f"copies of units are one band of single taps, got {type(last).__name__}")
        return (*axis_map.bands[:-1], Band(last.index, last.weight * rows[:, None], last.source))

    return AxisMap(axis_map.source, axis_map.target, bands)
