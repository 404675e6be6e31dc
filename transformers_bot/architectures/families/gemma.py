"""Gemma 2 and 3: Llama's kin with norms on both sides of a block, which multiply by 1 + w."""

from dataclasses import replace

from ..adapter import Norm
from ..language import parse_rules
from .llama import ATTENTION, DIVIDES, ENDS, HEAD_NORMS, INNER_NORMS, LLAMA, MLP, OUTPUT, roles

BEFORE = {
    "input_layernorm": tuple(f"layers.{{layer}}.self_attn.{p}_proj" for p in "qkv"),
    "pre_feedforward_layernorm": tuple(f"layers.{{layer}}.mlp.{p}_proj" for p in ("gate", "up")),
}
# The norm on a block's output writes the stream: a gain of zero is the block that adds nothing.
RULES = (
    ATTENTION
    + (OUTPUT + MLP).replace("+hidden", "hidden")
    + ENDS
    + """
layers.{layer}.{input_layernorm,pre_feedforward_layernorm}.weight           : hidden
layers.{layer}.{post_attention_layernorm,post_feedforward_layernorm}.weight : +hidden
"""
)
NORMS = (
    *(Norm(f"layers.{{layer}}.{name}", readers, "rms", "1+w") for name, readers in BEFORE.items()),
    *(Norm(f"layers.{{layer}}.post_{part}_layernorm", (), "rms", "1+w") for part in ("attention", "feedforward")),
    Norm("norm", ("lm_head", "score"), "rms", "1+w"),
)

GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    rules=parse_rules(RULES),
    roles=roles(lists=("layer_types",)),
    norms=NORMS,
    divides=DIVIDES,
    gains={
        "rope": lambda config: config.query_pre_attn_scalar**-0.5,
        "embed_tokens": lambda config: config.hidden_size**0.5,
    },
    inert=(*LLAMA.inert, "hidden_act"),
    activation="hidden_activation",
    meaning=(
        *("hidden_activation", "rms_norm_eps", "rope_parameters", "attention_bias", "sliding_window"),
        "pad_token_id",
        *("query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"),
    ),
)
GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    rules=parse_rules(RULES + HEAD_NORMS),
    norms=(*NORMS, *(replace(norm, gain="1+w") for norm in INNER_NORMS)),
    inert=(*GEMMA2.inert, "_sliding_window_pattern", "sliding_window_pattern"),
)
