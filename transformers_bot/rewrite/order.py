"""The order of units: neighbours are what a low-pass merges, so similar units become neighbours.

MLP units, heads and (one order for the whole network) hidden units may be permuted without a change
of the function. Which units are merged with which, and in which shape, is known from the sizes
alone (`merge_shapes`); `similar_order` fills those shapes greedily, most similar pairs first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..architectures.adapter import At
from ..console import progress
from ..ops.axis_map import gather
from ..ops.blocks import add_gram, length_of, mirrored, product
from ..ops.wavelets import split_places
from .network import KeptLayers, Network, OutOfRange, is_kept

Shape = tuple["Shape", "Shape"] | tuple[()]  # a merge of two shapes, or a single unit
UNIT: Shape = ()
PIECE = 256  # rows that are gathered at a time
TINY = 1e-30  # of a norm or its square: what is smaller is dead; its inverse squared is finite in float32
LARGE = 1e38  # of a norm: what is larger is none of float32's numbers
SAFE = 1e6  # of a norm: products of units a millionth as strong are still far from float32's ends
ENTRIES = 4096  # of a unit, that are multiplied at a time
STEPS = 2**20  # between similarities of 0 and 1: what differs by less is equal
Groups = Sequence[Sequence[int]]  # layers that are averaged together


def order_units(
    network: Network,
    role: str,
    target: int,
    groups: Mapping[str, Groups] | None = None,
    kept: KeptLayers | None = None,
) -> None:
    """Put similar units of `role` next to each other, so that shrinking it to `target` merges those.

    MLP units and heads have an order in every layer, a stream's units one for the whole network. Layers
    of one group are averaged later: their units are first matched to those of the group's first layer.

    Args:
        groups: of a stack, the layers that are averaged together.
        kept: the layers that are read: the others' units stay, and do not count for a stream; None for all.
    """
    length = network.length(role)
    shapes = merge_shapes(length, target)
    gram = torch.empty(length, length, dtype=network.dtype)  # the same memory for all of them
    chosen = _together(network, role, groups, kept)
    progress.expects(len(chosen))
    for places in chosen:
        with progress.part(""):
            progress.expects(len(places) + 0.5)
            for at in places[1:]:
                first, at = _layer(places[0]), _layer(at)
                _permute(network, role, matching_order(network, role, at[0], first[1], at[1]), at)
            gram.zero_()
            for at in places:
                with progress.part(""):
                    add_grams(gram, network, role, at, kept)
            order = similar_order(mirrored(gram), shapes)
            for at in places:
                _permute(network, role, order, at)


def order_by_strength(network: Network, role: str, counts: Sequence[int], strengths: Mapping[At, Tensor]) -> None:
    """Let every group of units, of which the first is kept, start with one of the strongest.

    Args:
        strengths: layer -> (unit,); None for units of the whole network.
    """
    for at, score in strengths.items():
        _permute(network, role, strongest_first(score, counts), at)


def order_whole_units(
    network: Network,
    role: str,
    counts: list[int],
    groups: Mapping[str, Groups] | None = None,
    kept: KeptLayers | None = None,
) -> None:
    """Let every group of units that hold entries, such as heads, start with one of those that write most.

    Args:
        groups, kept: as for `order_units`.
    """
    for places in _together(network, role, groups, kept):
        total = sum((strength(network, role, at) for at in places), torch.zeros((), dtype=torch.float32))
        for at in places:
            _permute(network, role, strongest_first(total, counts), at)


def _together(
    network: Network, role: str, groups: Mapping[str, Groups] | None, kept: KeptLayers | None
) -> Sequence[Sequence[At]]:
    """The layers whose units get one order together; a stream has one everywhere."""
    if network.roles.is_network_wide(role):
        return [[None]]
    chosen: list[list[At]] = []
    for stack in network.stacks_of(role):
        read = network.layers(stack) if kept is None or stack not in kept else kept[stack]
        grouped = (groups or {}).get(stack) or [[layer] for layer in network.layers(stack) if layer in read]
        chosen += [[(stack, layer) for layer in group] for group in grouped]
    return chosen


def _layer(at: At) -> tuple[str, int]:
    if at is None:
        raise ValueError("units of the whole network are in no layer")
    return at


def _permute(network: Network, role: str, order: list[int], at: At) -> None:
    for moved in network.roles.followers(role):
        network.map_role(moved, gather(order, len(order)), at)


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
        gram: (unit, unit) inner products of what units do; a merged unit does the sum. Symmetric to the
            last bit; the memory is used.
        shapes: of `merge_shapes`.
    """
    units: dict[Shape, list[list[int]]] = {UNIT: [[i] for i in range(len(gram))]}
    needed = Counter(node for shape in shapes for node in _merges(shape))
    steps = sorted(needed, key=leaves)
    for shape in steps:
        left, right = shape  # type: ignore[misc]  # a merge has two parts
        pool = units[left] if left == right else units[left] + units[right]
        similar = _similarities(gram if shape is steps[-1] else gram.clone(), pool)
        found = best_pairs(similar, needed[shape], 0 if left == right else len(units[left]))
        units[shape] = units.get(shape, []) + [pool[i] + pool[j] for i, j in found]
        taken = {id(pool[i]) for pair in found for i in pair}
        for part in {left, right}:
            units[part] = [members for members in units[part] if id(members) not in taken]
    for made in units.values():
        made.sort(key=min)
    return [i for shape in shapes for i in units[shape].pop(0)]


