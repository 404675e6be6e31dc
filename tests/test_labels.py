"""Names of labels: given ones are kept, a count alone numbers them, as transformers' own `from_pretrained` does."""

import json

import pytest
import transformers
from families import class_of

import transformers_bot
from transformers_bot import BadOption, BoTModelForSequenceClassification, BoTModelForTokenClassification
from transformers_bot.cli import main

NAMES = {0: "neg", 1: "neu", 2: "pos"}
NUMBERS = {name: number for number, name in NAMES.items()}
TEXT_KEYS = {str(number): name for number, name in NAMES.items()}
GROWN = {"hidden_size": 24, "num_attention_heads": 6}
# What is asked for beside sizes; the source has three labels with names.
CALLS = {
    "both and the count": {"num_labels": 3, "id2label": NAMES, "label2id": NUMBERS},
    "names alone": {"id2label": NAMES},
    "keys as JSON has them": {"id2label": TEXT_KEYS, "label2id": NUMBERS},
    "numbers alone": {"label2id": NUMBERS},
    "the source's count": {"num_labels": 3},
    "the source's count and numbers": {"num_labels": 3, "label2id": NUMBERS},
    "nothing": {},
}
MORE = {
    "another count": {"num_labels": 5},
    "another count and numbers": {"num_labels": 4, "label2id": NUMBERS},
    "other names": {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}},
    "one name": {"id2label": {"0": "score"}, "num_labels": 1},
}


@pytest.fixture(scope="module")
def source(saved, tmp_path_factory):
    """A classifier of three named labels."""
    folder, _ = saved("bert", "BertForSequenceClassification")
    config = transformers.AutoConfig.from_pretrained(folder, id2label={0: "a", 1: "b", 2: "c"})
    config.label2id = {"a": 0, "b": 1, "c": 2}
    place = tmp_path_factory.mktemp("named")
    class_of("BertForSequenceClassification")(config).save_pretrained(place)
    return str(place)


def plain(folder: str, asked: dict):
    config = transformers.AutoConfig.from_pretrained(folder, **asked)
    return {int(number): name for number, name in config.id2label.items()}, config.label2id


def names(config):
    return config.id2label, config.label2id


def by_keywords(folder, asked, sizes, _):
    return BoTModelForSequenceClassification.from_pretrained(folder, **sizes, **asked).config


def by_config(folder, asked, sizes, _):
    return BoTModelForSequenceClassification.from_pretrained(folder, config={**sizes, **asked}).config


def by_plan_of_files(folder, asked, sizes, out):
    transformers_bot.resize_checkpoint(folder, out / "made", {**sizes, **asked} or {"num_labels": 3})
    return transformers.AutoConfig.from_pretrained(out / "made")


def by_integration(folder, asked, sizes, _):
    with transformers_bot.integration():
        found = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **sizes, **asked).config
    found.id2label = {int(number): name for number, name in found.id2label.items()}  # transformers leaves text as it is
    return found


def by_command(folder, asked, sizes, out):
    pairs = [f"--set={name}={json.dumps(value)}" for name, value in {**sizes, **asked}.items()]
    assert main(["resize", folder, str(out / "made"), *pairs]) == 0
    return transformers.AutoConfig.from_pretrained(out / "made")


@pytest.mark.covering(few=3)
@pytest.mark.parametrize("call", [by_keywords, by_config, by_plan_of_files, by_integration, by_command])
@pytest.mark.parametrize("sizes", [{}, GROWN], ids=["own size", "grown"])
@pytest.mark.parametrize("asked", CALLS.values(), ids=CALLS)
def test_names_are_those_of_plain_transformers(source, tmp_path, asked, sizes, call):
    if not sizes and not asked:
        pytest.skip("asks for nothing")
    assert names(call(source, asked, sizes, tmp_path)) == plain(source, asked)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("sizes", [{}, GROWN], ids=["own size", "grown"])
@pytest.mark.parametrize("asked", MORE.values(), ids=MORE)
def test_a_head_of_another_count_has_the_names_asked_for(source, asked, sizes):
    renewed = {"ignore_mismatched_sizes": True}
    made = BoTModelForSequenceClassification.from_pretrained(source, **sizes, **asked, **renewed)
    assert names(made.config) == plain(source, asked)
    assert made.classifier.out_features == len(made.config.id2label)


@pytest.mark.parametrize("sizes", [{}, {"num_hidden_layers": 3}], ids=["own size", "deeper"])
def test_a_new_head_on_a_model_without_labels(saved, sizes):
    folder, _ = saved("roberta", "RobertaForMaskedLM")
    asked = CALLS["both and the count"]
    made = BoTModelForTokenClassification.from_pretrained(folder, **sizes, **asked)
    assert names(made.config) == (NAMES, NUMBERS)


@pytest.mark.parametrize("sizes", [{}, GROWN], ids=["own size", "grown"])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, r"num_labels is 3, but id2label names 2 labels"),
        ({"id2label": {"x": "a"}}, r"id2label has the keys \['x'\]"),
        ({"id2label": {0: "a", "0": "b"}}, r"each once"),
        ({"id2label": ["a", "b"]}, r"id2label is \['a', 'b'\]; it must be a dict"),
        ({"id2label": {"\x1b[31m": "\0"}}, r"id2label has the keys"),
    ],
)
def test_names_that_contradict_themselves_are_named(source, asked, message, sizes):
    with pytest.raises(BadOption, match=message) as caught:
        transformers_bot.plan(source, **sizes, **asked)
    assert str(caught.value).isprintable()


def test_numbers_that_the_names_left_behind_are_a_warning(source):
    changed = transformers_bot.plan(source, {**GROWN, "id2label": NAMES}).warnings
    assert any("label2id" in sentence for sentence in changed)
    whole = transformers_bot.plan(source, {**GROWN, **CALLS["both and the count"]}).warnings
    assert not any("label2id" in sentence for sentence in whole)
