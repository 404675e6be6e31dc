"""Whether rules read and write where the model does: with twice as many units it computes what it did.

Copies of all units leave every norm's statistics as they are, and who reads them shares the weight;
an arrow that points the wrong way, a missing `~` or a norm without its readers breaks that.
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

TOLERANCE = 1e-5  # beside the largest output, see `permuted`


def doublings(roles: Roles) -> dict[str, tuple[str, ...]]:
    """What is doubled -> the roles whose fields are. Each alone: where all are, reading and writing weigh the same."""
    streams, whole = roles.streams, tuple(unit for unit in roles.units if roles.is_whole(unit))
    derived = [entry for entry in roles.entries if not isinstance(roles[entry].size, str)]
    named = {" and ".join((*streams, *whole)): (*streams, *whole), " and ".join((*streams, *derived)): streams}
    alone = [unit for unit in roles.units if unit not in whole] + [e for e in roles.entries if e not in derived]
    return {**named, **{role: (role,) for role in alone}}


def options(roles: Roles) -> BoTConfig:
    """Copies everywhere but within heads: there no nonlinearity is in the way, and only a filter that is not its
    own dual tells keys, which read what queries write, from queries.
    """
    return BoTConfig(detail="zero", wavelet={"default": "haar", **dict.fromkeys(roles.leading("entry"), "bior2.2")})


def changes_by_doubling(adapter: Adapter, model: PreTrainedModel) -> dict[str, float]:
    """What is doubled -> relative change of the outputs, where there is one; nothing if the rules are right.

    Raises:
        ValueError: as for `wrong_roles`; whatever the model raises.
    """
    batch = inputs(model)
    expected = outputs(model, batch)
    found = {}
    for what, roles in doublings(adapter.roles).items():
        names = {role: adapter.roles[role].field for role in roles}
        if all(hasattr(model.config, name) for name in names.values()):
            lengths = role_sizes(adapter, model.config, "source")
            grown = _grown(adapter, model, {name: 2 * (lengths[role] or 1) for role, name in names.items()})
            found[what] = change(outputs(grown, batch), expected)
    return {what: one for what, one in found.items() if not one < TOLERANCE}


def change_by_folding(adapter: Adapter, model: PreTrainedModel) -> float:
    """The relative change of the outputs when norms are folded into the matrices that are said to read them."""
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
            state[name].copy_(network[name])
    change_of_outputs = change(outputs(folded, batch), outputs(model, batch))
    return 0.0 if change_of_outputs < TOLERANCE else change_of_outputs


def _grown(adapter: Adapter, model: PreTrainedModel, fields: dict[str, int]) -> PreTrainedModel:
    """The model at other sizes, by the consistent method without noise."""
    config = model.config
    lengths = role_sizes(adapter, config, "source")
    plain = [unit for unit in adapter.roles.units if not adapter.roles.is_whole(unit)]
    fixed = {adapter.roles[unit].field: lengths[unit] for unit in plain}
    fixed = {name: length for name, length in fixed.items() if hasattr(config, name)}
    wanted = rebuild(adapter, config, {**fixed, **fields})
    use_eager_attention(wanted)
    source = Side(config, role_sizes(adapter, config, "source"), inventory_of(model), torch.float64)
    target = Side(wanted, role_sizes(adapter, wanted, "target"), predict(type(model), wanted), torch.float64)
    plan = make_plan(adapter, source, target, methods.get("bot", options(adapter.roles)))
    with building(), drawn_from(0):  # the caller's generators stay as they are
        grown = type(model)(copy.deepcopy(wanted)).to(torch.float64).eval()
    state = grown.state_dict()
    with torch.no_grad():
        for name, tensor in run_plan(plan, model.state_dict(), torch.float64):
            state[name].copy_(tensor)
    return grown
