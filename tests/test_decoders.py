"""Decoders with grouped queries, rotary positions, gated MLPs and RMS norms: growing keeps the function and shrinking
undoes it; heads, key-value heads and their length are separate sizes; lists of an entry a layer travel with the layers.
"""

import copy
import re
from functools import partial

import pytest
import torch
from decoders import (
    BY_PAIRS,
    FIRST,
    FULL,
    IDS,
    NORMED,
    SLIDING,
    TYPES,
    build,
    change,
    has_head_dim,
    heads_may_grow,
    logits,
    resized,
)
from transformers import Gemma2Config, LlamaConfig, Phi3Config, Wav2Vec2Config

import transformers_bot
from transformers_bot.errors import BadOption, BadSize, BoTError, UnsupportedArchitecture

FLOAT32_INSIDE = 3e-6  # norms and rotary tables of these families are float32, whatever the model is in
# What grows -> the fields; the width with its heads, as it is said, and every other size alone.
GROWN = {
    "width": {"hidden_size": 48},
    "heads": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "queries": {"num_attention_heads": 8},
    "key-value heads": {"num_key_value_heads": 4},
    "length of heads": {"head_dim": 16},
    "MLP": {"intermediate_size": 40},
    "depth": {"num_hidden_layers": 5},
    "all": {"hidden_size": 72, "num_key_value_heads": 4, "num_attention_heads": 12, "intermediate_size": 40},
}


def grow(model_type: str, what: str, folder, **options):
    """A source and its target, or a skip where the type's length of heads follows from its width."""
    if not has_head_dim(model_type) and what in ("heads", "queries", "length of heads"):
        pytest.skip("the length of heads follows from the width")
    if what == "length of heads" and not heads_may_grow(model_type):
        pytest.skip("a part of every head has no positions")
    if what == "all" and model_type == "olmo2":
        pytest.skip("its norm goes over all queries, and sees that some are copied more often than others")
    model = build(model_type)
    return model, resized(model, folder, **GROWN[what], **options)


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("what", GROWN)
@pytest.mark.parametrize("model_type", TYPES)
def test_growing_keeps_the_outputs_and_shrinking_gives_them_back(tmp_path, model_type, what):
    model, target = grow(model_type, what, tmp_path / "source")
    # Noise wakes new rotary pairs; in front of a norm it makes the old ones smaller by its square.
    bound = 3e-4 if what == "length of heads" and model_type in NORMED else FLOAT32_INSIDE
    assert change(logits(target), logits(model)) < bound
    before = {name: getattr(model.config, name) for name in GROWN[what]}
    assert change(logits(resized(target, tmp_path / "grown", **before)), logits(model)) < FLOAT32_INSIDE


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("task", ["CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering"])
@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_all_heads_grow_exactly(tmp_path, model_type, task, tied):
    try:
        model = build(model_type, task, num_labels=3, tie_word_embeddings=tied)
    except ValueError as error:
        pytest.skip(str(error)[:80])  # transformers has no such head
    target = resized(model, tmp_path, task, hidden_size=48, num_hidden_layers=4)
    assert change(logits(target), logits(model)) < 2 * FLOAT32_INSIDE  # of few outputs the largest may be small


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("task", ["CausalLM", "SequenceClassification", "TokenClassification"])
def test_a_classifier_reads_what_the_tied_output_embedding_reads(tmp_path, task):
    """Gemma multiplies its embeddings by the root of the width, which the last norm makes up for if they are tied."""
    model = build("gemma2", task, num_labels=3, tie_word_embeddings=True)
    assert change(logits(resized(model, tmp_path, task, hidden_size=48)), logits(model)) < 1e-5


@pytest.mark.covering(few=3)
@pytest.mark.parametrize("model_type", TYPES)
def test_shrinking_a_stream_of_low_rank_keeps_the_outputs(tmp_path, model_type):
    # What a stream carries lies in 15 of its 24 dimensions, in any basis: a network may be turned to it, and to the
    # mean that some norms subtract, but where a norm stands behind a block, or the output embedding is tied.
    model = build(model_type, tie_word_embeddings=False, num_hidden_layers=2, hidden_size=24)
    if not transformers_bot.adapters.get(model_type).turns:
        pytest.skip("norms behind the blocks keep the basis")
    basis, _ = torch.linalg.qr(torch.randn(24, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))
    state = model.state_dict()
    with torch.no_grad():
        for name, x in state.items():
            if name.endswith("embed_tokens.weight"):
                x.copy_(x @ basis @ basis.T)
            elif name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
                x.copy_(basis @ basis.T @ x)
            elif name.endswith(("o_proj.bias", "down_proj.bias")):
                x.copy_(basis @ (basis.T @ x))
    target = resized(model, tmp_path, hidden_size=16, **(heads_kept(model_type)))
    assert change(logits(target), logits(model)) < FLOAT32_INSIDE
    plain = resized(model, tmp_path, hidden_size=16, bot_config={"basis": "plain"}, **(heads_kept(model_type)))
    assert change(logits(plain), logits(model)) > 0.1


