"""Two adapters of families that are not built in, written as docs/adapters.md says, and ways to get one wrong.

Phi's blocks stand side by side behind one norm, and a part of every head turns with the position. BioGPT's embeddings
are multiplied by the root of the width, and its output embedding is tied.
"""

import dataclasses

from transformers import BioGptConfig, PhiConfig

from transformers_bot.adapters import LABEL, VOCAB, Adapter, Norm, Role, Roles, parse_rules

LAYER = "layers.{layer}"


def length_of_heads(config) -> int:
    return config.hidden_size // config.num_attention_heads


def turns_in_part(config) -> str:
    share = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    return "" if share == 1 else "a part of every head turns with the position"


PHI = Adapter(
    model_type="phi",
    norm="pre",
    rules=parse_rules("""
embed_tokens.weight                                : vocab hidden
layers.{layer}.self_attn.q_proj.weight             : (kv_heads queries 2 rope) <- hidden
layers.{layer}.self_attn.q_proj.bias               : (kv_heads queries 2 rope)
layers.{layer}.self_attn.k_proj.weight             : (kv_heads 2 ~rope) <- hidden
layers.{layer}.self_attn.k_proj.bias               : (kv_heads 2 ~rope)
layers.{layer}.self_attn.v_proj.weight             : (kv_heads head_dim) <- hidden
layers.{layer}.self_attn.v_proj.bias               : (kv_heads head_dim)
layers.{layer}.self_attn.dense.weight              : +hidden <- (kv_heads queries head_dim)
layers.{layer}.self_attn.dense.bias                : +hidden
layers.{layer}.input_layernorm.{weight,bias}       : hidden
layers.{layer}.mlp.fc1.weight                      : ffn <- hidden
layers.{layer}.mlp.fc1.bias                        : ffn
layers.{layer}.mlp.fc2.weight                      : +hidden <- ffn
layers.{layer}.mlp.fc2.bias                        : +hidden
final_layernorm.{weight,bias}                      : readout
lm_head.weight                                     : vocab <- readout
lm_head.bias                                       : vocab
score.weight                                       : label <- readout
score.bias                                         : label
"""),
    roles=Roles(
        Role("layer", "depth", "num_hidden_layers"),
        Role("hidden", "stream", "hidden_size"),
        Role("readout", "stream", "hidden_size", follows="hidden"),
        Role("ffn", "unit", "intermediate_size"),
        Role("kv_heads", "unit", "num_key_value_heads"),
        Role(
            "queries",
            "unit",
            lambda c: c.num_attention_heads // c.num_key_value_heads,
            "num_attention_heads",
            within="kv_heads",
        ),
        Role("head_dim", "entry", length_of_heads, "num_attention_heads", within="kv_heads"),
        Role(
            "rope",
            "frequency",
            lambda c: length_of_heads(c) // 2,
            "num_attention_heads",
            within="kv_heads",
            stays=turns_in_part,
        ),
        *(VOCAB, LABEL),
    ),
    norms=(
        Norm(
            f"{LAYER}.input_layernorm",
            (*(f"{LAYER}.self_attn.{part}_proj" for part in "qkv"), f"{LAYER}.mlp.fc1"),
        ),
        Norm("final_layernorm", ("lm_head", "score")),
    ),
    divides=(("num_attention_heads", "hidden_size"), ("num_key_value_heads", "num_attention_heads")),
    with_width=("num_attention_heads", "num_key_value_heads"),
    epsilon="layer_norm_eps",
    readout=True,
    meaning=("hidden_act", "layer_norm_eps", "rope_parameters"),
    inert=("attention_dropout", "resid_pdrop", "embd_pdrop", "max_position_embeddings"),
    only={"qk_layernorm": False},
)

BIOGPT = Adapter(
    model_type="biogpt",
    norm="pre",
    rules=parse_rules("""
embed_tokens.weight                                              : vocab hidden
embed_positions.weight                                           : (2 + position) hidden
layers.{layer}.self_attn.q_proj.weight                           : (heads score) <- hidden
layers.{layer}.self_attn.q_proj.bias                             : (heads score)
layers.{layer}.self_attn.k_proj.weight                           : (heads ~score) <- hidden
layers.{layer}.self_attn.k_proj.bias                             : (heads ~score)
layers.{layer}.self_attn.v_proj.weight                           : (heads head_dim) <- hidden
layers.{layer}.self_attn.v_proj.bias                             : (heads head_dim)
layers.{layer}.self_attn.out_proj.weight                         : +hidden <- (heads head_dim)
layers.{layer}.self_attn.out_proj.bias                           : +hidden
layers.{layer}.{self_attn_layer_norm,final_layer_norm}.{weight,bias} : hidden
layers.{layer}.fc1.weight                                        : ffn <- hidden
layers.{layer}.fc1.bias                                          : ffn
layers.{layer}.fc2.weight                                        : +hidden <- ffn
layers.{layer}.fc2.bias                                          : +hidden
layer_norm.{weight,bias}                                         : readout
output_projection.weight                                         : vocab <- readout
{score,classifier}.weight                                        : label <- readout
classifier.bias                                                  : label
"""),
    roles=Roles(
        Role("layer", "depth", "num_hidden_layers"),
        Role("hidden", "stream", "hidden_size"),
        Role("readout", "stream", "hidden_size", follows="hidden"),
        Role("ffn", "unit", "intermediate_size"),
        Role("heads", "unit", "num_attention_heads"),
        Role("head_dim", "entry", length_of_heads, within="heads"),
        Role("score", "entry", length_of_heads, within="heads", follows="head_dim"),
        Role("position", "place", "max_position_embeddings"),
        *(VOCAB, LABEL),
    ),
    norms=(
        Norm(f"{LAYER}.self_attn_layer_norm", tuple(f"{LAYER}.self_attn.{part}_proj" for part in "qkv")),
        Norm(f"{LAYER}.final_layer_norm", (f"{LAYER}.fc1",)),
        Norm("layer_norm", ("output_projection", "score", "classifier")),
    ),
    derived={"intermediate_size": lambda c: 4 * c.hidden_size},
    divides=(("num_attention_heads", "hidden_size"),),
    gains={"embed_tokens": lambda c: c.hidden_size**0.5 if c.scale_embedding else None},
    readout=True,
    meaning=("hidden_act", "scale_embedding", "pad_token_id"),
    inert=("layerdrop", "activation_dropout", "layer_norm_eps"),
)

