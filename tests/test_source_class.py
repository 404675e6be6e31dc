"""A checkpoint whose config.json does not name its class keeps its head: the tensors tell it, or the caller has to."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    GPT2DoubleHeadsModel,
    GPT2LMHeadModel,
    RobertaForMaskedLM,
)

import transformers_bot
from transformers_bot import BadCheckpoint, BadOption, BoTModel, BoTModelForMaskedLM, resize_checkpoint
from transformers_bot.cli import main
from transformers_bot.tools.inspecting import inspect

WIDE = {"hidden_size": 32, "num_attention_heads": 4}
TEXT = {
    **{"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32},
    **{"vocab_size": 40, "max_position_embeddings": 20},
}
IMAGE = {
    **{"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32},
    **{"image_size": 16, "patch_size": 4, "encoder_stride": 4},
}
SIZES = {"Bert": TEXT, "Roberta": TEXT, "GPT2": TEXT, "ViT": IMAGE, "DeiT": IMAGE}
UNNAMED = {"missing": ..., "null": None, "empty": [], "unknown": ["MyOwnModelForX"]}


def classes() -> Iterator[tuple[str, str]]:
    """Every class that transformers has, by family."""
    for family in SIZES:
        base = getattr(transformers, f"{family}Model")
        for name, found in vars(sys.modules[base.__module__]).items():
            model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
            if model and found.config_class is base.config_class and not name.endswith("PreTrainedModel"):
                yield family, name


def config_of(family: str, **fields):
    made = getattr(transformers, f"{family}Config")()
    for name, value in {**SIZES[family], **fields}.items():
        setattr(made, name, value)
    return made


def saved(folder: Path, model, unnamed=...) -> Path:
    """A model's folder, with `architectures` as given, or without it."""
    model.save_pretrained(folder)
    edit(folder, architectures=unnamed)
    return folder


def edit(folder: Path, **fields) -> None:
    """Set fields of a folder's config, or take them out (...)."""
    path = folder / "config.json"
    kept = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in kept.items() if value is not ...}))


def rename(folder: Path, renamed) -> None:
    path = folder / "model.safetensors"
    save_file({renamed(name): x for name, x in load_file(path).items()}, path, {"format": "pt"})


