"""The order of units: a low-pass merges neighbours, so similar units are made neighbours.

MLP units, heads and (in one order for the whole network) hidden units can be permuted without a change of the
function. The sizes alone decide which places are merged, and in which tree of merges (`merge_shapes`);
`similar_order` fills these trees greedily, most similar pairs first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..architectures.adapter import At
from ..console import progress
from ..ops.axis_map import AxisMap, gather, split_places
from ..ops.blocks import add_gram, length_of, mirrored, product
from .network import KeptLayers, Network, OutOfRange, is_kept

Shape = tuple["Shape", "Shape"] | tuple[()]  # a merge of two shapes, or a single unit
UNIT: Shape = ()
PIECE = 256  # rows that are gathered at a time
TINY = 1e-30  # a smaller norm, or square of a norm, counts as 0; the inverse is finite in float32
LARGE = 1e38  # a larger norm may exceed float32
SAFE = 1e6  # of a norm: products of units a millionth as strong are still well within float32
ENTRIES = 4096  # entries of a unit that are multiplied at a time
STEPS = 2**20  # similarities are rounded to this many steps between 0 and 1, so that rounding does not matter
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
        groups: stack -> groups of layers that are averaged.
        kept: the layers that are read. Units of other layers are not reordered, and their matrices do not
            count for the order of a stream. None for all layers.

    The units of a bank of matrices, such as experts, have an order in each matrix.
    """
    matrices = network.matrices(role)
    if matrices > 1:
        _order_each(network, role, target, matrices, groups, kept)
        return
    length = network.length(role)
    shapes = merge_shapes(length, target)
    gram = torch.empty(length, length, dtype=network.dtype)  # the same memory for all layers
    layer_groups = _layer_groups(network, role, groups, kept)
    progress.expects(len(layer_groups))
    for places in layer_groups:
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


def _order_each(
    network: Network,
    role: str,
    target: int,
    matrices: int,
    groups: Mapping[str, Groups] | None,
    kept: KeptLayers | None,
) -> None:
    """`order_units` for every matrix of the banks that hold these units."""
    progress.expects(matrices)
    maps: dict[tuple[str, At], list[AxisMap]] = {}
    for number in range(matrices):
        with progress.part(""):
            single = network.matrix(number)
            order_units(single, role, target, groups, kept)
            for key, axis_map in single.moved.items():
                maps.setdefault(key, []).append(axis_map)
    for (moved, at), own in maps.items():
        network.map_each(moved, tuple(own), at)


def order_by_strength(network: Network, role: str, counts: Sequence[int], strengths: Mapping[At, Tensor]) -> None:
    """Order units so that every group, of which the first unit is picked, starts with one of the strongest.

    Args:
        strengths: layer -> (unit,); the key None is for units of the whole network.
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
    """Order units that hold entries, such as heads, so that every group starts with one that writes most.

    Args:
        groups, kept: as for `order_units`.
    """
    for places in _layer_groups(network, role, groups, kept):
        total = sum((strength(network, role, at) for at in places), torch.zeros((), dtype=torch.float32))
        for at in places:
            _permute(network, role, strongest_first(total, counts), at)


def _layer_groups(
    network: Network, role: str, groups: Mapping[str, Groups] | None, kept: KeptLayers | None
) -> Sequence[Sequence[At]]:
    """Groups of layers that get one common order of units; a stream has one order for the whole network."""
    is_common = network.roles.is_network_wide(role) or network.is_shared(role)
    if is_common or not network.stacks_of(role):
        return [[None]]
    layer_groups: list[list[At]] = []
    for stack in network.stacks_of(role):
        read = network.layers(stack) if kept is None or stack not in kept else kept[stack]
        grouped = (groups or {}).get(stack) or [[layer] for layer in network.layers(stack) if layer in read]
        placed: list[list[At]] = [
            [(stack, n) for n in group if network.has_role(role, (stack, n))] for group in grouped
        ]
        layer_groups += [group for group in placed if group]
    return layer_groups


def _layer(at: At) -> tuple[str, int]:
    if at is None:
        raise ValueError("units of the whole network do not belong to a layer")
    return at


def _permute(network: Network, role: str, order: list[int], at: At) -> None:
    for follower in network.roles.followers(role):
        network.map_role(follower, gather(order, len(order)), at)


def merge_shapes(source: int, target: int) -> list[Shape]:
    """For every unit of the target, the tree of merges of source units, level by level.

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
    return [_as_tuples(root) for root in roots]


