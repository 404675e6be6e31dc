"""T5 and mT5: two pre-norm stacks with RMS norms, relative positions as a bias on scores, and one table of tokens.

The bias stands in the first block of either stack and belongs to all of its layers, whose heads therefore have one
order. Scores have no scale. The length of heads is a field of its own.
"""

from dataclasses import replace
from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules

BLOCK = {"encoder": "encoder.block.{layer}.layer", "decoder": "decoder.block.{decoder_layer}.layer"}
ENCODER_SELF, DECODER_SELF = (f"{BLOCK[stack]}.0.SelfAttention" for stack in BLOCK)
CROSS = f"{BLOCK['decoder']}.1.EncDecAttention"
ENCODER_MLP, DECODER_MLP = f"{BLOCK['encoder']}.1.DenseReluDense", f"{BLOCK['decoder']}.2.DenseReluDense"


def attention(module: str, unit: str) -> str:
    """The rules of an attention, whose roles begin with `unit`."""
    return f"""
{module}.q.weight : ({unit}heads {unit}score) <- hidden
{module}.k.weight : ({unit}heads ~{unit}score) <- hidden
{module}.v.weight : ({unit}heads {unit}head_dim) <- hidden
{module}.o.weight : +hidden <- ({unit}heads {unit}head_dim)
"""


def mlp(module: str) -> str:
    """The rules of an MLP with a gate (wi_0, wi_1) or without (wi)."""
    return f"""
{module}.{{wi,wi_0}}.weight : ffn <- hidden
{module}.wi_1.weight        : *ffn <- hidden
{module}.wo.weight          : +hidden <- ffn
"""


RULES = (
    *(attention(ENCODER_SELF, ""), attention(DECODER_SELF, "decoder_"), attention(CROSS, "cross_")),
    *(mlp(ENCODER_MLP), mlp(DECODER_MLP)),
    """
shared.weight                                                          : vocab hidden
{encoder,decoder}.embed_tokens.weight                                  : vocab hidden
encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight   : bucket heads
decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight   : bucket decoder_heads
encoder.block.{layer}.layer.{0,1}.layer_norm.weight                    : hidden
decoder.block.{decoder_layer}.layer.{0,1,2}.layer_norm.weight          : hidden
encoder.final_layer_norm.weight                                        : hidden
decoder.final_layer_norm.weight                                        : readout
lm_head.weight                                                         : vocab <- readout
classification_head.dense.weight                                       : pooled <- readout
classification_head.dense.bias                                         : pooled
classification_head.out_proj.weight                                    : label <- pooled
classification_head.out_proj.bias                                      : label
qa_outputs.weight                                                      : label <- readout
qa_outputs.bias                                                        : label
classifier.weight                                                      : label <- hidden
classifier.bias                                                        : label
""",
)


def heads(unit: str, noun: str) -> tuple[Role, ...]:
    """The roles of one kind of attention, whose names begin with `unit`."""
    return (
        Role(f"{unit}heads", "unit", "num_heads", noun=noun),
        Role(f"{unit}head_dim", "entry", "d_kv", within=f"{unit}heads"),
        Role(f"{unit}score", "entry", "d_kv", within=f"{unit}heads", follows=f"{unit}head_dim"),
    )


def no_scale(_config: Any) -> float:
    """The factor of scores."""
    return 1.0


def output_scale(config: Any) -> float | None:
    """The factor of the stream in front of the output embedding; before it had a field, tied models had it."""
    scaled = getattr(config, "scale_decoder_outputs", None)
    is_scaled = config.tie_word_embeddings if scaled is None else scaled
    return float(config.d_model**-0.5) if is_scaled else None


def norm(name: str, *readers: str) -> Norm:
    """An RMS norm."""
    return Norm(name, readers, "rms")


def projections(module: str, names: str = "qkv") -> tuple[str, ...]:
    """The matrices of an attention that read the stream."""
    return tuple(f"{module}.{name}" for name in names)


def first_matrices(module: str) -> tuple[str, ...]:
    """The matrices of an MLP that read the stream, with a gate and without."""
    return tuple(f"{module}.{name}" for name in ("wi", "wi_0", "wi_1"))


T5 = Adapter(
    "t5",
    "pre",
    parse_rules("".join(RULES)),
    Roles(
        Role("layer", "depth", "num_layers", noun="encoder layers"),
        Role("decoder_layer", "depth", "num_decoder_layers", noun="decoder layers"),
        Role("hidden", "stream", "d_model", noun="hidden units"),
        Role("readout", "stream", "d_model", follows="hidden"),
        Role("ffn", "unit", "d_ff", noun="MLP units"),
        *heads("", "heads"),
        *heads("decoder_", "heads of the decoder"),
        *heads("cross_", "heads of cross attention"),
        Role("pooled", "unit", "d_model", follows="hidden", noun="units of the classification head"),
        Role("bucket", "identity", "relative_attention_num_buckets"),
        *(VOCAB, LABEL),
    ),
    norms=(
        norm(f"{BLOCK['encoder']}.0.layer_norm", *projections(ENCODER_SELF)),
        norm(f"{BLOCK['encoder']}.1.layer_norm", *first_matrices(ENCODER_MLP)),
        norm("encoder.final_layer_norm", *projections(CROSS, "kv"), "classifier"),
        norm(f"{BLOCK['decoder']}.0.layer_norm", *projections(DECODER_SELF)),
        norm(f"{BLOCK['decoder']}.1.layer_norm", *projections(CROSS, "q")),
        norm(f"{BLOCK['decoder']}.2.layer_norm", *first_matrices(DECODER_MLP)),
        norm("decoder.final_layer_norm", "lm_head", "classification_head.dense", "qa_outputs"),
    ),
    with_width=("num_heads",),
    gains={"score": no_scale, "decoder_score": no_scale, "cross_score": no_scale, "lm_head": output_scale},
    activation="dense_act_fn",
    epsilon="layer_norm_epsilon",
    readout=True,
    meaning=(
        *("feed_forward_proj", "dense_act_fn", "is_gated_act", "layer_norm_epsilon", "scale_decoder_outputs"),
        "relative_attention_max_distance",
    ),
    inert=("dropout_rate", "is_decoder", "n_positions", "pad_token_id", "num_beams", "early_stopping"),
    # Of the first releases, which had a table of relative positions in cross attention, too, and did not use it.
    buffers=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)
# The stream of mT5 is not scaled in front of the output embedding.
MT5 = replace(T5, model_type="mt5", gains={name: gain for name, gain in T5.gains.items() if name != "lm_head"})