def architecture(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["architectures"][0]


# -- told by its tensors --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_every_class_is_told_by_its_tensors(tmp_path, number):
    """All 29 classes, each with one way not to be named."""
    for place, (family, name) in enumerate(classes()):
        decoder = {"is_decoder": True} if name in ("BertLMHeadModel", "RobertaForCausalLM") else {}
        untied = {"tie_word_embeddings": False} if (place // 4) % 2 else {}
        if place % 4 != number:
            continue
        model = getattr(transformers, name)(config_of(family, **decoder, **untied))
        how = list(UNNAMED)[(place + number) % 4]
        folder = saved(tmp_path / name, model, UNNAMED[how])
        plan = transformers_bot.plan(folder, **WIDE)
        assert (plan.source.model_class, plan.target.model_class) == (name, name), how
        assert plan.left_out == []
        assert f"those of {name}" in plan.warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize("unnamed", UNNAMED)
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_keeps_its_head_and_its_generation_config(tmp_path, unnamed, tied):
    config = config_of("GPT2", tie_word_embeddings=tied, eos_token_id=7, bos_token_id=7)
    model = GPT2LMHeadModel(config).eval()
    model.generation_config.max_length = 9
    folder, out = saved(tmp_path / "source", model, UNNAMED[unnamed]), tmp_path / "out"
    report = resize_checkpoint(folder, out, n_embd=32, n_head=4)
    assert architecture(out) == "GPT2LMHeadModel"
    assert json.loads((out / "generation_config.json").read_text())["max_length"] == 9
    assert not report.dropped
    grown, words = transformers.AutoModelForCausalLM.from_pretrained(out), torch.arange(9)[None]
    torch.testing.assert_close(grown(words).logits, model(words).logits, rtol=1e-4, atol=1e-4)
    checked = transformers_bot.verify(out, source=folder)
    assert checked.equal, checked


@pytest.mark.slow
@pytest.mark.parametrize(("head", "family"), [("BertForMaskedLM", "Bert"), ("ViTForImageClassification", "ViT")])
def test_every_entry_tells_the_same_class(tmp_path, capsys, head, family):
    folder = str(saved(tmp_path / "source", getattr(transformers, head)(config_of(family))))
    parameters = getattr(transformers, head).from_pretrained(folder).num_parameters()
    assert inspect(folder).model_class == head
    best = transformers_bot.suggest(folder, ratio=1.0)[0]
    assert best.parameters == parameters
    options = ["--set", "hidden_size=32", "--set", "num_attention_heads=4"]
    assert main(["plan", folder, *options]) == 0
    assert head in capsys.readouterr().out
    assert main(["resize", folder, str(tmp_path / "out"), *options]) == 0
    assert architecture(tmp_path / "out") == head
    assert transformers_bot.verify(tmp_path / "out", source=folder).equal
    edit(tmp_path / "out", architectures=...)  # of the result, too: its tensors are found by what it is
    found = transformers_bot.verify(tmp_path / "out", source=folder)
    assert [line.partition(":")[0] for line in found.differing] == ["config architectures"]


@pytest.mark.slow
def test_what_older_versions_saved_beside_a_head_is_no_other_head(tmp_path):
    """LayerNorm.gamma, constants, and a pooler that the class does not have any more."""
    folder = saved(tmp_path / "source", RobertaForMaskedLM(config_of("Roberta")))
    path = folder / "model.safetensors"
    rename(folder, lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"))
    constants = {"position_ids": torch.arange(20)[None], "token_type_ids": torch.zeros(1, 20, dtype=torch.long)}
    constants = {f"roberta.embeddings.{name}": value for name, value in constants.items()}
    pooler = {"roberta.pooler.dense.weight": torch.ones(16, 16), "roberta.pooler.dense.bias": torch.ones(16)}
    save_file({**load_file(path), **constants}, path, {"format": "pt"})
    plan = transformers_bot.plan(folder, **WIDE)
    report = resize_checkpoint(folder, tmp_path / "constants", **WIDE)
    assert plan.target.model_class == "RobertaForMaskedLM"
    assert not report.dropped
    save_file({**load_file(path), **pooler}, path, {"format": "pt"})
    report = resize_checkpoint(folder, tmp_path / "pooler", **WIDE)
    assert architecture(tmp_path / "pooler") == "RobertaForMaskedLM"
    assert set(report.dropped) == set(pooler)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_constants_of_older_versions_are_no_tensors_of_a_head(tmp_path, family):
    model = getattr(transformers, f"{family}ForSequenceClassification")(config_of(family))
    model.save_pretrained(tmp_path)
    path, prefix = tmp_path / "model.safetensors", f"{model.base_model_prefix}.embeddings"
    old = {f"{prefix}.position_ids": torch.arange(20)[None], f"{prefix}.token_type_ids": torch.zeros(1, 20).long()}
    save_file({**load_file(path), **old}, path, {"format": "pt"})
    report = resize_checkpoint(tmp_path, tmp_path / "out", **WIDE)
    assert not report.dropped
    assert not any("left out" in text for text in report.warnings)


# -- not told -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_classes_with_the_same_tensors_are_an_error_that_says_how_to_choose(tmp_path, capsys):
    model = BertForSequenceClassification(config_of("Bert", num_labels=1))
    folder = saved(tmp_path / "source", model)
    both = r"BertForSequenceClassification \(task='sequence-classification'\).*BertForMultipleChoice \(task='multiple"
    for call in (
        lambda: resize_checkpoint(folder, tmp_path / "out", **WIDE),
        lambda: transformers_bot.plan(folder, **WIDE),
        lambda: transformers_bot.suggest(folder, ratio=0.5),
        lambda: inspect(folder),
    ):
        with pytest.raises(BadOption, match=both):
            call()
    assert main(["plan", str(folder), "--set", "num_hidden_layers=1"]) == 2
    assert "--task sequence-classification" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert set(transformers_bot.plan(folder, task="base").dropped) == {"classifier.weight", "classifier.bias"}
    task = {"task": "multiple-choice"}
    assert transformers_bot.plan(folder, **WIDE, **task).target.model_class == "BertForMultipleChoice"
    assert inspect(folder, **task).model_class == "BertForMultipleChoice"
    assert transformers_bot.suggest(folder, ratio=1.0, **task)[0].parameters == model.num_parameters()
    assert main(["inspect", str(folder), "--task", "multiple-choice"]) == 0
    edit(folder, problem_type="regression")
    report = resize_checkpoint(folder, tmp_path / "out", **WIDE)
    assert architecture(tmp_path / "out") == "BertForSequenceClassification"
    assert not report.dropped


@pytest.mark.slow
def test_a_head_that_no_class_has_is_an_error_that_names_task(tmp_path):
    folder = saved(tmp_path / "source", transformers.BertModel(config_of("Bert")), ["MyBertForX"])
    path = folder / "model.safetensors"
    save_file({**load_file(path), "my_head.weight": torch.ones(3, 16)}, path, {"format": "pt"})
    with pytest.raises(BadOption, match=r"'MyBertForX'.*no bert class \('my_head.weight' beside.*task=, one of base"):
        resize_checkpoint(folder, tmp_path / "out", **WIDE)
    with pytest.raises(BadCheckpoint, match="strict=False"):
        resize_checkpoint(folder, tmp_path / "out", task="base", **WIDE)
    report = resize_checkpoint(folder, tmp_path / "out", task="base", strict=False, **WIDE)
    assert set(report.dropped) == {"my_head.weight"}
    assert any("my_head.weight" in text and "left out" in text for text in report.warnings)
    assert transformers_bot.verify(tmp_path / "out", source=folder).equal


def test_a_plan_that_cannot_look_says_so(tmp_path):
    folder = saved(tmp_path, BertForMaskedLM(config_of("Bert")))
    (folder / "model.safetensors").unlink()
    plan = transformers_bot.plan(folder, **WIDE)
    assert plan.target.model_class == "BertModel"
    assert "could not be looked at" in plan.warnings[0]
    assert "task=" in plan.warnings[0]


# -- what is left out -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_a_head_that_is_left_out_is_in_the_plan_the_report_and_the_log(tmp_path, caplog, monkeypatch, named):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = GPT2LMHeadModel(config_of("GPT2", tie_word_embeddings=False))
    folder = saved(tmp_path / "source", model, ["GPT2LMHeadModel"] if named else None)
    lost = "lm_head.weight"
    for plan in (transformers_bot.plan(folder, task="base", n_embd=32), BoTModel.plan(folder, n_embd=32)):
        assert set(plan.dropped) == {lost}
        assert any(lost in sentence for sentence in plan.warnings)
    report = resize_checkpoint(folder, tmp_path / "out", task="base", n_embd=32, n_head=4)
    assert set(report.dropped) == {lost}
    for text in (f"left out, because GPT2Model has no place for such: {lost}", "generation_config.json"):
        assert any(text in sentence for sentence in report.warnings)
        assert text in caplog.text
    caplog.clear()
    _, info = BoTModel.from_pretrained(folder, n_embd=32, n_head=4, output_loading_info=True)
    assert set(info["report"].dropped) == {lost}
    assert lost in caplog.text
    checked = transformers_bot.verify(tmp_path / "out", source=folder)
    assert checked.equal, checked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "named", "lost"),
    [
        (BertForMaskedLM, "BertModel", 5),
        (BertForPreTraining, "BertForMaskedLM", 4),
        (RobertaForMaskedLM, "RobertaModel", 5),
        (GPT2DoubleHeadsModel, "GPT2LMHeadModel", 2),
        (BertForMaskedLM, "BertForMaskedLM", 0),
        (GPT2LMHeadModel, "GPT2LMHeadModel", 0),
    ],
)
def test_a_plan_knows_what_files_hold_beside_the_class_that_their_config_names(tmp_path, written, named, lost):
    kind = next(kind for kind in ("Bert", "Roberta", "GPT2") if written.__name__.startswith(kind))
    folder = saved(tmp_path / "source", written(config_of(kind)), [named])
    wide = {"n_embd": 32, "n_head": 4} if kind == "GPT2" else WIDE
    report = resize_checkpoint(folder, tmp_path / "out", wide)
    plan = transformers_bot.plan(folder, wide)
    assert set(plan.dropped) == set(report.dropped)
    assert len(plan.dropped) == lost
    assert sum("has no place for such" in sentence for sentence in plan.warnings) == bool(lost)
    other = resize_checkpoint(folder, tmp_path / "other", wide, task="token-classification")
    assert set(transformers_bot.plan(folder, wide, task="token-classification").dropped) >= set(other.dropped)
    assert lost <= len(other.dropped)
    assert not transformers_bot.plan(AutoConfig.from_pretrained(folder), wide).dropped


@pytest.mark.slow
def test_a_head_that_was_lost_without_a_word_is_a_difference(tmp_path):
    """As the first version did it."""
    folder = saved(tmp_path / "source", BertForMaskedLM(config_of("Bert")))
    resize_checkpoint(folder, tmp_path / "out", task="base", **WIDE)
    record = json.loads((tmp_path / "out" / "config.json").read_text())["transformers_bot"]
    del record["left_out"], record["classes"]
    edit(tmp_path / "out", transformers_bot=record)
    checked = transformers_bot.verify(tmp_path / "out", source=folder)
    assert not checked.equal
    assert any("cls.predictions" in line for line in checked.differing)


def test_half_a_head_is_no_class(tmp_path):
    folder = saved(tmp_path, BertForMaskedLM(config_of("Bert")))
    path = folder / "model.safetensors"
    held = {name: x for name, x in load_file(path).items() if "transform" not in name}
    save_file(held, path, {"format": "pt"})
    with pytest.raises(BadOption, match="no bert class"):
        resize_checkpoint(folder, tmp_path / "out", **WIDE)


# -- wrapped names --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrapper", "named"),
    [
        ("module.", True),
        ("_orig_mod.", False),
        ("module._orig_mod.", False),
        ("_orig_mod.module.", True),
        ("_fsdp_wrapped_module.", True),
    ],
)
def test_names_that_all_have_a_wrapper_are_read_without_it(tmp_path, wrapper, named):
    model = BertForMaskedLM(config_of("Bert")).eval()
    folder = saved(tmp_path / "source", model, ["BertForMaskedLM"] if named else ...)
    rename(folder, lambda name: wrapper + name)
    resize_checkpoint(folder, tmp_path / "out", **WIDE)
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert not any(name.startswith(("module", "_")) for name in held)
    words = torch.arange(9)[None]
    grown = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(grown(words).logits, model(words).logits, rtol=1e-4, atol=1e-4)
    assert transformers_bot.verify(tmp_path / "out", source=folder).equal
    same = BoTModelForMaskedLM.from_pretrained(folder)  # at its own sizes, too
    torch.testing.assert_close(same(words).logits, model(words).logits, rtol=0, atol=0)
    same.save_pretrained(tmp_path / "same")
    assert set(load_file(tmp_path / "same" / "model.safetensors")) >= {"bert.embeddings.LayerNorm.weight"}


