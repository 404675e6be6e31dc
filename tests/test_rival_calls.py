"""The other methods as they are called: in compositions, with options, and what they refuse with which words."""

from pathlib import Path

import pytest
import torch
from families import assert_same_outputs, build, resize, resized_config, save, tiny_config
from test_rivals import COVERED, WIDTHS, logits, resized
from transformers import AutoModelForCausalLM

from transformers_bot import BadOption, BoTModelForCausalLM, BoTModelForMaskedLM, plan

# -- compositions -------------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("depth", ["stack", "interpolate", "depth_upscale", "lemon", "fpi"])
@pytest.mark.parametrize("widths", ["tile", "fpi", "aki", "lemon"])
def test_a_composition_is_the_widths_and_then_the_depth(saved, tmp_path, widths, depth):
    family, head = "gpt2", "GPT2LMHeadModel"
    # Width first, then depth in a second call, is the same as both at once: noise of LEMON's
    # copied layers aside, which is drawn for every target layer anew.
    sizes = WIDTHS["heads added"]
    _, both = resized(saved, family, head, f"{widths}+{depth}", {**sizes, "layer": 4})
    built, wide = resized(saved, family, head, widths, sizes)
    wide.save_pretrained(tmp_path)
    deep = resize(str(tmp_path), resized_config(wide.config, layer=4), head, method=depth, dtype=torch.float64)
    if widths == "lemon":
        assert_same_outputs(logits(both, built.inputs), logits(deep, built.inputs))
        return
    expected = deep.state_dict()
    for name, tensor in both.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_a_composition_may_shrink_widths_and_grow_depth(saved):
    built, target = resized(
        saved, "gpt2", "GPT2LMHeadModel", "weight_selection+stack", {"layer": 4, "hidden": 8, "heads": 2, "ffn": 10}
    )
    layers = [layer.mlp.c_fc.weight for layer in target.transformer.h]
    assert torch.equal(layers[0], layers[2])
    expected = built.model.transformer.h[1].mlp.c_fc.weight[torch.tensor([0, 2, 3, 5, 6, 8, 9, 11])][:, ::2]
    assert torch.equal(layers[3], expected)
    assert target.config.transformers_bot["method"] == "weight_selection+stack"


