"""Checks that rules read and write where the model does: with all units doubled, its outputs must stay the same.

Copies of all units leave the statistics of every norm as they are, and their readers share the weight between the
copies. A wrong arrow, a missing `~` or a norm without its readers breaks this.
"""

import copy

import torch
from transformers import PreTrainedModel

from ... import methods
from ...architectures.adapter import Adapter, Roles
from ...architectures.inventory import inventory_of, predict
from ...architectures.sizes import rebuild, role_sizes
from ...architectures.tiny import change, inputs, outputs
from ...compat import building, drawn_from, use_eager_attention
from ...options import BoTConfig
from ...planning.planner import Side, make_plan
from ...rewrite.network import fold_norms
from ...run.execute import run_plan
from ...run.opening import network_of

TOLERANCE = 1e-5  # relative to the largest output, see `permuted`


def doublings(roles: Roles) -> dict[str, tuple[str, ...]]:
    """Label -> the roles whose fields are doubled. Each is doubled alone: with all doubled, an arrow in the wrong
    direction would not show.
    """
    streams, heads = roles.streams, tuple(unit for unit in roles.units if roles.is_whole(unit))
    derived = [entry for entry in roles.entries if not isinstance(roles[entry].size, str)]
    doublings = {" and ".join((*streams, *heads)): (*streams, *heads), " and ".join((*streams, *derived)): streams}
    single = [unit for unit in roles.units if unit not in heads] + [e for e in roles.entries if e not in derived]
    return {**doublings, **{role: (role,) for role in single}}


def options(roles: Roles) -> BoTConfig:
    """Options that copy units, except within heads: there the network is linear, and only a filter that differs from
    its dual distinguishes queries from keys, which read what queries write.
    """
    return BoTConfig(detail="zero", wavelet={"default": "haar", **dict.fromkeys(roles.leading("entry"), "bior2.2")})


def changes_by_doubling(adapter: Adapter, model: PreTrainedModel) -> dict[str, float]:
    """Label -> relative change of the outputs, for the doublings that change them; empty if the rules are right.

    Raises:
        ValueError: as for `wrong_roles`; whatever the model raises.
    """
    batch = inputs(model)
    expected = outputs(model, batch)
    changes = {}
    for label, roles in doublings(adapter.roles).items():
        names = {role: adapter.roles[role].field for role in roles}
        if all(hasattr(model.config, name) for name in names.values()):
            lengths = role_sizes(adapter, model.config, "source")
            grown = _grown(adapter, model, {name: 2 * (lengths[role] or 1) for role, name in names.items()})
            changes[label] = change(outputs(grown, batch), expected)
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


def _grown(adapter: Adapter, model: PreTrainedModel, fields: dict[str, int]) -> PreTrainedModel:
    """The model at other sizes, resized with `gain="consistent"` and without noise."""
    config = model.config
    lengths = role_sizes(adapter, config, "source")
    plain_units = [unit for unit in adapter.roles.units if not adapter.roles.is_whole(unit)]
    constant = {adapter.roles[unit].field: lengths[unit] for unit in plain_units}
    constant = {name: length for name, length in constant.items() if hasattr(config, name)}
    target_config = rebuild(adapter, config, {**constant, **fields})
    use_eager_attention(target_config)
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
