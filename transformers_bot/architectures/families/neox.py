"""GPT-NeoX (Pythia) and Falcon: attention and MLP side by side, and a fused q|k|v in which heads alternate.

Where only a part of every head rotates with the position, the length of heads stays: see `rotary_pairs_stay`.
"""

from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules
from .llama import head_is_even, length_of_heads, rotary_pairs, rotary_pairs_stay

HEADS = """
{score,classifier,qa_outputs}.weight                              : label <- readout
{score,classifier,qa_outputs}.bias                                : label
"""
NEOX_RULES = """
embed_in.weight                                                   : vocab hidden
layers.{layer}.{input_layernorm,post_attention_layernorm}.{weight,bias} : hidden
layers.{layer}.attention.query_key_value.weight                   : (heads (2 rope + 2 ~rope + head_dim)) <- hidden
layers.{layer}.attention.query_key_value.bias                     : (heads (2 rope + 2 ~rope + head_dim))
layers.{layer}.attention.dense.weight                             : +hidden <- (heads head_dim)
layers.{layer}.attention.dense.bias                               : +hidden
layers.{layer}.mlp.dense_h_to_4h.weight                           : ffn <- hidden
layers.{layer}.mlp.dense_h_to_4h.bias                             : ffn
layers.{layer}.mlp.dense_4h_to_h.weight                           : +hidden <- ffn
layers.{layer}.mlp.dense_4h_to_h.bias                             : +hidden
final_layer_norm.{weight,bias}                                    : readout
{embed_out,lm_head}.weight                                        : vocab <- readout
"""
FALCON_RULES = """
word_embeddings.weight                                            : vocab hidden
h.{layer}.{input_layernorm,ln_attn,ln_mlp}.{weight,bias}          : hidden
h.{layer}.self_attention.query_key_value.weight : (kv_heads (queries 2 rope + 2 ~rope + head_dim)) <- hidden
h.{layer}.self_attention.query_key_value.bias   : (kv_heads (queries 2 rope + 2 ~rope + head_dim))
h.{layer}.self_attention.dense.weight                             : +hidden <- (kv_heads queries head_dim)
h.{layer}.self_attention.dense.bias                               : +hidden
h.{layer}.mlp.dense_h_to_4h.weight                                : ffn <- hidden
h.{layer}.mlp.dense_h_to_4h.bias                                  : ffn
h.{layer}.mlp.dense_4h_to_h.weight                                : +hidden <- ffn
h.{layer}.mlp.dense_4h_to_h.bias                                  : +hidden
ln_f.{weight,bias}                                                : readout
lm_head.weight                                                    : vocab <- readout
"""
READ_OUT = ("embed_out", "lm_head", "score", "classifier", "qa_outputs")
DROPOUT = ("hidden_dropout", "attention_dropout", "max_position_embeddings", "is_decoder")
MEANING = ("rope_parameters", "rope_scaling", "pad_token_id")  # a classifier reads the last token before padding


def _inside(unit: str) -> tuple[Role, ...]:
    """The roles of a head's entries."""
    field = "num_attention_heads"
    return (
        Role("head_dim", "entry", length_of_heads, field, within=unit),
        Role("rope", "frequency", rotary_pairs, field, within=unit, noun="rotary pairs", stays=rotary_pairs_stay),
    )


GPT_NEOX = Adapter(
    "gpt_neox",
    "pre",
    parse_rules(NEOX_RULES + HEADS),
    Roles(
        Role("layer", "depth", "num_hidden_layers"),
        Role("hidden", "stream", "hidden_size", noun="hidden units"),
        Role("readout", "stream", "hidden_size", follows="hidden"),
        Role("ffn", "unit", "intermediate_size", noun="MLP units"),
        Role("heads", "unit", "num_attention_heads"),
        *_inside("heads"),
        *(VOCAB, LABEL),
    ),
    norms=(
        Norm("layers.{layer}.input_layernorm", ("layers.{layer}.attention.query_key_value",)),
        Norm("layers.{layer}.post_attention_layernorm", ("layers.{layer}.mlp.dense_h_to_4h",)),
        Norm("final_layer_norm", READ_OUT),
    ),
    divides=(("num_attention_heads", "hidden_size"),),
    with_width=("num_attention_heads",),
    epsilon="layer_norm_eps",
    readout=True,
    meaning=("hidden_act", "layer_norm_eps", "use_parallel_residual", "attention_bias", *MEANING),
    inert=DROPOUT,
    checks=(head_is_even,),
    buffers=(r"layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",),
)


def key_value_heads(config: Any) -> int:
    """Key-value heads: a field of the newer layout, else one for all queries or one for each."""
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def queries_of_a_group(config: Any) -> int:
    """Query heads that share a key."""
    return int(config.num_attention_heads // key_value_heads(config))


def groups_are_whole(config: Any) -> tuple[str, str] | None:
    """Key-value heads divide the heads, and heads the width."""
    heads, groups = config.num_attention_heads, config.num_kv_heads if config.new_decoder_architecture else 1
    if not (config.multi_query or config.new_decoder_architecture or config.num_kv_heads == heads):
        return f"num_kv_heads {config.num_kv_heads} are not num_attention_heads {heads}", "without groups they are one."
    if config.hidden_size % heads:
        return f"hidden_size {config.hidden_size} is not divisible by num_attention_heads {heads}", "choose a multiple."
    if not isinstance(groups, int) or groups < 1 or heads % groups:
        return f"num_attention_heads {heads} is not divisible by num_kv_heads {groups}", "choose a divisor."
    return None


FALCON = Adapter(
    "falcon",
    "pre",
    parse_rules(FALCON_RULES + HEADS),
    Roles(
        Role("layer", "depth", "num_hidden_layers"),
        Role("hidden", "stream", "hidden_size", noun="hidden units"),
        Role("readout", "stream", "hidden_size", follows="hidden"),
        Role("ffn", "unit", "ffn_hidden_size", noun="MLP units"),
        Role("kv_heads", "unit", key_value_heads, "num_kv_heads", noun="key-value heads"),
        Role(
            "queries", "unit", queries_of_a_group, "num_attention_heads", within="kv_heads", noun="queries of a group"
        ),
        *_inside("kv_heads"),
        *(VOCAB, LABEL),
    ),
    norms=(
        Norm("h.{layer}.input_layernorm", ("h.{layer}.self_attention.query_key_value", "h.{layer}.mlp.dense_h_to_4h")),
        Norm("h.{layer}.ln_attn", ("h.{layer}.self_attention.query_key_value",)),
        Norm("h.{layer}.ln_mlp", ("h.{layer}.mlp.dense_h_to_4h",)),
        Norm("ln_f", READ_OUT[1:]),
    ),
    derived={
        "ffn_hidden_size": lambda config: 4 * config.hidden_size,
        "num_kv_heads": lambda config: None if config.new_decoder_architecture else config.num_attention_heads,
    },
    with_width=("num_attention_heads", "num_kv_heads"),
    activation="activation",
    epsilon="layer_norm_epsilon",
    readout=True,
    meaning=("activation", "layer_norm_epsilon", "multi_query", "new_decoder_architecture", "bias", *MEANING),
    # Which norms there are shows in the tensors.
    inert=(*DROPOUT, "num_ln_in_parallel_attn"),
    # ALiBi's slopes go by the number of a head; blocks one after another read other norms.
    only={"alibi": False, "parallel_attn": True, "apply_residual_connection_post_layernorm": False},
    checks=(groups_are_whole, head_is_even),
)
