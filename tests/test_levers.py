"""The levers of shrinking through the public door: which are pulled by default, what they keep, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from families import (
    FAMILIES,
    MAIN_HEADS,
    assert_same_outputs,
    build,
    factory_for,
    outputs,
    resize,
    resized_config,
    save,
)
from networks import at, network_for, random_turn, rewritten, shuffled, turn_stream

from transformers_bot import BadOption
from transformers_bot.ops.axis_map import gather
from transformers_bot.rewrite.folding import fold_norms

UNTIED = {"tie_word_embeddings": False}
HEAD = dict(MAIN_HEADS)
PRE = ("gpt2", "vit", "deit")
POST = ("bert", "roberta")
HALF = {"hidden": 6, "heads": 2, "ffn": 10}  # of models with 4 heads
ODD = {"hidden": 9, "heads": 3, "ffn": 13}
GROWN = {"hidden": 24, "heads": 6, "ffn": 40}
each_family = pytest.mark.parametrize("family", FAMILIES)


def shrink(saved, family, sizes=HALF, head=None, options=None, changes=None, **keywords):
    """A saved random model of 4 heads at other sizes."""
    head = head or HEAD[family]
    folder, built = saved(family, head, heads=4, **(changes or {}))
    return resize(folder, resized_config(built.config, **sizes), head, bot_config=options, **keywords)


def bytes_of(model, folder: Path) -> bytes:
    save(model, folder)
    return (folder / "model.safetensors").read_bytes()


def same_parameters(one, two) -> bool:
    first, second = one.state_dict(), two.state_dict()
    assert list(first) == list(second)
    return all(torch.equal(x, second[name]) for name, x in first.items())


# -- defaults and provenance ----------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("sizes", [HALF, ODD], ids=["half", "odd"])
@pytest.mark.parametrize("family", PRE)
def test_prenorm_models_shrink_in_the_principal_basis(saved, family, sizes):
    model = shrink(saved, family, sizes)
    made = model.config.transformers_bot
    assert made["basis"] == made["options"]["basis"] == "principal"
    assert {"ffn", "heads"} <= set(made["order"])
    assert not same_parameters(model, shrink(saved, family, sizes, options={"basis": "plain", "order": "kept"}))


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("sizes", [HALF, ODD], ids=["half", "odd"])
@pytest.mark.parametrize("family", POST)
def test_postnorm_models_shrink_in_another_order(saved, family, sizes):
    model = shrink(saved, family, sizes)
    made = model.config.transformers_bot
    assert made["basis"] == made["options"]["basis"] == "plain"
    assert made["order"] == ["hidden", "ffn", "heads"]
    assert not same_parameters(model, shrink(saved, family, sizes, options={"order": "kept"}))


@pytest.mark.covering(few=2)
@pytest.mark.parametrize(
    ("family", "sizes", "options"),
    [
        ("gpt2", HALF, {"gain": "raw"}),
        ("gpt2", GROWN, {}),
        ("vit", {"ffn": 10}, {}),
        ("deit", HALF, {"wavelet": "bior2.2"}),
        ("vit", {"layer": 1}, {}),
    ],
    ids=["raw", "growing", "mlp alone", "biorthogonal", "depth alone"],
)
def test_the_basis_stays_plain_where_it_cannot_be_turned(saved, family, sizes, options):
    heads = {} if sizes.get("hidden") != 24 else {"heads": 8}
    made = shrink(saved, family, {**sizes, **heads}, options=options).config.transformers_bot
    assert made["basis"] == made["options"]["basis"] == "plain"


@pytest.mark.slow
@each_family
def test_the_options_in_the_provenance_make_the_same_model_again(saved, tmp_path, family):
    first = shrink(saved, family)
    bytes_first = bytes_of(first, tmp_path / "first")
    stored = json.loads((tmp_path / "first" / "config.json").read_text())["transformers_bot"]
    assert stored == first.config.transformers_bot
    assert stored["options"]["order"] == "similar"
    assert bytes_of(shrink(saved, family), tmp_path / "second") == bytes_first
    assert bytes_of(shrink(saved, family, options=stored["options"]), tmp_path / "third") == bytes_first


@pytest.mark.slow
@each_family
def test_the_plan_says_which_tensors_are_in_the_principal_basis(saved, family):
    head = HEAD[family]
    folder, built = saved(family, head, heads=4)
    factory = factory_for(head, built.config)
    printed = {
        name: str(factory.plan(folder, config=resized_config(built.config, **sizes), bot_config=options))
        for name, sizes, options in (
            ("half", HALF, None),
            ("odd", ODD, None),
            ("plain", HALF, {"basis": "plain"}),
            ("grown", {**GROWN, "heads": 8}, None),
        )
    }
    turned = {name for name, text in printed.items() if "in the principal basis" in text}
    assert turned == ({"half", "odd"} if family in PRE else set())


# -- refusals -------------------------------------------------------------------------------------

PRINCIPAL = {"basis": "principal"}
REFUSED = {
    "post-norm": ("bert", HALF, PRINCIPAL, r"bert is post-norm: use order='similar'"),
    "post-norm too": ("roberta", HALF, PRINCIPAL, r"roberta is post-norm"),
    "growing": ("gpt2", {**GROWN, "heads": 8}, PRINCIPAL, r"hidden does not shrink"),
    "mlp alone": ("vit", {"ffn": 10}, PRINCIPAL, r"hidden does not shrink"),
    "raw": ("gpt2", HALF, {**PRINCIPAL, "gain": "raw"}, r"gain='raw' is the paper as written"),
    "biorthogonal": ("vit", HALF, {**PRINCIPAL, "wavelet": "bior2.2"}, r"wavelet bior2.2 is not orthogonal"),
    "biorthogonal hidden": ("vit", HALF, {**PRINCIPAL, "wavelet": {"hidden": "rbio1.3"}}, "wavelet rbio1.3 is not"),
    "nearly orthogonal": ("deit", HALF, {**PRINCIPAL, "wavelet": "dmey"}, r"wavelet dmey is not orthogonal"),
}


@pytest.mark.parametrize(("family", "sizes", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_a_basis_that_cannot_be_had_is_refused(saved, family, sizes, options, message):
    with pytest.raises(BadOption, match=rf"basis='principal' cannot be used here: {message}.*Leave it at 'auto'"):
        shrink(saved, family, sizes, options=options)
    folder, built = saved(family, HEAD[family], heads=4)
    factory = factory_for(HEAD[family], built.config)
    with pytest.raises(BadOption, match=message):
        factory.plan(folder, config=resized_config(built.config, **sizes), bot_config=options)


@pytest.mark.parametrize("sizes", [{**GROWN, "heads": 8}, {"layer": 1}], ids=["growing", "depth alone"])
def test_an_order_without_anything_to_merge_is_refused(saved, sizes):
    with pytest.raises(BadOption, match="order='similar' puts units together that shrinking merges, and nothing"):
        shrink(saved, "gpt2", sizes, options={"order": "similar"})


TOKENS = [{"input_ids": torch.arange(3, 23).view(2, 10)}]
IMAGES = [{"pixel_values": torch.ones(1, 3, 12, 12, dtype=torch.float64)}]
CALIBRATION = {
    "no batch": ("gpt2", HALF, {"calibration": []}, "calibration= gave no batch"),
    "other inputs": ("gpt2", HALF, {"calibration": [{"pixel_values": torch.zeros(1)}]}, "that the source runs on"),
    "no list": ("gpt2", HALF, {"calibration": 3}, "must be a list of batches, got int"),
    "a tensor": ("gpt2", HALF, {"calibration": torch.ones(2, 3)}, "must be a dict of tensors.* got Tensor"),
    "texts": ("gpt2", HALF, {"calibration": ["a text"]}, "must be a dict of tensors.* got str"),
    "growing": ("gpt2", {**GROWN, "heads": 8}, {"calibration": TOKENS}, "no width shrinks"),
    "even layers alone": ("gpt2", {"layer": 1}, {"calibration": TOKENS}, "no width shrinks and no layers are ranked"),
    "one batch": ("gpt2", HALF, {"calibration": TOKENS[0]}, "is one batch; pass a list of batches"),
    "growing deeper": ("bert", {"layer": 4}, {"calibration": TOKENS}, "no width shrinks"),
    "raw": ("gpt2", HALF, {"calibration": TOKENS, "options": {"gain": "raw"}}, "gain='raw' is the paper as written"),
    "post-norm merged": (
        *("bert", HALF, {"calibration": TOKENS, "options": {"order": "similar"}}),
        "order='similar' and this wavelet they are only merged",
    ),
    "not orthogonal": (
        *("vit", HALF, {"calibration": IMAGES, "options": {"wavelet": "bior2.2"}}),
        "this wavelet they are only merged",
    ),
    "plain": (
        *("gpt2", HALF, {"calibration": TOKENS, "options": {"basis": "plain"}}),
        "basis='plain', order='auto' and this wavelet they are only merged.*these options at 'auto'",
    ),
    "filtered layers": (
        *("bert", {**HALF, "layer": 1}, {"calibration": TOKENS, "options": {"depth": "wavelet"}}),
        "averages layers whose units are ranked",
    ),
    "strongest filtered": (
        *("gpt2", {**HALF, "layer": 1}),
        {"calibration": TOKENS, "options": {"depth": "wavelet", "order": "strongest"}},
        "averages layers whose units are ranked",
    ),
    "strongest unmeasured": (
        "bert",
        HALF,
        {"options": {"order": "strongest"}},
        "order='strongest' ranks by scores on",
    ),
    "layers unmeasured": (
        "bert",
        {"layer": 1},
        {"options": {"depth": "strongest"}},
        "depth='strongest' ranks by scores",
    ),
    "weight selection": (
        *("gpt2", HALF, {"calibration": TOKENS, "method": "weight_selection"}),
        "'weight_selection' does not use it",
    ),
    "scratch": ("gpt2", HALF, {"calibration": TOKENS, "method": "scratch"}, "'scratch' does not use it"),
    "two methods": (
        *("gpt2", {**GROWN, "heads": 8, "layer": 4}, {"calibration": TOKENS, "method": "tile+stack"}),
        "'tile.stack' does not use it",
    ),
}


@pytest.mark.covering(few=8)
@pytest.mark.parametrize(("family", "sizes", "keywords", "message"), CALIBRATION.values(), ids=CALIBRATION)
def test_calibration_that_cannot_be_used_is_refused(saved, family, sizes, keywords, message):
    with pytest.raises(BadOption, match=message):
        shrink(saved, family, sizes, **keywords)


@pytest.mark.slow
def test_calibration_changes_what_is_kept(saved):
    plain, measured, again = (
        shrink(saved, "gpt2", calibration=batches) for batches in (None, TOKENS, (batch for batch in TOKENS))
    )
    assert not same_parameters(plain, measured)
    assert same_parameters(measured, again)


# -- what the levers keep -------------------------------------------------------------------------


def grown(family, head, tmp_path, sizes, **changes):
    """A random model, and itself grown by copies: every grown unit has twins."""
    built = build(family, head, **changes)
    folder = save(built.model, tmp_path / "small")
    model = resize(folder, resized_config(built.config, **sizes), head, bot_config={"detail": "zero"})
    return built, model


SUBSPACE = {
    "gpt2": ("gpt2", "GPT2LMHeadModel", UNTIED, GROWN),
    "gpt2 fourfold": ("gpt2", "GPT2LMHeadModel", UNTIED, {**GROWN, "hidden": 48}),
    "gpt2 classifier": ("gpt2", "GPT2ForSequenceClassification", {}, GROWN),
    "vit": ("vit", "ViTForImageClassification", {}, GROWN),
    "vit without biases": ("vit", "ViTForImageClassification", {"qkv_bias": False}, GROWN),
    "deit": ("deit", "DeiTForImageClassificationWithTeacher", {}, {**GROWN, "heads": 3}),
}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "head", "changes", "sizes"), SUBSPACE.values(), ids=SUBSPACE)
def test_a_stream_in_a_hidden_subspace_shrinks_without_loss(tmp_path, family, head, changes, sizes):
    # No two neighbours are alike in it: only its principal directions tell where the stream lies.
    built, model = grown(family, head, tmp_path, sizes, **changes)
    network = network_for(model)
    fold_norms(network)
    turn_stream(network, random_turn(sizes["hidden"]))
    turned = rewritten(model, network)
    expected = outputs(built.model, built.inputs)
    assert_same_outputs(outputs(turned, built.inputs), expected)
    folder = save(turned, tmp_path / "turned")

    def back(**keywords):
        return outputs(resize(folder, resized_config(built.config), head, **keywords), built.inputs)

    assert_same_outputs(back(), expected, 1e-6)
    assert_same_outputs(back(bot_config=PRINCIPAL), expected, 1e-6)
    if family == "gpt2":
        tokens = torch.randint(3, 23, (8, 12), generator=torch.Generator().manual_seed(0))
        assert_same_outputs(back(calibration=[{"input_ids": tokens}]), expected, 1e-6)
    plain = back(bot_config={"basis": "plain"})
    assert all(float((plain[name] - x).abs().max()) > 0.05 * float(x.abs().max()) for name, x in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "heads"), [("ffn", "whole"), ("heads", "whole"), ("heads", "filter"), ("hidden", "whole")]
)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_shuffled_copies_shrink_without_loss(tmp_path, family, head, role, heads):
    built, model = grown(family, head, tmp_path, GROWN)
    network = network_for(model, keep_ties=True)
    length = network.sizes[role]
    for layer in (None,) if role == "hidden" else network.layers("layer"):
        for one in ("hidden", "readout") if role == "hidden" else (role,):
            network.map_role(one, gather(shuffled(length, seed=layer or 0), length), at(layer))
    mixed = rewritten(model, network)
    expected = outputs(built.model, built.inputs)
    assert_same_outputs(outputs(mixed, built.inputs), expected)
    folder = save(mixed, tmp_path / "mixed")

    def back(order):
        options = {"basis": "plain", "order": order, "heads": heads}
        return outputs(resize(folder, resized_config(built.config), head, bot_config=options), built.inputs)

    assert_same_outputs(back("similar"), expected)
    assert_same_outputs(back("auto"), expected)
    kept = back("kept")
    assert any(float((kept[name] - x).abs().max()) > 0.01 * float(x.abs().max()) for name, x in expected.items())


@pytest.mark.slow
@each_family
def test_half_precision_sources_shrink_to_the_same_model(tmp_path, family):
    head = HEAD[family]
    made = []
    for dtype in (torch.float16, torch.float64):
        built = build(family, head, dtype=torch.float16, heads=4)
        folder = save(built.model.to(dtype), tmp_path / str(dtype))
        made.append(resize(folder, resized_config(built.config, **HALF, dtype=None), head))
    half, exact = made
    assert half.dtype == torch.float16
    assert exact.dtype == torch.float64
    for name, x in exact.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name].double(), x, rtol=0, atol=2e-3 * float(x.abs().max()))
