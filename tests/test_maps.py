"""Banded maps compose, transpose and scale like the matrices they stand for, along any axis."""

import numpy as np
import pytest
import torch

from transformers_bot.methods.maps import dual, interpolation, periodic, whole_units
from transformers_bot.ops.axis_map import AxisMap, from_dense, gather, identity
from transformers_bot.ops.wavelets import analysis_map, synthesis_map

MAPS = {
    "gather": lambda: gather([2, 0, 0, 1, 2], source=3),
    "haar": lambda: synthesis_map(6, 10, "haar", True),
    "sym8": lambda: synthesis_map(6, 24, "sym8", False),
    "bior": lambda: analysis_map(24, 9, "bior6.8", True),
    "dense": lambda: from_dense(np.array([[0.0, 2.0], [0.0, 0.0], [-1.0, 3.0]])),
    "identity": lambda: identity(4),
}


@pytest.fixture(params=MAPS)
def axis_map(request) -> AxisMap:
    return MAPS[request.param]()


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_apply_is_the_matrix_product(axis_map, dim):
    shape = [3, 5, 7]
    shape[dim] = axis_map.source
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.tensordot(x, torch.from_numpy(axis_map.dense()), dims=([dim], [1])).movedim(-1, dim)
    torch.testing.assert_close(axis_map.apply(x, dim), expected, rtol=0, atol=1e-12)


def test_transposed_is_the_adjoint(axis_map):
    np.testing.assert_allclose(axis_map.transposed().dense(), axis_map.dense().T, atol=1e-14)
    assert (axis_map.transposed().source, axis_map.transposed().target) == (axis_map.target, axis_map.source)


def test_then_is_the_product(axis_map):
    there_and_back = axis_map.then(axis_map.transposed())
    np.testing.assert_allclose(there_and_back.dense(), axis_map.dense().T @ axis_map.dense(), atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, -2.0, 0.25])
def test_scaled_is_a_multiple(axis_map, factor):
    np.testing.assert_allclose(axis_map.scaled(factor).dense(), factor * axis_map.dense(), atol=1e-14)


def test_from_dense_gives_the_matrix_back():
    matrix = np.random.default_rng(0).standard_normal((5, 4)) * (np.arange(20).reshape(5, 4) % 3 > 0)
    np.testing.assert_allclose(from_dense(matrix).dense(), matrix, atol=0)


def test_an_axis_of_another_length_is_an_error(axis_map):
    with pytest.raises(ValueError, match=f"axis 0 has length 99, the map expects {axis_map.source}"):
        axis_map.apply(torch.zeros(99), 0)


@pytest.mark.parametrize("wavelet", ["haar", "sym8"])
def test_an_infinity_reaches_only_the_entries_that_read_it(wavelet):
    grow = synthesis_map(16, 20, wavelet, True)
    x = torch.zeros(16, dtype=torch.float64)
    x[3] = float("inf")
    touched = ~torch.isfinite(grow.apply(x, 0))
    torch.testing.assert_close(touched, torch.from_numpy(grow.dense()[:, 3] != 0), rtol=0, atol=0)


@pytest.mark.parametrize(("source", "target"), [(3, 6), (3, 7), (12, 16), (1, 4), (5, 5)])
def test_copied_units_share_their_readers(source, target):
    pair = whole_units(source, target)
    np.testing.assert_allclose(pair.consume.dense().T @ pair.produce.dense(), np.eye(source), atol=1e-12)
    np.testing.assert_allclose(pair.produce.dense().sum(1), 1)
    assert set(np.unique(pair.produce.dense())) <= {0.0, 1.0}


@pytest.mark.parametrize(("source", "target"), [(6, 3), (7, 3), (16, 12), (4, 1)])
def test_picked_units_are_not_mixed(source, target):
    pair = whole_units(source, target)
    assert set(np.unique(pair.produce.dense())) <= {0.0, 1.0}
    np.testing.assert_allclose(pair.produce.dense().sum(1), 1)
    np.testing.assert_allclose(pair.produce.dense() @ pair.consume.dense().T, np.eye(target), atol=1e-12)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior4.4"])
@pytest.mark.parametrize(("source", "target"), [(6, 12), (6, 8), (12, 6), (8, 6), (6, 30)])
def test_pairs_are_dual_in_both_directions(source, target, wavelet):
    pair = dual(source, target, wavelet)
    produce, consume = pair.produce.dense(), pair.consume.dense()
    product = consume.T @ produce if target > source else produce @ consume.T
    np.testing.assert_allclose(product, np.eye(min(source, target)), atol=1e-9)
    for projection in (pair.reached().dense(), pair.low_band().dense()):
        np.testing.assert_allclose(projection @ projection, projection, atol=1e-9)


def test_positions_are_kept_by_index():
    np.testing.assert_allclose(periodic(4, 6).dense().argmax(1), [0, 1, 2, 3, 0, 1])
    np.testing.assert_allclose(periodic(6, 4).dense(), np.eye(6)[:4])


@pytest.mark.parametrize(("mode", "antialias"), [("bilinear", True), ("bicubic", False), ("bicubic", True)])
@pytest.mark.parametrize(("source", "target"), [(4, 7), (7, 4), (16, 37)])
def test_interpolation_keeps_constants(source, target, mode, antialias):
    np.testing.assert_allclose(interpolation(source, target, mode, antialias).dense().sum(1), 1, atol=1e-6)
