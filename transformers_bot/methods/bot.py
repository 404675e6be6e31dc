"""BoT: wavelet low-pass over layers, rows and columns, in both directions.

`gain="raw"` is the paper as written on its four modules (attention in, attention out, MLP in, MLP
out): the orthonormal low band to shrink, the inverse transform with empty details to grow, on the
layer axis and on both matrix axes. The paper leaves all other tensors open; here they take the
consistent maps below, so that a norm weight of 1 stays 1.

`gain="consistent"` (ours) makes the same transform keep the network's function. Every role gets a
pair (R, C): R has unit gain on constants and is used where the role is written, C is its dual,
`C^T R = I` when growing and `R C^T = I` when shrinking, and is used where the role is read. Then

* queries write and keys read the same axis, and a change of head_dim by g rescales their product
  by sqrt(g), shared as g^(-1/4) on R and g^(3/4) on C (C itself carries 1/g);
* the stream in front of a tied output embedding is read with R, so it is written with C;
* tensors that add onto the residual stream take C over depth, so the sum of updates is kept.
"""

from typing import Any

import numpy as np

from ..axes import Axis, Factor, Rule
from ..errors import BadOption
from ..maps import AxisMap, from_dense, gather, identity
from ..options import BoTConfig
from ..recipe import Detail, Recipe, Segment, is_identity
from ..wavelets import analysis_map, split_places, synthesis_map
from .base import Depth, Pair, Task
from .grids import interpolation, periodic

# The paper's best wavelet by validation loss. RoBERTa's and DeiT's are not stated: RoBERTa takes
# BERT's (same blocks), ViT and DeiT take Haar, which is never far from the best of the ablation.
PAPER_WAVELET = {
    "bert": {"shrink": "haar", "grow": "bior6.8"},
    "roberta": {"shrink": "haar", "grow": "bior6.8"},
    "gpt2": {"shrink": "coif3", "grow": "db2"},
}
CONSISTENT_WAVELET = "haar"
CONSISTENT_DETAIL_SCALE = 1.0
# Which option of BoTConfig.wavelet a role follows.
FOLLOWS = {"readout": "hidden", "pooler": "hidden", "score": "head_dim"}


