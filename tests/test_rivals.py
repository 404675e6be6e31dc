"""The laws of the other methods: what they keep, that they account for every tensor, and what they refuse."""

import json

import pytest
import torch
from families import (
    ALL_HEADS,
    FAMILIES,
    MAIN_HEADS,
    assert_same_outputs,
    outputs,
    resize,
    resized_config,
    tiny_config,
)
from test_plan import assert_total

from transformers_bot import BoTConfig, BoTModelForCausalLM, adapters, methods, plan
from transformers_bot.architectures.sizes import role_sizes
from transformers_bot.methods import Fresh, Task

WIDTHS = {
    "heads added": {"hidden": 24, "heads": 6, "ffn": 40},
    "head_dim grows": {"hidden": 24, "heads": 3, "ffn": 40},
    "both": {"hidden": 48, "heads": 6, "ffn": 40},
}
# method -> a change of sizes that its formula covers
COVERED = {
    "weight_selection": {"layer": 1, "hidden": 8, "heads": 2, "ffn": 10},
    "importance": {"layer": 1, "hidden": 8, "heads": 2, "ffn": 10},
    "fpi": {"layer": 5, "hidden": 16, "heads": 4, "ffn": 33},
    "aki": {"layer": 5, "hidden": 16, "heads": 4, "ffn": 33},
    "stack": {"layer": 5},
    "interpolate": {"layer": 5},
    "depth_upscale": {"layer": 3},
    "tile": {"layer": 5, "hidden": 24, "heads": 6, "ffn": 40},
    "lemon": {"hidden": 24, "heads": 6, "ffn": 33},
    "front": {"layer": 3, "hidden": 16, "heads": 4, "ffn": 15},
    "scratch": {"layer": 3, "hidden": 20, "heads": 5, "ffn": 15},
    "tile+interpolate": {"layer": 5, "hidden": 24, "heads": 6, "ffn": 40},
}
STREAM = ("last_hidden_state", "pooler_output")
SEEDED = ("fpi", "aki", "lemon")


def resized(saved, family, head, method, sizes, bot_config=None, **changes):
    """The source with its inputs, and the model of another size that the method makes of it."""
    folder, built = saved(family, head, **changes)
    wanted = resized_config(built.config, **sizes)
    return built, resize(folder, wanted, head, method=method, bot_config=bot_config, dtype=torch.float64)


def logits(model, inputs) -> dict[str, torch.Tensor]:
    return {name: x for name, x in outputs(model, inputs).items() if name not in STREAM}


def epsilon(family: str) -> dict[str, float]:
    """An epsilon of norms that is large enough to show in the outputs."""
    return {"layer_norm_epsilon" if family == "gpt2" else "layer_norm_eps": 0.05}


# -- what is kept -----------------------------------------------------------------------------------


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("method", ["tile", "fpi", "lemon"])
@pytest.mark.parametrize("sizes", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_whole_multiples_of_width_keep_the_outputs(saved, family, head, sizes, method):
    built, target = resized(saved, family, head, method, sizes, **epsilon(family))
    assert_same_outputs(logits(target, built.inputs), logits(built.model, built.inputs))


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("method", ["tile", "fpi", "lemon"])
@pytest.mark.parametrize(
    ("family", "head"),
    # A base model returns the stream itself; double heads have no factory.
    [pair for pair in ALL_HEADS if not pair[1].endswith(("Model", "DoubleHeadsModel")) or pair[1] == "GPT2LMHeadModel"],
)
def test_every_head_class_keeps_its_outputs(saved, family, head, method):
    built, target = resized(saved, family, head, method, WIDTHS["heads added"])
    assert_same_outputs(logits(target, built.inputs), logits(built.model, built.inputs))


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("method", ["tile", "fpi", "lemon"])
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_float32_keeps_the_logits_to_1e_4(saved, family, head, method):
    folder, built = saved(family, head, dtype=torch.float32)
    wanted = resized_config(built.config, **WIDTHS["heads added"])
    target = resize(folder, wanted, head, method=method)
    assert_same_outputs(logits(target, built.inputs), logits(built.model, built.inputs), tolerance=1e-4)


LEMONS = {
    "4/3": {"hidden": 16, "heads": 4, "ffn": 28},
    "4/3 and depth": {"hidden": 16, "heads": 4, "ffn": 28, "layer": 3},
    "7/3": {"hidden": 28, "heads": 7, "ffn": 33},
    "head_dim 3/2": {"hidden": 18, "heads": 3, "ffn": 50},
    "depth": {"layer": 5},
}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("sizes", LEMONS.values(), ids=LEMONS)
@pytest.mark.parametrize(
    ("family", "head", "changes"),
    [(*pair, {}) for pair in MAIN_HEADS if pair[0] in ("gpt2", "vit", "deit")]
    + [("gpt2", "GPT2ForSequenceClassification", {}), ("vit", "ViTForMaskedImageModeling", {})]
    + [("gpt2", "GPT2LMHeadModel", {"tie_word_embeddings": False})],
)
def test_lemon_keeps_the_outputs_of_prenorm_models_at_any_ratio(saved, family, head, changes, sizes):
    built, target = resized(saved, family, head, "lemon", sizes, **epsilon(family), **changes)
    before, after = logits(built.model, built.inputs), logits(target, built.inputs)
    for found in (before, after):
        found.pop("reconstruction", None)
    assert_same_outputs(after, before)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("sizes", [{"ffn": 33}, {"hidden": 36, "heads": 9, "ffn": 33}], ids=str)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS[:2])
