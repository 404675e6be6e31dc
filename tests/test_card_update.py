"""Updating a model card: our part changes, and a person's text and metadata survive, whatever they look like."""

import re

import pytest
import yaml
from cards import COMMIT, OTHER_COMMIT, made, metadata, sections
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_bot import SaveError
from transformers_bot.hub.card import BEGIN, model_card, split_card, update_card

FRESH = model_card(made(), None, licence="mit")
NEWER = model_card(made(source="org/newer", revision=OTHER_COMMIT), None, licence="apache-2.0")


def test_a_card_of_ours_is_brought_up_to_date():
    card = update_card(FRESH, NEWER)
    assert sections(card) == 1
    assert OTHER_COMMIT in card
    assert COMMIT not in card
    assert metadata(card) == {**metadata(NEWER), "license": "mit", "base_model": ["org/source", "org/newer"]}


def test_metadata_without_a_text_gets_one():
    card = update_card("---\nlicense: mit\n---", FRESH)
    assert sections(card) == 1
    assert metadata(card)["license"] == "mit"


@pytest.mark.parametrize("existing", ["", "  \n", FRESH])
def test_nothing_to_keep_gives_the_fresh_card(existing):
    assert update_card(existing, FRESH) == FRESH


HEADERS = {
    "block lists": "tags:\n- a\n- bot # mine\nbase_model:\n  - x/y\n",
    "flow lists": "tags: [a, 'bot']\nbase_model: x/y # why\n",
    "one name": "base_model: org/source\ntags: a\n",
    "empty": "tags:\nlicense:\nbase_model: []\n",
    "comments": "# For reference, see the specification\nlicense: cc0-1.0   # chosen\n\nlanguage:\n- en\n# end\n",
    "other types": "date: 2024-01-02\nnumber: 1e3\nno_strings: no\nmodel-index:\n- name: a\n  results: [1]\n",
    "strings": 'title: |\n  two\n  lines\nquoted: "é \\u202e"\n',
    "folded": "tags: >-\n  folded\nlicense: mit\n",
    "flow table": "{license: mit, tags: [a]}\n",
    "document end": "license: mit\n...\n",
    "literal name": "base_model: |\n  x/y\nthumbnail: a.png\n",
    "dates and no numbers": "date: 2024-01-02\nversion: 1.2.3\nday: 2024-02-31\nshare: .nan\n",
    "nothing": "\n",
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_persons_metadata_is_kept_and_ours_added(header, newline):
    existing = f"---\n{header}---\n\n# Mine\n".replace("\n", newline)
    before, after = metadata(existing), metadata(update_card(existing, FRESH))
    ours = metadata(FRESH)
    for name, value in before.items():
        if name not in ("tags", "base_model") and value is not None:
            assert [after[name]] == [value]  # in a list one NaN is equal to itself
    for name in ("tags", "base_model"):
        listed = [one if isinstance(one, list) else [one] for one in (before.get(name) or [], ours[name], after[name])]
        assert listed[2] == [*listed[0], *(item for item in listed[1] if item not in listed[0])]
    assert set(after) == set(before) | set(ours)
    assert after["license"] == (before.get("license") or "mit")


@pytest.mark.parametrize(
    "name", ["block lists", "flow lists", "one name", "empty", "comments", "other types", "strings"]
)
def test_metadata_stays_as_it_is_written(name):
    header = HEADERS[name]
    after = split_card(update_card(f"---\n{header}---\nText\n", FRESH))[1]
    kept = [line for line in header.splitlines() if not re.match(r"(tags|base_model|license):", line)]
    assert [line for line in after.splitlines() if line in kept] == kept
    assert all(comment in after for comment in re.findall(r"#.*", header))


BODIES = (
    "\n# Mine\n\nText without a last line break",
    "\n# Mine\r\n\r\nWindows lines\r\n",
    "  \t\n\u2028\x0b odd spaces\n\n\n",
    f"{BEGIN}\nnever closed\n",
    "text\n<!-- transformers_bot: end -->\nnever opened\n",
    f"<!-- transformers_bot: end -->\n{BEGIN}\n",
    f"```\n{BEGIN}\nin a fence\n```\n",
    f"inline {BEGIN} and <!-- transformers_bot: end -->\n",
)


@pytest.mark.parametrize("front", ["", "---\nlicense: mit\n---\n", "\ufeff---\nlicense: mit\n---\n", "\ufeff"])
@pytest.mark.parametrize("body", BODIES)
def test_every_byte_of_a_persons_text_is_kept(front, body):
    once = update_card(front + body, FRESH)
    assert body in once
    assert once.startswith("\ufeff") == front.startswith("\ufeff")
    assert update_card(once, FRESH) == once
    twice = update_card(once, NEWER)
    assert body in twice
    assert OTHER_COMMIT in twice
    assert f"`{COMMIT}`" not in twice
    assert metadata(twice)["license"] == "mit"


def test_text_around_our_section_is_kept_and_the_section_replaced():
    head, section = FRESH.split(BEGIN)
    existing = f"{head}Before.\n\n{BEGIN}{section}\nAfter.\n"
    card = update_card(existing, NEWER)
    assert split_card(card)[2].startswith("\n\n# Resized model\n\nBefore.\n\n<!--"[1:])
    assert card.endswith("-->\n\nAfter.\n")
    assert sections(card) == 1


def test_a_section_that_a_person_edited_is_not_thrown_away():
    edited = FRESH.replace("### How to load", "### How to load\n\nRead my blog first.")
    card = update_card(edited, NEWER)
    assert "Read my blog first." in card
    assert sections(card) == 2
    assert update_card(card, FRESH).count("Read my blog first.") == 1
    assert sections(update_card(card, FRESH)) == 2


def test_an_empty_place_for_our_section_is_filled():
    card = update_card(f"# Mine\n\n{BEGIN}\n<!-- transformers_bot: end -->\n\nAfter.\n", FRESH)
    assert sections(card) == 1
    assert card.endswith("-->\n\nAfter.\n")


def test_white_space_at_line_ends_is_no_edit():
    windows = FRESH.replace("\n", " \r\n").replace("--- \r\n", "---\r\n")
    assert sections(update_card(windows, NEWER)) == 1


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("license: [", ""),
        ("just text", None),
        ("- a\n- b", None),
        ("a: b: c", 2),
        ("license: mit\nx: !!python/object:os.system x", 3),
        ("a: *b", 2),
        ("# ours\ntags: &t [a]\nmore: *t", 3),
        ("a: 1\nb: &b [*b]", 3),
        ("a: {b: c}\n<<: {b: c}", 3),
        ("date: !!timestamp x", 2),
        ("? [a]\n: b", 2),
        ("license: mit\nlicense: mit", 3),
        (f"a: {'[' * 3000}", 2),
        (f"a: {'9' * 5000}", 2),
    ],
)
def test_metadata_that_cannot_be_read_is_an_error_and_nothing_is_lost(header, line):
    named = "is not a table" if line is None else f"line {line}"
    with pytest.raises(SaveError, match=rf"README.md.*{named}.*Correct it there first; nothing was changed"):
        update_card(f"---\n{header}\n---\n\nText\n", FRESH)


