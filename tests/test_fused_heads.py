"""Decoders with other laws than the table of `decoders`: heads that alternate in a fused q|k|v (GPT-NeoX, Falcon), and
stored positions with two rows in front (OPT).
"""

import pytest
import torch
import transformers
from decoders import IDS, change, eager, logits, resized
from families import randomise
from transformers import CONFIG_MAPPING, FalconConfig, PreTrainedModel

import transformers_bot
from transformers_bot.errors import BadSize, PlanError, UnsupportedArchitecture
from transformers_bot.ops.recipe import Alternation

EXACT = 1e-12  # the norms compute in the model's dtype
QUARTER = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
WHOLE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
SIZES = {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 24}
# Name -> model type and fields.
MODELS = {
    "pythia": ("gpt_neox", {"intermediate_size": 20, "rope_parameters": QUARTER}),
    "neox in sequence": (
        "gpt_neox",
        {
            "intermediate_size": 20,
            "rope_parameters": WHOLE,
            "use_parallel_residual": False,
            "tie_word_embeddings": True,
        },
    ),
    "falcon 7b": ("falcon", {"ffn_hidden_size": 20, "multi_query": True, "bias": True}),
    "falcon 40b": ("falcon", {"ffn_hidden_size": 20, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon 11b": (
        "falcon",
        {
            **{"ffn_hidden_size": 20, "new_decoder_architecture": True, "num_kv_heads": 2},
            "num_ln_in_parallel_attn": 1,
        },
    ),
    "falcon, a key each": ("falcon", {"ffn_hidden_size": 20, "multi_query": False}),
    "opt": ("opt", {"ffn_dim": 20, "word_embed_proj_dim": 32}),
}
FFN = {"gpt_neox": "intermediate_size", "falcon": "ffn_hidden_size", "opt": "ffn_dim"}


def build(name: str, task: str = "CausalLM", **changes) -> PreTrainedModel:
    """A tiny model in float64 with every parameter random."""
    model_type, fields = MODELS[name]
    config = CONFIG_MAPPING[model_type](**{**SIZES, **fields, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"AutoModelFor{task}").from_config(eager(config))
    return randomise(model.to(torch.float64).eval(), 0)


def sizes(name: str, what: str) -> dict[str, int]:
    """The fields that grow."""
    model_type, fields = MODELS[name]
    heads = {"num_attention_heads": 8} | ({"num_kv_heads": 4} if "num_kv_heads" in fields else {})
    return {
        "width": {"hidden_size": 64, **heads},
        "MLP": {FFN[model_type]: 40},
        "depth": {"num_hidden_layers": 5},
        "width as it is said": {"hidden_size": 64},
    }[what]


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("what", ["width", "MLP", "depth", "width as it is said"])
@pytest.mark.parametrize("name", MODELS)
def test_growing_keeps_the_outputs_and_shrinking_gives_them_back(tmp_path, name, what):
    model = build(name)
    target = resized(model, tmp_path / "source", **sizes(name, what))
    assert change(logits(target), logits(model)) < EXACT
    before = {field: getattr(model.config, field) for field in sizes(name, what)}
    assert change(logits(resized(target, tmp_path / "grown", **before)), logits(model)) < EXACT


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
@pytest.mark.parametrize("name", ["pythia", "falcon 40b", "opt"])
def test_all_heads_grow_exactly(tmp_path, name, task):
    try:
        model = build(name, task, num_labels=3) if task != "QuestionAnswering" else build(name, task)
    except ValueError as error:
        pytest.skip(str(error)[:80])  # transformers has no such head
    target = resized(model, tmp_path, task, hidden_size=64, num_hidden_layers=4)
    assert change(logits(target), logits(model)) < EXACT


@pytest.mark.covering(few=3)
@pytest.mark.parametrize("method", ["bot", "importance", "weight_selection"])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_halved_model_runs(tmp_path, name, calibrated, method):
    if calibrated and method == "weight_selection":
        pytest.skip("it does not use batches")
    model = build(name)
    options = {"calibration": [{"input_ids": IDS}]} if calibrated else {}
    fields = {"hidden_size": 16, FFN[MODELS[name][0]]: 10, "num_hidden_layers": 2}
    target = resized(model, tmp_path, method=method, **fields, **options)
    assert change(logits(target), logits(model)) < 3


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("name", ["pythia", "falcon 40b"])
def test_the_copies_of_a_streamed_folder_are_those_of_a_model_in_memory(tmp_path, name):
    model = build(name)
    target = resized(model, tmp_path / "source", hidden_size=64, num_hidden_layers=4)
    transformers_bot.resize_checkpoint(tmp_path / "source", tmp_path / "out", hidden_size=64, num_hidden_layers=4)
    loaded = type(model).from_pretrained(tmp_path / "out", dtype=torch.float64).state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in target.state_dict().items())


@pytest.mark.parametrize("name", ["pythia", "falcon 40b"])
def test_the_picked_heads_are_whole_ones_of_the_source(tmp_path, name):
    # Of 4 heads 2 are picked, whole groups or not: each is a head of the source, with its own queries, keys and values.
    model = build(name)
    fused = {"pythia": "gpt_neox.layers.0.attention", "falcon 40b": "transformer.h.0.self_attention"}[name]
    fields = {"num_attention_heads": 2} | ({"num_kv_heads": 1} if name == "falcon 40b" else {})
    plain = {"bot_config": {"basis": "plain", "order": "kept"}, "hidden_size": 16}
    target = resized(model, tmp_path, **fields, **plain)
    rows = target.state_dict()[f"{fused}.query_key_value.weight"].shape[0]
    assert rows == {"pythia": 2 * 3 * 8, "falcon 40b": (2 + 2) * 8}[name]
    assert torch.isfinite(logits(target)).all()


def test_a_head_of_which_a_part_turns_keeps_its_length(tmp_path):
    with pytest.raises(UnsupportedArchitecture, match=r"partial_rotary_factor is 0.25.*keep 4 rotary pairs"):
        resized(build("pythia"), tmp_path, num_attention_heads=2)
    model = build("neox in sequence")
    target = resized(model, tmp_path / "whole", hidden_size=64, num_attention_heads=4)  # heads of 16 entries
    assert change(logits(target), logits(model)) < 3e-6  # rotary tables are float32


def test_positions_keep_their_two_rows_in_front(tmp_path):
    model = build("opt")
    target = resized(model, tmp_path, max_position_embeddings=48, hidden_size=64)
    table = target.model.decoder.embed_positions.weight
    assert table.shape == (50, 64)
    assert change(logits(target), logits(model)) < EXACT


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim"),
        ("falcon 7b", {"alibi": True}, "alibi"),
        ("falcon 7b", {"parallel_attn": False}, "parallel_attn"),
    ],
)
def test_another_network_is_refused_by_name(tmp_path, name, fields, message):
    build(name, **fields).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match=message):
        transformers_bot.plan(tmp_path, num_hidden_layers=4)


