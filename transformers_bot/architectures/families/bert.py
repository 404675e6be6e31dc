"""BERT, RoBERTa and its namesakes: one post-norm encoder, with different names for the task heads."""

from dataclasses import replace
from numbers import Integral
from typing import Any

from ...console.text import brief
from ..adapter import LABEL, SEGMENT, VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules

ENCODER = """
embeddings.word_embeddings.weight                                   : vocab hidden
embeddings.token_type_embeddings.weight                             : segment hidden
embeddings.LayerNorm.{weight,bias}                                  : hidden
encoder.layer.{layer}.attention.self.query.weight                   : (heads score) <- hidden
encoder.layer.{layer}.attention.self.query.bias                     : (heads score)
encoder.layer.{layer}.attention.self.key.weight                     : (heads ~score) <- hidden
encoder.layer.{layer}.attention.self.key.bias                       : (heads ~score)
encoder.layer.{layer}.attention.self.value.weight                   : (heads head_dim) <- hidden
encoder.layer.{layer}.attention.self.value.bias                     : (heads head_dim)
encoder.layer.{layer}.attention.output.dense.weight                 : +hidden <- (heads head_dim)
encoder.layer.{layer}.attention.output.dense.bias                   : +hidden
encoder.layer.{layer}.attention.output.LayerNorm.{weight,bias}      : hidden
encoder.layer.{layer}.intermediate.dense.weight                     : ffn <- hidden
encoder.layer.{layer}.intermediate.dense.bias                       : ffn
encoder.layer.{layer}.output.dense.weight                           : +hidden <- ffn
encoder.layer.{layer}.output.dense.bias                             : +hidden
encoder.layer.{layer}.output.LayerNorm.{weight,bias}                : hidden
pooler.dense.weight                                                 : hidden <- hidden
pooler.dense.bias                                                   : hidden
qa_outputs.weight                                                   : label <- hidden
qa_outputs.bias                                                     : label
"""

BERT_ONLY = """
embeddings.position_embeddings.weight                               : position hidden
cls.predictions.transform.dense.weight                              : hidden <- hidden
cls.predictions.transform.dense.bias                                : hidden
cls.predictions.transform.LayerNorm.{weight,bias}                   : readout
cls.predictions.decoder.weight                                      : vocab <- readout
cls.predictions.{bias,decoder.bias}                                 : vocab
cls.seq_relationship.weight                                         : label <- hidden
cls.seq_relationship.bias                                           : label
classifier.weight                                                   : label <- hidden
classifier.bias                                                     : label
"""

# The first text position is row padding_idx + 1; the rows before it are an axis segment of their own.
ROBERTA_ONLY = """
embeddings.position_embeddings.weight                               : (offset + position) hidden
lm_head.dense.weight                                                : hidden <- hidden
lm_head.dense.bias                                                  : hidden
lm_head.layer_norm.{weight,bias}                                    : readout
lm_head.decoder.weight                                              : vocab <- readout
lm_head.{bias,decoder.bias}                                         : vocab
classifier.dense.weight                                             : hidden <- hidden
classifier.dense.bias                                               : hidden
classifier.{out_proj.weight,weight}                                 : label <- hidden
classifier.{out_proj.bias,bias}                                     : label
"""