def best_pairs(free: Tensor, count: int, split: int) -> list[tuple[int, int]]:
    """The `count` best disjoint pairs, greedily; with `split`, of one before and one from it on.

    Pairs that are each other's nearest are what a greedy choice takes, whatever comes before them. Of
    equals the first one counts as the nearest: the best row, if it is the first, then always has a mate.

    Args:
        free: (unit, unit) similarities, symmetric to the last bit; the memory is used.
    """
    free.fill_diagonal_(-torch.inf)
    if split:
        free[:split, :split] = free[split:, split:] = -torch.inf
    pairs: list[tuple[float, int, int]] = []
    place, gone = torch.arange(len(free)), torch.zeros(len(free), dtype=torch.bool)
    best, nearest = free.max(dim=1)  # of equals, torch gives the first
    while True:
        mutual = (nearest[nearest] == place) & (place < nearest) & (best > -torch.inf)
        if not bool(mutual.any()):
            break
        lower, upper = place[mutual], nearest[mutual]
        pairs += zip((-best[mutual]).tolist(), lower.tolist(), upper.tolist(), strict=True)
        gone[lower] = gone[upper] = True
        best[gone] = -torch.inf
        ahead = -float(best.max())  # no pair to come is better than that
        if sum(value < ahead for value, _, _ in pairs) >= count:
            break
        for rows in torch.split(place[gone[nearest] & ~gone], PIECE):
            best[rows], nearest[rows] = free[rows].masked_fill_(gone, -torch.inf).max(dim=1)
    return [(i, j) for _, i, j in sorted(pairs)[:count]]


