"""ModernBERT: a pre-norm encoder with rotary positions, gated MLPs, norms without bias, and local and global layers.

The first layer has no norm in front of its attention, because a norm stands behind the embeddings. That one writes the
stream, which has a basis therefore: it is not turned.
"""

from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules
from .llama import head_is_even, rotary_pairs, rotary_pairs_stay

RULES = """
embeddings.tok_embeddings.weight             : vocab hidden
embeddings.norm.{weight,bias}                : +hidden
layers.{layer}.attn_norm.{weight,bias}       : hidden
layers.{layer}.attn.Wqkv.weight              : (heads 2 rope + heads 2 ~rope + heads head_dim) <- hidden
layers.{layer}.attn.Wqkv.bias                : (heads 2 rope + heads 2 ~rope + heads head_dim)
layers.{layer}.attn.Wo.weight                : +hidden <- (heads head_dim)
layers.{layer}.attn.Wo.bias                  : +hidden
layers.{layer}.mlp_norm.{weight,bias}        : hidden
layers.{layer}.mlp.Wi.weight                 : (ffn + *ffn) <- hidden
layers.{layer}.mlp.Wi.bias                   : (ffn + *ffn)
layers.{layer}.mlp.Wo.weight                 : +hidden <- ffn
layers.{layer}.mlp.Wo.bias                   : +hidden
final_norm.{weight,bias}                     : hidden
head.dense.weight                            : hidden <- hidden
head.dense.bias                              : hidden
head.norm.{weight,bias}                      : readout
decoder.weight                               : vocab <- readout
decoder.bias                                 : vocab
classifier.weight                            : label <- readout
classifier.bias                              : label
"""
LOCAL, GLOBAL = "sliding_attention", "full_attention"
EVERY = "global_attn_every_n_layers"


def width_of_heads(config: Any) -> int:
    """The number of entries of a head."""
    return int(config.hidden_size // config.num_attention_heads)


def computed_layers(config: Any) -> list[str]:
    """The kinds of layers that transformers computes.

    Until transformers 5.1 the window of a layer followed from its number, whatever `layer_types` said; their configs
    have the distance of global layers as a field.
    """
    if EVERY not in vars(type(config)()):
        return list(config.layer_types)
    every = getattr(config, EVERY)
    return [LOCAL if layer % every else GLOBAL for layer in range(config.num_hidden_layers)]


MODERNBERT = Adapter(
    "modernbert",
    "pre",
    parse_rules(RULES),
    Roles(
        Role("layer", "depth", "num_hidden_layers", lists=("layer_types",)),
        Role("hidden", "stream", "hidden_size", noun="hidden units"),
        Role("readout", "stream", "hidden_size", follows="hidden"),
        Role("ffn", "unit", "intermediate_size", noun="MLP units"),
        Role("heads", "unit", "num_attention_heads"),
        Role("head_dim", "entry", width_of_heads, "num_attention_heads", within="heads"),
        Role(
            "rope",
            "frequency",
            rotary_pairs,
            "num_attention_heads",
            within="heads",
            noun="rotary pairs",
            stays=rotary_pairs_stay,
        ),
        *(VOCAB, LABEL),
    ),
    norms=(
        Norm("embeddings.norm"),
        Norm("layers.{layer}.attn_norm", ("layers.{layer}.attn.Wqkv",)),
        Norm("layers.{layer}.mlp_norm", ("layers.{layer}.mlp.Wi",)),
        Norm("final_norm", ("head.dense",)),
        Norm("head.norm", ("decoder", "classifier")),
    ),
    divides=(("num_attention_heads", "hidden_size"),),
    with_width=("num_attention_heads",),
    activation="hidden_activation",
    epsilon="norm_eps",
    meaning=(
        *("hidden_activation", "classifier_activation", "classifier_pooling", "norm_eps", "norm_bias", "mlp_bias"),
        *("attention_bias", "classifier_bias", "decoder_bias", "local_attention", "rope_parameters", "rope_scaling"),
    ),
    inert=(
        *("attention_dropout", "embedding_dropout", "mlp_dropout", "initializer_cutoff_factor", "pad_token_id"),
        *("deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index", "max_position_embeddings"),
        *("reference_compile", "repad_logits_with_grad", "position_embedding_type", "layer_norm_eps"),
        *("global_rope_theta", "local_rope_theta", EVERY),  # of which layer_types and rope_parameters are made
    ),
    only={"layer_types": computed_layers},
    checks=(head_is_even,),
)
