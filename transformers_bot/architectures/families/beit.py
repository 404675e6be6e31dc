"""BEiT: a ViT whose blocks are multiplied by a vector before they are added, with a table of relative positions.

A table gives every head a bias for each offset of two patches and for the class token, in every layer or in one table
for all. Its entries belong to the grid of patches, so an image keeps its size; heads take their column along.
"""

from dataclasses import replace

from ..adapter import VOCAB, Norm, Role, Roles, Scale
from ..language import parse_rules
from .dino import STAGES, stages_are_named
from .vit import ROLES, VIT

TABLES = """
BLOCK.{lambda_1,lambda_2}                                                    : hidden
BLOCK.relative_position_bias.relative_position_bias_table | \
BLOCK.attention.attention.relative_position_bias.relative_position_bias_table : offset heads
shared_position_bias.relative_position_bias_table | \
encoder.relative_position_bias.relative_position_bias_table                   : offset heads
pooler.layernorm.{weight,bias}                                               : hidden
lm_head.weight                                                               : vocab <- hidden
lm_head.bias                                                                 : vocab
""".replace("BLOCK", "{layers,encoder.layer}.{layer}")
# BEiT has neither ViT's dense pooler nor its decoder of hidden patches.
LEFT_OUT = ("pooler", "pixel")
SHARED = tuple(rule for rule in VIT.rules if not set(rule.roles).intersection(LEFT_OUT))
NEW, OLD = "layers.{layer}", "encoder.layer.{layer}"
# Loss and feature maps of the segmentation heads, and how strongly blocks are scaled and left out in training.
INERT = (
    *("drop_path_rate", "layer_scale_init_value", "stage_names", "reshape_hidden_states", "use_mask_token"),
    *("out_features", "out_indices"),
    *("pool_scales", "use_auxiliary_head", "auxiliary_loss_weight", "auxiliary_channels", "auxiliary_num_convs"),
    *("auxiliary_concat_input", "semantic_loss_ignore_index", "add_fpn", "segmentation_indices"),
)

BEIT = replace(
    VIT,
    model_type="beit",
    rules=SHARED + parse_rules(TABLES),
    roles=Roles(*(role for role in ROLES.values() if role.name not in LEFT_OUT)).with_(
        Role("layer", "depth", "num_hidden_layers", stays=stages_are_named),
        Role("offset", "identity", None, field="image_size and patch_size", noun="offsets of patches"),
        VOCAB,
    ),
    norms=(*VIT.norms[:-1], Norm("pooler.layernorm", ("classifier",)), Norm("layernorm", ("classifier", "lm_head"))),
    scales=(
        Scale(f"{NEW}.lambda_1", (f"{NEW}.attention.o_proj",)),
        Scale(f"{NEW}.lambda_2", (f"{NEW}.mlp.fc2",)),
        Scale(f"{OLD}.lambda_1", (f"{OLD}.attention.output.dense",)),
        Scale(f"{OLD}.lambda_2", (f"{OLD}.output.dense",)),
    ),
    derived=STAGES,
    meaning=(
        *("hidden_act", "layer_norm_eps", "use_mean_pooling", "use_absolute_position_embeddings"),
        *("use_relative_position_bias", "use_shared_relative_position_bias"),
    ),
    inert=INERT,
    tensors=(),
    locked=False,
)
