"""Every field of every config class: known to be a size, to change the function, or proven not to matter."""

import copy
import dataclasses
import json
import re

import pytest
import torch
import transformers
from families import ALL_HEADS, FAMILIES, MAIN_HEADS, build, class_of, outputs, tiny_config
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

import transformers_bot
from transformers_bot import (
    BadSize,
    BoTModelForCausalLM,
    BoTModelForMaskedLM,
    UnsupportedArchitecture,
    UnsupportedCheckpoint,
)
from transformers_bot import adapters as rules
from transformers_bot.adapters import Role
from transformers_bot.architectures.families import BUILT_IN
from transformers_bot.architectures.sizes import class_fields, inner, kind_of, nested
from transformers_bot.io.config_files import check_config
from transformers_bot.tools.inspecting import inspect

GROWN = {"hidden_size": 24, "num_attention_heads": 6}
# Fields that change no output and no tensor -> another value than the tiny models have.
OTHER = {
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.5),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout", "initializer_range"), 0.5),
    **{"use_cache": False, "problem_type": "multi_label_classification", "reorder_and_upcast_attn": True},
    **{"bos_token_id": 5, "eos_token_id": 6, "output_hidden_states": True, "chunk_size_feed_forward": 1},
    **{"is_encoder_decoder": True, "output_attentions": True},
}
CHANGES = {
    **dict.fromkeys(("hidden_act", "activation_function", "pooler_act"), "relu"),
    **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon"), 0.5),
    **{"is_decoder": True, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "qkv_bias": False},
    **{"summary_type": "mean", "summary_activation": "tanh", "summary_use_proj": False, "is_causal": False},
    "summary_proj_to_labels": False,
}
RECORDS = ("architectures", "dtype", "transformers_version", "return_dict", "model_type", "_name_or_path")


def all_fields(family: str) -> set[str]:
    """The fields of a class, those of the configs within it by their paths, without other names for them."""
    default = CONFIG_MAPPING[family]()
    fields = {name for name in class_fields(type(default)) if not name.startswith("_")} - set(default.attribute_map)
    parts = inner(default)
    return (fields - parts.keys()) | {f"{name}.{field}" for name, part in parts.items() for field in part.to_dict()}


@pytest.mark.parametrize("family", [adapter.model_type for adapter in BUILT_IN])
def test_every_field_of_the_class_is_known(family):
    # A field that a new transformers brings fails here until somebody has said what it does.
    adapter = rules.get(family).of(CONFIG_MAPPING[family]())
    others = {field: other for other, field in CONFIG_MAPPING[family].attribute_map.items()}
    kinds = {name: kind_of(adapter, name) or kind_of(adapter, others.get(name, "")) for name in all_fields(family)}
    assert {name for name, kind in kinds.items() if kind is None} == set()


# What a config.json may hold in the place of a length.
HOSTILE = {"large": 10**12, "text": "x", "truth": True, "object": {"a": 1}, "list": [10**12, 2], "number": 1e300}


# Path of a config field that sets the length of a role -> a model type that has it.
LENGTHS = {
    role.size: name
    for name, adapter in rules.ADAPTERS.items()
    for role in adapter.roles.values()
    if isinstance(role.size, str)
}


@pytest.mark.parametrize("wrong", HOSTILE.values(), ids=HOSTILE)
def test_every_length_that_an_adapter_names_is_checked_before_anything_is_built(wrong):
    for path, model_type in LENGTHS.items():
        with pytest.raises(BadSize, match=re.escape(path)):
            check_config({"model_type": model_type, **nested(CONFIG_MAPPING[model_type](), {path: wrong})})
    for alias, model_type in (("hidden_size", "whisper"), ("num_local_experts", "mixtral"), ("n_ctx", "gpt2")):
        with pytest.raises(BadSize, match=f"{alias} is 1000000000000 in config.json; no model has more than"):
            check_config({"model_type": model_type, alias: 10**12})


def test_lengths_that_are_valid_are_left_alone():
    for model_type in rules.ADAPTERS:
        check_config(json.loads(json.dumps(transformers.CONFIG_MAPPING[model_type]().to_dict())))
    check_config({"model_type": "dinov2", "out_features": ["stage1"], "image_size": [14, 28]})


