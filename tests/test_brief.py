"""What results look like as the last line of a cell: short text, a table without foreign markup, a picture."""

import os
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from transformers import BertConfig, GPT2Config

from transformers_bot import BoTConfig, Report, plan, resize_checkpoint, suggest, verify
from transformers_bot.tools.inspecting import inspect
from transformers_bot.tools.verifying import Verification

HOSTILE = "<script>alert(1)</script>\x1b[31m&\u202e"
SMALLER = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def results(saved, tmp_path_factory):
    """One of everything that public calls return."""
    folder, _ = saved("bert", "BertForMaskedLM")
    out = tmp_path_factory.mktemp("brief") / "out"
    report = resize_checkpoint(folder, out, num_hidden_layers=1)
    return {
        "plan": plan(folder, num_hidden_layers=1),
        "report": report,
        "verification": verify(out, folder),
        "inspection": inspect(folder),
        "suggestions": suggest(BertConfig(), ratio=0.5),
        "suggestion": suggest(BertConfig(), ratio=0.5)[0],
        "options": BoTConfig(wavelet={"layer": "db2"}),
    }


KINDS = ["plan", "report", "verification", "inspection", "suggestions", "suggestion", "options"]


class Cells(HTMLParser):
    """The words of a page, by tag; a tag that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: dict[str, list[str]] = {}

    def handle_starttag(self, tag, attrs):  # noqa: ARG002  # a name that the parser calls
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.setdefault(self.open[-1], []).append(data)


def read(page: str) -> dict[str, list[str]]:
    parser = Cells()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser.words


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_repr_is_a_few_lines(results, kind):
    lines = repr(results[kind]).splitlines()
    assert 1 <= len(lines) <= 5
    assert max(map(len, lines)) <= 240


@pytest.mark.parametrize("layers", [12, 48])
def test_the_repr_of_a_plan_does_not_grow_with_the_model(layers):
    made = plan(GPT2Config(n_layer=layers), n_layer=layers // 2, n_embd=384, n_head=6, bot_config={"basis": "plain"})
    text = repr(made)
    assert len(text) < 700
    assert f"layer {layers} -> {layers // 2}, hidden 768 -> 384" in text
    assert f"{len(made.steps)} tensors" in text
    assert f"{made.parameters:,}" in text
    assert len(repr(made.source)) < 100
    assert max(len(repr(step)) for step in made.steps) < 300


def test_printing_still_shows_the_whole_table(results):
    for kind in ("plan", "report"):
        shown = str(results[kind])
        assert shown != repr(results[kind])
        assert "attention.self" in shown
    assert "bit-equal" in str(results["verification"])


def test_a_verification_with_many_differences_tells_their_number_alone():
    lines = tuple(f"tensor.{number}: 3 of 4 values differ" for number in range(500))
    one = Verification("out", "bert", 2000, lines, ())
    assert "differs in 500 places" in repr(one)
    assert "tensor.7" not in repr(one)
    assert "tensor.499" in str(one)
    assert len(read(one._repr_html_())["td"]) == 51


def test_suggestions_are_a_list(results):
    found = results["suggestions"]
    assert isinstance(found, list)
    assert suggest.__annotations__["return"] is type(found)
    assert found == list(found)
    assert [repr(one) for one in found] == repr(found).splitlines()
    for name, value in found[0].fields.items():
        assert f"{name}={value}" in repr(found[0])


# -- pages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_and_not_long(results, kind):
    page = results[kind]._repr_html_()
    words = read(page)
    assert len(page) < 20_000
    assert page.startswith("<div>")
    assert words["b"]
    assert ("td" in words) is (kind != "verification")


def test_the_page_of_a_plan_has_a_row_for_a_group_of_layers():
    made = plan(GPT2Config(), n_layer=6, bot_config={"basis": "plain"})
    cells = read(made._repr_html_())["td"]
    assert "h.{0...5}.attn.c_attn.{weight,bias}" in cells or any("h.{0...5}.attn" in cell for cell in cells)
    assert not any("h.3." in cell for cell in cells)


def test_the_pages_say_what_the_printed_tables_say(results):
    words = read(results["report"]._repr_html_())
    assert {"tensor", "action", "shape", "gain", "kept", "std"} <= set(words["th"])
    assert any(cell.endswith("attention.self.query.weight") for cell in words["td"])
    shares = read(results["inspection"]._repr_html_())["th"]
    assert {"hidden", "ffn", "layer"} <= set(shares)
    keywords = [cell for cell in read(results["suggestions"]._repr_html_())["td"] if "hidden_size=" in cell]
    assert len(keywords) == len(results["suggestions"])
    assert "chosen" in read(results["options"]._repr_html_())["td"]


def test_nothing_of_a_checkpoint_is_markup_or_steers_a_terminal(results):
    made = results["plan"]
    bad = {
        "plan": replace(
            made,
            source=replace(made.source, model_class=HOSTILE),
            steps=tuple(replace(step, target=HOSTILE, reason=HOSTILE) for step in made.steps),
            dropped={HOSTILE: HOSTILE},
            warnings=(HOSTILE,),
        ),
        "report": replace(results["report"], classes=(HOSTILE, HOSTILE), warnings=(HOSTILE,)),
        "inspection": replace(
            results["inspection"],
            model_class=HOSTILE,
            notes=(HOSTILE,),
            stacks=tuple(replace(stack, name=HOSTILE, axes=HOSTILE) for stack in results["inspection"].stacks),
        ),
        "verification": replace(results["verification"], folder=HOSTILE, differing=(HOSTILE,)),
        "suggestion": replace(results["suggestion"], fields={HOSTILE: 1}, notes=(HOSTILE,)),
    }
    for one in bad.values():
        page = one._repr_html_()
        assert "<script" not in page
        for text in (page, repr(one)):
            assert "\x1b" not in text
            assert "\u202e" not in text
        assert any("<script>" in word for words in read(page).values() for word in words)
    assert "\x1b" not in repr(bad["plan"].steps[0])


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["report", "inspection"])
def test_a_picture_without_a_path_is_a_figure(results, kind, tmp_path, monkeypatch):
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.chdir(tmp_path)
    before = "matplotlib.pyplot" in sys.modules
    figure = results[kind].plot()
    assert isinstance(figure, figure_class)
    assert len(figure.axes) >= 2
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == []
    assert ("matplotlib.pyplot" in sys.modules) is before
    assert results[kind].plot("one.png") == Path("one.png")
    assert results[kind].plot("two") == Path("two.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("one.png", "two.png"))


# -- IPython ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ipython_shows_text_and_a_page(results, kind):
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    data, _ = formatter.format(results[kind])
    assert set(data) == {"text/plain", "text/html"}
    assert data["text/plain"] == repr(results[kind])
    assert data["text/html"] == results[kind]._repr_html_()


@pytest.mark.slow
def test_ipython_shows_a_figure(results):
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    pytest.importorskip("matplotlib")
    data, _ = formatter.format(results["report"].plot())
    assert data["image/png"].startswith(b"\x89PNG")


CELLS = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("import transformers_bot; from transformers import BertConfig")
shell.run_cell("transformers_bot.plan(BertConfig(), num_hidden_layers=6)")
shell.run_cell("transformers_bot.suggest(BertConfig(), ratio=0.5)")
"""


@pytest.mark.slow
def test_a_shell_prints_a_few_lines(tmp_path):
    pytest.importorskip("IPython")
    env = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CELLS], capture_output=True, text=True, check=True, env=env)
    assert "<Plan: BertModel -> BertModel" in done.stdout
    assert done.stdout.count("<Suggestion: ") == len(suggest(BertConfig(), ratio=0.5))
    assert len(done.stdout) < 2500


def test_a_report_that_was_saved_looks_the_same(results, tmp_path):
    results["report"].save(tmp_path)
    assert repr(Report.load(tmp_path)) == repr(results["report"])
