"""What is taken over from a source's own card: its licence and a few facts, and never anything else."""

import pytest

from transformers_bot.hub.push import source_card


def folder(tmp_path, text: str | bytes) -> str:
    (tmp_path / "README.md").write_bytes(text.encode() if isinstance(text, str) else text)
    return str(tmp_path)


def test_licence_languages_and_pipeline_tag_are_read(tmp_path):
    text = "---\nlicense: other\nlicense_name: own\nlicense_link: https://x.y/l\nlanguage: [en, de]\ntags: [a]\n"
    name = folder(tmp_path, f"{text}pipeline_tag: fill-mask\nbase_model: a/b\nmodel-index: [1]\n1: 2\n---\nText")
    assert source_card(name, {}).get("license") == "other"
    expected = {"license": "other", "license_name": "own", "license_link": "https://x.y/l"}
    assert source_card(name, {}) == {**expected, "language": ["en", "de"], "pipeline_tag": "fill-mask"}


def test_a_link_into_the_folder_is_left_out(tmp_path):
    assert source_card(folder(tmp_path, "---\nlicense_link: LICENSE\n---\n"), {}) == {}


@pytest.mark.parametrize("start", ["\ufeff", "\n\n"])
def test_what_may_stand_before_the_metadata(tmp_path, start):
    assert source_card(folder(tmp_path, f"{start}---\r\nlicense: mit\r\n---\r\n"), {}).get("license") == "mit"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no metadata",
        "---\nlicense: mit\n",  # not closed
        "---\n- a\n---\n",
        "---\nlicense: [\n---\n",
        "---\nlicense: {a: b}\n---\n",
        "---\nlicense: 3\n---\n",
        '---\nlicense: "a\\u001b[31m"\n---\n',
        f"---\nlicense: {'x' * 1000}\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['touch pwned']\n---\n",
        f"---\nlicense: {'[' * 5000}\n---\n",
        "---\na: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nlicense: *c\n---\n",
        b"\xff\xfe---\nlicense: mit\n---\n",
        b"---\n" + b"a: b\n" * 200_000 + b"license: mit\n---\n",
    ],
)
def test_a_card_without_a_usable_licence_gives_none(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert source_card(folder(tmp_path, text), {}).get("license") is None
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_folder_without_a_card_gives_none(tmp_path):
    assert source_card(str(tmp_path), {}).get("license") is None
    (tmp_path / "README.md").mkdir()
    assert source_card(str(tmp_path), {}).get("license") is None


@pytest.mark.parametrize("name", ["not an id!", "a/b/c", "", "never/there", "x" * 500])
def test_a_name_that_leads_nowhere_gives_none(name):
    assert source_card(name, {}).get("license") is None
