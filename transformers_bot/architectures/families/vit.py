"""ViT and DeiT: pre-norm encoders of image patches, with old and new names of tensors in transformers."""

from dataclasses import replace
from numbers import Integral
from typing import Any

from ...console.text import brief
from ..adapter import LABEL, Adapter, Norm, Role, Roles
from ..language import parse_rules

RULES = """
embeddings.{cls_token,mask_token,distillation_token}                : 1 1 hidden
embeddings.position_embeddings                                      : 1 (special + grid_h grid_w) hidden
embeddings.patch_embeddings.projection.weight                       : hidden <- channel patch_h patch_w
embeddings.patch_embeddings.projection.bias                         : hidden
BLOCK.{layernorm_before,layernorm_after}.{weight,bias}              : hidden
BLOCK.attention.q_proj.weight | BLOCK.attention.attention.query.weight : (heads score) <- hidden
BLOCK.attention.q_proj.bias   | BLOCK.attention.attention.query.bias   : (heads score)
BLOCK.attention.k_proj.weight | BLOCK.attention.attention.key.weight   : (heads ~score) <- hidden
BLOCK.attention.k_proj.bias   | BLOCK.attention.attention.key.bias     : (heads ~score)
BLOCK.attention.v_proj.weight | BLOCK.attention.attention.value.weight : (heads head_dim) <- hidden
BLOCK.attention.v_proj.bias   | BLOCK.attention.attention.value.bias   : (heads head_dim)
BLOCK.attention.o_proj.weight | BLOCK.attention.output.dense.weight    : +hidden <- (heads head_dim)
BLOCK.attention.o_proj.bias   | BLOCK.attention.output.dense.bias      : +hidden
BLOCK.mlp.fc1.weight          | BLOCK.intermediate.dense.weight        : ffn <- hidden
BLOCK.mlp.fc1.bias            | BLOCK.intermediate.dense.bias          : ffn
BLOCK.mlp.fc2.weight          | BLOCK.output.dense.weight              : +hidden <- ffn
BLOCK.mlp.fc2.bias            | BLOCK.output.dense.bias                : +hidden
layernorm.{weight,bias}                                             : hidden
pooler.dense.weight                                                 : pooler <- hidden
pooler.dense.bias                                                   : pooler
{classifier,cls_classifier,distillation_classifier}.weight          : label <- hidden
{classifier,cls_classifier,distillation_classifier}.bias            : label
decoder.0.weight                                                    : pixel <- hidden 1 1
decoder.0.bias                                                      : pixel
""".replace("BLOCK", "{layers,encoder.layer}.{layer}")


def pair(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """(height, width) of an image or patch size, which may be one number for a square."""
    return (value[0], value[1]) if isinstance(value, (tuple, list)) else (value, value)


def width_of_heads(config: Any) -> int:
    """The number of entries of a head."""
    return int(config.hidden_size // config.num_attention_heads)


def lengths_are_whole(config: Any) -> tuple[str, str] | None:
    """What is wrong with the image or patch size; None if each is one or two whole numbers."""
    for name in ("image_size", "patch_size"):
        value = getattr(config, name)
        if isinstance(value, (list, tuple)) and len(value) != 2:
            return f"{name} is {brief(repr(value))}", "give one length, or height and width."
        for length in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(length, bool) or not isinstance(length, Integral) or int(length) < 1:
                return f"{name} is {brief(repr(length))}", "it must be a whole number of at least 1."
    return None


def no_patch_left(config: Any) -> str:
    return f"image_size {config.image_size} is smaller than patch_size {config.patch_size}."


def side(name: str, index: int) -> Role:
    """Rows (0) or columns (1) of the grid of patches."""
    return Role(
        name,
        "grid",
        lambda c: pair(c.image_size)[index] // pair(c.patch_size)[index],
        field="image_size",
        empty=no_patch_left,
    )


ROLES = Roles(
    Role("layer", "depth", "num_hidden_layers"),
    Role("hidden", "stream", "hidden_size", noun="hidden units"),
    Role("ffn", "unit", "intermediate_size", noun="MLP units"),
    Role("heads", "unit", "num_attention_heads"),
    Role("head_dim", "entry", width_of_heads, within="heads"),
    Role("score", "entry", width_of_heads, within="heads", follows="head_dim"),
    Role("pooler", "unit", "pooler_output_size", follows="hidden"),
    Role("channel", "identity", "num_channels"),
    Role("patch_h", "pixel", lambda c: pair(c.patch_size)[0], "patch_size"),
    Role("patch_w", "pixel", lambda c: pair(c.patch_size)[1], "patch_size"),
    *(side("grid_h", 0), side("grid_w", 1)),
    LABEL,
    Role("pixel", "identity", None, field="encoder_stride and num_channels"),
    Role("special", "identity", 1, field="the model type"),
)

VIT = Adapter(
    "vit",
    "pre",
    parse_rules(RULES),
    ROLES,
    # With old and new names. A base model returns the last norm's output, so its readers are the task heads.
    norms=(
        Norm("layers.{layer}.layernorm_before", tuple(f"layers.{{layer}}.attention.{p}_proj" for p in "qkv")),
        Norm("layers.{layer}.layernorm_after", ("layers.{layer}.mlp.fc1",)),
        Norm(
            "encoder.layer.{layer}.layernorm_before",
            tuple(f"encoder.layer.{{layer}}.attention.attention.{p}" for p in ("query", "key", "value")),
        ),
        Norm("encoder.layer.{layer}.layernorm_after", ("encoder.layer.{layer}.intermediate.dense",)),
        Norm("layernorm", ("classifier", "cls_classifier", "distillation_classifier", "decoder.0")),
    ),
    derived={"intermediate_size": lambda c: 4 * c.hidden_size, "pooler_output_size": lambda c: c.hidden_size},
    divides=(("num_attention_heads", "hidden_size"),),
    meaning=("hidden_act", "layer_norm_eps", "qkv_bias", "pooler_act"),
    epsilon="layer_norm_eps",
    checks=(lengths_are_whole,),
    tensors=("encoder_stride",),  # of the head that predicts hidden patches
    learning_rate=5e-4,  # for batches of 256 (the paper's supplement, C.5)
    locked=True,
)
# Two tokens that are no patches: one for the class, one that learns from a teacher.
DEIT = replace(VIT, model_type="deit", roles=ROLES.with_(Role("special", "identity", 2, field="the model type")))
