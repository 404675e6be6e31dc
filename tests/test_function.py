"""Growing keeps the function, without training: same outputs in double precision, for every head class.

Width only, consistent Haar, with empty and with noisy detail bands; heads added, head_dim grown,
the MLP alone; tied and untied output embeddings; and depth by identity blocks in pre-norm models.
"""

import pytest
import torch
from families import ALL_HEADS, FAMILIES, MAIN_HEADS, assert_same_outputs, outputs, resize, resized_config
from torch import nn

WIDTHS = {
    "heads added": {"hidden": 24, "heads": 6, "ffn": 40},
    "head_dim grows": {"hidden": 24, "heads": 3, "ffn": 40},
    "both": {"hidden": 48, "heads": 6, "ffn": 40},
}
STREAM = ("last_hidden_state", "pooler_output")


def expected_outputs(built, ratio: int) -> dict[str, torch.Tensor]:
    """The source's outputs; what a base model returns of the stream itself is as wide as the target's."""
    found = outputs(built.model, built.inputs)
    return {name: x.repeat_interleave(ratio, -1) if name in STREAM else x for name, x in found.items()}


def grow(saved, family, head, sizes, bot_config=None, **changes):
    folder, built = saved(family, head, **changes)
    wanted = resized_config(built.config, **sizes)
    target = resize(folder, wanted, head, bot_config=bot_config, dtype=torch.float64)
    return built, target


