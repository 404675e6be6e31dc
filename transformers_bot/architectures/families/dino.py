"""DINOv2 and DINOv3: pre-norm encoders of image patches whose blocks are multiplied by a vector before they are added.

The classifier of DINOv2 reads the class token and the mean of the patches side by side: the stream twice. DINOv3 has
no table of positions: rotary angles of a patch's row and of its column, `rope` each, rotate entries i and i + d/2 of a
head together, which makes a head 2 x 2 x `rope` in queries and keys.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..adapter import LABEL, Adapter, Norm, Role, Roles, Scale
from ..language import parse_rules
from .vit import ROLES, lengths_are_whole, width_of_heads

ENDS = """
embeddings.cls_token                                                  : 1 1 hidden
embeddings.register_tokens                                            : 1 register hidden
"""
BLOCK_ENDS = """
BLOCK.{norm1,norm2}.{weight,bias}                                     : hidden
BLOCK.{layer_scale1,layer_scale2}.lambda1                             : hidden
"""
RULES = f"""{ENDS}
embeddings.mask_token                                                 : 1 hidden
embeddings.position_embeddings                                        : 1 (special + grid_h grid_w) hidden
embeddings.patch_embeddings.projection.weight                         : hidden <- channel patch_h patch_w
embeddings.patch_embeddings.projection.bias                           : hidden
{BLOCK_ENDS}
BLOCK.attention.q_proj.weight | BLOCK.attention.attention.query.weight : (heads score) <- hidden
BLOCK.attention.q_proj.bias   | BLOCK.attention.attention.query.bias   : (heads score)
BLOCK.attention.k_proj.weight | BLOCK.attention.attention.key.weight   : (heads ~score) <- hidden
BLOCK.attention.k_proj.bias   | BLOCK.attention.attention.key.bias     : (heads ~score)
BLOCK.attention.v_proj.weight | BLOCK.attention.attention.value.weight : (heads head_dim) <- hidden
BLOCK.attention.v_proj.bias   | BLOCK.attention.attention.value.bias   : (heads head_dim)
BLOCK.attention.o_proj.weight | BLOCK.attention.output.dense.weight    : +hidden <- (heads head_dim)
BLOCK.attention.o_proj.bias   | BLOCK.attention.output.dense.bias      : +hidden
BLOCK.mlp.{{fc1,gate_proj}}.weight                                    : ffn <- hidden
BLOCK.mlp.{{fc1,gate_proj}}.bias                                      : ffn
BLOCK.mlp.up_proj.weight                                              : *ffn <- hidden
BLOCK.mlp.up_proj.bias                                                : *ffn
BLOCK.mlp.weights_in.weight                                           : (ffn + *ffn) <- hidden
BLOCK.mlp.weights_in.bias                                             : (ffn + *ffn)
BLOCK.mlp.{{fc2,down_proj,weights_out}}.weight                        : +hidden <- ffn
BLOCK.mlp.{{fc2,down_proj,weights_out}}.bias                          : +hidden
layernorm.{{weight,bias}}                                             : hidden
classifier.weight                                                     : label <- (2 hidden)
classifier.bias                                                       : label
""".replace("BLOCK", "encoder.layer.{layer}")
V3_RULES = f"""{ENDS}
embeddings.mask_token                                                 : 1 1 hidden
embeddings.patch_embeddings.weight                                    : hidden <- channel patch_h patch_w
embeddings.patch_embeddings.bias                                      : hidden
{BLOCK_ENDS}
BLOCK.attention.q_proj.weight                                         : (heads 2 2 rope) <- hidden
BLOCK.attention.q_proj.bias                                           : (heads 2 2 rope)
BLOCK.attention.k_proj.weight                                         : (heads 2 2 ~rope) <- hidden
BLOCK.attention.k_proj.bias                                           : (heads 2 2 ~rope)
BLOCK.attention.v_proj.weight                                         : (heads head_dim) <- hidden
BLOCK.attention.v_proj.bias                                           : (heads head_dim)
BLOCK.attention.o_proj.weight                                         : +hidden <- (heads head_dim)
BLOCK.attention.o_proj.bias                                           : +hidden
BLOCK.mlp.gate_proj.weight                                            : ffn <- hidden
BLOCK.mlp.gate_proj.bias                                              : ffn
BLOCK.mlp.up_proj.weight                                              : GATED <- hidden
BLOCK.mlp.up_proj.bias                                                : GATED
BLOCK.mlp.down_proj.weight                                            : +hidden <- ffn
BLOCK.mlp.down_proj.bias                                              : +hidden
norm.{{weight,bias}}                                                  : hidden
""".replace("BLOCK", "layer.{layer}").replace("GATED", "*ffn")


def mlp_units(config: Any) -> int:
    """Units of the MLP: a multiple of the width, or two thirds of that, rounded up to a multiple of 8, if gated."""
    units = int(config.hidden_size * config.mlp_ratio)
    return (int(units * 2 / 3) + 7) // 8 * 8 if config.use_swiglu_ffn else units


def rotary_rows(config: Any) -> int:
    """Rotary angles of a patch's row, and as many of its column, each of which rotates a pair of entries."""
    return width_of_heads(config) // 4


