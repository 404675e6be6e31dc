"""Adapters of families that are not built in, as a user would write them, with tiny configs."""

from transformers import ElectraConfig, GPTNeoConfig, LlamaConfig, OPTConfig

from transformers_bot.adapters import LABEL, SEGMENT, VOCAB, Adapter, Norm, Role, Roles, parse_rules


def width_of_heads(config) -> int:
    return config.hidden_size // config.num_attention_heads


STREAM = (
    Role("layer", "depth", "num_hidden_layers"),
    Role("hidden", "stream", "hidden_size"),
    Role("heads", "unit", "num_attention_heads"),
    *(VOCAB, LABEL),
)
HEADS = (
    Role("head_dim", "entry", width_of_heads, within="heads"),
    Role("score", "entry", width_of_heads, within="heads", follows="head_dim"),
)
WHOLE_HEADS = (("num_attention_heads", "hidden_size"),)

# Words have a width of their own, with a matrix to that of the stream.
ELECTRA = Adapter(
    model_type="electra",
    norm="post",
    rules=parse_rules("""
embeddings.word_embeddings.weight                               : vocab embed
embeddings.position_embeddings.weight                           : position embed
embeddings.token_type_embeddings.weight                         : segment embed
embeddings.LayerNorm.{weight,bias}                              : embed
embeddings_project.weight                                       : hidden <- embed
embeddings_project.bias                                         : hidden
encoder.layer.{layer}.attention.self.query.weight               : (heads score) <- hidden
encoder.layer.{layer}.attention.self.query.bias                 : (heads score)
encoder.layer.{layer}.attention.self.key.weight                 : (heads ~score) <- hidden
encoder.layer.{layer}.attention.self.key.bias                   : (heads ~score)
encoder.layer.{layer}.attention.self.value.weight               : (heads head_dim) <- hidden
encoder.layer.{layer}.attention.self.value.bias                 : (heads head_dim)
encoder.layer.{layer}.attention.output.dense.weight             : +hidden <- (heads head_dim)
encoder.layer.{layer}.attention.output.dense.bias               : +hidden
encoder.layer.{layer}.attention.output.LayerNorm.{weight,bias}  : hidden
encoder.layer.{layer}.intermediate.dense.weight                 : ffn <- hidden
encoder.layer.{layer}.intermediate.dense.bias                   : ffn
encoder.layer.{layer}.output.dense.weight                       : +hidden <- ffn
encoder.layer.{layer}.output.dense.bias                         : +hidden
encoder.layer.{layer}.output.LayerNorm.{weight,bias}            : hidden
generator_predictions.dense.weight                              : embed <- hidden
generator_predictions.dense.bias                                : embed
generator_predictions.LayerNorm.{weight,bias}                   : readout
generator_lm_head.weight                                        : vocab <- readout
generator_lm_head.bias                                          : vocab
"""),
    roles=Roles(
        *STREAM,
        *HEADS,
        SEGMENT,
        Role("embed", "stream", "embedding_size"),
        Role("readout", "stream", "embedding_size", follows="embed"),
        Role("ffn", "unit", "intermediate_size"),
        Role("position", "place", "max_position_embeddings"),
    ),
    norms=(
        Norm("embeddings.LayerNorm", ("embeddings_project",)),
        Norm("encoder.layer.{layer}.attention.output.LayerNorm", undoes="encoder.layer.{layer}.output.LayerNorm"),
        Norm("encoder.layer.{layer}.output.LayerNorm"),
        Norm("generator_predictions.LayerNorm", ("generator_lm_head",)),
    ),
    divides=WHOLE_HEADS,
    epsilon="layer_norm_eps",
)

