"""Noise goes where no grown signal does: its maps, and along which axis a tensor gets it."""

import numpy as np
import pytest
import torch
from families import resize, resized_config

from transformers_bot.architectures.language import parse_rules
from transformers_bot.methods.maps import Pair, contrasts, copied_from, dual, identity_pair, noise_maps, whole_units
from transformers_bot.ops.axis_map import from_dense

SIZES = [(6, 12), (6, 8), (12, 16), (5, 17), (7, 8), (1, 4)]


@pytest.mark.parametrize("pair_of", [whole_units, lambda s, t: dual(s, t, "haar")], ids=["whole", "haar"])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_contrasts_are_an_orthonormal_complement(source, target, pair_of):
    pair = pair_of(source, target)
    bands = contrasts(pair).dense()
    np.testing.assert_allclose(bands.T @ bands, np.eye(target - source), rtol=0, atol=1e-12)
    np.testing.assert_allclose(bands.T @ pair.produce.dense(), 0, atol=1e-12)


@pytest.mark.parametrize("matrix", [np.array([[1.0], [2.0]]), dual(6, 8, "db2").produce.dense(), np.ones((50, 50))])
def test_what_is_not_copied_alike_has_no_contrasts(matrix):
    produce = from_dense(matrix)
    assert copied_from(produce) is None
    with pytest.raises(ValueError, match="no contrasts"):
        contrasts(Pair(produce, produce))


def along(rule: str, wavelet: str = "haar", **grown: tuple[int, int]):
    """What `noise_maps` finds for one rule, at sizes of 4 or those given."""
    return noise_maps(parse_rules(rule)[0], lambda segment: tuple(one_pair(f.role, wavelet, grown) for f in segment))


def one_pair(role: str, wavelet: str, grown: dict[str, tuple[int, int]]) -> Pair:
    source, target = grown.get(role, (4, 4))
    return identity_pair(source) if source == target else dual(source, target, wavelet)


def lengths(found) -> tuple[int, list[list[tuple[int, int]]]]:
    """Of noise in detail bands: the axis, and source and target of every map."""
    visible, (dim, bands) = found
    assert visible == ()
    return dim, [[(m.source, m.target) for m in segment] for segment in bands]


HIDDEN, HEADS, SCORE = {"hidden": (4, 6)}, {"heads": (4, 8), "head_dim": (4, 5)}, {"score": (4, 8)}
FUSED = "w : hidden -> (heads score + heads ~score + heads head_dim)"


def test_noise_is_drawn_along_what_is_read_and_grows():
    assert lengths(along("w : hidden -> ffn", **HIDDEN)) == (0, [[(2, 6)]])
    assert lengths(along("w : ffn <- hidden", **HIDDEN)) == (1, [[(2, 6)]])
    assert along("w : hidden -> ffn", ffn=(4, 8)) is None
    assert along("w : (heads head_dim) -> +hidden", **HIDDEN) is None


def test_along_heads_it_is_drawn_for_the_innermost_factor_that_grows():
    assert lengths(along("w : (heads head_dim) -> +hidden", heads=(4, 8))) == (0, [[(4, 8), (4, 4)]])
    assert lengths(along("w : (heads head_dim) -> +hidden", **HEADS)) == (0, [[(8, 8), (1, 5)]])


def test_of_a_fused_matrix_keys_alone_get_it_unless_the_stream_grows():
    found = along(FUSED, **SCORE)
    assert lengths(found) == (1, [[(1, 32)], [(4, 4), (4, 8)], [(1, 16)]])
    queries, _, values = found[1][1]
    assert np.abs(queries[0].dense()).max() == np.abs(values[0].dense()).max() == 0
    assert lengths(along(FUSED, **SCORE, **HIDDEN)) == (0, [[(2, 6)]])


def test_of_longer_filters_what_is_reached_is_taken_away():
    visible, bands = along(FUSED, "db2", **SCORE)
    assert bands == ()
    pair = dual(4, 8, "db2")
    reached = [[one.dense() for one in segment] for segment in visible[1]]
    np.testing.assert_allclose(reached[1][1], pair.consume.dense() @ pair.produce.dense().T, atol=1e-12)
    np.testing.assert_array_equal(reached[0][1], np.eye(8))


def test_queries_and_values_beside_noisy_keys_stay_as_they_are(saved):
    folder, built = saved("gpt2", "GPT2LMHeadModel")
    wanted = resized_config(built.config, heads=2)  # two heads of 6 in place of three of 4
    name = "transformer.h.0.attn.c_attn.weight"
    plain, noisy = (
        resize(folder, wanted, "GPT2LMHeadModel", bot_config={"reheads": "resample", "detail": kind}).state_dict()[name]
        for kind in ("zero", "gaussian")
    )
    for part, changes in zip(zip(plain.chunk(3, 1), noisy.chunk(3, 1), strict=True), (False, True, False), strict=True):
        assert torch.equal(*part) != changes
