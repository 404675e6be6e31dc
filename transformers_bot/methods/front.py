"""FRONT: the low frequencies of a stack of matrices, in a discrete cosine transform.

The stack of one tensor over the layers is transformed by the orthonormal DCT-II over depth, rows and
columns; an axis shrinks by dropping its highest frequencies and grows by zeros for new ones; then
the transform is undone. For one axis that is the matrix

    R = D_m[:k]^T D_n[:k],    k = min(n, m),    D_n[j, i] = sqrt((2 - [j = 0]) / n) cos(pi j (2 i + 1) / (2 n)),

on written and read axes alike; heads x head_dim is one axis, fused q|k|v are three. R turns a constant
into a constant, sqrt(n / m) times as large, and keeps the energy of what it keeps. Values are
standardised before the transform and get the mean and spread of the source's stack again afterwards,
so that neither that factor nor any other scale of R is left: a shift by the source's mean only adds a
constant and a division by its spread only a factor, hence the result is standardised alone.

Entries with an identity of their own (vocabulary, labels, channels) are never transformed; text
positions and image grids follow the options `positions` and `grids` as for the other methods.

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
    option_names = ("positions", "grids", "reheads")
    flat_heads = True
    combines = False  # mean and spread are restored over widths and depth together

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._pairs: dict[tuple[int, int], Pair] = {}  # dense: they go with the plan that holds them
        self._depths: dict[tuple[int, int], Depth] = {}
        self._mates: dict[str, tuple[tuple[Read, ...], tuple[tuple[float, ...], ...]]] = {}

    def check(self, task: Task) -> None:
        self.keeps_no_heads(task)

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        made = super().recipe(task, rule, layer, name)
        changed = task.changes(*TRANSFORMED)
        wide = any(role in changed for role in rule.roles)
        if isinstance(made, Fresh) or not (wide or (rule.layered and task.ratio(rule.depth) != 1)):
            return made
        if layer is None:
            return replace(made, match=(Read(name, None),))
        if name not in self._mates:  # as long as the stack is deep: one for all of its tensors
            rows = tuple(tuple(row) for row in self.layers(task, rule.depth).layers.tolist())
            self._mates[name] = tuple(Read(name, place) for place in range(task.lengths(rule.depth)[0])), rows
        match, mates = self._mates[name]
        return replace(made, match=match, mates=mates)

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
    if source <= 2 * DENSE_TAPS:  # its rows may have few entries that are not 0
        one = AxisMap(source, target, lambda: from_dense(low_frequencies(source, target)).bands)
    else:
        one = AxisMap(source, target, (Matrix(lambda: low_frequencies(source, target), (target, source)),))
    return Pair(one, one, "DCT")
