"""The order of units: neighbours are what a low-pass merges, so similar units become neighbours.

MLP units, heads and (one order for the whole network) hidden units may be permuted without a change
of the function. Which units are merged with which, and in which shape, is known from the sizes
alone (`merge_shapes`); `similar_order` fills those shapes greedily, most similar pairs first.
"""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from ..wavelets import split_places
from .network import Network

Shape = tuple["Shape", "Shape"] | tuple[()]  # a merge of two shapes, or a single unit
UNIT: Shape = ()
PIECE = 1024  # rows that are gathered at a time


def merge_shapes(source: int, target: int) -> list[Shape]:
    """For every unit of the target, how source units are merged into it, level by level.

    >>> merge_shapes(5, 2)
    [((), ()), ((), ((), ()))]
    """
    roots: list[list] = [[] for _ in range(target)]  # type: ignore[type-arg]  # nested without end
    places = list(roots)
    while len(places) < source:
        split = split_places(len(places), min(len(places), source - len(places)))
        for place in np.flatnonzero(split):
            places[place].extend(([], []))
        places = [leaf for place in places for leaf in (place or [place])]
    return [_frozen(root) for root in roots]


def similar_order(gram: Tensor, shapes: Sequence[Shape]) -> list[int]:
    """An order of units in which each shape merges similar ones.

    Args:
        gram: (unit, unit) inner products of what units do; a merged unit does the sum.
        shapes: of `merge_shapes`.
    """
    units: dict[Shape, list[list[int]]] = {UNIT: [[i] for i in range(len(gram))]}
    needed = Counter(node for shape in shapes for node in _merges(shape))
    for shape in sorted(needed, key=leaves):
        left, right = shape  # type: ignore[misc]  # a merge has two parts
        pool = units[left] if left == right else units[left] + units[right]
        found = _best_pairs(_cosine(gram, pool), needed[shape], 0 if left == right else len(units[left]))
        units[shape] = units.get(shape, []) + [pool[i] + pool[j] for i, j in found]
        taken = {id(pool[i]) for pair in found for i in pair}
        for part in {left, right}:
            units[part] = [members for members in units[part] if id(members) not in taken]
    for made in units.values():
        made.sort(key=min)
    return [i for shape in shapes for i in units[shape].pop(0)]


def _best_pairs(free: Tensor, count: int, split: int) -> list[tuple[int, int]]:
    """The `count` best disjoint pairs, greedily; with `split`, of one before and one from it on.

    Pairs that are each other's nearest are what a greedy choice takes, whatever comes before them.

    Args:
        free: (unit, unit) similarities; the memory is used for what is still to be paired.
    """
    free.fill_diagonal_(-torch.inf)
    if split:
        free[:split, :split] = free[split:, split:] = -torch.inf
    pairs: list[tuple[float, int, int]] = []
    units = torch.arange(len(free))  # those that the rows stand for
    while len(units):
        best, nearest = free.max(dim=1)
        place = torch.arange(len(free))
        mutual = (nearest[nearest] == place) & (place < nearest) & (best > -torch.inf)
        if not bool(mutual.any()):
            break
        lower, upper = place[mutual], nearest[mutual]
        pairs += zip((-best[mutual]).tolist(), units[lower].tolist(), units[upper].tolist(), strict=True)
        left = torch.ones(len(free), dtype=torch.bool).index_fill_(0, torch.cat([lower, upper]), False)
        units, free = units[left], free[left][:, left]
    return [(i, j) for _, i, j in sorted(pairs)[:count]]


def _cosine(gram: Tensor, groups: list[list[int]]) -> Tensor:
    flat = torch.tensor([unit for units in groups for unit in units])
    group = torch.tensor([row for row, units in enumerate(groups) for _ in units])
    rows, merged = gram.new_zeros(len(groups), len(gram)), gram.new_zeros(len(groups), len(groups))
    for some in torch.split(torch.arange(len(flat)), PIECE):
        rows.index_add_(0, group[some], gram[flat[some]])
    for some in torch.split(torch.arange(len(flat)), PIECE):
        merged.index_add_(1, group[some], rows[:, flat[some]])
    scale = merged.diagonal().clamp_min(1e-300).rsqrt()
    return _earlier_first(merged.mul_(scale[:, None]).mul_(scale))


