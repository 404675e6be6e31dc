"""Positions keep their places, special rows stay, and detail noise belongs to one tensor and one seed."""

import numpy as np
import pytest
import torch
import transformers
from families import assert_same_outputs, outputs, resize, resized_config

import transformers_bot

TEXT = {"bert": ("BertForMaskedLM", "max_position_embeddings"), "gpt2": ("GPT2LMHeadModel", "n_positions")}
TEXT["roberta"] = ("RobertaForMaskedLM", "max_position_embeddings")
OFFSET = {"bert": 0, "gpt2": 0, "roberta": 2}  # rows that are no text positions
TABLE = {
    "bert": "bert.embeddings.position_embeddings.weight",
    "roberta": "roberta.embeddings.position_embeddings.weight",
    "gpt2": "transformer.wpe.weight",
    "vit": "vit.embeddings.position_embeddings",
    "deit": "deit.embeddings.position_embeddings",
}


def tables(saved, family, options=None, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    """Position tables before and after."""
    head = TEXT[family][0] if family in TEXT else {"vit": "ViT", "deit": "DeiT"}[family] + "ForImageClassification"
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **changes)
    target = resize(folder, wanted, head, bot_config=options, dtype=torch.float64)
    return built.model.state_dict()[TABLE[family]], target.state_dict()[TABLE[family]]


@pytest.mark.covering("family", "length")
@pytest.mark.parametrize("length", [5, 12, 13, 30])
@pytest.mark.parametrize("family", TEXT)
def test_text_positions_are_kept_by_index(saved, family, length):
    offset = OFFSET[family]
    before, after = tables(saved, family, {"positions": "crop"}, **{TEXT[family][1]: length + offset})
    assert len(after) == length + offset
    places = np.concatenate([np.arange(offset), offset + np.arange(length) % 12])
    torch.testing.assert_close(after, before[places], rtol=0, atol=0)


@pytest.mark.covering("family", "length")
@pytest.mark.parametrize("length", [6, 24])
@pytest.mark.parametrize("family", TEXT)
def test_text_positions_are_interpolated_behind_the_fixed_rows(saved, family, length):
    offset = OFFSET[family]
    before, after = tables(saved, family, {"positions": "interpolate"}, **{TEXT[family][1]: length + offset})
    torch.testing.assert_close(after[:offset], before[:offset], rtol=0, atol=0)
    signal = before[offset:].T[None]
    expected = torch.nn.functional.interpolate(signal[:, :, None], (1, length), mode="bilinear", antialias=length < 12)
    torch.testing.assert_close(after[offset:], expected[0, :, 0].T, rtol=0, atol=1e-9)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family", TEXT)
def test_more_positions_change_nothing_for_short_texts(saved, family):
    head, field = TEXT[family]
    folder, built = saved(family, head)
    target = resize(folder, resized_config(built.config, **{field: 40}), head, dtype=torch.float64)
    assert_same_outputs(outputs(target, built.inputs), outputs(built.model, built.inputs))


@pytest.mark.covering(few=3)
@pytest.mark.parametrize("grid", [2, 5, 6])
@pytest.mark.parametrize(("family", "special"), [("vit", 1), ("deit", 2)])
@pytest.mark.parametrize("how", ["bicubic", "antialiased"])
def test_image_grids_are_interpolated_in_two_dimensions(saved, family, special, grid, how):
    before, after = tables(saved, family, {"grids": how}, image_size=4 * grid)
    assert after.shape == (1, special + grid * grid, 12)
    torch.testing.assert_close(after[:, :special], before[:, :special], rtol=0, atol=0)
    picture = before[:, special:].view(1, 3, 3, 12).permute(0, 3, 1, 2)
    low_passed = how == "antialiased" and grid < 3
    expected = torch.nn.functional.interpolate(picture, (grid, grid), mode="bicubic", antialias=low_passed)
    actual = after[:, special:].view(1, grid, grid, 12).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


# (height, width) in pixels of the source, which transformers takes for a square, and of the target; patches of 4
IMAGES = [((48, 48), (28, 28)), ((28, 28), (44, 44)), ((40, 40), (20, 52)), ((36, 36), (24, 16)), ((20, 20), (12, 20))]


