"""MPNet: BERT's post-norm blocks, and one table of relative positions that the heads of all layers read."""

from dataclasses import replace
from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules
from .bert import BERT, ENCODER, WIDTHS

PADDING = 1  # the row of padding, whatever pad_token_id says: the first text position is the row behind it
COMPUTED = 32  # buckets that the forward pass tells apart, whatever the config says

NAMES = {"attention.self.query": "attention.attn.q", "attention.self.key": "attention.attn.k"}
NAMES |= {"attention.self.value": "attention.attn.v", "attention.output.dense": "attention.attn.o"}
NAMES |= {"attention.output.LayerNorm": "attention.LayerNorm"}


def _encoder() -> str:
    """The rules of BERT's blocks under MPNet's names, without segments."""
    lines = "\n".join(line for line in ENCODER.splitlines() if "token_type" not in line)
    for name, own in NAMES.items():
        lines = lines.replace(name, own)
    return lines


OWN = """
embeddings.position_embeddings.weight  : (offset + position) hidden
encoder.relative_attention_bias.weight : bucket heads
lm_head.dense.weight                   : hidden <- hidden
lm_head.dense.bias                     : hidden
lm_head.layer_norm.{weight,bias}       : readout
lm_head.decoder.weight                 : vocab <- readout
lm_head.{bias,decoder.bias}            : vocab
classifier.dense.weight                : hidden <- hidden
classifier.dense.bias                  : hidden
classifier.{out_proj.weight,weight}    : label <- hidden
classifier.{out_proj.bias,bias}        : label
"""


def no_position_left(config: Any) -> str:
    return (
        f"max_position_embeddings {config.max_position_embeddings} must exceed {PADDING + 1} rows that are no text "
        "positions."
    )


def buckets_are_enough(config: Any) -> tuple[str, str] | None:
    """Transformers reads 32 buckets from the table, however many it has."""
    count = config.relative_attention_num_buckets
    if count >= COMPUTED:
        return None
    return f"relative_attention_num_buckets is {count}", f"transformers reads {COMPUTED} buckets: set it to {COMPUTED}."


AFTER_ATTENTION, AFTER_MLP = (f"encoder.layer.{{layer}}.{part}.LayerNorm" for part in ("attention", "output"))

MPNET = Adapter(
    "mpnet",
    "post",
    parse_rules(_encoder() + OWN),
    Roles(
        *WIDTHS,
        Role("offset", "identity", PADDING + 1, field="max_position_embeddings"),
        Role(
            "position",
            "place",
            lambda c: c.max_position_embeddings - PADDING - 1,
            field="max_position_embeddings",
            empty=no_position_left,
        ),
        Role("bucket", "identity", "relative_attention_num_buckets"),
        *(replace(VOCAB, anchored=lambda _: PADDING + 1), LABEL),
    ),
    norms=(
        Norm("embeddings.LayerNorm"),
        Norm(AFTER_ATTENTION, undoes=AFTER_MLP),
        Norm(AFTER_MLP),
        Norm("lm_head.layer_norm", ("lm_head.decoder",)),
    ),
    derived={"intermediate_size": lambda c: 4 * c.hidden_size},
    divides=BERT.divides,
    meaning=("hidden_act", "layer_norm_eps"),
    epsilon="layer_norm_eps",
    inert=("pad_token_id",),  # the embedding's padding row is fixed
    checks=(buckets_are_enough,),
    buffers=(r"embeddings\.position_ids",),
)
