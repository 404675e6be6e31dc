"""README and docs: every link leads somewhere, figures are those of the results, the front page stays short."""

import re
import sys
from pathlib import Path

import pytest
from snippets import ROOT

from transformers_bot.architectures.families import BUILT_IN

yaml = pytest.importorskip("yaml", reason="mkdocs.yml is YAML: pip install pyyaml")

BENCH = ROOT / "benchmarks" / "transfer"
sys.path.insert(0, str(BENCH))

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
HEADING = re.compile(r"#+ +(.+)")


def prose(document: Path) -> list[str]:
    """The lines of a document outside of fenced blocks."""
    lines, fenced = [], False
    for line in document.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            lines.append(line)
    return lines


def anchors(document: Path) -> set[str]:
    """Anchors of the headings that GitHub and mkdocs name alike."""
    found = [match[1] for match in map(HEADING.fullmatch, prose(document)) if match]
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in found]
    return {heading.replace(" ", "-") for heading in plain} & {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def broken(document: Path) -> list[str]:
    """The relative links of a document that lead nowhere, and those of a page that lead out of docs."""
    wrong = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", "\n".join(prose(document)))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        outside = document != README and document.parent.name == "docs" and not target.is_relative_to(ROOT / "docs")
        if not target.exists() or outside or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("document", [README, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_anchors(document):
    assert not broken(document)


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "there.md").write_text("# Sizes, and heads\n```\n# not a heading\n```\n")
    page.write_text(
        "# Here\n[a](there.md#sizes-and-heads) [b](#here) [c](https://x.org/y) `[d](code)`\n```\n[e](fenced)\n```\n"
        "[f](gone.md) [g](there.md#not-a-heading) ![h](gone.svg) [i](#there)\n"
    )
    assert broken(page) == ["gone.md", "there.md#not-a-heading", "gone.svg", "#there"]


def test_every_page_is_in_the_navigation_once():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = [name for entry in settings["nav"] for name in entry.values()]
    assert sorted(named) == [page.relative_to(ROOT / "docs").as_posix() for page in PAGES]


def test_the_front_page_is_short_and_names_every_page():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 170
    assert not re.search(r"\b(goals?|issues?|turns?)\b|not reached", text, re.IGNORECASE)
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} <= {link.split("#")[0] for link in LINK.findall(text)}


@pytest.fixture(scope="module")
def results():
    import store
    import summary

    suite = store.Store(ROOT / "benchmarks" / "results" / "transfer-cpu.json")
    return {result.setting.title: result for result in summary.results(suite)}


def test_figures_of_the_front_page(results):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in prose(README) if " to " in line]
    rows = [[row[0].replace("RoBERTa of antibodies", "Sapiens (RoBERTa)"), *row[1:]] for row in rows]
    rows = [row for row in rows if row[0] in results]
    assert len(rows) == 7
    for title, measure, scratch, ours, rival in rows:
        result = results[title]
        metric, best = result.setting.metric, result.rival()
        written = [float(figure) for figure in re.findall(r"\d\.\d+", f"{scratch} {ours} {rival}")]
        names = ["scratch", "bot", *(["bot calibrated"] if "calibrated" in ours else []), best.method.name]
        assert written == [round(result.row(name).mean(metric), 3) for name in names], title
        assert f", {best.method.name}" in rival
        assert (
            measure
            == f"{metric if metric == 'loss' else metric.title()}, {'higher' if result.higher else 'lower'} is better"
        )
        bold = re.search(r"\*\*([\d.]+)\*\*", f"{scratch} {ours} {rival}")
        assert float(bold[1]) == (max if result.higher else min)(written), title


def test_the_front_page_names_every_family():
    table = README.read_text(encoding="utf-8").partition("\n## Families\n")[2].partition("\n## ")[0]
    named = re.sub(r"[^a-z0-9]", "", table.lower())
    families = [re.sub(r"_(text|vision)_model$", "", adapter.model_type) for adapter in BUILT_IN]
    assert [name for name in families if re.sub(r"[^a-z0-9]", "", name) not in named] == []


def test_the_changelog_is_one_list_after_another():
    """Lines have the length of the rest of the project, and what stands there stands there once."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > 120] == []
    items = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(items) == len(set(items))
    assert re.findall(r"^(?:- |  ).*\n\n- .*", text, re.MULTILINE) == []


def test_figures_of_the_methods_page():
    """Rows of the comparison are copied from the report that is made from the results."""
    lines = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").splitlines()
    rows = [
        line for line in lines[lines.index("## How they compare") :] if re.match(r"\| (?!setting|---|method)", line)
    ]
    report = (ROOT / "benchmarks" / "results" / "transfer-cpu.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 14 + 14 + 11
    assert set(rows) <= set(report)


@pytest.mark.slow
def test_the_chart_is_drawn_from_the_results(tmp_path):
    """Other versions of matplotlib may write the same picture in other bytes."""
    matplotlib = pytest.importorskip("matplotlib", reason="the chart needs matplotlib")
    if f"matplotlib=={matplotlib.__version__}" not in (ROOT / "constraints.txt").read_text().splitlines():
        pytest.skip("drawn with the matplotlib of constraints.txt")
    import chart

    chart.draw(tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_bytes() == chart.CHART.read_bytes()
