"""Checkpoints in older layouts give the same result as in today's, and today's names on saving."""

import json

import pytest
import torch
from families import build, class_of, resize, resized_config, save
from safetensors.torch import load_file, save_file
from test_model import GROWN, assert_same_tensors, keys_of

from transformers_bot import BoTModelForCausalLM, BoTModelForMaskedLM, BoTModelForSequenceClassification


def rewrite(folder, change) -> None:
    """Apply `change` to the tensors of a saved folder."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()}, file, {"format": "pt"})


def renamed(*pairs):
    def change(tensors):
        for old, new in pairs:
            tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
        return tensors

    return change


def without_prefix(tensors):
    return {name.removeprefix("transformer.").removeprefix("bert."): tensor for name, tensor in tensors.items()}


def with_attention_buffers(tensors):
    extra = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 12, 12).tril() for i in range(2)}
    extra |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    return tensors | extra


def openai_layout(tensors):
    return without_prefix(with_attention_buffers(tensors))


def with_position_ids(tensors):
    return tensors | {"bert.embeddings.position_ids": torch.arange(12)[None]}


OLD_VIT = (
    (".layers.", ".encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)
LAYOUTS = {
    "gamma and beta": (
        "bert",
        "BertForMaskedLM",
        renamed(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
    ),
    "position_ids": ("bert", "BertForMaskedLM", with_position_ids),
    "attention buffers": ("gpt2", "GPT2LMHeadModel", with_attention_buffers),
    "without a prefix, with buffers": ("gpt2", "GPT2LMHeadModel", openai_layout),
    "old ViT names": ("vit", "ViTForImageClassification", renamed(*OLD_VIT)),
    "old DeiT names": ("deit", "DeiTForImageClassification", renamed(*OLD_VIT)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head", "change"), LAYOUTS.values(), ids=LAYOUTS)
def test_old_layouts_give_the_same_result_and_save_todays_names(saved, tmp_path, family, head, change):
    folder, built = saved(family, head)
    save(built.model, tmp_path / "old")
    rewrite(tmp_path / "old", change)
    wanted = resized_config(built.config, **GROWN)
    model = resize(str(tmp_path / "old"), wanted, head, dtype=torch.float64)
    assert_same_tensors(model, resize(folder, wanted, head, dtype=torch.float64))
    model.save_pretrained(tmp_path / "out")
    class_of(head)(wanted).save_pretrained(tmp_path / "scratch")
    assert keys_of(tmp_path / "out") == keys_of(tmp_path / "scratch")


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(
    ("factory", "family", "head", "body"),
    [
        (BoTModelForCausalLM, "gpt2", "GPT2LMHeadModel", "GPT2Model"),
        (BoTModelForSequenceClassification, "bert", "BertForSequenceClassification", "BertModel"),
        (BoTModelForMaskedLM, "roberta", "RobertaForMaskedLM", "RobertaModel"),
    ],
)
def test_a_body_without_a_head_becomes_a_model_with_one(saved, factory, family, head, body):
    folder, built = saved(family, body)
    wanted = resized_config(built.config, **GROWN)
    model, info = factory.from_pretrained(folder, config=wanted, output_loading_info=True, dtype=torch.float64)
    assert type(model).__name__ == head
    prefix = model.base_model_prefix
    taken = info["resampled_keys"] | info["copied_keys"]
    assert {name for name in model.state_dict() if name.startswith(f"{prefix}.")} <= taken | info["missing_keys"]
    assert not [name for name in info["missing_keys"] if name.startswith(f"{prefix}.")]


@pytest.mark.slow
def test_a_model_with_a_head_gives_its_body(saved):
    folder, built = saved("gpt2", "GPT2ForTokenClassification")
    wanted = resized_config(built.config, **GROWN)
    model = resize(folder, wanted, "GPT2Model", dtype=torch.float64)
    whole = resize(folder, wanted, "GPT2ForTokenClassification", dtype=torch.float64)
    assert_same_tensors(model, whole.transformer)


def test_an_output_embedding_stored_apart_stays_apart(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel", tie_word_embeddings=False)
    save(built.model, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    model = BoTModelForCausalLM.from_pretrained(str(tmp_path), n_embd=24, n_inner=40, dtype=torch.float64)
    inputs, outputs = model.transformer.wte.weight, model.lm_head.weight
    assert float((inputs - outputs).detach().abs().max()) > 0.1
    with torch.no_grad():
        torch.testing.assert_close(model(**built.inputs).logits, built.model(**built.inputs).logits, rtol=0, atol=1e-9)
