"""Whether rules read and write where the model does: with twice as many units it computes what it did.

Copies of all units leave every norm's statistics as they are, and who reads them shares the weight;
an arrow that points the wrong way, a missing `~` or a norm without its readers breaks that.
"""

import copy

import torch
from transformers import PreTrainedModel

from ... import methods
from ...architectures.adapter import Adapter
from ...architectures.inventory import inventory_of, predict
from ...architectures.sizes import config_field, rebuild, role_sizes
from ...architectures.tiny import change, inputs, outputs
from ...compat import building, drawn_from, use_eager_attention
from ...options import BoTConfig
from ...planning.planner import Side, make_plan
from ...run.execute import run_plan

TOLERANCE = 1e-6  # in double precision, beside the largest output


# Copies everywhere but within heads: there no nonlinearity is in the way, and only a filter that is not its
# own dual tells keys, which read what queries write, from queries.
OPTIONS = BoTConfig(detail="zero", wavelet={"default": "haar", "head_dim": "bior2.2"})
# What is doubled -> roles. Each alone: where all are doubled, reading and writing weigh the same.
DOUBLED = {"hidden and heads": ("hidden", "heads"), "hidden and head_dim": ("hidden",), "ffn": ("ffn",)}


def changes_by_doubling(adapter: Adapter, model: PreTrainedModel) -> dict[str, float]:
    """What is doubled -> relative change of the outputs, where there is one; nothing if the rules are right.

    Raises:
        ValueError: as for `wrong_roles`; whatever the model raises.
    """
    batch = inputs(model)
    expected = outputs(model, batch)
    found = {}
    for what, roles in DOUBLED.items():
        names = {role: config_field(adapter, role) for role in roles}
        if all(hasattr(model.config, name) for name in names.values()):
            lengths = role_sizes(adapter, model.config, "source")
            grown = _grown(adapter, model, {name: 2 * (lengths[role] or 1) for role, name in names.items()})
            found[what] = change(outputs(grown, batch), expected)
    return {what: one for what, one in found.items() if not one < TOLERANCE}


def _grown(adapter: Adapter, model: PreTrainedModel, fields: dict[str, int]) -> PreTrainedModel:
    """The model at other sizes, by the consistent method without noise."""
    config = model.config
    fixed = {config_field(adapter, "ffn"): role_sizes(adapter, config, "source")["ffn"]}
    fixed = {name: length for name, length in fixed.items() if hasattr(config, name)}
    wanted = rebuild(adapter, config, {**fixed, **fields})
    use_eager_attention(wanted)
    source = Side(config, role_sizes(adapter, config, "source"), inventory_of(model), torch.float64)
    target = Side(wanted, role_sizes(adapter, wanted, "target"), predict(type(model), wanted), torch.float64)
    plan = make_plan(adapter, source, target, methods.get("bot", OPTIONS))
    with building(), drawn_from(0):  # the caller's generators stay as they are
        grown = type(model)(copy.deepcopy(wanted)).to(torch.float64).eval()
    state = grown.state_dict()
    with torch.no_grad():
        for name, tensor in run_plan(plan, model.state_dict(), torch.float64):
            state[name].copy_(tensor)
    return grown