class BoT:
    """The method `bot`; its options are those of `BoTConfig`."""

    name = "bot"

    def __init__(self, options: BoTConfig) -> None:
        self.options = options
        self.raw = options.gain == "raw"

    def recipe(self, task: Task, rule: Rule, layer: int | None, name: str) -> Recipe:
        raw = self.raw and rule.layered and rule.maps
        maps = tuple(self._axis(task, axis, raw) for axis in rule.axes)
        layers: tuple[tuple[int | None, float], ...] = ((None, 1.0),)
        note = []
        if layer is not None:
            depth = self.depth(task, raw)
            row = (depth.updates if rule.adds else depth.layers)[layer]
            layers = tuple((int(i), float(row[i])) for i in np.flatnonzero(row)) or ((_nearest(depth, layer), 0.0),)
            note.append("zero" if layers[0][1] == 0.0 else depth.label)
        detail = self._detail(task, rule, layer, name, raw)
        note += [] if is_identity(maps) else [self._label(task, rule, raw)]
        note += [f"{detail.kind} detail"] if detail else []
        return Recipe(layers, maps, detail, ", ".join(part for part in note if part))

    # -- widths ---------------------------------------------------------------------------------

    def pair(self, task: Task, role: str, raw: bool = False) -> Pair:
        """The maps of one role at the task's sizes."""
        source, target = task.lengths(role)
        if source == target:
            return Pair(identity(source), identity(target))
        if role == "position":
            index = periodic if self.options.positions == "crop" else interpolation
            return Pair(index(source, target), index(source, target), self.options.positions)
        if role in ("grid_h", "grid_w"):
            bicubic = interpolation(source, target, bicubic=True)
            return Pair(bicubic, bicubic, "bicubic")
        if role == "heads" and self.heads == "whole":
            return whole_units(source, target)
        wavelet = self.wavelet(task, FOLLOWS.get(role, role))
        pair = raw_pair(source, target, wavelet) if raw else dual_pair(source, target, wavelet)
        return pair.swapped() if role == "readout" and task.tied else pair

    def wavelet(self, task: Task, role: str) -> str:
        asked = self.options.wavelet_for(role)
        if asked != "auto":
            return asked
        if not self.raw:
            return CONSISTENT_WAVELET
        grows = task.ratio("hidden") > 1 or (task.ratio("hidden") == 1 and task.ratio("layer") > 1)
        return PAPER_WAVELET.get(task.adapter.model_type, {}).get("grow" if grows else "shrink", "haar")

    @property
    def heads(self) -> str:
        if self.options.heads != "auto":
            return self.options.heads
        return "flat" if self.raw else "whole"

    def _axis(self, task: Task, axis: Axis, raw: bool) -> tuple[Segment, ...]:
        return tuple(self._segment(task, segment, raw) for segment in axis.segments)

    def _segment(self, task: Task, segment: tuple[Factor, ...], raw: bool) -> Segment:
        roles = [factor.role for factor in segment]
        if "heads" in roles and self._is_flat(task):
            reads = all(factor.reads for factor in segment)
            gain = task.ratio("score") ** -0.25 if "score" in roles and self._scales_scores(task, raw) else 1.0
            pair = self._flat_pair(task, raw)
            return ((pair.consume if reads else pair.produce).scaled(gain),)
        return tuple(self._factor(task, factor, raw) for factor in segment)

    def _factor(self, task: Task, factor: Factor, raw: bool) -> AxisMap:
        if not factor.role:
            return identity(factor.size or 1)
        source, target = task.source[factor.role], task.target[factor.role]
        if source is None or target is None:
            return identity(-1)  # a length that only the tensor knows; never resized
        pair = self.pair(task, factor.role, raw)
        # A score sums over head_dim: one side must read what the other writes, unless raw.
        reads = factor.reads and not (factor.role == "score" and self.raw)
        chosen = pair.consume if reads else pair.produce
        if factor.role == "score" and self._scales_scores(task, raw):
            return chosen.scaled(task.ratio("score") ** (0.75 if reads else -0.25))
        return chosen

    def _scales_scores(self, task: Task, raw: bool) -> bool:
        return not (raw or self.raw or self.options.reheads == "reshape" and _reheaded(task))

    def _is_flat(self, task: Task) -> bool:
        return self.heads == "flat" or (self.options.reheads == "reshape" and _reheaded(task))

    def _flat_pair(self, task: Task, raw: bool) -> Pair:
        (heads_s, heads_t), (dim_s, dim_t) = task.lengths("heads"), task.lengths("head_dim")
        source, target = heads_s * dim_s, heads_t * dim_t
        if source == target:
            return Pair(identity(source), identity(target))
        wavelet = self.wavelet(task, "head_dim")
        return raw_pair(source, target, wavelet) if raw else dual_pair(source, target, wavelet)

    # -- depth ----------------------------------------------------------------------------------

    def depth(self, task: Task, raw: bool = False) -> Depth:
        """Which layers make up which, at the task's layer counts."""
        source, target = task.lengths("layer")
        if source == target:
            return Depth(np.eye(source), np.eye(source))
        rule = self.depth_rule(task)
        wavelet = self.wavelet(task, "layer")
        if rule == "wavelet":
            pair = dual_pair(source, target, wavelet)
            if raw:
                written = raw_pair(source, target, wavelet).produce.dense()
                return Depth(written, written, f"{wavelet} over layers")
            updates = pair.produce if self.raw else pair.consume
            return Depth(pair.produce.dense(), updates.dense(), f"{wavelet} over layers")
        if rule in ("first", "even"):
            index = np.arange(target) if rule == "first" else np.arange(target) * source // target
            kept = gather(index, source).dense()
            return Depth(kept, kept, f"{rule} layers")
        index = np.arange(target) * source // target
        layers = gather(index, source).dense()
        if rule == "repeat":
            return Depth(layers, layers / layers.sum(0), "layers repeated")
        first = np.concatenate([[True], index[1:] != index[:-1]])
        return Depth(layers, layers * first[:, None], "identity blocks")

    def depth_rule(self, task: Task) -> str:
        source, target = task.lengths("layer")
        rule = self.options.depth
        if rule == "auto":
            rule = self._auto_depth(task, grows=target > source)
        if rule in ("repeat", "identity") and target < source:
            raise BadOption(
                f"depth={rule!r} only grows, but {source} layers shrink to {target}; use 'wavelet', 'first' or 'even'."
            )
        if rule in ("first", "even") and target > source:
            raise BadOption(
                f"depth={rule!r} only shrinks, but {source} layers grow to {target}; "
                "use 'wavelet', 'repeat' or 'identity'."
            )
        return rule

    def _auto_depth(self, task: Task, grows: bool) -> str:
        if self.raw:
            return "wavelet"
        if not grows:
            return "even"
        return "identity" if task.adapter.norm == "pre" else "repeat"

    # -- detail bands ---------------------------------------------------------------------------

    def _detail(self, task: Task, rule: Rule, layer: int | None, name: str, raw: bool) -> Detail | None:
        kind, scale = self._detail_choice(task)
        if kind == "zero" or scale == 0.0 or (self.raw and not raw):
            return None
        visible = tuple(
            tuple(self._visible(task, segment, raw) for segment in axis.segments) for axis in rule.axes
        )
        layers: tuple[tuple[int, float], ...] = ()
        source, target = task.lengths("layer")
        if raw and layer is not None and target > source and self.depth_rule(task) == "wavelet":
            pair = dual_pair(source, target, self.wavelet(task, "layer"))
            row = (pair.produce.dense() @ pair.consume.dense().T)[layer]
            layers = tuple((int(i), float(row[i])) for i in np.flatnonzero(row))
        if is_identity(visible) and not layers:
            return None
        return Detail(kind, scale, visible, layers, raw, self.options.seed, name, layer)

    def _detail_choice(self, task: Task) -> tuple[str, float]:
        kind, scale = self.options.detail, self.options.detail_scale
        if kind == "auto":
            kind = "zero" if self.raw else "gaussian"
        if scale is None:
            scale = 1.0 if self.raw else CONSISTENT_DETAIL_SCALE
        return kind, scale

    def _visible(self, task: Task, segment: tuple[Factor, ...], raw: bool) -> Segment:
        """Projection of an axis onto what the grown signal reaches: C R^T, or everything if not grown."""
        if any(f.role == "heads" for f in segment) and self._is_flat(task):
            pair = self._flat_pair(task, raw=False)
            read = raw or all(f.reads for f in segment)
            return (_projection(pair) if read else identity(pair.produce.target),)
        return tuple(self._visible_factor(task, factor, raw) for factor in segment)

    def _visible_factor(self, task: Task, factor: Factor, raw: bool) -> AxisMap:
        if not factor.role:
            return identity(factor.size or 1)
        target = task.target[factor.role]
        if target is None or task.source[factor.role] is None:
            return identity(-1)
        if not (factor.reads or raw):
            return identity(target)
        return _projection(self.pair(task, factor.role))

    # -- words ----------------------------------------------------------------------------------

    def describe(self, task: Task) -> dict[str, Any]:
        roles = [role for role in ("hidden", "ffn", "heads", "head_dim", "layer") if task.ratio(role) != 1]
        kind, scale = self._detail_choice(task)
        return {
            "method": self.name,
            **self.options.to_dict(),
            "wavelet": {role: self.wavelet(task, role) for role in roles},
            "heads": self.heads,
            "depth": self.depth_rule(task) if task.ratio("layer") != 1 else "kept",
            "detail": kind,
            "detail_scale": scale,
        }

    def warnings(self, task: Task) -> list[str]:
        found = []
        source, target = task.lengths("layer")
        if target > source and task.adapter.norm == "post" and self.depth_rule(task) == "identity":
            found.append("identity blocks are not exact in a post-norm model: the norm after a zero update still acts")
        if self.raw and task.ratio("hidden") != 1:
            found.append("gain='raw' changes the function (norm inputs and attention scores are rescaled)")
        return found

    def _label(self, task: Task, rule: Rule, raw: bool) -> str:
        parts = []
        for role in dict.fromkeys(FOLLOWS.get(role, role) for role in rule.roles):
            if task.source[role] is None or task.ratio(role) == 1:
                continue
            pair = self.pair(task, role, raw)
            flat = self._is_flat(task) and role in ("heads", "head_dim")
            parts.append(f"{role}: {'flat' if flat else pair.label}")
        return "; ".join(parts)


