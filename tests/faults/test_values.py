"""NaN and infinity are found exactly, at their first place, in little memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from watching import watched

from transformers_bot.io import weights
from transformers_bot.io.weights import find_nonfinite, nonfinite_message

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.complex64)
BAD = (float("nan"), float("inf"), float("-inf"))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 64 elements, so that small tensors have many."""
    monkeypatch.setattr(weights, "BLOCK", 64)


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@given(
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=4),
    places=st.lists(st.integers(0, 10**6), max_size=3),
    bad=st.sampled_from(BAD),
    turned=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_first_bad_element_is_found(dtype, shape, places, bad, turned):
    tensor = torch.ones(shape, dtype=torch.complex64 if dtype.is_complex else torch.float32)
    for place in places:
        tensor.view(-1)[place % tensor.numel()] = bad
    tensor = tensor.to(dtype)
    if turned:
        tensor = tensor.permute(tuple(reversed(range(tensor.dim()))))
    wide = tensor if dtype.is_complex else tensor.to(torch.float32)
    expected = [tuple(place) for place in torch.nonzero(~torch.isfinite(wide)).tolist()][:1]
    assert list(find_nonfinite({"t": tensor}).values()) == expected


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float32, 3e38), (torch.float64, 1.7e308), (torch.float16, 65504.0)]
)
def test_honest_values_whose_sum_overflows_are_no_fault(dtype, value):
    assert find_nonfinite({"t": torch.full((7, 100), value, dtype=dtype)}) == {}
    mixed = torch.full((7, 100), value, dtype=dtype)
    mixed[5, 3] = float("nan")
    assert find_nonfinite({"t": mixed}) == {"t": (5, 3)}


def test_infinities_of_both_signs_do_not_cancel():
    assert find_nonfinite({"t": torch.tensor([1.0, float("inf"), float("-inf")])}) == {"t": (1,)}


def test_what_holds_no_fractions_has_none():
    whole = {"ids": torch.arange(3), "mask": torch.ones(2, dtype=torch.bool), "empty": torch.ones(0, 3)}
    assert find_nonfinite({**whole, "meta": torch.ones(3, device="meta")}) == {}


@pytest.mark.slow
def test_no_copy_is_made(monkeypatch):
    monkeypatch.undo()
    for dtype in (torch.float32, torch.float16):
        tensor = torch.ones(100_000_000 if dtype is torch.float16 else 50_000_000, dtype=dtype)  # 200 MB
        tensor[-1] = float("nan")
        with watched() as seen:
            assert find_nonfinite({"t": tensor}) == {"t": (len(tensor) - 1,)}
        assert seen.megabytes < 64


def test_the_message_names_ten_and_counts_the_rest():
    found = {f"h.{number}.w": (0, 17) for number in range(12)}
    text = nonfinite_message(found)
    assert text.startswith("12 tensors hold NaN or Inf: 'h.0.w' (first at [0, 17]), 'h.1.w'")
    assert text.endswith("'h.9.w' (first at [0, 17]) and 2 more")
    assert nonfinite_message({"\x1b[31m": (1,)}) == r"1 tensor holds NaN or Inf: '\x1b[31m' (first at [1])"
