"""Checks that rules name the right axes: with the units of a role permuted everywhere, outputs must stay the same."""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...architectures.adapter import Adapter, Axis, Roles, Rule, Sizes
from ...architectures.inventory import inventory_of, rules_of
from ...architectures.tiny import change, inputs, outputs
from ...ops.recipe import Alternation

TOLERANCE = 1e-5  # relative to the largest output; norms and rotary tables compute in float32 in a model of any dtype


def wrong_roles(adapter: Adapter, model: PreTrainedModel, sizes: Sizes) -> dict[str, float]:
    """Role -> relative change of the outputs, for the roles whose permutation changes them.

    Raises:
        ValueError: the class has no inputs that are known here, or its only output is the stream itself.
        Any error of the model's own.
    """
    batch = inputs(model)
    rules = rules_of(adapter, inventory_of(model), sizes)
    expected = outputs(model, batch)
    roles = adapter.roles
    moved = {role: _permuted(model, rules, roles.moved_with(role), sizes) for role in movable(roles)}
    changes = {role: change(outputs(model, batch), expected) for role, model in moved.items()}
    return {role: size for role, size in changes.items() if not size < TOLERANCE}


def movable(roles: Roles) -> list[str]:
    """The roles whose entries may be renumbered; a stream in groups keeps its order."""
    streams = [stream for stream in roles.streams if not roles[stream].grouped]
    return [*streams, *roles.units, *roles.of("entry")]


def _permuted(
    model: PreTrainedModel, rules: dict[str, tuple[Rule, int | None]], roles: tuple[str, ...], sizes: Sizes
) -> PreTrainedModel:
    """A copy of the model with the entries of these roles permuted on every axis; tied tensors are permuted once."""
    permuted: Any = copy.deepcopy(model)
    state, ties = permuted.state_dict(), inventory_of(permuted).ties
    for name, (rule, _) in rules.items():
        for dim, axis in enumerate(rule.axes) if name not in ties else ():
            order = _order(axis, roles, sizes)
            if order is not None:
                state[name].copy_(state[name].index_select(dim, order))
    return permuted  # type: ignore[no-any-return]


def _order(axis: Axis, roles: tuple[str, ...], sizes: Sizes) -> Tensor | None:
    """The order of an axis' entries after a permutation of `roles`; None if the axis has none of them."""
    pieces, offset, touched = [], 0, False
    for segment in axis.segments:
        lengths = [factor.length(sizes) for factor in segment]
        known = [length for length in lengths if length is not None]
        if len(known) < len(lengths):
            return None
        piece = torch.arange(math.prod(known)).view(known) + offset
        for dim, factor in enumerate(segment):
            if factor.role in roles:
                # A cyclic shift by one moves every entry, for any length.
                piece, touched = piece.roll(1, dim), True
        offset += piece.numel()
        pieces.append(piece.flatten())
    order = torch.cat(pieces)
    if layout := axis.layout(sizes):
        alternation = Alternation(0, *layout)
        places = alternation.sorted(torch.arange(len(order)))  # of the entries whose segments stand one after another
        order = alternation.stored(places[order])
    return order if touched else None
