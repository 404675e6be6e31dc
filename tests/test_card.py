"""The model card: what it says, and that names in it stay data."""

import json
import re

import pytest
import yaml
from cards import COMMIT, OPTIONS, made, metadata, recipe_in, sections
from families import tiny_config
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from transformers_bot import BadOption
from transformers_bot.cli.options import read_recipe
from transformers_bot.hub.card import BEGIN, MARKER, code, in_markers, model_card, recipe, split_card, update_card
from transformers_bot.hub.provenance import base_model, public

# -- what it says ---------------------------------------------------------------------------------


def test_the_card_is_one_that_the_hubs_own_class_reads():
    card = ModelCard(model_card(made(), None, licence="mit", tags=["mine", "bot"]))
    assert card.data.to_dict() == {
        "base_model": "org/source",
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["transformers_bot", "bot", "mine"],
    }
    assert f"`{COMMIT}`" in card.text
    assert f"{'ab' * 32}  model.safetensors" in card.text
    assert "| hidden | 6 | 12 |" in card.text
    assert "transformers-bot verify" in card.text


@pytest.mark.parametrize(
    ("family", "head", "loader", "pipeline", "task"),
    [
        ("gpt2", "GPT2LMHeadModel", "AutoModelForCausalLM", "text-generation", "causal-lm"),
        ("gpt2", "GPT2DoubleHeadsModel", "GPT2DoubleHeadsModel", None, None),
        ("bert", "BertModel", "AutoModel", None, "base"),
        ("bert", "BertForPreTraining", "AutoModelForPreTraining", None, "pretraining"),
        ("roberta", "RobertaForTokenClassification", "AutoModelForTokenClassification", "token-classification", None),
        ("vit", "ViTForImageClassification", "AutoModelForImageClassification", "image-classification", None),
        (
            "deit",
            "DeiTForImageClassificationWithTeacher",
            "AutoModelForImageClassification",
            "image-classification",
            None,
        ),
    ],
)
def test_loading_task_and_pipeline_follow_the_architecture(family, head, loader, pipeline, task):
    config = made(tiny_config(family, head))
    card = model_card(config, None, name="me/it")
    assert f'from transformers import {loader}\n\nmodel = {loader}.from_pretrained("me/it")' in card
    assert metadata(card).get("pipeline_tag") == pipeline
    assert recipe(config).get("task") == (task or pipeline)


def test_the_sources_pipeline_tag_is_for_models_without_a_head():
    found = {"pipeline_tag": "sentence-similarity", "license": "mit", "license_name": "x", "language": ["en", "de"]}
    base = metadata(model_card(made(tiny_config("bert", "BertModel")), None, source_card=found, licence="apache-2.0"))
    assert base["pipeline_tag"] == "sentence-similarity"
    assert (base["license"], base["license_name"], base["language"]) == ("apache-2.0", "x", ["en", "de"])
    assert metadata(model_card(made(), None, source_card=found))["pipeline_tag"] == "text-generation"


def test_the_command_line_reads_the_recipe(tmp_path):
    config = made(subfolder="inner", nonfinite="zero", ignore_mismatched_sizes=True, strict=True)
    config.dtype = "float32"
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_in(model_card(config, None, name="me/../a b")))
    assert read_recipe(str(path)) == {
        "source": "org/source",
        "out": "a-b",
        "revision": COMMIT,
        "subfolder": "inner",
        "method": "bot",
        "nonfinite": "zero",
        "ignore_mismatched_sizes": True,
        "config": {"n_layer": 2, "n_embd": 12, "n_head": 3, "n_inner": 20},
        "task": "causal-lm",
        "bot_config": OPTIONS,
        "dtype": "float32",
    }


def test_the_recipe_takes_the_differing_fields_where_provenance_has_them():
    assert recipe(made(config={"n_embd": 12, "n_inner": None}))["config"] == {"n_embd": 12, "n_inner": None}


def test_a_calibrated_model_says_that_its_recipe_is_not_all():
    assert "calibrated" in model_card(made(calibrated=True), None)
    assert "calibrated" not in model_card(made(calibrated=False), None)


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [
        ({"source": "gpt2"}, "gpt2"),
        ({"source": "gpt2", "revision": None}, None),  # a folder ./gpt2
        ({"source": "models/gpt2", "revision": "main"}, None),
        ({"source": "/data/models/gpt2"}, None),
        ({"source": f"/c/models--org--a-b/snapshots/{COMMIT}", "revision": None}, "org/a-b"),
        ({"source": f"C:\\c\\models--gpt2\\snapshots\\{COMMIT}\\", "revision": None}, "gpt2"),
        ({"source": f"/c/models--org--bad name/snapshots/{COMMIT}", "revision": None}, None),
    ],
)
def test_only_a_hub_id_becomes_the_base_model(provenance, expected):
    assert base_model({"revision": COMMIT, **provenance}) == expected
    card = model_card(made(**{"revision": COMMIT, **provenance}), None)
    assert metadata(card).get("base_model") == expected
    assert ("a local folder" in card) == (expected is None)


