"""A source's tensors with the meaning of their axes, which can be rewritten before a resize."""

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ..architectures.adapter import Adapter, At, Axis, Factor, Roles, Rule
from ..compat import Releasing
from ..ops.axis_map import AxisMap, identity
from ..ops.blocks import at_least_float32
from ..ops.recipe import Alternation, TensorMap, apply


class OutOfRange(ArithmeticError):
    """A value computed from finite weights overflows or vanishes in the dtype of the computation."""


Edit = Callable[[Tensor], Tensor]
Move = AxisMap | tuple[AxisMap, ...]  # of an axis; of a bank of matrices one for each
KeptLayers = Mapping[str, Collection[int]]  # stack -> the layers that are read; of a stack without an entry all
RELEASED = 256 << 20  # bytes of tensors that are read before freed memory is returned


@dataclass(frozen=True)
class Place:
    """The place of a tensor in the network: its rule, its layer, and its name with {layer} and without a prefix."""

    rule: Rule
    layer: int | None
    template: str

    @property
    def stem(self) -> str:
        return self.template.rpartition(".")[0]

    @property
    def at(self) -> At:
        """Its stack of layers and its layer's number in it."""
        return None if self.layer is None else (self.rule.depth, self.layer)


@dataclass(frozen=True)
class Block:
    """A part of a layer that adds onto the residual stream.

    Attributes:
        out: name of the matrix that adds.
        stream: the stream that it adds onto.
        segment: what that matrix reads, such as (heads head_dim) or ffn.
        writers: names of the matrices that write the segment: values, or the MLP's first matrix and its gate.
    """

    out: str
    stream: str
    segment: tuple[Factor, ...]
    writers: tuple[str, ...]

    def reads(self, role: str) -> bool:
        """Whether its matrix reads entries of `role`."""
        return role in [factor.role for factor in self.segment]


