"""Roles: what the entries of an axis are, and so what a method may do with them.

A method never asks for a role by its name. It asks for the kind:

    kind        is                                                      a method may
    depth       the layers of one stack                                 pick, repeat, insert, filter
    stream      one basis for a whole network, or for one tower of it   turn, order, filter
    unit        taken whole, in any order: MLP units, heads             order, pick, merge, copy
    entry       the inside of a unit: head_dim                          filter
    frequency   rotary pairs                                            keep, take every n-th, insert zeros
    place       positions of a text                                     crop, interpolate
    grid        one side of an image's grid of patches                  interpolate
    pixel       rows or columns of an image patch                       nothing; neighbours are alike
    identity    entries of their own: vocabulary, labels, channels      nothing
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

Kind = Literal["depth", "stream", "unit", "entry", "frequency", "place", "grid", "pixel", "identity"]
KINDS: tuple[str, ...] = get_args(Kind)
FIXED: tuple[Kind, ...] = ("pixel", "identity")  # never resampled, only kept
RESIZED: tuple[Kind, ...] = ("depth", "stream", "unit", "entry", "frequency")  # what makes a model larger or smaller


@dataclass(frozen=True)
class Role:
    """One role of an architecture.

    Example:
        >>> Role("heads", "unit", "num_attention_heads").field
        'num_attention_heads'

    Attributes:
        name: as rules write it.
        kind: what a method may do with its entries, see the module.
        size: a config field, a function of the config, a fixed number, or None where only the tensor knows.
        field: what a user sets to change it, for messages; `size` where that is a field.
        follows: the role whose entries these are, too, and whose maps it takes: queries and keys number
            the same entries as values, the stream behind the last norm is the stream.
        within: the unit that holds these entries, or (queries of a group) these units.
        lists: of a depth: config fields with one entry a layer, which travel with the layers.
        noun: the entries in words, in the plural.
        remedy: what else a user can do where source and target differ in a role that is never resampled.
        empty: says of a config why nothing is left of the role.
    """

    name: str
    kind: Kind
    size: "str | int | Callable[[Any], int] | None" = dataclasses.field(default=None, compare=False)
    field: str = ""
    follows: str = ""
    within: str = ""
    lists: tuple[str, ...] = ()
    noun: str = ""
    remedy: str = ""
    empty: Callable[[Any], str] | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.field:
            object.__setattr__(self, "field", self.size if isinstance(self.size, str) else self.name)
        if not self.noun:
            object.__setattr__(self, "noun", self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without its functions, which no process can send: a plan has no more use for them."""
        size = None if callable(self.size) else self.size
        plain = (self.field, self.follows, self.within, self.lists, self.noun, self.remedy)
        return Role, (self.name, self.kind, size, *plain)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Role":
        return self


VOCAB = Role(
    "vocab",
    "identity",
    "vocab_size",
    remedy="To keep the rows, save the source with transformers' resize_token_embeddings first.",
)
SEGMENT = Role("segment", "identity", "type_vocab_size")
LABEL = Role("label", "identity", None, field="num_labels")


class Roles(Mapping[str, Role]):
    """The roles of an architecture by name, and by kind.

    >>> roles = Roles(Role("layer", "depth", "n_layer"), Role("ffn", "unit", "n_inner"))
    >>> roles.of("unit"), roles["layer"].field
    (('ffn',), 'n_layer')
    """

    def __init__(self, *roles: Role) -> None:
        self._roles = {role.name: role for role in roles}
        names = [role.name for role in roles]
        self.repeated = [name for name in self._roles if names.count(name) > 1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Roles, tuple(self._roles.values())

    def __getitem__(self, name: str) -> Role:
        return self._roles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._roles)

    def __len__(self) -> int:
        return len(self._roles)

    def __repr__(self) -> str:
        return f"Roles({', '.join(f'{role.name}: {role.kind}' for role in self._roles.values())})"

    def with_(self, *roles: Role) -> "Roles":
        """The same with some added, or in place of those of the same name."""
        return Roles(*{**self._roles, **{role.name: role for role in roles}}.values())

    def of(self, *kinds: str) -> tuple[str, ...]:
        """All roles of these kinds, in the order of `kinds`."""
        return tuple(role.name for kind in kinds for role in self._roles.values() if role.kind == kind)

    def kind(self, name: str) -> str:
        """The kind of a role; of a fixed number ("") it is that of what is never resampled."""
        return self._roles[name].kind if name else "identity"

    def leader(self, name: str) -> str:
        """The role whose maps a role takes: itself, unless it follows another."""
        return self._roles[name].follows or name if name else name

    def leading(self, *kinds: str) -> tuple[str, ...]:
        """The roles of these kinds that follow no other."""
        return tuple(name for name in self.of(*kinds) if not self._roles[name].follows)

    def followers(self, name: str) -> tuple[str, ...]:
        """A role and all that follow it and have its kind: a permutation moves them together."""
        kind = self._roles[name].kind
        return (name, *(role.name for role in self._roles.values() if role.follows == name and role.kind == kind))

    def moved_with(self, name: str) -> tuple[str, ...]:
        """A role and those whose entries are numbered alike in the network: with a stream all that follows it."""
        network_wide = self.is_network_wide(name)
        return (name, *(role.name for role in self._roles.values() if network_wide and role.follows == name))

    def is_whole(self, name: str) -> bool:
        """Whether a unit holds entries of its own, as a head does, so that it may be taken whole."""
        return any(role.within == name for role in self._roles.values())

    def is_network_wide(self, name: str) -> bool:
        """Whether entries are the same for all layers: the stream, and what follows it."""
        return self.kind(self.leader(name)) == "stream"

    @cached_property
    def depths(self) -> tuple[str, ...]:
        """The stacks of layers."""
        return self.leading("depth")

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """The residual streams, one for every tower."""
        return self.leading("stream")

    @cached_property
    def units(self) -> tuple[str, ...]:
        """The units: plain ones first, then those that hold entries."""
        return tuple(sorted(self.leading("unit"), key=self.is_whole))

    @cached_property
    def entries(self) -> tuple[str, ...]:
        """What units hold: entries, then rotary frequencies."""
        return self.leading("entry", "frequency")

    @cached_property
    def echoes(self) -> tuple[str, ...]:
        """Roles that say no more than the one they follow: the same entries, of the same kind."""
        return tuple(r.name for r in self._roles.values() if r.follows and self.kind(r.follows) == r.kind)

    @cached_property
    def resized(self) -> tuple[str, ...]:
        """What a resize may change, in the order in which it is told: depths, streams, units, entries."""
        return (*self.depths, *self.streams, *self.units, *self.entries)
