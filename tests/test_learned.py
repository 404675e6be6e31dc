"""`fit`: a learned operator lowers the loss, and what it reports is what it did."""

import dataclasses
import inspect
import json
import textwrap

import numpy as np
import pytest
import torch
from families import build, resized_config, save
from learned import BIG, OPERATORS, SMALL, TRAINED_HEADS, gpt2, grow, labelled, operator_of
from transformers import AutoModelForCausalLM, PreTrainedModel

import transformers_bot
from transformers_bot import (
    BadCheckpoint,
    BadKeyword,
    BadOption,
    BoTModelForCausalLM,
    BoTModelForSequenceClassification,
)
from transformers_bot.adapters import ADAPTERS
from transformers_bot.learned.flops import training_flops


@pytest.fixture
def grown(tmp_path):
    """An unfitted GPT-2 and a batch for it."""
    folder, config, batch = gpt2(tmp_path)
    return BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, **BIG), method="ligo"), batch


# -- fitting ------------------------------------------------------------------------------------


def text_batches(vocab: int, rows: int = 16, length: int = 12) -> list[dict[str, torch.Tensor]]:
    """Batches of characters of a module of the standard library."""
    text = inspect.getsource(textwrap).encode()
    ids = torch.tensor([byte % vocab for byte in text])[: len(text) // (rows * length) * rows * length]
    return [{"input_ids": block, "labels": block} for block in ids.view(-1, rows, length)]


def mean_loss(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> float:
    with torch.no_grad():
        return float(np.mean([float(model(**batch).loss) for batch in batches]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A GPT-2 of two layers that has learned some text: (folder, config, batches seen, batches held out)."""
    model = build("gpt2", "GPT2LMHeadModel", 0, torch.float32, **SMALL, vocab_size=128, resid_pdrop=0.1).model
    model.apply(model._init_weights)
    batches = text_batches(128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(150):
        model.train()(**batches[step % 40]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return save(model, tmp_path_factory.mktemp("trained")), model.config, batches[:40], batches[40:60]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "rank"), [("ligo", None), ("mango", None), ("mango", 2)])
def test_fit_lowers_the_loss_of_held_out_text(trained, method, rank):
    folder, config, seen, held_out = trained
    model = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, **BIG), method=method)
    before = mean_loss(model, held_out)
    fitted = transformers_bot.fit(model, seen, steps=40, lr=1e-2, rank=rank)
    assert fitted is model
    assert not model.training
    assert mean_loss(model, held_out) < before - 0.2
    facts = model.config.transformers_bot["fit"]
    assert facts["losses"][1] < facts["losses"][0]
    assert facts["steps"] == 40
    assert facts["lr"] == 1e-2
    assert facts.get("rank") == (rank or 1 if method == "mango" else None)


@pytest.mark.slow
def test_a_seed_decides_noise_and_dropout(trained):
    folder, config, seen, _ = trained

    def fitted(seed: int) -> torch.Tensor:
        model = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, **BIG), method="ligo")
        transformers_bot.fit(model, seen, steps=2, seed=seed)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    torch.manual_seed(5)
    first, after = fitted(0), torch.rand(1)
    torch.manual_seed(6)
    torch.testing.assert_close(fitted(0), first, rtol=0, atol=0)
    assert float((fitted(1) - first).detach().abs().max()) > 1e-3
    torch.manual_seed(5)
    torch.testing.assert_close(torch.rand(1), after, rtol=0, atol=0)  # the caller's random state is left alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "lr"), [("deit", 5e-4), ("vit", 5e-4), ("bert", 2e-4), ("roberta", 2e-4), ("gpt2", 1e-5)]
)
def test_the_rate_is_the_papers_unless_given(saved, family, lr):
    head = dict(TRAINED_HEADS)[family]
    model = grow(saved, family, head, "ligo", layer=3)
    batch = labelled(model, saved(family, head, **SMALL)[1].inputs)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    transformers_bot.fit(model, [batch], steps=1)
    assert model.config.transformers_bot["fit"]["lr"] == lr
    assert any(not torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_the_rate_is_the_adapters_or_the_general_one(tmp_path, monkeypatch):
    folder, config, batch = gpt2(tmp_path)
    for stated, rate in ((0.125, 0.125), (None, 2e-4)):
        monkeypatch.setitem(ADAPTERS, "gpt2", dataclasses.replace(ADAPTERS["gpt2"], learning_rate=stated))
        model = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, layer=3), method="ligo")
        transformers_bot.fit(model, [batch], steps=1)
        assert model.config.transformers_bot["fit"]["lr"] == rate


@pytest.mark.slow
def test_flops_are_those_of_products_forward_and_backward(tmp_path):
    """Depth alone: the products are w times the stacked layers, and the gradient of w."""
    folder, config, batch = gpt2(tmp_path)
    model = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, layer=5), method="ligo")
    layer = sum(x.numel() for name, x in model.state_dict().items() if name.startswith("transformer.h.0."))
    products = 2 * (2 * 5 * 2 * layer)
    embedding_gradient = 2 * batch["input_ids"].numel() * 23 * 12  # of the tied output, which nothing here learns
    step = training_flops(model, batch) - embedding_gradient + products
    short = {name: x[:1] for name, x in batch.items()}
    short_step = training_flops(model, short) - embedding_gradient // 2 + products
    transformers_bot.fit(model, [batch, short], steps=5)
    assert model.config.transformers_bot["fit"]["flops"] == 3 * step + 2 * short_step
    assert model.config.transformers_bot["fit"]["parameters"] == 5 * 2 * 8  # ln_1, q, k, v, c_proj, ln_2, c_fc, c_proj


@pytest.mark.slow
@pytest.mark.parametrize("method", OPERATORS)
def test_a_fitted_model_is_saved_and_loaded_like_any_other(tmp_path, method):
    folder, config, batch = gpt2(tmp_path)
    model = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, **BIG), method=method)
    unfitted = save(model, tmp_path / "unfitted")
    transformers_bot.fit(model, [batch], steps=2, lr=1e-3)
    reloaded = AutoModelForCausalLM.from_pretrained(save(model, tmp_path / "fitted"))
    record = model.config.transformers_bot
    assert reloaded.config.transformers_bot == record == json.loads(json.dumps(record))
    eager = AutoModelForCausalLM.from_pretrained(unfitted, attn_implementation="eager")  # as the first one was
    again = transformers_bot.fit(eager, [batch], steps=2, lr=1e-3, source=folder)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_head_that_the_source_lacks_stays_as_it_is(tmp_path):
    folder, config, batch = gpt2(tmp_path)
    model = BoTModelForSequenceClassification.from_pretrained(
        folder, config=resized_config(config, **BIG, architectures=["GPT2ForSequenceClassification"]), method="ligo"
    )
    before = {name: x.clone() for name, x in model.state_dict().items()}
    transformers_bot.fit(model, [{**batch, "labels": torch.tensor([0, 1])}], steps=1, lr=1e-2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name == "score.weight"), name


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("method", OPERATORS)
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_output_embeddings(tmp_path, tied, method):
    folder, config, batch = gpt2(tmp_path, tie_word_embeddings=tied)
    model = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, **BIG), method=method)
    before = model.lm_head.weight.clone()
    transformers_bot.fit(model, [batch], steps=1, lr=1e-2)
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    assert not torch.equal(model.lm_head.weight, before)
    fitted = operator_of(model, seed=0)
    assert ("lm_head.weight" in fitted()) == (not tied)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(tmp_path, dtype):
    folder, config, batch = gpt2(tmp_path, dtype=dtype)
    config.dtype = None
    model = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, **BIG), method="ligo")
    assert {x.dtype for x in operator_of(model)().values()} == {torch.float32}
    transformers_bot.fit(model, [batch], steps=1, lr=1e-2)
    wide = BoTModelForCausalLM.from_pretrained(
        folder, config=resized_config(config, **BIG), method="ligo", dtype="float32"
    )
    transformers_bot.fit(wide, [batch], steps=1, lr=1e-2)
    for name, tensor in wide.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor.to(dtype), rtol=0, atol=0)


# -- refusals -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfitted(tmp_path_factory):
    """The same for calls that are refused, which leave the model as it is."""
    folder, config, batch = gpt2(tmp_path_factory.mktemp("unfitted"))
    return BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, **BIG), method="ligo"), batch


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"steps": 0}, "steps=0 is no number of steps"),
        ({"steps": True}, "steps=True is no number of steps"),
        ({"lr": 0.0}, "lr=0.0 is no learning rate"),
        ({"lr": float("inf")}, "lr=inf is no learning rate"),
        ({"seed": -1}, "seed must be a whole number from 0 to .*, got -1"),
        ({"rank": 1}, "rank=1 is Mango's: LiGO has no rank"),
    ],
)
def test_numbers_out_of_range(unfitted, keywords, message):
    with pytest.raises(BadOption, match=message):
        transformers_bot.fit(unfitted[0], [unfitted[1]], **keywords)


def test_a_rank_below_one(saved):
    model = grow(saved, "gpt2", "GPT2LMHeadModel", "mango", **BIG)
    with pytest.raises(BadOption, match="rank must be a whole number of at least 1, got 0"):
        transformers_bot.fit(model, [{}], rank=0)


def test_an_unknown_keyword(unfitted):
    with pytest.raises(BadKeyword, match=r"fit has no keyword 'subfoldr'. Did you mean 'subfolder'\?"):
        transformers_bot.fit(*unfitted, subfoldr="x")


@pytest.mark.covering(few=2)
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lambda _: [], "batches is empty"),
        (lambda batch: batch, "a batch must be a dict of the model's keyword arguments, got str"),
        (lambda batch: (one for one in [batch, batch]), "batches ended after 2 and cannot be started over.*steps=2"),
        (
            lambda batch: [{"input_ids": batch["input_ids"]}],
            "GPT2LMHeadModel gives no loss for a batch of input_ids: add its labels",
        ),
    ],
    ids=["empty", "one dict", "generator", "no labels"],
)
def test_batches_that_cannot_be_used(unfitted, batches, message):
    model, batch = unfitted
    with pytest.raises(BadOption, match=message):
        transformers_bot.fit(model, batches(batch))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_leaves_the_model_as_it_was(grown):
    model, batch = grown
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(BadOption, match=r"the loss is nan at step \d+ of 9: nothing was written .* lr= than 1e\+30"):
        transformers_bot.fit(model, [batch], steps=9, lr=1e30)
    with pytest.raises(BadOption, match=r"the fitted .* is not finite in torch.float32: nothing was written"):
        transformers_bot.fit(model, [batch], steps=1, lr=1e30)
    assert not model.training
    assert "fit" not in model.config.transformers_bot
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_models_that_no_learned_method_made(tmp_path):
    folder, config, batch = gpt2(tmp_path)
    same = BoTModelForCausalLM.from_pretrained(folder, config=config, method="ligo")
    with pytest.raises(BadOption, match=r"grown by none \(its sizes are the source's own\)"):
        transformers_bot.fit(same, [batch])
    other = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, **BIG))
    with pytest.raises(BadOption, match="grown by ligo or mango, but this one was grown by method 'bot'"):
        transformers_bot.fit(other, [batch])
    with pytest.raises(BadOption, match="fit takes the model that from_pretrained returned, got str"):
        transformers_bot.fit(folder, [batch])
    longer = BoTModelForCausalLM.from_pretrained(folder, n_positions=24, method="ligo")
    with pytest.raises(BadOption, match=r"nothing to learn: layer, hidden and ffn are \[2, 12, 24\]"):
        transformers_bot.fit(longer, [batch])


def test_a_source_that_is_gone_or_another(tmp_path):
    folder, config, batch = gpt2(tmp_path)
    model = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, **BIG), method="ligo")
    save(build("gpt2", "GPT2LMHeadModel", **{**SMALL, "layer": 3}).model, folder)
    with pytest.raises(BadCheckpoint, match=r"has other sizes than when .*'layer': 2.*'layer': 3"):
        transformers_bot.fit(model, [batch])
    with pytest.raises(BadCheckpoint, match=r"the source '.*gone' \(revision None\) .* cannot be opened again"):
        transformers_bot.fit(model, [batch], source=tmp_path / "gone")
