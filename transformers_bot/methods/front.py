"""FRONT: the low frequencies of a stack of matrices, in a discrete cosine transform.

The stack of one tensor over the layers is transformed by the orthonormal DCT-II over depth, rows and
columns; an axis shrinks by dropping its highest frequencies and grows by zeros for new ones; then
the transform is undone. For one axis that is the matrix

    R = D_m[:k]^T D_n[:k],    k = min(n, m),    D_n[j, i] = sqrt((2 - [j = 0]) / n) cos(pi j (2 i + 1) / (2 n)),

on written and read axes alike; heads x head_dim is one axis, fused q|k|v are three. R maps a constant to
a constant that is sqrt(n / m) times as large and keeps the energy of the frequencies that it keeps. Values
are standardised before the transform and get the mean and standard deviation of the source's stack
afterwards, so that no scale of R is left. It is enough to standardise the result: subtracting the source's
mean only shifts it by a constant, dividing by the source's standard deviation only scales it.

Entries with an identity of their own (vocabulary, labels, channels) are never transformed; text
positions and image grids follow the options `positions` and `grids` as in the other methods.

Source: the FRONT method (frequency-domain knowledge transfer by DCT); Ahmed, Natarajan and Rao,
"Discrete Cosine Transform" (IEEE Transactions on Computers, 1974) for the transform.
"""

from dataclasses import replace
from typing import Any

from ..architectures.adapter import At, Rule
from ..ops.axis_map import DENSE_TAPS, AxisMap, Matrix, from_dense
from ..ops.dct import low_frequencies
from ..ops.recipe import Read, Recipe
from .base import Fresh, Linear, Task
from .maps import Depth, Pair

TRANSFORMED = ("stream", "unit", "entry", "frequency")


class Front(Linear):
    """The method `front`."""

    name = "front"
    advice = (
        "The stack of layers is treated as a signal, of which the low frequencies are kept, in all directions. "
        "Choose it to compare."
    )
    option_names = ("positions", "grids", "reheads")
    flat_heads = True
    combines = False  # mean and standard deviation are restored over widths and depth together

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._pairs: dict[tuple[int, int], Pair] = {}  # dense, so not cached for longer than the plan
        self._depths: dict[tuple[int, int], Depth] = {}
        self._mates: dict[str, tuple[tuple[Read, ...], tuple[tuple[float, ...], ...]]] = {}

    def check(self, task: Task) -> None:
        self.keeps_no_heads(task)

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        recipe = super().recipe(task, rule, layer, name)
        changed = task.changes(*TRANSFORMED)
        changes_width = any(role in changed for role in rule.roles)
        changes_depth = rule.layered and task.ratio(rule.depth) != 1
        if isinstance(recipe, Fresh) or not (changes_width or changes_depth):
            return recipe
        if layer is None:
            return replace(recipe, match=(Read(name, None),))
        if name not in self._mates:  # shared by all tensors of the stack: its size is the square of the depth
            rows = tuple(tuple(row) for row in self.layers(task, rule.depth).layers.tolist())
            self._mates[name] = tuple(Read(name, place) for place in range(task.lengths(rule.depth)[0])), rows
        match, mates = self._mates[name]
        return replace(recipe, match=match, mates=mates)

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        if (source, target) not in self._pairs:
            self._pairs[source, target] = _resampled(source, target)
        return self._pairs[source, target]

    def depth(self, task: Task, stack: str) -> Depth:
        lengths = task.lengths(stack)
        if lengths not in self._depths:
            layers = low_frequencies(*lengths)
            self._depths[lengths] = Depth(layers, layers, "DCT over layers")
        return self._depths[lengths]


def _resampled(source: int, target: int) -> Pair:
    if source <= 2 * DENSE_TAPS:  # rows may have few entries that are not 0, which `from_dense` finds
        resampled = AxisMap(source, target, lambda: from_dense(low_frequencies(source, target)).bands)
    else:
        resampled = AxisMap(source, target, (Matrix(lambda: low_frequencies(source, target), (target, source)),))
    return Pair(resampled, resampled, "DCT")