def test_groups_that_do_not_divide_are_refused_by_name(tmp_path):
    with pytest.raises(BadSize, match="num_attention_heads 4 is not divisible by num_kv_heads 3"):
        resized(build("falcon 40b"), tmp_path, num_kv_heads=3)


# -- the language -------------------------------------------------------------------------------------


def test_segments_that_alternate_share_what_stands_in_front_of_the_inner_bracket():
    (rule,) = transformers_bot.adapters.parse_rules("qkv : (heads (score + ~score + head_dim)) <- hidden")
    lengths = {"heads": 2, "score": 1, "head_dim": 3, "hidden": 4}
    assert rule.axes[0].layout(lengths) == (2, (1, 1, 3))
    assert [[factor.role for factor in segment] for segment in rule.axes[0].segments] == [
        *(["heads", role] for role in ("score", "score", "head_dim")),
    ]
    assert rule.shape(lengths, (10, 4)) == (10, 4)


@pytest.mark.parametrize(
    "rule",
    ["x : (a (b + c)", "x : (a (b + c) d)", "x : (a ())", "x : ((b + c))", "x : (a + b (c + d))", "x : (a (b)) )"],
)
def test_inner_brackets_without_a_partner_or_a_place_are_refused(rule):
    with pytest.raises(PlanError, match="bracket"):
        transformers_bot.adapters.parse_rules(rule)


def test_an_alternation_is_undone():
    x = torch.arange(24).view(12, 2)
    order = Alternation(0, 3, (1, 1, 2))
    assert torch.equal(order.stored(order.sorted(x)), x)
    assert order.sorted(x)[:3, 0].tolist() == [0, 8, 16]


def test_a_count_that_a_layout_does_not_read_is_neither_told_nor_taken():
    config = FalconConfig(hidden_size=4544, num_attention_heads=71, multi_query=True)
    warnings = transformers_bot.plan(config, hidden_size=9088).warnings
    assert any("num_attention_heads 71 -> 142" in sentence for sentence in warnings)
    assert not any("num_kv_heads" in sentence for sentence in warnings)
    with pytest.raises(BadSize, match=r"num_kv_heads=4 has no effect.*1 key-value heads"):
        transformers_bot.plan(config, num_kv_heads=4)
    whole = {"hidden_size": 9088, "num_attention_heads": 142, "num_kv_heads": 142}  # as a recipe says it
    assert transformers_bot.plan(config, **whole).target_sizes["kv_heads"] == 1
