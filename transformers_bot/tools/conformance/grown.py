"""Checks that rules read and write where the model does: with all units doubled, its outputs must stay the same.

Copies of all units leave the statistics of every norm as they are, and their readers share the weight between the
copies. A wrong arrow, a missing `~` or a norm without its readers breaks this. Back at the old size, the model must be
as before.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ... import methods
from ...architectures.adapter import Adapter, Roles, Sizes
from ...architectures.inventory import inventory_of, predict, rules_of
from ...architectures.sizes import fields_for, get_field, has_field, rebuild, role_sizes, set_field
from ...architectures.tiny import change, inputs, outputs
from ...compat import building, drawn_from, use_eager_attention
from ...options import BoTConfig, Wavelets
from ...planning.planner import Side, make_plan, task_of
from ...run.execute import run_plan
from ...run.opening import network_of
from .blocks import NEAR, with_plain_norms

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
                grown = resized(adapter, model, config, options(adapter.roles))
                changes[label] = change(outputs(grown, batch), expected)
                if not changes.keys() - {label} and label not in wrong(changes):  # once: every label takes its time
                    back = resized(adapter, grown, model.config, options(adapter.roles))
                    changes[f"{label} and halving"] = change(outputs(back, batch), expected)
    return wrong(changes)


def wrong(changes: Mapping[str, float]) -> dict[str, float]:
    """The changes that are too large, or no numbers."""
    return {label: size for label, size in changes.items() if not size < TOLERANCE}


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


def changes_by_deepening(adapter: Adapter, model: PreTrainedModel) -> dict[str, float]:
    """Stack -> relative change of the outputs with one more layer, for the stacks where it is too large.

    The new layer is the identity, in post-norm models apart from its norms, which do nothing but normalise here.

    Raises:
        BoTError: the adapter or the config refuses that depth.
    """
    if adapter.norm == "post":
        model = with_plain_norms(adapter, model)
    batch = inputs(model)
    expected = outputs(model, batch)
    changes = {}
    for stack in stacks_of(adapter, model):
        field, stays = adapter.roles[stack].field, adapter.roles[stack].stays
        if stays and stays(model.config):
            continue
        deeper = rebuild(adapter, model.config, {field: get_field(model.config, field) + 1})
        use_eager_attention(deeper)
        grown = resized(adapter, model, deeper, BoTConfig(detail="zero", depth="identity"))
        changes[stack] = change(outputs(grown, batch), expected)
    limit = TOLERANCE if adapter.norm == "pre" else NEAR
    return {stack: size for stack, size in changes.items() if not size < limit}


def stacks_of(adapter: Adapter, model: PreTrainedModel) -> list[str]:
    """The stacks of layers that a model's class has."""
    found = rules_of(adapter, inventory_of(model), role_sizes(adapter, model.config, "source"))
    return [stack for stack in adapter.roles.depths if any(rule.depth == stack for rule, _ in found.values())]


def resized(adapter: Adapter, model: PreTrainedModel, config: PreTrainedConfig, options: BoTConfig) -> PreTrainedModel:
    """The model at the sizes of a config."""
    source = Side(model.config, role_sizes(adapter, model.config, "source"), inventory_of(model), torch.float64)
    sizes, method = role_sizes(adapter, config, "target"), methods.get("bot", options)
    target = Side(config, sizes, predict(type(model), config), torch.float64)
    if fields := method.config_fields(task_of(adapter, source, target), model.config):
        config = copy.deepcopy(config)
        for name, entries in fields.items():
            set_field(config, name, entries)
        target = replace(target, config=config, inventory=predict(type(model), config))
    plan = make_plan(adapter, source, target, method)
    with building(), drawn_from(0):  # the caller's generators stay as they are
        other = type(model)(copy.deepcopy(config)).to(torch.float64).eval()
    state = other.state_dict()
    with torch.no_grad():
        for name, tensor in run_plan(plan, network_of(adapter, source, model.state_dict(), None), torch.float64):
            state[name].copy_(tensor)
    return other