def test_metadata_beyond_all_measure_is_an_error():
    with pytest.raises(SaveError, match="at most"):
        update_card("---\na: " + "x" * 300_000 + "\n---\n", FRESH)


TEXT = st.text(st.sampled_from("ab#-`:[]{}<!>|&*'\"\\ \t\n\r\ufeff\u202eé"), max_size=60)
EDITED = "<!-- transformers_bot: end 0000000000000000 -->"
LINES = st.lists(st.one_of(TEXT, st.sampled_from([BEGIN, EDITED, "---", "```", *FRESH.splitlines()[:40]])), max_size=12)
FIELDS = st.dictionaries(st.sampled_from(["tags", "license", "base_model", "x"]), TEXT)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.one_of(st.none(), FIELDS), LINES)
def test_any_text_survives_and_a_second_update_changes_nothing(fields, lines):
    text = ("" if fields is None else f"---\n{yaml.safe_dump(fields)}---\n") + "\n".join(lines)
    try:
        before = metadata(text)
    except SaveError:
        return  # the lines look like metadata and are none
    once = update_card(text, FRESH)
    assert update_card(once, FRESH) == once
    if text.strip():
        assert split_card(text.removeprefix("\ufeff"))[2] in once
    after = metadata(once)
    assert all(after[name] == value for name, value in before.items() if name not in ("tags", "base_model"))
    assert update_card(update_card(once, NEWER), NEWER) == update_card(once, NEWER)
