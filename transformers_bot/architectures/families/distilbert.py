"""DistilBERT: BERT's post-norm blocks without segments and pooler, and with names of its own."""

from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules

RULES = """
embeddings.word_embeddings.weight                         : vocab hidden
embeddings.position_embeddings.weight                     : position hidden
embeddings.LayerNorm.{weight,bias}                        : hidden
transformer.layer.{layer}.attention.q_lin.weight          : (heads score) <- hidden
transformer.layer.{layer}.attention.q_lin.bias            : (heads score)
transformer.layer.{layer}.attention.k_lin.weight          : (heads ~score) <- hidden
transformer.layer.{layer}.attention.k_lin.bias            : (heads ~score)
transformer.layer.{layer}.attention.v_lin.weight          : (heads head_dim) <- hidden
transformer.layer.{layer}.attention.v_lin.bias            : (heads head_dim)
transformer.layer.{layer}.attention.out_lin.weight        : +hidden <- (heads head_dim)
transformer.layer.{layer}.attention.out_lin.bias          : +hidden
transformer.layer.{layer}.sa_layer_norm.{weight,bias}     : hidden
transformer.layer.{layer}.ffn.lin1.weight                 : ffn <- hidden
transformer.layer.{layer}.ffn.lin1.bias                   : ffn
transformer.layer.{layer}.ffn.lin2.weight                 : +hidden <- ffn
transformer.layer.{layer}.ffn.lin2.bias                   : +hidden
transformer.layer.{layer}.output_layer_norm.{weight,bias} : hidden
vocab_transform.weight                                    : hidden <- hidden
vocab_transform.bias                                      : hidden
vocab_layer_norm.{weight,bias}                            : readout
vocab_projector.weight                                    : vocab <- readout
vocab_projector.bias                                      : vocab
pre_classifier.weight                                     : hidden <- hidden
pre_classifier.bias                                       : hidden
{classifier,qa_outputs}.weight                            : label <- hidden
{classifier,qa_outputs}.bias                              : label
"""


def width_of_heads(config: Any) -> int:
    """The number of entries of a head."""
    return int(config.dim // config.n_heads)


AFTER_ATTENTION, AFTER_MLP = (f"transformer.layer.{{layer}}.{name}_layer_norm" for name in ("sa", "output"))

DISTILBERT = Adapter(
    "distilbert",
    "post",
    parse_rules(RULES),
    Roles(
        Role("layer", "depth", "n_layers"),
        Role("hidden", "stream", "dim", noun="hidden units"),
        Role("readout", "stream", "dim", follows="hidden"),
        Role("ffn", "unit", "hidden_dim", noun="MLP units"),
        Role("heads", "unit", "n_heads"),
        Role("head_dim", "entry", width_of_heads, "n_heads", within="heads"),
        Role("score", "entry", width_of_heads, "n_heads", within="heads", follows="head_dim"),
        Role("position", "place", "max_position_embeddings"),
        *(VOCAB, LABEL),
    ),
    norms=(
        Norm("embeddings.LayerNorm"),
        Norm(AFTER_ATTENTION, undoes=AFTER_MLP),
        Norm(AFTER_MLP),
        Norm("vocab_layer_norm", ("vocab_projector",)),
    ),
    derived={"hidden_dim": lambda c: 4 * c.dim},
    divides=(("n_heads", "dim"),),
    activation="activation",
    meaning=("activation", "pad_token_id"),
    # Sinusoids are drawn once, and then stored as any other table of positions.
    inert=("sinusoidal_pos_embds", "tie_weights_", "dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"),
    buffers=(r"embeddings\.position_ids",),
)