def similar_order(gram: Tensor, shapes: Sequence[Shape]) -> list[int]:
    """An order of units in which each shape merges similar ones.

    Args:
        gram: (unit, unit) inner products of the units' weights; a merged unit has the sum of weights.
            Exactly symmetric; it is overwritten.
        shapes: from `merge_shapes`.
    """
    units: dict[Shape, list[list[int]]] = {UNIT: [[i] for i in range(len(gram))]}
    needed = Counter(node for shape in shapes for node in _merges(shape))
    steps = sorted(needed, key=leaves)
    for shape in steps:
        left, right = shape  # type: ignore[misc]  # a merge has two parts
        pool = units[left] if left == right else units[left] + units[right]
        similar = _similarities(gram if shape is steps[-1] else gram.clone(), pool)
        pairs = best_pairs(similar, needed[shape], 0 if left == right else len(units[left]))
        units[shape] = units.get(shape, []) + [pool[i] + pool[j] for i, j in pairs]
        taken = {id(pool[i]) for pair in pairs for i in pair}
        for part in {left, right}:
            units[part] = [members for members in units[part] if id(members) not in taken]
    for merged in units.values():
        merged.sort(key=min)
    return [i for shape in shapes for i in units[shape].pop(0)]


def best_pairs(free: Tensor, count: int, split: int) -> list[tuple[int, int]]:
    """The `count` best disjoint pairs, greedily; with `split`, of one unit before index `split` and one after.

    Two units that are nearest to each other are a pair of the greedy choice, whatever was chosen before, so
    all such pairs are taken at once. Among equals the first one counts as the nearest; then the first row
    with the best similarity is always in such a pair.

    Args:
        free: (unit, unit) similarities, exactly symmetric; it is overwritten.
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
        bound = -float(best.max())  # no later pair is better
        if sum(value < bound for value, _, _ in pairs) >= count:
            break
        for rows in torch.split(place[gone[nearest] & ~gone], PIECE):
            best[rows], nearest[rows] = free[rows].masked_fill_(gone, -torch.inf).max(dim=1)
    return [(i, j) for _, i, j in sorted(pairs)[:count]]


def _similarities(gram: Tensor, groups: list[list[int]]) -> Tensor:
    """Cosines between the sums of groups of units, in steps of a millionth, so that copies stay equal.

    Of single units in their own order they take the place of the gram.
    """
    merged = gram
    if groups != [[unit] for unit in range(len(gram))]:
        merged = _sums_over(_sums_over(gram, groups).T, groups)
        merged = merged + merged.T  # exactly symmetric, although sums in another order may differ in the last bit
    scale = merged.diagonal().clamp_min(TINY).rsqrt()
    for rows, own in zip(torch.split(merged, PIECE), torch.split(scale, PIECE), strict=True):
        rows.mul_((own[:, None] * scale).mul_(STEPS)).round_()
    # Units of weight 0 count as copies, in pairs: if each were a copy of all, only the first would find a partner.
    dead = (scale >= TINY**-0.5).nonzero().flatten()
    left, right = dead[: len(dead) // 2 * 2].view(-1, 2).T
    merged[left, right] = merged[right, left] = STEPS
    return merged


def _sums_over(gram: Tensor, groups: list[list[int]]) -> Tensor:
    """(group, unit): the sum of the rows of each group."""
    flat = torch.tensor([unit for units in groups for unit in units])
    group = torch.tensor([row for row, units in enumerate(groups) for _ in units])
    rows = gram.new_zeros(len(groups), gram.shape[1])
    for piece in torch.split(torch.arange(len(flat)), PIECE):
        rows.index_add_(0, group[piece], gram[flat[piece]])
    return rows


def add_grams(total: Tensor, network: Network, role: str, at: At, kept: KeptLayers | None = None) -> None:
    """Add (unit, unit) inner products over all matrices that write or read a role, each scaled to norm 1.

    Args:
        total: the sum, on and above the diagonal. Rounding makes copies differ by less than one of `STEPS`.
        kept: the layers whose matrices count if `at` is None; None for all.
    """
    tensors = list(network.tensors_with(role, at))
    for name, place in progress.tracked(tensors, [float(network.numel(name)) for name, _ in tensors]):
        if place.rule.maps and is_kept(place.at, kept):
            for _, units in network.along(name, role):
                norm = max(_norm(units, total.dtype), TINY)
                is_safe = 1 / SAFE < norm < SAFE  # then the products are scaled instead of the units: no copy is needed
                for part in torch.split(units, ENTRIES, dim=1):
                    x = part.to(total.dtype) if is_safe else _scaled(part, norm, total.dtype)
                    add_gram(total, x.contiguous(), norm**-2 if is_safe else 1.0)


def matching_order(network: Network, role: str, stack: str, first: int, layer: int) -> list[int]:
    """The order of a layer's units in which each has the place of the most similar unit of the first layer."""
    length = network.length(role)
    cross, squares = torch.zeros(length, length, dtype=network.dtype), torch.zeros(2, length, dtype=torch.float64)
    for name, place in network.tensors_with(role, (stack, layer)):
        reference = network.find(place.template, first)
        if place.rule.maps and reference is not None:
            for (_, theirs), (_, own) in zip(network.along(reference, role), network.along(name, role), strict=True):
                theirs, own = (_unit(x.to(network.dtype)) for x in (theirs, own))
                cross += product(theirs, own)  # (unit of the first, unit of this layer)
                squares += torch.stack([theirs.square().sum(1), own.square().sum(1)])
    rows, columns = squares.clamp_min(TINY).rsqrt().to(cross.dtype)
    both = cross.new_zeros(2 * length, 2 * length)
    both[:length, length:] = (rows[:, None] * cross * columns).mul_(STEPS).round_()
    both[length:, :length] = both[:length, length:].T
    pairs = dict(best_pairs(both, length, length))
    return [pairs[unit] - length for unit in range(length)]