def test_a_composition_takes_the_options_of_both_parts(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    given = {"n_embd": 24, "n_head": 6, "n_inner": 20, "n_layer": 3, "bot_config": {"seed": 1}}
    one = BoTModelForCausalLM.from_pretrained(folder, method="fpi+stack", **given)
    assert one.config.transformers_bot["options"]["seed"] == 1
    with pytest.raises(
        BadOption, match=r"'tile\+stack' has no option seed=1 in bot_config: it takes positions, grids\."
    ):
        BoTModelForCausalLM.from_pretrained(folder, method="tile+stack", **given)


# -- refusals -----------------------------------------------------------------------------------------

GROWN = {"hidden": 24, "heads": 6, "ffn": 40}
REFUSED = {
    "selection grows": ("bert", "weight_selection", {"ffn": 21}, r"only shrink, but ffn goes from 20 to 21\. Use"),
    "selection adds layers": ("bert", "weight_selection", {"layer": 3}, "only shrink, but layer goes from 2 to 3"),
    "selection adds positions": (
        "bert",
        "weight_selection",
        {"layer": 1, "max_position_embeddings": 16},
        "only shrink, but position goes from 12 to 16. Keep 12 positions",
    ),
    "tile odd": ("bert", "tile", {"ffn": 33}, "ffn grows from 20 to 33, .* nearest are 20 and 40"),
    "tile shrinks": ("bert", "tile", {"layer": 1}, "only grow, but layer goes from 2 to 1"),
    "fpi shrinks": ("gpt2", "fpi", {"hidden": 24, "heads": 2}, "only grow, but heads goes from 3 to 2"),
    "aki shrinks": ("gpt2", "aki", {"ffn": 10}, "only grow, but ffn goes from 20 to 10"),
    "pooler shrinks": ("vit", "fpi", {"pooler_output_size": 6}, "only grow, but pooler goes from 12 to 6"),
    "lemon shrinks": ("gpt2", "lemon", {"layer": 1}, "only grow, but layer goes from 2 to 1"),
    "lemon postnorm depth": ("bert", "lemon", {"layer": 3}, r"after each block.* 2 to 3 .*Keep 2 .*'lemon\+stack'"),
    "lemon postnorm ratio": ("roberta", "lemon", {"hidden": 16, "heads": 4}, "from 12 to 16.*multiples are 12 and 24"),
    "upscale too far": ("vit", "depth_upscale", {"layer": 5}, "2 layers make at most 4, but 5 .*method='stack'"),
    "part refused": ("gpt2", "tile+depth_upscale", {"layer": 5, **GROWN}, "method='depth_upscale' cannot.*at most 4"),
    "widths refused": ("gpt2", "stack+tile", GROWN, "method='stack' cannot do this: it changes the layer count alone"),
    "front combined": ("gpt2", "tile+front", {"layer": 3}, "'front' cannot be combined"),
    "scratch combined": ("gpt2", "scratch+stack", {"layer": 3}, "'scratch' cannot be combined"),
    "bot combined": ("gpt2", "bot+stack", {"layer": 3}, "'bot' cannot be combined"),
    "unknown part": ("gpt2", "tile+stak", {"layer": 3}, "unknown method 'stak'.*Did you mean 'stack'"),
}


@pytest.mark.parametrize(("family", "method", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_formula_does_not_cover_is_an_error(family, method, change, message):
    config = tiny_config(family)
    with pytest.raises(BadOption, match=message):
        plan(config, resized_config(config, **change), method=method)


@pytest.mark.parametrize("method", ["stack", "interpolate", "depth_upscale"])
@pytest.mark.parametrize(("change", "message"), [({"layer": 1}, "only grow"), (GROWN, "hidden goes from 12 to 24")])
def test_depth_rules_refuse_widths_and_shrinking(method, change, message):
    config = tiny_config("gpt2")
    with pytest.raises(BadOption, match=f"method='{method}' cannot do this: .*{message}"):
        plan(config, resized_config(config, **change), method=method)
    if "hidden" in change:
        with pytest.raises(BadOption, match=rf"method='tile\+{method}'"):
            plan(config, resized_config(config, **change), method=method)


@pytest.mark.parametrize("method", ["weight_selection", "front"])
def test_heads_are_not_resampled_by_a_formula_without_heads(method):
    config = tiny_config("gpt2")
    wanted = resized_config(config, heads=2)
    with pytest.raises(BadOption, match=r"heads go from 3 to 2 .*Set reheads='reshape'"):
        plan(config, wanted, method=method, bot_config={"reheads": "resample"})
    made = plan(config, wanted, method=method, bot_config={"reheads": "reshape"})
    assert set(made.names("copy")) == {step.target for step in made.steps if step.action != "tie"}


@pytest.mark.parametrize("method", [*COVERED, "scratch"])
def test_an_option_that_a_method_does_not_read_is_an_error(saved, method):
    folder, _ = saved("bert", "BertForMaskedLM")
    with pytest.raises(BadOption, match=f"method {method!r} has no option depth='even'".replace("+", r"\+")):
        BoTModelForMaskedLM.from_pretrained(folder, num_hidden_layers=3, method=method, bot_config={"depth": "even"})


def test_no_method_leaves_anything_behind(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel")
    folder = Path(save(built.model, tmp_path))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    BoTModelForCausalLM.from_pretrained(folder, config=resized_config(built.config, hidden=16, heads=4), method="lemon")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert AutoModelForCausalLM.from_pretrained(folder).config.layer_norm_epsilon == built.config.layer_norm_epsilon
