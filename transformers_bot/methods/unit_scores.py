"""Importance scores of every unit, head and layer of a source: from its activations, or from its weights alone.

Both give the same table, (role, layer) -> scores. Only the order within one tensor of scores has a meaning:

    hidden, pooler    (unit,), layer None: one score for the whole network
    ffn, heads        (unit,) of a layer
    head_dim, score   (head, entry) of a layer: entries of values; of queries and keys. Where queries are grouped,
                      (entry,): a group's queries share values, and all groups keep the same entries
    layer             (layer,), layer None

Source: Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (arXiv
2407.14679), section 2, for activations. The formulas for weights are this package's own.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..architectures.adapter import At, Factor, Rule
from ..ops.recipe import Alternation
from ..rewrite.calibration import Hook, watch
from ..rewrite.folding import fold_norms, norms, stream_of
from ..rewrite.network import Network, OutOfRange, is_bank
from ..rewrite.principal import Opened

Key = tuple[str, At]  # a role and a layer, or a stack of layers and None
Scores = dict[Key, Tensor]
Sides = dict[str, dict[Key, Tensor]]  # "writers", "norms", "readers" -> tensor -> energy of a stream's units
Segment = tuple[Factor, ...]
Measure = Callable[[Tensor, Tensor], Tensor]  # a module's input and output -> (sequence, token, unit)

# -- from weights -------------------------------------------------------------------------------------


def from_weights(network: Network) -> Scores:
    """Scores of the paths through every unit, from norms of rows and columns; no data.

    A unit that is written with weights (and bias) w and read with weights r can pass on |w| |r|, which is
    0 if either side is 0. The score of a head is the root of the sum of squares over the entries of its
    values, that of a layer over its heads, MLP units and output biases. A pre-norm stream grows with
    depth, so the size u of a layer's update is divided by the size s of what was written before it; half
    the square of u / s is about 1 - cos. Hidden units have many writers, norms and readers: for each of
    them the unit's share of the squared norm is taken, and the sums of the three kinds are multiplied.
    Norms are folded into their readers where possible.
    """
    roles = network.roles
    folded = Network(network.adapter, network.sizes, network, network.places, network.tied, network.wide)
    fold_norms(folded)
    paths: dict[Key, dict[bool, Tensor]] = defaultdict(dict)  # squared norms of a unit's writers and readers
    streams: dict[str, Sides] = {name: {"writers": {}, "norms": {}, "readers": {}} for name in roles.streams}
    # depth -> squared size of every layer's update
    added = {depth: torch.zeros(len(network.layers(depth)), dtype=torch.float64) for depth in roles.depths}
    embedded = torch.zeros((), dtype=torch.float64)
    for name, place in folded.places.items():
        for part, energy in _energies(folded, name):
            unit = part[-1]
            kind = roles.kind(unit.role)
            if kind == "entry":
                _add(paths[unit.role, place.at], unit.reads, _by_holder(network, part, energy))
            elif kind == "unit" and not roles.is_whole(unit.role):
                _add(paths[unit.role, place.at], unit.reads, energy)
            elif kind == "stream":
                is_norm = place.stem in network.adapter.norm_names
                energy = energy.reshape(-1, network.length(unit.role)).sum(0)  # of several tokens side by side
                side = "norms" if is_norm else "readers" if unit.reads else "writers"
                _add(streams[roles.leader(unit.role)][side], (place.stem, place.at), energy)
                if place.rule.adds and not place.rule.maps and place.at is not None:
                    added[place.at[0]][place.at[1]] += energy.sum()
                elif side == "writers" and place.layer is None:  # a table adds one of its rows to a token
                    rows = 1 if place.rule.maps else folded[name].numel() / len(energy)
                    embedded += energy.sum() / rows
    scores = {
        key: math.prod(sides.values(), start=torch.ones((), dtype=torch.float32)).sqrt() for key, sides in paths.items()
    }
    scores |= {(name, None): _stream_strength(sides) for name, sides in streams.items() if any(sides.values())}
    _add_heads_and_layers(scores, network, added, embedded)
    _settle(scores, network)
    if not all(bool(score.isfinite().all()) for score in scores.values()):
        raise OutOfRange("the importance of units by their weights")
    return scores


def _add_heads_and_layers(scores: Scores, network: Network, added: dict[str, Tensor], embedded: Tensor) -> None:
    """Add the scores of units that hold entries, and of layers.

    Args:
        added: depth -> (layer,) energy of the output biases of every layer; the scores of its units are added to it.
        embedded: energy of the stream in front of the first layer.
    """
    roles = network.roles
    for role, at in list(scores):
        if at is None or roles.leader(role) != role:
            continue
        added[at[0]][at[1]] += scores[role, at].square().sum()
        if roles.kind(role) == "entry":
            scores |= _by_unit(network, role, at, scores[role, at])
    for depth, update in added.items():
        if network.adapter.norm == "pre":
            update = update / (embedded + update.cumsum(0) - update).clamp_min(1e-300)
        scores[depth, None] = update.sqrt()


def holders(network: Network, role: str) -> tuple[str, ...]:
    """The units that hold entries of `role`, outermost first: groups, then the members that share their entries."""
    roles = network.roles
    unit = roles[role].within
    return (unit, *(other.name for other in roles.values() if other.kind == "unit" and other.within == unit))


def _by_holder(network: Network, part: Segment, values: Tensor) -> Tensor:
    """Values of a product's entries as (holder, ..., entry), of length 1 along holders that are no factor of it."""
    own, role = {factor.role: factor.length(network.sizes) or 1 for factor in part}, part[-1].role
    return values.reshape(*(own.get(unit, 1) for unit in holders(network, role)), -1)


