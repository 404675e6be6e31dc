"""Whisper and BART: an encoder and a decoder that reads it, with depths, heads and MLP units of their own.

Every layer of the decoder has a second attention, whose keys and values read the encoder's output. Its heads are
units of their own: in the same layer they are as many as those of the first attention, in another order.
"""

from dataclasses import replace
from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles, Variant
from ..language import parse_rules

# STACK, HEADS and READ stand for what differs between the three kinds of attention.
ATTENTION = """
STACK.q_proj.weight     : (HEADSheads HEADSscore) <- hidden
STACK.q_proj.bias       : (HEADSheads HEADSscore)
STACK.k_proj.weight     : (HEADSheads ~HEADSscore) <- READ
STACK.k_proj.bias       : (HEADSheads ~HEADSscore)
STACK.v_proj.weight     : (HEADSheads HEADShead_dim) <- READ
STACK.v_proj.bias       : (HEADSheads HEADShead_dim)
STACK.out_proj.weight   : +hidden <- (HEADSheads HEADShead_dim)
STACK.out_proj.bias     : +hidden
"""
MLP = """
STACK.fc1.weight        : HEADSffn <- hidden
STACK.fc1.bias          : HEADSffn
STACK.fc2.weight        : +hidden <- HEADSffn
STACK.fc2.bias          : +hidden
"""
ENCODER_LAYER, DECODER_LAYER = "encoder.layers.{layer}", "decoder.layers.{decoder_layer}"


def block(text: str, stack: str, heads: str = "", read: str = "hidden") -> str:
    """The rules of a block in one of the stacks.

    Args:
        stack: the beginning of the names.
        heads: the beginning of the names of the block's units.
        read: what keys and values read.
    """
    return text.replace("STACK", stack).replace("HEADS", heads).replace("READ", read)


def in_encoder(rules: str, stream: str) -> str:
    """Rules of the encoder, whose stream has a name of its own."""
    return rules.replace("hidden", stream)


