"""The plan accounts for every tensor once, needs no weights, and says what it means in print and in JSON."""

import json

import pytest
import torch
from families import (
    ALL_HEADS,
    FAMILIES,
    MAIN_HEADS,
    adapter_of,
    class_of,
    factory_for,
    outputs,
    resize,
    resized_config,
    tiny_config,
)

import transformers_bot
from transformers_bot import BoTModel, BoTModelForSequenceClassification, plan
from transformers_bot.architectures.inventory import predict
from transformers_bot.architectures.sizes import role_sizes

CHANGES = {
    "grow": {"layer": 5, "hidden": 24, "heads": 6, "ffn": 40},
    "shrink": {"layer": 1, "hidden": 6, "heads": 3, "ffn": 10},
    "odd": {"layer": 3, "hidden": 20, "heads": 5, "ffn": 33},
    "width": {"hidden": 16, "heads": 4, "ffn": 25},
    "depth": {"layer": 4},
}


def assert_total(made, source, target) -> None:
    """Each target tensor has exactly one step, each source tensor is read, tied or dropped with a reason."""
    assert [step.target for step in made.steps] == list(target.shapes)
    assert {step.action for step in made.steps} <= {"copy", "resample", "fresh", "tie"}
    read = {name for step in made.steps for name in step.reads.values()}
    assert read.isdisjoint(made.dropped)
    assert read | set(made.dropped) | set(source.ties) == set(source.shapes)
    assert all(made.dropped.values())
    for step in made.steps:
        assert step.shape == target.shapes[step.target]
        assert (step.recipe is None) == (step.action in ("fresh", "tie"))
        assert bool(step.reads) == (step.recipe is not None)
        assert step.reason or step.action == "copy", step.target


