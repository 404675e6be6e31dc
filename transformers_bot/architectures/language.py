"""The language of rules, and how they are read.

A rule is one line that gives the meaning of every axis of a tensor:

    encoder.layer.{layer}.attention.self.query.weight : (heads score) <- hidden
    h.{layer}.attn.c_proj.{weight}                    : (heads head_dim) -> +hidden
    embeddings.position_embeddings                    : 1 (special + grid_h grid_w) hidden

Left of the colon are the tensor's names (without the base model's prefix), alternatives separated by `|`,
with `{weight,bias}` for several endings and `{layer}` for the layer's number. Right of it are the axes in
stored order:

    role            an axis of that role;   3         an axis that is never resized
    ()              no axis, of a single number
    (a b)           the product of two;     (a + b c) segments one after another
    (a (b + c))     segments that alternate: for every a its b, then its c, as in a fused q|k|v head by head
    x <- y, y -> x  a map that writes x and reads y; without an arrow all axes are written
    +x              added onto the residual stream x: a sum over layers; x need not be the first axis
    ~x              the reading side of a score: keys read what queries write
    *x              multiplied with the other writer of x, as the gate of an MLP is

A matrix of three axes that writes an identity beside its units or the stream is a bank of as many matrices, such as
the experts of a layer: `experts.down_proj : expert +hidden <- ffn`.

A network with two stacks of layers has a name for each; that of the second ends in `_layer`:
`decoder.layers.{decoder_layer}.fc1.weight`. With `last_` in front of it, as in `{last_layer}`, a rule is for the last
layer of a stack alone, where another rule has the layers before it.
"""

import re

from ..errors import PlanError
from .adapter import DEPTH, Axis, Factor, Rule

FACTOR = r"([~*]?)([a-z][a-z_0-9]*)"


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Read one rule per line; empty lines and `#` comments are skipped.

    >>> rule, = parse_rules("mlp.{weight,bias} : ffn")
    >>> rule.match("mlp.bias"), rule.shape({"ffn": 8}, (8,))
    ((True, None), (8,))

    Raises:
        PlanError: a line that is not a rule; the message says what is wrong.
    """
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return tuple(_parse_rule(line) for line in lines if line)


def _parse_rule(line: str) -> Rule:
    names, colon, axes = line.partition(":")
    if not colon:
        raise PlanError(f"rule {line!r} has no colon between the names and the axes.")
    for name in names.split("|"):
        _check_name(name.strip(), line)
    if axes.strip() == "()":
        return Rule(line, names.strip(), (), adds=False, maps=False)
    sides = re.split(r"(<-|->)", axes)
    if len(sides) > 3 or not all(side.strip() for side in sides):
        raise PlanError(f"rule {line!r} must have axes on every side of at most one arrow.")
    left_reads, right_reads = sides[1:2] == ["->"], sides[1:2] == ["<-"]
    written = sides[-1] if left_reads else sides[0]
    parsed = _parse_axes(sides[0], left_reads, line)
    if len(sides) == 3:
        parsed += _parse_axes(sides[2], right_reads, line)
    adds, maps, bare = "+" in _without_brackets(written), len(sides) == 3, names.strip().replace("{last_", "{")
    return Rule(line, bare, tuple(parsed), adds, maps, last=bare != names.strip())


def _check_name(name: str, line: str) -> None:
    """Check that braces close, and that a name has at most one layer number, of one depth in all alternatives."""
    bare = re.sub(r"\{[^{}]*\}", "", name)
    if not name or "{" in bare or "}" in bare:
        raise PlanError(f"rule {line!r} has a name that is empty, or a brace without a partner.")
    depths = re.findall(DEPTH, line.partition(":")[0])
    if len(re.findall(DEPTH, name)) > 1:
        raise PlanError(f"rule {line!r} has two numbers of layers in the name {name!r}; a tensor is in one layer.")
    if len(set(depths)) > 1 or (depths and not re.search(DEPTH, name)):
        raise PlanError(f"rule {line!r} has alternatives of different depths. Write a rule for each.")


def _parse_axes(text: str, reads: bool, line: str) -> list[Axis]:
    """The axes of one side: factors, and brackets around segments of factors."""
    text = text.strip()
    axes: list[Axis] = []
    opened: list[list[Factor]] | None = None
    shared: list[Factor] = []  # in front of an inner bracket
    closed = False  # the inner bracket
    for match in re.finditer(r"[()+]|[^\s()+]+", text):
        token = match[0]
        if token == "+" and opened is None and not reads and _begins_axis(text, match.start()):
            continue
        if token == "(" and opened is None:
            opened = [[]]
        elif token == "(" and opened and len(opened) == 1 and opened[0] and not shared:
            shared, opened = opened[0], [[]]
        elif token == ")" and opened and all(opened) and shared and not closed:
            closed = True
        elif token == ")" and opened and all(opened):
            axes.append(Axis(tuple((*shared, *segment) for segment in opened), len(shared)))
            opened, shared, closed = None, [], False
        elif token == "+" and opened and opened[-1] and not closed:
            opened.append([])
        elif token in "()+" or closed:
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


def _without_brackets(text: str) -> str:
    """What stands outside of brackets.

    >>> _without_brackets("(a (b + c)) +d")
    ' +d'
    """
    inside = re.sub(r"\([^()]*\)", "", text)
    return inside if inside == text else _without_brackets(inside)


def _begins_axis(text: str, place: int) -> bool:
    """Whether a + at this place of one side of a rule belongs to the axis behind it, as in `expert +hidden`."""
    before, after = text[:place], text[place + 1 :]
    return bool(re.match(r"\s*[a-z(]" if not before else r"[a-z(]", after)) and before[-1:] in ("", " ", "\t")


def _parse_factor(token: str, reads: bool, line: str) -> Factor:
    if token.isdigit():
        if int(token) < 1:
            raise PlanError(f"rule {line!r}: an axis has at least one entry, not {token}.")
        return Factor("", int(token), reads)
    parts = re.fullmatch(FACTOR, token)
    if not parts:
        raise PlanError(f"rule {line!r}: {token!r} is neither a role nor a number.")
    crosses, multiplies = parts[1] == "~", parts[1] == "*"
    if reads and (crosses or multiplies):
        raise PlanError(f"rule {line!r}: {token!r} stands on the side that reads; {parts[1]} is for what is written.")
    return Factor(parts[2], None, reads or crosses, crosses, multiplies)
