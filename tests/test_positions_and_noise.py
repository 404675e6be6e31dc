"""Positions keep their places, special rows stay, and detail noise belongs to one tensor and one seed."""

import numpy as np
import pytest
import torch
from families import assert_same_outputs, outputs, resize, resized_config

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


@pytest.mark.parametrize("length", [5, 12, 13, 30])
@pytest.mark.parametrize("family", TEXT)
def test_text_positions_are_kept_by_index(saved, family, length):
    offset = OFFSET[family]
    before, after = tables(saved, family, {"positions": "crop"}, **{TEXT[family][1]: length + offset})
    assert len(after) == length + offset
    places = np.concatenate([np.arange(offset), offset + np.arange(length) % 12])
    torch.testing.assert_close(after, before[places], rtol=0, atol=0)


@pytest.mark.parametrize("length", [6, 24])
@pytest.mark.parametrize("family", TEXT)
def test_text_positions_are_interpolated_behind_the_fixed_rows(saved, family, length):
    offset = OFFSET[family]
    before, after = tables(saved, family, {"positions": "interpolate"}, **{TEXT[family][1]: length + offset})
    torch.testing.assert_close(after[:offset], before[:offset], rtol=0, atol=0)
    signal = before[offset:].T[None]
    expected = torch.nn.functional.interpolate(signal[:, :, None], (1, length), mode="bilinear", antialias=length < 12)
    torch.testing.assert_close(after[offset:], expected[0, :, 0].T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", TEXT)
def test_more_positions_change_nothing_for_short_texts(saved, family):
    head, field = TEXT[family]
    folder, built = saved(family, head)
    target = resize(folder, resized_config(built.config, **{field: 40}), head, dtype=torch.float64)
    assert_same_outputs(outputs(target, built.inputs), outputs(built.model, built.inputs))


@pytest.mark.parametrize("grid", [2, 5, 6])
@pytest.mark.parametrize(("family", "special"), [("vit", 1), ("deit", 2)])
def test_image_grids_are_interpolated_in_two_dimensions(saved, family, special, grid):
    before, after = tables(saved, family, image_size=4 * grid)
    assert after.shape == (1, special + grid * grid, 12)
    torch.testing.assert_close(after[:, :special], before[:, :special], rtol=0, atol=0)
    picture = before[:, special:].view(1, 3, 3, 12).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(picture, (grid, grid), mode="bicubic", antialias=grid < 3)
    actual = after[:, special:].view(1, grid, grid, 12).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_every_tensor_and_every_seed_has_its_own_noise(saved, kind):
    drawn = [*noises(saved, kind, 0).values(), *noises(saved, kind, 1).values()]
    flat = torch.stack([x.flatten() for x in drawn])
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(drawn), dtype=torch.float64), rtol=0, atol=0.1)


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
