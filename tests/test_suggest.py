"""Proposed sizes are valid, near what was asked, counted rightly, and need no weights."""

import dataclasses

import pytest
import torch
import transformers
from families import FAMILIES, adapter_of, build, class_of, tiny_config

from transformers_bot import BadOption, BadSize, UnsupportedArchitecture, configs, plan, suggest
from transformers_bot.adapters import Role, Roles
from transformers_bot.architectures.inventory import Shapes, inventory_of, predict
from transformers_bot.architectures.sizes import role_sizes
from transformers_bot.console.text import read_bytes, read_number
from transformers_bot.learned.flops import forward_flops
from transformers_bot.tools.suggesting import _Shape

HEADS = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "gpt2": "GPT2LMHeadModel",
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
}


def source_of(family, **sizes):
    return tiny_config(family, HEADS[family], **{"layer": 6, "hidden": 48, "heads": 6, "ffn": 192, **sizes})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 2.0, 4.0])
def test_every_proposal_can_be_built_and_is_counted_exactly(family, ratio):
    config = source_of(family)
    found = suggest(config, ratio=ratio)
    assert found
    source = class_of(HEADS[family])(config).num_parameters()
    for one in found:
        made = plan(config, one.fields)
        target = predict(class_of(HEADS[family]), type(config)(**_fields(config, one)))
        assert {step.target: step.shape for step in made.steps} == dict(target.shapes)
        assert one.parameters == made.parameters
        assert one.bytes == made.to_dict()["bytes"]["target"]
        assert one.inherited == made.inherited == 1.0
        assert one.off == pytest.approx(one.parameters / (ratio * source) - 1, abs=1e-3)
        assert one.sizes["heads"] * one.sizes["head_dim"] == one.sizes["hidden"]
        assert one.sizes["ffn"] == 4 * one.sizes["hidden"]


def _fields(config, one):
    hidden = one.sizes["hidden"]
    own = {"n_inner": None} if config.model_type == "gpt2" else {"intermediate_size": 4 * hidden}
    pooler = {"pooler_output_size": hidden} if config.model_type in ("vit", "deit") else {}
    return {**{n: v for n, v in config.to_dict().items() if n != "model_type"}, **own, **pooler, **one.fields}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("ratio", "sign"), [(0.4, -1), (3.0, 1)])
def test_width_and_depth_go_one_way_and_heads_stay_as_wide(family, ratio, sign):
    for one in suggest(source_of(family), ratio=ratio):
        assert sign * (one.sizes["layer"] - 6) >= 0
        assert sign * (one.sizes["hidden"] - 48) >= 0
        assert one.sizes["head_dim"] == 8


def test_the_order_is_nearness_in_steps_and_then_cost():
    found = suggest(source_of("bert"), ratio=0.5, count=20)
    steps = [sum(abs(one.off) > near for near in (0.05, 0.15, 0.30)) for one in found]
    assert steps == sorted(steps)
    for step in set(steps):
        costs = [one.cost for one, of in zip(found, steps, strict=True) if of == step]
        assert costs == sorted(costs)
    widths = [one.sizes["hidden"] for one in found]
    assert len(set(widths)) == len(widths)  # one depth a width


@pytest.mark.slow
def test_an_exact_halving_costs_less_than_a_partial_level():
    halved, partial = (
        next(one for one in suggest(source_of("bert"), like=like) if one.sizes["hidden"] == width)
        for like, width in (
            (source_of("bert", hidden=24, heads=3, ffn=96), 24),
            (source_of("bert", hidden=40, heads=5), 40),
        )
    )
    assert halved.cost == 1.0
    assert "width halved" in halved.notes
    assert partial.cost == pytest.approx(0.263 + 0.5, abs=1e-3)
    assert "width 48 to 40 by a partial level" in partial.notes


@pytest.mark.slow
def test_a_size_that_is_there_is_found():
    config = source_of("gpt2")
    wanted = plan(config, n_layer=3, n_embd=24, n_head=3).parameters
    best = suggest(config, params=wanted)[0]
    assert best.parameters == pytest.approx(wanted, rel=0.05)
    assert suggest(config, ratio=1.0)[0].sizes == {"layer": 6, "hidden": 48, "heads": 6, "head_dim": 8, "ffn": 192}


@pytest.mark.slow
def test_memory_is_a_limit_and_follows_the_dtype():
    config = source_of("bert")
    half = plan(config, {}).to_dict()["bytes"]["target"] // 2
    for one in suggest(config, memory=half):
        assert one.bytes <= half
    full = suggest(config, memory=half, dtype="float32")[0]
    short = suggest(config, memory=half, dtype="bfloat16")[0]
    assert full.bytes == 4 * full.parameters
    assert short.bytes == 2 * short.parameters
    assert short.parameters > full.parameters


@pytest.mark.slow
def test_like_takes_another_familys_shape_and_keeps_head_dim():
    config = transformers.GPT2Config(architectures=["GPT2LMHeadModel"])
    first = suggest(config, like="bert-small")[0]
    assert first.sizes == {"layer": 6, "hidden": 384, "heads": 6, "head_dim": 64, "ffn": 1536}
    assert first.fields == {"n_layer": 6, "n_embd": 384, "n_head": 6}
    assert suggest(config, like=configs.get("bert-small"))[0] == first
    narrow_heads = transformers.BertConfig(hidden_size=384, num_attention_heads=12, num_hidden_layers=6)
    assert suggest(narrow_heads, like="bert-tiny")[0].sizes["heads"] == 6  # of 32, not 3 of 64


def test_an_mlp_of_its_own_proportion_keeps_it():
    config = source_of("bert", ffn=100)
    for one in suggest(config, ratio=0.5):
        assert one.fields.get("intermediate_size", 100) == one.sizes["ffn"] == round(100 * one.sizes["hidden"] / 48)