def heads_kept(model_type: str) -> dict[str, int]:
    """Words that keep the heads as they are, where their length does not follow from the width."""
    if has_head_dim(model_type):
        return {"num_attention_heads": 4, "num_key_value_heads": 2}
    pytest.skip("the length of heads follows from the width")


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_a_halved_model_runs_and_every_tensor_is_accounted_for(tmp_path, model_type, calibrated):
    model = build(model_type)
    batches = [{"input_ids": torch.randint(3, 37, (4, 16), generator=torch.Generator().manual_seed(n))} for n in (1, 2)]
    options = {"calibration": batches} if calibrated else {}
    target = resized(model, tmp_path, hidden_size=12, intermediate_size=10, num_hidden_layers=2, **options)
    assert torch.isfinite(logits(target)).all()
    assert change(logits(target), logits(model)) < 3


# -- sizes as people say them -------------------------------------------------------------------------


def test_heads_follow_the_width_where_they_can_and_stay_where_not():
    source = LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=2)
    source.head_dim = 64
    sized = {width: transformers_bot.plan(source, hidden_size=width) for width in (1152, 504)}
    wider, narrower = (plan.target_sizes for plan in sized.values())
    assert (wider["kv_heads"], wider["queries"], wider["head_dim"]) == (6, 3, 64)
    assert (narrower["kv_heads"], narrower["queries"], narrower["head_dim"]) == (3, 3, 64)
    assert "num_attention_heads 9 -> 18" in str(sized[1152])
    assert "stay as they are" in str(sized[504])


def test_fewer_heads_at_equal_width(tmp_path):
    model = build("qwen3")
    target = resized(model, tmp_path, num_attention_heads=2)
    assert target.config.head_dim == 8
    assert target.model.layers[0].self_attn.q_proj.weight.shape == (16, 24)


def test_key_value_heads_that_do_not_divide_name_the_nearest_counts(tmp_path):
    with pytest.raises(BadSize, match=r"num_attention_heads 4 is not divisible by num_key_value_heads 3.*nearest"):
        resized(build("mistral"), tmp_path, num_key_value_heads=3)


@pytest.mark.parametrize(
    ("fields", "nearest"), [({"num_key_value_heads": 3}, "are 2 and 4"), ({"num_key_value_heads": 64}, "is 32")]
)
def test_the_nearest_counts_of_key_value_heads_are_valid(fields, nearest):
    config = Phi3Config()
    with pytest.raises(BadSize, match=f"nearest valid num_key_value_heads {nearest}"):
        transformers_bot.plan(config, **fields)
    for count in map(int, re.findall(r"\d+", nearest)):
        assert transformers_bot.plan(config, num_key_value_heads=count).target_sizes["kv_heads"] == count


def test_an_odd_length_of_heads_is_refused_by_name(tmp_path):
    with pytest.raises(BoTError, match="even"):
        resized(build("mistral"), tmp_path, head_dim=7)


@pytest.mark.parametrize("kind", ["yarn", "dynamic"])
def test_positions_that_depend_on_the_number_of_a_pair_keep_their_length(tmp_path, kind):
    parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
    model = build("llama", rope_parameters=parameters)
    with pytest.raises(UnsupportedArchitecture, match=rf"rope_type is '{kind}'.*keep 4 rotary pairs"):
        resized(model, tmp_path, head_dim=16)
    target = resized(model, tmp_path, hidden_size=48)
    assert change(logits(target), logits(model)) < FLOAT32_INSIDE


def test_llama3_scaling_goes_by_frequency_and_follows(tmp_path):
    scaling = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    model = build("llama", rope_parameters=scaling)
    assert change(logits(resized(model, tmp_path, head_dim=16)), logits(model)) < FLOAT32_INSIDE


@pytest.mark.parametrize("options", [{"heads": "flat"}, {"reheads": "reshape"}])
def test_heads_with_rotary_pairs_are_never_one_axis(tmp_path, options):
    with pytest.raises(BadOption, match="rotary pairs, which are never mixed"):
        resized(build("llama"), tmp_path, hidden_size=12, bot_config=options)


def test_a_ratio_that_moves_frequencies_is_told(tmp_path):
    model = build("mistral")
    model.save_pretrained(tmp_path)
    assert "rotary pairs 4 -> 6 is not a whole multiple" in str(transformers_bot.plan(tmp_path, head_dim=12))


# -- what depends on the number of a layer ------------------------------------------------------------


def test_lists_of_an_entry_a_layer_travel_with_the_layers(tmp_path):
    model = build("gemma2", num_hidden_layers=5, layer_types=[FULL, SLIDING, SLIDING, FULL, SLIDING])
    assert resized(model, tmp_path, num_hidden_layers=3).config.layer_types == [FULL, SLIDING, SLIDING]
    first = resized(model, tmp_path, num_hidden_layers=3, bot_config={"depth": "first"})
    assert first.config.layer_types == [FULL, SLIDING, SLIDING]
    twice = resized(model, tmp_path, num_hidden_layers=10, bot_config={"depth": "repeat"})
    assert twice.config.layer_types == [kind for kind in model.config.layer_types for _ in range(2)]


