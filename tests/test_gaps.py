"""Never a wrong model silently: what a checkpoint lacks or has too much of is named, not made up or lost."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from families import MAIN_HEADS, SMALLER, build, factory_for, resized_config, save
from safetensors.torch import load_file, save_file

import transformers_bot
from transformers_bot import BadCheckpoint, BadWeights, BoTModel, BoTModelForCausalLM, BoTModelForMaskedLM


@pytest.fixture
def source(tmp_path):
    """`source(family, head, change)` -> (folder, config) of a checkpoint whose tensors `change` has changed."""

    def make(family, head, change):
        built = build(family, head)
        folder = Path(save(built.model, tmp_path / "source"))
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder), built.config

    return make


def resize(folder, config, **keywords):
    wanted = resized_config(config, **SMALLER)
    return factory_for(config.architectures[0], wanted).from_pretrained(
        folder, config=wanted, output_loading_info=True, **keywords
    )


def without(part):
    def change(tensors):
        gone = [name for name in tensors if part in name]
        assert gone
        for name in gone:
            del tensors[name]

    return change


@pytest.mark.covering(few=2)
@pytest.mark.parametrize(
    ("family", "head", "part"),
    [
        ("bert", "BertForPreTraining", "encoder.layer.1.attention.self.key"),
        ("roberta", "RobertaForMaskedLM", "embeddings.LayerNorm.bias"),
        ("gpt2", "GPT2LMHeadModel", "h.1.mlp"),
        ("vit", "ViTForImageClassification", "encoder.layer.1.layernorm_before"),
        ("deit", "DeiTForImageClassificationWithTeacher", "cls_token"),
    ],
)
def test_a_tensor_that_the_architecture_has_must_be_there(source, family, head, part):
    folder, config = source(family, head, without(part))
    for strict in (True, False):
        with pytest.raises(BadCheckpoint, match=rf"lacks \d+ tensors of its own architecture {head}: .*complete"):
            resize(folder, config, strict=strict)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(
    ("family", "head", "part"),
    [
        ("bert", "BertForPreTraining", "cls.predictions.transform"),
        ("vit", "ViTForImageClassification", "classifier"),
    ],
)
def test_a_lost_head_is_an_error_or_made_anew_and_said(source, family, head, part):
    folder, config = source(family, head, without(part))
    with pytest.raises(BadCheckpoint, match=rf"lacks \d tensors of the head of its own architecture {head}: .*strict="):
        resize(folder, config)
    _, info = resize(folder, config, strict=False)
    assert info["missing_keys"]
    assert all(part in name for name in info["missing_keys"])
    report = info["report"]
    assert report.inherited < 1
    assert any("tensors of the head" in text for text in report.warnings)
    assert {row.name for row in report.tensors if row.action == "fresh"} == info["missing_keys"]


def test_a_new_head_is_no_loss(source):
    folder, config = source("bert", "BertForPreTraining", lambda _: None)
    model = factory_for("BertForTokenClassification", config).from_pretrained(
        folder, config=resized_config(config, **SMALLER)
    )
    assert model.classifier.weight.shape == (4, 6)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "head"), [("bert", "BertModel"), ("roberta", "RobertaModel"), ("vit", "ViTModel")])
def test_a_pooler_may_be_missing(source, family, head):
    folder, config = source(family, head, without("pooler"))
    _, info = BoTModel.from_pretrained(folder, config=resized_config(config, **SMALLER), output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"pooler"}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_a_tensor_that_nobody_knows_is_an_error(source, family, head):
    folder, config = source(family, head, lambda tensors: tensors.update({"adapter.down.weight": torch.ones(2, 2)}))
    with pytest.raises(BadCheckpoint, match=rf"holds 1 tensors that no {family} model has: .*adapter.down.weight"):
        resize(folder, config)
    _, info = resize(folder, config, strict=False)
    assert "adapter.down.weight" in info["unexpected_keys"]


def test_more_layers_than_the_config_says_are_an_error(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel", layer=3)
    folder = Path(save(built.model, tmp_path / "source"))
    fields = json.loads((folder / "config.json").read_text()) | {"n_layer": 2}
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(BadCheckpoint, match=r"tensors that no gpt2 model has: .*h\.2\."):
        BoTModelForCausalLM.from_pretrained(folder, n_embd=6)


def test_other_heads_of_the_family_are_left_out_without_ado(source):
    extra = {"cls.seq_relationship.weight": torch.ones(2, 12), "cls.seq_relationship.bias": torch.ones(2)}
    folder, config = source("bert", "BertForMaskedLM", lambda tensors: tensors.update(extra))
    _, info = BoTModelForMaskedLM.from_pretrained(
        folder, config=resized_config(config, **SMALLER), output_loading_info=True
    )
    assert set(extra) <= info["unexpected_keys"]


# -- NaN and infinity -----------------------------------------------------------------------------


def spoiled(tensors):
    tensors["transformer.h.1.mlp.c_fc.weight"][2, 5] = torch.nan
    tensors["transformer.wpe.weight"][0, 3] = torch.inf


def test_nan_is_named(source):
    folder, config = source("gpt2", "GPT2LMHeadModel", spoiled)
    with pytest.raises(BadWeights, match=r"2 tensors hold NaN or Inf: .*wpe.weight.*\[0, 3\]") as caught:
        resize(folder, config)
    assert "h.1.mlp.c_fc.weight" in str(caught.value)
    assert "[2, 5]" in str(caught.value)
    assert "nonfinite='zero'" in str(caught.value)


@pytest.mark.slow
def test_nan_becomes_zero_on_request(source, tmp_path):
    folder, config = source("gpt2", "GPT2LMHeadModel", spoiled)
    model, info = resize(folder, config, nonfinite="zero")
    assert all(bool(x.isfinite().all()) for x in model.state_dict().values())
    assert any("set to zero" in text for text in info["report"].warnings)
    tensors = load_file(Path(folder) / "model.safetensors")
    assert bool(tensors["transformer.wpe.weight"].isinf().any())  # the source's file stays as it is
    tensors = {name: torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0) for name, x in tensors.items()}
    mended = tmp_path / "mended"
    mended.mkdir()
    (mended / "config.json").write_text((Path(folder) / "config.json").read_text())
    save_file(tensors, mended / "model.safetensors", metadata={"format": "pt"})
    expected, _ = resize(str(mended), config)
    assert all(torch.equal(x, expected.state_dict()[name]) for name, x in model.state_dict().items())


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("sizes", [{"hidden": 6}, {"hidden": 24, "heads": 6}, {"ffn": 10}, {"layer": 1}])
def test_nan_goes_through_on_request(source, sizes):
    folder, config = source("gpt2", "GPT2LMHeadModel", spoiled)
    wanted = resized_config(config, **sizes)
    model, info = BoTModelForCausalLM.from_pretrained(folder, config=wanted, output_loading_info=True, nonfinite="warn")
    assert any("hold NaN or Inf" in text for text in info["report"].warnings)
    assert bool(model.transformer.wpe.weight.isinf().any())


# -- same sizes, and classes that are none --------------------------------------------------------


def test_a_target_of_the_sources_sizes_is_checked_as_well(source):
    folder, config = source("gpt2", "GPT2LMHeadModel", without("h.1.mlp.c_fc"))
    with pytest.raises(BadCheckpoint, match="lacks 2 tensors of its own architecture"):
        BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config))


def test_nan_of_a_target_of_the_sources_sizes_is_named(source):
    folder, config = source("gpt2", "GPT2LMHeadModel", spoiled)
    with pytest.raises(BadWeights, match="2 tensors hold NaN or Inf"):
        BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config))


@pytest.mark.parametrize("name", ["set_seed", "Trainer", "GPT2PreTrainedModel", "AutoModel"])
def test_only_a_model_is_taken_for_an_architecture(source, name, monkeypatch):
    folder, _ = source("gpt2", "GPT2LMHeadModel", lambda _: None)
    called = []
    if name in ("set_seed", "Trainer"):
        monkeypatch.setattr(transformers, name, lambda *given: called.append(given))
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [name]}))
    assert transformers_bot.plan(folder, n_embd=6).source.model_class == "GPT2LMHeadModel"  # by its tensors
    assert not called


def test_an_architecture_of_another_type_is_named(source):
    folder, _ = source("gpt2", "GPT2LMHeadModel", lambda _: None)
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertModel"]}))
    with pytest.raises(BadCheckpoint, match=r"architectures in config\.json names BertModel, which is no gpt2 model"):
        transformers_bot.plan(folder, n_embd=6)
