"""A source's tensors with the meaning of their axes, to be rewritten as a whole before a resize."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..architectures import Adapter
from ..architectures.axes import Axis, Factor, Rule
from ..compat import Releasing
from ..ops.axis_map import AxisMap, identity
from ..ops.blocks import at_least_float32
from ..ops.recipe import TensorMap, apply

STREAM = ("hidden", "readout")  # the residual stream, before and after the norm of a tied output embedding


class OutOfRange(ArithmeticError):
    """What is computed from finite weights is not finite, or vanishes, in the dtype it is computed in."""


Edit = Callable[[Tensor], Tensor]
LOOKED = 256 << 20  # bytes of tensors that are looked at before freed memory is given back


@dataclass(frozen=True)
class Place:
    """What a tensor is: its rule, its layer, and its name with {layer} left open, without a prefix."""

    rule: Rule
    layer: int | None
    template: str

    @property
    def stem(self) -> str:
        return self.template.rpartition(".")[0]

    @property
    def reads_stream(self) -> bool:
        return any(f.reads and f.role in STREAM for axis in self.rule.axes for f in factors(axis))


class Network(Mapping[str, Tensor]):
    """The tensors of one checkpoint under edits that are noted at once and computed when one is read.

    So a rewritten source takes no more memory than the one tensor that is looked at. Edited tensors
    come in float32 or better, the others as they are stored.

    Example:
        `network.map_role("ffn", swap, layer=0)` swaps the MLP units of layer 0 in every tensor that
        writes or reads them; the network computes what it did before.

    Args:
        adapter: the architecture.
        sizes: role -> length.
        tensors: name -> tensor; a tied tensor stands under all of its names.
        places: name -> what it is.
        tied: names of tensors that the target keeps equal to another one.
        wide: all come in float64, for weights whose products are beyond float32.
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
        self._moves: list[tuple[str, int | None, AxisMap]] = []
        self._inherited = 0
        self._releasing = Releasing(LOOKED)
        self._names = {(place.template, place.layer): name for name, place in places.items()}
        self._of_layer: dict[int | None, list[tuple[str, Place]]] = {None: list(places.items())}
        for name, place in places.items():
            if place.layer is not None:
                self._of_layer.setdefault(place.layer, []).append((name, place))

    def __getitem__(self, name: str) -> Tensor:
        x = self._tensors[name]
        self._releasing.made(x.nbytes)
        edits = self._edits.get(name, ())
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
        """The edits noted so far over the same tensors in another place, where they are then computed."""
        other = copy.copy(self)
        other._tensors, other._edits, other._moves = tensors, dict(self._edits), list(self._moves)
        other._inherited = len(self._moves)
        return other

    # -- edits ----------------------------------------------------------------------------------

    def edit(self, name: str, change: Edit) -> None:
        """Note one more change of a tensor, on top of those it has."""
        self._edits[name] = (*self._edits.get(name, ()), change)

    def names_of(self, name: str) -> list[str]:
        """All names under which the checkpoint holds this very tensor: a bias may stand in two modules."""
        here = self._tensors[name].data_ptr()
        return [other for other in self.places if self._tensors[other].data_ptr() == here]

    def map_role(self, role: str, axis_map: AxisMap, layer: int | None = None) -> None:
        """Apply one map along every axis of `role`, written or read, in all layers or one.

        A permutation or rotation on both sides leaves the function as it is.
        """
        self._moves.append((role, layer, axis_map))
        for name, place in self.having(role, layer):
            maps = self._maps(place.rule, {role: axis_map}, {role: axis_map})
            self.edit(name, lambda x, maps=maps: apply(x, maps))  # type: ignore[misc]

    def follow(self, other: "Network") -> None:
        """Note what `map_role` has done to another one since it was made by `over`, on top of one's own edits."""
        for role, layer, axis_map in other._moves[other._inherited :]:
            self.map_role(role, axis_map, layer)

    def moved(self, role: str, layer: int | None) -> AxisMap:
        """What `map_role` has made of an axis so far: from the stored order or basis to the present one."""
        whole = identity(self.sizes[role] or 0)
        for one, at, axis_map in self._moves:
            if one == role and at in (None, layer):
                whole = whole.then(axis_map)
        return whole

    # -- looking --------------------------------------------------------------------------------

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of what is computed from tensors: float32, or float64 where one is."""
        wide = self.wide or any(x.dtype == torch.float64 for x in self._tensors.values())
        return torch.float64 if wide else torch.float32

    @property
    def hidden(self) -> int:
        return self.sizes["hidden"] or 0

    @property
    def layers(self) -> range:
        return range(self.sizes["layer"] or 0)

    def find(self, template: str, layer: int | None = None) -> str | None:
        """The tensor of that name, None if the checkpoint has none."""
        return self._names.get((template, layer))

    def numel(self, name: str) -> int:
        """How many entries a tensor has, without computing it."""
        return self._tensors[name].numel()

    def having(self, role: str, layer: int | None = None) -> Iterator[tuple[str, Place]]:
        """Tensors with an axis of `role`; with a layer given, only that layer's."""
        for name, place in self._of_layer.get(layer, ()):
            if role in place.rule.roles:
                yield name, place

    def read_axis(self, name: str) -> int:
        """The axis along which a matrix reads the residual stream."""
        axes = self.places[name].rule.axes
        return next(i for i, axis in enumerate(axes) if any(f.reads and f.role in STREAM for f in factors(axis)))

    def along(self, name: str, role: str) -> Iterator[tuple[Factor, Tensor]]:
        """For every place of `role` in a tensor: its factor, and the tensor as (role, everything else)."""
        for segment, dim, piece in self._segments(name):
            for offset, factor in enumerate(segment):
                if factor.role == role:
                    moved = piece.movedim(dim + offset, 0)
                    yield factor, moved.reshape(len(moved), -1)

    def units(self, name: str, role: str) -> Tensor:
        """A tensor as (all entries of the segment with `role`, everything else), in `dtype`.

        Heads and head_dim stay one axis, heads first; of a fused q|k|v only the part with `role` comes.
        """
        for segment, dim, piece in self._segments(name):
            if role in [factor.role for factor in segment]:
                flat = piece.flatten(dim, dim + len(segment) - 1).movedim(dim, 0)
                return flat.reshape(len(flat), -1).to(self.dtype)
        raise LookupError(f"{name} has no axis of {role}")

    def writer(self, layer: int, role: str) -> tuple[Tensor, Tensor]:
        """The matrix that reads `role` and adds onto the stream, as (hidden, units), and its bias."""
        for name, place in self.having("hidden", layer):
            if place.rule.adds and place.rule.maps and role in place.rule.roles:
                weight = self.units(name, role).T
                bias = self.find(f"{place.stem}.bias", layer)
                return weight, self[bias].to(self.dtype) if bias else weight.new_zeros(len(weight))
        raise LookupError(f"layer {layer} adds nothing of {role} to the stream")

    def reader(self, layer: int, role: str) -> tuple[Tensor, Tensor]:
        """The matrix that reads the stream and writes `role`, as (units, hidden), and its bias."""
        for name, place in self.having("hidden", layer):
            if place.reads_stream and place.rule.maps and role in place.rule.roles:
                weight = self.units(name, role)
                bias = self.find(f"{place.stem}.bias", layer)
                return weight, self.units(bias, role)[:, 0] if bias else weight.new_zeros(len(weight))
        raise LookupError(f"layer {layer} has nothing that writes {role}")

    def _segments(self, name: str) -> Iterator[tuple[tuple[Factor, ...], int, Tensor]]:
        """Every segment of every axis: its factors, where the first one stands, the tensor cut to it."""
        x, place = self[name], self.places[name]
        for dim, axis in enumerate(place.rule.axes):
            start = 0
            for segment in axis.segments:
                lengths = [self._length(f, x.shape[dim]) for f in segment]
                piece = x.narrow(dim, start, math.prod(lengths))
                start += math.prod(lengths)
                yield segment, dim, piece.reshape(*x.shape[:dim], *lengths, *x.shape[dim + 1 :])

    def mapped(self, name: str, reads: Mapping[str, AxisMap], writes: Mapping[str, AxisMap]) -> Tensor:
        """A tensor with maps along the roles that it reads and along those that it writes."""
        return apply(self[name], self._maps(self.places[name].rule, reads, writes))

    def _maps(self, rule: Rule, reads: Mapping[str, AxisMap], writes: Mapping[str, AxisMap]) -> TensorMap:
        def one(factor: Factor) -> AxisMap:
            return (reads if factor.reads else writes).get(factor.role) or identity(self._length(factor, -1))

        return tuple(tuple(tuple(one(f) for f in segment) for segment in axis.segments) for axis in rule.axes)

    def _length(self, factor: Factor, actual: int) -> int:
        """A factor's length; where only the tensor knows it, the axis is that factor alone."""
        known = factor.size if not factor.role else self.sizes[factor.role]
        return actual if known is None else known


def factors(axis: Axis) -> list[Factor]:
    return [factor for segment in axis.segments for factor in segment]