def test_lists_travel_into_a_config_that_only_has_the_default(tmp_path):
    model = build("gemma2", num_hidden_layers=4, layer_types=[FULL, FULL, SLIDING, SLIDING])
    wanted = copy.deepcopy(model.config).to_dict() | {"num_hidden_layers": 2}
    del wanted["layer_types"]
    target = resized(model, tmp_path, config=Gemma2Config(**wanted))
    assert target.config.layer_types == [FULL, SLIDING]


@pytest.mark.parametrize(("model_type", "name"), [("gemma2", "layer_types"), ("smollm3", "no_rope_layers")])
def test_a_config_of_equal_depth_that_only_has_the_default_takes_the_lists(tmp_path, model_type, name):
    model = build(model_type)
    wanted = model.config.to_dict() | {"hidden_size": 48}
    del wanted[name]
    config = type(model.config)(**wanted)
    assert getattr(config, name) != getattr(model.config, name)
    target = resized(model, tmp_path, config=config)
    assert getattr(target.config, name) == getattr(model.config, name)
    assert change(logits(target), logits(model)) < FLOAT32_INSIDE


def test_layers_that_a_call_names_stay_as_it_says(tmp_path):
    model = build("gemma2")
    target = resized(model, tmp_path, num_hidden_layers=2, layer_types=[SLIDING, SLIDING])
    assert target.config.layer_types == [SLIDING, SLIDING]


@pytest.mark.parametrize(
    ("sizes", "layers"), [({"hidden_size": 48}, "layer 0 is"), ({"num_hidden_layers": 6}, "layers 0, 1 are")]
)
def test_layers_that_a_call_makes_another_kind_are_told(tmp_path, sizes, layers):
    model = build("gemma2")
    model.save_pretrained(tmp_path)
    told = partial(transformers_bot.plan, tmp_path, **sizes)
    assert not any("of another kind" in sentence for sentence in told().warnings)
    kinds = [SLIDING] * sizes.get("num_hidden_layers", 3)
    (sentence,) = (each for each in told(layer_types=kinds).warnings if "of another kind" in each)
    assert sentence.startswith(f"layer_types is {kinds!r}"[:60])
    assert layers in sentence


def test_a_tuple_is_no_other_value_than_a_list():
    assert not any(
        "conv_dim" in sentence for sentence in transformers_bot.plan(Wav2Vec2Config(), hidden_size=1536).warnings
    )


# -- training -----------------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("model_type", TYPES)
def test_training_parts_copies_and_wakes_new_rotary_pairs(tmp_path, model_type):
    more = {"head_dim": 16} if heads_may_grow(model_type) else {}
    target = resized(build(model_type), tmp_path, hidden_size=48, intermediate_size=40, **more).float().train()
    optimiser = torch.optim.AdamW(target.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ids = torch.randint(3, 37, (4, 12), generator=generator)
        target(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    state = target.state_dict()
    first = state[f"model.layers.0.{FIRST[model_type]}"]
    gate = first.flatten(0, -2)[:40].view(20, 2, -1)  # of experts, that of the first
    assert ((gate[:, 0] - gate[:, 1]).norm(dim=-1) > 1e-3 * gate[:, 0].norm(dim=-1)).all()
    if more:
        pairs = (-1, 8, 2, 48) if model_type in BY_PAIRS else (-1, 2, 8, 48)
        queries, keys = (state[f"model.layers.0.self_attn.{p}_proj.weight"].view(pairs) for p in "qk")
        queries, keys = (x.transpose(1, 2) if model_type in BY_PAIRS else x for x in (queries, keys))
        assert (queries[:, :, 1::2].abs().amax(-1) > 0).all()
        assert (keys[:, :, 1::2].abs().amax(-1) > 0).all()


# -- any sizes ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_any_sizes_give_a_sound_model_or_an_error_that_names_them(tmp_path, seed):
    # 20 draws a seed here; all types and methods at random.
    generator = torch.Generator().manual_seed(seed)

    def draw(values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    choices = {
        "hidden_size": (12, 16, 20, 24, 36, 48, 7),
        "num_attention_heads": (1, 2, 3, 4, 6, 8),
        "num_key_value_heads": (1, 2, 3, 4, 6),
        "head_dim": (2, 4, 6, 8, 12, 7),
        "intermediate_size": (5, 10, 20, 33),
        "num_hidden_layers": (1, 2, 3, 4, 7),
    }
    made = 0
    for _ in range(20):
        model_type = draw(TYPES)
        model, method = build(model_type), draw(("bot", "bot", "bot", "importance", "lemon", "tile+stack", "front"))
        fields = {name: draw(values) for name, values in choices.items() if draw((True, False, False))}
        fields = {name: value for name, value in fields.items() if name != "head_dim" or has_head_dim(model_type)}
        try:
            target = resized(model, tmp_path / str(_), method=method, **fields)
        except BoTError:
            continue
        made += 1
        assert torch.isfinite(logits(target, IDS)).all()
    assert made > 2
