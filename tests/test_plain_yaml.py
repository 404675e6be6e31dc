"""Reading YAML that anybody may have written: plain data as it is, and nothing that grows, recurs or runs."""

import contextlib
import datetime
import math
import time
import tracemalloc

import pytest
import yaml

from transformers_bot import SaveError, resize_checkpoint
from transformers_bot.hub.push import source_card
from transformers_bot.io import plain_yaml
from transformers_bot.io.plain_yaml import NotPlain, read_yaml

PARSERS = [loader for name in ("CSafeLoader", "SafeLoader") if (loader := getattr(yaml, name, None))]
MERGES = "\n".join(["a0: &a0 {k: v}"] + [f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)])


@pytest.fixture(params=PARSERS, ids=lambda loader: loader.__name__)
def _parser(request, monkeypatch):
    monkeypatch.setattr(plain_yaml, "LOADER", plain_yaml.plain_loader(request.param))


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a: 1\nb: [x, 'y', \"z\"]\n", {"a": 1, "b": ["x", "y", "z"]}),
        ("- a: {b: [c]}\n- ~\n", [{"a": {"b": ["c"]}}, None]),
        ("a: |\n  two\n  lines\nb: >-\n  one\n  line\n", {"a": "two\nlines\n", "b": "one line"}),
        ("a: 1_000\nb: 0x1F\nc: .5\nd: -.inf\n", {"a": 1000, "b": 31, "c": 0.5, "d": -math.inf}),
        ("a: yes\nb: 'yes'\nc: 2024-01-02\n", {"a": True, "b": "yes", "c": datetime.date(2024, 1, 2)}),
        ("a: 2024-02-31\nb: 2001-01-01 99:99:99\nc: =\n", {"a": "2024-02-31", "b": "2001-01-01 99:99:99", "c": "="}),
        ("'<<': a\n3: b\n", {"<<": "a", 3: "b"}),
    ],
)
def test_plain_data_is_read_as_it_is(text, expected):
    assert read_yaml(text) == expected


def test_no_number_is_equal_to_itself_when_read_twice():
    assert read_yaml("a: [.nan]") == read_yaml("a: [.nan]")


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(
    ("text", "word"),
    [
        (MERGES, "line 10 has an anchor"),
        ("a: &a [*a]", "line 10 has an anchor"),
        ("\na: *b", "line 11 has an alias"),
        ("a: {}\n<<: {b: c}", "line 11 has a merge key"),
        ("a: !!timestamp x", "line 10 has a type"),
        ("!!str a: b", "line 10 has a type"),
        ("a: !!python/object/apply:os.system ['touch pwned']", "line 10 has a type"),
        ("a: !x y", "line 10 has a type"),
        ("a: ! 12", "line 10 has a type"),
        ("a: ! '12'", "line 10 has a type"),
        ("a:\n- {b: !!binary aGk=}", "line 11 has a type"),
        ("? [a]\n: b", "line 10 has a list or a table as a name"),
        ("{{a: b}: c}", "line 10 has a list or a table as a name"),
        ("a: 1\na: 2", "line 11 has the name a for the second time"),
        ("a: {b: 1, b: 2}", "line 10 has the name b for the second time"),
        ("[" * 5000, "is nested deeper than"),
        ("- " * 5000, "is nested deeper than"),
        ("".join("  " * i + "a:\n" for i in range(300)), "is nested deeper than"),
        ("a: " + "9" * 5000, "has a number of 5,000 characters"),
        ("--- a\n--- b", "begins a second document"),
        ("x" * 300_000, "it has 300,000 characters; at most 256,000"),
        ("a: [", "in line 1"),
        ("a: \x1b[31m", "unacceptable character"),
        ("a: \ud800", "character"),
        ("a: 'b\n\n", "line"),
    ],
)
def test_everything_else_is_refused_and_the_line_named(text, word):
    with pytest.raises(NotPlain) as caught:
        read_yaml(text, first_line=10)
    assert word in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.covering(few=1)
@pytest.mark.usefixtures("_parser")
def test_values_beyond_a_bound_are_not_read():
    with pytest.raises(NotPlain, match="is beyond the 50,000 values"):
        read_yaml("- a\n" * 60_000)


LARGE = ["- a\n" * 50_000, "a: [" + "{a: b}, " * 30_000 + "]"]


@pytest.mark.parametrize(
    "text", ["x: " + "\n" * 200_000, MERGES, *(pytest.param(text, marks=pytest.mark.slow) for text in LARGE)]
)
def test_what_it_takes_is_bounded(text):
    tracemalloc.start()
    begun = time.process_time()
    with contextlib.suppress(NotPlain):
        read_yaml(text)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 64 << 20
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("header", [MERGES, "a: &a [*a]", "d: !!timestamp x", "? [a]\n: b", "license: &l mit"])
def test_a_sources_card_that_is_not_plain_gives_nothing(tmp_path, header):
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    assert source_card(str(tmp_path), {}) == {}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(
    "header", ["license: mit\na: &a [*a]", "license: mit\nd: !!timestamp x", f"license: mit\n{MERGES}"]
)
def test_a_card_that_would_be_replaced_is_refused_before_any_work(saved, tmp_path, header, monkeypatch):
    source, _ = saved("gpt2", "GPT2LMHeadModel")
    resize_checkpoint(source, tmp_path / "out", n_layer=3)
    card = f"---\n{header}\n---\n# my card\n"
    (tmp_path / "out/README.md").write_text(card)
    monkeypatch.setattr("transformers_bot.tools.resize_checkpoint.open_resize", None)  # not reached
    with pytest.raises(SaveError, match="line 3"):
        resize_checkpoint(source, tmp_path / "out", n_layer=3, overwrite=True)
    assert (tmp_path / "out/README.md").read_text() == card
