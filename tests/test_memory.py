"""Memory between steps: given back, used again, and never a result's own; searches for cycles that wait."""

import gc
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import transformers_bot
from transformers_bot import BoTModel, auto, compat
from transformers_bot.auto import no_full_search
from transformers_bot.compat import Releasing
from transformers_bot.ops.axis_map import from_dense, gather, identity
from transformers_bot.ops.blocks import HELD, Scratch
from transformers_bot.ops.recipe import Cache, Detail, Read, Recipe, apply, run
from transformers_bot.run import loading, opening, writing

CPU = torch.device("cpu")


def test_memory_is_given_back_once_in_so_many_bytes(monkeypatch):
    given = []
    monkeypatch.setattr(compat, "release", lambda: given.append(1))
    releasing = Releasing(100)
    counts = []
    for size in (40, 59, 1, 99, 1, 250):
        releasing.made(size)
        counts.append(len(given))
    assert counts == [0, 0, 1, 1, 2, 3]


def test_scratch_is_the_same_memory_for_one_use_and_another_for_another():
    scratch = Scratch()
    first = scratch.empty("a", (4, 5), torch.float32, CPU)
    smaller = scratch.empty("a", (3, 2), torch.float32, CPU)
    other, wider = scratch.empty("b", (3,), torch.float32, CPU), scratch.empty("a", (3,), torch.float64, CPU)
    assert first.shape == (4, 5)
    assert smaller.shape == (3, 2)
    assert smaller.is_contiguous()
    assert smaller.data_ptr() == first.data_ptr()
    assert len({one.data_ptr() for one in (first, other, wider)}) == 3
    assert wider.dtype == torch.float64
    assert scratch.empty("none", (0, 3), torch.float32, CPU).shape == (0, 3)
    larger = scratch.empty("a", (50, 5), torch.float32, CPU)
    assert scratch.empty("a", (4, 5), torch.float32, CPU).data_ptr() == larger.data_ptr()


def test_scratch_holds_nothing_that_is_large_or_elsewhere():
    scratch = Scratch()
    scratch.empty("b", (3,), torch.float32, CPU)
    entries = HELD // 4 + 1
    assert scratch.empty("a", (entries,), torch.float32, CPU).numel() == entries
    assert not scratch._held
    assert scratch.empty("a", (3,), torch.float32, torch.device("meta")).is_meta
    assert not scratch._held


def test_results_of_steps_that_share_memory_are_those_of_steps_alone():
    generator = torch.Generator().manual_seed(0)
    weights = {Read("w", i): torch.randn(6, 8, 4, generator=generator) for i in range(4)}
    dense = from_dense(torch.randn(40, 4, generator=generator, dtype=torch.float64).numpy())
    axes = ((gather([5, 0, 1], 6),),), ((gather([1, 1, 2, 7, 0], 8),),), ((dense,),)
    noise = Detail("gaussian", 1.0, (), (), (), 0, "w", None, 1, ((gather([0, 2, 0, 1, 1], 3),),))
    recipes = [Recipe((read,), axes, replace(noise, layer=read.layer)) for read in weights]
    shared = Cache()
    together = [run(one, weights.__getitem__, torch.float32, CPU, shared) for one in recipes]
    alone = [run(one, weights.__getitem__, torch.float32, CPU) for one in recipes]
    assert {"drawn", "noise", 0, 1} <= {use for use, _ in shared.scratch._held}
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one, other)
    assert len({one.untyped_storage().data_ptr() for one in together}) == len(together)


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ((("few", 30), ("few", 20)), [1, 0]),  # what shrinks most
        ((("few", 60), ("few", 80)), [0, 1]),  # what grows least
        ((("few", 60), ("few", 30)), [1, 0]),
        ((("dense", 30), ("few", 30)), [1, 0]),  # the dense one reads less then
        ((("dense", 4), ("few", 39)), [0, 1]),  # so little is left that the other one can wait
        ((("few", 60), ("dense", 60)), [1, 0]),  # before there is more to read
        ((("dense", 20), ("few", 60)), [0, 1]),
    ],
)
def test_the_order_of_axes_is_that_of_least_work(maps, expected):
    axes = [_map(kind, length) for kind, length in maps]
    noting = _Noting()
    apply(torch.zeros(40, 40), tuple(((one,),) for one in axes), noting)
    assert noting.done == expected
    assert _work(axes, expected) == min(_work(axes, [0, 1]), _work(axes, [1, 0]))