def _by_unit(network: Network, role: str, at: At, score: Tensor) -> Scores:
    """The scores of entries and of every unit that holds them, from those of (holder, ..., entry)."""
    units = holders(network, role)
    if len(units) == 1:
        return {(role, at): score, (units[0], at): score.norm(dim=1)}
    axes = range(len(units))
    scores = {(unit, at): score.norm(dim=[*(a for a in axes if a != axis), -1]) for axis, unit in enumerate(units)}
    return {(role, at): score.norm(dim=[*axes]), **scores}


def _energies(network: Network, name: str) -> Iterator[tuple[Segment, Tensor]]:
    """For every segment of every axis: its factors, and its entries' sums of squares over all other axes."""
    x = network[name].double().square()
    for dim in range(x.dim()):
        energies = x.sum([other for other in range(x.dim()) if other != dim]) if x.dim() > 1 else x
        for part, start, length in segments(network.places[name].rule, dim, network, len(energies)):
            yield part, energies.narrow(0, start, length)


def segments(rule: Rule, dim: int, network: Network, actual: int) -> Iterator[tuple[Segment, int, int]]:
    """For every segment of one axis of length `actual`: its factors, its start and its length."""
    start = 0
    parts = rule.axes[dim].segments
    for part in parts:
        length = actual if len(parts) == 1 else math.prod(f.length(network.sizes) or 1 for f in part)
        yield part, start, length
        start += length


def _stream_strength(stream: Sides) -> Tensor:
    """Of every hidden unit, the root of the product over writers, norms and readers of its summed shares."""
    shares = [
        sum(
            (energy / energy.sum().clamp_min(1e-300) for energy in energies.values()),
            start=torch.zeros((), dtype=torch.float32),
        )
        for energies in stream.values()
        if energies
    ]
    return math.prod(shares, start=torch.ones((), dtype=torch.float32)).sqrt()


def _add(sums: dict, key: object, energy: Tensor) -> None:  # type: ignore[type-arg]  # keys of any kind
    sums[key] = sums[key] + energy if key in sums else energy


# -- from activations ---------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Sums over sequences of a statistic's mean over the tokens of a sequence."""

    first: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32))
    second: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32))
    sequences: int = 0

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        """Add x (sequence, token, unit); tokens outside `mask` (sequence, token) do not count."""
        if mask is None:
            means = x.mean(1)
        else:
            weight = mask / mask.sum(1, keepdim=True).clamp_min(1)
            means = torch.einsum("stu,st->su", x, weight.to(x.dtype))
        self.first, self.second = self.first + means.sum(0).cpu(), self.second + means.square().sum(0).cpu()
        self.sequences += len(x)

    @property
    def size(self) -> Tensor:
        """L2 norm over sequences of the means over tokens."""
        return self.second.sqrt()

    @property
    def mean(self) -> Tensor:
        return self.first / self.sequences


