"""Decoders whose MLP is a bank of experts: experts stay, their units grow and shrink; layers with experts and without
travel with the layers; files hold experts one by one.
"""

from pathlib import Path

import pytest
import torch
from decoders import FULL, IDS, build, change, eager, logits, resized
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

import transformers_bot
from transformers_bot.errors import BadSize, IncompatibleModels, PlanError, UnsupportedArchitecture
from transformers_bot.rewrite.network import is_bank

FLOAT32_INSIDE = 3e-6
UNITS = {"mixtral": ("intermediate_size",), "qwen3_moe": ("moe_intermediate_size",)}
UNITS |= {"qwen2_moe": ("moe_intermediate_size", "shared_expert_intermediate_size")}


def names_in(folder: Path) -> set[str]:
    """The tensors of a folder's files."""
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names |= set(opened.keys())
    return names


# -- the language -------------------------------------------------------------------------------------


def test_a_plus_may_stand_before_an_axis_that_is_not_the_first():
    (rule,) = transformers_bot.adapters.parse_rules("out : expert +hidden <- ffn")
    assert rule.adds
    assert [factor.role for factor in rule.factors] == ["expert", "hidden", "ffn"]
    assert is_bank(rule, transformers_bot.adapters.get("mixtral").roles)


@pytest.mark.parametrize("rule", ["x : a + b", "x : ffn <- +hidden", "x : hidden +", "x : (a + b) + c"])
def test_a_plus_without_an_axis_is_refused(rule):
    with pytest.raises(PlanError, match="bracket"):
        transformers_bot.adapters.parse_rules(rule)


# -- growing ------------------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("model_type", "field"), [(name, field) for name, fields in UNITS.items() for field in fields])
def test_units_of_experts_grow_exactly_and_shrink_back(tmp_path, model_type, field):
    model = build(model_type)
    units = getattr(model.config, field)
    target = resized(model, tmp_path / "source", **{field: 2 * units})
    assert change(logits(target), logits(model)) < FLOAT32_INSIDE
    assert change(logits(resized(target, tmp_path / "grown", **{field: units})), logits(model)) < FLOAT32_INSIDE


def test_a_length_of_heads_that_only_the_file_has_is_a_size(tmp_path):
    # The class does not declare it, published configs have it.
    model = build("qwen3_moe")
    config = Qwen3MoeConfig(**{**model.config.to_dict(), "head_dim": 8})
    model = AutoModelForCausalLM.from_config(eager(config)).double().eval()
    model.save_pretrained(tmp_path / "plain")
    plan = transformers_bot.plan(tmp_path / "plain", hidden_size=48)
    assert plan.target_sizes["head_dim"] == 8
    assert "does not know" not in str(plan.warnings)
    target = resized(model, tmp_path, head_dim=16)
    assert change(logits(target), logits(model)) < 3e-4


def test_a_length_of_heads_that_the_class_does_not_declare_can_be_set():
    config = Qwen3MoeConfig()
    assert not hasattr(config, "head_dim")
    assert transformers_bot.plan(config, head_dim=128).target_sizes["head_dim"] == 128
    config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(UnsupportedArchitecture, match=r"keep \d+ rotary pairs \(head_dim\)"):
        transformers_bot.plan(config, head_dim=128)


def test_the_number_of_experts_stays(tmp_path):
    with pytest.raises(IncompatibleModels, match="expert entries have an identity"):
        resized(build("mixtral"), tmp_path, num_local_experts=6)


