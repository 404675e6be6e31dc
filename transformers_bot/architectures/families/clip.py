"""The towers of CLIP and SigLIP, an encoder of texts and one of images, each alone. `clip_pair` has the whole.

CLIP's encoder of images normalises its stream before the first block. SigLIP's
ends in one layer of attention with a query of its own; what that layer writes is no part of the stream.
"""

from dataclasses import replace
from typing import Any

from ..adapter import VOCAB, Adapter, Norm, Role, Roles
from ..language import parse_rules
from .vit import ROLES, lengths_are_whole

BLOCK = """
PREFIXencoder.layers.{layer}.{layer_norm1,layer_norm2}.{weight,bias} : hidden
PREFIXencoder.layers.{layer}.self_attn.q_proj.weight                 : (heads score) <- hidden
PREFIXencoder.layers.{layer}.self_attn.q_proj.bias                   : (heads score)
PREFIXencoder.layers.{layer}.self_attn.k_proj.weight                 : (heads ~score) <- hidden
PREFIXencoder.layers.{layer}.self_attn.k_proj.bias                   : (heads ~score)
PREFIXencoder.layers.{layer}.self_attn.v_proj.weight                 : (heads head_dim) <- hidden
PREFIXencoder.layers.{layer}.self_attn.v_proj.bias                   : (heads head_dim)
PREFIXencoder.layers.{layer}.self_attn.out_proj.weight               : +hidden <- (heads head_dim)
PREFIXencoder.layers.{layer}.self_attn.out_proj.bias                 : +hidden
PREFIXencoder.layers.{layer}.mlp.fc1.weight                          : ffn <- hidden
PREFIXencoder.layers.{layer}.mlp.fc1.bias                            : ffn
PREFIXencoder.layers.{layer}.mlp.fc2.weight                          : +hidden <- ffn
PREFIXencoder.layers.{layer}.mlp.fc2.bias                            : +hidden
"""
TEXT = f"""{BLOCK}
PREFIXembeddings.token_embedding.weight                              : vocab hidden
PREFIXembeddings.position_embedding.weight                           : position hidden
PREFIXfinal_layer_norm.{{weight,bias}}                               : hidden
"""
IMAGE = f"""{BLOCK}
PREFIXembeddings.patch_embedding.weight                              : hidden <- channel patch_h patch_w
PREFIXpost_layernorm.{{weight,bias}}                                 : hidden
"""
CLIP_TEXT = f"""{TEXT}
text_projection.weight                                               : projection <- hidden
"""
CLIP_IMAGE = f"""{IMAGE}
PREFIXembeddings.class_embedding                                     : hidden
PREFIXembeddings.position_embedding.weight                           : (special + grid_h grid_w) hidden
PREFIXpre_layrnorm.{{weight,bias}}                                   : +hidden
visual_projection.weight                                             : projection <- hidden
"""
SIGLIP_TEXT = f"""{TEXT}
PREFIXhead.weight                                                    : projection <- hidden
PREFIXhead.bias                                                      : projection
"""
SIGLIP_IMAGE = f"""{IMAGE}
PREFIXembeddings.patch_embedding.bias                                : hidden
PREFIXembeddings.position_embedding.weight                           : (grid_h grid_w) hidden
PREFIXhead.probe                                                     : 1 1 hidden
PREFIXhead.attention.in_proj_weight         : (heads score + heads ~score + heads head_dim) <- hidden
PREFIXhead.attention.in_proj_bias           : (heads score + heads ~score + heads head_dim)
PREFIXhead.attention.out_proj.weight                                 : pooled <- (heads head_dim)
PREFIXhead.attention.out_proj.bias                                   : pooled
PREFIXhead.layernorm.{{weight,bias}}                                 : pooled
PREFIXhead.mlp.fc1.weight                                            : pooler_ffn <- pooled
PREFIXhead.mlp.fc1.bias                                              : pooler_ffn
PREFIXhead.mlp.fc2.weight                                            : pooled <- pooler_ffn
PREFIXhead.mlp.fc2.bias                                              : pooled
"""


