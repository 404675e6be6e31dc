"""Every form in which a band runs gives the product with its matrix, on any axis, in any dtype, cut into blocks."""

from itertools import product

import numpy as np
import pytest
import torch

from transformers_bot.methods.maps import contrasts, dual
from transformers_bot.ops import blocks
from transformers_bot.ops.axis_map import Band, Stencil, Taps, Windows, banded
from transformers_bot.ops.wavelets import analysis, analysis_map, synthesis, synthesis_map


def scattered() -> Band:
    """Rows that read anything."""
    chance = np.random.default_rng(0)
    rows, columns = np.repeat(np.arange(9), 3), chance.integers(0, 14, 27)
    return banded(rows, columns, chance.standard_normal(27), 9, 14)


BANDS = {
    "haar halves": (analysis_map(16, 8, "haar", False).bands[0], Stencil),
    "haar doubles": (synthesis_map(8, 16, "haar", True).bands[0], Stencil),
    "a third of the places": (synthesis_map(9, 12, "haar", True).bands[0], Stencil),
    "taps around the edges": (analysis_map(64, 32, "bior6.8", False).bands[0], Stencil),
    "two phases of many taps": (synthesis_map(40, 80, "sym8", False).bands[0], Stencil),
    "longer than half the axis": (analysis_map(12, 6, "sym8", False).bands[0], Windows),
    "details of every other place": (contrasts(dual(8, 12, "haar")).bands[0], Stencil),
    "long filter": (analysis_map(256, 128, "dmey", False).bands[0], Windows),
    "long filter, growing": (synthesis_map(100, 200, "dmey", True).bands[0], Windows),
    "one target entry": (analysis_map(2, 1, "db4", False).bands[0], None),
    "scattered": (scattered(), Taps),
}


def dense(band: Band) -> torch.Tensor:
    matrix = np.zeros((band.target, band.source))
    np.add.at(matrix, (np.arange(band.target)[:, None], band.index), band.weight)
    return torch.from_numpy(matrix)


@pytest.fixture(params=[blocks.BLOCK, 64], ids=["whole", "blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", request.param)


@pytest.mark.parametrize("name", BANDS)
def test_a_band_takes_the_form_that_suits_it(name):
    band, form = BANDS[name]
    assert form is None or isinstance(band._form, form)


@pytest.mark.covering(few=2)
@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", BANDS)
def test_every_form_is_the_matrix_product(name):
    """On every axis of tensors of one to four axes, in order, in another order, or a part of a larger one."""
    band, _ = BANDS[name]
    matrix = dense(band)
    for dims, dim, layout in product(range(1, 5), range(4), ("contiguous", "transposed", "a part")):
        if dim >= dims:
            continue
        shape = [3, 2, 4, 5][:dims]
        shape[dim] = band.source
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = torch.tensordot(matrix, x, dims=([1], [dim])).movedim(0, dim)
        out = torch.full(expected.shape, torch.nan, dtype=torch.float64)
        if layout == "transposed":
            x, out = (one.movedim(0, -1).contiguous().movedim(-1, 0) for one in (x, out))
        if layout == "a part":  # as of a fused q|k|v
            whole = torch.full([n + 1 for n in out.shape], torch.nan, dtype=torch.float64)
            out = whole[tuple(slice(n) for n in out.shape)]
        before = x.clone()
        band.apply(x, dim, out, torch.float64)
        case = f"axis {dim} of {dims}, {layout}: {{}}"
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12, msg=case.format)
        torch.testing.assert_close(x, before, rtol=0, atol=0, msg=case.format)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", BANDS)
def test_half_precision_is_rounded_once(name):
    band, _ = BANDS[name]
    x = torch.randn(3, band.source, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = (x.double() @ dense(band).T).bfloat16()
    out = band.apply(x, 1, torch.empty(3, band.target, dtype=torch.bfloat16), torch.float32)
    assert (out != expected).sum() <= 0.02 * out.numel()
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", ["long filter", "longer than half the axis"])
def test_an_infinity_in_a_window_reaches_only_its_readers(name):
    band, _ = BANDS[name]
    x = torch.zeros(band.source, dtype=torch.float64)
    x[3] = torch.inf
    out = band.apply(x, 0, torch.empty(band.target, dtype=torch.float64), torch.float64)
    torch.testing.assert_close(~torch.isfinite(out), dense(band)[:, 3] != 0)


@pytest.mark.parametrize("wavelet", ["haar", "db4", "dmey"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_several_axes_are_one_after_the_other(wavelet, dtype):
    x = torch.randn(4, 6, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    small, large = x.double(), x.double()
    for axis in range(3):
        small, large = analysis(small, wavelet, axis=axis), synthesis(large, wavelet, axis=axis)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for made, expected in ((analysis, small), (synthesis, large)):
        found = made(x, wavelet, axis=(0, 1, 2))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(made(x, wavelet, axis=[2, 0, -2]), found, rtol=0, atol=0)


def test_parameters_and_whole_numbers_of_numpy_are_taken():
    weight = torch.nn.Parameter(torch.ones(4, 8))
    assert not analysis(weight, axis=np.int64(0)).requires_grad
