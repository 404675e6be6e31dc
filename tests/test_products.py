"""Products of large matrices: the same numbers as torch's, and grams that are symmetric to the last bit."""

import pytest
import torch

from transformers_bot import products
from transformers_bot.products import LEAF, add_gram, gram, mirrored, product

DTYPES = [torch.float32, torch.float64]


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (200, 300, 150), (513, 1, 2100)])
def test_a_product_is_that_of_torch(shape, dtype):
    rows, columns, entries = shape
    a, b = drawn(rows, entries, dtype=dtype), drawn(columns, entries, dtype=dtype)
    made = product(a, b)
    assert made.dtype == dtype
    expected = a.double() @ b.double().T
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(made.double(), expected, rtol=tolerance, atol=tolerance * entries**0.5)


def test_a_product_of_views_is_that_of_their_copies():
    a, b = drawn(300, 400).T, drawn(800, 300)[::2]
    assert torch.equal(product(a, b), product(a.contiguous(), b.contiguous()))


def test_without_onednn_a_product_is_the_same_up_to_rounding(monkeypatch):
    a, b = drawn(200, 300), drawn(150, 300)
    made = product(a, b)
    monkeypatch.setattr(products, "_by_mkldnn", lambda *_: False)
    torch.testing.assert_close(product(a, b), made, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 7, LEAF, LEAF + 1, 2 * LEAF + 3, 3 * LEAF])
def test_a_gram_is_symmetric_to_the_last_bit(count, dtype):
    x = drawn(count, 40, dtype=dtype)
    made = gram(x)
    assert torch.equal(made, made.T)
    torch.testing.assert_close(made.double(), x.double() @ x.double().T, rtol=1e-5, atol=1e-4)


def test_a_gram_in_pieces_adds_up():
    x = drawn(LEAF + 10, 60)
    total = torch.zeros(len(x), len(x), dtype=torch.float64)
    for part in x.split(25, dim=1):
        add_gram(total, part)
    torch.testing.assert_close(mirrored(total), x.double() @ x.double().T, rtol=1e-5, atol=1e-4)
    assert torch.equal(total, total.T)
