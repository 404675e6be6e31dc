"""DeBERTa-v2 and v3: post-norm blocks whose scores also compare contents with relative positions.

The embeddings of relative positions are read by the same kind of matrices as the stream, so they have its axis. With
`share_att_key` these are the very matrices of queries and keys. Scores are divided by the root of head_dim times the
number of their terms, which a resize does not change.
"""

from dataclasses import replace
from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles, Variant
from ..language import parse_rules
from .bert import AFTER_MLP, BERT, ENCODER, WIDTHS

OWN = """
embeddings.position_embeddings.weight                            : position hidden
encoder.layer.{layer}.attention.self.pos_key_proj.weight         : (heads ~score) <- hidden
encoder.layer.{layer}.attention.self.pos_key_proj.bias           : (heads ~score)
encoder.layer.{layer}.attention.self.pos_query_proj.weight       : (heads score) <- hidden
encoder.layer.{layer}.attention.self.pos_query_proj.bias         : (heads score)
encoder.rel_embeddings.weight                                    : distance hidden
encoder.LayerNorm.{weight,bias}                                  : hidden
cls.predictions.transform.dense.weight                           : hidden <- hidden
cls.predictions.transform.dense.bias                             : hidden
cls.predictions.transform.LayerNorm.{weight,bias}                : readout
cls.predictions.decoder.weight                                   : vocab <- readout
cls.predictions.{bias,decoder.bias}                              : vocab
lm_predictions.lm_head.dense.weight                              : hidden <- hidden
lm_predictions.lm_head.dense.bias                                : hidden
lm_predictions.lm_head.LayerNorm.{weight,bias}                   : readout
lm_predictions.lm_head.bias                                      : vocab
mask_predictions.dense.weight                                    : hidden <- hidden
mask_predictions.dense.bias                                      : hidden
mask_predictions.LayerNorm.{weight,bias}                         : hidden
mask_predictions.classifier.weight                               : 1 <- hidden
mask_predictions.classifier.bias                                 : 1
classifier.weight                                                : label <- hidden
classifier.bias                                                  : label
"""
# Behind the first layer, from the embeddings: its output is added, and the sum is normalised once more.
CONVOLUTION = """
encoder.conv.conv.weight                                         : hidden <- hidden kernel
encoder.conv.conv.bias                                           : hidden
encoder.conv.LayerNorm.{weight,bias}                             : hidden
"""


def _encoder() -> str:
    """The rules of BERT's blocks under the names of DeBERTa's projections."""
    lines = ENCODER
    for part in ("query", "key", "value"):
        lines = lines.replace(f"attention.self.{part}.", f"attention.self.{part}_proj.")
    return lines


def distances(config: Any) -> int | None:
    """Rows of the table of relative positions; None for a model without one."""
    if not config.relative_attention:
        return None
    buckets = getattr(config, "position_buckets", -1)
    return 2 * int(buckets if buckets > 0 else reach(config))


def reach(config: Any) -> int:
    """The largest relative position that is told from larger ones."""
    own = getattr(config, "max_relative_positions", -1)
    return int(config.max_position_embeddings if own < 1 else own)


def positions_are_the_reach(config: Any) -> str:
    """Why another number of text positions would change what relative positions mean."""
    if not config.relative_attention or getattr(config, "max_relative_positions", -1) >= 1:
        return ""
    return "without max_relative_positions, relative positions are sorted into buckets by max_position_embeddings"


def segments(config: Any) -> int | None:
    """Kinds of segments; None for a model that does not tell them apart."""
    return int(config.type_vocab_size) or None


def kernel(config: Any) -> int:
    """Tokens that the convolution behind the first layer reads; 0 if there is none."""
    return int(getattr(config, "conv_kernel_size", 0))


def convolves(config: Any) -> bool:
    """Whether a convolution follows the first layer."""
    return kernel(config) > 0


# With `share_att_key` the matrices of the text read the table of distances, too, and the norm has no reader of its own.
OWN_KEYS = tuple(f"encoder.layer.{{layer}}.attention.self.pos_{part}_proj" for part in ("key", "query"))
PLAIN = Adapter(
    "deberta-v2",
    "post",
    parse_rules(_encoder() + OWN),
    Roles(
        *WIDTHS,
        Role("position", "place", "max_position_embeddings", stays=positions_are_the_reach),
        Role("distance", "identity", distances, "position_buckets"),
        *(VOCAB, LABEL),
        Role("segment", "identity", segments, "type_vocab_size"),
    ),
    norms=(
        *BERT.norms[:-1],
        Norm("encoder.LayerNorm", OWN_KEYS),
        Norm("cls.predictions.transform.LayerNorm", ("cls.predictions.decoder",)),
        Norm("lm_predictions.lm_head.LayerNorm"),
        Norm("mask_predictions.LayerNorm", ("mask_predictions.classifier",)),
    ),
    derived={
        "intermediate_size": lambda c: 4 * c.hidden_size,
        "pooler_hidden_size": lambda c: c.hidden_size,
        "embedding_size": lambda c: c.hidden_size,
        "attention_head_size": lambda c: c.hidden_size // c.num_attention_heads,
    },
    divides=BERT.divides,
    epsilon="layer_norm_eps",
    meaning=(
        *("hidden_act", "layer_norm_eps", "pooler_hidden_act", "legacy", "relative_attention", "pos_att_type"),
        *("share_att_key", "position_biased_input", "position_buckets", "max_relative_positions", "norm_rel_ebd"),
        "pad_token_id",
    ),
    inert=("pooler_dropout", "cls_dropout", "z_steps"),
    only={
        "pooler_hidden_size": lambda c: c.hidden_size,
        "embedding_size": lambda c: c.hidden_size,
        "attention_head_size": lambda c: c.hidden_size // c.num_attention_heads,
        "conv_groups": 1,
    },
    buffers=(r"embeddings\.position_ids",),
    implied_ties=("lm_predictions.lm_head",),  # of `legacy=False`
)
CONVOLVED = replace(
    PLAIN,
    rules=parse_rules(_encoder() + OWN + CONVOLUTION),
    roles=PLAIN.roles.with_(Role("kernel", "identity", kernel, "conv_kernel_size")),
    norms=(*PLAIN.norms, Norm("encoder.conv.LayerNorm", behind=(AFTER_MLP, 0))),
    meaning=(*PLAIN.meaning, "conv_act"),
)
DEBERTA_V2 = replace(PLAIN, variants=(Variant("a convolution follows the first layer", convolves, CONVOLVED),))
