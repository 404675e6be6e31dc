"""wav2vec 2.0 and HuBERT: a stack of convolutions over sound, which stays as it is, and an encoder that reads it.

Positions come from a grouped convolution over the stream: its units keep their groups, and so their order. With
`do_stable_layer_norm` norms stand before the blocks of the encoder, otherwise behind them.
"""

from dataclasses import replace
from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles, Variant
from ..language import parse_rules

LAYER = "encoder.layers.{layer}"
POSITIONS = "encoder.pos_conv_embed.conv.parametrizations.weight"
NUMBERS = "{" + ",".join(map(str, range(32))) + "}"
RULES = (
    """
masked_spec_embed                                               : hidden
feature_extractor.conv_layers.NUMBERS.conv.weight               : filter band tap
feature_extractor.conv_layers.NUMBERS.conv.bias                 : filter
feature_extractor.conv_layers.NUMBERS.layer_norm.{weight,bias}  : filter
feature_projection.layer_norm.{weight,bias}                     : filter
feature_projection.projection.weight                            : hidden <- filter
feature_projection.projection.bias                              : hidden
POSITIONS.original0                                             : 1 1 tap
POSITIONS.original1                                             : hidden <- member tap
encoder.pos_conv_embed.conv.bias                                : hidden
encoder.layer_norm.{weight,bias}                                : hidden
LAYER.attention.q_proj.weight                                   : (heads score) <- hidden
LAYER.attention.q_proj.bias                                     : (heads score)
LAYER.attention.k_proj.weight                                   : (heads ~score) <- hidden
LAYER.attention.k_proj.bias                                     : (heads ~score)
LAYER.attention.v_proj.weight                                   : (heads head_dim) <- hidden
LAYER.attention.v_proj.bias                                     : (heads head_dim)
LAYER.attention.out_proj.weight                                 : +hidden <- (heads head_dim)
LAYER.attention.out_proj.bias                                   : +hidden
LAYER.layer_norm.{weight,bias}                                  : hidden
LAYER.feed_forward.intermediate_dense.weight                    : ffn <- hidden
LAYER.feed_forward.intermediate_dense.bias                      : ffn
LAYER.feed_forward.output_dense.weight                          : +hidden <- ffn
LAYER.feed_forward.output_dense.bias                            : +hidden
LAYER.final_layer_norm.{weight,bias}                            : hidden
lm_head.weight                                                  : vocab <- hidden
lm_head.bias                                                    : vocab
layer_weights                                                   : state
projector.weight                                                : projected <- hidden
projector.bias                                                  : projected
classifier.weight                                               : label <- projected
classifier.bias                                                 : label
quantizer.codevectors                                           : 1 code_number code
quantizer.weight_proj.weight                                    : code_number <- filter
quantizer.weight_proj.bias                                      : code_number
project_hid.weight                                              : code <- hidden
project_hid.bias                                                : code
project_q.weight                                                : code <- code_entry
project_q.bias                                                  : code
tdnn.NUMBERS.kernel.weight                                      : projected projected_tap
tdnn.NUMBERS.kernel.bias                                        : projected
feature_extractor.weight                                        : projected statistic
feature_extractor.bias                                          : projected
objective.weight                                                : projected label
""".replace("NUMBERS", NUMBERS)
    .replace("POSITIONS", POSITIONS)
    .replace("LAYER", LAYER)
)


