"""BERT and RoBERTa: one encoder, post-norm, two ways to name the heads."""

from typing import Any

from ..adapter import Adapter, RoleSizes
from ..axes import parse_rules

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

# Rows up to and including the padding id are never a text position (padding_idx + 1 is the first).
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

SIZES: RoleSizes = {
    "layer": "num_hidden_layers",
    "hidden": "hidden_size",
    "readout": "hidden_size",
    "heads": "num_attention_heads",
    "head_dim": lambda c: c.hidden_size // c.num_attention_heads,
    "score": lambda c: c.hidden_size // c.num_attention_heads,
    "ffn": "intermediate_size",
    "position": "max_position_embeddings",
    "vocab": "vocab_size",
    "segment": "type_vocab_size",
    "label": None,
}
DERIVED: dict[str, Any] = {"intermediate_size": lambda c: 4 * c.hidden_size, "embedding_size": lambda c: c.hidden_size}
# Older versions of transformers also knew relative positions, with embeddings of their own in every layer.
ONLY: dict[str, Any] = {"position_embedding_type": "absolute", "embedding_size": lambda c: c.hidden_size}
FOREIGN = {
    r"distance_embedding\.weight": "embeddings of relative positions (position_embedding_type 'relative_key' or "
    "'relative_key_query')"
}
CROSSING = (r"encoder\.layer\.\d+\.crossattention\..+",)
MEANING = ("hidden_act", "layer_norm_eps", "is_decoder", "pad_token_id")

UNDOES = {"encoder.layer.{layer}.attention.output.LayerNorm": "encoder.layer.{layer}.output.LayerNorm"}

# Constants (0, 1, 2, ... and 0, 0, ...) that transformers stored beside the weights until 4.31.
BUFFERS = (r"embeddings\.(position|token_type)_ids",)
BLOCK_NORMS = ("embeddings.LayerNorm", *UNDOES, *UNDOES.values())
BERT = Adapter(
    "bert",
    "post",
    parse_rules(ENCODER + BERT_ONLY),
    SIZES,
    DERIVED,
    meaning=MEANING,
    undoes=UNDOES,
    buffers=BUFFERS,
    norms={**dict.fromkeys(BLOCK_NORMS, ()), "cls.predictions.transform.LayerNorm": ("cls.predictions.decoder",)},
    only=ONLY,
    crossing=CROSSING,
    foreign=FOREIGN,
)
ROBERTA = Adapter(
    "roberta",
    "post",
    parse_rules(ENCODER + ROBERTA_ONLY),
    {
        **SIZES,
        "offset": lambda c: c.pad_token_id + 1,
        "position": lambda c: c.max_position_embeddings - c.pad_token_id - 1,
    },
    DERIVED,
    meaning=MEANING,
    undoes=UNDOES,
    buffers=BUFFERS,
    norms={**dict.fromkeys(BLOCK_NORMS, ()), "lm_head.layer_norm": ("lm_head.decoder",)},
    only=ONLY,
    crossing=CROSSING,
    foreign=FOREIGN,
)
