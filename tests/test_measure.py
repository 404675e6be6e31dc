"""What a `Watch` measures: shares of energy against dense projections and PyWavelets; looking changes nothing."""

import math
import re
from collections.abc import Mapping

import numpy as np
import pytest
import pywt
import torch
from families import MAIN_HEADS, build, resized_config
from reports import watched

from transformers_bot.ops.blocks import energy
from transformers_bot.ops.recipe import Read, Recipe

SIZES = {"layer": 4, "hidden": 24, "heads": 6, "ffn": 40}
CHANGES = {
    "half": {"layer": 2, "hidden": 12, "heads": 3, "ffn": 20},
    "double": {"layer": 8, "hidden": 48, "heads": 12, "ffn": 80},
    "odd": {"layer": 3, "hidden": 20, "heads": 4, "ffn": 33},
    "mixed": {"layer": 4, "hidden": 40, "heads": 5, "ffn": 30},
}
OPTIONS = {
    "bot": {},
    "raw": {"gain": "raw"},
    "raw db2 bior": {"gain": "raw", "wavelet": {"hidden": "bior2.2", "ffn": "db2"}},
    "plain": {"basis": "plain", "order": "kept", "heads": "flat", "wavelet": "db3"},
    "noise": {"detail": "gaussian"},
}


def source(family: str, head: str, dtype=torch.float64, **sizes):
    return build(family, head, dtype=dtype, **{**SIZES, **sizes}).model


# -- one tensor against a dense projection ------------------------------------------------------


