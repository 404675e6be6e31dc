"""Sums of tensors against double precision, and what maps keep against dense projections."""

import math

import numpy as np
import pytest
import torch

from transformers_bot.methods.maps import interpolation, low_pass, periodic, whole_units
from transformers_bot.ops.axis_map import AxisMap, Matrix, from_dense, gather
from transformers_bot.ops.blocks import energy, sums
from transformers_bot.ops.dct import low_frequencies
from transformers_bot.ops.recipe import Stretches
from transformers_bot.ops.wavelets import analysis_map, synthesis_map

# -- sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (300, 401), (5, 9, 4, 1024)])
def test_sums_are_those_in_double_precision(dtype, shape):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.3).to(dtype)
    for one in (x, x.movedim(0, -1) if shape else x, x[..., ::2] if shape else x):
        found, wide = sums(one), one.double()
        assert found.count == one.numel()
        torch.testing.assert_close(
            torch.tensor([found.total, found.squares]), torch.stack([wide.sum(), wide.square().sum()]).float()
        )
        assert found.std == pytest.approx(float(wide.std(correction=0)), rel=1e-5, abs=1e-12)


def test_sums_add_up_and_see_what_is_no_number():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    both = sums(x[:300]) + sums(x[300:])
    assert both.squares == pytest.approx(sums(x).squares, rel=1e-6)
    assert both.is_finite
    for place in (0, 70_000, 99_999):
        for bad in (math.nan, math.inf):
            broken = x.clone()
            broken[place] = bad
            assert not sums(broken).is_finite
            assert math.isnan(sums(broken).std)


def test_large_but_finite_values_are_finite():
    found = sums(torch.full((100_000,), 1e30))
    assert found.is_finite
    assert found.squares == pytest.approx(1e65, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weighted_energy_is_that_in_double_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 3, 2000, generator=generator).to(dtype)
    weights = {axis: torch.rand(x.shape[axis], generator=generator, dtype=torch.float64) for axis in range(3)}
    weights[1][2] = 0.0
    for axes in ((0,), (1,), (2,), (0, 2), (0, 1, 2)):
        wide = x.double().square()
        for axis in axes:
            wide = wide * weights[axis].view([-1 if dim == axis else 1 for dim in range(3)])
        assert energy(x, {axis: weights[axis] for axis in axes}) == pytest.approx(float(wide.sum()), rel=1e-5)
    constant = {0: torch.full((70,), 0.5, dtype=torch.float64), 1: torch.full((3,), 3.0, dtype=torch.float64)}
    assert energy(x, constant) == pytest.approx(1.5 * energy(x), rel=1e-12)


# -- one map ------------------------------------------------------------------------------------


def maps() -> dict[str, AxisMap]:
    random = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).numpy()
    small, large = low_pass(12, 7, "haar", False), low_pass(7, 12, "db2", False)
    return {
        "haar": analysis_map(16, 8, "haar", False),
        "two levels of db3": analysis_map(32, 8, "db3", True),
        "partial level": small.produce,
        "its dual": small.consume,
        "grown by a partial level": large.produce,
        "its dual reader": large.consume,
        "biorthogonal": analysis_map(16, 8, "bior4.4", True),
        "biorthogonal grown": synthesis_map(8, 16, "bior2.2", True),
        "nearly orthogonal": analysis_map(256, 128, "dmey", True),
        "picked units": whole_units(7, 3).produce,
        "readers of picked units": whole_units(7, 3).consume,
        "copied units": whole_units(3, 7).produce,
        "readers of copied units": whole_units(3, 7).consume,
        "interpolated": interpolation(11, 5),
        "bicubic grown": interpolation(5, 9, "bicubic"),
        "cropped": periodic(9, 4),
        "scaled": analysis_map(16, 8, "haar", False).scaled(0.37),
        "cosines": AxisMap(12, 5, (Matrix(low_frequencies(12, 5)),)),
        "random": from_dense(random),
        "permutation": gather([2, 0, 1], 3),
        "grown, yet blind to a unit": gather([0, 0, 1, 1], 3),
        "shrunk to twins": gather([0, 0, 1], 5),
        "deficient": AxisMap(6, 3, (Matrix(np.array([[1.0, 2, 0, 0, 0, 1], [2, 4, 0, 0, 0, 2], [0, 1, 1, 0, 0, 0]])),)),
        "deficient and grown": from_dense(np.array([[1.0, 1, 0], [1, 1, 0], [2, 2, 1], [0, 0, 1]])),
    }


@pytest.mark.parametrize("name", list(maps()))
def test_a_stretch_undone_leaves_the_projections_energy(name):
    axis_map = maps()[name]
    matrix, one = axis_map.dense(), Stretches().of(axis_map)
    x = torch.randn(axis_map.source, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    projected = np.linalg.pinv(matrix) @ matrix @ x.numpy()
    out = axis_map.apply(x, 0)
    assert energy(one.undo_map.apply(out, 0)) == pytest.approx(np.square(projected).sum(), rel=1e-8)
    if isinstance(one.undo, torch.Tensor):
        assert energy(out, {0: one.undo}) == pytest.approx(np.square(projected).sum(), rel=1e-8)
    assert one.squares == pytest.approx(np.square(matrix).sum(), rel=1e-9)
    assert one.lossless == (np.linalg.matrix_rank(matrix) == axis_map.source)


def test_wavelets_of_whole_levels_stretch_by_one_factor():
    for wavelet in ("haar", "db2", "sym4", "coif1"):
        one = Stretches().of(analysis_map(32, 8, wavelet, True))
        torch.testing.assert_close(one.undo, torch.full((8,), 4.0, dtype=torch.float64))


def test_equal_maps_are_worked_out_once():
    known = Stretches()
    first = known.of(analysis_map(16, 8, "db2", True).scaled(2.0))
    assert known.of(analysis_map(16, 8, "db2", True).scaled(2.0)) is first
    assert known.of(analysis_map(16, 8, "db2", True)) is not first
