"""LEMON: growth without a change of the function, also at ratios that are not whole multiples.

With n = floor(d_t / d_s) copies that fit and c = n d_s / d_t:

* the residual stream x becomes [x, ..., x, mean(x), ..., mean(x)]. Its mean is the mean of x and its
  variance is c times that of x, so a norm with sqrt(c) times the weight and c times the epsilon
  gives [y, ..., y, 0, ..., 0] once its bias is 0 on the rest, where it sees the mean itself;
* the readers of copies split their weight into parts that add up to it: W - E for the first copy,
  parts of E for the others, where E is noise with the standard deviation of the weights, so that no two
  copies train alike. The rest of the stream is 0 behind the norm, so its weights may have any value;
* in front of a tied output embedding, which reads all n copies, the norm is divided by n;
* heads, entries of a head and MLP units are copied in turn, i mod n_s, at any ratio;
* added layers write zeros onto the residual stream.

In post-norm models the stream continues from the norm's output, whose rest is not its mean, and a
layer that writes zeros still normalises twice. There only whole multiples of the width are exact.

Source: Wang et al., "LEMON: Lossless model expansion" (arXiv 2310.07999), sections 4 and 5; it keeps
head_dim, for which the split of read weights with balanced scores is this package's.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..architectures.adapter import At, Factor, Rule
from ..ops.axis_map import DENSE_TAPS, AxisMap, Matrix, banded, from_dense, identity, remembered, tiled
from ..ops.recipe import Detail, Recipe, TensorMap, is_identity
from .base import UNSIZED, Fresh, Linear, Task, is_tied_readout
from .maps import Depth, Pair, identity_blocks, projection

NOISE = 1.0  # in standard deviations of the weights, as in BoT


class Lemon(Linear):
    """The method `lemon`."""

    name = "lemon"
    advice = (
        "The grown model computes exactly what the source does, also at widths that are no whole multiples, if "
        "the architecture allows it. Choose it if the grown model must start exactly where the source is."
    )
    option_names = ("positions", "grids", "seed")
    keeps_scores = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._averages: dict[tuple[int, int, float], AxisMap] = {}  # dense, so not cached for longer than the plan

    def check(self, task: Task) -> None:
        self.only_grows(task)
        shares = {_share(*task.lengths(stream)) for stream in task.roles.streams}
        if len(shares) > 1:
            raise self.refuse("its norms have one epsilon, but the towers of this model grow by different ratios.")
        if task.adapter.norm == "pre" and task.adapter.turns:
            return
        for stack in task.changes("depth") if task.adapter.norm == "post" else ():
            source, target = task.lengths(stack)
            raise self.refuse(
                f"{task.adapter.model_type} normalises after each block, so that none of the layers added from "
                f"{source} to {target} is the identity. Keep {source} layers or use method='lemon+stack'."
            )
        for stream in task.roles.streams:
            source, target = task.lengths(stream)
            if target % source:
                raise self.refuse(
                    f"{task.adapter.model_type} normalises the residual stream itself, whose rest beyond whole copies "
                    f"would not stay its mean: {stream} goes from {source} to {target}. The nearest whole multiples "
                    f"are {target // source * source} and {(target // source + 1) * source}; or use method='bot'."
                )

    def config_fields(self, task: Task, config: Any) -> dict[str, Any]:
        share = _share(*task.lengths(task.roles.streams[0]))
        epsilon = task.adapter.epsilon
        lists = super().config_fields(task, config)
        return lists if share == 1 or not epsilon else {**lists, epsilon: getattr(config, epsilon) * share}

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
        recipe = super().recipe(task, rule, layer, name)
        if isinstance(recipe, Fresh):
            return recipe
        stem, _, part = name.rpartition(".")
        if stem in task.adapter.norm_names and task.roles.kind(rule.roles[0]) == "stream":
            if task.ratio(rule.roles[0]) != 1:
                return replace(recipe, maps=(((self._norm(task, rule.roles[0], part),),),))
            return recipe
        is_zero = all(read.weight == 0.0 for read in recipe.reads)
        visible = tuple(
            tuple(tuple(self._visible(task, factor) for factor in segment) for segment in axis.segments)
            for axis in rule.axes
        )
        if is_zero or not rule.maps or is_identity(visible):
            return recipe
        return replace(recipe, detail=self._noise(visible, name, layer), note=f"{recipe.note}, noise between copies")

    def depth(self, task: Task, stack: str) -> Depth:
        return identity_blocks(*task.lengths(stack))

    def warnings(self, task: Task) -> list[str]:
        share = _share(*task.lengths(task.roles.streams[0]))
        if share == 1:
            return []
        return [f"norms have {share:.6g} times the source's epsilon: keep the config that the result comes with"]

    # -- maps -----------------------------------------------------------------------------------

    def pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        if task.roles.kind(role) == "stream":
            label = "tiled, the rest its mean" if target % source else "tiled"
            return Pair(self._averaged(source, target), _first(source, target), label)
        return Pair(tiled(source, target), _first(source, target), "tiled")

    def axis_pair(self, task: Task, role: str, source: int, target: int, at: At) -> Pair:
        if is_tied_readout(task, role) and source != target:
            copies = _copies_only(source, target)
            return Pair(copies.scaled(1 / (target // source)), copies, "tiled")
        return super().axis_pair(task, role, source, target, at)

    def _averaged(self, source: int, target: int, gain: float = 1.0) -> AxisMap:
        key = source, target, gain
        if key not in self._averages:
            self._averages[key] = _averaged(source, target).scaled(gain)
        return self._averages[key]

    def _norm(self, task: Task, role: str, part: str) -> AxisMap:
        """The map of a norm's weight or bias; on the rest the weight may have any value, but the bias must be 0."""
        source, target = task.lengths(role)
        gain = source / (target // source * source) if is_tied_readout(task, role) else 1.0
        if part == "weight":
            return self._averaged(source, target, gain * math.sqrt(_share(*task.lengths(task.roles.streams[0]))))
        return _copies_only(source, target).scaled(gain)

    # -- noise ----------------------------------------------------------------------------------

    def _visible(self, task: Task, factor: Factor) -> AxisMap:
        """Projection of a read axis onto the signal there: copies, and 0 on the rest of the stream."""
        if not factor.role:
            return identity(factor.size or 1)
        source, target = task.source[factor.role], task.target[factor.role]
        if source is None or target is None:
            return UNSIZED
        if not factor.reads or source == target or task.roles.kind(factor.role) in ("place", "grid"):
            return identity(target)
        pair = self.axis_pair(task, factor.role, source, target, None)
        in_stream = task.roles.kind(task.roles.leader(factor.role)) == "stream"
        all_copies = not in_stream or is_tied_readout(task, factor.role)
        signal = pair.produce if all_copies else _copies_only(source, target)
        return projection(signal, pair.consume)

    def _noise(self, visible: TensorMap, name: str, layer: int | None) -> Detail:
        return Detail("gaussian", NOISE, visible, (), (), self.options.seed, name, layer)


def _share(source: int, target: int) -> float:
    """c: the share of copies in the grown stream."""
    return target // source * source / target


@remembered
def _first(source: int, target: int) -> AxisMap:
    """[I; 0]: only the first copy is read."""
    places = np.arange(source)
    return AxisMap(source, target, (banded(places, places, np.ones(source), target, source),))


@remembered
def _copies_only(source: int, target: int) -> AxisMap:
    """[I; ...; I; 0]: whole copies, and zeros on the rest."""
    places = np.arange(target // source * source)
    return AxisMap(source, target, (banded(places, places % source, np.ones(len(places)), target, source),))


def _averaged(source: int, target: int) -> AxisMap:
    """Whole copies, and the mean on the rest."""
    if target % source == 0:
        return tiled(source, target)
    if source <= DENSE_TAPS:
        return from_dense(_averaging_matrix(source, target))
    return AxisMap(source, target, (Matrix(lambda: _averaging_matrix(source, target), (target, source)),))


def _averaging_matrix(source: int, target: int) -> np.ndarray:
    matrix = np.full((target, source), 1 / source)
    whole = target // source
    matrix[: whole * source] = np.tile(np.eye(source), (whole, 1))
    return matrix
