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
from functools import lru_cache

from ..axes import Rule
from ..maps import from_dense
from ..recipe import Read, Recipe
from .base import Fresh, Task
from .dct import low_frequencies
from .depth import Depth
from .linear import Linear
from .pairs import Pair

TRANSFORMED = ("hidden", "readout", "pooler", "heads", "head_dim", "score", "ffn")


class Front(Linear):
    """The method `front`."""

    name = "front"
    option_names = ("positions", "grids", "reheads")
    flat_heads = True
    combines = False  # mean and spread are restored over widths and depth together

    def check(self, task: Task) -> None:
        self.keeps_no_heads(task)

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        made = super().recipe(task, rule, layer, name)
        wide = any(task.ratio(role) != 1 for role in rule.roles if role in TRANSFORMED)
        if isinstance(made, Fresh) or not (wide or (rule.layered and task.ratio("layer") != 1)):
            return made
        if layer is None:
            return replace(made, match=(Read(name, None),))
        rows = self.layers(task).layers.tolist()
        match = tuple(Read(name, place) for place in range(task.lengths("layer")[0]))
        return replace(made, match=match, mates=tuple(tuple(row) for row in rows))

    def pair(self, task: Task, role: str, source: int, target: int, layer: int | None) -> Pair:
        return _resampled(source, target)

    def depth(self, task: Task) -> Depth:
        layers = low_frequencies(*task.lengths("layer"))
        return Depth(layers, layers, "DCT over layers")


@lru_cache(maxsize=32)
def _resampled(source: int, target: int) -> Pair:
    one = from_dense(low_frequencies(source, target))
    return Pair(one, one, "DCT")
