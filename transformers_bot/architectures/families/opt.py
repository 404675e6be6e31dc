"""OPT: a pre-norm decoder with stored positions, of which the first two rows are none."""

from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules

RULES = """
decoder.embed_tokens.weight                                       : vocab hidden
decoder.embed_positions.weight                                    : (2 + position) hidden
decoder.layers.{layer}.self_attn_layer_norm.{weight,bias}         : hidden
decoder.layers.{layer}.self_attn.q_proj.weight                    : (heads score) <- hidden
decoder.layers.{layer}.self_attn.q_proj.bias                      : (heads score)
decoder.layers.{layer}.self_attn.k_proj.weight                    : (heads ~score) <- hidden
decoder.layers.{layer}.self_attn.k_proj.bias                      : (heads ~score)
decoder.layers.{layer}.self_attn.v_proj.weight                    : (heads head_dim) <- hidden
decoder.layers.{layer}.self_attn.v_proj.bias                      : (heads head_dim)
decoder.layers.{layer}.self_attn.out_proj.weight                  : +hidden <- (heads head_dim)
decoder.layers.{layer}.self_attn.out_proj.bias                    : +hidden
decoder.layers.{layer}.final_layer_norm.{weight,bias}             : hidden
decoder.layers.{layer}.fc1.weight                                 : ffn <- hidden
decoder.layers.{layer}.fc1.bias                                   : ffn
decoder.layers.{layer}.fc2.weight                                 : +hidden <- ffn
decoder.layers.{layer}.fc2.bias                                   : +hidden
decoder.final_layer_norm.{weight,bias}                            : readout
lm_head.weight                                                    : vocab <- readout
{score,qa_outputs}.weight                                         : label <- readout
{score,qa_outputs}.bias                                           : label
"""


def width_of_heads(config: Any) -> int:
    """The number of entries of a head."""
    return int(config.hidden_size // config.num_attention_heads)


OPT = Adapter(
    "opt",
    "pre",
    parse_rules(RULES),
    Roles(
        Role("layer", "depth", "num_hidden_layers"),
        Role("hidden", "stream", "hidden_size", noun="hidden units"),
        Role("readout", "stream", "hidden_size", follows="hidden"),
        Role("ffn", "unit", "ffn_dim", noun="MLP units"),
        Role("heads", "unit", "num_attention_heads"),
        Role("head_dim", "entry", width_of_heads, "num_attention_heads", within="heads"),
        Role("score", "entry", width_of_heads, "num_attention_heads", within="heads", follows="head_dim"),
        Role("position", "place", "max_position_embeddings"),
        *(VOCAB, LABEL),
    ),
    norms=(
        Norm(
            "decoder.layers.{layer}.self_attn_layer_norm",
            tuple(f"decoder.layers.{{layer}}.self_attn.{p}_proj" for p in "qkv"),
        ),
        Norm("decoder.layers.{layer}.final_layer_norm", ("decoder.layers.{layer}.fc1",)),
        Norm("decoder.final_layer_norm", ("lm_head", "score", "qa_outputs")),
    ),
    derived={"word_embed_proj_dim": lambda config: config.hidden_size},
    divides=(("num_attention_heads", "hidden_size"),),
    activation="activation_function",
    readout=True,
    meaning=("activation_function", "enable_bias", "pad_token_id"),
    inert=("dropout", "attention_dropout", "layerdrop", "activation_dropout"),
    # opt-350m has embeddings of another width and norms behind its blocks: another network.
    only={
        "do_layer_norm_before": True,
        "word_embed_proj_dim": lambda config: config.hidden_size,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
)