@pytest.mark.covering(few=2)
@pytest.mark.parametrize(
    ("family", "special", "before", "after", "method"),
    [(*family, *sizes, "bot") for family in (("ViT", 1), ("DeiT", 2)) for sizes in IMAGES]
    + [("DeiT", 2, *IMAGES[2], "front")],  # whose maps of places are those of all other methods
)
def test_another_image_size_is_what_transformers_interpolates_at_every_call(
    tmp_path, family, special, before, after, method
):
    """By default, up and down, square or not, whatever tokens stand before the patches."""
    config = getattr(transformers, f"{family}Config")(
        image_size=before, patch_size=4, hidden_size=16, num_attention_heads=2, num_hidden_layers=2,
        intermediate_size=32, initializer_range=0.3, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    source = getattr(transformers, f"{family}ForImageClassification")(config).eval()
    torch.nn.init.normal_(source.base_model.embeddings.position_embeddings)
    source.save_pretrained(tmp_path)
    made = transformers_bot.BoTModelForImageClassification.from_pretrained(tmp_path, image_size=after, method=method)
    picture = torch.randn(2, 3, *after, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = source(picture, interpolate_pos_encoding=True).logits
        actual = made(picture).logits
    assert float((actual - expected).abs().max() / expected.abs().max()) < 3e-6
    assert made.base_model.embeddings.position_embeddings.shape[1] == special + after[0] * after[1] // 16


@pytest.mark.parametrize(("before", "after"), [((40, 24), (20, 36)), ((12, 28), (8, 8)), ((28, 20), (40, 24))])
def test_a_grid_that_is_no_square_is_interpolated_by_its_sides(tmp_path, before, after):
    config = transformers.DeiTConfig(
        image_size=before,
        patch_size=4,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=32,
    )
    torch.manual_seed(0)
    source = transformers.DeiTModel(config)
    torch.nn.init.normal_(source.embeddings.position_embeddings)
    source.save_pretrained(tmp_path)
    made = transformers_bot.BoTModel.from_pretrained(tmp_path, image_size=after).embeddings.position_embeddings
    rows, columns, tall, wide = (side // 4 for side in (*before, *after))
    picture = source.embeddings.position_embeddings[:, 2:].view(1, rows, columns, 16).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(picture, (tall, wide), mode="bicubic").flatten(2).mT
    torch.testing.assert_close(made[:, 2:], expected, rtol=0, atol=5e-6)


def test_a_plan_says_how_image_positions_are_resampled():
    config = transformers.ViTConfig(image_size=384)
    step = {s.target: s for s in transformers_bot.plan(config, image_size=224).steps}["embeddings.position_embeddings"]
    other = transformers_bot.plan(config, image_size=224, bot_config={"grids": "antialiased"})
    assert "grid_h: bicubic" in step.reason
    assert "grid_h: antialiased bicubic" in {s.target: s for s in other.steps}[step.target].reason


# -- noise ----------------------------------------------------------------------------------------


def noises(saved, kind: str, seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """What the detail bands of a grown BERT add to each matrix."""
    folder, built = saved("bert", "BertForMaskedLM")
    wanted = resized_config(built.config, hidden=48, heads=6, ffn=96)
    options = {"wavelet": "haar", "detail_scale": scale, "seed": seed}
    filled, empty = (
        resize(folder, wanted, "BertForMaskedLM", bot_config={**options, "detail": k}, dtype=torch.float64).state_dict()
        for k in (kind, "zero")
    )
    added = {name: filled[name] - empty[name] for name in filled if name.endswith(("query.weight", "key.weight"))}
    return {name: x / x.norm() for name, x in added.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_every_tensor_and_every_seed_has_its_own_noise(saved, kind):
    drawn = [*noises(saved, kind, 0).values(), *noises(saved, kind, 1).values()]
    flat = torch.stack([x.flatten() for x in drawn])
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(drawn), dtype=torch.float64), rtol=0, atol=0.1)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("kind", "spread"), [("gaussian", 1.0), ("uniform", 3**-0.5)])
@pytest.mark.parametrize("scale", [None, 0.25, 3.0])
def test_contrasts_of_copies_are_as_large_as_asked(saved, kind, spread, scale):
    """In units of what has grown: N(0, s^2) or U(-s, s) along one contrast of each pair of copies that is read."""
    sizes = {"layer": 2, "hidden": 24, "heads": 3, "ffn": 40}
    folder, built = saved("bert", "BertModel", **sizes)
    wanted = resized_config(built.config, hidden=48, heads=6, ffn=80)
    options = {"wavelet": "haar", "detail_scale": scale, "heads": "whole"}
    filled, empty = (
        resize(folder, wanted, "BertModel", bot_config={**options, "detail": detail}, dtype=torch.float64).state_dict()
        for detail in (kind, "zero")
    )
    for layer in range(2):
        for part in ("attention.self.value", "intermediate.dense", "output.dense"):
            name = f"encoder.layer.{layer}.{part}.weight"  # (written, read)
            noise = filled[name] - empty[name]
            first, second = noise[:, 0::2], noise[:, 1::2]
            torch.testing.assert_close(first, -second, rtol=0, atol=1e-9)  # nothing of what both copies carry
            contrast = (second - first) / 2**0.5
            asked = (1.0 if scale is None else scale) * spread * float(empty[name].std(correction=0))
            assert float(contrast.std(correction=0)) == pytest.approx(asked, rel=0.08), name
            assert float(contrast.mean().abs()) < 0.12 * asked, name
            if kind == "uniform":
                assert float(contrast.abs().max()) <= asked / spread * (1 + 1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_detail_scale_is_linear(saved, scale):
    folder, built = saved("bert", "BertForMaskedLM")
    wanted = resized_config(built.config, hidden=24, heads=6, ffn=40)
    options = {"wavelet": "haar", "detail": "gaussian"}
    empty, one, scaled = (
        resize(
            folder, wanted, "BertForMaskedLM", bot_config={**options, "detail_scale": s}, dtype=torch.float64
        ).state_dict()
        for s in (0.0, 1.0, scale)
    )
    for name, reference in empty.items():
        torch.testing.assert_close(
            scaled[name] - reference,
            scale * (one[name] - reference),
            rtol=0,
            atol=1e-9,
            msg=lambda m, n=name: f"{n}: {m}",
        )
