"""The wavelet operators equal PyWavelets', and keep their promises at ratios that PyWavelets does not have.

Oracle, round trip, linearity, exact sizes; for the maps of any ratio: constants keep their value,
shrinking inverts growing, dyadic ratios are the pure transform, rows stay short.
"""

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_bot.errors import BadOption, BadSize
from transformers_bot.ops.axis_map import split_places
from transformers_bot.ops.wavelets import analysis, analysis_map, check_name, names, synthesis, synthesis_map

TABLE_5 = ("haar", "db2", "db4", "sym8", "coif3", "bior3.3", "bior4.4", "bior6.8", "rbio3.3", "dmey")
ALL = pywt.wavelist(kind="discrete")
# Meyer's wavelet has no finite filter; PyWavelets' dmey is an approximation of it.
INVERSE_TOLERANCE = {"dmey": 2e-2}


def signal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def pywt_analysis(x: np.ndarray, wavelet: str, level: int, axis: int) -> np.ndarray:
    for _ in range(level):
        x = pywt.dwt(x, wavelet, mode="periodization", axis=axis)[0]
    return x


def pywt_synthesis(x: np.ndarray, wavelet: str, level: int, axis: int) -> np.ndarray:
    for _ in range(level):
        x = pywt.idwt(x, None, wavelet, mode="periodization", axis=axis)
    return x


def test_all_discrete_wavelets_are_known():
    assert names() == ALL
    assert set(TABLE_5) < set(ALL)


@pytest.mark.covering(few=40)
@pytest.mark.parametrize("wavelet", ALL)
def test_analysis_is_pywt(wavelet):
    for length, level in ((2, 1), (6, 1), (4, 2), (28, 2), (96, 2)):
        x = signal(length)
        expected = torch.from_numpy(pywt_analysis(x, wavelet, level, 0))
        torch.testing.assert_close(analysis(torch.from_numpy(x), wavelet, level), expected, rtol=0, atol=1e-10)


@pytest.mark.covering(few=40)
@pytest.mark.parametrize("wavelet", ALL)
def test_synthesis_is_pywt(wavelet):
    for length, level in ((1, 1), (3, 1), (1, 2), (7, 2), (48, 2)):
        x = signal(length)
        expected = torch.from_numpy(pywt_synthesis(x, wavelet, level, 0))
        torch.testing.assert_close(synthesis(torch.from_numpy(x), wavelet, level), expected, rtol=0, atol=1e-10)


@pytest.mark.covering("axis level", "wavelet")
@pytest.mark.parametrize("wavelet", TABLE_5)
@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_every_axis_is_pywt(wavelet, level, axis):
    x = signal(8, 12, 20)
    down, up = analysis(torch.from_numpy(x), wavelet, level, axis), synthesis(torch.from_numpy(x), wavelet, level, axis)
    torch.testing.assert_close(down, torch.from_numpy(pywt_analysis(x, wavelet, level, axis)), rtol=0, atol=1e-10)
    torch.testing.assert_close(up, torch.from_numpy(pywt_synthesis(x, wavelet, level, axis)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("wavelet", TABLE_5)
def test_the_order_of_axes_does_not_matter(wavelet):
    x = torch.from_numpy(signal(8, 12))
    one = analysis(synthesis(x, wavelet, axis=0), wavelet, axis=1)
    other = synthesis(analysis(x, wavelet, axis=1), wavelet, axis=0)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.covering(few=40)
@pytest.mark.parametrize("wavelet", ALL)
def test_analysis_undoes_synthesis(wavelet):
    x = torch.from_numpy(signal(3, 14))
    for level in (1, 2):
        back = analysis(synthesis(x, wavelet, level), wavelet, level)
        torch.testing.assert_close(back, x, rtol=0, atol=INVERSE_TOLERANCE.get(wavelet, 1e-9))


@pytest.mark.parametrize("operator", [analysis, synthesis])
@pytest.mark.parametrize("wavelet", TABLE_5)
def test_linear(operator, wavelet):
    x, y = torch.from_numpy(signal(24)), torch.from_numpy(signal(24, seed=1))
    torch.testing.assert_close(
        operator(2.5 * x - 3 * y, wavelet), 2.5 * operator(x, wavelet) - 3 * operator(y, wavelet), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("operator", [analysis, synthesis])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_low_precision_is_computed_in_float32_and_cast_once(operator, dtype):
    x = torch.from_numpy(signal(5, 32)).to(dtype)
    compute = torch.promote_types(dtype, torch.float32)
    out = operator(x, "sym8", 2)
    assert out.dtype == dtype
    torch.testing.assert_close(out, operator(x.to(compute), "sym8", 2).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("level", [0, 1])
def test_the_input_is_left_alone(level):
    x = torch.from_numpy(signal(8))
    before = x.clone()
    analysis(x, "db2", level)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("length", "level", "deepest"), [(7, 1, 0), (6, 2, 1), (12, 3, 2), (1, 1, 0), (0, 1, 0), (2, 4, 1)]
)
def test_odd_sizes_are_named(length, level, deepest):
    with pytest.raises(BadSize, match=rf"multiple of {2**level}, but axis 0 .* at most level {deepest} is possible"):
        analysis(torch.zeros(length), "haar", level)


def test_an_empty_axis_cannot_grow():
    with pytest.raises(BadSize, match="is empty; synthesis needs at least one entry"):
        synthesis(torch.zeros(3, 0), "haar")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analysis(torch.ones(4), "harr"), "unknown wavelet 'harr'.*Did you mean 'haar'"),
        (lambda: analysis(torch.ones(4), "mexh"), "unknown wavelet 'mexh'"),
        (lambda: check_name(3), "unknown wavelet 3"),
        (lambda: analysis(torch.ones(4), level=-1), "level must be a whole number of at least 0, got -1"),
        (lambda: synthesis(torch.ones(4), level=1.5), "level must be .* got 1.5"),
        (lambda: synthesis(torch.ones(4), level=True), "level must be .* got True"),
        (lambda: analysis(torch.ones(4), axis=1), "axis 1 is not one of the 1 axes"),
        (lambda: analysis(torch.ones(4, dtype=torch.long)), r"floating-point torch tensor, got torch.int64"),
    ],
)
def test_wrong_calls_say_why(call, message):
    with pytest.raises(BadOption, match=message):
        call()


