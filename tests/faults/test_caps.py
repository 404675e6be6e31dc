"""Sizes that no model has, and configs that do not belong to their weights, cost neither time nor memory."""

import json

import pytest
from families import build
from folders import CONFIG, make_sources
from transformers import BertConfig, ViTConfig
from watching import MEGABYTES, SECONDS, watched

import transformers_bot
from transformers_bot import BadCheckpoint, BadSize
from transformers_bot.architectures.inventory import inventory_of
from transformers_bot.io.checkpoint import check_amount, check_files


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            BertConfig(),
            {"num_hidden_layers": 10**9},
            r"num_hidden_layers gives 1000000000 entries .* allows at most 1000",
        ),
        (BertConfig(), {"vocab_size": 10**9}, r"vocab_size gives 1000000000 entries for vocab in the target"),
        (BertConfig(), {"hidden_size": 12 * 10**9}, "hidden_size gives 12000000000 entries for hidden"),
        (BertConfig(num_hidden_layers=10**9), {}, "num_hidden_layers gives .* in the source config"),
        (ViTConfig(), {"image_size": 10**9}, r"gives \d+ entries for grid_h in the target config"),
        (ViTConfig(), {"image_size": []}, r"image_size is \[\] in the target config; give one length, or height"),
        (ViTConfig(), {"patch_size": [16, 0]}, "patch_size is 0 in the target config"),
    ],
)
def test_absurd_sizes_are_refused_before_a_model_is_built(config, changes, message):
    with watched() as seen, pytest.raises(BadSize, match=message):
        transformers_bot.plan(config, **changes)
    assert seen.seconds < SECONDS
    assert seen.megabytes < MEGABYTES


@pytest.mark.parametrize("source", ["single", "sharded", "pickled"])
def test_a_config_of_a_far_larger_model_is_refused_by_the_headers(tmp_path, source):
    folder = make_sources(tmp_path)[source]
    checked = check_files(str(folder), {}, allow_pickle=True)
    model = build("gpt2", "GPT2LMHeadModel").model
    described = inventory_of(model)
    # A pickle of a state dict holds the tied output embedding a second time.
    twice = model.lm_head.weight.numel() if source == "pickled" else 0
    assert checked.elements == sum(parameter.numel() for parameter in model.parameters()) + twice
    check_amount(checked, described.shapes, described.ties)
    larger = {**described.shapes, "transformer.wte.weight": (1 << 24, 12)}
    with pytest.raises(
        BadCheckpoint, match=r"describes a model of 201,\d+,\d+ elements, but the weights hold [23],\d+\. "
    ):
        check_amount(checked, larger, described.ties)


def test_a_damaged_size_costs_no_memory(tmp_path):
    folder = make_sources(tmp_path)["single"]
    fields = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**fields, "vocab_size": 1 << 24}))
    with watched() as seen, pytest.raises(BadCheckpoint, match="Config and weights do not belong together"):
        transformers_bot.BoTModelForCausalLM.from_pretrained(str(folder), n_layer=4)
    assert seen.megabytes < MEGABYTES


def test_a_new_head_is_no_damage(tmp_path):
    # A base model opened with a head it does not hold: what is new is small.
    folder = make_sources(tmp_path)["single"]
    checked = check_files(str(folder), {})
    described = inventory_of(build("gpt2", "GPT2ForSequenceClassification").model)
    check_amount(checked, described.shapes, described.ties)
