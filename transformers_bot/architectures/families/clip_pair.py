"""CLIP and SigLIP whole: a tower of texts and one of images, whose outputs are compared with each other.

Roles, layers and config fields are those of the towers with the tower's name in front: `text_hidden` is
`text_config.hidden_size`. CLIP compares what both towers' projections write. SigLIP projects texts into the space in
which its tower of images ends, so that space has the width of the images' stream.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from transformers import GenerationConfig

from ..adapter import LABEL, Adapter, Norm, Role, Roles
from ..language import parse_rules
from . import clip

Side = Literal["text", "vision"]
SHARED = ("special", "label", "pooled", "projection")  # roles without a tower's name in front
# Config files of older versions repeat these in each tower's config.
OLDER = (*GenerationConfig().to_dict(), "is_decoder", "add_cross_attention", "dropout")


def of_side(side: Side, compute: Callable[[Any], Any], config: Any) -> Any:
    """A function of a tower's config, of the whole config."""
    return compute(getattr(config, f"{side}_config"))


def _named(side: Side, name: str) -> str:
    return name if not name or name in SHARED else f"{side}_{name}"


def role(side: Side, own: Role) -> Role:
    """A tower's role in the whole model."""
    size = own.size
    if isinstance(size, str):
        size = f"{side}_config.{size}"
    return replace(
        own,
        name=_named(side, own.name),
        size=partial(of_side, side, size) if callable(size) else size,
        field=f"{side}_config.{own.field}",
        follows=_named(side, own.follows),
        within=_named(side, own.within),
        noun=f"{side} {own.noun}",
        empty=partial(of_side, side, own.empty) if own.empty else None,
        anchored=partial(of_side, side, own.anchored) if own.anchored else None,
    )


def rules(side: Side, text: str) -> str:
    """A tower's rules in the whole model."""
    lines = [line.partition(":") for line in text.replace("PREFIX", f"{side}_model.").splitlines() if line.strip()]
    axes = [re.sub(r"[a-z]\w+", lambda word: _named(side, word[0]), line[2]) for line in lines]
    names = [line[0].replace("{layer}", f"{{{side}_layer}}") for line in lines]
    return "\n".join(f"{name} : {its_axes}" for name, its_axes in zip(names, axes, strict=True))


def norms(side: Side, last: str, readers: tuple[str, ...] = (), first: str = "") -> tuple[Norm, ...]:
    """A tower's norms in the whole model."""

    def named(name: str) -> str:
        return name.replace("{layer}", f"{{{side}_layer}}")

    own = clip.norms(f"{side}_model.", last, readers, first)
    return tuple(replace(norm, name=named(norm.name), readers=tuple(map(named, norm.readers))) for norm in own)


def whole(
    model_type: str, text: Adapter, vision: Adapter, own_rules: str, own_roles: tuple[Role, ...], **more: Any
) -> Adapter:
    """The adapter of a model of two towers, from those of the towers.

    Args:
        own_rules, own_roles: of all its tensors, and of the roles that belong to no tower.
    """
    sides: tuple[tuple[Side, Adapter], ...] = (("text", text), ("vision", vision))
    names = {role.name for role in own_roles}
    roles = [
        role(side, own) for side, tower in sides for own in tower.roles.values() if _named(side, own.name) not in names
    ]

    def paths(part: str) -> tuple[str, ...]:
        return tuple(f"{side}_config.{name}" for side, tower in sides for name in getattr(tower, part))

    return Adapter(
        model_type,
        "pre",
        parse_rules(own_rules),
        Roles(*roles, *own_roles, LABEL),
        derived={
            f"{side}_config.{n}": partial(of_side, side, f) for side, tower in sides for n, f in tower.derived.items()
        },
        divides=tuple(
            (f"{side}_config.{part}", f"{side}_config.{length}")
            for side, tower in sides
            for part, length in tower.divides
        ),
        activation="text_config.hidden_act",
        meaning=paths("meaning"),
        inert=(
            *paths("inert"),
            *(f"{side}_config.{name}" for side, _ in sides for name in (*OLDER, "projection_dim")),
            "logit_scale_init_value",
        ),
        checks=tuple(partial(of_side, side, check) for side, tower in sides for check in tower.checks),
        **more,
    )


SPECIAL = Role("special", "identity", 1, field="the model type")
CLIP = whole(
    "clip",
    clip.CLIP_TEXT_MODEL,
    clip.CLIP_VISION_MODEL,
    rules("text", clip.CLIP_TEXT)
    + "\n"
    + rules("vision", clip.CLIP_IMAGE)
    + """
logit_scale       : ()
classifier.weight : label <- vision_hidden
classifier.bias   : label
""",
    (SPECIAL, Role("projection", "identity", "projection_dim")),
    norms=(
        *norms("text", "final_layer_norm", ("text_projection",)),
        *norms("vision", "post_layernorm", ("visual_projection",), "pre_layrnorm"),
    ),
)


def text_ends_where_images_do(config: Any) -> tuple[str, str] | None:
    """Outputs of both towers are compared entry by entry."""
    texts, images = config.text_config.projection_size, config.vision_config.hidden_size
    if texts == images:
        return None
    return (
        f"text_config.projection_size is {texts} and vision_config.hidden_size {images}",
        "texts and images are compared, so both must be the same.",
    )


SIGLIP = whole(
    "siglip",
    clip.SIGLIP_TEXT_MODEL,
    clip.SIGLIP_VISION_MODEL,
    rules("text", clip.SIGLIP_TEXT.replace(": projection", ": pooled"))
    + "\n"
    + rules("vision", clip.SIGLIP_IMAGE)
    + """
{logit_scale,logit_bias} : 1
classifier.weight        : label <- vision_hidden
classifier.bias          : label
""",
    (
        Role(
            "pooled",
            "unit",
            lambda c: c.vision_config.hidden_size,
            "vision_config.hidden_size",
            follows="vision_hidden",
        ),
        Role("projection", "identity", None),
    ),
    norms=(
        *norms("text", "final_layer_norm", ("text_model.head",)),
        *norms("vision", "post_layernorm"),
    ),
)
SIGLIP = replace(
    SIGLIP,
    derived={**SIGLIP.derived, "text_config.projection_size": lambda c: c.vision_config.hidden_size},
    checks=(*SIGLIP.checks, text_ends_where_images_do),
)