SIZES = {"vocab_size": 50, "max_position_embeddings": 20, "hidden_size": 32, "num_hidden_layers": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
UNSEEN = {
    "phi": (PHI, PhiConfig(**SIZES, **IDS, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24)),
    "biogpt": (BIOGPT, BioGptConfig(**SIZES, **IDS, num_attention_heads=4, intermediate_size=24)),
}


def with_rules(adapter: Adapter, before: str, after: str) -> dict[str, object]:
    """The rules with a text in place of another one; blanks count as one."""
    text = "\n".join(" ".join(rule.text.split()) for rule in adapter.rules)
    assert before in text
    return {"rules": parse_rules(text.replace(before, after))}


def with_norm(adapter: Adapter, name: str, **changes) -> dict[str, object]:
    """The norms with one of them changed."""
    return {"norms": tuple(dataclasses.replace(n, **changes) if n.name == name else n for n in adapter.norms)}


def with_role(adapter: Adapter, name: str, **changes) -> dict[str, object]:
    """The roles with one of them changed."""
    return {"roles": adapter.roles.with_(dataclasses.replace(adapter.roles[name], **changes))}


LAST_NORM, FIRST = "layers.{layer}.final_layer_norm", "layers.{layer}.input_layernorm"
# What is wrong -> the family, what is changed in its adapter, and what the check says.
MISTAKES = {
    "a swapped axis": (
        "biogpt",
        with_rules(
            BIOGPT, "out_proj.weight : +hidden <- (heads head_dim)", "out_proj.weight : (heads head_dim) -> +hidden"
        ),
        r"permuting hidden .*; it does not with 'layers.{layer}.self_attn.out_proj.weight : \+hidden <- \(heads",
    ),
    "keys that write": (
        "biogpt",
        with_rules(BIOGPT, "(heads ~score)", "(heads score)"),
        r"doubling .* changes the outputs; .*; it does not with .*_proj.weight : \(heads ~score\) <- hidden",
    ),
    "no gain of the embedding": (
        "biogpt",
        {"gains": {}},
        r"it does not with gains=\{'embed_tokens': lambda config: config.hidden_size\*\*0.5\}",
    ),
    "a missing norm": (
        "biogpt",
        {"norms": tuple(norm for norm in BIOGPT.norms if norm.name != LAST_NORM)},
        r"add Norm\('layers.{layer}.final_layer_norm', readers=\('layers.{layer}.fc1',\)\)",
    ),
    "a missing reader": (
        "phi",
        with_norm(PHI, FIRST, readers=PHI.norms[0].readers[:3]),
        r"is read by .* and layers.{layer}.mlp.fc1 and nothing else, but its readers are",
    ),
    "a wrong group": (
        "phi",
        with_rules(PHI, "(kv_heads queries 2 rope)", "(queries kv_heads 2 rope)"),
        r"permuting .*kv_heads.* changes the outputs; .*; it does not with",
    ),
    "a missing tensor": (
        "phi",
        with_rules(PHI, "lm_head.bias : vocab", "lm_head.shift : vocab"),
        "tensor 'lm_head.bias' of shape 50 is named by no rule",
    ),
    "a missing +": (
        "phi",
        with_rules(PHI, "fc2.weight : +hidden", "fc2.weight : hidden"),
        r"have no \+ in front of the stream: layers.{layer}.mlp.fc2.weight : hidden <- ffn",
    ),
    "no readout": (
        "biogpt",
        with_rules(BIOGPT, "layer_norm.{weight,bias} : readout", "layer_norm.{weight,bias} : hidden"),
        "doubling .* with tie_word_embeddings|doubling .*; it does not with 'layer_norm.* : readout'",
    ),
    "a wrong kind": (
        "biogpt",
        with_role(BIOGPT, "position", kind="unit"),
        "permuting position wherever the rules say so changes the outputs; .*a role the wrong kind",
    ),
    "rows that are no positions": (
        "biogpt",
        with_rules(BIOGPT, "(2 + position) hidden", "position hidden"),
        "embed_positions.weight' of shape 22x32, but its rule .* predicts 20x32",
    ),
}
