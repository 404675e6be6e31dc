"""Verify: a result is what its record says, or the places where it is not are named."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from families import ALL_HEADS, LARGER, MAIN_HEADS, SMALLER, build, factory_for, resize, resized_config, save
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import transformers_bot
from transformers_bot import (
    BadCheckpoint,
    BadKeyword,
    BadOption,
    BoTModelForCausalLM,
    IncompatibleModels,
    UnsafeCheckpoint,
    verify,
)

resize_checkpoint = partial(transformers_bot.resize_checkpoint, record_path=True)
FACTORY_HEADS = [pair for pair in ALL_HEADS if pair[1] != "GPT2DoubleHeadsModel"]


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("sizes", [SMALLER, LARGER], ids=["shrink", "grow"])
@pytest.mark.parametrize(("family", "head"), FACTORY_HEADS)
def test_a_result_is_bit_equal(saved, tmp_path, family, head, sizes):
    source, built = saved(family, head)
    resize_checkpoint(source, tmp_path / "out", resized_config(built.config, **sizes))
    found = verify(tmp_path / "out")
    assert found.equal, str(found)
    assert found.compared == len(load_file(tmp_path / "out/model.safetensors"))
    assert not found.unknown


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(
    "keywords",
    [
        {"dtype": "bfloat16", "max_shard_size": "10KB"},
        {"bot_config": {"gain": "raw", "wavelet": "db2"}},
        {"bot_config": {"seed": 3}, "task": "sequence-classification"},
        {"method": "weight_selection"},
    ],
    ids=lambda keywords: next(iter(keywords)),
)
def test_options_are_in_the_record(saved, tmp_path, keywords):
    source, built = saved("gpt2", "GPT2LMHeadModel")
    resize_checkpoint(source, tmp_path / "out", resized_config(built.config, **SMALLER), **keywords)
    assert verify(tmp_path / "out").equal


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_a_model_that_was_saved_from_memory_is_verified_too(saved, tmp_path, family, head):
    source, built = saved(family, head)
    resize(source, resized_config(built.config, **LARGER), head, record_path=True).save_pretrained(tmp_path / "out")
    found = verify(tmp_path / "out")
    assert found.equal, str(found)
    assert found.compared > 10


@pytest.mark.slow
def test_new_heads_of_a_model_from_memory_are_named_as_unknown(saved, tmp_path):
    source, built = saved("bert", "BertForPreTraining")
    wanted = resized_config(built.config, **SMALLER)
    factory = factory_for("BertForTokenClassification", wanted)
    factory.from_pretrained(source, config=wanted, record_path=True).save_pretrained(tmp_path / "out")
    found = verify(tmp_path / "out")
    assert found.equal
    assert set(found.unknown) == {"classifier.weight", "classifier.bias"}
    assert "drawn at random" in str(found)


@pytest.fixture
def result(saved, tmp_path) -> Path:
    source, built = saved("gpt2", "GPT2LMHeadModel")
    resize_checkpoint(source, tmp_path / "out", resized_config(built.config, **SMALLER))
    return tmp_path / "out"


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, change) -> None:
    fields = json.loads((folder / "config.json").read_text())
    change(fields)
    (folder / "config.json").write_text(json.dumps(fields))


@pytest.mark.slow
def test_one_changed_value_is_found(result):
    def change(tensors):
        tensors["transformer.h.0.mlp.c_fc.weight"][2, 3] += 1e-9

    change_weights(result, change)
    found = verify(result)
    assert not found.equal
    assert len(found.differing) == 1
    assert "transformer.h.0.mlp.c_fc.weight: 1 of 60 values differ" in found.differing[0]
    assert "differs in 1 place (" in str(found)


@pytest.mark.slow
def test_lost_added_and_recast_tensors_are_found(result):
    def change(tensors):
        del tensors["transformer.ln_f.bias"]
        tensors["transformer.extra"] = torch.zeros(3, dtype=torch.float64)
        tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"].float()

    change_weights(result, change)
    text = str(verify(result))
    assert "transformer.ln_f.bias: not in the result" in text
    assert "extra: in the result, but of no tensor" in text
    assert "transformer.wpe.weight" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [("activation_function", "relu", "activation_function"), ("layer_norm_epsilon", 1.0, "layer_norm_epsilon")],
)
def test_a_changed_config_is_found(result, field, value, shown):
    change_config(result, lambda fields: fields.update({field: value}))
    assert any(shown in line for line in verify(result).differing)


@pytest.mark.slow
def test_a_changed_record_is_found(result):
    change_config(result, lambda fields: fields["transformers_bot"].update(inherited=0.5))
    assert any("inherited" in line for line in verify(result).differing)


@pytest.mark.slow
def test_another_source_is_found(result, tmp_path):
    other = save(build("gpt2", "GPT2LMHeadModel", seed=9).model, tmp_path / "other")
    found = verify(result, source=other)
    assert any(line.startswith("source file model.safetensors: sha256") for line in found.differing)
    assert any("values differ" in line for line in found.differing)


@pytest.mark.slow
def test_training_makes_a_difference(result):
    model = AutoModelForCausalLM.from_pretrained(result)
    with torch.no_grad():
        model.transformer.ln_f.weight.add_(0.1)
    model.save_pretrained(result)
    assert [line.split(":")[0] for line in verify(result).differing] == ["transformer.ln_f.weight"]


def test_what_cannot_be_verified_is_said(saved, result):
    source, _ = saved("gpt2", "GPT2LMHeadModel")
    with pytest.raises(BadCheckpoint, match="has no record of a resize"):
        verify(source)
    change_config(result, lambda fields: fields["transformers_bot"].update(calibrated=True))
    with pytest.raises(BadOption, match="calibration batches, which are not stored"):
        verify(result)


def test_a_calibrated_result_is_not_recomputed_wrongly(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel")
    source = save(built.model, tmp_path / "source")
    resize_checkpoint(
        source, tmp_path / "out", resized_config(built.config, **SMALLER), calibration=[dict(built.inputs)] * 2
    )
    with pytest.raises(BadOption, match="calibration batches"):
        verify(tmp_path / "out")
    assert BoTModelForCausalLM.from_pretrained(tmp_path / "out").config.n_embd == 6


@pytest.mark.slow
def test_a_local_source_that_has_moved_is_asked_for(saved, tmp_path, monkeypatch):
    source, built = saved("gpt2", "GPT2LMHeadModel")
    (tmp_path / "here").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    resize_checkpoint("here", "out", resized_config(built.config, **SMALLER))
    assert verify("out").equal
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(FileNotFoundError, match=r"the local folder '.*/here', which is not here: .*source="):
        verify("out")
    assert verify("out", source="there").equal
    with pytest.raises(FileNotFoundError, match="there is no folder 'nowhere'"):
        verify("nowhere")


def test_a_source_of_another_type_is_named(saved, result):
    other, _ = saved("bert", "BertForPreTraining")
    with pytest.raises(IncompatibleModels, match="the source is a bert model and the target config is gpt2"):
        verify(result, source=other)


@pytest.mark.slow
def test_an_untied_head_is_found(result):
    change_weights(result, lambda tensors: tensors.update({"lm_head.weight": torch.ones(23, 6, dtype=torch.float64)}))
    assert any(line.startswith("lm_head.weight: tied to") for line in verify(result).differing)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("change", [{"files": 3}, {"files": {"a": 3}}, {"seed_of_new_heads": "x"}])
def test_a_damaged_record_is_named(result, change):
    change_config(result, lambda fields: fields["transformers_bot"].update(change))
    with pytest.raises(BadCheckpoint, match=r"the record of .* is damaged"):
        verify(result)


def test_a_record_does_not_open_pickles(result):
    with pytest.raises(BadKeyword, match="verify has no keyword 'sorce'"):
        verify(result, sorce="elsewhere")
    change_config(result, lambda fields: fields["transformers_bot"].update(allow_pickle=True))
    (result / "model.safetensors").rename(result / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpoint, match="pickle"):
        verify(result)


@pytest.mark.slow
def test_a_trained_model_is_said_in_one_sentence(result):
    model = AutoModelForCausalLM.from_pretrained(result)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3)
    model.save_pretrained(result)
    found = verify(result)
    assert found.trained
    assert not found.equal
    assert len(found.differing) == found.compared == len(found.changed)
    assert str(found).count("\n") == 0
    assert f"was trained or changed since it was made from {found.source}: {found.compared} of {found.compared}" in str(
        found
    )


@pytest.mark.slow
def test_a_trained_model_of_another_dtype_is_said_in_one_sentence(result):
    AutoModelForCausalLM.from_pretrained(result, dtype=torch.bfloat16).save_pretrained(result)
    assert str(verify(result)).count("\n") == 0
