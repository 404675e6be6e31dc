"""The axis language: one line says what every axis of a tensor means.

    encoder.layer.{layer}.attention.self.query.weight : (heads score) <- hidden
    h.{layer}.attn.c_proj.{weight}                    : (heads head_dim) -> +hidden
    embeddings.position_embeddings                    : 1 (special + grid_h grid_w) hidden

Left of the colon stand the tensor's names (without the base model's prefix), alternatives split
by `|`, `{weight,bias}` for several endings and `{layer}` for the depth. Right of it stand the
axes in stored order:

    role            an axis of that role;   3         an axis that is never resized
    (a b)           the product of two;     (a + b c) segments one after another
    x <- y, y -> x  a map that writes x and reads y; without an arrow all axes are written
    +x              added onto the residual stream x: the layer count scales it
    ~x              the reading side of a product: keys read what queries write
    *x              multiplied onto the other writer of x, as the gate of an MLP is

A network with two stacks of layers has a word for each, the second one ending in `_layer`:
`decoder.layers.{decoder_layer}.fc1.weight`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..errors import PlanError

Sizes = Mapping[str, int | None]  # role -> length; None: taken from the tensor itself
DEPTH = r"\{((?:[a-z]+_)*layer)\}"  # in names: a layer's number
At = tuple[str, int] | None  # a stack of layers and the number in it; None outside of the layers
FACTOR = r"([~*]?)([a-z][a-z_0-9]*)"


@dataclass(frozen=True)
class Factor:
    """One role (or fixed number) within an axis, and the side of the map it is on.

    Attributes:
        role: empty for a fixed number, which is `size`.
        reads: on the reading side; `crosses`: although the axis is written (keys).
        multiplies: onto the other writer of the same units.
    """

    role: str
    size: int | None
    reads: bool
    crosses: bool = False
    multiplies: bool = False

    def length(self, sizes: Sizes) -> int | None:
        return sizes[self.role] if self.role else self.size


@dataclass(frozen=True)
class Axis:
    """Segments one after another, each a product of factors, the last factor fastest."""

    segments: tuple[tuple[Factor, ...], ...]

    def length(self, sizes: Sizes) -> int | None:
        total = 0
        for segment in self.segments:
            product = 1
            for factor in segment:
                length = factor.length(sizes)
                if length is None:
                    return None
                product *= length
            total += product
        return total


@dataclass(frozen=True)
class Rule:
    """A name pattern and the meaning of the axes of the tensors it names."""

    text: str
    names: str
    axes: tuple[Axis, ...]
    adds: bool  # writes onto the residual stream
    maps: bool  # has an arrow: a matrix that reads one axis and writes another

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(_regex(name.strip()) for name in self.names.split("|")))

    @cached_property
    def depth(self) -> str:
        """The word for the layer's number in its names, which is the role of a depth; empty outside of the layers."""
        found = re.search(DEPTH, self.names)
        return found[1] if found else ""

    @property
    def layered(self) -> bool:
        return bool(self.depth)

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        return tuple(factor for axis in self.axes for segment in axis.segments for factor in segment)

    @property
    def roles(self) -> list[str]:
        return [factor.role for factor in self.factors if factor.role]

    def match(self, name: str) -> tuple[bool, int | None]:
        """Whether the rule names this tensor, and its layer if it has one."""
        found = self.pattern.fullmatch(name)
        if not found:
            return False, None
        layer = next((value for value in found.groups() if value is not None), None)
        return True, None if layer is None else int(layer)

    def template(self, name: str) -> str:
        """The name with {layer}, or another depth's word, for its number: the same for a stack of such tensors."""
        found = self.pattern.fullmatch(name)
        group = found.lastindex if found else None
        if found is None or group is None:
            return name
        return f"{name[: found.start(group)]}{{{self.depth}}}{name[found.end(group) :]}"

    def shape(self, sizes: Sizes, actual: tuple[int, ...]) -> tuple[int, ...]:
        """The predicted shape; axes whose length only the tensor knows are taken from `actual`."""
        lengths = [axis.length(sizes) for axis in self.axes]
        if len(lengths) != len(actual):
            return tuple(-1 if length is None else length for length in lengths)
        return tuple(a if length is None else length for length, a in zip(lengths, actual, strict=True))


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Read one rule a line; empty lines and `#` comments are skipped.

    >>> rule, = parse_rules("mlp.{weight,bias} : ffn")
    >>> rule.match("mlp.bias"), rule.shape({"ffn": 8}, (8,))
    ((True, None), (8,))

    Raises:
        PlanError: a line that is no rule, with what is wrong in it.
    """
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return tuple(_parse_rule(line) for line in lines if line)


def find_rule(rules: tuple[Rule, ...], name: str) -> tuple[Rule, int | None]:
    """The one rule that names this tensor, with its layer; none or several is a `PlanError`."""
    found = [(rule, layer) for rule in rules for hit, layer in [rule.match(name)] if hit]
    if len(found) == 1:
        return found[0]
    if found:
        lines = "; ".join(rule.text for rule, _ in found)
        raise PlanError(f"tensor {name!r} is named by {len(found)} rules of its adapter: {lines}. Keep one of them.")
    number = next((part for part in name.split(".") if part.isdigit()), None)
    hint = f" Its component {number} is not captured as {{layer}} by any rule." if number else ""
    raise PlanError(
        f"tensor {name!r} is named by no rule of its adapter, so its axes are unknown.{hint} "
        "Its model class is not supported yet; a rule in the adapter's file makes it so."
    )


def _parse_rule(line: str) -> Rule:
    names, colon, axes = line.partition(":")
    if not colon:
        raise PlanError(f"rule {line!r} has no colon between the names and the axes.")
    for name in names.split("|"):
        _check_name(name.strip(), line)
    sides = re.split(r"(<-|->)", axes)
    if len(sides) > 3 or not all(side.strip() for side in sides):
        raise PlanError(f"rule {line!r} must have axes on every side of at most one arrow.")
    left_reads, right_reads = sides[1:2] == ["->"], sides[1:2] == ["<-"]
    written = sides[-1] if left_reads else sides[0]
    parsed = _parse_axes(sides[0], left_reads, line)
    if len(sides) == 3:
        parsed += _parse_axes(sides[2], right_reads, line)
    return Rule(line, names.strip(), tuple(parsed), adds=written.strip().startswith("+"), maps=len(sides) == 3)


def _check_name(name: str, line: str) -> None:
    """Brackets that close, and one number of a layer at most, of the same depth in all alternatives."""
    bare = re.sub(r"\{[^{}]*\}", "", name)
    if not name or "{" in bare or "}" in bare:
        raise PlanError(f"rule {line!r} has a name that is empty, or a brace without a partner.")
    depths = re.findall(DEPTH, line.partition(":")[0])
    if len(re.findall(DEPTH, name)) > 1:
        raise PlanError(f"rule {line!r} has two numbers of layers in the name {name!r}; a tensor is in one layer.")
    if len(set(depths)) > 1 or (depths and not re.search(DEPTH, name)):
        raise PlanError(f"rule {line!r} has alternatives of different depths. Write a rule for each.")


def _parse_axes(text: str, reads: bool, line: str) -> list[Axis]:
    """The axes of one side: words, and brackets with segments of words."""
    text = text.strip().removeprefix("+")
    axes: list[Axis] = []
    opened: list[list[Factor]] | None = None
    for token in re.findall(r"[()+]|[^\s()+]+", text):
        if token == "(" and opened is None:
            opened = [[]]
        elif token == ")" and opened and all(opened):
            axes.append(Axis(tuple(tuple(segment) for segment in opened)))
            opened = None
        elif token == "+" and opened and opened[-1]:
            opened.append([])
        elif token in "()+":
            raise PlanError(
                f"rule {line!r} has a bracket that is empty or has no partner, or a + with nothing on one side of it."
            )
        elif opened is None:
            axes.append(Axis(((_parse_factor(token, reads, line),),)))
        else:
            opened[-1].append(_parse_factor(token, reads, line))
    if opened is not None:
        raise PlanError(f"rule {line!r} has a bracket that is empty or has no partner.")
    return axes


def _parse_factor(word: str, reads: bool, line: str) -> Factor:
    if word.isdigit():
        if int(word) < 1:
            raise PlanError(f"rule {line!r}: an axis has at least one entry, not {word}.")
        return Factor("", int(word), reads)
    found = re.fullmatch(FACTOR, word)
    if not found:
        raise PlanError(f"rule {line!r}: {word!r} is neither a role nor a number.")
    crosses, multiplies = found[1] == "~", found[1] == "*"
    if reads and (crosses or multiplies):
        raise PlanError(f"rule {line!r}: {word!r} stands on the side that reads; {found[1]} is for what is written.")
    return Factor(found[2], None, reads or crosses, crosses, multiplies)


def _regex(name: str) -> str:
    parts = re.split(r"(\{[^{}]*\})", name)
    return "".join(_regex_part(part) for part in parts)


def _regex_part(part: str) -> str:
    if re.fullmatch(DEPTH, part):
        return r"(\d+)"
    if part.startswith("{"):
        return "(?:" + "|".join(re.escape(word) for word in part[1:-1].split(",")) + ")"
    return re.escape(part)