def test_lemon_grows_the_mlp_of_postnorm_models_at_any_ratio(saved, family, head, sizes):
    built, target = resized(saved, family, head, "lemon", sizes, **epsilon(family))
    assert_same_outputs(logits(target, built.inputs), logits(built.model, built.inputs))


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("sizes", [LEMONS["4/3"], WIDTHS["heads added"], WIDTHS["head_dim grows"]], ids=str)
def test_lemon_parts_its_copies_in_training(saved, sizes):
    folder, built = saved("gpt2", "GPT2LMHeadModel", dtype=torch.float32)
    wanted = resized_config(built.config, **sizes)
    model = resize(folder, wanted, "GPT2LMHeadModel", method="lemon").train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        optimiser.zero_grad()
        model(**built.inputs, labels=built.inputs["input_ids"]).loss.backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            for matrix in (parameter.detach(), parameter.detach().T):
                nearest = (torch.cdist(matrix, matrix) + 9 * torch.eye(len(matrix))).min()
                assert nearest > 1e-4 * matrix.norm(dim=1).mean(), f"{name} has two units alike"


# -- identity, totality, seeds ------------------------------------------------------------------------


@pytest.mark.covering
@pytest.mark.parametrize("method", [name for name in COVERED if name != "scratch"])
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_equal_sizes_give_the_source_bit_for_bit(saved, family, head, method):
    built, same = resized(saved, family, head, method, {})
    expected = built.model.state_dict()
    assert list(same.state_dict()) == list(expected)
    for name, tensor in same.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("method", [name for name in COVERED if name != "scratch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recipes_of_equal_sizes_are_copies(family, method):
    adapter = adapters.get(family)
    config = tiny_config(family)
    sizes = role_sizes(adapter, config, "source")
    task = Task(adapter, sizes, sizes, tied=True)
    made = methods.get(method, BoTConfig())
    made.check(task)
    assert made.config_fields(task, config) == {}
    for rule in adapter.rules:
        recipe = made.recipe(task, rule, 1 if rule.layered else None, rule.names.split("|")[0].strip())
        assert not isinstance(recipe, Fresh)
        assert recipe.is_copy, rule.text


@pytest.mark.covering(few=20)
@pytest.mark.parametrize("method", COVERED)
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_a_plan_accounts_for_every_tensor(family, head, method):
    config = tiny_config(family, head)
    made = plan(config, resized_config(config, **COVERED[method]), method=method)
    assert_total(made, made.source, made.target)
    assert f"method {method}" in str(made)
    assert json.loads(json.dumps(made.to_dict()))["method"]["method"] == method
    if method == "scratch":
        assert made.inherited == 0.0
    elif method != "weight_selection":
        assert made.inherited == 1.0


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("method", COVERED)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_every_method_runs_and_is_saved(saved, tmp_path, family, head, method):
    rest = method == "lemon" and family in ("gpt2", "vit", "deit")
    built, target = resized(saved, family, head, method, LEMONS["4/3 and depth"] if rest else COVERED[method])
    assert target.config.transformers_bot["method"] == method
    target.save_pretrained(tmp_path)
    again = type(target).from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")
    found = outputs(target, built.inputs)
    assert_same_outputs(outputs(again, built.inputs), found, tolerance=1e-12)
    assert all(torch.isfinite(x).all() for x in found.values())


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("method", SEEDED)
def test_the_seed_decides_what_is_drawn(saved, method):
    def grown(seed):
        sizes = {"hidden": 24, "heads": 6, "ffn": 33}
        return resized(saved, "bert", "BertForMaskedLM", method, sizes, {"seed": seed})[1].state_dict()

    first, again, other = grown(3), grown(3), grown(4)
    name = "bert.encoder.layer.1.output.dense.weight"
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert not torch.equal(first[name], other[name])


# -- scratch ----------------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("call", ["no config", "equal config", "fields", "another size"])
def test_scratch_is_what_transformers_initialises(saved, call):
    folder, built = saved("gpt2", "GPT2LMHeadModel", dtype=torch.float32)
    wanted = resized_config(built.config, **({"layer": 3, "hidden": 20, "heads": 5} if call == "another size" else {}))
    given = {"no config": {}, "fields": {"n_layer": 2}}.get(call, {"config": wanted})
    torch.manual_seed(5)
    model, info = BoTModelForCausalLM.from_pretrained(folder, method="scratch", output_loading_info=True, **given)
    torch.manual_seed(5)
    again = BoTModelForCausalLM.from_pretrained(folder, method="scratch", **given)
    torch.manual_seed(6)
    other = BoTModelForCausalLM.from_pretrained(folder, method="scratch", **given)
    weight = model.transformer.h[1].mlp.c_fc.weight
    assert torch.equal(weight, again.transformer.h[1].mlp.c_fc.weight)
    assert not torch.equal(weight, other.transformer.h[1].mlp.c_fc.weight)
    assert 0.015 < float(weight.detach().std()) < 0.025  # initializer_range, where the source has 0.3
    assert torch.equal(model.transformer.ln_f.weight, torch.ones_like(model.transformer.ln_f.weight))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not model.training
    assert model.config.transformers_bot["method"] == "scratch"
    assert info["missing_keys"] >= {"transformer.wte.weight", "transformer.ln_f.bias"}
    assert not info["mismatched_keys"]


def test_scratch_takes_any_heads(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    options = {"reheads": "reshape"}
    model = BoTModelForCausalLM.from_pretrained(folder, method="scratch", n_head=4, bot_config=options)
    assert model.config.n_head == 4
