"""Rewriting a source keeps its function: folding norms, turning the stream, reordering units; what is kept of it.

All in double precision on random models, each law beside a control that shows that it can fail.
"""

import numpy as np
import pytest
import torch
from families import MAIN_HEADS, assert_same_outputs, build, outputs
from networks import network_for, random_rotation, random_turn, rewritten, shuffled, turn_stream

from transformers_bot.methods.maps import dual, group_sizes
from transformers_bot.methods.prepare import principal_pair
from transformers_bot.ops.axis_map import gather
from transformers_bot.ops.blocks import gram
from transformers_bot.ops.wavelets import analysis_map
from transformers_bot.rewrite.folding import fold_norms, folded_readers, is_foldable, norms
from transformers_bot.rewrite.network import Network
from transformers_bot.rewrite.order import (
    add_grams,
    best_pairs,
    merge_shapes,
    order_units,
    order_whole_units,
    similar_order,
    strongest_first,
)
from transformers_bot.rewrite.principal import basis

UNTIED = {"tie_word_embeddings": False}
# Every norm of these is read by matrices of its own alone.
FOLDABLE = {
    "gpt2 untied": ("gpt2", "GPT2LMHeadModel", UNTIED),
    "gpt2 classifier": ("gpt2", "GPT2ForSequenceClassification", {}),
    "gpt2 tokens": ("gpt2", "GPT2ForTokenClassification", {}),
    "gpt2 double": ("gpt2", "GPT2DoubleHeadsModel", UNTIED),
    "vit": ("vit", "ViTForImageClassification", {}),
    "vit masked": ("vit", "ViTForMaskedImageModeling", {}),
    "vit without biases": ("vit", "ViTForImageClassification", {"qkv_bias": False}),
    "deit": ("deit", "DeiTForImageClassificationWithTeacher", {}),
    "deit masked": ("deit", "DeiTForMaskedImageModeling", {}),
}
# model -> the norm that has to stay
KEPT = {
    "gpt2 tied": ("gpt2", "GPT2LMHeadModel", "transformer.ln_f"),
    "gpt2 body": ("gpt2", "GPT2Model", "ln_f"),
    "vit body": ("vit", "ViTModel", "layernorm"),
    "deit body": ("deit", "DeiTModel", "layernorm"),
}
each_foldable = pytest.mark.parametrize(("family", "head", "changes"), FOLDABLE.values(), ids=FOLDABLE)
each_family = pytest.mark.parametrize(("family", "head"), MAIN_HEADS)


def assert_kept(built, network):
    assert_same_outputs(outputs(rewritten(built.model, network), built.inputs), outputs(built.model, built.inputs))


def assert_changed(built, network):
    before, after = (outputs(model, built.inputs) for model in (built.model, rewritten(built.model, network)))
    assert any(float((after[name] - x).abs().max()) > 1e-3 * float(x.abs().max()) for name, x in before.items())


# -- folding --------------------------------------------------------------------------------------


@each_foldable
def test_folding_every_norm_keeps_the_outputs(family, head, changes):
    built = build(family, head, **changes)
    network = network_for(built.model)
    fold_norms(network)
    assert len(norms(network)) == 2 * built.config.num_hidden_layers + 1
    for place in norms(network):
        assert is_foldable(network, place)
        assert torch.equal(network[place.part(network, "weight")], torch.ones(12, dtype=torch.float64))
    assert_kept(built, network)


def test_a_norm_without_a_bias_is_folded_and_counted():
    built = build("vit", "ViTForImageClassification")
    whole = network_for(built.model)
    tensors = {name: x for name, x in whole.stored.items() if not name.endswith("layernorm_before.bias")}
    network = Network(whole.adapter, whole.sizes, tensors, {name: whole.places[name] for name in tensors})
    before = {name: network[name].clone() for name in network}
    fold_norms(network)
    for place in norms(network):
        assert is_foldable(network, place)
        assert folded_readers(network, place)
        assert torch.equal(network[place.part(network, "weight")], torch.ones(12, dtype=torch.float64))
        if place.part(network, "bias") is None:
            gamma = before[place.part(network, "weight")]
            for name in folded_readers(network, place):
                torch.testing.assert_close(network[name], before[name] * gamma, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("family", "head", "last"), KEPT.values(), ids=KEPT)
