"""Importance slicing drops what does nothing first, and where only that goes the outputs stay."""

import pytest
import torch
from families import MAIN_HEADS, assert_same_outputs, build, outputs, save
from networks import at, network_for, rewritten
from test_importance import BY, MAIN, best, scored, sliced

from transformers_bot.ops.axis_map import AxisMap, Band

PRENORM = [pair for pair in MAIN_HEADS if pair[0] in ("gpt2", "vit", "deit")]
DEAD = {"ffn": [0, 4, 5, 17], "hidden": [0, 3, 7]}


def changed(built, folder, network):
    """The fixture with the network's tensors, saved."""
    made = type(built)(rewritten(built.model, network), built.inputs)
    return made, save(made.model, folder)


def without(length, dead):
    """A map that zeroes these entries of an axis."""
    keep = torch.ones(length, 1).double()
    keep[dead] = 0
    return AxisMap(length, length, (Band(torch.arange(length)[:, None].numpy(), keep.numpy(), length),))


@pytest.mark.covering(few=2)
@BY
@MAIN
def test_dead_mlp_units_go_and_the_outputs_stay(tmp_path, family, head, calibrated):
    built = build(family, head)
    network = network_for(built.model)
    for layer in network.layers("layer"):  # each layer has dead units of its own
        network.map_role("ffn", without(20, [(i + layer) % 20 for i in DEAD["ffn"]]), at(layer))
    dead, folder = changed(built, tmp_path, network)
    assert_same_outputs(
        outputs(sliced(dead, folder, {"ffn": 16}, calibrated), built.inputs), outputs(dead.model, built.inputs)
    )


@pytest.mark.covering
@BY
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_a_dead_head_has_the_lowest_score(family, head, calibrated):
    built = build(family, head)
    network = network_for(built.model)
    for layer in network.layers("layer"):
        network.map_role("heads", without(3, [layer]), at(layer))
    model = rewritten(built.model, network)
    scores = scored(model, built, calibrated)
    for layer in network.layers("layer"):
        assert best(scores["heads", at(layer)], 2) == [head for head in range(3) if head != layer]


@pytest.mark.covering(few=2)
@BY
@pytest.mark.parametrize(("family", "head"), [*PRENORM, ("gpt2", "GPT2ForSequenceClassification")])
def test_dead_channels_and_heads_go_and_only_the_gain_of_norms_changes(tmp_path, family, head, calibrated):
    """A norm over the m live of n channels sees n / m of the variance, if they have mean 0 as here."""
    built = build(family, head, **{_epsilon(family): 1e-14})
    network = network_for(built.model, keep_ties=True)
    live = [i for i in range(12) if i not in (0, 3, 7, 8)]
    centre = torch.zeros(12, 12, dtype=torch.float64)
    centre[torch.tensor(live)[:, None], torch.tensor(live)] = torch.eye(8).double() - 1 / 8
    for role in ("hidden", "readout"):
        network.map_role(role, without(12, [0, 3, 7, 8]))
    for layer in network.layers("layer"):
        network.map_role("heads", without(3, [1 - layer]), at(layer))
    for name, place in network.places.items():
        axes = [i for i, axis in enumerate(place.rule.axes) if _in_stream(axis, reads=name in network.tied)]
        embeds = (
            place.layer is None and place.stem not in network.adapter.norm_names and "label" not in place.rule.roles
        )
        if axes and (place.rule.adds or embeds):
            network.edit(name, lambda x, i=axes[-1]: torch.tensordot(x, centre, dims=([i], [0])).movedim(-1, i))
    dead, folder = changed(built, tmp_path, network)
    target = sliced(dead, folder, {"hidden": 8, "heads": 2}, calibrated)
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if any(word in name for word in ("ln_", "layernorm")) and name.endswith("weight"):
                parameter.mul_((12 / 8) ** 0.5)
    actual, expected = outputs(target, built.inputs), outputs(dead.model, built.inputs)
    assert_same_outputs(actual, expected, tolerance=1e-8)


def _in_stream(axis, reads):
    """Whether an axis is written onto the stream; of a tied readout, also if it is read."""
    factors = [f for segment in axis.segments for f in segment]
    return any(f.role in ("hidden", "readout") and (reads or not f.reads) for f in factors)


def _epsilon(family):
    return "layer_norm_epsilon" if family == "gpt2" else "layer_norm_eps"


@pytest.mark.covering
@BY
@MAIN
def test_dead_channels_go_in_postnorm_models_too(family, head, calibrated):
    built = build(family, head)
    network = network_for(built.model)
    for role in ("hidden", "readout"):
        network.map_role(role, without(12, DEAD["hidden"]))
    scores = scored(rewritten(built.model, network), built, calibrated)
    assert best(scores["hidden", None], 9) == [i for i in range(12) if i not in DEAD["hidden"]]


@pytest.mark.covering(few=1)
@BY
@pytest.mark.parametrize(("family", "head"), PRENORM)
def test_layers_that_add_nothing_go_and_the_outputs_stay(tmp_path, family, head, calibrated):
    built = build(family, head, layer=4)
    network = network_for(built.model)
    for name, place in network.places.items():
        if place.rule.adds and place.layer in (0, 2):
            network.edit(name, torch.zeros_like)
    dead, folder = changed(built, tmp_path, network)
    target = sliced(dead, folder, {"layer": 2}, calibrated)
    assert target.config.transformers_bot["layers"] == [1, 3]
    assert_same_outputs(outputs(target, built.inputs), outputs(dead.model, built.inputs))


def test_only_calibration_sees_units_that_never_fire(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel", activation_function="relu")
    with torch.no_grad():
        for block in built.model.transformer.h:
            block.mlp.c_fc.bias[5:9] = -1e3
    folder = save(built.model, tmp_path)
    by_data, by_weights = (outputs(sliced(built, folder, {"ffn": 16}, c), built.inputs) for c in (True, False))
    expected = outputs(built.model, built.inputs)
    assert_same_outputs(by_data, expected)
    assert not torch.allclose(by_weights["logits"], expected["logits"])
