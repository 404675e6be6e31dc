"""Speech and two stacks: growing keeps the function and shrinking undoes it, both stacks by their own sizes; what the
stacks share (tables, the encoder's output, a bias for every head) stays in step; convolutions over the stream.
"""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM
from twostacks import GROWN, IDS, TASK, TYPES, WORDS, build, change, inputs, logits, resized, sound

import transformers_bot
from transformers_bot.errors import BadOption, BadSize, BoTError, IncompatibleModels, UnsupportedArchitecture

FLOAT32_INSIDE = ("t5", "mt5")  # their norms and position biases are
POST_NORM = ("bart", "wav2vec2")
CASES = [(model_type, what) for model_type in TYPES for what in GROWN[model_type]]


def bound_of(model_type: str) -> float:
    return 5e-6 if model_type in FLOAT32_INSIDE else 1e-12


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("model_type", "what"), CASES)
def test_growing_keeps_the_outputs_and_shrinking_gives_them_back(tmp_path, model_type, what):
    model, fields = build(model_type), GROWN[model_type][what]
    target = resized(model, tmp_path / "source", **fields)
    deeper = any("layers" in name for name in fields)
    # A norm behind a block can pass on what it gets only nearly: see test_postnorm_depth.py.
    bound = 0.3 if model_type in POST_NORM and deeper else bound_of(model_type)
    assert change(logits(target), logits(model)) < bound
    before = {name: getattr(model.config, name) for name in fields}
    back = resized(target, tmp_path / "grown", **before)
    assert change(logits(back), logits(model)) < bound_of(model_type)


HEADS = {
    "whisper": ("ForAudioClassification", "ForCausalLM"),
    "bart": ("ForSequenceClassification", "ForQuestionAnswering", "ForCausalLM"),
    "t5": ("ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification"),
    "mt5": ("ForQuestionAnswering",),
    "wav2vec2": ("ForAudioClassification",),
    "hubert": ("ForAudioClassification",),
}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("model_type", "task"), [(t, task) for t, tasks in HEADS.items() for task in tasks])
@pytest.mark.parametrize("tied", [True, False])
def test_all_heads_grow_exactly(tmp_path, model_type, task, tied):
    labels = 2 if task == "ForQuestionAnswering" else 4  # a span has a start and an end
    model = build(model_type, task, seed=1, num_labels=labels, tie_word_embeddings=tied)
    target = resized(model, tmp_path, task, **GROWN[model_type]["width"])
    assert change(outputs_of(target, task), outputs_of(model, task)) < bound_of(model_type)


def outputs_of(model, task):
    """The outputs of a head; a decoder alone reads an encoder that is as wide as itself."""
    batch = inputs(model)
    if "Classification" in task and "input_ids" in batch:
        ids = IDS.clone()
        ids[:, -1] = model.config.eos_token_id
        return logits(model, input_ids=ids)
    if task == "ForCausalLM":
        heard = sound(2, 6, 24).repeat_interleave(model.config.d_model // 24, -1)
        key = {"whisper": "encoder_outputs", "bart": "encoder_hidden_states"}[model.config.model_type]
        return logits(model, input_ids=WORDS, use_cache=False, **{key: (heard,) if key == "encoder_outputs" else heard})
    return logits(model)


def test_the_encoder_of_t5_grows_alone(tmp_path):
    model = build("t5", "ForTextEncoding")
    target = resized(model, tmp_path, "ForTextEncoding", d_model=48)
    states = [m(input_ids=IDS).last_hidden_state for m in (model, target)]
    assert change(states[1], states[0].repeat_interleave(2, -1)) < 3e-6


# -- output embeddings and their factors ----------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_an_output_embedding_of_its_own_stays_although_the_config_ties_it(tmp_path, model_type):
    model = build(model_type)
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.flip(0) * 0.7)
    target = resized(model, tmp_path / "source", d_model=48)
    assert change(logits(target), logits(model)) < 3e-6
    target.save_pretrained(tmp_path / "grown")
    stored = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "grown", dtype=torch.float64)
    assert change(logits(stored), logits(model)) < 3e-6


@pytest.mark.parametrize("scaled", [True, False])
def test_t5_scales_the_stream_before_the_output_embedding_or_does_not(tmp_path, scaled):
    model = build("t5")
    model.config.scale_decoder_outputs = scaled
    assert change(logits(resized(model, tmp_path, d_model=48)), logits(model)) < 3e-6