def width_of_heads(config: Any) -> int:
    """The number of entries of a head."""
    return int(config.hidden_size // config.num_attention_heads)


def first_position(config: Any) -> int:
    """The row of RoBERTa's first text position."""
    return int(config.pad_token_id + 1)


def padding_is_known(config: Any) -> tuple[str, str] | None:
    """What is wrong with `pad_token_id`, from which RoBERTa counts its positions; None if it is valid."""
    value = config.pad_token_id
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0:
        return None
    return (
        f"pad_token_id is {brief(repr(value))}",
        f"text positions of {config.model_type} begin at pad_token_id + 1, so it must be the tokenizer's padding id, 1 "
        "in most of these models. Correct it.",
    )


def no_position_left(config: Any) -> str:
    return (
        f"max_position_embeddings {config.max_position_embeddings} must exceed pad_token_id + 1 = "
        f"{first_position(config)} rows that are no text positions."
    )


WIDTHS = (
    Role("layer", "depth", "num_hidden_layers"),
    Role("hidden", "stream", "hidden_size", noun="hidden units"),
    Role("readout", "stream", "hidden_size", follows="hidden"),
    Role("ffn", "unit", "intermediate_size", noun="MLP units"),
    Role("heads", "unit", "num_attention_heads"),
    Role("head_dim", "entry", width_of_heads, within="heads"),
    Role("score", "entry", width_of_heads, within="heads", follows="head_dim"),
)
DERIVED: dict[str, Any] = {"intermediate_size": lambda c: 4 * c.hidden_size, "embedding_size": lambda c: c.hidden_size}
# Older versions of transformers also had relative positions, with embeddings of their own in every layer.
ONLY: dict[str, Any] = {"position_embedding_type": "absolute", "embedding_size": lambda c: c.hidden_size}
FOREIGN = {
    r"distance_embedding\.weight": "embeddings of relative positions (position_embedding_type 'relative_key' or "
    "'relative_key_query')"
}
# Fields for the pooler of BERT's first release; only their default values were ever computed.
FIRST_RELEASE = (
    *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
    *("pooler_size_per_head", "pooler_type"),
)
# BERT's by validation loss (the paper's supplement, Table 5). It states none for RoBERTa, which has the same blocks.
PAPER_WAVELETS = ("haar", "bior6.8")
AFTER_ATTENTION, AFTER_MLP = (f"encoder.layer.{{layer}}.{part}.LayerNorm" for part in ("attention.output", "output"))

BERT = Adapter(
    "bert",
    "post",
    parse_rules(ENCODER + BERT_ONLY),
    Roles(*WIDTHS, Role("position", "place", "max_position_embeddings"), VOCAB, SEGMENT, LABEL),
    norms=(
        Norm("embeddings.LayerNorm"),
        Norm(AFTER_ATTENTION, undoes=AFTER_MLP),
        Norm(AFTER_MLP),
        Norm("cls.predictions.transform.LayerNorm", ("cls.predictions.decoder",)),
    ),
    derived=DERIVED,
    divides=(("num_attention_heads", "hidden_size"),),
    meaning=("hidden_act", "layer_norm_eps", "is_decoder", "pad_token_id"),
    epsilon="layer_norm_eps",
    causal_flag="is_decoder",
    inert=FIRST_RELEASE,
    only=ONLY,
    crossing=(r"encoder\.layer\.\d+\.crossattention\..+",),
    foreign=FOREIGN,
    # Constants (0, 1, 2, ... and 0, 0, ...) that transformers stored beside the weights until 4.31.
    buffers=(r"embeddings\.(position|token_type)_ids",),
    wavelets=PAPER_WAVELETS,
    learning_rate=2e-4,  # for batches of 256 (the paper's supplement, C.5)
    locked=True,
)
ROBERTA = replace(
    BERT,
    model_type="roberta",
    rules=parse_rules(ENCODER + ROBERTA_ONLY),
    roles=Roles(
        *WIDTHS,
        Role("offset", "identity", first_position, field="pad_token_id"),
        Role(
            "position",
            "place",
            lambda c: c.max_position_embeddings - first_position(c),
            field="max_position_embeddings",
            empty=no_position_left,
        ),
        *(VOCAB, SEGMENT, LABEL),
    ),
    norms=(*BERT.norms[:-1], Norm("lm_head.layer_norm", ("lm_head.decoder",))),
    checks=(padding_is_known,),
)
# Other vocabularies, and the very modules of RoBERTa. The paper has no results of them.
XLM_ROBERTA = replace(ROBERTA, model_type="xlm-roberta", wavelets=Adapter.wavelets, locked=False)
CAMEMBERT = replace(XLM_ROBERTA, model_type="camembert")
