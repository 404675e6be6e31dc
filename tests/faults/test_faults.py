"""Every row of the table of bad inputs: its kind, its words, nothing opened outside, nothing written.

Rows are data (`table_*.py`); each is made from a good folder of two layers and goes through the check
alone, through `from_pretrained` and through `resize_checkpoint`.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
from folders import make_sources
from table_configs import CONFIGS
from table_folders import FOLDERS
from table_headers import HEADERS
from table_weights import OTHERS, QUANTISED
from watching import MEGABYTES, SECONDS, nothing_opens, watched

import transformers_bot
from transformers_bot import BoTModelForCausalLM
from transformers_bot.io.checkpoint import check_files

ROWS = {
    f"{group}: {name}": row
    for group, rows in (("header", HEADERS), ("folder", FOLDERS), ("weights", OTHERS), ("config", CONFIGS))
    for name, row in rows.items()
}
SAVED = ("config.json", "model.safetensors")  # what may be overwritten looks like a saved model
LONGEST = 1_200  # characters of a message


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The good folders, by kind."""
    return make_sources(tmp_path_factory.mktemp("good"))


@pytest.fixture
def place(tmp_path):
    """A folder that is emptied at once: some rows are 100 MB."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def by_check(folder: Path, keywords: dict) -> None:
    allow = keywords.get("allow_pickle", False)
    check_files(str(folder), {k: v for k, v in keywords.items() if k != "allow_pickle"}, allow_pickle=allow)


def by_loading(folder: Path, keywords: dict) -> None:
    BoTModelForCausalLM.from_pretrained(str(folder), n_layer=4, **keywords)


def by_loading_as_it_is(folder: Path, keywords: dict) -> None:
    BoTModelForCausalLM.from_pretrained(str(folder), **keywords)


def by_resizing(folder: Path, keywords: dict) -> None:
    out = folder.parent / "out"
    out.mkdir()
    for name in SAVED:
        (out / name).write_text("as it was")
    try:
        transformers_bot.resize_checkpoint(str(folder), out, config={"n_layer": 4}, overwrite=True, **keywords)
    finally:
        assert sorted(path.name for path in folder.parent.iterdir()) == ["model", "out", "outside", "work"]
        assert {path.name: path.read_text() for path in out.iterdir()} == dict.fromkeys(SAVED, "as it was")


# What a config alone can show about sizes is the plan's business, not the files'.
PLANNED = {"no layers", "layers negative", "heads that do not divide", "no model type", "hostile model type"}
# Nor is what transformers makes of other fields, which every call that makes a model must meet with words.
BUILT = {"a model type of another version", "timm", "dropout of 3", "no such activation"}
CALLS = {
    "check": by_check,
    "from_pretrained": by_loading,
    "same size": by_loading_as_it_is,
    "resize_checkpoint": by_resizing,
}
# Rows that do not concern a call: what it never looks at, or what transformers itself answers for.
EXEMPT = {
    "check": {f"config: {name}" for name in PLANNED | BUILT},
    "same size": {f"config: {name}" for name in PLANNED} | {f"weights: {name}" for name in QUANTISED},
}
CASES = [
    pytest.param(row, call, id=f"{call} - {name}")
    for name, row in ROWS.items()
    for call in CALLS
    if name not in EXEMPT.get(call, ())
]


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("row", "call"), CASES)
def test_a_bad_input_is_named_and_nothing_else_is_touched(sources, place, monkeypatch, row, call):
    folder, outside, here = place / "model", place / "outside", place / "work"
    shutil.copytree(sources[row.source], folder)
    row.mutate(folder)
    outside.mkdir(exist_ok=True)
    here.mkdir()
    monkeypatch.chdir(here)
    with nothing_opens(outside), watched() as seen, pytest.raises(row.error) as caught:
        CALLS[call](folder, row.keywords)
    assert type(caught.value) is row.error
    text = str(caught.value)
    assert re.search(row.message, text), text
    assert text.isprintable()
    assert len(text) < LONGEST
    assert list(here.iterdir()) == []
    assert seen.outside(folder, place / "out") == []
    assert seen.seconds < SECONDS
    assert seen.megabytes < MEGABYTES


@pytest.mark.slow
def test_the_good_folders_are_good(sources):
    for name, folder in sources.items():
        checked = check_files(str(folder), {}, allow_pickle=name == "pickled")
        assert len(checked.tensors) == (0 if name == "pickled" else 28)
        resized = BoTModelForCausalLM.from_pretrained(str(folder), n_layer=4, allow_pickle=name == "pickled")
        assert resized.config.n_layer == 4


@pytest.mark.slow
def test_the_watchers_see(sources, tmp_path):
    # A check that cannot fail would prove nothing: Python's opens, native ones, and memory are seen.
    from safetensors import safe_open

    (tmp_path / "x").write_text("x")
    with watched() as seen:
        kept = bytearray(b"x") * 400_000_000  # far more than a kernel takes back of what lay idle before
        (tmp_path / "x").read_text()
    assert seen.outside(sources["single"]) == [os.path.realpath(tmp_path / "x")]
    assert 300 < seen.megabytes < 420
    assert len(kept) == 400_000_000
    with pytest.raises(AssertionError), nothing_opens(sources["single"]):
        safe_open(sources["single"] / "model.safetensors", framework="pt")