def test_a_norm_whose_output_has_other_readers_stays(family, head, last):
    built = build(family, head)
    network = network_for(built.model, keep_ties=True)
    fold_norms(network)
    for part in ("weight", "bias"):
        assert network[f"{last}.{part}"] is network._tensors[f"{last}.{part}"]
    stems = {place.norm.name for place in norms(network) if not is_foldable(network, place)}
    assert stems == {last.removeprefix("transformer.")}
    assert_kept(built, network)


def test_a_dead_channel_before_a_reader_without_bias_keeps_the_outputs():
    # gamma = 0 leaves the constant beta, which a matrix without a bias can only take from the norm
    built = build("gpt2", "GPT2LMHeadModel", **UNTIED)
    with torch.no_grad():
        for norm in (built.model.transformer.ln_f, built.model.transformer.h[0].ln_1):
            norm.weight[3] = 0.0
    network = network_for(built.model)
    fold_norms(network)
    assert_kept(built, network)


# -- turning --------------------------------------------------------------------------------------


@pytest.mark.covering("head changes", "seed")
@pytest.mark.parametrize("seed", [0, 1])
@each_foldable
def test_turning_a_folded_stream_keeps_the_outputs(family, head, changes, seed):
    built = build(family, head, **changes)
    network = network_for(built.model)
    fold_norms(network)
    turn_stream(network, random_turn(12, seed))
    assert_kept(built, network)


@each_foldable
def test_a_turn_that_moves_the_constant_changes_the_outputs(family, head, changes):
    built = build(family, head, **changes)
    network = network_for(built.model)
    fold_norms(network)
    turn_stream(network, random_rotation(12))
    assert_changed(built, network)


def test_turning_a_stream_whose_norms_are_not_folded_changes_the_outputs():
    built = build("gpt2", "GPT2LMHeadModel", **UNTIED)
    network = network_for(built.model)
    turn_stream(network, random_turn(12))
    assert_changed(built, network)


def orthonormal(source: int, target: int, wavelet: str) -> torch.Tensor:
    """The low-pass that the principal basis is turned to, with rows of length 1."""
    pair = principal_pair(source, target, dual(source, target, wavelet))
    torch.testing.assert_close(pair.produce.dense() @ pair.consume.dense().T, np.eye(target), rtol=0, atol=1e-12)
    np.testing.assert_allclose(pair.produce.dense().sum(1), 1.0, atol=1e-12)
    return torch.from_numpy(pair.produce.dense() * (source / target) ** 0.5)


RATIOS = [(12, 6), (12, 3), (16, 1), (12, 5), (12, 7), (12, 9), (12, 11), (15, 10), (12, 4), (12, 1)]


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize(("source", "target"), RATIOS)
def test_the_low_pass_of_the_basis_keeps_the_principal_directions(source, target, wavelet):
    low_pass = orthonormal(source, target, wavelet)
    eye, constant = torch.eye(source, dtype=torch.float64), torch.ones(source, dtype=torch.float64) * source**-0.5
    drawn = torch.randn(source, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    moments = drawn @ drawn.T
    kept, dropped = basis(moments, low_pass)
    assert kept.shape == (target, source)
    frame = torch.cat([kept, dropped])
    torch.testing.assert_close(frame @ frame.T, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(kept @ constant, low_pass @ constant, rtol=0, atol=1e-10)
    centring = eye - torch.outer(constant, constant)
    _, vectors = torch.linalg.eigh(centring @ moments @ centring)
    top = torch.cat([constant[:, None], vectors[:, source - target + 1 :]], dim=1)
    torch.testing.assert_close(kept.T @ kept, top @ top.T, rtol=0, atol=1e-9)


# -- order ----------------------------------------------------------------------------------------


@pytest.mark.covering("family", "role")
@pytest.mark.parametrize("role", ["ffn", "heads", "hidden"])
@each_family
def test_reordering_units_keeps_the_outputs(family, head, role):
    built = build(family, head, heads=6)
    network = network_for(built.model)
    order_units(network, role, {"ffn": 7, "heads": 2, "hidden": 5}[role])
    before = built.model.state_dict()
    assert any(not torch.equal(x, before[name]) for name, x in network.items())
    assert_kept(built, network)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e3, 1e9])
