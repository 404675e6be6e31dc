"""What a smaller model keeps of its source, in energy and parameters, as reports, plans and suggestions say it."""

import pytest
import torch
from families import build, resized_config, save
from safetensors.torch import load_file
from transformers import BertConfig, GPT2Config

from transformers_bot import plan, resize_checkpoint, suggest
from transformers_bot.planning.render import parameters_kept

PLAIN = {"basis": "plain", "order": "kept"}


def squares(tensors):
    return sum(float(x.double().square().sum()) for x in tensors)


def test_layers_that_are_left_out_are_counted_as_lost(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel", n_layer=4)
    with torch.no_grad():
        for x in built.model.transformer.h[1].parameters():
            x.mul_(3)
    source = save(built.model, tmp_path / "source")
    report = resize_checkpoint(source, tmp_path / "out", n_layer=2, bot_config={"depth": "first", **PLAIN})
    stored = load_file(f"{source}/model.safetensors")
    kept = squares(x for name, x in stored.items() if ".h.2." not in name and ".h.3." not in name)
    assert report.energy_kept == pytest.approx(kept / squares(stored.values()), rel=1e-4)
    assert report.parameters_kept == pytest.approx(report.parameters[1] / report.parameters[0])


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_growing_says_what_is_inherited(saved, tmp_path, family):
    source, built = saved(family, {"bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel"}.get(family, "ViTModel"))
    report = resize_checkpoint(source, tmp_path / "out", resized_config(built.config, layer=4))
    assert report.energy_kept is None
    assert "100.0 % of the parameters inherited from the source" in " ".join(str(report).split())


def test_shrinking_says_what_is_kept_and_that_it_must_be_trained(saved, tmp_path):
    source, built = saved("gpt2", "GPT2LMHeadModel")
    report = resize_checkpoint(source, tmp_path / "out", resized_config(built.config, hidden=6, ffn=10))
    energy, parameters = f"{100 * report.energy_kept:.1f}", f"{100 * report.parameters_kept:.1f}"
    text = f"keeps {energy} % of the source's energy in {parameters} % of its parameters, must be trained"
    assert 0.3 < report.energy_kept < 1
    assert text in " ".join(str(report).split())
    assert "inherited" not in report.summary()
    assert text in (tmp_path / "out" / "README.md").read_text()


def test_a_plan_says_which_share_of_the_source_stays():
    small = plan(GPT2Config(), n_layer=6)
    assert "keeps 65.8 % of the source's parameters, must be trained" in str(small)
    assert "inherited 100.0 % of the target" in str(plan(GPT2Config(), n_layer=14))


WIDER = {"hidden": 24, "heads": 6, "ffn": 48}
NARROWER = {"hidden": 6, "heads": 3, "ffn": 10}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixed", "lost"),
    [({"layer": 1, **WIDER}, {"layer": 1}), ({"layer": 6, **NARROWER}, NARROWER)],
    ids=["wider", "deeper"],
)
@pytest.mark.parametrize(("family", "head"), [("gpt2", "GPT2LMHeadModel"), ("bert", "BertForMaskedLM")])
def test_what_is_new_beside_what_is_lost_does_not_make_up_for_it(saved, tmp_path, family, head, mixed, lost):
    source, built = saved(family, head)
    both, alone = (plan(source, resized_config(built.config, **sizes)) for sizes in (mixed, lost))
    assert parameters_kept(both) == pytest.approx(parameters_kept(alone))
    assert parameters_kept(both) < 0.95
    assert f"keeps {100 * parameters_kept(alone):.1f} % of the source's parameters" in str(both)
    report = resize_checkpoint(source, tmp_path / "out", resized_config(built.config, **mixed))
    assert report.parameters_kept == pytest.approx(parameters_kept(both))


# -- suggestions --------------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(
    "ratio", [0.5, 0.03, *(pytest.param(ratio, marks=pytest.mark.slow) for ratio in (0.9, 0.1, 0.01))]
)
@pytest.mark.parametrize(
    "config",
    [BertConfig(hidden_size=128, num_attention_heads=16), pytest.param(GPT2Config(), marks=pytest.mark.slow)],
)
def test_no_size_of_next_to_no_width_is_proposed_without_a_word(config, ratio):
    try:
        found = suggest(config, ratio=ratio)
    except ValueError:
        return
    for one in found:
        hardly = one.sizes["heads"] == 1 or 16 * one.sizes["hidden"] < config.hidden_size
        assert hardly == any("hardly a model: ask for more" in note for note in one.notes)
        assert hardly == ("hardly a model: ask for more" in repr(one))
        assert one.kept == pytest.approx(one.parameters / found[0].parameters * found[0].kept, rel=1e-2)
    assert len({"hardly" in " ".join(one.notes) for one in found}) == 1  # a better one pushes them out