def norms(prefix: str, last: str, readers: tuple[str, ...] = (), first: str = "") -> tuple[Norm, ...]:
    """The norms of a tower.

    Args:
        prefix: of the names of its tensors.
        last, readers: the norm behind the last block, and what reads it.
        first: a norm in front of the first block, whose output is the stream.
    """
    layer = f"{prefix}encoder.layers.{{layer}}"
    return (
        Norm(f"{layer}.layer_norm1", tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv")),
        Norm(f"{layer}.layer_norm2", (f"{layer}.mlp.fc1",)),
        Norm(f"{prefix}{last}", readers),
        *([Norm(f"{prefix}{first}")] if first else []),
    )


def tower(rules: str, prefix: str) -> str:
    """The rules of a tower alone, whose tensors older versions of transformers name with a prefix."""
    return rules.replace("PREFIX", f"{{{prefix},}}")


BODY = tuple(ROLES[name] for name in ("layer", "hidden", "ffn", "heads", "head_dim", "score"))
PATCHES = tuple(ROLES[name] for name in ("channel", "patch_h", "patch_w", "grid_h", "grid_w"))
LEGACY_END = 2  # with this eos_token_id, a text ends at its highest id, whichever token that is
POSITION = Role("position", "place", "max_position_embeddings")
MEANING = ("hidden_act", "layer_norm_eps")
INERT = ("attention_dropout", "pad_token_id")
DERIVED = {"intermediate_size": lambda c: 4 * c.hidden_size}
DIVIDES = (("num_attention_heads", "hidden_size"),)


def _tower(model_type: str, rules: str, roles: tuple[Role, ...], norms: tuple[Norm, ...], **more: Any) -> Adapter:
    return Adapter(
        model_type,
        "pre",
        parse_rules(rules),
        Roles(*BODY, *roles),
        norms=norms,
        derived=DERIVED,
        divides=DIVIDES,
        epsilon="layer_norm_eps",
        inert=INERT,
        **{"meaning": MEANING, **more},
    )


CLIP_TEXT_MODEL = _tower(
    "clip_text_model",
    tower(CLIP_TEXT, "text_model."),
    (replace(VOCAB, anchored=lambda _: LEGACY_END + 1), POSITION, Role("projection", "identity", "projection_dim")),
    tuple(n for prefix in ("", "text_model.") for n in norms(prefix, "final_layer_norm", ("text_projection",))),
    meaning=(*MEANING, "eos_token_id"),  # the place of the token that stands for the text
)
CLIP_VISION_MODEL = _tower(
    "clip_vision_model",
    tower(CLIP_IMAGE, "vision_model."),
    (*PATCHES, ROLES["special"], Role("projection", "identity", "projection_dim")),
    tuple(
        norm
        for prefix in ("", "vision_model.")
        for norm in norms(prefix, "post_layernorm", ("visual_projection",), "pre_layrnorm")
    ),
    checks=(lengths_are_whole,),
)
SIGLIP_TEXT_MODEL = _tower(
    "siglip_text_model",
    tower(SIGLIP_TEXT, "text_model."),
    (VOCAB, POSITION, Role("projection", "identity", "projection_size")),
    tuple(n for prefix in ("", "text_model.") for n in norms(prefix, "final_layer_norm", (f"{prefix}head",))),
)
SIGLIP_VISION_MODEL = _tower(
    "siglip_vision_model",
    tower(SIGLIP_IMAGE, "vision_model."),
    (
        *PATCHES,
        Role("pooled", "unit", lambda c: c.hidden_size, "hidden_size", follows="hidden"),
        Role("pooler_ffn", "unit", lambda c: c.intermediate_size, "intermediate_size", follows="ffn"),
    ),
    # The head's query is not normalised, so the last norm cannot be folded into queries, keys and values as one.
    tuple(norm for prefix in ("", "vision_model.") for norm in norms(prefix, "post_layernorm")),
    meaning=(*MEANING, "vision_use_head"),
    checks=(lengths_are_whole,),
)