def test_heads_get_narrower_where_one_is_too_wide():
    config = transformers.BertConfig(vocab_size=50, hidden_size=256, num_attention_heads=4, num_hidden_layers=2)
    best = suggest(config, ratio=0.003)[0]
    assert best.sizes["head_dim"] < 64
    assert any(note.startswith("head_dim 64 to") for note in best.notes)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_at_any_size_are_those_of_the_model(family):
    config = source_of(family)
    model_class = class_of(HEADS[family])
    adapter, inventory = adapter_of(family), predict(model_class, config)
    shapes = Shapes.of(adapter, inventory, role_sizes(adapter, config, "source"))
    for changes in ({}, {"layer": 2}, {"hidden": 64, "heads": 4, "ffn": 70}):
        other = source_of(family, **changes)
        counted = shapes.parameters(role_sizes(adapter, other, "source"))
        assert counted == sum(p.numel() for p in model_class(other).parameters())


@pytest.mark.parametrize(("family", "role"), [("gpt2", "position"), ("vit", "grid_h")])
def test_operations_are_what_torch_counts(family, role):
    model = build(family, HEADS[family], dtype=torch.float32, layer=4, hidden=48, heads=6, ffn=192).model
    adapter, inventory = adapter_of(family), inventory_of(model)
    sizes = role_sizes(adapter, model.config, "source")
    if role == "position":
        tokens = sizes["position"]
        batch = {"input_ids": torch.ones(1, tokens, dtype=torch.long)}
    else:
        tokens = sizes["grid_h"] * sizes["grid_w"] + 1
        batch = {"pixel_values": torch.zeros(1, 3, 12, 12)}
    counted = forward_flops(model, batch) / tokens
    assert Shapes.of(adapter, inventory, sizes).flops(sizes) == pytest.approx(counted, rel=0.12)


@pytest.mark.slow
def test_a_folder_without_weights_is_enough(tmp_path):
    source_of("gpt2").save_pretrained(tmp_path)
    assert suggest(str(tmp_path), ratio=0.5) == suggest(source_of("gpt2"), ratio=0.5)


def test_a_suggestion_is_plain_data():
    import json

    one = suggest(source_of("bert"), ratio=0.5, count=1)
    assert len(one) == 1
    assert json.loads(json.dumps(one[0].to_dict()))["fields"] == one[0].fields


def test_heads_of_both_stacks_follow_the_width_that_they_share():
    four = {"encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.BartConfig(d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=60, **four)
    for one in suggest(config, ratio=0.5):
        heads = one.fields["encoder_attention_heads"]
        assert one.fields["decoder_attention_heads"] == heads
        assert one.fields["d_model"] == 8 * heads
        assert one.fields["encoder_layers"] == one.fields["decoder_layers"]
        assert plan(config, **one.fields).parameters == one.parameters


def test_another_model_with_grouped_queries_gives_its_width():
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 40, "pad_token_id": 0}
    config = transformers.LlamaConfig(hidden_size=24, intermediate_size=48, num_hidden_layers=3, **sizes)
    like = transformers.LlamaConfig(hidden_size=36, intermediate_size=72, num_hidden_layers=4, **sizes)
    first = suggest(config, like=like, count=1)[0]
    assert (first.sizes["layer"], first.sizes["hidden"], first.sizes["ffn"]) == (4, 36, 72)


def test_a_width_that_is_no_share_is_a_multiple_of_eight():
    config = transformers.T5Config(d_model=32, d_kv=4, num_heads=6, d_ff=64, num_layers=4, vocab_size=60)
    found = suggest(config, ratio=0.5, count=20)
    assert found[0].sizes["heads"] == 4
    assert found[0].sizes["hidden"] == 24  # a third less than 32 would be 21
    assert all(one.sizes["hidden"] % 8 == 0 for one in found)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({}, BadOption, r"pass exactly one of params=, like=, ratio= and memory=, got none"),
        ({"params": 1, "ratio": 2}, BadOption, r"got params= and ratio="),
        ({"params": "many"}, BadOption, r"'many' is not a number of parameters such as 60M"),
        ({"params": True}, BadOption, r"True is not a number"),
        ({"params": "0"}, BadOption, r"must be at least 1"),
        ({"memory": "3 cups"}, BadOption, r"'3 cups' is not an amount of memory"),
        ({"ratio": 0}, BadOption, r"ratio must be a number above 0, got 0"),
        ({"ratio": "half"}, BadOption, r"ratio must be"),
        ({"ratio": 1, "count": 0}, BadOption, r"count must be a whole number of at least 1"),
        ({"params": 10}, BadSize, r"no size near 10 parameters: the source has [\d,]+"),
        ({"params": "100T"}, BadSize, r"no size near 100,000,000,000,000 parameters"),
    ],
)
def test_what_cannot_be_is_said(asked, error, message):
    with pytest.raises(error, match=message):
        suggest(source_of("bert"), **asked)


def test_amounts_are_read_as_people_write_them():
    assert [read_number(x) for x in ("60M", "1.5b", "1_000", 7, "2e6")] == [6e7, 1.5e9, 1000, 7, 2e6]
    assert [read_bytes(x) for x in ("200MB", "1 GiB", 512, "1kb")] == [2e8, 2**30, 512, 1000]


def test_an_adapter_without_heads_is_refused():
    bare = dataclasses.replace(adapter_of("bert"), roles=Roles(Role("hidden", "stream", "hidden_size")), rules=())
    with pytest.raises(UnsupportedArchitecture, match="the adapter of bert has no layers and no heads with entries"):
        _Shape.of(bare)
