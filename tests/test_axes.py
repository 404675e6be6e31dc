"""The axis language reads what it says: names, roles, products, segments, sides; and refuses the rest."""

import pytest

from transformers_bot.architectures.adapter import find_rule
from transformers_bot.architectures.language import parse_rules
from transformers_bot.errors import PlanError

SIZES = {"hidden": 12, "heads": 3, "head_dim": 4, "score": 4, "ffn": 20, "special": 2, "grid_h": 3, "grid_w": 5}
SIZES |= {"label": None, "vocab": 23}


def one(text: str):
    (rule,) = parse_rules(text)
    return rule


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("hidden", (12,)),
        ("ffn <- hidden", (20, 12)),
        ("ffn -> +hidden", (20, 12)),
        ("+hidden <- (heads head_dim)", (12, 12)),
        ("hidden -> (heads score + heads ~score + heads head_dim)", (12, 36)),
        ("1 (special + grid_h grid_w) hidden", (1, 17, 12)),
        ("vocab <- hidden 1 1", (23, 12, 1, 1)),
        ("7 hidden", (7, 12)),
    ],
)
def test_shapes_follow_the_axes(axes, shape):
    assert one(f"w : {axes}").shape(SIZES, shape) == shape


def test_a_length_that_only_the_tensor_knows_is_taken_from_it():
    rule = one("w : label <- hidden")
    assert rule.shape(SIZES, (5, 12)) == (5, 12)
    assert rule.shape(SIZES, (5, 13)) == (5, 12)


@pytest.mark.parametrize("actual", [(12,), (20, 12, 1), ()])
def test_another_number_of_axes_never_matches(actual):
    assert one("w : ffn <- hidden").shape(SIZES, actual) == (20, 12)
    assert one("w : label <- hidden").shape(SIZES, actual) == (-1, 12)


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("w : ffn <- hidden", {"ffn": False, "hidden": True}),
        ("w : hidden -> ffn", {"ffn": False, "hidden": True}),
        ("w : ffn -> +hidden", {"ffn": True, "hidden": False}),
        ("w : ffn hidden", {"ffn": False, "hidden": False}),
        ("w : (heads ~score) <- hidden", {"heads": False, "score": True, "hidden": True}),
    ],
)
def test_arrows_say_who_reads(text, reads):
    rule = one(text)
    assert {f.role: f.reads for axis in rule.axes for segment in axis.segments for f in segment} == reads


@pytest.mark.parametrize(
    ("text", "adds", "maps"),
    [
        ("w : +hidden <- ffn", True, True),
        ("w : ffn -> +hidden", True, True),
        ("w : +hidden", True, False),
        ("w : hidden", False, False),
        ("w : ffn <- hidden", False, True),
    ],
)
def test_plus_and_arrow_are_read(text, adds, maps):
    rule = one(text)
    assert (rule.adds, rule.maps) == (adds, maps)


def test_roles_are_listed_in_stored_order():
    assert one("w : 1 (special + grid_h grid_w) hidden").roles == ["special", "grid_h", "grid_w", "hidden"]


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("h.{layer}.w", "h.11.w", (True, 11)),
        ("h.{layer}.w", "h.w", (False, None)),
        ("h.{layer}.w", "h.x.w", (False, None)),
        ("h.{layer}.w", "hh.1.w", (False, None)),
        ("h.{layer}.w", "h.1.w.b", (False, None)),
        ("h.{layer}.w", "h.1xw", (False, None)),
        ("n.{weight,bias}", "n.bias", (True, None)),
        ("n.{weight,bias}", "n.weigh", (False, None)),
        ("a.{layer}.w | b.{layer}.v", "b.3.v", (True, 3)),
        ("{layers,encoder.layer}.{layer}.w", "encoder.layer.2.w", (True, 2)),
    ],
)
def test_names_match_whole_and_give_the_layer(pattern, name, expected):
    assert one(f"{pattern} : hidden").match(name) == expected


def test_comments_and_empty_lines_are_skipped():
    rules = parse_rules("\n# all of it\nw : hidden  # the stream\n\nv : ffn\n")
    assert [rule.names for rule in rules] == ["w", "v"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x", "'x' is named by no rule of its adapter"),
        ("x.4.weight", "Its component 4 is not captured as {layer} by any rule"),
        ("twice", "'twice' is named by 2 rules of its adapter: .*hidden; .*ffn"),
    ],
)
def test_unmatched_and_doubly_matched_names_are_errors(name, message):
    rules = parse_rules("w : hidden\ntwice : hidden\ntwice | thrice : ffn")
    with pytest.raises(PlanError, match=message.replace("{", r"\{").replace("}", r"\}")):
        find_rule(rules, name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("w hidden", "has no colon"),
        ("w : hidden <-", "must have axes on every side of at most one arrow"),
        ("w : -> hidden", "must have axes on every side of at most one arrow"),
        ("w : Hidden", "'Hidden' is neither a role nor a number"),
        ("w : hidden*2", "neither a role nor a number"),
    ],
)
def test_a_malformed_rule_is_an_error(line, message):
    with pytest.raises(PlanError, match=message):
        parse_rules(line)


@pytest.mark.parametrize("line", ["w : (hidden", "w : hidden <- ffn <- label", "w : ffn + hidden", "w : "])
def test_a_rule_with_half_a_bracket_or_two_arrows_is_an_error(line):
    with pytest.raises(PlanError):
        parse_rules(line)
