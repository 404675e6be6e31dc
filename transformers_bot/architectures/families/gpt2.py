"""GPT-2: a pre-norm decoder. Conv1D stores matrices as (in, out), so their arrows point right."""

from typing import Any

from ..adapter import LABEL, VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules

RULES = """
wte.weight                                  : vocab hidden
wpe.weight                                  : position hidden
h.{layer}.ln_1.{weight,bias}                : hidden
h.{layer}.attn.c_attn.weight                : hidden -> (heads score + heads ~score + heads head_dim)
h.{layer}.attn.c_attn.bias                  : (heads score + heads ~score + heads head_dim)
h.{layer}.attn.c_proj.weight                : (heads head_dim) -> +hidden
h.{layer}.attn.c_proj.bias                  : +hidden
h.{layer}.ln_2.{weight,bias}                : hidden
h.{layer}.mlp.c_fc.weight                   : hidden -> ffn
h.{layer}.mlp.c_fc.bias                     : ffn
h.{layer}.mlp.c_proj.weight                 : ffn -> +hidden
h.{layer}.mlp.c_proj.bias                   : +hidden
ln_f.{weight,bias}                          : readout
lm_head.weight                              : vocab <- readout
score.weight                                : label <- readout
classifier.weight                           : label <- readout
classifier.bias                             : label
qa_outputs.weight                           : label <- readout
qa_outputs.bias                             : label
multiple_choice_head.summary.weight         : label <- readout
multiple_choice_head.summary.bias           : label
"""


def width_of_heads(config: Any) -> int:
    """The number of entries of a head."""
    return int(config.n_embd // config.n_head)


def score_scale(config: Any) -> float | None:
    """The factor of attention scores; None for the default, 1 / sqrt(head_dim)."""
    return None if config.scale_attn_weights else 1.0


def clash(role: str, tensor: str, source: Any, target: Any) -> str | None:
    """Why the outputs of a summary head differ: their number depends on `summary_proj_to_labels`."""
    if role != "label" or ".summary." not in tensor:
        return None
    before, after = (bool(config.summary_proj_to_labels) for config in (source, target))
    if before != after:
        return (
            f"summary_proj_to_labels is {before} in the source and {after} in the target config, which gives this head "
            "other outputs, and outputs are never resampled. Keep summary_proj_to_labels, pass "
            "ignore_mismatched_sizes=True to initialise this head anew, or choose a class without it."
        )
    if not before:
        return (
            "with summary_proj_to_labels=False this head has as many outputs as the stream is wide, and outputs are "
            "never resampled. Keep n_embd and summary_proj_to_labels, pass ignore_mismatched_sizes=True to initialise "
            "this head anew, or choose a class without it."
        )
    return None


GPT2 = Adapter(
    "gpt2",
    "pre",
    parse_rules(RULES),
    Roles(
        Role("layer", "depth", "n_layer"),
        Role("hidden", "stream", "n_embd", noun="hidden units"),
        Role("readout", "stream", "n_embd", follows="hidden"),
        Role("ffn", "unit", lambda c: 4 * c.n_embd if c.n_inner is None else c.n_inner, "n_inner", noun="MLP units"),
        Role("heads", "unit", "n_head"),
        Role("head_dim", "entry", width_of_heads, within="heads"),
        Role("score", "entry", width_of_heads, within="heads", follows="head_dim"),
        Role("position", "place", "n_positions"),
        *(VOCAB, LABEL),
    ),
    norms=(
        Norm("h.{layer}.ln_1", ("h.{layer}.attn.c_attn",)),
        Norm("h.{layer}.ln_2", ("h.{layer}.mlp.c_fc",)),
        Norm("ln_f", ("lm_head", "score", "classifier", "qa_outputs", "multiple_choice_head.summary")),
    ),
    derived={"n_inner": lambda c: 4 * c.n_embd, "n_ctx": lambda c: c.n_positions},
    divides=(("n_head", "n_embd"),),
    gains={"score": score_scale},
    activation="activation_function",
    epsilon="layer_norm_epsilon",
    readout=True,
    meaning=(
        *("activation_function", "layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
        *("summary_type", "summary_activation", "summary_use_proj", "summary_proj_to_labels", "pad_token_id"),
    ),
    depth_flag="scale_attn_by_inverse_layer_idx",
    # reorder_and_upcast_attn changes the order of operations, not the function.
    inert=(
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout", "summary_last_dropout"),
        *("n_special", "predict_special_tokens", "reorder_and_upcast_attn"),
    ),
    clash=clash,
    crossing=(r"h\.\d+\.(crossattention|ln_cross_attn)\..+",),
    buffers=(r"h\.\d+\.attn\.(masked_)?bias",),
    wavelets=("coif3", "db2"),  # by validation loss (the paper's supplement, Table 5)
    learning_rate=1e-5,  # for batches of 512 (supplement C.5)
    locked=True,
)