def dual_pair(source: int, target: int, wavelet: str) -> Pair:
    """(R, C) of unit gain and dual: synthesis and the adjoint of analysis, or the other way round."""
    if target > source:
        pair = synthesis_map(source, target, wavelet, True), analysis_map(target, source, wavelet, True)
    else:
        pair = analysis_map(source, target, wavelet, True), synthesis_map(target, source, wavelet, True)
    return Pair(pair[0], pair[1].transposed(), wavelet)


def raw_pair(source: int, target: int, wavelet: str) -> Pair:
    """The orthonormal transform on either side, as the paper applies it (eqs. 1, 5 and 6)."""
    low = synthesis_map if target > source else analysis_map
    one = low(source, target, wavelet, False)
    return Pair(one, one, f"{wavelet} raw")


def whole_units(source: int, target: int) -> Pair:
    """Copy or pick units without ever mixing two: readers of a copied unit share it."""
    if target < source:
        picked = gather(np.arange(target) * source // target, source)
        return Pair(picked, picked, "picked")
    return Pair(*_copies(source, target), "copied")


def _copies(source: int, target: int) -> tuple[AxisMap, AxisMap]:
    counts = np.full(source, target // source) + split_places(source, target % source)
    copies = gather(np.repeat(np.arange(source), counts), source)
    dense = copies.dense()
    return copies, from_dense(dense / dense.sum(0))


def _projection(pair: Pair) -> AxisMap:
    if pair.produce.is_identity or pair.produce.target < pair.produce.source:
        return identity(pair.produce.target)
    return pair.produce.transposed().then(pair.consume)


def _reheaded(task: Task) -> bool:
    return task.ratio("hidden") == 1 and task.ratio("heads") != 1


def _nearest(depth: Depth, layer: int) -> int:
    return int(np.flatnonzero(depth.layers[layer])[0])
