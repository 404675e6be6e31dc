"""bert2BERT's function-preserving initialisation: copies of drawn units, whose readers share the weight.

A wider axis keeps its n units and appends copies g(i) of them, drawn at random. If a unit occurs c times,
its readers have 1/c of its weight for each copy. The residual stream has one g for the whole network;
heads (as units) and MLP units have one for each layer. Depth grows by stacking whole copies of the widened
model and filling the remaining places with its top layers.

The draws are balanced here: all units once in random order, then all again, so that no two copy counts
differ by more than one. At whole multiples they are equal and the function is kept, because norms see the
same mean and variance as before. At other ratios it is only nearly kept.

Source: Chen et al., "bert2BERT: Towards Reusable Pretrained Language Models" (arXiv 2110.07143),
section 3; Chen et al., "Net2Net: Accelerating Learning via Knowledge Transfer" (arXiv 1511.05641).
"""

import hashlib
from functools import partial

import numpy as np

from ..architectures.adapter import At
from ..ops.axis_map import AxisMap, Band, Matrix, banded, gather, remembered
from .base import Linear, Task
from .maps import Depth, Pair, stacked_from_top


class FPI(Linear):
    """The method `fpi`."""

    name = "fpi"
    advice = (
        "The large model is made of copies of units, drawn at random, whose readers share their weight: it "
        "computes what the source does at whole multiples of the width. Choose it to reproduce bert2BERT."
    )
    option_names = ("positions", "grids", "seed")
    keeps_scores = True

    def check(self, task: Task) -> None:
        self.only_grows(task)

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        stack, layer = at or ("", None)
        prefix = "" if stack in ("", task.roles.depths[0]) else f"{stack}/"  # every stack has draws of its own
        return _copies(source, target, f"{self.options.seed}/{role}/{prefix}{layer}")

    def depth(self, task: Task, stack: str) -> Depth:
        return stacked_from_top(*task.lengths(stack))


def drawn(source: int, target: int, key: str) -> np.ndarray:
    """The source unit that each target unit copies: all in place, then rounds of all in random order."""
    digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    rounds = [generator.permutation(source) for _ in range(-(-target // source) - 1)]
    return np.concatenate([np.arange(source), *rounds])[:target]


@remembered
def _copies(source: int, target: int, key: str) -> Pair:
    copies, shares = (partial(bands, source, target, key) for bands in (_copy_bands, _share_bands))
    return Pair(AxisMap(source, target, copies), AxisMap(source, target, shares), "drawn copies")


def _copy_bands(source: int, target: int, key: str) -> tuple[Band | Matrix, ...]:
    return gather(drawn(source, target, key), source).bands


def _share_bands(source: int, target: int, key: str) -> tuple[Band | Matrix, ...]:
    index = drawn(source, target, key)
    counts = np.bincount(index, minlength=source)
    return (banded(np.arange(target), index, 1 / counts[index], target, source),)
