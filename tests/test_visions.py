"""Encoders of images and texts: growing keeps the function and shrinking undoes it, blocks that a vector scales can
be turned, and names of older checkpoints are read.
"""

import json
from operator import attrgetter

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from visions import OUTPUTS, PAIRS, ROWS, batch, build, change, outputs, resized

import transformers_bot
from transformers_bot.architectures.adapter import get
from transformers_bot.architectures.sizes import rebuild
from transformers_bot.errors import BadKeyword, BadOption, BadSize, BoTError, UnsupportedArchitecture
from transformers_bot.tools.conformance.check import check

EXACT = 1e-12
GROWN = {
    "width": {"hidden_size": 48, "num_attention_heads": 6},
    "length of heads": {"hidden_size": 48},
    "MLP": {},
    "depth": {"num_hidden_layers": 5},
}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("what", GROWN)
@pytest.mark.parametrize("name", ROWS)
def test_growing_keeps_the_outputs_and_shrinking_gives_them_back(tmp_path, name, what):
    model, row = build(name), ROWS[name]
    sizes, inputs = GROWN[what] or row.units, batch(model)
    target = resized(model, tmp_path / "source", row.factory, **sizes)
    expected = outputs(model, inputs)
    assert change(outputs(target, inputs), expected) < EXACT
    before = {field: getattr(model.config, field) for field in sizes}
    assert change(outputs(resized(target, tmp_path / "grown", row.factory, **before), inputs), expected) < EXACT


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_a_halved_model_runs(tmp_path, name, calibrated):
    model = build(name)
    options = {"calibration": [batch(model, seed, 8) for seed in (1, 2)]} if calibrated else {}
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    target = resized(model, tmp_path, ROWS[name].factory, **sizes, **options)
    assert torch.isfinite(outputs(target, batch(model))).all()


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("name", ROWS)
def test_training_parts_copies(tmp_path, name):
    row = ROWS[name]
    target = resized(build(name), tmp_path, row.factory, hidden_size=48, **row.units).float().train()
    optimiser = torch.optim.AdamW(target.parameters(), lr=1e-3)
    for seed in range(20):
        given = target(**batch(target, seed))
        output = next(given[name] for name in OUTPUTS if name in given)
        (output - torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    names = [n for n, x in target.state_dict().items() if ".0." in n and x.ndim == 2 and ".mlp." in n]
    weight = target.state_dict()[next(n for n in names if "down" in n or "fc2" in n)]  # (width, units)
    for copies in (weight.view(24, 2, -1), weight.T.reshape(weight.shape[1] // 2, 2, -1)):
        assert ((copies[:, 0] - copies[:, 1]).norm(dim=-1) > 1e-3 * copies[:, 0].norm(dim=-1)).all()


@pytest.mark.covering(few=3)
@pytest.mark.parametrize("name", ROWS)
def test_the_plan_of_an_ordinary_config_has_no_warning(name):
    row = ROWS[name]
    config = getattr(transformers, row.model_class).config_class(architectures=[row.model_class])
    plan = transformers_bot.plan(config, num_hidden_layers=2 * config.num_hidden_layers)
    assert plan.warnings == ()


# -- blocks that a vector scales ----------------------------------------------------------------------


def of_low_rank(name: str) -> torch.nn.Module:
    """A model whose stream lies in 16 of its 24 dimensions, the mean's among them, and whose first heads are alike."""
    model = build(name)
    directions = torch.randn(24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    directions[:, 0] = 1
    basis, _ = torch.linalg.qr(directions)
    state = model.state_dict()
    with torch.no_grad():
        for tensor in (n for n in state if "embeddings." in n):
            axis = 0 if "patch" in tensor else -1
            state[tensor].copy_(torch.tensordot(state[tensor], basis @ basis.T, ([axis], [0])).movedim(-1, axis))
        for scale in (n for n in state if n.endswith("lambda1")):
            block = scale.rpartition(".layer_scale")[0]
            attention = ("attention.o_proj", "attention.output.dense")  # a new and an old name
            outs = attention if "scale1" in scale else ("mlp.fc2", "mlp.down_proj", "mlp.weights_out")
            for part in (f"{block}.{out}.{end}" for out in outs for end in ("weight", "bias")):
                if part in state:
                    x = state[part] if state[part].ndim == 2 else state[part][:, None]
                    x.copy_(basis @ (basis.T @ (state[scale][:, None] * x)) / state[scale][:, None])
        for part in (n for n in state if ".attention." in n and "o_proj" not in n and "output" not in n):
            state[part][8:16].copy_(state[part][:8])
    return model


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("name", ["dinov2", "dinov2 gated"])
def test_shrinking_a_stream_of_low_rank_keeps_what_its_scaled_blocks_add(tmp_path, name):
    model = of_low_rank(name)
    sizes, inputs = {"hidden_size": 16, "num_attention_heads": 2, "mlp_ratio": 3}, batch(model)
    assert change(outputs(resized(model, tmp_path, ROWS[name].factory, **sizes), inputs), outputs(model, inputs)) < 1e-5
    plain = resized(model, tmp_path, ROWS[name].factory, bot_config={"basis": "plain"}, **sizes)
    assert change(outputs(plain, inputs), outputs(model, inputs)) > 0.1


def test_importance_adds_up_what_a_classifier_reads_of_two_tokens(tmp_path):
    target = resized(
        build("dinov2"), tmp_path, ROWS["dinov2"].factory, hidden_size=16, num_attention_heads=2, method="importance"
    )
    assert torch.isfinite(outputs(target, batch(target))).all()


def test_scales_that_no_rule_names_are_refused():
    from dataclasses import replace

    adapter = transformers_bot.adapters.get("dinov2")
    scale = replace(adapter.scales[0], writers=("encoder.layer.{layer}.attention.o_prj",))
    with pytest.raises(BoTError, match=r"scales name 'encoder.layer.\{layer\}.attention.o_prj.weight', but no rule"):
        transformers_bot.adapters.validate(replace(adapter, scales=(scale,)))


# -- DINO -------------------------------------------------------------------------------------------------


def test_gated_units_are_rounded_and_grow_exactly(tmp_path):
    model = build("dinov2 gated", hidden_size=28, num_attention_heads=2)  # 40 units, of 37.3; twice as wide 80, of 74.7
    target = resized(model, tmp_path, ROWS["dinov2 gated"].factory, hidden_size=56)
    ends = (".0.mlp.down_proj.weight", ".0.mlp.weights_out.weight")  # a new and an old name
    assert [x.shape for name, x in target.state_dict().items() if name.endswith(ends)] == [(56, 80)]
    inputs = batch(model)
    assert change(outputs(target, inputs), outputs(model, inputs)) < EXACT


def test_names_of_older_checkpoints_are_read(tmp_path):
    old = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    model = build("dinov2 gated")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    renamed = {}
    for name, x in state.items():
        for new, before in old.items():
            name = name.replace(f"attention.{new}", f"attention.{before}")
        renamed[name.replace("down_proj", "weights_out")] = x
    for name in [n for n in renamed if "gate_proj" in n]:
        halves = renamed.pop(name), renamed.pop(name.replace("gate", "up"))
        renamed[name.replace("gate_proj", "weights_in")] = torch.cat(halves)
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    target = transformers_bot.BoTModelForImageClassification.from_pretrained(
        tmp_path, hidden_size=48, dtype=torch.float64
    )
    inputs = batch(model)
    assert change(outputs(target, inputs), outputs(model, inputs)) < EXACT


def test_heads_that_do_not_fit_two_axes_of_angles_are_refused(tmp_path):
    with pytest.raises(BadSize, match=r"heads have 10 entries.*multiple of 4"):
        resized(build("dinov3"), tmp_path, "BoTModel", hidden_size=30)


def test_a_backbone_follows_its_last_stage_and_names_no_other(tmp_path):
    config = transformers.Dinov2Config(**ROWS["dinov2"].fields)
    longer = transformers_bot.plan(config, num_hidden_layers=6)
    assert longer.target_sizes["layer"] == 6
    model = build("dinov2 base")
    target = resized(model, tmp_path, "BoTModel", num_hidden_layers=6)
    assert (target.config.out_features, target.config.stage_names[-1]) == (["stage6"], "stage6")
    several = transformers.Dinov2Config(**ROWS["dinov2"].fields, out_indices=[1, 3], architectures=["Dinov2Backbone"])
    with pytest.raises(UnsupportedArchitecture, match=r"out_indices=\[1, 3\] names layers by their numbers.*keep 3"):
        transformers_bot.plan(several, num_hidden_layers=6)
    assert transformers_bot.plan(several, hidden_size=48).target_sizes["hidden"] == 48


@pytest.mark.parametrize("layers", [2, 6])
def test_stages_that_no_feature_map_needs_follow_the_last_layer(layers):
    config = transformers.BeitConfig(num_hidden_layers=4, out_indices=[1, 2, 3, 4])
    config.architectures = ["BeitForImageClassification"]
    assert transformers_bot.plan(config, num_hidden_layers=layers).target_sizes["layer"] == layers
    target = rebuild(get("beit"), config, {"num_hidden_layers": layers})
    assert (target.out_indices, target.out_features) == ([layers], [f"stage{layers}"])
    assert rebuild(get("beit"), config, {"hidden_size": 1536}).out_indices == [1, 2, 3, 4]


def test_a_field_that_the_type_has_not_is_refused_by_name():
    with pytest.raises(BadKeyword, match="intermediate_size"):
        transformers_bot.plan(transformers.Dinov2Config(), intermediate_size=100)


def test_an_older_config_is_known(tmp_path):
    model = build("dinov2 base")
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    for name in ("stage_names", "out_indices"):
        fields.pop(name)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert transformers_bot.plan(tmp_path, num_hidden_layers=6).warnings == ()


# -- two towers -------------------------------------------------------------------------------------------

# What grows -> the fields, as a dict within a keyword or by their paths.
GROWN_PAIRS = {
    "both widths": {
        "text_config": {"hidden_size": 48, "num_attention_heads": 6},
        "vision_config": {"hidden_size": 72},
    },
    "units and depths": {
        "text_config.intermediate_size": 40,
        "text_config.num_hidden_layers": 5,
        "vision_config.num_hidden_layers": 3,
        "vision_config.num_attention_heads": 3,
    },
}


def before_of(model, sizes):
    """The model's own values of the fields of a call."""
    return {
        name: {part: getattr(getattr(model.config, name), part) for part in value}
        if isinstance(value, dict)
        else attrgetter(name)(model.config)
        for name, value in sizes.items()
    }


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("sizes", GROWN_PAIRS.values(), ids=GROWN_PAIRS)
@pytest.mark.parametrize("name", PAIRS)
def test_both_towers_grow_exactly_and_shrink_back(tmp_path, name, sizes):
    model, factory = build(name), PAIRS[name].factory
    inputs = batch(model)
    expected = outputs(model, inputs)
    target = resized(model, tmp_path / "source", factory, config=sizes)
    assert change(outputs(target, inputs), expected) < EXACT
    back = resized(target, tmp_path / "grown", factory, **before_of(model, sizes))
    assert change(outputs(back, inputs), expected) < EXACT


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_halved_pair_runs_and_verifies(tmp_path, name, calibrated):
    model = build(name)
    options = {"calibration": [batch(model, seed, 8) for seed in (1, 2)]} if calibrated else {}
    sizes = {
        "text_config": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2},
        "vision_config": {"hidden_size": 18, "num_hidden_layers": 1},
    }
    target = resized(model, tmp_path / "source", PAIRS[name].factory, **sizes, **options)
    assert torch.isfinite(outputs(target, batch(model))).all()
    record = target.config.transformers_bot
    assert record["target_sizes"]["text_hidden"] == 16
    assert record["target_sizes"]["vision_layer"] == 1


@pytest.mark.slow
def test_a_streamed_pair_is_the_loaded_one(tmp_path):
    model = build("siglip")
    sizes = {"text_config": {"hidden_size": 16, "num_attention_heads": 2}, "vision_config": {"num_hidden_layers": 1}}
    target = resized(model, tmp_path / "source", PAIRS["siglip"].factory, **sizes)
    transformers_bot.resize_checkpoint(tmp_path / "source", tmp_path / "out", dtype="float64", **sizes)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(x, stored[name]) for name, x in target.state_dict().items())
    assert transformers_bot.verify(tmp_path / "out", tmp_path / "source").equal


def test_fields_of_a_tower_are_named_by_their_paths():
    config = transformers.CLIPConfig()
    with pytest.raises(BadKeyword, match=r"no field 'hidden_size' to set. It is a field of text_config and of vision_"):
        transformers_bot.plan(config, hidden_size=256)
    with pytest.raises(BadKeyword, match=r"no field 'text_config.hiden_size'.*'text_config.hidden_size'"):
        transformers_bot.plan(config, text_config={"hiden_size": 256})
    with pytest.raises(BadSize, match=r"text_config.hidden_size 500 is not divisible by text_config.num"):
        transformers_bot.plan(config, text_config={"hidden_size": 500})
    with pytest.raises(BadKeyword, match=r"text_config.hidden_size is given twice"):
        transformers_bot.plan(config, {"text_config": {"hidden_size": 256}, "text_config.hidden_size": 128})
    with pytest.raises(BadOption, match=r"text_config is 3; it must be a dict"):
        transformers_bot.plan(config, text_config=3)


def test_suggestions_size_both_towers_in_proportion():
    config = transformers.CLIPConfig()
    best = transformers_bot.suggest(config, ratio=0.5, count=1)[0]
    assert transformers_bot.plan(config, **best.fields).parameters == best.parameters
    assert abs(best.off) <= 0.05
    text, vision = (best.sizes[f"{side}_hidden"] for side in ("text", "vision"))
    assert text / vision == 512 / 768
    assert best.sizes["text_layer"] == best.sizes["vision_layer"]
    assert "text_config.hidden_size and vision_config.hidden_size in proportion" in best.notes


def test_texts_follow_the_width_in_which_images_end():
    config = transformers.SiglipConfig(text_config={"hidden_size": 512, "num_attention_heads": 8})
    assert config.text_config.projection_size == 512
    with pytest.raises(BadSize, match=r"projection_size is 512 and vision_config.hidden_size 768"):
        transformers_bot.plan(config, text_config={"num_hidden_layers": 6})
    halved = {"hidden_size": 384, "num_attention_heads": 6}
    plan = transformers_bot.plan(transformers.SiglipConfig(), vision_config=halved)
    assert plan.target.shapes["text_model.head.weight"] == (384, 768)


# What published config files of CLIP repeat in each tower's config.
REPEATED = {"add_cross_attention": False, "do_sample": False, "length_penalty": 1.0, "max_length": 20, "num_beams": 1}
REPEATED |= {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "torchscript": False, "is_decoder": False, "dropout": 0.0}
REPEATED |= {"tie_word_embeddings": True, "typical_p": 1.0, "use_bfloat16": False, "pruned_heads": {}}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_plan_of_a_published_pair_has_no_warning(tmp_path, name):
    own = {
        "architectures": [PAIRS[name].model_class],
        "text_config": dict(REPEATED),
        "vision_config": dict(REPEATED),
        "logit_scale_init_value": 2.6592,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **own}))
    plan = transformers_bot.plan(tmp_path, text_config={"num_hidden_layers": 24})
    assert plan.warnings == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_check_runs_a_pair_on_texts_and_images(name):
    result = check(transformers_bot.adapters.get(name), build(name).config)
    assert (result.problems, result.run) == ([], result.classes)
    assert len(result.run) == 2


# -- tables of relative positions ---------------------------------------------------------------------


def test_a_table_under_its_name_in_files_is_carried_without_a_warning(tmp_path):
    model = build("beit shared")
    model.save_pretrained(tmp_path / "source")
    report = transformers_bot.resize_checkpoint(tmp_path / "source", tmp_path / "out", num_hidden_layers=5)
    assert report.warnings == ()
    grown = transformers.BeitModel.from_pretrained(tmp_path / "out", dtype=torch.float64)
    tables = [[x for name, x in m.state_dict().items() if name.endswith("bias_table")] for m in (grown, model)]
    assert len(tables[0]) == 1
    assert torch.equal(tables[0][0], tables[1][0])


def test_a_table_of_relative_positions_keeps_its_image(tmp_path):
    build("beit").save_pretrained(tmp_path)
    with pytest.raises(
        transformers_bot.IncompatibleModels, match="Set image_size and patch_size to the source's value"
    ):
        transformers_bot.plan(tmp_path, image_size=16)