@pytest.mark.parametrize(
    ("model_type", "field"),
    [("llama", "hidden_size"), ("granite", "num_attention_heads"), ("t5", "d_model"), ("falcon", "num_kv_heads")],
)
@pytest.mark.parametrize("change", [{}, {"num_hidden_layers": 3}])
def test_a_length_of_zero_is_named(model_type, field, change):
    config = transformers.CONFIG_MAPPING[model_type](**GROWN)
    setattr(config, field, 0)
    with pytest.raises(BadSize, match=f"{field} is 0 in the source config; it must be a whole number of at least 1"):
        transformers_bot.plan(config, **change)


@pytest.mark.parametrize(
    ("model_type", "field"),
    [
        ("llama", "num_attention_heads"),
        ("gemma2", "num_attention_heads"),
        ("glm4", "num_attention_heads"),
        ("whisper", "encoder_attention_heads"),
        ("t5", "num_heads"),
        ("gpt2", "n_inner"),
    ],
)
@pytest.mark.parametrize("given", ["8", [4], 8.5, 0, True])
def test_a_wrong_override_of_a_length_is_named(model_type, field, given):
    config = transformers.CONFIG_MAPPING[model_type](**({"n_inner": 96} if field == "n_inner" else {}))
    message = f"{field} is {given!r} in the target config; it must be a whole number of at least 1"
    with pytest.raises(BadSize, match=re.escape(message)):
        transformers_bot.plan(config, **{field: given})


def test_none_asks_for_the_length_of_the_class():
    plan = transformers_bot.plan(transformers.GPT2Config(n_inner=96, n_embd=24, n_head=6), n_inner=None)
    assert (plan.source_sizes["ffn"], plan.target_sizes["ffn"]) == (96, 4 * 24)


def test_what_an_adapter_cannot_compute_is_told(monkeypatch):
    broken = Role("ffn", "unit", lambda c: c.hidden_size // (c.num_hidden_layers - 12), field="intermediate_size")
    adapter = dataclasses.replace(rules.get("bert"), roles=rules.get("bert").roles.with_(broken))
    monkeypatch.setitem(rules.ADAPTERS, "bert", adapter)
    with pytest.raises(BadSize, match=r"intermediate_size cannot be computed with in the source config \(ZeroDivision"):
        transformers_bot.plan(transformers.BertConfig(), num_hidden_layers=3)


@pytest.mark.covering("family")
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_inert_fields_change_no_output(family, head):
    built = build(family, head, dtype=torch.float32)  # upcasting knows no other
    expected = outputs(built.model, built.inputs)
    adapter = rules.get(family)
    inert = [name for name in all_fields(family) if kind_of(adapter, name) == "inert" and name not in RECORDS]
    config = copy.deepcopy(built.config)
    for name in inert:
        setattr(config, name, OTHER[name])
    other = class_of(head)(config).eval()
    other.load_state_dict(built.model.state_dict())
    actual = outputs(other, built.inputs)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-5 * float(value.abs().max()))