@pytest.mark.covering("family", "change")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_every_tensor_exactly_once(family, head, change):
    config = tiny_config(family, head)
    wanted = resized_config(config, **change)
    made = plan(config, wanted)
    assert_total(made, predict(class_of(head), config), predict(class_of(head), wanted))
    assert made.inherited == 1.0
    assert made.parameters == sum(p.numel() for p in class_of(head)(wanted).parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_sizes_copy_everything(family):
    config = tiny_config(family, dict(MAIN_HEADS)[family])
    made = plan(config, resized_config(config))
    assert {step.action for step in made.steps} <= {"copy", "tie"}
    assert made.dropped == {}
    assert made.warnings == ()


@pytest.mark.parametrize(
    ("method", "options"),
    [(method, {}) for method in transformers_bot.methods.METHODS if method != "scratch"]
    + [("bot", {"gain": "raw"}), ("bot", {"gain": "raw", "detail": "gaussian"}), ("bot", {"detail": "zero"})],
)
def test_every_method_copies_equal_sizes(method, options):
    config = tiny_config("bert", "BertForMaskedLM")
    made = plan(config, resized_config(config), method=method, bot_config=options)
    assert {step.action for step in made.steps} <= {"copy", "tie"}


@pytest.mark.parametrize("factory_head", ["BertForSequenceClassification", "BertForMaskedLM", "BertForPreTraining"])
def test_another_head_is_fresh_and_the_old_one_dropped(factory_head):
    config = tiny_config("bert", "BertForNextSentencePrediction")
    made = factory_for(factory_head, tiny_config("bert", factory_head)).plan(config, resized_config(config, hidden=24))
    fresh = made.names("fresh")
    assert all(name.startswith(("classifier", "cls.predictions")) for name in fresh)
    assert fresh
    assert 0 < made.inherited < 1
    assert f"{len(fresh)} tensors are newly initialised" in "; ".join(made.warnings)
    read = {name for step in made.steps for name in step.reads.values()}
    assert read | set(made.dropped) == set(predict(class_of("BertForNextSentencePrediction"), config).shapes)


def test_a_base_model_drops_the_head():
    config = tiny_config("gpt2", "GPT2ForTokenClassification")
    made = BoTModel.plan(config, n_layer=4)
    assert made.target.model_class == "GPT2Model"
    assert made.dropped == dict.fromkeys(["classifier.weight", "classifier.bias"], "not part of GPT2Model")


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_layers_are_named(family):
    config = tiny_config(family, dict(MAIN_HEADS)[family], layer=6)
    made = plan(config, resized_config(config, layer=3))
    layers = {int(part) for name in made.dropped for part in name.split(".") if part.isdigit()}
    assert layers == {1, 3, 4}
    for name, why in made.dropped.items():
        assert "not part of" not in why, f"{name}: {why}"


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_print_merges_layers_and_totals(family, head, change):
    config = tiny_config(family, head)
    wanted = resized_config(config, **change)
    text = str(plan(config, wanted))
    lines = text.splitlines()
    assert lines[0] == f"{head} -> {head}, method bot"
    made = plan(config, wanted)
    kept = made.parameters / made.to_dict()["parameters"]["source"]
    assert (f"keeps {100 * kept:.1f} % of the source's parameters, must be trained" in text) == made.shrinks
    assert ("inherited 100.0 % of the target" in text) == (not made.shrinks)
    layers = max(2, wanted.num_hidden_layers)
    assert len(lines) < 70, "one row per stack of layers"
    assert ".{" in text or layers == 2
    assert max(map(len, lines)) < 200


def test_print_of_a_deep_model_has_no_row_per_layer():
    text = str(plan(tiny_config("bert", "BertModel", layer=12), hidden_size=24, intermediate_size=40))
    assert "encoder.layer.{0...11}.attention.self.query.weight" in text
    assert "encoder.layer.3." not in text


@pytest.mark.covering
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_to_dict_is_json_and_complete(family, head, change):
    config = tiny_config(family, head)
    made = plan(config, resized_config(config, **change))
    read = json.loads(json.dumps(made.to_dict()))
    assert read == made.to_dict()
    assert [step["target"] for step in read["steps"]] == [step.target for step in made.steps]
    assert read["parameters"]["target"] == made.parameters
    assert read["bytes"]["target"] == 4 * made.parameters
    assert read["dropped"] == made.dropped
    assert read["source"]["sizes"]["hidden"] == 12
    assert read["inherited"] == made.inherited


@pytest.mark.parametrize(
    ("family", "changes", "warning"),
    [
        ("bert", {"hidden_act": "relu", "num_hidden_layers": 4}, "hidden_act is 'gelu' in the source and 'relu'"),
        ("gpt2", {"n_positions": 24}, "positions 12 -> 24"),
        ("vit", {"layer_norm_eps": 1e-3, "num_hidden_layers": 4}, "layer_norm_eps is"),
    ],
)
def test_warnings_name_what_changes_the_meaning(family, changes, warning):
    made = plan(tiny_config(family, dict(MAIN_HEADS)[family]), **changes)
    assert warning in "; ".join(made.warnings)


def test_a_plan_opens_no_weights(saved, tmp_path):
    folder, built = saved("gpt2", "GPT2LMHeadModel")
    built.config.save_pretrained(tmp_path)  # a folder with a config and nothing else
    assert str(plan(str(tmp_path), n_layer=4)) == str(plan(folder, n_layer=4))


def test_plan_is_what_from_pretrained_does(saved):
    folder, built = saved("bert", "BertForMaskedLM")
    wanted = resized_config(built.config, **CHANGES["grow"])
    made = BoTModelForSequenceClassification.plan(folder, wanted)
    _, info = BoTModelForSequenceClassification.from_pretrained(folder, config=wanted, output_loading_info=True)
    assert set(made.names("resample")) == info["resampled_keys"]
    assert set(made.names("copy")) == info["copied_keys"]
    assert set(made.names("fresh")) == info["missing_keys"]
    assert set(made.dropped) == info["unexpected_keys"]


def test_a_head_of_another_count_is_renewed_and_nothing_unexpected(saved):
    folder, _ = saved("bert", "BertForSequenceClassification")
    keywords = {"hidden_size": 24, "num_attention_heads": 6, "num_labels": 7, "ignore_mismatched_sizes": True}
    made = BoTModelForSequenceClassification.plan(folder, **keywords)
    assert made.renewed == ["classifier.weight", "classifier.bias"]
    assert made.left_out == []
    _, info = BoTModelForSequenceClassification.from_pretrained(folder, output_loading_info=True, **keywords)
    assert info["unexpected_keys"] == set()
    assert info["missing_keys"] == set()
    assert {name for name, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}


# -- odd ratios: small analogues of 384 -> 512, 768 -> 512, 1024 -> 768, 24 -> 12, 12 -> 8, 12 -> 16 heads

WAVELET_DEPTH = {"depth": "wavelet", "wavelet": "bior4.4"}
ODD = {
    "384 to 512": ({"hidden": 12, "heads": 3, "ffn": 48}, {"hidden": 16, "heads": 4, "ffn": 64}),
    "768 to 512": ({"hidden": 24, "heads": 3, "ffn": 96}, {"hidden": 16, "heads": 2, "ffn": 64}),
    "1024 to 768": ({"hidden": 32, "heads": 4, "ffn": 128}, {"hidden": 24, "heads": 3, "ffn": 96}),
    "24 to 12 layers": ({"layer": 6}, {"layer": 3}),
    "12 to 8 layers": ({"layer": 6}, {"layer": 4}),
    "8 to 12 layers": ({"layer": 4}, {"layer": 6}),
    "12 to 16 heads": ({"hidden": 48, "heads": 12}, {"hidden": 64, "heads": 16}),
    "other head_dim": ({"hidden": 24, "heads": 2}, {"hidden": 30, "heads": 3}),
    "all at once": ({"layer": 3, "hidden": 20, "heads": 5}, {"layer": 7, "hidden": 21, "heads": 3, "ffn": 13}),
}


# The first family of either norm order takes every treatment, the others the defaults.
TREATED = [(family, {}) for family in FAMILIES]
TREATED += [(family, options) for family in ("bert", "gpt2") for options in ({"gain": "raw"}, WAVELET_DEPTH)]


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("before", "after"), ODD.values(), ids=ODD)
@pytest.mark.parametrize(("family", "options"), TREATED, ids=str)
def test_odd_ratios_have_the_planned_shapes_and_finite_outputs(saved, family, before, after, options):
    head = dict(MAIN_HEADS)[family]
    folder, built = saved(family, head, dtype=torch.float32, **before)
    wanted = resized_config(built.config, **after)
    made = plan(folder, wanted, bot_config=options)
    model = resize(folder, wanted, head, bot_config=options)
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == {s.target: s.shape for s in made.steps}
    sizes = role_sizes(adapter_of(family), model.config, "target")
    assert {role: sizes[role] for role in after} == after
    for name, tensor in {**model.state_dict(), **outputs(model, built.inputs)}.items():
        assert tensor.isfinite().all(), name
