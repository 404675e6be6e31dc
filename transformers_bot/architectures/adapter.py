"""The facts about an architecture that resizing needs."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .axes import Rule

RoleSizes = Mapping[str, str | int | Callable[[Any], int] | None]


@dataclass(frozen=True)
class Adapter:
    """One architecture as data.

    Attributes:
        model_type: transformers' `config.model_type`.
        norm: "pre" (a block with zero output matrices is the identity) or "post" (it is not).
        rules: what the axes of every tensor mean; names without the base model's prefix.
        sizes: role -> config field, a function of the config, a fixed number, or None where only the
            tensor knows.
        derived: config field -> the rule it follows while a config leaves it at that rule's value.
        readout: the stream before a tied output embedding is part of the base model too.
        meaning: config fields that change what the weights compute, beyond their sizes.
        depth_flag: a config field under which a layer's meaning depends on its number.
        undoes: post-norm only: a block's first norm -> its last, as names without ".weight"; an
            identity block's first norm undoes what the last norm of the block below did.
        norms: every norm's name without ".weight" -> the matrices (without ".weight") that read its
            output; empty where the residual stream itself goes on from it (post-norm).
        inert: config fields of this type that do not change what a trained model computes.
        only: config field -> the one value, or a function of the config that gives it, which transformers
            computes; another value is refused.
        crossing: patterns of the tensors of cross attention, which are left out of the target.
        foreign: pattern of tensors -> what they are, where they make a checkpoint one that is refused.
        buffers: patterns of constants that older versions stored beside the weights, such as masks.
    """

    model_type: str
    norm: Literal["pre", "post"]
    rules: tuple[Rule, ...]
    sizes: RoleSizes
    derived: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    readout: bool = False
    meaning: tuple[str, ...] = ()
    depth_flag: str | None = None
    undoes: Mapping[str, str] = field(default_factory=dict)
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()
    only: Mapping[str, Any] = field(default_factory=dict)
    crossing: tuple[str, ...] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor, named without the base model's prefix, is one of `buffers`."""
        return any(re.fullmatch(pattern, name) for pattern in self.buffers)

    def is_left_out(self, name: str) -> bool:
        """Whether a tensor, named without the base model's prefix, is one of `buffers` or of `crossing`."""
        return self.is_buffer(name) or any(re.fullmatch(pattern, name) for pattern in self.crossing)