def attention(unit: str, count: str) -> tuple[Role, ...]:
    """The roles of one kind of attention.

    Args:
        unit: the beginning of their names.
        count: the config field of the number of heads.
    """

    def length(config: Any) -> int:
        return int(config.d_model // getattr(config, count))

    heads, noun = f"{unit}heads", unit.replace("_", " ")
    return (
        Role(heads, "unit", count, noun=f"{noun}heads"),
        Role(f"{unit}head_dim", "entry", length, within=heads),
        Role(f"{unit}score", "entry", length, within=heads, follows=f"{unit}head_dim"),
    )


def readers(module: str, names: str = "qkv") -> tuple[str, ...]:
    """The projections of an attention."""
    return tuple(f"{module}.{name}_proj" for name in names)


def embedding_scale(config: Any) -> float | None:
    """The factor of embedded tokens."""
    return float(config.d_model**0.5) if config.scale_embedding else None


STACKS = (
    Role("layer", "depth", "encoder_layers", noun="encoder layers"),
    Role("decoder_layer", "depth", "decoder_layers", noun="decoder layers"),
)
UNITS = (
    Role("ffn", "unit", "encoder_ffn_dim", noun="MLP units"),
    Role("decoder_ffn", "unit", "decoder_ffn_dim", noun="MLP units of the decoder"),
    *attention("", "encoder_attention_heads"),
    *attention("decoder_", "decoder_attention_heads"),
    *attention("cross_", "decoder_attention_heads"),
)
DIVIDES = (("encoder_attention_heads", "d_model"), ("decoder_attention_heads", "d_model"))
# Of training and of generating, and masks on the input during training.
INERT = (
    *("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"),
    *("forced_eos_token_id", "forced_bos_token_id", "forced_decoder_ids", "suppress_tokens", "begin_suppress_tokens"),
    *("is_decoder", "num_hidden_layers", "max_length", "num_beams", "early_stopping", "no_repeat_ngram_size"),
    *("length_penalty", "min_length", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty"),
)
MASKS = (
    *("apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks"),
    *("mask_feature_prob", "mask_feature_length", "mask_feature_min_masks"),
)

ENCODER = in_encoder(
    block(ATTENTION, f"{ENCODER_LAYER}.self_attn")
    + block(MLP, ENCODER_LAYER)
    + f"{ENCODER_LAYER}.{{self_attn_layer_norm,final_layer_norm}}.{{weight,bias}} : hidden\n",
    "heard",
)
DECODER = (
    block(ATTENTION, f"{DECODER_LAYER}.self_attn", "decoder_")
    + block(ATTENTION, f"{DECODER_LAYER}.encoder_attn", "cross_", "heard")
    + block(MLP, DECODER_LAYER, "decoder_")
    + f"{DECODER_LAYER}.{{self_attn_layer_norm,encoder_attn_layer_norm,final_layer_norm}}.{{weight,bias}} : hidden\n"
)
# The activation behind both convolutions keeps the basis of what they write: of the units between them, and of the
# encoder's stream.
ENDS = """
encoder.conv1.weight                    : conv <- mel 3
encoder.conv1.bias                      : conv
encoder.conv2.weight                    : heard <- conv 3
encoder.conv2.bias                      : heard
encoder.embed_positions.weight          : frame heard
encoder.layer_norm.{weight,bias}        : heard
decoder.embed_tokens.weight             : vocab hidden
decoder.embed_positions.weight          : position hidden
decoder.layer_norm.{weight,bias}        : readout
proj_out.weight                         : vocab <- readout
layer_weights                           : state
projector.weight                        : projected <- heard
projector.bias                          : projected
classifier.weight                       : label <- projected
classifier.bias                         : label
"""


LAST_STATE = Adapter(
    "whisper",
    "pre",
    parse_rules(ENCODER + DECODER + ENDS),
    Roles(
        *STACKS,
        Role("hidden", "stream", "d_model", noun="hidden units"),
        Role("heard", "stream", "d_model", noun="hidden units of the encoder"),
        Role("readout", "stream", "d_model", follows="hidden"),
        Role("conv", "unit", "d_model", noun="channels of the convolution"),
        *UNITS,
        Role("position", "place", "max_target_positions"),
        Role("frame", "place", "max_source_positions"),
        Role("mel", "identity", "num_mel_bins"),
        Role("state", "identity", lambda config: config.encoder_layers + 1, field="encoder_layers"),
        Role("projected", "identity", "classifier_proj_size"),
        *(VOCAB, LABEL),
    ),
    norms=(
        Norm(f"{ENCODER_LAYER}.self_attn_layer_norm", readers(f"{ENCODER_LAYER}.self_attn")),
        Norm(f"{ENCODER_LAYER}.final_layer_norm", (f"{ENCODER_LAYER}.fc1",)),
        Norm("encoder.layer_norm", (*readers(f"{DECODER_LAYER}.encoder_attn", "kv"), "projector")),
        Norm(f"{DECODER_LAYER}.self_attn_layer_norm", readers(f"{DECODER_LAYER}.self_attn")),
        Norm(f"{DECODER_LAYER}.encoder_attn_layer_norm", readers(f"{DECODER_LAYER}.encoder_attn", "q")),
        Norm(f"{DECODER_LAYER}.final_layer_norm", (f"{DECODER_LAYER}.fc1",)),
        Norm("decoder.layer_norm", ("proj_out",)),
    ),
    divides=DIVIDES,
    activated=("encoder.conv2",),
    activation="activation_function",
    readout=True,
    meaning=("activation_function", "use_weighted_layer_sum"),
    # transformers reads scale_embedding, but does not multiply by it.
    inert=(*INERT, *MASKS, "median_filter_width", "scale_embedding", "pad_token_id"),
)
# The projector of sums reads the states between the layers, too, which no norm has seen.
ALL_STATES = replace(
    LAST_STATE,
    norms=tuple(
        replace(norm, readers=tuple(name for name in norm.readers if name != "projector")) for norm in LAST_STATE.norms
    ),
)
WHISPER = replace(
    LAST_STATE,
    variants=(Variant("use_weighted_layer_sum is on", lambda config: bool(config.use_weighted_layer_sum), ALL_STATES),),
)
