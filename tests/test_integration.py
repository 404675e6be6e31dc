"""Inside the integration transformers' own `from_pretrained` resizes; outside it is exactly itself."""

import pytest
import torch
import transformers
from families import ALL_HEADS, MAIN_HEADS, class_of, resize, resized_config
from test_model import GROWN, assert_same_tensors
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GPT2LMHeadModel, PreTrainedModel

import transformers_bot
from transformers_bot import BadSize, IncompatibleModels
from transformers_bot.origin import folder_name

ORIGINAL = PreTrainedModel.__dict__["from_pretrained"]


@pytest.fixture(autouse=True)
def _leaves_transformers_as_it_was():
    assert PreTrainedModel.__dict__["from_pretrained"] is ORIGINAL
    yield
    assert PreTrainedModel.__dict__["from_pretrained"] is ORIGINAL


@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_concrete_classes_resize_inside(saved, family, head):
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **GROWN)
    with transformers_bot.integration():
        model = class_of(head).from_pretrained(folder, config=wanted, dtype=torch.float64)
    assert_same_tensors(model, resize(folder, wanted, head, dtype=torch.float64))


@pytest.mark.parametrize(
    ("auto", "family", "head"),
    [
        ("AutoModel", "bert", "BertModel"),
        ("AutoModelForMaskedLM", "bert", "BertForMaskedLM"),
        ("AutoModelForPreTraining", "bert", "BertForPreTraining"),
        ("AutoModelForMaskedLM", "roberta", "RobertaForMaskedLM"),
        ("AutoModelForCausalLM", "gpt2", "GPT2LMHeadModel"),
        ("AutoModelForQuestionAnswering", "gpt2", "GPT2ForQuestionAnswering"),
        ("AutoModelForImageClassification", "vit", "ViTForImageClassification"),
        ("AutoModelForMaskedImageModeling", "deit", "DeiTForMaskedImageModeling"),
    ],
)
def test_auto_classes_resize_inside(saved, auto, family, head):
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **GROWN)
    with transformers_bot.integration():
        model = getattr(transformers, auto).from_pretrained(folder, config=wanted, dtype=torch.float64)
    assert_same_tensors(model, resize(folder, wanted, head, dtype=torch.float64))
    assert model.config.transformers_bot["source"] == folder_name(folder)


def test_overrides_resize_inside(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    expected = transformers_bot.BoTModelForCausalLM.from_pretrained(folder, n_layer=3, n_embd=24)
    with transformers_bot.integration():
        assert_same_tensors(GPT2LMHeadModel.from_pretrained(folder, n_layer=3, n_embd=24), expected)
        assert_same_tensors(AutoModelForCausalLM.from_pretrained(folder, n_layer=3, n_embd=24), expected)


def test_options_are_the_contexts(saved):
    folder, built = saved("bert", "BertForMaskedLM")
    wanted = resized_config(built.config, **GROWN)
    options = {"gain": "raw", "wavelet": "db2"}
    with transformers_bot.integration(options):
        model = AutoModelForMaskedLM.from_pretrained(folder, config=wanted, dtype=torch.float64)
    assert_same_tensors(model, resize(folder, wanted, "BertForMaskedLM", bot_config=options, dtype=torch.float64))


@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
@pytest.mark.parametrize("request_of", [lambda _: {}, lambda c: {"config": c}, lambda _: {"output_attentions": True}])
def test_equal_sizes_are_left_to_transformers(saved, family, head, request_of):
    folder, built = saved(family, head)
    keywords = request_of(resized_config(built.config))
    expected = class_of(head).from_pretrained(folder, **keywords)
    with transformers_bot.integration():
        actual = class_of(head).from_pretrained(folder, **keywords)
    assert_same_tensors(actual, expected)
    assert actual.config.to_dict() == expected.config.to_dict()


def test_other_architectures_are_left_to_transformers(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=11
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    with transformers_bot.integration():
        assert_same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("family_head", MAIN_HEADS)
def test_outside_a_mismatch_raises_as_before(saved, family_head):
    family, head = family_head
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **GROWN)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes") as before:
        class_of(head).from_pretrained(folder, config=wanted)
    with transformers_bot.integration():
        class_of(head).from_pretrained(folder, config=wanted)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes") as after:
        class_of(head).from_pretrained(folder, config=wanted)
    assert str(after.value) == str(before.value)


def test_importing_changes_nothing_and_disable_takes_back():
    assert PreTrainedModel.__dict__["from_pretrained"] is ORIGINAL
    transformers_bot.enable()
    assert PreTrainedModel.__dict__["from_pretrained"] is not ORIGINAL
    transformers_bot.enable({"gain": "raw"})
    transformers_bot.disable()
    assert PreTrainedModel.__dict__["from_pretrained"] is ORIGINAL
    transformers_bot.disable()


def test_an_error_inside_still_takes_back(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    with pytest.raises(BadSize, match="n_embd is 0"), transformers_bot.integration():
        GPT2LMHeadModel.from_pretrained(folder, n_embd=0)
    with pytest.raises(IncompatibleModels, match="reheads"), transformers_bot.integration():
        GPT2LMHeadModel.from_pretrained(folder, n_head=4)


def test_contexts_nest_and_the_outer_options_come_back(saved):
    folder, built = saved("bert", "BertForMaskedLM")
    wanted = resized_config(built.config, **GROWN)
    seeds = []
    with transformers_bot.integration({"seed": 1}):
        with transformers_bot.integration({"seed": 2}):
            seeds.append(AutoModelForMaskedLM.from_pretrained(folder, config=wanted).config.transformers_bot)
        seeds.append(AutoModelForMaskedLM.from_pretrained(folder, config=wanted).config.transformers_bot)
    assert [facts["options"]["seed"] for facts in seeds] == [2, 1]


def test_the_method_keeps_its_name_and_documentation():
    with transformers_bot.integration():
        patched = PreTrainedModel.from_pretrained
        assert patched.__name__ == "from_pretrained"
        assert patched.__doc__ == ORIGINAL.__func__.__doc__


def test_loading_info_inside(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    with transformers_bot.integration():
        model, info = GPT2LMHeadModel.from_pretrained(folder, n_layer=3, output_loading_info=True)
    assert model.config.n_layer == 3
    assert not info["missing_keys"]
    assert info["resampled_keys"] | info["copied_keys"]