Tallies = defaultdict[tuple[str, At, str], _Tally]  # (role, layer, part)


def from_activations(opened: Opened) -> Scores:
    """Scores from what the source computes on `opened.calibration`.

    A statistic is averaged over the tokens of a sequence that its attention_mask does not mask. Its score
    is the L2 norm of these means over sequences. The statistic of an MLP unit is its magnitude after the
    activation, of a head the norm of its output, of an entry of values its magnitude; of an entry of
    queries and keys the product of both magnitudes; of a hidden unit its magnitude behind every norm,
    summed over norms. The score of a layer is the mean of 1 - cos(its input, its output).

    Raises:
        BadOption: no batch, batches that the model does not run on, or masks of another shape than
            its tokens.
    """
    tallies, watched = watching(opened.network)
    watch(opened.model, watched, () if opened.calibration is None else opened.calibration)
    return from_tallies(tallies, opened.network)


def watching(network: Network) -> tuple[Tallies, list[tuple[str, Hook]]]:
    """Empty tallies, and the hooks that fill them while the source runs, as (module's name, hook)."""
    tallies = Tallies(_Tally)

    def hook(key: tuple[str, At, str], measure: Measure) -> Hook:
        def see(inputs: Tensor, outputs: Tensor, counted: Tensor | None) -> None:
            x = measure(inputs.double(), outputs.double())
            tallies[key].add(x[:, None] if x.dim() == 2 else x, counted)  # 2: one vector per sequence

        return see

    return tallies, [(module, hook(key, measure)) for module, key, measure in _watched(network)]


def _watched(network: Network) -> Iterator[tuple[str, tuple[str, At, str], Measure]]:
    """The modules to watch: their name, the statistic's role, layer and part, and its measure."""
    for place in norms(network):
        weight = str(place.part(network, "weight"))
        name = weight.removesuffix(".weight")
        yield name, (stream_of(network, weight), None, name), lambda _, y: y.abs()
    layers: dict[tuple[str, int], str] = {}
    for name, tensor in network.places.items():
        if tensor.at is not None:
            layers[tensor.at] = name.removesuffix(tensor.template.partition(f"{{{tensor.at[0]}}}")[2])
        if tensor.rule.maps and name.endswith(".weight"):
            yield from _watched_units(network, name)
    for at, layer in layers.items():
        yield layer, (at[0], at, ""), lambda x, y: 1 - torch.cosine_similarity(x, y, dim=-1)[..., None]


def unwatched(network: Network) -> set[str]:
    """The units of banks of matrices, which are computed inside of one module: no hook sees them."""
    banks = [place.rule for place in network.places.values() if is_bank(place.rule, network.roles)]
    return {role for rule in banks for role in rule.roles if network.roles.kind(role) == "unit"}


def _watched_units(network: Network, name: str) -> Iterator[tuple[str, tuple[str, At, str], Measure]]:
    place, module, roles = network.places[name], name.removesuffix(".weight"), network.roles
    for dim, length in enumerate(network[name].shape):
        for part, start, count in segments(place.rule, dim, network, length):
            unit = part[-1]
            kind = roles.kind(unit.role)
            plain = kind == "unit" and not roles.is_whole(unit.role)
            if kind == "frequency":
                continue  # they stay or go by what they are
            if unit.role in network.adapter.scored:
                side = "keys" if unit.reads else "queries"
                yield module, (unit.role, place.at, side), _part(start, count, network.alternations(name))
            elif plain and roles.is_network_wide(unit.role) and not _is_read(network, unit.role):
                yield _activated(network, module), (unit.role, None, ""), lambda _, y: y.abs()
            elif unit.reads and plain and _is_convolution(place.rule):  # of (sequence, unit, place)
                yield module, (unit.role, place.at, ""), lambda x, _: x.abs().transpose(1, -1)
            elif unit.reads and (plain or kind == "entry"):
                yield module, (unit.role, place.at, ""), lambda x, _: x.abs()
            if unit.reads and kind == "entry" and unit.role not in network.adapter.scored:
                lengths = [factor.length(network.sizes) or 1 for factor in part]
                for axis, held in enumerate(part[:-1]):
                    yield module, (held.role, place.at, ""), _norms_along(lengths, axis)