# -- maps of any ratio ----------------------------------------------------------------------------

RATIOS = [(3, 4), (384, 512), (512, 768), (768, 1024), (12, 24), (8, 12), (5, 19), (1, 7), (7, 7), (100, 101)]


@pytest.mark.covering("small large", "wavelet")
@pytest.mark.parametrize("wavelet", TABLE_5)
@pytest.mark.parametrize(("small", "large"), RATIOS)
def test_maps_of_any_ratio_are_dual_and_keep_constants(small, large, wavelet):
    assert_unit_gain_and_dual(small, large, wavelet)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(small=st.integers(1, 48), extra=st.integers(0, 150), wavelet=st.sampled_from(ALL))
def test_any_sizes_and_wavelet_are_dual_and_keep_constants(small, extra, wavelet):
    assert_unit_gain_and_dual(small, small + extra, wavelet)


def assert_unit_gain_and_dual(small: int, large: int, wavelet: str) -> None:
    """Rows of both maps sum to one, and shrinking after growing is the identity."""
    grow, shrink = synthesis_map(small, large, wavelet, True), analysis_map(large, small, wavelet, True)
    up, down = grow.dense(), shrink.dense()
    assert up.shape == (large, small)
    assert down.shape == (small, large)
    loose = INVERSE_TOLERANCE.get(wavelet, 1e-8) * max(1, large / small)
    np.testing.assert_allclose(up.sum(1), 1, atol=loose)
    np.testing.assert_allclose(down.sum(1), 1, atol=loose)
    np.testing.assert_allclose(down @ up, np.eye(small), atol=loose)


@pytest.mark.covering(few=40)
@pytest.mark.parametrize("wavelet", ALL)
def test_dyadic_maps_are_the_pure_transform(wavelet):
    for level in (1, 2):
        small, large = 6, 6 << level
        x, y = signal(small), signal(large)
        raw, unit = (synthesis_map(small, large, wavelet, consistent).dense() @ x for consistent in (False, True))
        np.testing.assert_allclose(raw, pywt_synthesis(x, wavelet, level, 0), atol=1e-10)
        np.testing.assert_allclose(unit, raw * 2 ** (level / 2), atol=1e-10)
        raw, unit = (analysis_map(large, small, wavelet, consistent).dense() @ y for consistent in (False, True))
        np.testing.assert_allclose(raw, pywt_analysis(y, wavelet, level, 0), atol=1e-10)
        np.testing.assert_allclose(unit, raw / 2 ** (level / 2), atol=1e-10)


@pytest.mark.covering("small large", "wavelet")
@pytest.mark.parametrize("wavelet", TABLE_5)
@pytest.mark.parametrize(("small", "large"), [(4096, 5120), (4096, 8192), (1024, 4096)])
def test_rows_stay_short_at_large_widths(small, large, wavelet):
    taps = pywt.Wavelet(wavelet).dec_len
    for axis_map in (synthesis_map(small, large, wavelet, True), analysis_map(large, small, wavelet, True)):
        for band in axis_map.bands:
            assert band.index.shape[1] <= taps


@pytest.mark.parametrize(("length", "count"), [(5, 0), (5, 5), (7, 3), (100, 33)])
def test_split_places_are_as_many_as_asked_and_evenly_spread(length, count):
    places = split_places(length, count)
    assert places.sum() == count
    gaps = np.diff(np.flatnonzero(places))
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
