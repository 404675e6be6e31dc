"""bert2BERT's advanced knowledge initialisation: the added units come from the layer above.

As `fpi`, but the units that a wider axis appends in layer l are drawn from layer l + 1 (the last
layer has none above and stays with `fpi`). With R split into its first n rows and the rest,

    W_l -> R_top W_l C^T + R_extra W_(l+1) C^T,

and likewise without C for biases and norms. The maps are layer l's own. That gives up the function
for units that differ, so that training parts them sooner.

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

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        made = super().recipe(task, rule, layer, name)
        if isinstance(made, Fresh) or layer is None:
            return made
        above = tuple(self._above(task, rule.depth, one) for one in made.reads)
        written = [not _is_read(axis) for axis in rule.axes]
        parts = _parts(made.maps, written)
        if above == made.reads or len(parts) == 1 or all(one.weight == 0.0 for one in made.reads):
            return made
        plus = tuple(Recipe(above, maps) for maps in parts[1:])
        return replace(made, maps=parts[0], plus=plus, note=f"{made.note}, added units from the layer above")

    @staticmethod
    def _above(task: Task, stack: str, one: Read) -> Read:
        last = task.lengths(stack)[0] - 1
        return one if one.layer is None else replace(one, layer=min(one.layer + 1, last))


def _is_read(axis: Axis) -> bool:
    return all(factor.reads for segment in axis.segments for factor in segment)


def _parts(maps: TensorMap, written: list[bool]) -> list[TensorMap]:
    """The maps onto original units, then those onto added ones; together they are the whole.

    An added unit of a product (heads head_dim) has an added head, or an original head and an added
    place in it: R1 x R2 = T1 x T2 + E1 x R2 + T1 x E2 with R = T + E.
    """
    factors = max(len(segment) for axis, out in zip(maps, written, strict=True) if out for segment in axis)
    grown = [
        place
        for place in range(factors)
        if any(_grows(segment, place) for axis, out in zip(maps, written, strict=True) if out for segment in axis)
    ]
    return [_taken(maps, written, None)] + [_taken(maps, written, place) for place in grown]


def _grows(segment: Segment, place: int) -> bool:
    return place < len(segment) and segment[place].target > segment[place].source


def _taken(maps: TensorMap, written: list[bool], extra: int | None) -> TensorMap:
    """Original rows of the factors before `extra`, added rows there, all rows after (None: originals)."""

    def taken(segment: Segment) -> Segment:
        return tuple(
            m if extra is not None and place > extra else _rows(m, added=place == extra)
            for place, m in enumerate(segment)
        )

    return tuple(
        tuple(taken(segment) for segment in axis) if out else axis for axis, out in zip(maps, written, strict=True)
    )


def _rows(one: AxisMap, added: bool) -> AxisMap:
    """The map with all rows zero but those of added units, or but those of the original ones."""
    if one.target == one.source:
        return one
    return _taken_rows(one, added)


@remembered
def _taken_rows(one: AxisMap, added: bool) -> AxisMap:
    def made() -> tuple[Band | Matrix, ...]:
        rows = (np.arange(one.target) >= one.source) == added
        last = one.bands[-1]
        if not isinstance(last, Band):
            raise TypeError(f"copies of units are one band of single taps, got {type(last).__name__}")
        return (*one.bands[:-1], Band(last.index, last.weight * rows[:, None], last.source))

    return AxisMap(one.source, one.target, made)