def _activated(network: Network, module: str) -> str:
    """The module with the activation of a matrix that nothing reads: its parent, if that has no other tensors."""
    parent = module.rpartition(".")[0]
    is_alone = all(name.startswith(f"{module}.") for name in network.places if name.startswith(f"{parent}."))
    return parent if parent and is_alone else module


def _is_convolution(rule: Rule) -> bool:
    """Whether a matrix also has an axis of places, which no role names."""
    return not any(factor.role for segment in rule.axes[-1].segments for factor in segment)


def _is_read(network: Network, role: str) -> bool:
    """Whether a matrix reads units of `role`, so that they are seen in what it reads."""
    return any(f.reads and f.role == role for place in network.places.values() for f in place.rule.factors)


def _norms_along(lengths: Sequence[int], axis: int) -> Measure:
    """Of what a module reads, a product of these lengths, the norm of every entry of one of its axes."""

    def measure(x: Tensor, _: Tensor) -> Tensor:
        split = x.reshape(*x.shape[:-1], *lengths)
        others = [other - len(lengths) for other in range(len(lengths)) if other != axis]
        return split.square().sum(others).sqrt()

    return measure


def _entries(network: Network, role: str, size: Tensor) -> Tensor:
    """Sizes of all entries as (head, entry), or (entry,) where queries are grouped."""
    lengths = [network.length(unit) for unit in holders(network, role)]
    if len(lengths) == 1:
        return size.reshape(lengths[0], -1)
    return size.reshape(-1, network.length(role)).square().sum(0).sqrt()


def _part(start: int, count: int, orders: tuple[Alternation, ...]) -> Measure:
    """The magnitudes of a part of a module's outputs, whose segments may alternate."""

    def measure(_: Tensor, y: Tensor) -> Tensor:
        for order in orders:
            y = replace(order, dim=y.dim() - 1).sorted(y)
        return y.narrow(-1, start, count).abs()

    return measure


def from_tallies(tallies: Tallies, network: Network) -> Scores:
    """The scores of filled tallies."""
    scores: Scores = {}
    unseen = unwatched(network)
    if unseen:  # experts, whose units are inside of one module
        scores = {(role, at): score for (role, at), score in from_weights(network).items() if role in unseen}
    for (role, at, _), tally in tallies.items():
        if network.roles.kind(role) == "stream":
            _add(scores, (role, None), tally.size)
        elif role in network.adapter.scored:
            scores[role, at] = scores.get((role, at), torch.ones((), dtype=torch.float32)) * tally.size
        elif network.roles.kind(role) != "depth":
            scores[role, at] = tally.size
    for role, at in list(scores):
        if network.roles.kind(role) == "entry":
            scores[role, at] = _entries(network, role, scores[role, at])
    for depth in network.roles.depths:
        means = [tallies[depth, (depth, layer), ""].mean for layer in network.layers(depth)]
        scores[depth, None] = torch.cat(means)
    _settle(scores, network)
    return scores


def _settle(scores: Scores, network: Network) -> None:
    """Give units that all layers share one score, and layers that no other can stand for more than all others."""
    for role in network.roles.units:
        if network.is_shared(role):
            own = {
                at: score / score.norm().clamp_min(1e-300) for (scored, at), score in scores.items() if scored == role
            }
            total = sum((score.square() for score in own.values()), torch.zeros((), dtype=torch.float32)).sqrt()
            scores |= {(role, at): total for at in own}
            scores[role, None] = total
    for depth in network.roles.depths:
        if special := network.without_a_norm(depth):
            scores[depth, None] = scores[depth, None].clone()
            scores[depth, None][special] = 2 * scores[depth, None].abs().max() + 1
