"""Products of large matrices: the same numbers as torch's, and grams that are symmetric to the last bit."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from transformers_bot.ops import blocks
from transformers_bot.ops.blocks import LEAF, add_gram, gram, mirrored, product

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 2, 5, 8])
def test_where_a_tensor_lies_does_not_change_a_bit(offset, dtype):
    a, b = drawn(200, 300, dtype=dtype), drawn(150, 300, dtype=dtype)
    elsewhere = torch.empty(a.numel() + offset, dtype=dtype)[offset:].view(a.shape).copy_(a)
    assert elsewhere.data_ptr() % 64 != a.data_ptr() % 64 or offset * a.element_size() % 64 == 0
    assert torch.equal(product(elsewhere, b), product(a, b))
    assert torch.equal(product(b, elsewhere), product(b, a))
    assert torch.equal(gram(elsewhere), gram(a))


def test_without_onednn_a_product_is_the_same_up_to_rounding(monkeypatch):
    a, b = drawn(200, 300), drawn(150, 300)
    made = product(a, b)
    monkeypatch.setattr(blocks, "_by_onednn", lambda *_: False)
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


def test_a_gram_is_added_by_its_factor():
    x = drawn(2 * LEAF + 3, 20)
    total = torch.ones(len(x), len(x))
    add_gram(total, x, 0.25)
    torch.testing.assert_close(mirrored(total), 1 + 0.25 * (x @ x.T), rtol=1e-5, atol=1e-4)


CPU = torch.device("cpu")


@contextlib.contextmanager
def allowed(precision: str):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


by_device = pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="torch 2.9 brought a setting for every kind of device"
)


@by_device
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_a_product_is_exact_whatever_is_allowed(precision):
    a, b = drawn(300, 1000), drawn(200, 1000)
    exact = product(a, b)
    with allowed(precision):
        before = setting()
        assert torch.equal(product(a, b), exact)
        with pytest.raises(RuntimeError):
            product(a, drawn(200, 999))
        assert setting() == before


@by_device
def test_the_setting_holds_until_the_last_thread_leaves():
    together = Barrier(2)

    def leaves() -> None:
        with blocks.exact_products(CPU):
            together.wait()

    def stays() -> str:
        with blocks.exact_products(CPU):
            together.wait()
            gone.result()
            return setting()

    with allowed("medium"), ThreadPoolExecutor(2) as pool:
        before = setting()
        gone = pool.submit(leaves)
        assert pool.submit(stays).result() in ("ieee", "none")
        assert setting() == before


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("permuted", [False, True])
def test_along_an_axis_it_is_the_tensor_product(dim, permuted):
    shape, matrix = [3, 4, 5], drawn(7, [3, 4, 5][dim], dtype=torch.float64)
    x = drawn(*shape, dtype=torch.float64)
    expected = torch.tensordot(matrix, x, dims=([1], [dim])).movedim(0, dim)
    out = torch.empty(expected.shape, dtype=x.dtype)
    out = out.movedim(0, -1).contiguous().movedim(-1, 0) if permuted else out
    assert blocks.along(matrix, x, dim, out) is out
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