def test_every_matrix_counts_alike_when_units_are_compared(scale):
    built = build("gpt2", "GPT2LMHeadModel", layer=1)
    grams = torch.zeros(2, 20, 20)
    for total in grams:
        add_grams(total, network_for(built.model.float()), "ffn", ("layer", 0))
        built.model.transformer.h[0].mlp.c_fc.weight.data.mul_(scale)
    torch.testing.assert_close(*grams.triu(), rtol=1e-4, atol=1e-5)


def test_layers_with_dead_units_are_matched_in_float32():
    built = build("gpt2", "GPT2LMHeadModel", layer=2)
    built.model.float()
    with torch.no_grad():
        for block, dead in zip(built.model.transformer.h, ([0, 3], [1, 2, 19]), strict=True):
            block.mlp.c_fc.weight[:, dead] = block.mlp.c_fc.bias[dead] = block.mlp.c_proj.weight[dead] = 0.0
    network = network_for(built.model)
    order_units(network, "ffn", 10, groups={"layer": [[0, 1]]})
    for layer, block in enumerate(built.model.transformer.h):
        units, before = network[f"transformer.h.{layer}.mlp.c_fc.weight"], block.mlp.c_fc.weight
        assert not torch.equal(units, before)
        assert sorted(units.T.tolist()) == sorted(before.T.tolist())


def test_layers_that_are_averaged_have_their_units_in_one_order():
    built = build("gpt2", "GPT2LMHeadModel", layer=2)
    first, second = (block.mlp for block in built.model.transformer.h)
    order = shuffled(20)
    with torch.no_grad():
        second.c_fc.weight[:] = first.c_fc.weight[:, order]
        second.c_fc.bias[:] = first.c_fc.bias[order]
        second.c_proj.weight[:] = first.c_proj.weight[order]
    network = network_for(built.model)
    order_units(network, "ffn", 10, groups={"layer": [[0, 1]]})
    for part in ("c_fc.weight", "c_fc.bias", "c_proj.weight"):
        assert torch.equal(network[f"transformer.h.1.mlp.{part}"], network[f"transformer.h.0.mlp.{part}"]), part


@each_family
def test_reordering_heads_by_strength_keeps_the_outputs(family, head):
    built = build(family, head, heads=4)
    network = network_for(built.model)
    order_whole_units(network, "heads", [3, 1])
    assert_kept(built, network)


@pytest.mark.parametrize("role", ["ffn", "heads", "hidden"])
@each_family
def test_reordering_the_units_of_one_tensor_alone_changes_the_outputs(family, head, role):
    built = build(family, head, heads=4)
    network = network_for(built.model)
    name = next(name for name, place in network.tensors_with(role, ("layer", 0)) if place.rule.maps)
    swap = {role: gather(shuffled(network.sizes[role]), network.sizes[role])}
    changed = network.mapped(name, swap, {})
    changed = changed if not torch.equal(changed, network[name]) else network.mapped(name, {}, swap)
    network.edit(name, lambda _: changed)
    assert_changed(built, network)


@pytest.mark.parametrize("source", range(2, 25))
def test_merge_shapes_are_what_the_low_pass_averages(source):
    def weights(shape, weight=1.0):
        return [w for part in shape for w in weights(part, weight / 2)] if shape else [weight]

    for target in range(1, source + 1):
        rows = np.zeros((target, source))
        start = 0
        for row, shape in zip(rows, merge_shapes(source, target), strict=True):
            found = weights(shape)
            row[start : start + len(found)] = found
            start += len(found)
        assert start == source
        np.testing.assert_array_equal(rows, analysis_map(source, target, "haar", True).dense())