def test_training_parts_copies_of_an_experts_units(tmp_path):
    target = resized(build("mixtral"), tmp_path, intermediate_size=40).float().train()
    optimiser = torch.optim.AdamW(target.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ids = torch.randint(3, 37, (4, 12), generator=generator)
        target(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    pairs = target.model.layers[1].mlp.experts.down_proj.detach().view(3, 24, 20, 2)
    assert ((pairs[..., 0] - pairs[..., 1]).norm(dim=1) > 1e-3 * pairs[..., 0].norm(dim=1)).all()


# -- layers of two kinds ------------------------------------------------------------------------------


def test_layers_without_experts_travel_with_the_layers(tmp_path):
    model = build("qwen3_moe", num_hidden_layers=4, mlp_only_layers=[0, 3])
    deeper = resized(model, tmp_path / "deeper", num_hidden_layers=8)
    # A new layer copies the one below it.
    assert deeper.config.mlp_only_layers == [0, 1, 7]
    assert change(logits(deeper), logits(model)) < FLOAT32_INSIDE
    assert resized(model, tmp_path / "even", num_hidden_layers=2).config.mlp_only_layers == [0, 1]
    first = resized(model, tmp_path / "first", num_hidden_layers=2, bot_config={"depth": "first"})
    assert first.config.mlp_only_layers == [0]


def test_a_stride_is_written_as_numbers(tmp_path):
    model = build("qwen2_moe", num_hidden_layers=4)  # layers 0 and 2 have no experts
    target = resized(model, tmp_path, num_hidden_layers=5)
    assert (target.config.mlp_only_layers, target.config.decoder_sparse_step) == ([0, 3], 1)
    assert target.config.layer_types == [FULL] * 5
    assert change(logits(target), logits(model)) < FLOAT32_INSIDE


def test_layers_that_calibration_chooses_keep_their_kind(tmp_path):
    model = build("qwen3_moe", num_hidden_layers=4, mlp_only_layers=[1])
    batches = [{"input_ids": IDS}]
    target = resized(model, tmp_path, num_hidden_layers=2, bot_config={"depth": "strongest"}, calibration=batches)
    kept = target.config.transformers_bot["layers"]
    assert target.config.mlp_only_layers == [new for new, old in enumerate(kept) if old == 1]
    assert torch.isfinite(logits(target)).all()


@pytest.mark.parametrize("fields", [{"mlp_only_layers": [0]}, {"bot_config": {"depth": "wavelet"}}])
def test_layers_of_two_kinds_are_neither_mixed_nor_changed(tmp_path, fields):
    model = build("qwen3_moe", num_hidden_layers=4, mlp_only_layers=[1])
    with pytest.raises(IncompatibleModels, match="its layers are of several kinds"):
        resized(model, tmp_path, num_hidden_layers=2, **fields)


def test_a_stride_of_no_layer_is_refused(tmp_path):
    with pytest.raises(BadSize, match="decoder_sparse_step is 0"):
        resized(build("qwen2_moe"), tmp_path, decoder_sparse_step=0)


def test_suggestions_count_tensors_of_the_layers_that_have_them(tmp_path):
    model = build("qwen3_moe")
    model.save_pretrained(tmp_path)
    for suggested in transformers_bot.suggest(tmp_path, ratio=2):
        if suggested.sizes["layer"] == 3:  # a new layer may be of either kind
            assert transformers_bot.plan(tmp_path, **suggested.fields).parameters == suggested.parameters
            return
    pytest.fail("no suggestion of as many layers")


# -- shrinking ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_similar_units_are_found_in_every_expert_of_its_own(tmp_path):
    model = build("mixtral")
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        experts = layer.mlp.experts
        for expert in range(3):  # 10 units twice, in another order in each expert
            order = torch.randperm(20, generator=generator)
            gate, up = experts.gate_up_proj[expert].chunk(2)
            twice = [torch.cat([x[:10], x[:10]])[order] for x in (gate, up)]
            experts.gate_up_proj[expert] = torch.cat(twice)
            down = experts.down_proj[expert][:, :10]
            experts.down_proj[expert] = torch.cat([down, down], 1)[:, order]
    target = resized(model, tmp_path, intermediate_size=10)
    assert change(logits(target), logits(model)) < FLOAT32_INSIDE
    kept = resized(model, tmp_path, intermediate_size=10, bot_config={"order": "kept"})
    assert change(logits(kept), logits(model)) > 0.1


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("model_type", UNITS)
@pytest.mark.parametrize("method", ["bot", "importance"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_fewer_units_of_experts_run(tmp_path, model_type, method, calibrated):
    model = build(model_type)
    fields = {field: getattr(model.config, field) // 2 for field in UNITS[model_type]}
    fields |= {"calibration": [{"input_ids": IDS}]} if calibrated else {}
    options = {"bot_config": {"order": "strongest"}} if calibrated and method == "bot" else {}
    target = resized(model, tmp_path, method=method, **fields, **options)
    assert change(logits(target), logits(model)) < 3


# -- files --------------------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("model_type", UNITS)
def test_folders_hold_experts_one_by_one_as_transformers_saves_them(tmp_path, model_type):
    model = build(model_type).float()
    model.save_pretrained(tmp_path / "source", max_shard_size="30KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 1
    transformers_bot.resize_checkpoint(
        tmp_path / "source", tmp_path / "streamed", hidden_size=48, max_shard_size="50KB"
    )
    target = transformers_bot.BoTModelForCausalLM.from_pretrained(tmp_path / "source", hidden_size=48)
    target.save_pretrained(tmp_path / "saved")
    assert names_in(tmp_path / "streamed") == names_in(tmp_path / "saved")
    assert any(".experts.2." in name for name in names_in(tmp_path / "streamed"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "streamed")
    state = target.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