# Positions start at 2, and a flag decides where the norms are.
OPT = Adapter(
    model_type="opt",
    norm="pre",
    rules=parse_rules("""
decoder.embed_tokens.weight                                     : vocab hidden
decoder.embed_positions.weight                                  : position hidden
decoder.layers.{layer}.self_attn.q_proj.weight                  : (heads score) <- hidden
decoder.layers.{layer}.self_attn.q_proj.bias                    : (heads score)
decoder.layers.{layer}.self_attn.k_proj.weight                  : (heads ~score) <- hidden
decoder.layers.{layer}.self_attn.k_proj.bias                    : (heads ~score)
decoder.layers.{layer}.self_attn.v_proj.weight                  : (heads head_dim) <- hidden
decoder.layers.{layer}.self_attn.v_proj.bias                    : (heads head_dim)
decoder.layers.{layer}.self_attn.out_proj.weight                : +hidden <- (heads head_dim)
decoder.layers.{layer}.self_attn.out_proj.bias                  : +hidden
decoder.layers.{layer}.self_attn_layer_norm.{weight,bias}       : hidden
decoder.layers.{layer}.fc1.weight                               : ffn <- hidden
decoder.layers.{layer}.fc1.bias                                 : ffn
decoder.layers.{layer}.fc2.weight                               : +hidden <- ffn
decoder.layers.{layer}.fc2.bias                                 : +hidden
decoder.layers.{layer}.final_layer_norm.{weight,bias}           : hidden
decoder.final_layer_norm.{weight,bias}                          : readout
lm_head.weight                                                  : vocab <- readout
"""),
    roles=Roles(
        *STREAM,
        *HEADS,
        Role("readout", "stream", "hidden_size", follows="hidden"),
        Role("ffn", "unit", "ffn_dim"),
        Role("position", "place", lambda c: c.max_position_embeddings + 2, "max_position_embeddings"),
    ),
    norms=(
        Norm(
            "decoder.layers.{layer}.self_attn_layer_norm",
            tuple(f"decoder.layers.{{layer}}.self_attn.{each}_proj" for each in "qkv"),
        ),
        Norm("decoder.layers.{layer}.final_layer_norm", ("decoder.layers.{layer}.fc1",)),
        Norm("decoder.final_layer_norm", ("lm_head",)),
    ),
    derived={"word_embed_proj_dim": lambda c: c.hidden_size},
    divides=WHOLE_HEADS,
    activation="activation_function",
    readout=True,
    only={"do_layer_norm_before": True, "word_embed_proj_dim": lambda c: c.hidden_size},
)

# As OPT, with matrices between the width of words and that of the stream.
OPT_PROJECTED = Adapter(
    model_type="opt",
    norm="pre",
    rules=parse_rules(
        "\n".join(rule.text for rule in OPT.rules)
        .replace(": vocab hidden", ": vocab embed")
        .replace("vocab <- readout", "vocab <- read_embed")
        + "\ndecoder.project_in.weight : hidden <- embed\ndecoder.project_out.weight : read_embed <- readout"
    ),
    roles=OPT.roles.with_(
        Role("embed", "stream", "word_embed_proj_dim"),
        Role("read_embed", "stream", "word_embed_proj_dim", follows="embed"),
    ),
    norms=(*OPT.norms[:2], Norm("decoder.final_layer_norm", ("decoder.project_out",))),
    divides=WHOLE_HEADS,
    activation="activation_function",
    readout=True,
    only={"do_layer_norm_before": True},
)