class _Noting:
    def __init__(self):
        self.done = []

    def mapped(self, dim, *_):
        self.done.append(dim)


def _map(kind, length):
    if kind == "few":
        return gather([i % 40 for i in range(length)], 40)
    return from_dense(torch.rand(length, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy())


def _work(axes, order):
    first, second = (axes[dim] for dim in order)
    return 40 * 40 * first.work + 40 * first.target * second.work


def test_noise_is_added_to_no_tensor_of_the_source():
    stored = torch.zeros(6, 4)
    same = (((identity(6),),), ((identity(4),),))
    detail = Detail("gaussian", 1.0, (), (), (Read("like", None),), 0, "w", None, 1, ((identity(4),),))
    recipe = Recipe((Read("w", None),), same, detail)
    tensors = {Read("w", None): stored, Read("like", None): torch.arange(24.0).view(6, 4)}
    made = run(recipe, tensors.__getitem__, torch.float32, CPU)
    assert float(made.std()) > 1
    assert not stored.any()


# Python 3.14 searches in small steps and has no third threshold.
SEARCHES_ALL = pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python has no full searches")


@SEARCHES_ALL
def test_no_full_search_ends_with_the_last_that_asked_for_it():
    before = gc.get_threshold()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with no_full_search():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with no_full_search():
        assert gc.get_threshold()[:2] == before[:2]
        assert gc.get_threshold()[2] > 10**6
        thread.start()
        inside.wait()
    assert gc.get_threshold()[2] > 10**6
    leave.set()
    thread.join()
    assert gc.get_threshold() == before


@SEARCHES_ALL
def test_a_call_puts_off_full_searches(monkeypatch):
    seen = []
    monkeypatch.setattr(loading, "load", lambda *_: seen.append(gc.get_threshold()))
    before = gc.get_threshold()
    BoTModel.from_pretrained("any", n_embd=8)
    assert seen == [(*before[:2], auto.NEVER)]
    assert gc.get_threshold() == before


@SEARCHES_ALL
def test_a_threshold_that_somebody_sets_meanwhile_stays():
    before = gc.get_threshold()
    try:
        with no_full_search():
            gc.set_threshold(800, 11, 12)
        assert gc.get_threshold() == (800, 11, 12)
    finally:
        gc.set_threshold(*before)


def test_a_resize_settles_what_is_used_again_before_it_opens_anything(monkeypatch):
    asked = []
    monkeypatch.setattr(opening, "reuse", lambda: asked.append(1))
    monkeypatch.setattr(opening, "check_request", lambda _: (_ for _ in ()).throw(LookupError("opened")))
    request = SimpleNamespace(name="any", keywords=None, subfolder=None)
    with pytest.raises(LookupError, match="opened"):
        opening.open_resize(request)
    assert asked == [1]
    compat.reuse()


def test_a_call_that_fails_leaves_the_search_as_it_was(tmp_path):
    before = gc.get_threshold()
    with pytest.raises(Exception, match="nowhere"):
        BoTModel.from_pretrained(str(tmp_path / "nowhere"), n_embd=8)
    assert gc.get_threshold() == before
    assert gc.isenabled()


def test_memory_is_released_by_the_bytes_of_the_largest_tensor(tmp_path, monkeypatch):
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=50, n_positions=6)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "source")
    limits = []

    class Counted(Releasing):
        def __init__(self, limit: int) -> None:
            limits.append(limit)
            super().__init__(limit)

    monkeypatch.setattr(writing, "Releasing", Counted)
    transformers_bot.resize_checkpoint(tmp_path / "source", tmp_path / "out", n_layer=3, tokenizer=False)
    assert limits == [4 * 50 * 8]  # float32
