"""BART: Whisper's two stacks as a post-norm network, with tokens on both sides and one table for them."""

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules
from .whisper import (
    ATTENTION,
    DECODER_LAYER,
    DIVIDES,
    ENCODER_LAYER,
    INERT,
    MLP,
    STACKS,
    UNITS,
    block,
    embedding_scale,
)

# The last norm of the last layer stands in front of the output embedding. Positions begin at row 2.
RULES = (
    block(ATTENTION, f"{ENCODER_LAYER}.self_attn")
    + block(MLP, ENCODER_LAYER)
    + block(ATTENTION, f"{DECODER_LAYER}.self_attn", "decoder_")
    + block(ATTENTION, f"{DECODER_LAYER}.encoder_attn", "cross_")
    + block(MLP, DECODER_LAYER, "decoder_")
    + """
shared.weight                                                                           : vocab hidden
{encoder,decoder}.embed_tokens.weight                                                   : vocab hidden
{encoder,decoder}.embed_positions.weight                                                : (2 + position) hidden
{encoder,decoder}.layernorm_embedding.{weight,bias}                                     : hidden
encoder.layers.{layer}.{self_attn_layer_norm,final_layer_norm}.{weight,bias}            : hidden
decoder.layers.{decoder_layer}.{self_attn_layer_norm,encoder_attn_layer_norm}.{weight,bias} : hidden
decoder.layers.{decoder_layer}.final_layer_norm.{weight,bias}                           : hidden
decoder.layers.{last_decoder_layer}.final_layer_norm.{weight,bias}                      : readout
lm_head.weight                                                                          : vocab <- readout
final_logits_bias                                                                       : 1 vocab
classification_head.dense.weight                                                        : hidden <- readout
classification_head.dense.bias                                                          : hidden
classification_head.out_proj.weight                                                     : label <- hidden
classification_head.out_proj.bias                                                       : label
qa_outputs.weight                                                                       : label <- readout
qa_outputs.bias                                                                         : label
"""
)

BART = Adapter(
    "bart",
    "post",
    parse_rules(RULES),
    Roles(
        *STACKS,
        Role("hidden", "stream", "d_model", noun="hidden units"),
        Role("readout", "stream", "d_model", follows="hidden"),
        *UNITS,
        Role("position", "place", "max_position_embeddings"),
        *(VOCAB, LABEL),
    ),
    norms=(
        Norm("encoder.layernorm_embedding"),
        Norm(f"{ENCODER_LAYER}.self_attn_layer_norm", undoes=f"{ENCODER_LAYER}.final_layer_norm"),
        Norm(f"{ENCODER_LAYER}.final_layer_norm"),
        Norm("decoder.layernorm_embedding"),
        Norm(f"{DECODER_LAYER}.self_attn_layer_norm", undoes=f"{DECODER_LAYER}.final_layer_norm"),
        Norm(f"{DECODER_LAYER}.encoder_attn_layer_norm", passes=True),
        Norm(f"{DECODER_LAYER}.final_layer_norm"),
    ),
    divides=DIVIDES,
    gains={
        "shared": embedding_scale,
        "encoder.embed_tokens": embedding_scale,
        "decoder.embed_tokens": embedding_scale,
    },
    activation="activation_function",
    readout=True,
    meaning=("activation_function", "scale_embedding", "pad_token_id"),
    inert=(
        *INERT,
        *("classif_dropout", "classifier_dropout", "static_position_embeddings", "normalize_embedding"),
        *("normalize_before", "add_final_layer_norm", "add_bias_logits", "extra_pos_embeddings"),
        *("force_bos_token_to_be_generated", "gradient_checkpointing"),
    ),
    # Variants of the first releases, which transformers has given up or moved to types of their own.
    only={
        "normalize_before": False,
        "add_final_layer_norm": False,
        "static_position_embeddings": False,
        "normalize_embedding": True,
        "add_bias_logits": False,
    },
)
