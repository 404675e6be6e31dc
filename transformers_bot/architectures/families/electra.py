"""ELECTRA: BERT's blocks behind embeddings of their own width, which a matrix brings to that of the stream.

Where both widths are one there is no such matrix, and the embeddings are the stream: an adapter of its own.
"""

from dataclasses import replace

from ..adapter import LABEL, SEGMENT, VOCAB, Adapter, Norm, Role, Roles, Variant
from ..language import parse_rules
from .bert import BERT, DERIVED, ENCODER, WIDTHS

POOLED = ("pooler.", "cls.")
BLOCKS = "\n".join(line for line in ENCODER.splitlines() if not line.startswith(("embeddings.", *POOLED)))
ENDS = """
embeddings.word_embeddings.weight                  : vocab embedding
embeddings.position_embeddings.weight              : position embedding
embeddings.token_type_embeddings.weight            : segment embedding
embeddings.LayerNorm.{weight,bias}                 : embedding
generator_predictions.dense.weight                 : embedding <- hidden
generator_predictions.dense.bias                   : embedding
generator_predictions.LayerNorm.{weight,bias}      : readout
generator_lm_head.weight                           : vocab <- readout
generator_lm_head.bias                             : vocab
discriminator_predictions.dense.weight             : hidden <- hidden
discriminator_predictions.dense.bias               : hidden
discriminator_predictions.dense_prediction.weight  : 1 <- hidden
discriminator_predictions.dense_prediction.bias    : 1
classifier.dense.weight                            : hidden <- hidden
classifier.dense.bias                              : hidden
classifier.{out_proj.weight,weight}                : label <- hidden
classifier.{out_proj.bias,bias}                    : label
sequence_summary.summary.weight                    : hidden <- hidden
sequence_summary.summary.bias                      : hidden
"""
PROJECTION = """
embeddings_project.weight                          : hidden <- embedding
embeddings_project.bias                            : hidden
"""
IDENTITIES = (Role("position", "place", "max_position_embeddings"), VOCAB, SEGMENT, LABEL)

ONE_WIDTH = replace(
    BERT,
    model_type="electra",
    rules=parse_rules(BLOCKS + ENDS.replace("embedding <-", "hidden <-").replace(" embedding\n", " hidden\n")),
    roles=Roles(*WIDTHS, *IDENTITIES),
    norms=(*BERT.norms[:-1], Norm("generator_predictions.LayerNorm", ("generator_lm_head",))),
    derived=DERIVED,
    meaning=(*BERT.meaning, "summary_type", "summary_activation", "summary_use_proj"),
    inert=("summary_last_dropout",),
    only={"position_embedding_type": "absolute", "summary_proj_to_labels": False},
    buffers=(r"embeddings\.position_ids",),
    wavelets=Adapter.wavelets,
    locked=False,
)
ELECTRA = replace(
    ONE_WIDTH,
    rules=parse_rules(BLOCKS + ENDS + PROJECTION),
    roles=Roles(
        *(role for role in WIDTHS if role.name != "readout"),
        Role("embedding", "stream", "embedding_size", noun="embedding units"),
        Role("readout", "stream", "embedding_size", follows="embedding"),
        *IDENTITIES,
    ),
    norms=tuple(
        replace(norm, readers=("embeddings_project",)) if norm.name == "embeddings.LayerNorm" else norm
        for norm in ONE_WIDTH.norms
    ),
    derived={"intermediate_size": DERIVED["intermediate_size"]},
    variants=(Variant("embedding_size equals hidden_size", lambda c: c.embedding_size == c.hidden_size, ONE_WIDTH),),
)
