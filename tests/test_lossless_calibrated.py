"""A calibrated shrink of what only grew merges its copies again, whatever the sizes: nothing is turned or fitted."""

import pytest
import torch
from families import assert_same_outputs, build, outputs, resize, resized_config, save

SIZES = {"whole level": 24, "partial level": 16, "more than one": 30}
HEADS = {
    "gpt2": ("GPT2LMHeadModel", {"tie_word_embeddings": False}),
    "vit": ("ViTForImageClassification", {}),
    "deit": ("DeiTForImageClassificationWithTeacher", {}),
}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("options", [{}, {"order": "strongest"}], ids=["default", "strongest"])
@pytest.mark.parametrize("hidden", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("family", HEADS)
def test_growing_is_undone_with_calibration_too(tmp_path, family, hidden, options):
    head, changes = HEADS[family]
    built = build(family, head, heads=2, **changes)
    grown = resize(save(built.model, tmp_path / "small"), resized_config(built.config, hidden=hidden), head)
    folder = save(grown, tmp_path / "grown")
    names = {"gpt2": "input_ids"}.get(family, "pixel_values")
    generator = torch.Generator().manual_seed(0)
    example = built.inputs[names]
    if family == "gpt2":
        batch = torch.randint(3, 23, (8, 12), generator=generator)
    else:
        batch = torch.randn(8, *example.shape[1:], generator=generator, dtype=example.dtype)
    back = resize(
        folder,
        resized_config(built.config),
        head,
        bot_config=options,
        calibration=[{names: batch}],
        dtype=torch.float64,
    )
    assert back.config.transformers_bot["basis"] == "plain"
    assert_same_outputs(outputs(back, built.inputs), outputs(built.model, built.inputs), 1e-9)


def test_batches_may_choose_the_layers_of_what_grows_in_width(tmp_path):
    """With both widths growing there is nothing to fit, and nothing to say about how many tokens that takes."""
    built = build("bert", "BertForMaskedLM", layer=3)
    wanted = resized_config(built.config, layer=2, hidden=24, heads=6, ffn=40)
    batch = {"input_ids": torch.arange(1, 9)[None]}
    source = save(built.model, tmp_path / "source")
    small = resize(source, wanted, "BertForMaskedLM", calibration=[batch])
    assert small.config.num_hidden_layers == 2
    assert not any("tokens" in sentence for sentence in small.transfer_report.warnings)