class Network(Mapping[str, Tensor]):
    """The tensors of one checkpoint with edits, which are recorded at once and computed when a tensor is read.

    So a rewritten source needs no more memory than one tensor at a time. Edited tensors are returned in
    float32 or better, the others as they are stored. Segments of an axis that alternate in the files come one after
    another.

    Example:
        `network.map_role("ffn", swap, ("layer", 0))` swaps the MLP units of layer 0 in every tensor that
        writes or reads them; the network's outputs do not change.

    Args:
        adapter: the architecture.
        sizes: role -> length.
        tensors: name -> tensor; a tied tensor is found under all of its names.
        places: name -> its place in the network.
        tied: names of tensors that the target keeps equal to another one.
        wide: all tensors are returned in float64, for weights whose products exceed float32.
    """

    def __init__(
        self,
        adapter: Adapter,
        sizes: Mapping[str, int | None],
        tensors: Mapping[str, Tensor],
        places: Mapping[str, Place],
        tied: frozenset[str] = frozenset(),
        wide: bool = False,
    ) -> None:
        self.wide = wide
        self.adapter, self.sizes, self.places, self.tied = adapter, sizes, places, tied
        self._tensors = tensors
        self._edits: dict[str, tuple[Edit, ...]] = {}
        self._moves: list[tuple[str, At, Move]] = []
        self._inherited = 0
        self._releasing = Releasing(RELEASED)
        self._alternations = {
            name: orders for name, place in places.items() if (orders := alternations(place.rule, sizes))
        }
        self._names = {(place.template, place.layer): name for name, place in places.items()}
        self._of_layer: dict[At, list[tuple[str, Place]]] = {None: list(places.items())}
        for name, place in places.items():
            if place.at is not None:
                self._of_layer.setdefault(place.at, []).append((name, place))

    def __getitem__(self, name: str) -> Tensor:
        x = self._tensors[name]
        self._releasing.made(x.nbytes)
        edits = self._edits.get(name, ())
        for alternation in self.alternations(name):
            x = alternation.sorted(x)
        x = x.double() if self.wide else at_least_float32(x) if edits else x
        for edit in edits:
            x = edit(x)
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def stored(self) -> Mapping[str, Tensor]:
        """The tensors without the edits."""
        return self._tensors

    def over(self, tensors: Mapping[str, Tensor]) -> "Network":
        """A network with the same edits on the same tensors in another place (a GPU), where the edits are computed."""
        other = copy.copy(self)
        other._tensors, other._edits, other._moves = tensors, dict(self._edits), list(self._moves)
        other._inherited = len(self._moves)
        return other

    # -- edits ----------------------------------------------------------------------------------

    def edit(self, name: str, change: Edit) -> None:
        """Record one more change of a tensor, after those it already has."""
        self._edits[name] = (*self._edits.get(name, ()), change)

    def is_edited(self, name: str) -> bool:
        """Whether a tensor is not returned as it is stored."""
        return self.wide or name in self._edits or name in self._alternations

    def names_of(self, name: str) -> list[str]:
        """All names of the memory of this tensor: a bias may belong to two modules."""
        address = self._tensors[name].data_ptr()
        return [other for other in self.places if self._tensors[other].data_ptr() == address]

    def map_role(self, role: str, axis_map: AxisMap, at: At = None) -> None:
        """Apply one map along every axis of `role`, written or read, in all layers or one.

        A permutation or turn on both sides does not change the function.
        """
        self._moves.append((role, at, axis_map))
        for name, place in self.tensors_with(role, at):
            maps = self._maps(place.rule, {role: axis_map}, {role: axis_map})
            self.edit(name, lambda x, maps=maps: apply(x, maps))  # type: ignore[misc]

    def map_each(self, role: str, maps: tuple[AxisMap, ...], at: At) -> None:
        """Apply a map of its own to every matrix of the banks of a layer, along every axis of `role`."""
        self._moves.append((role, at, maps))
        for name, place in self.tensors_with(role, at):
            own = [self._maps(place.rule, {role: axis_map}, {role: axis_map}) for axis_map in maps]
            self.edit(name, partial(_of_each, maps=own))

    def follow(self, other: "Network") -> None:
        """Repeat the calls of `map_role` on a network that was made by `over`, after this network's own edits."""
        for role, at, move in other._moves[other._inherited :]:
            if isinstance(move, tuple):
                self.map_each(role, move, at)
            else:
                self.map_role(role, move, at)

    def matrices(self, role: str) -> int:
        """How many matrices the banks hold that all tensors with an axis of `role` are; 1 if some are no banks."""
        names = [name for name, place in self.tensors_with(role) if place.rule.maps]
        return min((self.bank(name) for name in names), default=1)

    def matrix(self, number: int) -> "Network":
        """A network in which every bank is its matrix of this number."""
        places = {name: _without_bank(place, self.roles) for name, place in self.places.items()}
        single = Network(self.adapter, self.sizes, _Matrices(self, number), places, self.tied, self.wide)
        single.__dict__["dtype"] = self.dtype
        return single

    def total_map(self, role: str, at: At) -> AxisMap:
        """The product of all calls of `map_role` on an axis: from the stored order or basis to the present one.

        That of a bank's matrices is not one map: what they read is never measured.
        """
        total = identity(self.sizes[role] or 0)
        for moved_role, place, move in self._moves:
            if moved_role == role and place in (None, at) and not isinstance(move, tuple):
                total = total.then(move)
        return total

    @property
    def moved(self) -> dict[tuple[str, At], AxisMap]:
        """Role and layer -> the product of the calls of `map_role` for them."""
        return {(role, at): self.total_map(role, at) for role, at, _ in self._moves}

    # -- reading --------------------------------------------------------------------------------

    def alternations(self, name: str) -> tuple[Alternation, ...]:
        """The stored order of a tensor's axes, of those whose segments alternate."""
        return self._alternations.get(name, ())

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of computations: float32, or float64 if any tensor is float64."""
        wide = self.wide or any(x.dtype == torch.float64 for x in self._tensors.values())
        return torch.float64 if wide else torch.float32

    @property
    def roles(self) -> Roles:
        """The roles of the architecture."""
        return self.adapter.roles

    def length(self, role: str) -> int:
        """The number of entries of a role whose length the config gives."""
        return self.sizes[role] or 0

    def layers(self, stack: str) -> range:
        """The numbers of a stack's layers."""
        return range(self.length(stack))

    @property
    def all_layers(self) -> list[tuple[str, int]]:
        """All layers of all stacks."""
        return [(stack, layer) for stack in self.roles.depths for layer in self.layers(stack)]

    def stacks_of(self, role: str) -> list[str]:
        """The stacks whose layers have tensors with an axis of `role`."""
        layers = ((stack, [(stack, layer) for layer in self.layers(stack)]) for stack in self.roles.depths)
        return [stack for stack, places in layers if any(self.has_role(role, at) for at in places)]

    def has_role(self, role: str, at: At) -> bool:
        """Whether a tensor of this layer has an axis of `role`."""
        return any(True for _ in self.tensors_with(role, at))

    def is_shared(self, role: str) -> bool:
        """Whether all layers read one table with an axis of `role`: its units have one order for the whole network."""
        if self.roles.kind(role) != "unit" or self.roles.is_network_wide(role):
            return False
        tables = [place for _, place in self.tensors_with(role) if not place.rule.maps and len(place.rule.axes) > 1]
        return any(place.layer is None or not self._is_everywhere(place) for place in tables)

    def without_a_norm(self, stack: str) -> list[int]:
        """Layers that lack a norm which others of their stack have: they read a stream that is normalised already."""
        norms = [f"{norm.name}.weight" for norm in self.adapter.norms if f"{{{stack}}}" in norm.name]
        having = [{layer for layer in self.layers(stack) if self.find(name, layer)} for name in norms]
        return [layer for layer in self.layers(stack) if any(layers and layer not in layers for layers in having)]

    def _is_everywhere(self, place: Place) -> bool:
        """Whether every layer has a tensor of this name."""
        return all(self.find(place.template, layer) for layer in self.layers(place.rule.depth))

    def find(self, template: str, layer: int | None = None) -> str | None:
        """The name of the tensor with this template and layer; None if the checkpoint has none."""
        return self._names.get((template, layer))

    def numel(self, name: str) -> int:
        """The number of entries of a tensor, without computing it."""
        return self._tensors[name].numel()

    def tensors_with(self, role: str, at: At = None) -> Iterator[tuple[str, Place]]:
        """Tensors with an axis of `role`; with a layer given, only that layer's."""
        for name, place in self._of_layer.get(at, ()):
            if role in place.rule.roles:
                yield name, place

    def read_axis(self, name: str) -> int:
        """The axis along which a matrix reads the residual stream."""
        axes = self.places[name].rule.axes
        return next(i for i, axis in enumerate(axes) if any(f.reads and self.is_stream(f) for f in factors(axis)))

    def reads_stream(self, place: Place) -> bool:
        """Whether a tensor reads a residual stream."""
        return any(factor.reads and self.is_stream(factor) for factor in place.rule.factors)

    def is_stream(self, factor: Factor) -> bool:
        """Whether a factor is a residual stream."""
        return self.roles.kind(factor.role) == "stream"

    def along(self, name: str, role: str) -> Iterator[tuple[Factor, Tensor]]:
        """For every axis of `role` in a tensor: its factor, and the tensor as (role, everything else)."""
        for segment, dim, piece in self._segments(name):
            for offset, factor in enumerate(segment):
                if factor.role == role:
                    moved = piece.movedim(dim + offset, 0)
                    yield factor, moved.reshape(len(moved), -1)

    def units(self, name: str, role: str) -> Tensor:
        """A tensor as (all entries of the segment with `role`, everything else), in `dtype`.

        Heads and head_dim are one axis, heads first; of a fused q|k|v only the part with `role` is returned.
        """
        for _, rows in self._parts(name, role):
            return rows
        raise LookupError(f"{name} has no axis of {role}")

    def _parts(self, name: str, role: str) -> Iterator[tuple[tuple[Factor, ...], Tensor]]:
        """Every segment with `role` of a tensor: its factors, and (all entries of it, everything else) in `dtype`.

        The units of a bank of matrices stand one matrix after another.
        """
        bank = is_bank(self.places[name].rule, self.roles)
        for segment, dim, piece in self._segments(name):
            if role in [factor.role for factor in segment]:
                flat = piece.flatten(dim, dim + len(segment) - 1).movedim(dim, 0)
                if bank:  # (entries, matrices, everything else), as the bank is the first axis
                    flat = flat.transpose(0, 1).flatten(0, 1)
                yield segment, flat.reshape(len(flat), -1).to(self.dtype)

    def bank(self, name: str) -> int:
        """How many matrices a tensor holds; 1 for an ordinary one."""
        return self._tensors[name].shape[0] if is_bank(self.places[name].rule, self.roles) else 1

    def blocks(self, at: At) -> list[Block]:
        """The blocks of a layer that add onto the residual stream, in the order of the checkpoint.

        If several matrices write units of this role (in a decoder: values of its own tokens and of the
        encoder's), those belong to a block whose names share the longest beginning with its out matrix.
        """
        matrices = [(name, place) for name, place in self._of_layer.get(at, ()) if place.rule.maps]
        blocks = []
        for out, place in matrices:
            segment = _read_segment(place.rule)
            if not (place.rule.adds and segment):
                continue
            stream = next(self.roles.leader(f.role) for f in place.rule.factors if not f.reads and self.is_stream(f))
            writers = [name for name, other in matrices if _writes(other.rule, segment[-1].role)]
            longest = max((_shared_path(out, name) for name in writers), default=0)
            own_writers = tuple(name for name in writers if _shared_path(out, name) == longest)
            blocks.append(Block(out, stream, segment, own_writers))
        return blocks

    def out_matrix(self, block: Block) -> tuple[Tensor, Tensor]:
        """The matrix of a block that adds onto the stream, as (stream, units), and its bias."""
        weight = self.units(block.out, block.segment[-1].role).T
        place = self.places[block.out]
        bias = self.find(f"{place.stem}.bias", place.layer)
        return weight, self[bias].to(self.dtype) if bias else weight.new_zeros(len(weight))

    def writer_parts(self, name: str, units: tuple[Factor, ...]) -> Iterator[tuple[Factor, Tensor, Tensor]]:
        """Every part of a matrix that writes `units`: its last factor, (units, what it reads), and its bias.

        What a group shares, such as the values of several queries, is written once and stands here once a member.
        """
        place, role = self.places[name], units[-1].role
        bias = self.find(f"{place.stem}.bias", place.layer)
        shifts = self._parts(bias, role) if bias else None
        for segment, rows in self._parts(name, role):
            weight = self._for_all(segment, rows, units)
            shift = self._for_all(*next(shifts), units)[:, 0] if shifts else weight.new_zeros(len(weight))
            yield segment[-1], weight, shift

    def _for_all(self, own: tuple[Factor, ...], rows: Tensor, units: tuple[Factor, ...]) -> Tensor:
        """Rows of a segment as rows of `units`, the same for units that the segment does not tell apart."""
        roles, lengths = [f.role for f in own], [self.length_of(f, 1) for f in units]
        if roles == [f.role for f in units]:
            return rows
        rows = rows.view(*(n if f.role in roles else 1 for f, n in zip(units, lengths, strict=True)), rows.shape[1])
        return rows.expand(*lengths, -1).reshape(math.prod(lengths), -1)

    def _segments(self, name: str) -> Iterator[tuple[tuple[Factor, ...], int, Tensor]]:
        """Every segment of every axis: its factors, the axis of the first factor, and the tensor cut to the segment."""
        x, place = self[name], self.places[name]
        for dim, axis in enumerate(place.rule.axes):
            start = 0
            for segment in axis.segments:
                lengths = [self.length_of(f, x.shape[dim]) for f in segment]
                piece = x.narrow(dim, start, math.prod(lengths))
                start += math.prod(lengths)
                yield segment, dim, piece.reshape(*x.shape[:dim], *lengths, *x.shape[dim + 1 :])

    def mapped(self, name: str, reads: Mapping[str, AxisMap], writes: Mapping[str, AxisMap]) -> Tensor:
        """A tensor with maps along the roles that it reads and along those that it writes."""
        return apply(self[name], self._maps(self.places[name].rule, reads, writes))

    def _maps(self, rule: Rule, reads: Mapping[str, AxisMap], writes: Mapping[str, AxisMap]) -> TensorMap:
        def map_of(factor: Factor) -> AxisMap:
            return (reads if factor.reads else writes).get(factor.role) or identity(self.length_of(factor, -1))

        return tuple(tuple(tuple(map_of(f) for f in segment) for segment in axis.segments) for axis in rule.axes)

    def length_of(self, factor: Factor, actual: int) -> int:
        """A factor's length; `actual` for a role whose length no config gives, which is an axis by itself."""
        known = factor.size if not factor.role else self.sizes[factor.role]
        return actual if known is None else known


