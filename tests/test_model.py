"""The factories return ordinary transformers models: same-size loads are AutoModel's, the rest saves and reloads."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from families import (
    ALL_HEADS,
    FACTORIES,
    MAIN_HEADS,
    assert_same_outputs,
    build,
    class_of,
    factory_for,
    outputs,
    resize,
    resized_config,
    save,
)
from safetensors import safe_open
from transformers.utils import logging

from transformers_bot import (
    BadOption,
    BoTConfig,
    BoTModel,
    BoTModelForCausalLM,
    BoTModelForMaskedLM,
    BoTModelForPreTraining,
    BoTModelForSequenceClassification,
)
from transformers_bot.io.config_files import folder_name

GROWN = {"layer": 3, "hidden": 24, "heads": 6, "ffn": 40}
WITH_FACTORY = [pair for pair in ALL_HEADS if pair[1] != "GPT2DoubleHeadsModel"]


def assert_same_tensors(actual, expected) -> None:
    """Two models of one class with bit-identical parameters and buffers."""
    assert type(actual) is type(expected)
    left, right = actual.state_dict(), expected.state_dict()
    assert list(left) == list(right)
    for name in right:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def keys_of(folder) -> set[str]:
    found: set[str] = set()
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= set(opened.keys())
    return found


# -- same sizes -----------------------------------------------------------------------------------

REQUESTS = {
    "no config": lambda _, __: {},
    "config object": lambda _, config: {"config": resized_config(config)},
    "config path": lambda folder, _: {"config": folder},
    "path object": lambda folder, _: {"config": Path(folder)},
    "dict": lambda *_: {"config": {"hidden_size": 12}},
    "overrides": lambda *_: {"hidden_size": 12, "num_hidden_layers": 2},
}


@pytest.mark.covering("family", "request_of")
@pytest.mark.parametrize("request_of", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize(("family", "head"), WITH_FACTORY)
def test_same_size_is_automodel_bit_for_bit(saved, family, head, request_of):
    folder, built = saved(family, head)
    factory = factory_for(head, built.config)
    expected = factory.auto_class.from_pretrained(folder)
    actual = factory.from_pretrained(folder, **request_of(folder, built.config))
    assert_same_tensors(actual, expected)
    assert not hasattr(actual.config, "transformers_bot")
    assert actual.dtype == expected.dtype


def test_factories_cannot_be_instantiated():
    for factory in FACTORIES:
        with pytest.raises(
            OSError, match=rf"{factory.__name__} is designed to be instantiated using .*from_pretrained"
        ):
            factory()


# -- the result is an ordinary model --------------------------------------------------------------


@pytest.fixture
def warned(caplog, monkeypatch):
    """Warnings that transformers logs, as text."""
    library = transformers.utils.logging.get_logger("transformers")
    monkeypatch.setattr(library, "propagate", True)
    logging.set_verbosity_warning()
    caplog.set_level("WARNING")
    return caplog


@pytest.mark.covering(few=2)
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_saved_and_reloaded_by_plain_transformers_without_a_word(saved, tmp_path, warned, family, head):
    folder, built = saved(family, head)
    model = resize(folder, resized_config(built.config, **GROWN), head, dtype=torch.float64)
    assert type(model) is class_of(head)
    assert not model.training
    model.save_pretrained(tmp_path / "out")
    warned.clear()
    reloaded, info = class_of(head).from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert [record.getMessage() for record in warned.records] == []
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_tensors(reloaded, model)
    assert_same_outputs(outputs(reloaded, built.inputs), outputs(model, built.inputs), 1e-12)
    class_of(head)(resized_config(built.config, **GROWN)).save_pretrained(tmp_path / "scratch")
    assert keys_of(tmp_path / "out") == keys_of(tmp_path / "scratch")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_provenance_survives_a_reload(saved, tmp_path, family, head):
    folder, built = saved(family, head)
    model = resize(folder, resized_config(built.config, **GROWN), head, bot_config={"wavelet": "db2", "seed": 3})
    model.save_pretrained(tmp_path)
    facts = transformers.AutoConfig.from_pretrained(tmp_path).transformers_bot
    assert facts == json.loads(json.dumps(model.config.transformers_bot))
    assert facts["source"] == folder_name(folder)
    assert facts["source_sizes"] == {"layer": 2, "hidden": 12, "heads": 3, "ffn": 20}
    assert facts["target_sizes"] == GROWN
    assert (facts["method"], facts["gain"], facts["options"]["seed"]) == ("bot", "consistent", 3)
    assert set(facts["wavelet"].values()) == {"db2"}
    assert set(facts["versions"]) == {"transformers", "torch", "pywavelets", "transformers_bot"}
    repeated = resize(folder, resized_config(built.config, **GROWN), head, bot_config=facts["options"])
    assert_same_tensors(repeated, model)
    again = BoTModel.from_pretrained(str(tmp_path), num_hidden_layers=1)
    assert again.config.transformers_bot["source"] == folder_name(tmp_path)


def test_generation_config_is_kept(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel")
    built.model.generation_config.max_new_tokens = 5
    built.model.generation_config.do_sample = True
    built.model.generation_config.temperature = 0.25
    model = BoTModelForCausalLM.from_pretrained(save(built.model, tmp_path), n_layer=3)
    kept = model.generation_config
    assert (kept.max_new_tokens, kept.do_sample, kept.temperature) == (5, True, 0.25)
    assert model.generate(built.inputs["input_ids"][:, :4]).shape[1] <= 9


# -- keywords -------------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", torch.float16, "float32"])
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_dtype_is_the_result_of_one_cast(saved, family, head, dtype):
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **GROWN)
    cast = resize(folder, wanted, head, dtype=dtype)
    exact = resize(folder, wanted, head, dtype=torch.float64)
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert cast.dtype == kind
    state = exact.state_dict()
    for name, tensor in cast.state_dict().items():
        torch.testing.assert_close(
            tensor, state[name].to(tensor.dtype), rtol=0, atol=0 if kind != torch.float32 else 1e-6
        )


def test_auto_dtype_is_the_sources(saved):
    folder, _ = saved("bert", "BertForMaskedLM", dtype=torch.bfloat16)
    assert BoTModelForMaskedLM.from_pretrained(folder, dtype="auto", num_hidden_layers=3).dtype == torch.bfloat16


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_among_the_fields_is_that_of_the_result(saved, name):
    folder, _ = saved("bert", "BertForMaskedLM")
    wanted = {"num_hidden_layers": 3, name: "bfloat16"}
    assert BoTModelForMaskedLM.from_pretrained(folder, config=wanted).dtype == torch.bfloat16
    with pytest.raises(BadOption, match="cannot be built with"):
        BoTModelForMaskedLM.from_pretrained(folder, config={**wanted, name: "bfloat99"})


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
@pytest.mark.parametrize("kind", ["sharded", "variant", "subfolder", "local", "device_map", "bin"])
def test_every_way_to_store_gives_the_same_result(saved, tmp_path, family, head, kind):
    folder, built = saved(family, head)
    model, keywords, source = built.model, {}, str(tmp_path)
    if kind == "sharded":
        model.save_pretrained(tmp_path, max_shard_size="4KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    elif kind == "variant":
        model.save_pretrained(tmp_path, variant="small")
        keywords = {"variant": "small"}
    elif kind == "subfolder":
        model.save_pretrained(tmp_path / "inner")
        keywords = {"subfolder": "inner"}
    elif kind == "bin":
        model.config.save_pretrained(tmp_path)
        # Tied names once, as every saved checkpoint has them.
        state = {n: x for n, x in model.state_dict().items() if n not in model.all_tied_weights_keys}
        torch.save(state, tmp_path / "pytorch_model.bin")
        keywords = {"allow_pickle": True}
    else:
        model.save_pretrained(tmp_path)
        keywords = {"local_files_only": True} if kind == "local" else {"device_map": "cpu"}
    wanted = resized_config(built.config, **GROWN)
    expected = resize(folder, wanted, head, dtype=torch.float64)
    assert_same_tensors(resize(source, wanted, head, dtype=torch.float64, **keywords), expected)


def test_attention_implementation_is_forwarded(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    model = BoTModelForCausalLM.from_pretrained(folder, n_layer=3, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("form", ["dict", "object", "keywords"])
def test_three_ways_to_ask_for_a_size(saved, form):
    folder, built = saved("gpt2", "GPT2LMHeadModel")
    sizes = {"n_embd": 24, "n_head": 6, "n_inner": 40}
    expected = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(built.config, **GROWN | {"layer": 2}))
    asked = {"dict": {"config": sizes}, "object": {"config": resized_config(built.config, **sizes)}, "keywords": sizes}
    model = BoTModelForCausalLM.from_pretrained(folder, **asked[form])
    assert_same_tensors(model, expected)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("options", [{"seed": 5}, BoTConfig(seed=5)])
def test_the_seed_decides(saved, options):
    folder, built = saved("bert", "BertForMaskedLM")
    wanted = resized_config(built.config, **GROWN)
    first, second, other = (
        BoTModelForMaskedLM.from_pretrained(folder, config=wanted, bot_config=o)
        for o in (options, {"seed": 5}, {"seed": 6})
    )
    assert_same_tensors(first, second)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert float((first.state_dict()[name] - other.state_dict()[name]).abs().max()) > 1e-3


@pytest.mark.slow
def test_neither_the_seed_of_torch_nor_its_state_matters(saved):
    folder, built = saved("bert", "BertForMaskedLM")
    wanted = resized_config(built.config, **GROWN)
    torch.manual_seed(1)
    first = BoTModelForMaskedLM.from_pretrained(folder, config=wanted)
    torch.manual_seed(2)
    assert_same_tensors(BoTModelForMaskedLM.from_pretrained(folder, config=wanted), first)


def test_the_config_given_is_not_written_to(saved):
    folder, built = saved("bert", "BertForMaskedLM")
    wanted = resized_config(built.config, **GROWN)
    before = wanted.to_dict()
    BoTModelForMaskedLM.from_pretrained(folder, config=wanted)
    BoTModelForPreTraining.from_pretrained(folder, config=wanted)
    assert wanted.to_dict() == before


# -- loading info ---------------------------------------------------------------------------------


def test_loading_info_sorts_every_tensor(saved):
    folder, built = saved("bert", "BertForPreTraining")
    wanted = resized_config(built.config, hidden=24, ffn=40, heads=6)
    model, info = BoTModelForSequenceClassification.from_pretrained(folder, config=wanted, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert all(name.startswith("cls.") for name in info["unexpected_keys"])
    assert len(info["unexpected_keys"]) >= 7
    assert not info["mismatched_keys"]
    sorted_keys = info["resampled_keys"] | info["copied_keys"] | info["missing_keys"]
    assert sorted_keys == set(model.state_dict())
    assert info["resampled_keys"].isdisjoint(info["copied_keys"])


def test_new_heads_follow_transformers_own_initialisation(saved):
    folder, built = saved("bert", "BertForMaskedLM", dtype=torch.float32)
    wanted = resized_config(built.config, hidden=48, ffn=40, heads=6, initializer_range=0.5, num_labels=200)
    torch.manual_seed(0)
    model = BoTModelForSequenceClassification.from_pretrained(folder, config=wanted)
    assert 0.45 < float(model.classifier.weight.detach().std()) < 0.55
    torch.testing.assert_close(model.classifier.bias, torch.zeros(200), rtol=0, atol=0)


def test_ignored_mismatches_are_fresh_and_reported(saved):
    folder, _ = saved("bert", "BertForSequenceClassification")
    model, info = BoTModelForSequenceClassification.from_pretrained(
        folder, num_labels=9, hidden_size=24, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.classifier.weight.shape == (9, 24)
    assert ("classifier.weight", (4, 12), (9, 24)) in info["mismatched_keys"]
    assert {name for name, _, _ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