def test_scaled_embeddings_of_bart(tmp_path):
    model = build("bart", scale_embedding=True)
    assert change(logits(resized(model, tmp_path, **GROWN["bart"]["width"])), logits(model)) < 1e-12


# -- shrinking ------------------------------------------------------------------------------------------

HALVED = {
    "whisper": {"d_model": 12, "encoder_ffn_dim": 10, "encoder_layers": 1, "decoder_layers": 2},
    "bart": {"d_model": 12, "encoder_ffn_dim": 10, "encoder_layers": 1, "decoder_layers": 2},
    "t5": {"d_model": 12, "num_heads": 2, "d_kv": 3, "d_ff": 10, "num_layers": 1, "num_decoder_layers": 2},
    "wav2vec2": {"hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2},
}
HALVED |= {"mt5": HALVED["t5"], "hubert": HALVED["wav2vec2"]}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_a_halved_model_runs(tmp_path, model_type, calibrated):
    model = build(model_type)
    batches = [inputs(model), {name: x.flip(0) for name, x in inputs(model).items()}]
    options = {"calibration": batches} if calibrated else {}
    target = resized(model, tmp_path, **HALVED[model_type], **options)
    assert torch.isfinite(logits(target)).all()
    assert change(logits(target), logits(model)) < 5


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("model_type", "task"), [("whisper", "ForCausalLM"), ("t5", "ForSeq2SeqLM")])
def test_shrinking_a_stream_of_low_rank_keeps_the_outputs(tmp_path, model_type, task):
    # The stream lies in 16 of its 24 dimensions, with the mean among them. Of Whisper only the decoder is turned,
    # because its encoder's stream begins behind an activation; one of three heads, which go with the width, is idle.
    model = build(model_type, task, tie_word_embeddings=False)
    if model_type == "t5":
        model.lm_head.weight = torch.nn.Parameter(model.shared.weight.flip(0) * 0.7)
    directions = torch.randn(24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    directions[:, 0] = 1
    basis, _ = torch.linalg.qr(directions)
    with torch.no_grad():
        for name, x in model.state_dict().items():
            stem = name.rpartition(".")[0]
            if name.endswith("decoder.layer_norm.bias"):
                x.zero_()  # what the output embedding would read of it lies outside, and it has no bias to keep it
            elif stem.endswith(("embed_tokens", "shared", "embed_positions")):
                x.copy_(x @ basis @ basis.T)
            elif stem.endswith(("out_proj", "fc2", ".o", ".wo")):
                x.copy_(basis @ (basis.T @ x))
            if model_type == "whisper" and name.endswith("self_attn.out_proj.weight"):
                x[:, 8:16] = 0
    fields = {"num_heads": 3} if model_type == "t5" else {"decoder_attention_heads": 2}
    batch = inputs(model) if model_type == "t5" else {"input_ids": WORDS}
    turned, plain = (
        resized(model, tmp_path, task, d_model=16, bot_config=options, **fields) for options in ({}, {"basis": "plain"})
    )
    assert change(logits(turned, **batch), logits(model, **batch)) < 5e-6
    assert change(logits(plain, **batch), logits(model, **batch)) > 0.1


# -- both depths ----------------------------------------------------------------------------------------


def test_both_depths_are_told_apart(tmp_path):
    model = build("whisper")
    model.save_pretrained(tmp_path)
    plan = transformers_bot.plan(tmp_path, encoder_layers=4, decoder_layers=1)
    assert (plan.target_sizes["layer"], plan.target_sizes["decoder_layer"]) == (4, 1)
    assert "decoder_layer" in str(plan)
    assert "shrinking decoder_layer loses" in " ".join(plan.warnings)
    target = resized(model, tmp_path, encoder_layers=4, decoder_layers=1)
    assert (len(target.model.encoder.layers), len(target.model.decoder.layers)) == (4, 1)


def test_a_depth_that_is_not_said_stays(tmp_path):
    target = resized(build("t5"), tmp_path, num_layers=4)
    assert (target.config.num_layers, target.config.num_decoder_layers) == (4, 3)


# -- what the stacks share ------------------------------------------------------------------------------


@pytest.mark.slow
def test_heads_with_a_bias_of_their_own_have_one_order_in_all_layers(tmp_path):
    # Six heads, of which every third is without any effect, in the same place in every layer.
    model = build("t5", num_heads=6, d_kv=4)
    with torch.no_grad():
        for module in (*model.encoder.block, *model.decoder.block):
            out = module.layer[0].SelfAttention.o.weight.view(24, 6, 4)
            out[:, ::3] = 0
        for module in model.decoder.block:
            module.layer[1].EncDecAttention.o.weight.view(24, 6, 4)[:, 1::3] = 0
    for method in ("bot", "importance"):
        target = resized(model, tmp_path, num_heads=4, method=method)
        assert change(logits(target), logits(model)) < 3e-6, method


# -- convolutions over the stream -----------------------------------------------------------------------


def test_the_length_of_a_weight_follows_its_direction(tmp_path):
    # Halving makes the direction of a weight shorter; what the convolution gives is the mean over pairs.
    model = build("hubert")
    target = resized(model, tmp_path, hidden_size=12)
    whole, half = (m.hubert.encoder.pos_conv_embed.conv.weight for m in (model, target))
    pairs = whole.view(12, 2, 3, 2, 5)
    torch.testing.assert_close(half, pairs.mean(1).sum(2), rtol=1e-12, atol=1e-12)


def test_groups_must_divide(tmp_path):
    with pytest.raises(BadSize, match="hidden_size 6 is not divisible by num_conv_pos_embedding_groups 4"):
        resized(build("wav2vec2"), tmp_path, hidden_size=6, num_attention_heads=2)


@pytest.mark.parametrize("method", ["tile", "importance", "scratch"])
def test_methods_that_move_units_between_groups_are_refused(tmp_path, method):
    width = {"hidden_size": 12 if method == "importance" else 48}
    with pytest.raises(BadOption, match=r"groups of a convolution|length and direction"):
        resized(build("hubert"), tmp_path, method=method, **width)


def test_adapters_of_speech_are_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedArchitecture, match="add_adapter"):
        resized(build("wav2vec2", add_adapter=True), tmp_path, hidden_size=48)