class _Matrices(Mapping[str, Tensor]):
    """The tensors of a network with one matrix of every bank, which is cut out before it is edited where it can be."""

    def __init__(self, network: Network, number: int) -> None:
        self.network, self.number = network, number

    def __getitem__(self, name: str) -> Tensor:
        if not is_bank(self.network.places[name].rule, self.network.roles):
            return self.network[name]
        unedited = not self.network.is_edited(name)
        return (self.network.stored if unedited else self.network)[name][self.number]

    def __iter__(self) -> Iterator[str]:
        return iter(self.network.places)

    def __len__(self) -> int:
        return len(self.network.places)


def _without_bank(place: Place, roles: Roles) -> Place:
    return replace(place, rule=replace(place.rule, axes=place.rule.axes[1:])) if is_bank(place.rule, roles) else place


def _of_each(x: Tensor, maps: Sequence[TensorMap]) -> Tensor:
    return torch.cat([apply(x[i : i + 1], own) for i, own in enumerate(maps)])


def is_kept(at: At, kept: KeptLayers | None) -> bool:
    """Whether what belongs to this layer is read; also if it belongs to none."""
    return kept is None or at is None or at[0] not in kept or at[1] in kept[at[0]]


def factors(axis: Axis) -> list[Factor]:
    return [factor for segment in axis.segments for factor in segment]