@pytest.mark.covering(few=7)
@pytest.mark.parametrize("detail", ["auto", "zero"])
@pytest.mark.parametrize("sizes", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize(("family", "head"), [pair for pair in ALL_HEADS if pair[1] != "GPT2Model"])
def test_growing_width_keeps_the_outputs(saved, family, head, sizes, detail):
    built, target = grow(saved, family, head, sizes, {"wavelet": "haar", "detail": detail})
    ratio = sizes["hidden"] // 12
    assert_same_outputs(outputs(target, built.inputs), expected_outputs(built, ratio))


@pytest.mark.covering(few=2)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_the_default_options_grow_width_without_a_change(saved, family, head):
    built, target = grow(saved, family, head, WIDTHS["heads added"])
    assert_same_outputs(outputs(target, built.inputs), expected_outputs(built, 2))


@pytest.mark.covering(few=3)
@pytest.mark.parametrize("detail", ["auto", "zero"])
@pytest.mark.parametrize("sizes", WIDTHS.values(), ids=WIDTHS)
def test_gpt2_body_keeps_its_stream(saved, sizes, detail):
    # With a tied output embedding the stream after ln_f is written by the dual map, so that one
    # embedding serves both of its ends; up to there it is the source's.
    folder, built = saved("gpt2", "GPT2Model")
    options = {"bot_config": {"detail": detail}, "dtype": torch.float64}
    target = resize(folder, resized_config(built.config, **sizes), "GPT2Model", **options)
    before, after = (model(**built.inputs, output_hidden_states=True) for model in (built.model, target))
    ratio = sizes["hidden"] // 12
    for reference, stream in zip(before.hidden_states[:-1], after.hidden_states[:-1], strict=True):
        torch.testing.assert_close(stream, reference.repeat_interleave(ratio, -1), rtol=0, atol=1e-9)


@pytest.mark.covering(few=3)
@pytest.mark.parametrize("sizes", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("gpt2", "GPT2Model"),
        ("gpt2", "GPT2LMHeadModel"),
        ("gpt2", "GPT2DoubleHeadsModel"),
        ("bert", "BertForMaskedLM"),
        ("bert", "BertForPreTraining"),
        ("roberta", "RobertaForMaskedLM"),
    ],
)
def test_untied_output_embeddings_keep_the_outputs(saved, family, head, sizes):
    built, target = grow(saved, family, head, sizes, tie_word_embeddings=False)
    assert built.config.tie_word_embeddings is False
    assert_same_outputs(outputs(target, built.inputs), expected_outputs(built, sizes["hidden"] // 12))


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("flags", [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}], ids=str)
@pytest.mark.parametrize("sizes", WIDTHS.values(), ids=WIDTHS)
def test_scores_scaled_in_other_ways_keep_the_outputs(saved, sizes, flags):
    built, target = grow(saved, "gpt2", "GPT2LMHeadModel", sizes, **flags)
    assert_same_outputs(outputs(target, built.inputs), expected_outputs(built, 1))


@pytest.mark.covering(few=3)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
@pytest.mark.parametrize("ffn", [25, 40, 80])
def test_growing_the_mlp_alone_keeps_the_outputs(saved, family, head, ffn):
    built, target = grow(saved, family, head, {"ffn": ffn})
    assert_same_outputs(outputs(target, built.inputs), expected_outputs(built, 1))


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("layers", [3, 4, 5, 7])
@pytest.mark.parametrize("width", [{}, WIDTHS["heads added"]], ids=["depth", "depth and width"])
@pytest.mark.parametrize(("family", "head"), [pair for pair in MAIN_HEADS if pair[0] in ("gpt2", "vit", "deit")])
def test_identity_blocks_keep_the_outputs_of_prenorm_models(saved, family, head, width, layers):
    built, target = grow(saved, family, head, {"layer": layers, **width})
    assert_same_outputs(outputs(target, built.inputs), expected_outputs(built, 2 if width else 1))


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("heads", ["whole", "flat", "filter"])
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_head_dim_grows_under_every_treatment_of_heads(saved, family, head, heads):
    built, target = grow(saved, family, head, WIDTHS["head_dim grows"], {"heads": heads})
    assert_same_outputs(outputs(target, built.inputs), expected_outputs(built, 2))


# -- round trip -----------------------------------------------------------------------------------


def assert_round_trip(saved, folder, family, head, sizes, options):
    """Grow, save, shrink back: every parameter is the source's."""
    built, grown = grow(saved, family, head, sizes, options)
    grown.save_pretrained(folder)
    back = resize(str(folder), resized_config(built.config), head, bot_config=options, dtype=torch.float64)
    expected = built.model.state_dict()
    assert set(back.state_dict()) == set(expected)
    for name, tensor in back.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_shrinking_exact_twins_gives_the_source_back(saved, tmp_path, family, head):
    options = {"wavelet": "haar", "detail": "zero"}
    assert_round_trip(saved, tmp_path, family, head, WIDTHS["head_dim grows"], options)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("layers", [3, 4, 7])
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_default_shrinking_undoes_default_growth(saved, tmp_path, family, head, layers):
    # New blocks are the ones that go, and the noise on read axes adds up to nothing.
    assert_round_trip(saved, tmp_path, family, head, {**WIDTHS["heads added"], "layer": layers}, None)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("heads", ["whole", "filter", "flat"])
@pytest.mark.parametrize("sizes", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_shrinking_twin_heads_gives_the_source_back(saved, tmp_path, family, head, sizes, heads):
    options = {"wavelet": "haar", "detail": "zero", "heads": heads}
    assert_round_trip(saved, tmp_path, family, head, sizes, options)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("wavelet", ["db2", "sym8", "bior4.4", "rbio3.3"])
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_every_wavelet_shrinks_back_what_it_grew(saved, tmp_path, family, head, wavelet):
    options = {"wavelet": wavelet, "detail": "zero"}
    assert_round_trip(saved, tmp_path, family, head, WIDTHS["head_dim grows"], options)


# -- training -------------------------------------------------------------------------------------


def _twins(matrix: torch.Tensor) -> list[tuple[int, int]]:
    """Pairs of equal rows."""
    distance = torch.cdist(matrix[None].double(), matrix[None].double(), compute_mode="donot_use_mm_for_euclid_dist")[0]
    near = (distance <= 1e-6 * matrix.norm(dim=1).mean()).triu(1)
    return [tuple(place) for place in near.nonzero().tolist()]


def _trained(saved, family, head, sizes, bot_config=None) -> tuple[nn.Module, list[float]]:
    """The grown model after 20 AdamW steps on one batch, and the losses on the way."""
    folder, built = saved(family, head, dtype=torch.float32)
    wanted = resized_config(built.config, **sizes)
    model = resize(folder, wanted, head, bot_config=bot_config, dtype=torch.float32).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = model(**built.inputs, labels=built.inputs["input_ids"]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return model, losses


FILTERS = [
    None,
    {"wavelet": "db2"},
    {"wavelet": "bior4.4"},
    {"wavelet": {"default": "haar", "ffn": "db2"}},
    {"wavelet": {"default": "db2", "hidden": "haar"}},
]


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("sizes", [WIDTHS["heads added"], WIDTHS["head_dim grows"]], ids=["heads", "head_dim"])
@pytest.mark.parametrize(("family", "head"), [("gpt2", "GPT2LMHeadModel"), ("bert", "BertForMaskedLM")])
def test_growth_makes_no_twins_and_trains(saved, family, head, sizes, options):
    model, losses = _trained(saved, family, head, sizes, options)
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert _twins(parameter.detach()) == [], f"{name} has equal rows"
            assert _twins(parameter.detach().T) == [], f"{name} has equal columns"


def test_empty_details_do_make_twins(saved):
    # The control of the test above: without noise, twin units see the same gradient for ever.
    model, _ = _trained(saved, "gpt2", "GPT2LMHeadModel", WIDTHS["heads added"], {"wavelet": "haar", "detail": "zero"})
    assert len(_twins(model.transformer.h[0].mlp.c_fc.weight.detach().T)) == 20


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_grown_model_backpropagates_into_every_parameter(saved, family):
    head = dict(MAIN_HEADS)[family]
    built, model = grow(saved, family, head, WIDTHS["heads added"])
    total = sum(x.square().sum() for x in _differentiable(model, built.inputs))
    total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def _differentiable(model: nn.Module, inputs: dict) -> list[torch.Tensor]:
    return [x for x in model(**inputs).values() if isinstance(x, torch.Tensor) and x.requires_grad]