# Norms that keep the mean, a gated MLP, and rotary pairs, which are never mixed.
LLAMA = Adapter(
    model_type="llama",
    norm="pre",
    rules=parse_rules("""
embed_tokens.weight                                    : vocab hidden
layers.{layer}.self_attn.q_proj.weight                 : (heads 2 rope) <- hidden
layers.{layer}.self_attn.k_proj.weight                 : (heads 2 ~rope) <- hidden
layers.{layer}.self_attn.v_proj.weight                 : (heads head_dim) <- hidden
layers.{layer}.self_attn.o_proj.weight                 : +hidden <- (heads head_dim)
layers.{layer}.mlp.gate_proj.weight                    : *ffn <- hidden
layers.{layer}.mlp.up_proj.weight                      : ffn <- hidden
layers.{layer}.mlp.down_proj.weight                    : +hidden <- ffn
layers.{layer}.{input,post_attention}_layernorm.weight : hidden
norm.weight                                            : readout
lm_head.weight                                         : vocab <- readout
"""),
    roles=Roles(
        *STREAM,
        Role("readout", "stream", "hidden_size", follows="hidden"),
        Role("ffn", "unit", "intermediate_size"),
        Role("head_dim", "entry", "head_dim", within="heads"),
        Role("rope", "frequency", lambda c: c.head_dim // 2, "head_dim", within="heads"),
    ),
    norms=(
        Norm(
            "layers.{layer}.input_layernorm",
            tuple(f"layers.{{layer}}.self_attn.{each}_proj" for each in "qkv"),
            kind="rms",
        ),
        Norm(
            "layers.{layer}.post_attention_layernorm",
            ("layers.{layer}.mlp.gate_proj", "layers.{layer}.mlp.up_proj"),
            kind="rms",
        ),
        Norm("norm", ("lm_head",), kind="rms"),
    ),
    derived={"head_dim": width_of_heads, "num_key_value_heads": lambda c: c.num_attention_heads},
    only={"num_key_value_heads": lambda c: c.num_attention_heads},
    divides=WHOLE_HEADS,
    epsilon="rms_norm_eps",
    readout=True,
    meaning=("rope_parameters",),
)

# Scores are not divided by the root of their length, and layers take turns in how far they see.
GPT_NEO = Adapter(
    model_type="gpt_neo",
    norm="pre",
    rules=parse_rules("""
wte.weight                                  : vocab hidden
wpe.weight                                  : position hidden
h.{layer}.ln_{1,2}.{weight,bias}            : hidden
h.{layer}.attn.attention.q_proj.weight      : (heads score) <- hidden
h.{layer}.attn.attention.k_proj.weight      : (heads ~score) <- hidden
h.{layer}.attn.attention.v_proj.weight      : (heads head_dim) <- hidden
h.{layer}.attn.attention.out_proj.weight    : +hidden <- (heads head_dim)
h.{layer}.attn.attention.out_proj.bias      : +hidden
h.{layer}.mlp.c_fc.weight                   : ffn <- hidden
h.{layer}.mlp.c_fc.bias                     : ffn
h.{layer}.mlp.c_proj.weight                 : +hidden <- ffn
h.{layer}.mlp.c_proj.bias                   : +hidden
ln_f.{weight,bias}                          : readout
lm_head.weight                              : vocab <- readout
"""),
    roles=Roles(*STREAM, *HEADS).with_(
        Role("layer", "depth", "num_layers", lists=("attention_layers",)),
        Role("heads", "unit", "num_heads"),
        Role("readout", "stream", "hidden_size", follows="hidden"),
        Role("ffn", "unit", lambda c: c.intermediate_size or 4 * c.hidden_size, "intermediate_size"),
        Role("position", "place", "max_position_embeddings"),
    ),
    norms=(
        Norm("h.{layer}.ln_1", tuple(f"h.{{layer}}.attn.attention.{each}_proj" for each in "qkv")),
        Norm("h.{layer}.ln_2", ("h.{layer}.mlp.c_fc",)),
        Norm("ln_f", ("lm_head",)),
    ),
    divides=(("num_heads", "hidden_size"),),
    gains={"score": lambda _: 1.0},
    activation="activation_function",
    epsilon="layer_norm_epsilon",
    readout=True,
)

SIZES = {"vocab_size": 50, "max_position_embeddings": 20}
ATTENTION = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
# name -> the adapter, a config, the class that is checked, and sizes at which it computes the same
OWN = {
    "electra": (ELECTRA, ElectraConfig(**SIZES, **ATTENTION, embedding_size=8, intermediate_size=32),
                "ElectraForMaskedLM", {"hidden_size": 32, "num_attention_heads": 4, "embedding_size": 16}),
    "opt": (OPT, OPTConfig(**SIZES, **ATTENTION, ffn_dim=32, word_embed_proj_dim=16),
            "OPTForCausalLM", {"hidden_size": 32, "num_hidden_layers": 3}),
    "opt projected": (OPT_PROJECTED, OPTConfig(**SIZES, **ATTENTION, ffn_dim=32, word_embed_proj_dim=12),
                      "OPTForCausalLM", {"word_embed_proj_dim": 24, "hidden_size": 32}),
    "llama": (LLAMA, LlamaConfig(**SIZES, **ATTENTION, intermediate_size=24, num_key_value_heads=2),
              "LlamaForCausalLM", {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4}),
    "gpt_neo": (GPT_NEO, GPTNeoConfig(**SIZES, hidden_size=16, num_layers=2, num_heads=2, window_size=3,
                                      attention_types=[[["global", "local"], 1]]),
                "GPTNeoForCausalLM", {"hidden_size": 32, "num_layers": 5}),
}  # fmt: skip