@pytest.mark.covering(few=3)
@pytest.mark.parametrize(("family", "head"), [*MAIN_HEADS, ("gpt2", "GPT2DoubleHeadsModel"), ("vit", "ViTModel")])
def test_fields_with_a_meaning_change_outputs_or_tensors_and_are_a_warning(family, head):
    built = build(family, head)
    adapter = rules.get(family)
    changed = set()
    for name in {*adapter.meaning, "is_causal"} & set(CHANGES):
        config = copy.deepcopy(built.config)
        setattr(config, name, CHANGES[name])
        other = class_of(head)(config).to(torch.float64).eval()
        same = {n: x.shape for n, x in other.state_dict().items()} == {
            n: x.shape for n, x in built.model.state_dict().items()
        }
        if same:
            other.load_state_dict(built.model.state_dict())
            actual, expected = (outputs(model, built.inputs) for model in (other, built.model))
            same = all(torch.equal(actual[n], x) for n, x in expected.items())
        changed |= set() if same else {name}
        if name not in ("summary_proj_to_labels", "scale_attn_by_inverse_layer_idx"):  # these are errors
            warned = transformers_bot.plan(built.config, config, ignore_mismatched_sizes=True).warnings
            assert any(sentence.startswith(f"{name} is ") for sentence in warned)
    # Fields of heads that this class does not have show in another class.
    assert changed >= {"hidden_act", "activation_function"} & set(adapter.meaning)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a model whose files may be changed, and the way to change its config."""

    def get(family: str, head: str, **changes):
        _, built = saved(family, head)
        place = tmp_path / head
        built.model.save_pretrained(place)
        fields = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**fields, **changes}))
        return place

    return get


HEAD = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM"}


@pytest.mark.covering
@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("sizes", [{}, GROWN], ids=["own size", "grown"])
@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_positions_are_refused_wherever_they_are_named(folder, tmp_path, family, sizes, kind):
    named = folder(family, HEAD[family], position_embedding_type=kind)
    asked = {**sizes, "hidden_dropout_prob": 0.0}
    with pytest.raises(UnsupportedArchitecture, match=f"position_embedding_type is '{kind}' in the source"):
        BoTModelForMaskedLM.from_pretrained(named, **asked)
    for call in (inspect, lambda place: transformers_bot.suggest(place, ratio=0.5)):
        with pytest.raises(UnsupportedArchitecture, match="position_embedding_type"):
            call(named)
    plain = folder(family, HEAD[family])
    for call in (BoTModelForMaskedLM.from_pretrained, transformers_bot.plan):
        with pytest.raises(UnsupportedArchitecture, match=f"position_embedding_type is '{kind}' in the target"):
            call(plain, **sizes, position_embedding_type=kind)
    with pytest.raises(UnsupportedArchitecture, match="in the target"):
        transformers_bot.resize_checkpoint(plain, tmp_path / "out", **sizes, position_embedding_type=kind)
    made = BoTModelForMaskedLM.from_pretrained(plain, **sizes, position_embedding_type="absolute")
    assert made.config.hidden_size == sizes.get("hidden_size", 12)
    assert transformers_bot.plan(folder(family, HEAD[family], position_embedding_type="absolute"), GROWN).warnings == ()


@pytest.mark.parametrize("sizes", [{"hidden_dropout_prob": 0.5}, GROWN], ids=["own size", "grown"])
@pytest.mark.parametrize("strict", [True, False])
def test_embeddings_of_relative_positions_are_refused_by_name(folder, sizes, strict):
    place = folder("bert", "BertForMaskedLM")
    tensors = load_file(place / "model.safetensors")
    tensors["bert.encoder.layer.1.attention.self.distance_embedding.weight"] = torch.zeros(23, 4)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedArchitecture, match="embeddings of relative positions") as caught:
        BoTModelForMaskedLM.from_pretrained(place, strict=strict, **sizes)
    assert "strict" not in str(caught.value)


def test_layers_of_different_sizes_are_refused(folder):
    place = folder("gpt2", "GPT2LMHeadModel", per_layer_config={"1": {"activation_function": "relu"}})
    with pytest.raises(UnsupportedArchitecture, match="per_layer_config"):
        transformers_bot.plan(place, n_layer=3)


def test_fields_that_no_class_has_are_told(folder):
    place = folder("gpt2", "GPT2LMHeadModel", rotary_dim=64, bad_="\x1b[31m", finetuning_task=None, n_special=0)
    for warnings in (
        transformers_bot.plan(place, n_layer=3).warnings,
        transformers_bot.resize_checkpoint(place, place.parent / "out", n_layer=3).warnings,
    ):
        (told,) = (one for one in warnings if "does not know" in one)
        assert "rotary_dim=64" in told
        assert "n_special" not in told
        assert told.isprintable()


def test_a_factor_of_the_embedding_follows_the_width_and_is_refused_alone(folder):
    place = folder("bert", "BertForMaskedLM", embedding_size=12)
    assert BoTModelForMaskedLM.from_pretrained(place, **GROWN).config.embedding_size == 24
    with pytest.raises(UnsupportedArchitecture, match="embedding_size is 6 in the source"):
        transformers_bot.plan(folder("bert", "BertForMaskedLM", embedding_size=6), GROWN)


@pytest.mark.parametrize("sizes", [{"hidden_dropout_prob": 0.5}, GROWN], ids=["own size", "grown"])
def test_a_record_of_pruning_is_dropped_where_every_head_is_there(folder, tmp_path, sizes):
    place = folder("bert", "BertForMaskedLM", pruned_heads={"0": [1]})
    made = BoTModelForMaskedLM.from_pretrained(place, **sizes)
    assert "pruned_heads" not in made.config.to_dict()
    report = transformers_bot.resize_checkpoint(place, tmp_path / "out", **sizes)
    assert "pruned_heads" not in json.loads((tmp_path / "out/config.json").read_text())
    assert any("pruned_heads" in sentence for sentence in report.warnings)
    with pytest.raises(UnsupportedArchitecture, match="a resize does not prune single heads"):
        transformers_bot.plan(place, **sizes, pruned_heads={"1": [0]})


PRUNED = {
    "bert": ("BertForMaskedLM", "bert.encoder.layer.1.attention.", ("self.query", "self.key", "self.value"), 1),
    "roberta": (
        "RobertaForMaskedLM",
        "roberta.encoder.layer.1.attention.",
        ("self.query", "self.key", "self.value"),
        1,
    ),
    "gpt2": ("GPT2LMHeadModel", "transformer.h.1.attn.", ("c_attn",), 0),
}


@pytest.mark.covering(few=3)
@pytest.mark.parametrize("recorded", [{"1": [0, 2]}, {}], ids=["recorded", "not recorded"])
@pytest.mark.parametrize("family", PRUNED)
def test_heads_that_are_gone_are_named(folder, tmp_path, family, recorded):
    head, block, readers, output_dim = PRUNED[family]
    place = folder(family, head, pruned_heads=recorded)
    tensors = load_file(place / "model.safetensors")
    kept = torch.arange(4, 8)  # the middle one of three heads
    for reader in readers:
        rows = torch.cat([kept + 12 * part for part in range(3)]) if reader == "c_attn" else kept
        for name in (f"{block}{reader}.weight", f"{block}{reader}.bias"):
            dim = tensors[name].dim() - 1 if reader == "c_attn" else 0
            tensors[name] = tensors[name].index_select(dim, rows)
    output = f"{block}{'c_proj' if family == 'gpt2' else 'output.dense'}.weight"
    tensors[output] = tensors[output].index_select(output_dim, kept)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    named = r"layer 1 has 1 of 3 \(without \[0, 2\]\)" if recorded else "layer 1 has 1 of 3"
    calls = (
        lambda: transformers_bot.resize_checkpoint(place, tmp_path / "out", num_hidden_layers=3),
        lambda: inspect(place),
    )
    for call in calls:
        with pytest.raises(UnsupportedCheckpoint, match=named) as caught:
            call()
        assert "pruned" in str(caught.value)


CROSSED = (("bert", "BertLMHeadModel", {"is_decoder": True}), ("gpt2", "GPT2LMHeadModel", {}))
CROSSED += (("roberta", "RobertaForCausalLM", {"is_decoder": True}),)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head", "fields"), CROSSED)
def test_a_decoder_is_resized_without_its_cross_attention(tmp_path, family, head, fields):
    built = build(family, head, add_cross_attention=True, **fields)
    built.model.save_pretrained(tmp_path / "in")
    source = str(tmp_path / "in")
    cross = {name for name in built.model.state_dict() if "cross" in name}
    assert cross
    with pytest.raises(UnsupportedArchitecture, match="Pass add_cross_attention=False"):
        transformers_bot.plan(source, **GROWN)
    asked = {**GROWN, "add_cross_attention": False}
    planned = transformers_bot.plan(source, **asked)
    assert set(planned.dropped) == cross
    assert sum("cross" in one for one in planned.warnings) == 1  # told once, with its reason
    assert any(f"{len(cross)} tensors of cross attention are left out" in one for one in planned.warnings)
    report = transformers_bot.resize_checkpoint(source, tmp_path / "out", **asked)
    assert any("cross attention are left out" in one for one in report.warnings)
    exact = {"detail": "zero"}
    made = BoTModelForCausalLM.from_pretrained(source, **asked, bot_config=exact)
    assert not any("cross" in name for name in made.state_dict())
    expected = outputs(built.model, built.inputs)["logits"]
    torch.testing.assert_close(outputs(made, built.inputs)["logits"], expected, rtol=0, atol=1e-6)
    assert transformers_bot.verify(tmp_path / "out", source=source).equal
    alone = BoTModelForCausalLM.from_pretrained(source, add_cross_attention=False)
    torch.testing.assert_close(outputs(alone, built.inputs)["logits"], expected, rtol=0, atol=1e-9)
    # What is proposed for it can be followed.
    best = transformers_bot.suggest(source, ratio=0.5)[0]
    assert not transformers_bot.plan(source, **best.fields).names("fresh")
    assert inspect(source).parameters < sum(p.numel() for p in built.model.parameters())


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "head", "fields"), CROSSED)
def test_cross_attention_hides_no_class_of_a_head(tmp_path, family, head, fields):
    built = build(family, head, add_cross_attention=True, **fields)
    built.model.save_pretrained(tmp_path / "in")
    path = tmp_path / "in/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": None}))
    asked = {**GROWN, "add_cross_attention": False}
    transformers_bot.resize_checkpoint(tmp_path / "in", tmp_path / "out", asked)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").architectures == [head]
    assert inspect(tmp_path / "in").model_class == head


@pytest.mark.parametrize("before", [True, False])
def test_another_kind_of_summary_is_named_and_not_the_count_of_labels(tmp_path, before):
    build("gpt2", "GPT2DoubleHeadsModel", summary_proj_to_labels=before, num_labels=1).model.save_pretrained(
        tmp_path / "in"
    )
    source, asked = str(tmp_path / "in"), {"n_layer": 3, "summary_proj_to_labels": not before}
    words = f"summary_proj_to_labels is {before} in the source and {not before} in the target config"
    with pytest.raises(transformers_bot.IncompatibleModels, match=words) as caught:
        transformers_bot.resize_checkpoint(source, tmp_path / "no", **asked)
    assert "num_labels" not in str(caught.value)
    anew = transformers_bot.resize_checkpoint(source, tmp_path / "anew", **asked, ignore_mismatched_sizes=True)
    assert any("newly initialised" in sentence for sentence in anew.warnings)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "anew").summary_proj_to_labels is not before


def test_a_summary_as_wide_as_the_stream_has_remedies_that_work(tmp_path):
    build("gpt2", "GPT2DoubleHeadsModel", summary_proj_to_labels=False).model.save_pretrained(tmp_path / "in")
    source = str(tmp_path / "in")
    with pytest.raises(transformers_bot.IncompatibleModels, match="Keep n_embd and summary_proj_to_labels") as caught:
        transformers_bot.resize_checkpoint(source, tmp_path / "no", **GROWN)
    assert "num_labels" not in str(caught.value)
    deeper = transformers_bot.resize_checkpoint(source, tmp_path / "deeper", n_layer=3)
    anew = transformers_bot.resize_checkpoint(source, tmp_path / "anew", **GROWN, ignore_mismatched_sizes=True)
    without = transformers_bot.resize_checkpoint(source, tmp_path / "without", **GROWN, task="causal-lm")
    assert not any("newly initialised" in sentence for sentence in (*deeper.warnings, *without.warnings))
    assert any("2 tensors are newly initialised" in sentence for sentence in anew.warnings)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "without").architectures == ["GPT2LMHeadModel"]


def test_configs_name_every_kind():
    families = (*FAMILIES, "qwen2_moe")
    kinds = {kind_of(rules.get(family), name) for family in families for name in all_fields(family)}
    assert kinds == {"size", "label", "list", "meaning", "tensors", "inert"}
    assert kind_of(rules.get("bert"), "position_embedding_type") == "fixed"
    assert tiny_config("bert").model_type == "bert"


def test_a_value_that_may_be_a_path_is_not_told(saved):
    _, built = saved("gpt2", "GPT2LMHeadModel")
    config = built.config.__class__(**{**built.config.to_dict(), "my_dir": "/home/me/x", "my_flag": 3})
    (told,) = [text for text in transformers_bot.plan(config, n_layer=3).warnings if "does not know" in text]
    assert "my_dir" in told and "my_flag=3" in told  # noqa: PT018
    assert "/home" not in told
