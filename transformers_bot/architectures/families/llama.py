"""Llama and its kin: decoders with grouped queries, rotary positions, a gated MLP and RMS norms.

The rotary embedding rotates entry i of a head together with entry i + d/2: a head is 2 x `rope` in queries and keys.
"""

from dataclasses import replace
from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules

ATTENTION = """
layers.{layer}.self_attn.q_proj.weight                     : (kv_heads queries 2 rope) <- hidden
layers.{layer}.self_attn.q_proj.bias                       : (kv_heads queries 2 rope)
layers.{layer}.self_attn.k_proj.weight                     : (kv_heads 2 ~rope) <- hidden
layers.{layer}.self_attn.k_proj.bias                       : (kv_heads 2 ~rope)
layers.{layer}.self_attn.v_proj.weight                     : (kv_heads head_dim) <- hidden
layers.{layer}.self_attn.v_proj.bias                       : (kv_heads head_dim)
"""
OUTPUT = """
layers.{layer}.self_attn.o_proj.weight                     : +hidden <- (kv_heads queries head_dim)
layers.{layer}.self_attn.o_proj.bias                       : +hidden
"""
MLP = """
layers.{layer}.mlp.gate_proj.weight                        : ffn <- hidden
layers.{layer}.mlp.gate_proj.bias                          : ffn
layers.{layer}.mlp.up_proj.weight                          : *ffn <- hidden
layers.{layer}.mlp.up_proj.bias                            : *ffn
layers.{layer}.mlp.down_proj.weight                        : +hidden <- ffn
layers.{layer}.mlp.down_proj.bias                          : +hidden
"""
PRE_NORMS = """
layers.{layer}.{input_layernorm,post_attention_layernorm}.weight : hidden
"""
HEAD_NORMS = """
layers.{layer}.self_attn.q_norm.weight                     : (2 rope)
layers.{layer}.self_attn.k_norm.weight                     : (2 ~rope)
"""
ENDS = """
embed_tokens.weight                                        : vocab hidden
norm.weight                                                : readout
lm_head.weight                                             : vocab <- readout
{score,qa_outputs}.weight                                  : label <- readout
{score,qa_outputs}.bias                                    : label
"""


