"""Noise goes where no grown signal does: its maps, and along which axis a tensor gets it."""

import numpy as np
import pytest

from transformers_bot.axes import parse_rules
from transformers_bot.maps import from_dense, merged
from transformers_bot.methods.pairs import Pair, dual, kept, whole_units
from transformers_bot.methods.unseen import details, unseen_along

SIZES = [(6, 12), (6, 8), (12, 16), (5, 17), (7, 8), (1, 4)]


@pytest.mark.parametrize("pair_of", [whole_units, lambda s, t: dual(s, t, "haar")], ids=["whole", "haar"])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_of_copies_the_details_are_an_orthonormal_complement(source, target, pair_of):
    pair = pair_of(source, target)
    bands = details(pair).dense()
    np.testing.assert_allclose(bands.T @ bands, np.eye(target - source), rtol=0, atol=1e-12)
    np.testing.assert_allclose(bands.T @ pair.produce.dense(), 0, atol=1e-12)


@pytest.mark.parametrize("wavelet", ["db2", "bior4.4", "sym8"])
@pytest.mark.parametrize(("source", "target"), [(6, 12), (6, 8), (12, 30)])
def test_of_longer_filters_they_are_what_is_no_low_band(source, target, wavelet):
    pair = dual(source, target, wavelet)
    produce, consume = pair.produce.dense(), pair.consume.dense()
    np.testing.assert_allclose(details(pair).dense().T, np.eye(target) - produce @ consume.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(details(pair).dense().T @ produce, 0, atol=1e-9)


def test_copies_of_unequal_weight_are_no_twins():
    produce = from_dense(np.diag([1.0, 2.0]) @ np.array([[1.0], [1.0]]))
    consume = from_dense(np.array([[0.2], [0.4]]))
    bands = details(Pair(produce, consume)).dense()
    np.testing.assert_allclose(bands.T @ produce.dense(), 0, atol=1e-12)
    assert np.abs(bands).max() > 0.1


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_all_bands_of_a_map_are_one(wavelet):
    axis_map = dual(5, 19, wavelet).produce
    assert len(axis_map.bands) > 1
    one = merged(axis_map)
    made = np.zeros((19, 5))
    np.add.at(made, (np.arange(19)[:, None], one.index), one.weight)
    np.testing.assert_allclose(made, axis_map.dense(), rtol=0, atol=1e-12)


def test_a_dense_matrix_is_no_band():
    with pytest.raises(TypeError, match="no band"):
        merged(from_dense(np.ones((50, 50))))


def along(rule: str, **grown: tuple[int, int]):
    """Axis and shape of the noise of one rule, at sizes of 4 or those given."""
    parsed = parse_rules(rule)[0]

    def pairs_of(segment):
        sizes = [grown.get(factor.role, (4, 4)) for factor in segment]
        return tuple(kept(s) if s == t else dual(s, t, "haar") for s, t in sizes)

    found = unseen_along(parsed, pairs_of)
    return found and (found[0], [[(m.source, m.target) for m in segment] for segment in found[1]])


HIDDEN, HEADS, SCORE = {"hidden": (4, 6)}, {"heads": (4, 8), "head_dim": (4, 5)}, {"score": (4, 8)}
FUSED = "w : hidden -> (heads score + heads ~score + heads head_dim)"


def test_noise_is_drawn_along_what_is_read_and_grows():
    assert along("w : hidden -> ffn", **HIDDEN) == (0, [[(2, 6)]])
    assert along("w : ffn <- hidden", **HIDDEN) == (1, [[(2, 6)]])
    assert along("w : hidden -> ffn", ffn=(4, 8)) is None
    assert along("w : (heads head_dim) -> +hidden", **HIDDEN) is None


def test_along_heads_it_is_drawn_for_the_innermost_factor_that_grows():
    assert along("w : (heads head_dim) -> +hidden", heads=(4, 8)) == (0, [[(4, 8), (4, 4)]])
    assert along("w : (heads head_dim) -> +hidden", **HEADS) == (0, [[(8, 8), (1, 5)]])


def test_of_a_fused_matrix_keys_alone_get_it_unless_the_stream_grows():
    assert along(FUSED, **SCORE) == (1, [[(1, 32)], [(4, 4), (4, 8)], [(1, 16)]])
    assert along(FUSED, **SCORE, **HIDDEN) == (0, [[(2, 6)]])


def test_an_axis_without_noise_stays_without():
    found = unseen_along(
        parse_rules(FUSED)[0],
        lambda segment: tuple(dual(4, 8, "haar") if factor.role == "score" else kept(4) for factor in segment),
    )
    assert found is not None
    assert np.abs(found[1][0][0].dense()).max() == np.abs(found[1][2][0].dense()).max() == 0
