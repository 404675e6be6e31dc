"""GPT-2: pre-norm decoder; Conv1D stores (in, out), so its arrows point right."""

from ..adapter import Adapter
from ..axes import parse_rules

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

GPT2 = Adapter(
    "gpt2",
    "pre",
    parse_rules(RULES),
    {
        "layer": "n_layer",
        "hidden": "n_embd",
        "readout": "n_embd",
        "heads": "n_head",
        "head_dim": lambda c: c.n_embd // c.n_head,
        "score": lambda c: c.n_embd // c.n_head,
        "ffn": lambda c: 4 * c.n_embd if c.n_inner is None else c.n_inner,
        "position": "n_positions",
        "vocab": "vocab_size",
        "label": None,
    },
    derived={"n_inner": lambda c: 4 * c.n_embd, "n_ctx": lambda c: c.n_positions},
    readout=True,
    meaning=(
        *("activation_function", "layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
        *("summary_type", "summary_activation", "summary_use_proj", "summary_proj_to_labels", "pad_token_id"),
    ),
    # The last is another order of the same operations.
    inert=(
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout", "summary_last_dropout"),
        *("n_special", "predict_special_tokens", "reorder_and_upcast_attn"),
    ),
    crossing=(r"h\.\d+\.(crossattention|ln_cross_attn)\..+",),
    depth_flag="scale_attn_by_inverse_layer_idx",
    norms={
        "h.{layer}.ln_1": ("h.{layer}.attn.c_attn",),
        "h.{layer}.ln_2": ("h.{layer}.mlp.c_fc",),
        "ln_f": ("lm_head", "score", "classifier", "qa_outputs", "multiple_choice_head.summary"),
    },
    buffers=(r"h\.\d+\.attn\.(masked_)?bias",),
)