def length_of_heads(config: Any) -> int:
    """Entries of a head."""
    return int(config.hidden_size // config.num_attention_heads)


def size_of_groups(config: Any) -> int:
    """Units of the stream in a group of the convolution that gives positions."""
    return int(config.hidden_size // config.num_conv_pos_embedding_groups)


def has_norms_before(config: Any) -> bool:
    """Whether norms stand before the blocks."""
    return bool(config.do_stable_layer_norm)


def has_norms_before_and_sums(config: Any) -> bool:
    """Whether norms stand before the blocks, and a head reads a sum of all layers' states."""
    return has_norms_before(config) and bool(config.use_weighted_layer_sum)


TRAINING = (
    *("activation_dropout", "attention_dropout", "feat_proj_dropout", "feat_quantizer_dropout", "final_dropout"),
    *("feat_extract_dropout", "layerdrop", "apply_spec_augment", "mask_time_prob", "mask_time_length"),
    *("mask_time_min_masks", "mask_feature_prob", "mask_feature_length", "mask_feature_min_masks"),
    *("contrastive_logits_temperature", "num_negatives", "diversity_loss_weight", "ctc_loss_reduction"),
    *("ctc_zero_infinity", "mask_channel_length", "mask_channel_min_space", "mask_channel_other"),
    *("mask_channel_prob", "mask_channel_selection", "mask_time_min_space", "mask_time_other"),
    *("mask_time_selection", "gradient_checkpointing", "pad_token_id"),
)
CONVOLUTIONS = (
    *("feat_extract_norm", "feat_extract_activation", "conv_dim", "conv_stride", "conv_kernel", "conv_bias"),
    *("num_feat_extract_layers", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "feat_proj_layer_norm"),
)
# Sizes of heads, which stay as they are.
HEADS = (
    *("classifier_proj_size", "codevector_dim", "num_codevectors_per_group", "num_codevector_groups"),
    *("proj_codevector_dim", "tdnn_dim", "tdnn_kernel", "tdnn_dilation", "xvector_output_dim"),
    *("adapter_kernel_size", "adapter_stride", "num_adapter_layers", "output_hidden_size"),
)
POST = (
    Norm("encoder.layer_norm"),
    Norm(f"{LAYER}.layer_norm", undoes=f"{LAYER}.final_layer_norm"),
    Norm(f"{LAYER}.final_layer_norm"),
)
PRE = (
    Norm(f"{LAYER}.layer_norm", tuple(f"{LAYER}.attention.{part}_proj" for part in "qkv")),
    Norm(f"{LAYER}.final_layer_norm", (f"{LAYER}.feed_forward.intermediate_dense",)),
    Norm("encoder.layer_norm", ("lm_head", "project_hid", "projector")),
)
# The projector of sums reads the states between the layers, too, which no norm has seen.
PRE_OF_SUMS = (*PRE[:-1], Norm("encoder.layer_norm", ("lm_head", "project_hid")))

ENCODER = Adapter(
    "wav2vec2",
    "post",
    parse_rules(RULES),
    Roles(
        Role("layer", "depth", "num_hidden_layers"),
        Role("hidden", "stream", "hidden_size", noun="hidden units", grouped="member"),
        Role("member", "unit", size_of_groups, "hidden_size", follows="hidden", noun="hidden units of a group"),
        Role("ffn", "unit", "intermediate_size", noun="MLP units"),
        Role("heads", "unit", "num_attention_heads"),
        Role("head_dim", "entry", length_of_heads, within="heads"),
        Role("score", "entry", length_of_heads, within="heads", follows="head_dim"),
        Role("tap", "identity", None, field="conv_kernel or num_conv_pos_embeddings"),
        Role("filter", "identity", None, field="conv_dim"),
        Role("band", "identity", None, field="conv_dim"),
        Role("state", "identity", lambda config: config.num_hidden_layers + 1, field="num_hidden_layers"),
        Role("projected", "identity", None, field="classifier_proj_size, tdnn_dim or xvector_output_dim"),
        Role("projected_tap", "identity", None, field="tdnn_dim and tdnn_kernel"),
        Role("statistic", "identity", None, field="tdnn_dim"),
        Role("code", "identity", None, field="codevector_dim or proj_codevector_dim"),
        Role("code_entry", "identity", None, field="codevector_dim"),
        Role("code_number", "identity", None, field="num_codevectors_per_group and num_codevector_groups"),
        *(VOCAB, LABEL),
    ),
    norms=POST,
    divides=(("num_attention_heads", "hidden_size"), ("num_conv_pos_embedding_groups", "hidden_size")),
    weight_norms={f"{POSITIONS}.original0": f"{POSITIONS}.original1"},
    epsilon="layer_norm_eps",
    meaning=("hidden_act", "layer_norm_eps", "use_weighted_layer_sum", "do_stable_layer_norm", *CONVOLUTIONS),
    inert=(*TRAINING, *HEADS),
    refused={
        "ForAudioFrameClassification": "its classifier reads the stream, but that of other classes, which has the same "
        "name, reads a projection of it. Use the class for sequences, or train its head anew."
    },
    only={"add_adapter": False, "adapter_attn_dim": None, "conv_pos_batch_norm": False},
)


def with_variants(adapter: Adapter) -> Adapter:
    """The adapter with those for norms before the blocks."""
    before, of_sums = (replace(adapter, norm="pre", norms=norms) for norms in (PRE, PRE_OF_SUMS))
    sums = Variant("do_stable_layer_norm and use_weighted_layer_sum are on", has_norms_before_and_sums, of_sums)
    return replace(adapter, variants=(sums, Variant("do_stable_layer_norm is on", has_norms_before, before)))


WAV2VEC2 = with_variants(ENCODER)
HUBERT = with_variants(replace(ENCODER, model_type="hubert"))
