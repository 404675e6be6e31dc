"""The facts about an architecture that resizing needs."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from .axes import Rule
from .roles import Roles


@dataclass(frozen=True)
class Norm:
    """A norm of an architecture.

    Example:
        >>> Norm("h.{layer}.ln_1", readers=("h.{layer}.attn.c_attn",)).kind
        'layer'

    Attributes:
        name: of its module, without ".weight".
        readers: the matrices (without ".weight") that read its output; empty where the residual stream
            itself goes on from it (post-norm).
        kind: "layer" takes the mean away, "rms" does not.
        gain: "w" multiplies by the weight, "1+w" by one more.
        undoes: post-norm only: the last norm of the block below; of an identity block this norm, its
            first one, undoes what that did.
    """

    name: str
    readers: tuple[str, ...] = ()
    kind: Literal["layer", "rms"] = "layer"
    gain: Literal["w", "1+w"] = "w"
    undoes: str = ""


@dataclass(frozen=True)
class Adapter:
    """One architecture as data.

    Attributes:
        model_type: transformers' `config.model_type`.
        norm: "pre" (a block with zero output matrices is the identity) or "post" (it is not).
        rules: what the axes of every tensor mean; names without the base model's prefix.
        roles: what the entries of these axes are, and which config fields set their number.
        norms: every norm, and what reads it.
        derived: config field -> the rule it follows while a config leaves it at that rule's value.
        divides: pairs of config fields of which the first must divide the second.
        gains: what the forward pass multiplies by that depends on a size, as functions of the config: of
            scores by the role they sum over, of a module's output by its name. Scores without an entry, or
            where it gives None, are divided by the root of that role's length.
        activation: the config field of the function behind MLP units.
        epsilon: the config field of the norms' epsilon.
        readout: the stream before a tied output embedding is part of the base model too.
        meaning: config fields that change what the weights compute, beyond their sizes.
        causal_flag: a config field without which a class that predicts the next word sees it.
        depth_flag: a config field under which a layer's meaning depends on its number.
        inert: config fields of this type that do not change what a trained model computes.
        only: config field -> the one value, or a function of the config that gives it, which transformers
            computes; another value is refused.
        checks: functions of a config that say what is wrong with it and what it must be, or nothing.
        clash: says of a role, a tensor's name and two configs why their lengths differ where the fields that
            usually set them do not tell; nothing where they do.
        crossing: patterns of the tensors of cross attention, which are left out of the target.
        foreign: pattern of tensors -> what they are, where they make a checkpoint one that is refused.
        buffers: patterns of constants that older versions stored beside the weights, such as masks.
    """

    model_type: str
    norm: Literal["pre", "post"]
    rules: tuple[Rule, ...]
    roles: Roles
    norms: tuple[Norm, ...] = ()
    derived: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    divides: tuple[tuple[str, str], ...] = ()
    gains: Mapping[str, Callable[[Any], float | None]] = field(default_factory=dict)
    activation: str = "hidden_act"
    epsilon: str = ""
    readout: bool = False
    meaning: tuple[str, ...] = ()
    causal_flag: str | None = None
    depth_flag: str | None = None
    inert: tuple[str, ...] = ()
    only: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[Callable[[Any], tuple[str, str] | None], ...] = ()
    clash: Callable[[str, str, Any, Any], str | None] | None = None
    crossing: tuple[str, ...] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()

    @cached_property
    def norm_names(self) -> Mapping[str, Norm]:
        """The norms by name."""
        return {norm.name: norm for norm in self.norms}

    @cached_property
    def scored(self) -> tuple[str, ...]:
        """The roles that scores sum over: what one side writes the other reads."""
        return tuple(dict.fromkeys(factor.role for rule in self.rules for factor in rule.factors if factor.crosses))

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor, named without the base model's prefix, is one of `buffers`."""
        return any(re.fullmatch(pattern, name) for pattern in self.buffers)

    def is_left_out(self, name: str) -> bool:
        """Whether a tensor, named without the base model's prefix, is one of `buffers` or of `crossing`."""
        return self.is_buffer(name) or any(re.fullmatch(pattern, name) for pattern in self.crossing)