def _similarities(gram: Tensor, groups: list[list[int]]) -> Tensor:
    """Cosines of what groups of units do together, in steps of a millionth, so that rounding parts no twins.

    Of single units in their own order they take the place of the gram.
    """
    merged = gram
    if groups != [[unit] for unit in range(len(gram))]:
        merged = _sums_over(_sums_over(gram, groups).T, groups)
        merged = merged + merged.T  # sums in another order may differ in the last bit
    scale = merged.diagonal().clamp_min(TINY).rsqrt()
    for rows, own in zip(torch.split(merged, PIECE), torch.split(scale, PIECE), strict=True):
        rows.mul_((own[:, None] * scale).mul_(STEPS)).round_()
    # Dead units are alike: each is a copy of one other, rather than all of them waiting for the first one.
    dead = (scale >= TINY**-0.5).nonzero().flatten()
    one, other = dead[: len(dead) // 2 * 2].view(-1, 2).T
    merged[one, other] = merged[other, one] = STEPS
    return merged


def _sums_over(gram: Tensor, groups: list[list[int]]) -> Tensor:
    """(group, unit): sums of rows."""
    flat = torch.tensor([unit for units in groups for unit in units])
    group = torch.tensor([row for row, units in enumerate(groups) for _ in units])
    rows = gram.new_zeros(len(groups), gram.shape[1])
    for some in torch.split(torch.arange(len(flat)), PIECE):
        rows.index_add_(0, group[some], gram[flat[some]])
    return rows


def add_grams(total: Tensor, network: Network, role: str, at: At, kept: KeptLayers | None = None) -> None:
    """Add (unit, unit) inner products over all matrices that write or read a role, each of weight one.

    Args:
        total: what they are added to, on and above the diagonal. Rounding parts twins by less than `STEPS`.
        kept: without a layer, those of which matrices count; None for all.
    """
    having = list(network.having(role, at))
    for name, place in progress.tracked(having, [float(network.numel(name)) for name, _ in having]):
        if place.rule.maps and is_kept(place, kept):
            for _, units in network.along(name, role):
                norm = max(_norm(units, total.dtype), TINY)
                fits = 1 / SAFE < norm < SAFE  # then the products are scaled, which takes no copy of the units
                for part in torch.split(units, ENTRIES, dim=1):
                    x = part.to(total.dtype)
                    add_gram(
                        total, (x if fits else _scaled(part, norm, total.dtype)).contiguous(), norm**-2 if fits else 1.0
                    )


def matching_order(network: Network, role: str, stack: str, first: int, layer: int) -> list[int]:
    """The order in which a layer's units stand like the first layer's: each next to the most similar one."""
    length = network.length(role)
    cross, squares = torch.zeros(length, length, dtype=network.dtype), torch.zeros(2, length, dtype=torch.float64)
    for name, place in network.having(role, (stack, layer)):
        twin = network.find(place.template, first)
        if place.rule.maps and twin is not None:
            for (_, theirs), (_, mine) in zip(network.along(twin, role), network.along(name, role), strict=True):
                theirs, mine = (_unit(x.to(network.dtype)) for x in (theirs, mine))
                cross += product(theirs, mine)  # (unit of the first, unit of this layer)
                squares += torch.stack([theirs.square().sum(1), mine.square().sum(1)])
    rows, columns = squares.clamp_min(TINY).rsqrt().to(cross.dtype)
    both = cross.new_zeros(2 * length, 2 * length)
    both[:length, length:] = (rows[:, None] * cross * columns).mul_(STEPS).round_()
    both[length:, :length] = both[:length, length:].T
    pairs = dict(best_pairs(both, length, length))
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


def _unit(x: Tensor) -> Tensor:
    norm = max(length_of(x), TINY)
    return x / norm if norm < LARGE else _scaled(x, norm, x.dtype)


def _norm(x: Tensor, dtype: torch.dtype) -> float:
    norm = float(torch.linalg.vector_norm(x, dtype=dtype))
    return norm if TINY**0.5 < norm < LARGE else float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _scaled(x: Tensor, norm: float, dtype: torch.dtype) -> Tensor:
    """`x / norm`, also where the norm of numbers of a dtype is none of its own."""
    return x.to(dtype) / norm if norm < LARGE else (x.double() / norm).to(dtype)


def strength(network: Network, role: str, at: At) -> Tensor:
    """Per unit that holds entries, such as a head, the size of what it can write: the norm of `W_o W_v`."""
    count = network.length(role)
    total = torch.zeros(count, dtype=network.dtype)
    for block in network.blocks(at):
        if not block.reads(role):
            continue
        entries = block.segment[-1].role
        outs, _ = network.written(block)
        outs = outs.reshape(len(outs), count, -1)  # (stream, units, entries)
        for name in block.writers:
            reads, _ = network.writing(name, entries)
            reads = reads.reshape(count, -1, reads.shape[1])  # (units, entries, what they read)
            # |O V|^2 = tr(O^T O V V^T), of which both factors are small
            squares = [product(outs[:, i].T, outs[:, i].T) * product(reads[i], reads[i]) for i in range(count)]
            if not all(bool(one.isfinite().all()) for one in squares):
                raise OutOfRange(f"what the {role} of layer {at and at[1]} write")
            total = total + torch.stack([one.sum() for one in squares])
    return total.clamp_min(0).sqrt()  # what writes nothing may round to less


def _frozen(node: list) -> Shape:  # type: ignore[type-arg]
    return (_frozen(node[0]), _frozen(node[1])) if node else UNIT


def _merges(shape: Shape) -> list[Shape]:
    return [*_merges(shape[0]), *_merges(shape[1]), shape] if shape else []


def leaves(shape: Shape) -> int:
    """How many units a shape merges."""
    return leaves(shape[0]) + leaves(shape[1]) if shape else 1