def alternations(rule: Rule, sizes: Mapping[str, int | None]) -> tuple[Alternation, ...]:
    """The stored order of a tensor's axes, of those whose segments alternate."""
    layouts = ((dim, axis.layout(sizes)) for dim, axis in enumerate(rule.axes))
    return tuple(Alternation(dim, *layout) for dim, layout in layouts if layout)


def is_bank(rule: Rule, roles: Roles) -> bool:
    """Whether a tensor is a bank of matrices: its first axis is an identity, written beside units or the stream."""
    if not rule.maps or len(rule.axes) < 3:
        return False
    first = factors(rule.axes[0])
    counts = len(first) == 1 and not first[0].reads and roles.kind(first[0].role) == "identity"
    return counts and bool(first[0].role)


def _read_segment(rule: Rule) -> tuple[Factor, ...]:
    """The factors of the axis that a matrix reads as a whole; empty if there is none."""
    for axis in rule.axes:
        if len(axis.segments) == 1 and all(factor.reads for factor in axis.segments[0]):
            return axis.segments[0]
    return ()


def _writes(rule: Rule, role: str) -> bool:
    """Whether a matrix writes a segment whose last factor is `role`."""
    segments = (segment for axis in rule.axes for segment in axis.segments)
    return any(segment[-1].role == role and not segment[-1].reads for segment in segments)


def _shared_path(name: str, other: str) -> int:
    """How many parts of two tensors' names are equal from the start."""
    pairs = zip(name.split("."), other.split("."), strict=False)
    return next((count for count, (left, right) in enumerate(pairs) if left != right), 0)
