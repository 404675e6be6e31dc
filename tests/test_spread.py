"""Moments, matching and noise of recipes; sums in the wider dtype."""

import math

import pytest
import torch

from transformers_bot.ops.axis_map import identity
from transformers_bot.ops.recipe import Read, Recipe, drawn, matched, moments, run


def test_moments_are_those_of_all_entries_together():
    one, two = torch.arange(6.0).view(2, 3), torch.tensor([10.0, -4.0])
    every = torch.cat([one.flatten(), two]).double()
    assert moments([one, two]) == pytest.approx((float(every.mean()), float(every.std(correction=0))))
    assert math.isnan(moments([one, torch.tensor([torch.nan])])[1])


def test_a_constant_stays_a_constant_when_it_is_matched():
    x = torch.full((4,), 3.0)
    torch.testing.assert_close(matched(x, (3.0, 1e-9), (5.0, 2.0)), torch.full((4,), 5.0))
    torch.testing.assert_close(matched(torch.tensor([1.0, 3.0]), (2.0, 1.0), (0.0, 2.0)), torch.tensor([-2.0, 2.0]))


@pytest.mark.parametrize(("kind", "std"), [("gaussian", 1.0), ("uniform", 3**-0.5)])
def test_noise_is_the_same_for_the_same_words_only(kind, std):
    like = torch.empty(100, 200, dtype=torch.float64)
    one = drawn(kind, "1/name/0", like.shape, like)
    assert torch.equal(one, drawn(kind, "1/name/0", like.shape, like))
    assert not torch.equal(one, drawn(kind, "1/name/1", like.shape, like))
    assert one.dtype == like.dtype
    assert float(one.std()) == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "float64"), ("bfloat16", "float32")])
def test_layers_are_summed_in_the_widest_dtype(dtypes):
    names = {
        Read("w", i, weight): torch.rand(50, generator=torch.Generator().manual_seed(i))
        for i, weight in enumerate((0.3, 0.7))
    }
    stored = {read: x.to(getattr(torch, dtype)) for (read, x), dtype in zip(names.items(), dtypes, strict=True)}
    recipe = Recipe(tuple(stored), (((identity(50),),),))
    made = run(recipe, stored.__getitem__, torch.float64, torch.device("cpu"))
    expected = sum(read.weight * x.double() for read, x in stored.items())
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-15)
