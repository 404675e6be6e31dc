"""Mixtral and Qwen's mixtures of experts: Llama's kin whose MLP is a bank of experts, of which a router picks a few.

Experts are entries with an identity: their number stays. In memory all experts of a layer are one tensor. The units of
all of them are one role: those of the same number go together.
"""

from dataclasses import replace
from typing import Any

from ..adapter import Norm, Numbered, Role, Roles
from ..language import parse_rules
from .llama import (
    ATTENTION,
    DIVIDES,
    ENDS,
    HEAD_NORMS,
    INNER_NORMS,
    LLAMA,
    MEANING,
    MLP,
    NORMS,
    OUTPUT,
    PRE_NORMS,
    length_of_heads,
    roles,
)

EXPERTS = """
layers.{layer}.mlp.gate.weight               : expert <- hidden
layers.{layer}.mlp.experts.gate_up_proj      : expert (expert_ffn + *expert_ffn) <- hidden
layers.{layer}.mlp.experts.down_proj         : expert +hidden <- expert_ffn
"""
SHARED_EXPERT = """
layers.{layer}.mlp.shared_expert_gate.weight : 1 <- hidden
layers.{layer}.mlp.shared_expert.gate_proj.weight : shared_ffn <- hidden
layers.{layer}.mlp.shared_expert.up_proj.weight   : *shared_ffn <- hidden
layers.{layer}.mlp.shared_expert.down_proj.weight : +hidden <- shared_ffn
"""


def dense_layers(config: Any) -> list[int]:
    """The layers whose MLP has no experts: those that the config names, and those that its stride leaves out."""
    step, named = config.decoder_sparse_step, config.mlp_only_layers or []
    return [n for n in range(config.num_hidden_layers) if n in named or (n + 1) % step]


def stride_is_positive(config: Any) -> tuple[str, str] | None:
    """A stride of 0 chooses no layer at all."""
    step = config.decoder_sparse_step
    if isinstance(step, int) and step > 0:
        return None
    return f"decoder_sparse_step is {step!r}", "every so many layers has experts: set it to at least 1."


def with_experts(known: Roles, units: str, *more: Role) -> Roles:
    """The roles of a decoder whose MLP is a bank of experts.

    Args:
        units: the config field that gives the units of an expert.
    """
    return known.with_(
        Role("expert", "identity", "num_experts", noun="experts"),
        Role("expert_ffn", "unit", units, noun="units of an expert"),
        *more,
    )


def _norms(*readers: str) -> tuple[Norm, ...]:
    """The norms of a decoder whose MLP has these readers."""
    before_mlp = replace(NORMS[1], readers=tuple(f"layers.{{layer}}.mlp.{reader}" for reader in readers))
    return NORMS[0], before_mlp, NORMS[2]


ROUTED = ("gate", "experts.gate_up_proj")
ROUTING = ("num_experts_per_tok", "norm_topk_prob")
# Of the loss in training, not of the function.
BALANCE = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
NUMBERS = (Numbered("mlp_only_layers", dense_layers, {"decoder_sparse_step": 1}),)

# The length of heads is a field of published configs, although the class does not declare it.
_heads = roles(length_of_heads).with_(
    *(replace(roles(length_of_heads)[name], field="head_dim") for name in ("head_dim", "rope"))
)
MIXTRAL = replace(
    LLAMA,
    model_type="mixtral",
    rules=parse_rules(ATTENTION + OUTPUT + EXPERTS + PRE_NORMS + ENDS),
    roles=Roles(*(role for role in with_experts(_heads, "intermediate_size").values() if role.name != "ffn")),
    norms=_norms(*ROUTED),
    divides=DIVIDES,
    meaning=(*MEANING, "num_experts_per_tok"),
    inert=(*LLAMA.inert, *BALANCE),
)
_layers = replace(_heads["layer"], numbered=NUMBERS)
QWEN3_MOE = replace(
    LLAMA,
    model_type="qwen3_moe",
    rules=parse_rules(ATTENTION + OUTPUT + MLP + EXPERTS + PRE_NORMS + ENDS + HEAD_NORMS),
    roles=with_experts(_heads.with_(_layers), "moe_intermediate_size"),
    norms=(*_norms("gate_proj", "up_proj", *ROUTED), *INNER_NORMS),
    divides=DIVIDES,
    meaning=(*MEANING, *ROUTING),
    inert=(*LLAMA.inert, *BALANCE, "max_window_layers", "use_sliding_window"),
    checks=(*LLAMA.checks, stride_is_positive),
)
QWEN2_MOE = replace(
    QWEN3_MOE,
    model_type="qwen2_moe",
    rules=parse_rules(ATTENTION + OUTPUT + MLP + EXPERTS + SHARED_EXPERT + PRE_NORMS + ENDS),
    roles=with_experts(
        _heads.with_(replace(_layers, lists=("layer_types",))),
        "moe_intermediate_size",
        Role("shared_ffn", "unit", "shared_expert_intermediate_size", noun="units of the shared expert"),
    ),
    norms=_norms(
        "gate_proj", "up_proj", *ROUTED, "shared_expert_gate", "shared_expert.gate_proj", "shared_expert.up_proj"
    ),
    meaning=(*QWEN3_MOE.meaning, "qkv_bias"),
)