def planted(counts: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products of shuffled copies of random vectors, and which vector each is a copy of."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(counts), 30, generator=generator, dtype=torch.float64)
    label = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    label = label[torch.randperm(len(label), generator=generator)]
    return vectors[label] @ vectors[label].T, label


@pytest.mark.parametrize("source", range(2, 25))
def test_planted_copies_become_the_neighbours_that_are_merged(source):
    # Beyond a ratio of 4 the greedy choice may take one pair too many of one vector's copies.
    for target in range((source + 3) // 4, source + 1):
        shapes = merge_shapes(source, target)
        counts = group_sizes(source, target).tolist()
        gram, label = planted(counts, seed=target)
        order = similar_order(gram, shapes)
        assert sorted(order) == list(range(source))
        groups = torch.split(label[order], counts)
        assert all(len(set(group.tolist())) == 1 for group in groups), (source, target)


@pytest.mark.parametrize(("source", "target"), [(8, 1), (16, 2), (24, 3), (32, 2)])
def test_planted_copies_become_neighbours_at_every_dyadic_ratio(source, target):
    gram, label = planted([source // target] * target, seed=5)
    groups = label[similar_order(gram, merge_shapes(source, target))].view(target, -1)
    assert torch.equal(groups, groups[:, :1].expand_as(groups))


def test_similar_order_is_a_permutation_of_any_units():
    drawn = torch.randn(13, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for products in (drawn @ drawn.T, torch.zeros(13, 13, dtype=torch.float64), torch.ones(13, 13).double()):
        for target in range(1, 14):
            assert sorted(similar_order(products.clone(), merge_shapes(13, target))) == list(range(13))


def test_the_strongest_lead_and_the_weakest_join_the_strongest():
    assert strongest_first(torch.tensor([3.0, 9.0, 1.0, 7.0, 5.0]), [2, 2, 1]) == [1, 2, 3, 0, 4]


@pytest.mark.parametrize("target", [450, 600, 700, 899])
def test_planted_copies_are_found_in_float32(target):
    counts = group_sizes(900, target).tolist()
    generator = torch.Generator().manual_seed(target)
    label = torch.repeat_interleave(torch.arange(target), torch.tensor(counts))
    label = label[torch.randperm(900, generator=generator)]
    vectors = torch.randn(target, 700, generator=generator)[label]
    groups = torch.split(label[similar_order(gram(vectors), merge_shapes(900, target))], counts)
    assert all(len(set(group.tolist())) == 1 for group in groups)


@pytest.mark.parametrize("dead", [1, 4, 300, 599, 600])
def test_dead_units_are_merged_with_each_other(dead):
    vectors = torch.randn(600, 50, generator=torch.Generator().manual_seed(dead))
    vectors[torch.randperm(600, generator=torch.Generator().manual_seed(dead))[:dead]] = 0
    pairs = torch.tensor(similar_order(gram(vectors), merge_shapes(600, 300))).view(-1, 2)
    zero = (vectors == 0).all(1)[pairs].sum(1)  # (pair,): how many are dead
    assert int((zero == 2).sum()) == dead // 2


@pytest.mark.parametrize("split", [0, 9])
def test_pairs_are_those_of_a_greedy_choice(split):
    drawn = torch.randn(20, 20, generator=torch.Generator().manual_seed(split))
    similar = (drawn + drawn.T).mul_(4).round_()  # many ties
    free = sorted(
        (-float(similar[i, j]), i, j) for i in range(20) for j in range(i + 1, 20) if not split or i < split <= j
    )
    wanted: list[tuple[int, int]] = []
    for _, i, j in free:
        if not {i, j} & {k for pair in wanted for k in pair}:
            wanted.append((i, j))
    for count in (1, 4, 9):
        assert best_pairs(similar.clone(), count, split) == wanted[:count]
