"""StarCoder 2, GLM 4 and Cohere 2: Llama's kin with other norms, other MLPs, or rotary pairs that lie side by side."""

from dataclasses import replace

from ..adapter import Norm
from ..language import parse_rules
from .llama import ATTENTION, DIVIDES, ENDS, LLAMA, MEANING, MLP, NORMS, OUTPUT, length_of_heads, roles

BY_PAIRS = ATTENTION.replace("2 rope", "rope 2").replace("2 ~rope", "~rope 2")

STARCODER2 = replace(
    LLAMA,
    model_type="starcoder2",
    rules=parse_rules(
        ATTENTION
        + OUTPUT
        + ENDS.replace("norm.weight ", "norm.{weight,bias} ")
        + """
layers.{layer}.{input_layernorm,post_attention_layernorm}.{weight,bias} : hidden
layers.{layer}.mlp.c_fc.weight                                          : ffn <- hidden
layers.{layer}.mlp.c_fc.bias                                            : ffn
layers.{layer}.mlp.c_proj.weight                                        : +hidden <- ffn
layers.{layer}.mlp.c_proj.bias                                          : +hidden
"""
    ),
    roles=roles(length_of_heads),
    norms=(
        Norm("layers.{layer}.input_layernorm", NORMS[0].readers),
        Norm("layers.{layer}.post_attention_layernorm", ("layers.{layer}.mlp.c_fc",)),
        Norm("norm", NORMS[2].readers),
    ),
    epsilon="norm_epsilon",
    meaning=(
        *("hidden_act", "norm_epsilon", "rope_parameters", "rope_scaling", "use_bias", "sliding_window"),
        "pad_token_id",
    ),
    inert=(
        *(*LLAMA.inert, "residual_dropout", "embedding_dropout", "layer_norm_epsilon", "activation_function"),
        *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"),
    ),
    only={"mlp_type": "default", "norm_type": "layer_norm", "scale_attn_weights": True},
)
# Norms on both sides of a block, those on its output without an offset.
GLM4 = replace(
    LLAMA,
    model_type="glm4",
    rules=parse_rules(
        BY_PAIRS
        + OUTPUT.replace("+hidden", "hidden")
        + ENDS
        + """
layers.{layer}.{input_layernorm,post_attention_layernorm}.weight     : hidden
layers.{layer}.{post_self_attn_layernorm,post_mlp_layernorm}.weight  : +hidden
layers.{layer}.mlp.gate_up_proj.weight                               : (ffn + *ffn) <- hidden
layers.{layer}.mlp.down_proj.weight                                  : hidden <- ffn
"""
    ),
    norms=(
        NORMS[0],
        Norm("layers.{layer}.post_attention_layernorm", ("layers.{layer}.mlp.gate_up_proj",), "rms"),
        *(Norm(f"layers.{{layer}}.post_{part}_layernorm", kind="rms") for part in ("self_attn", "mlp")),
        NORMS[2],
    ),
    divides=DIVIDES,
)
# One norm in front of attention and MLP, which both add to the same stream.
COHERE2 = replace(
    LLAMA,
    model_type="cohere2",
    rules=parse_rules(BY_PAIRS + OUTPUT + MLP + ENDS + "\nlayers.{layer}.input_layernorm.weight : hidden\n"),
    roles=roles(lists=("layer_types",)),
    norms=(
        Norm(
            "layers.{layer}.input_layernorm",
            (*NORMS[0].readers, *(f"layers.{{layer}}.mlp.{part}_proj" for part in ("gate", "up"))),
        ),
        Norm("norm", NORMS[2].readers),
    ),
    divides=DIVIDES,
    epsilon="layer_norm_eps",
    meaning=(*(field for field in MEANING if field != "rms_norm_eps"), "layer_norm_eps", "logit_scale"),
    inert=(
        *(*LLAMA.inert, "sliding_window_pattern", "layer_switch", "order_of_interleaved_layers"),
        *("cache_implementation", "use_embedding_sharing", "use_parallel_embedding"),
    ),
    only={
        **{"position_embedding_type": "rope_gptj", "rotary_pct": 1.0},
        **{"use_gated_activation": True, "use_parallel_block": True},
    },
)