def head_is_in_fours(config: Any) -> tuple[str, str] | None:
    """Rotary positions of two axes rotate pairs of entries."""
    length = width_of_heads(config)
    if length % 4 == 0:
        return None
    return (
        f"heads have {length} entries",
        "rotary positions of rows and columns rotate pairs of them: choose a multiple of 4.",
    )


def blocks(layer: str, readers: dict[str, tuple[str, ...]]) -> tuple[Norm, ...]:
    """The norms of a block, each with the matrices that read it."""
    return tuple(Norm(f"{layer}.{norm}", tuple(f"{layer}.{name}" for name in names)) for norm, names in readers.items())


OLD_QUERIES = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
QUERIES = tuple(f"attention.{name}_proj" for name in "qkv")
LAYER = "encoder.layer.{layer}"
MEANING = ("hidden_act", "layer_norm_eps")
# What a backbone returns of its feature maps, and how strongly blocks are scaled and left out at the start of training.
INERT = (
    *("drop_path_rate", "layerscale_value", "apply_layernorm", "reshape_hidden_states"),
    *("stage_names", "out_features", "out_indices"),
)


def stages_are_named(config: Any) -> str:
    """Why layers cannot be moved in a class that returns feature maps: its config names their layers by numbers.

    Other classes do not read these fields.
    """
    if not any(str(name).endswith(("Backbone", "SemanticSegmentation")) for name in config.architectures or []):
        return ""
    stages = getattr(config, "out_indices", None)
    if stages in (None, [config.num_hidden_layers]):
        return ""
    return f"out_indices={stages} names layers by their numbers, which would be others. Set it in the source's config"


# Fields that name the last layer.
STAGES: dict[str, Callable[[Any], list[Any]]] = {
    "stage_names": lambda c: ["stem", *(f"stage{number + 1}" for number in range(c.num_hidden_layers))],
    "out_features": lambda c: [f"stage{c.num_hidden_layers}"],
    "out_indices": lambda c: [c.num_hidden_layers],
}
COMMON = (
    Role("layer", "depth", "num_hidden_layers", stays=stages_are_named),
    *(ROLES[name] for name in ("hidden", "heads", "head_dim", "channel", "patch_h", "patch_w")),
    Role("register", "identity", None, field="num_register_tokens"),
)
DINOV2 = Adapter(
    "dinov2",
    "pre",
    parse_rules(RULES),
    Roles(
        *COMMON,
        Role("ffn", "unit", mlp_units, "mlp_ratio", noun="MLP units"),
        *(ROLES[name] for name in ("score", "grid_h", "grid_w", "special")),
        LABEL,
    ),
    norms=(
        *blocks(LAYER, {"norm1": (*QUERIES, *OLD_QUERIES)}),
        *blocks(LAYER, {"norm2": tuple(f"mlp.{name}" for name in ("fc1", "gate_proj", "up_proj", "weights_in"))}),
        Norm("layernorm", ("classifier",)),
    ),
    scales=(
        Scale(f"{LAYER}.layer_scale1.lambda1", (f"{LAYER}.attention.o_proj", f"{LAYER}.attention.output.dense")),
        Scale(
            f"{LAYER}.layer_scale2.lambda1",
            tuple(f"{LAYER}.mlp.{name}" for name in ("fc2", "down_proj", "weights_out")),
        ),
    ),
    divides=(("num_attention_heads", "hidden_size"),),
    meaning=(*MEANING, "qkv_bias", "use_swiglu_ffn"),
    derived=STAGES,
    epsilon="layer_norm_eps",
    inert=(*INERT, "use_mask_token"),  # whether training hides patches
    only={"head_dim": width_of_heads},
    checks=(lengths_are_whole,),
)
# How transformers resizes the table of positions.
INTERPOLATION = ("interpolate_antialias", "interpolate_offset")
DINOV2_WITH_REGISTERS = replace(DINOV2, model_type="dinov2_with_registers", inert=(*DINOV2.inert, *INTERPOLATION))
V3_LAYER = "layer.{layer}"
DINOV3_VIT = Adapter(
    "dinov3_vit",
    "pre",
    parse_rules(V3_RULES),
    Roles(
        *COMMON,
        ROLES["ffn"],
        Role("rope", "frequency", rotary_rows, "num_attention_heads", within="heads", noun="rotary angles of an axis"),
    ),
    norms=(
        *blocks(V3_LAYER, {"norm1": QUERIES, "norm2": ("mlp.gate_proj", "mlp.up_proj")}),
        Norm("norm"),
    ),
    scales=(
        Scale(f"{V3_LAYER}.layer_scale1.lambda1", (f"{V3_LAYER}.attention.o_proj",)),
        Scale(f"{V3_LAYER}.layer_scale2.lambda1", (f"{V3_LAYER}.mlp.down_proj",)),
    ),
    derived={**STAGES, "intermediate_size": lambda c: 4 * c.hidden_size},
    divides=(("num_attention_heads", "hidden_size"),),
    meaning=(*MEANING, "rope_theta", "query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias", "use_gated_mlp"),
    epsilon="layer_norm_eps",
    inert=(*INERT, "attention_dropout", "image_size", *(f"pos_embed_{how}" for how in ("shift", "jitter", "rescale"))),
    checks=(lengths_are_whole, head_is_in_fours),
)