@pytest.mark.slow
def test_names_of_the_vision_models_lose_a_wrapper_too(tmp_path):
    """They have two generations of names beside."""
    model = transformers.ViTForImageClassification(config_of("ViT")).eval()
    model.save_pretrained(tmp_path / "source")
    rename(tmp_path / "source", lambda name: f"module.{name}")
    picture = torch.ones(1, 3, 16, 16)
    same = transformers_bot.BoTModelForImageClassification.from_pretrained(tmp_path / "source")
    torch.testing.assert_close(same(picture).logits, model(picture).logits, rtol=0, atol=0)
    resize_checkpoint(tmp_path / "source", tmp_path / "out", hidden_size=32, num_attention_heads=4)
    grown = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(grown(picture).logits, model(picture).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(
    ("mark", "wrapper"),
    [
        ("module.", "DistributedDataParallel"),
        ("_orig_mod.", r"torch\.compile"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("_checkpoint_wrapped_module.", "torch's activation checkpointing"),
    ],
)
def test_names_of_which_some_have_a_wrapper_are_an_error_that_names_it(tmp_path, mark, wrapper):
    model = BertForMaskedLM(config_of("Bert"))
    model.save_pretrained(tmp_path)
    rename(tmp_path, lambda name: mark + name if "layer.1" in name or "cls" in name else name)
    with pytest.raises(BadCheckpoint, match=rf"'{mark}' in a name comes from {wrapper}") as caught:
        BoTModelForMaskedLM.from_pretrained(tmp_path, **WIDE)
    assert str(caught.value).count("in a name comes from") == 1  # one mark is the end of another
    model.save_pretrained(tmp_path)
    rename(tmp_path, lambda name: name.replace("bert.", "bert._orig_mod.", 1))
    with pytest.raises(BadCheckpoint, match=r"torch\.compile"):
        BoTModelForMaskedLM.from_pretrained(tmp_path, **WIDE)


@pytest.mark.parametrize("name", ["BertLMHeadModel", "RobertaForCausalLM", "GPT2LMHeadModel"])
def test_a_decoder_with_cross_attention_is_told_without_it(tmp_path, name):
    family = {"B": "Bert", "R": "Roberta", "G": "GPT2"}[name[0]]
    model = getattr(transformers, name)(config_of(family, is_decoder=True, add_cross_attention=True))
    plan = transformers_bot.plan(saved(tmp_path, model), add_cross_attention=False, **WIDE)
    assert plan.target.model_class == name
    assert any("rossatt" in one or "cross_attn" in one for one in plan.left_out)
