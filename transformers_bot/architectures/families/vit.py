"""ViT and DeiT: pre-norm encoders on image patches; both generations of transformers' names."""

from ..adapter import Adapter, RoleSizes
from ..axes import parse_rules

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
    """Image and patch sizes are one number for squares, or (height, width)."""
    return (value[0], value[1]) if isinstance(value, (tuple, list)) else (value, value)


SIZES: RoleSizes = {
    "layer": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "head_dim": lambda c: c.hidden_size // c.num_attention_heads,
    "score": lambda c: c.hidden_size // c.num_attention_heads,
    "ffn": "intermediate_size",
    "pooler": "pooler_output_size",
    "channel": "num_channels",
    "patch_h": lambda c: pair(c.patch_size)[0],
    "patch_w": lambda c: pair(c.patch_size)[1],
    "grid_h": lambda c: pair(c.image_size)[0] // pair(c.patch_size)[0],
    "grid_w": lambda c: pair(c.image_size)[1] // pair(c.patch_size)[1],
    "label": None,
    "pixel": None,
}
DERIVED = {"intermediate_size": lambda c: 4 * c.hidden_size, "pooler_output_size": lambda c: c.hidden_size}
MEANING = ("hidden_act", "layer_norm_eps", "qkv_bias", "pooler_act")
# norm -> its readers, in both generations of names.
BLOCK_NORMS = {
    "layers.{layer}.layernorm_before": tuple(f"layers.{{layer}}.attention.{p}_proj" for p in "qkv"),
    "layers.{layer}.layernorm_after": ("layers.{layer}.mlp.fc1",),
    "encoder.layer.{layer}.layernorm_before": tuple(
        f"encoder.layer.{{layer}}.attention.attention.{p}" for p in ("query", "key", "value")
    ),
    "encoder.layer.{layer}.layernorm_after": ("encoder.layer.{layer}.intermediate.dense",),
}
# The last norm's output is what a base model returns, so only heads count as its readers.
NORMS = {**BLOCK_NORMS, "layernorm": ("classifier", "cls_classifier", "distillation_classifier", "decoder.0")}

VIT = Adapter("vit", "pre", parse_rules(RULES), {**SIZES, "special": 1}, DERIVED, meaning=MEANING, norms=NORMS)
DEIT = Adapter("deit", "pre", parse_rules(RULES), {**SIZES, "special": 2}, DERIVED, meaning=MEANING, norms=NORMS)