def test_a_folder_that_a_record_names_is_not_opened(tmp_path):
    made().save_pretrained(tmp_path / "first")
    assert base_model({"source": str(tmp_path / "first"), "revision": None}) is None
    card = model_card(made(source=str(tmp_path / "first"), revision=None), None)
    assert "org/source" not in card


WRONG = (
    *({"target_sizes": {"hidden": "12"}}, {"source_sizes": [1]}, {"files": {"a": 1}}, {"versions": ["torch"]}),
    *({"subfolder": ["a"]}, {"variant": {}}, {"revision": 3}, {"local": "yes"}, {"inherited": "all"}, {"options": 1}),
)
DAMAGED = (
    *(1, [], {}, {"source": "x"}, {"source": 1, "method": "bot"}, {"method": "bot"}),
    *({**made().transformers_bot, **change} for change in WRONG),
)


@pytest.mark.parametrize("found", DAMAGED, ids=lambda found: str(found)[:60])
def test_damaged_provenance_is_an_error(found):
    config = tiny_config("gpt2", "GPT2LMHeadModel")
    config.transformers_bot = found
    with pytest.raises(BadOption, match="damaged"):
        model_card(config, None)


def test_no_provenance_is_an_error():
    with pytest.raises(BadOption, match=r"no provenance.*was not resized"):
        model_card(tiny_config("gpt2", "GPT2LMHeadModel"), None)


# -- names are data -------------------------------------------------------------------------------

HOSTILE = (
    "/x/\x1b[31mred",
    "a`b``c",
    "---\nlicense: mit\n---\n",
    "x\n<!-- transformers_bot: end -->\nmore",
    "</details><script>alert(1)</script>",
    "*b* [l](http://e) | cell",
    "\u202egnp.exe",
    "`" * 40,
    "{a: *x}",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_names(name):
    variant = re.sub(r"[/\\]", "_", name)  # a name with a slash is a damaged record
    config = made(source=name, revision=None, files={name: name}, versions={name: name}, variant=variant, method=name)
    config.transformers_bot["target_sizes"] |= {name: 7}
    card = model_card(config, None, tags=[name], name=name)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", card.split("\n---\n", 1)[1])
    assert metadata(card)["tags"][-1] == name
    assert set(metadata(card)) == {"library_name", "pipeline_tag", "tags"}
    read = yaml.safe_load(recipe_in(card))
    assert (read["variant"], read["method"]) == (variant, name)
    assert read["local_source"] == public(config.transformers_bot)["source"]
    assert all(line.replace("\\|", "").count("|") == 4 for line in card.splitlines() if line.startswith("| "))
    assert sections(card) == 1
    again = update_card(card, model_card(made(), None))
    assert name not in again.split(BEGIN)[1]
    prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", split_card(card)[2], flags=re.DOTALL)
    assert "<script>" not in prose
    assert "](http://e)" not in prose


# Of few characters: hypothesis would first list all of Unicode.
@given(st.text(alphabet=st.sampled_from("`` \n\r\t\x1b\x85\u2028\u202eaZ|<*_[]\\é€😀"), max_size=30))
def test_a_code_span_holds_any_text(text):
    shown = code(text)
    fence = re.match("`+", shown)[0]
    inside = shown.removeprefix(fence).removesuffix(fence)
    assert shown == fence + inside + fence
    assert fence not in inside
    assert not inside.startswith("`")
    assert not inside.endswith("`")
    assert inside.isprintable()


def test_the_card_does_not_depend_on_the_order_of_the_config():
    fields = json.loads(json.dumps(made().transformers_bot, sort_keys=True))
    assert model_card(made(**fields), None) == model_card(made(), None)


def test_sizes_come_in_the_order_of_their_kinds():
    rows = re.findall(r"^\| (\w+) \| \d+ \| \d+ \|$", model_card(made(), None), re.MULTILINE)
    assert rows == ["layer", "hidden", "heads", "ffn"]


def test_a_marker_in_a_report_does_not_end_the_section():
    section = in_markers("text\n<!-- transformers_bot: end -->\nmore")
    assert [mark[1] for mark in MARKER.finditer(section)] == ["begin", "end"]