def strongest_first(strength: Tensor, counts: Sequence[int]) -> list[int]:
    """An order in which every group of `counts` units starts with one of the strongest.

    The weakest units join the strongest: their readers will read the first unit of the group instead, and so
    the sum of the readers' weights changes least.
    """
    ranked = torch.argsort(strength, descending=True, stable=True).tolist()
    leaders, others = ranked[: len(counts)], ranked[len(counts) :][::-1]
    order: list[int] = []
    for leader, count in zip(leaders, counts, strict=True):
        order += [leader, *others[: count - 1]]
        others = others[count - 1 :]
    return order


def _unit(x: Tensor) -> Tensor:
    """`x` scaled to norm 1."""
    norm = max(length_of(x), TINY)
    return x / norm if norm < LARGE else _scaled(x, norm, x.dtype)


def _norm(x: Tensor, dtype: torch.dtype) -> float:
    norm = float(torch.linalg.vector_norm(x, dtype=dtype))
    return norm if TINY**0.5 < norm < LARGE else float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _scaled(x: Tensor, norm: float, dtype: torch.dtype) -> Tensor:
    """`x / norm`, also for a norm that exceeds the range of `dtype`."""
    return x.to(dtype) / norm if norm < LARGE else (x.double() / norm).to(dtype)


def strength(network: Network, role: str, at: At) -> Tensor:
    """The norm of `W_o W_v` of every unit that holds entries, such as a head: the size of what it can write."""
    total = torch.zeros(network.length(role), dtype=network.dtype)
    for block in network.blocks(at):
        if not block.reads(role):
            continue
        *whole, entries = (factor.length(network.sizes) or 1 for factor in block.segment)
        others = [axis for axis, factor in enumerate(block.segment[:-1]) if factor.role != role]
        outs, _ = network.out_matrix(block)
        outs = outs.reshape(len(outs), -1, entries)  # (stream, units, entries)
        for name in block.writers:
            _, reads, _ = next(network.writer_parts(name, block.segment))
            reads = reads.reshape(outs.shape[1], entries, -1)  # (units, entries, what they read)
            # |O V|^2 = tr(O^T O V V^T), where both factors are small: (entries, entries)
            squares = [product(outs[:, i].T, outs[:, i].T) * product(x, x) for i, x in enumerate(reads)]
            if not all(bool(square.isfinite().all()) for square in squares):
                raise OutOfRange(f"what the {role} of layer {at and at[1]} write")
            sizes = torch.stack([square.sum() for square in squares]).reshape(whole)
            total = total + (sizes.sum(others) if others else sizes)
    return total.clamp_min(0).sqrt()  # rounding may give less than 0


def _as_tuples(node: list) -> Shape:  # type: ignore[type-arg]
    return (_as_tuples(node[0]), _as_tuples(node[1])) if node else UNIT


def _merges(shape: Shape) -> list[Shape]:
    return [*_merges(shape[0]), *_merges(shape[1]), shape] if shape else []


def leaves(shape: Shape) -> int:
    """The number of units that a shape merges."""
    return leaves(shape[0]) + leaves(shape[1]) if shape else 1
