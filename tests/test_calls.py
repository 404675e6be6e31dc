"""Ways to call: what transformers accepts is accepted, what would be ignored in silence is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from families import resized_config

import transformers_bot
from transformers_bot import BadKeyword, BoTModel, BoTModelForMaskedLM, UnsupportedArchitecture
from transformers_bot.errors import BadOption

LARGER = {"hidden_size": 24, "num_attention_heads": 6}


def test_constructor_keywords_reach_the_model(saved):
    folder, _ = saved("bert", "BertModel")
    assert BoTModel.from_pretrained(folder, add_pooling_layer=False).pooler is None
    grown = BoTModel.from_pretrained(folder, add_pooling_layer=False, **LARGER)
    assert grown.pooler is None
    assert grown.config.hidden_size == 24


@pytest.mark.slow
def test_the_integration_takes_every_form_of_call(saved):
    folder, _ = saved("bert", "BertModel")
    with transformers_bot.integration():
        by_name = transformers.BertModel.from_pretrained(pretrained_model_name_or_path=folder, **LARGER)
        plain = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
        grown = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False, **LARGER)
    assert by_name.config.hidden_size == 24
    assert plain.pooler is None
    assert plain.config.hidden_size == 12
    assert grown.pooler is None
    assert grown.config.hidden_size == 24


@pytest.mark.slow
def test_an_old_config_without_its_model_type(saved, tmp_path):
    folder, built = saved("bert", "BertForMaskedLM")
    for file in Path(folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    fields = json.loads((tmp_path / "config.json").read_text())
    fields.pop("model_type")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    wanted = resized_config(built.config, hidden=24, heads=6)
    resized = BoTModelForMaskedLM.from_pretrained(tmp_path, config=wanted)
    expected = BoTModelForMaskedLM.from_pretrained(folder, config=wanted)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(resized.state_dict()[name], tensor, rtol=0, atol=0)
    with transformers_bot.integration():
        same = transformers.BertForMaskedLM.from_pretrained(tmp_path, config=built.config)
    assert same.config.hidden_size == 12


def test_numpy_integers_are_sizes(saved):
    folder, _ = saved("bert", "BertModel")
    model = BoTModel.from_pretrained(folder, hidden_size=np.int64(24), num_attention_heads=np.int32(6))
    assert type(model.config.hidden_size) is int
    assert model.config.hidden_size == 24


def test_planned_bytes_follow_the_dtype(saved):
    folder, _ = saved("bert", "BertModel", dtype=torch.float32)
    plan = transformers_bot.plan(folder, dtype="bfloat16", **LARGER)
    assert plan.to_dict()["bytes"]["target"] == 2 * plan.parameters
    assert transformers_bot.plan(folder, **LARGER).to_dict()["bytes"]["target"] == 4 * plan.parameters


def test_a_config_by_position_is_refused(saved):
    folder, built = saved("bert", "BertModel")
    with pytest.raises(BadKeyword, match="by keyword only"):
        BoTModel.from_pretrained(folder, resized_config(built.config, layer=1))


def test_fields_that_no_override_may_change(saved):
    folder, _ = saved("gpt2", "GPT2Model")
    with pytest.raises(BadKeyword, match="cannot be changed"):
        BoTModel.from_pretrained(folder, model_type="bert")
    with pytest.raises(BadKeyword, match="given twice"):
        BoTModel.from_pretrained(folder, n_embd=24, hidden_size=48)
    with pytest.raises(BadKeyword, match="hiden"):
        transformers_bot.configs.get("bert-small", hiden=3)
    with pytest.raises(BadOption, match="unknown method"):
        transformers_bot.enable(method="nope")


def test_cross_attention_is_refused_by_name(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    with pytest.raises(UnsupportedArchitecture, match="add_cross_attention"):
        transformers_bot.BoTModelForCausalLM.from_pretrained(folder, n_layer=4, add_cross_attention=True)


def test_another_label_count_is_refused_at_equal_sizes_too(saved):
    folder, built = saved("bert", "BertForSequenceClassification")
    labels = built.config.num_labels + 2
    factory = transformers_bot.BoTModelForSequenceClassification
    with pytest.raises(transformers_bot.IncompatibleModels, match="ignore_mismatched_sizes=True"):
        factory.from_pretrained(folder, num_labels=labels)
    model = factory.from_pretrained(folder, num_labels=labels, ignore_mismatched_sizes=True)
    assert model.classifier.out_features == labels


# -- how much of the package one call enters ---------------------------------------------------------

HALF = {"n_layer": 1, "n_embd": 6, "n_head": 1}
CALLS_OF_A_FAMILY = {
    "half": ("gpt2", "GPT2LMHeadModel", HALF),
    "half by a wavelet": ("gpt2", "GPT2LMHeadModel", {**HALF, "bot_config": {"wavelet": "db2", "depth": "wavelet"}}),
    "half on batches": ("gpt2", "GPT2LMHeadModel", {**HALF, "calibration": [{"input_ids": torch.arange(6)[None]}]}),
    "twice": ("bert", "BertForMaskedLM", {"hidden_size": 24, "num_attention_heads": 6, "num_hidden_layers": 4}),
    "images": ("vit", "ViTForImageClassification", {"num_hidden_layers": 1, "intermediate_size": 8}),
}


MEASURING = 2  # modules more in a call that runs the source, and fits to what it measures


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("name", CALLS_OF_A_FAMILY)
def test_a_call_enters_at_most_thirty_modules(saved, name):
    family, head, words = CALLS_OF_A_FAMILY[name]
    folder, _ = saved(family, head)
    factory = getattr(transformers_bot, "BoTModelFor" + head.replace("LMHeadModel", "ForCausalLM").partition("For")[2])
    factory.from_pretrained(folder, **words)  # the first call imports
    root, entered = str(Path(transformers_bot.__file__).parent), set()

    def note(frame, event, _argument):
        if event == "call" and frame.f_code.co_filename.startswith(root):
            entered.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        factory.from_pretrained(folder, **words)
    finally:
        sys.setprofile(before)
    assert 10 < len(entered) <= 30 + MEASURING * ("calibration" in words), sorted(entered)