def test_norms_cannot_move_before_the_blocks(tmp_path):
    with pytest.raises(IncompatibleModels, match="do_stable_layer_norm"):
        resized(build("hubert"), tmp_path, hidden_size=48, do_stable_layer_norm=False)


# -- training -------------------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("model_type", TYPES)
def test_training_parts_copies(tmp_path, model_type):
    fields = {**GROWN[model_type]["width"], **GROWN[model_type]["MLP"]}
    target = resized(build(model_type), tmp_path, **fields).float().eval()
    optimiser = torch.optim.AdamW(target.parameters(), lr=1e-3)
    batch = {name: x.float() if x.is_floating_point() else x for name, x in inputs(target).items()}
    for _ in range(20):
        torch.nn.functional.cross_entropy(target(**batch).logits.flatten(0, 1)[:8], torch.arange(8)).backward()
        optimiser.step()
        optimiser.zero_grad()
    for name, weight in target.named_parameters():
        if name.endswith(("fc1.weight", "wi.weight", "wi_0.weight", "intermediate_dense.weight")):
            pairs = weight.view(len(weight) // 2, 2, -1)
            apart = (pairs[:, 0] - pairs[:, 1]).norm(dim=-1)
            assert (apart > 1e-3 * pairs[:, 0].norm(dim=-1)).all(), name


# -- any sizes ------------------------------------------------------------------------------------------

CHOICES = {
    **dict.fromkeys(("d_model", "hidden_size"), (12, 20, 24, 36, 48, 7)),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_heads"), (1, 2, 3, 4, 6)),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "intermediate_size"), (5, 10, 28, 40)),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers"), (1, 2, 3, 5)),
    **{"num_hidden_layers": (1, 2, 4), "num_attention_heads": (1, 2, 4, 8), "d_kv": (3, 6, 12)},
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_sizes_give_a_sound_model_or_an_error_that_names_them(tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    made = 0
    for number in range(16):
        model_type = draw(TYPES)
        model, method = build(model_type), draw(("bot", "bot", "importance", "lemon", "tile+stack", "front"))
        known = model.config.to_dict()
        fields = {name: draw(values) for name, values in CHOICES.items() if name in known and draw((True, False))}
        try:
            target = resized(model, tmp_path / str(number), method=method, **fields)
        except BoTError:
            continue
        made += 1
        assert torch.isfinite(logits(target)).all()
    assert made > 2


def test_every_type_has_its_task():
    assert set(TASK) == set(TYPES) == set(GROWN) == set(HALVED) == set(HEADS)