def axis_matrix(segments) -> np.ndarray:
    """The whole map of one axis: a block per segment, each the product of its factors."""
    blocks = []
    for segment in segments:
        block = np.eye(1)
        for one in segment:
            block = np.kron(block, one.dense() if one.bands else np.eye(one.source))
        blocks.append(block)
    whole = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)))
    row = column = 0
    for block in blocks:
        whole[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return whole


def along(matrix: np.ndarray, x: np.ndarray, dim: int) -> np.ndarray:
    return np.moveaxis(np.tensordot(matrix, x, axes=(1, dim)), 0, dim)


def dense_figures(recipe: Recipe, reads: dict[Read, str], tensors: Mapping[str, torch.Tensor]):
    """Energy kept along the axes, and the gain of all maps, from dense matrices."""
    x = sum(one.weight * tensors[reads[one]].double().numpy() for one in recipe.reads)
    before, gain = np.square(x).sum().item(), math.sqrt(sum(one.weight**2 for one in recipe.reads))
    for dim, segments in enumerate(recipe.maps):
        if all(one.is_identity for segment in segments for one in segment):
            continue
        matrix = axis_matrix(segments)
        gain *= np.linalg.norm(matrix) / math.sqrt(min(matrix.shape))
        x = along(np.linalg.pinv(matrix) @ matrix, x, dim)
    return np.square(x).sum() / before if before else None, gain


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_every_tensor_keeps_what_the_dense_projection_keeps(family, head, change, options):
    model = source(family, head)
    made = watched(model, resized_config(model.config, **change), **options)
    rows = {one.name: one for one in made.report.tensors}
    checked = 0
    for step in made.plan.steps:
        row, recipe = rows[step.target], step.recipe
        if recipe is None or recipe.undo or not any(one.weight for one in recipe.reads):
            assert row.energy_kept is None
            assert row.gain is None
            continue
        share, gain = dense_figures(recipe, step.reads, made.source)
        assert row.gain == pytest.approx(gain, rel=1e-5)
        if share is None:  # a norm's bias that was folded into its readers
            assert row.energy_kept is None
            continue
        over_layers = [one.energy_kept for one in row.roles if one.side == "depth"] or [1.0]
        assert row.energy_kept == pytest.approx(share * over_layers[0], rel=1e-5)
        checked += 1
    assert checked > 10


# -- laws of whole resizes ----------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym5", "coif2"])
def test_low_band_and_details_share_the_energy_as_pywavelets_has_it(wavelet):
    """Every band of PyWavelets' transform adds up to the whole; the report's share is the low band's."""
    model = source("bert", "BertModel")
    made = watched(model, resized_config(model.config, hidden=12, heads=3, ffn=20), gain="raw", wavelet=wavelet)
    rows, checked = {one.name: one for one in made.report.tensors}, 0
    for name, row in rows.items():
        if not any(part in name for part in ("query.weight", "value.weight", "dense.weight")) or "pooler" in name:
            continue
        stored = model.state_dict()[name].numpy()
        bands = {key: np.square(band).sum() for key, band in pywt.dwtn(stored, wavelet, mode="periodization").items()}
        total = sum(bands.values())
        assert total == pytest.approx(np.square(stored).sum(), rel=1e-9)
        assert row.energy_kept == pytest.approx(bands["aa"] / total, rel=1e-5)
        lost = sum(bands.values()) - bands["aa"]
        assert 1 - row.energy_kept == pytest.approx(lost / total, rel=1e-4)
        checked += 1
    assert checked == 4 * 5  # queries, values and three outputs of four layers


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("options", [{}, {"gain": "raw"}, {"gain": "raw", "wavelet": "bior2.2"}, {"wavelet": "db3"}])
@pytest.mark.parametrize("change", [CHANGES["double"], {"layer": 7, "hidden": 30, "heads": 5, "ffn": 57}])
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_growing_keeps_everything(family, head, change, options):
    model = source(family, head)
    report = watched(model, resized_config(model.config, **change), **options).report
    heads_grow = change["heads"] >= SIZES["heads"]
    for one in report.roles:
        if heads_grow or not one.role.startswith("heads"):
            assert one.energy_kept == 1.0, one
    assert {one.left_out for one in report.stacks} == {()}


def test_copies_shrink_without_a_loss():
    model = source("gpt2", "GPT2LMHeadModel")
    plain = {"basis": "plain", "order": "kept"}
    small = build("gpt2", "GPT2LMHeadModel", layer=4, hidden=12, heads=3, ffn=20).model
    grown = watched(small, resized_config(small.config, hidden=24, heads=6, ffn=40), detail="zero").results
    missing, unexpected = model.load_state_dict(grown, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    report = watched(model, resized_config(model.config, hidden=12, heads=3, ffn=20), **plain).report
    filtered = [one for one in report.roles if one.role != "heads"]
    assert {one.role for one in filtered} == {"hidden", "readout", "ffn"}
    assert {one.energy_kept for one in filtered} == {1.0}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("change", [CHANGES["half"], CHANGES["double"]])
def test_the_papers_modules_have_gain_one(wavelet, change):
    model = source("vit", "ViTModel")
    report = watched(model, resized_config(model.config, **change), gain="raw", wavelet=wavelet).report
    modules = [
        one
        for one in report.tensors
        if re.search(r"layers?\.\d", one.name) and re.search(r"(attention|mlp|dense).*weight$", one.name)
    ]
    assert len(modules) == 6 * change["layer"]
    assert {part.gain for one in modules for part in one.roles if part.side != "depth"} == {1.0}
    shorter = min(SIZES["layer"], change["layer"])
    assert sum(one.gain**2 for one in modules) == pytest.approx(6 * shorter, rel=1e-5)  # over layers, too


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("halvings", "factor"), [(1, 2), (2, 4)])
def test_consistent_haar_halves_energy_where_it_writes_and_doubles_it_where_it_reads(halvings, factor):
    model = source("bert", "BertModel", hidden=48, heads=12, ffn=80)
    wanted = resized_config(model.config, hidden=48 // factor, heads=12 // factor, ffn=80 // factor)
    report = watched(model, wanted).report
    gains = {(one.role, one.side): one.gain for one in report.roles}
    for role in ("hidden", "ffn"):
        assert gains[role, "written"] == pytest.approx(0.5 ** (halvings / 2), rel=1e-5)
        assert gains[role, "read"] == pytest.approx(2 ** (halvings / 2), rel=1e-5)


def test_layers_that_are_averaged_keep_what_they_have_in_common():
    model = source("gpt2", "GPT2LMHeadModel")
    shrunk = resized_config(model.config, layer=2)
    options = {"depth": "wavelet", "order": "kept"}
    apart = watched(model, shrunk, **options).report
    depth = next(one for one in apart.roles if one.role == "layer")
    assert 0.4 < depth.energy_kept < 0.75  # independent layers have half of their energy in the mean
    parts = {one.name.split(".", 3)[-1]: one.roles[0].gain for one in apart.tensors if ".h.1." in one.name}
    assert parts["mlp.c_fc.weight"] == pytest.approx(math.sqrt(0.5), rel=1e-5)  # the mean of two
    assert parts["mlp.c_proj.weight"] == pytest.approx(math.sqrt(2), rel=1e-5)  # the sum of their updates
    name = "transformer.h.{}.mlp.c_fc.weight"
    pair = [model.state_dict()[name.format(layer)] for layer in (0, 1)]
    common = energy(pair[0] + pair[1]) / 2 / (energy(pair[0]) + energy(pair[1]))
    row = next(one for one in apart.tensors if one.name == name.format(0))
    assert row.energy_kept == pytest.approx(common, rel=1e-5)
    for layer in (1, 3):
        for key, value in model.state_dict().items():
            if f".h.{layer}." in key:
                value.copy_(model.state_dict()[key.replace(f".h.{layer}.", f".h.{layer - 1}.")])
    alike = watched(model, shrunk, **options).report
    assert next(one.energy_kept for one in alike.roles if one.role == "layer") == 1.0


def test_layers_that_nothing_is_made_of_are_named_and_no_share_of_all_is_claimed():
    model = source("vit", "ViTModel")
    report = watched(model, resized_config(model.config, layer=2)).report
    assert {(one.source_layers, one.target_layers, one.left_out) for one in report.stacks} == {(4, 2, (1, 2))}
    assert [one.energy_kept for one in report.roles if one.role == "layer"] == [None]


def test_noise_is_the_share_that_is_not_the_grown_signal():
    model = source("gpt2", "GPT2LMHeadModel")
    wanted = resized_config(model.config, hidden=48, heads=12, ffn=80)
    noisy, clean = (watched(model, wanted, detail=kind) for kind in ("gaussian", "zero"))
    rows = {one.name: one for one in noisy.report.tensors}
    assert all(one.noise is None for one in clean.report.tensors)
    for name, signal in clean.results.items():
        share = energy(noisy.results[name] - signal) / energy(noisy.results[name])
        assert (rows[name].noise or 0.0) == pytest.approx(share, rel=1e-5, abs=1e-12)
    assert 0.1 < rows["transformer.h.0.mlp.c_fc.weight"].noise < 0.9


def test_spread_before_and_after_is_that_of_the_tensors():
    model = source("bert", "BertForMaskedLM")
    made = watched(model, resized_config(model.config, **CHANGES["half"]), gain="raw")
    for one in made.report.tensors:
        if one.action != "tie":
            read = torch.cat([made.source[name].flatten() for name in one.reads])
            assert one.std_before == pytest.approx(float(read.std(correction=0)), rel=1e-5)
            assert one.std_after == pytest.approx(float(made.results[one.name].std(correction=0)), rel=1e-5)