def length_of_heads(config: Any) -> int:
    """Entries of a head, which is a field of its own in most configs."""
    length = getattr(config, "head_dim", None)
    return int(config.hidden_size // config.num_attention_heads if length is None else length)


def queries_of_a_group(config: Any) -> int:
    """Query heads that share a key."""
    return int(config.num_attention_heads // config.num_key_value_heads)


def rotary_pairs(config: Any) -> int:
    """Pairs of entries that rotate together."""
    return length_of_heads(config) // 2


def head_is_even(config: Any) -> tuple[str, str] | None:
    """Rotary positions rotate pairs of entries."""
    length = length_of_heads(config)
    if length % 2 == 0:
        return None
    return f"heads have {length} entries", "rotary positions rotate pairs of them: choose an even length."


def rotary_pairs_stay(config: Any) -> str:
    """Why another number of rotary pairs would not be the same positions: their scaling goes by the pair's number."""
    parameters = getattr(config, "rope_parameters", None) or {}
    every = [part for part in parameters.values() if isinstance(part, dict)] or [parameters]
    for part in every:
        kind = part.get("rope_type", part.get("type", "default")) or "default"
        if part.get("mrope_section"):
            return "mrope_section assigns rotary pairs to the axes of an image by their number"
        if part.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            share = part["partial_rotary_factor"]
            return f"partial_rotary_factor is {share}, which leaves a part of every head without positions"
        if kind not in ("default", "linear", "llama3"):
            return f"rope_type is {kind!r}, which scales every rotary pair by its number"
    return ""


NORMS = (
    Norm("layers.{layer}.input_layernorm", tuple(f"layers.{{layer}}.self_attn.{p}_proj" for p in "qkv"), "rms"),
    Norm(
        "layers.{layer}.post_attention_layernorm",
        tuple(f"layers.{{layer}}.mlp.{p}_proj" for p in ("gate", "up")),
        "rms",
    ),
    Norm("norm", ("lm_head", "score", "qa_outputs"), "rms"),
)
INNER_NORMS = tuple(Norm(f"layers.{{layer}}.self_attn.{p}_norm", kind="rms") for p in "qk")
MEANING = (
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "pad_token_id",  # a classifier reads the last token that is none
)
DROPOUT = ("attention_dropout", "resid_pdrop", "embd_pdrop")


def roles(length: "str | Any" = "head_dim", lists: tuple[str, ...] = ()) -> Roles:
    """The roles of a decoder with grouped queries.

    Args:
        length: the config field of a head's entries, or a function of the config.
        lists: config fields with an entry for every layer.
    """
    field = length if isinstance(length, str) else "num_attention_heads"
    return Roles(
        Role("layer", "depth", "num_hidden_layers", lists=lists),
        Role("hidden", "stream", "hidden_size", noun="hidden units"),
        Role("readout", "stream", "hidden_size", follows="hidden"),
        Role("ffn", "unit", "intermediate_size", noun="MLP units"),
        Role("kv_heads", "unit", "num_key_value_heads", noun="key-value heads"),
        Role(
            "queries", "unit", queries_of_a_group, "num_attention_heads", within="kv_heads", noun="queries of a group"
        ),
        Role("head_dim", "entry", length, field, within="kv_heads"),
        Role("rope", "frequency", rotary_pairs, field, within="kv_heads", noun="rotary pairs", stays=rotary_pairs_stay),
        *(VOCAB, LABEL),
    )


DIVIDES = (("num_key_value_heads", "num_attention_heads"),)
WIDTH = ("num_attention_heads", "hidden_size")

LLAMA = Adapter(
    "llama",
    "pre",
    parse_rules(ATTENTION + OUTPUT + MLP + PRE_NORMS + ENDS),
    roles(),
    norms=NORMS,
    divides=(WIDTH, *DIVIDES),
    with_width=("num_attention_heads", "num_key_value_heads"),
    epsilon="rms_norm_eps",
    readout=True,
    meaning=MEANING,
    inert=(*DROPOUT, "pretraining_tp", "max_position_embeddings", "is_llama_config"),
    only={"rope_interleaved": False},
    checks=(head_is_even,),
)
MISTRAL = replace(LLAMA, model_type="mistral", divides=DIVIDES)
QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    roles=roles(length_of_heads, lists=("layer_types",)),
    inert=(*LLAMA.inert, "max_window_layers", "use_sliding_window"),
    only={"use_mrope": False},
)
QWEN3 = replace(
    LLAMA,
    model_type="qwen3",
    rules=parse_rules(ATTENTION + OUTPUT + MLP + PRE_NORMS + ENDS + HEAD_NORMS),
    roles=roles(lists=("layer_types",)),
    norms=(*NORMS, *INNER_NORMS),
    divides=DIVIDES,
    inert=(*LLAMA.inert, "max_window_layers", "use_sliding_window"),
)
SMOLLM3 = replace(
    LLAMA,
    model_type="smollm3",
    roles=roles(length_of_heads, lists=("layer_types", "no_rope_layers")),
    inert=(*LLAMA.inert, "no_rope_layer_interval", "use_sliding_window", "max_window_layers"),
)
GRANITE = replace(
    LLAMA,
    model_type="granite",
    roles=roles(length_of_heads),
    gains={"rope": lambda config: config.attention_multiplier},
    meaning=(*MEANING, "embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"),
)
PHI3 = replace(
    LLAMA,
    model_type="phi3",
    rules=parse_rules(
        """
layers.{layer}.self_attn.qkv_proj.weight : (kv_heads queries 2 rope + kv_heads 2 ~rope + kv_heads head_dim) <- hidden
layers.{layer}.mlp.gate_up_proj.weight   : (ffn + *ffn) <- hidden
layers.{layer}.mlp.down_proj.weight      : +hidden <- ffn
layers.{layer}.self_attn.o_proj.weight   : +hidden <- (kv_heads queries head_dim)
"""
        + PRE_NORMS
        + ENDS
    ),
    roles=roles(length_of_heads),
    norms=(
        Norm("layers.{layer}.input_layernorm", ("layers.{layer}.self_attn.qkv_proj",), "rms"),
        Norm("layers.{layer}.post_attention_layernorm", ("layers.{layer}.mlp.gate_up_proj",), "rms"),
        NORMS[-1],
    ),
    meaning=(*MEANING, "original_max_position_embeddings", "partial_rotary_factor"),
    only={"lm_head_bias": False, "full_attn_mod": 1, "interpolate_factor": 1},
)
OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    rules=parse_rules(
        ATTENTION
        + OUTPUT.replace("+hidden", "hidden")
        + MLP.replace("+hidden", "hidden")
        + ENDS
        + """
layers.{layer}.self_attn.q_norm.weight : (kv_heads queries 2 rope)
layers.{layer}.self_attn.k_norm.weight : (kv_heads 2 ~rope)
layers.{layer}.{post_attention_layernorm,post_feedforward_layernorm}.weight : +hidden
"""
    ),
    roles=roles(length_of_heads),
    norms=(
        *(Norm(f"layers.{{layer}}.post_{part}_layernorm", kind="rms") for part in ("attention", "feedforward")),
        *INNER_NORMS,
        NORMS[-1],
    ),
)
