"""Checks that rules read and write where the model does: with all units doubled, its outputs must stay the same.

Copies of all units leave the statistics of every norm as they are, and their readers share the weight between the
copies. A wrong arrow, a missing `~` or a norm without its readers breaks this.
"""

import copy
from collections.abc import Collection

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ... import methods
from ...architectures.adapter import Adapter, Roles, Sizes
from ...architectures.inventory import inventory_of, predict
from ...architectures.sizes import fields_for, has_field, rebuild, role_sizes
from ...architectures.tiny import change, inputs, outputs
from ...compat import building, drawn_from, use_eager_attention
from ...options import BoTConfig, Wavelets
from ...planning.planner import Side, make_plan
from ...rewrite.folding import fold_norms
from ...run.execute import run_plan
from ...run.opening import network_of

TOLERANCE = 1e-5  # relative to the largest output, see `permuted`


def doublings(roles: Roles) -> dict[str, tuple[str, ...]]:
    """Label -> the roles that are doubled. Each is doubled alone: with all doubled, an arrow in the wrong direction
    would not show. If the config has a field for the entries of heads, heads and their members are doubled alone, too.
    """
    streams, heads = roles.streams, tuple(unit for unit in roles.units if _is_group(roles, unit))
    entries = roles.leading("entry")
    derived = [entry for entry in entries if not isinstance(roles[entry].size, str)]
    doublings = {" and ".join((*streams, *heads)): (*streams, *heads), " and ".join((*streams, *derived)): streams}
    single = [unit for unit in roles.units if not roles.is_whole(unit)]
    single += [entry for entry in entries if entry not in derived]
    single += [unit for unit in roles.units if roles.is_whole(unit) and entries and not derived]
    return {**doublings, **{role: (role,) for role in single}}


def _is_group(roles: Roles, unit: str) -> bool:
    """Whether a unit holds entries, and is no member of a larger one."""
    return roles.is_whole(unit) and not roles[unit].within


def options(roles: Roles) -> BoTConfig:
    """Options that copy units, except within heads: there the network is linear, and only a filter that differs from
    its dual distinguishes queries from keys, which read what queries write.
    """
    wavelets = {"default": "haar", **dict.fromkeys(roles.leading("entry"), "bior2.2")}
    return BoTConfig(detail="zero", wavelet=Wavelets(wavelets))  # of roles that only this adapter may have


def changes_by_doubling(
    adapter: Adapter, model: PreTrainedModel, labels: Collection[str] | None = None
) -> dict[str, float]:
    """Label -> relative change of the outputs, for the doublings that change them; empty if the rules are right.

    Args:
        labels: of the doublings that are tried; all by default.

    Raises:
        ValueError: as for `wrong_roles`; whatever the model raises.
    """
    batch = inputs(model)
    expected = outputs(model, batch)
    changes = {}
    lengths = role_sizes(adapter, model.config, "source")
    for label, roles in doublings(adapter.roles).items():
        if (labels is None or label in labels) and all(has_field(model.config, adapter.roles[r].field) for r in roles):
            config = larger(adapter, model.config, lengths, roles)
            if not _must_stay(adapter, model.config, lengths, role_sizes(adapter, config, "target")):
                changes[label] = change(outputs(_grown(adapter, model, config), batch), expected)
    return {label: size for label, size in changes.items() if not size < TOLERANCE}


def change_by_folding(adapter: Adapter, model: PreTrainedModel) -> float:
    """The relative change of the outputs if norms are folded into the matrices that read them by the rules."""
    if adapter.norm != "pre":
        return 0.0
    batch = inputs(model)
    inventory = inventory_of(model)
    side = Side(model.config, role_sizes(adapter, model.config, "source"), inventory, torch.float64)
    network = network_of(adapter, side, model.state_dict(), side)
    fold_norms(network)
    folded = copy.deepcopy(model)
    state = folded.state_dict()
    with torch.no_grad():
        for name in [name for name in network if name not in inventory.ties]:
            folded_tensor = network[name]
            for alternation in network.alternations(name):
                folded_tensor = alternation.stored(folded_tensor)
            state[name].copy_(folded_tensor)
    relative = change(outputs(folded, batch), outputs(model, batch))
    return 0.0 if relative < TOLERANCE else relative


def larger(adapter: Adapter, config: PreTrainedConfig, lengths: Sizes, doubled: Collection[str]) -> PreTrainedConfig:
    """The config with twice the lengths of these roles; other units, and entries with a field, keep theirs."""
    roles = adapter.roles
    plain = [unit for unit in roles.units if not roles.is_whole(unit)]
    members = [unit for unit in roles.units if roles[unit].within]
    entries = [entry for entry in roles.leading("entry") if isinstance(roles[entry].size, str)]
    kept = [*plain, *members, *(roles[member].within for member in members), *entries]
    wanted = {role: lengths[role] for role in kept} | {role: 2 * (lengths[role] or 1) for role in doubled}
    fields = {
        roles[unit].field: length for unit in plain if (length := wanted[unit]) and has_field(config, roles[unit].field)
    }
    config = rebuild(adapter, config, {**fields, **fields_for(roles, wanted)})
    use_eager_attention(config)
    return config


def _must_stay(adapter: Adapter, config: PreTrainedConfig, before: Sizes, after: Sizes) -> bool:
    """Whether a role would get more entries although their number must stay."""
    changed = [role for role in adapter.roles.resized if before[role] != after[role]]
    return any(stays(config) for role in changed if (stays := adapter.roles[role].stays))


def _grown(adapter: Adapter, model: PreTrainedModel, target_config: PreTrainedConfig) -> PreTrainedModel:
    """The model at the sizes of a config, resized with `gain="consistent"` and without noise."""
    config = model.config
    source = Side(config, role_sizes(adapter, config, "source"), inventory_of(model), torch.float64)
    target = Side(
        target_config, role_sizes(adapter, target_config, "target"), predict(type(model), target_config), torch.float64
    )
    plan = make_plan(adapter, source, target, methods.get("bot", options(adapter.roles)))
    with building(), drawn_from(0):  # the caller's generators stay as they are
        grown = type(model)(copy.deepcopy(target_config)).to(torch.float64).eval()
    state = grown.state_dict()
    with torch.no_grad():
        network = network_of(adapter, source, model.state_dict(), None)
        for name, tensor in run_plan(plan, network, torch.float64):
            state[name].copy_(tensor)
    return grown