def _earlier_first(similarity: Tensor) -> Tensor:
    """Equal similarities (twins) must not leave every unit waiting for another: earlier ones come first."""
    index = 1e-12 * torch.arange(len(similarity), dtype=similarity.dtype)
    return similarity.sub_(index[:, None]).sub_(index)


def gram_of(network: Network, role: str, layer: int | None, kept: Collection[int] | None = None) -> Tensor:
    """(unit, unit) inner products over all matrices that write or read a role, each of weight one.

    Args:
        kept: without a layer, those of which matrices count; None for all.
    """
    length = network.sizes[role] or 0
    total = torch.zeros(length, length, dtype=torch.float64)
    for name, place in network.having(role, layer):
        if place.rule.maps and (kept is None or place.layer is None or place.layer in kept):
            for parts in network.pieces(name, role):
                one = torch.zeros_like(total)
                for x in parts:
                    one.addmm_(x, x.T)
                total.add_(one, alpha=1 / max(float(one.trace()), 1e-300))
    return total


def matching_order(network: Network, role: str, first: int, layer: int) -> list[int]:
    """The order in which a layer's units stand like the first layer's: each next to the most similar one."""
    length = network.sizes[role] or 0
    cross = torch.zeros(length, length, dtype=torch.float64)
    for name, place in network.having(role, layer):
        twin = network.find(place.template, first)
        if place.rule.maps and twin is not None:
            for (_, mine), (_, theirs) in zip(network.along(name, role), network.along(twin, role), strict=True):
                scale = mine.norm() * theirs.norm()
                cross.addmm_(theirs / scale.clamp_min(1e-300), mine.T)  # (unit of the first, unit of this layer)
    rows, columns = (gram_of(network, role, one).diagonal().clamp_min(1e-300).rsqrt() for one in (first, layer))
    both = torch.zeros(2 * length, 2 * length, dtype=torch.float64)
    both[:length, length:] = rows[:, None] * cross * columns
    both[length:, :length] = both[:length, length:].T
    pairs = dict(_best_pairs(_earlier_first(both), length, length))
    return [pairs[unit] - length for unit in range(length)]


def strongest_first(strength: Tensor, counts: Sequence[int]) -> list[int]:
    """An order in which every group of `counts` units starts with one of the strongest.

    The weakest join the strongest: their readers, which then read the leader, disturb it least.
    """
    ranked = torch.argsort(strength, descending=True, stable=True).tolist()
    leaders, others = ranked[: len(counts)], ranked[len(counts) :][::-1]
    order: list[int] = []
    for leader, count in zip(leaders, counts, strict=True):
        order += [leader, *others[: count - 1]]
        others = others[count - 1 :]
    return order


def head_strength(network: Network, layer: int) -> Tensor:
    """Per head, the size of what it can write: the norm of `W_o W_v`."""
    out, values = network.writer(layer, "head_dim"), network.reader(layer, "head_dim")
    heads = network.sizes["heads"] or 1
    outs = out[0].reshape(len(out[0]), heads, -1)  # (hidden, heads, head_dim)
    reads = values[0].reshape(heads, -1, values[0].shape[1])  # (heads, head_dim, hidden)
    return torch.stack([(outs[:, i] @ reads[i]).norm() for i in range(heads)])


def _frozen(node: list) -> Shape:  # type: ignore[type-arg]
    return (_frozen(node[0]), _frozen(node[1])) if node else UNIT


def _merges(shape: Shape) -> list[Shape]:
    return [*_merges(shape[0]), *_merges(shape[1]), shape] if shape else []


def leaves(shape: Shape) -> int:
    """How many units a shape merges."""
    return leaves(shape[0]) + leaves(shape[1]) if shape else 1
