"""Memory that a resize certainly needs is asked for before the work; what would fit is never refused."""

import os

import pytest
from families import SMALLER, size_fields

from transformers_bot import BoTError, BoTModelForCausalLM, TooLittleMemory, compat, resize_checkpoint

GPT2 = ("gpt2", "GPT2LMHeadModel")


def test_room_is_the_least_of_machine_container_and_own_limit(tmp_path, monkeypatch):
    whole = compat.available()
    monkeypatch.setattr(compat, "GROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 7\nactive_file 100000\ninactive_file 200000\n")
    assert compat.available() == 800_000 < whole
    monkeypatch.setattr(compat, "_own_limit", lambda: [1000])
    assert compat.available() == 1000
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(compat, "_own_limit", list)
    assert compat.available() > 10_000_000


@pytest.mark.slow
def test_a_tensor_that_cannot_be_held_is_refused_before_the_work(saved, tmp_path, monkeypatch):
    source, _ = saved(*GPT2)
    wide = {"n_embd": 768, "n_head": 3, "n_inner": 4000}
    largest = 8 * 768 * 4000  # of float64
    monkeypatch.setattr(compat, "available", lambda: largest - 1)
    for call in (resize_checkpoint, lambda source, _, **sizes: BoTModelForCausalLM.from_pretrained(source, **sizes)):
        with pytest.raises(TooLittleMemory, match=r"mlp\.c_(fc|proj)\.weight .* smaller sizes") as caught:
            call(source, tmp_path / "out", **wide)
        assert isinstance(caught.value, MemoryError)
        assert isinstance(caught.value, BoTError)
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(compat, "available", lambda: largest)
    resize_checkpoint(source, tmp_path / "out", **wide)


def test_the_principal_basis_is_refused_where_the_plain_one_fits(saved, tmp_path, monkeypatch):
    source, built = saved(*GPT2)
    width = built.model.config.n_embd
    monkeypatch.setattr(compat, "available", lambda: 4 * 8 * width**2 - 1)
    sizes = {**size_fields("gpt2", SMALLER), "n_inner": 1}
    with pytest.raises(TooLittleMemory, match="'basis': 'plain'"):
        resize_checkpoint(source, tmp_path / "out", **sizes)
    resize_checkpoint(source, tmp_path / "out", bot_config={"basis": "plain"}, **sizes)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_an_allocation_that_fails_on_the_way_is_named_and_leaves_nothing(saved, tmp_path, monkeypatch, error):
    def fails(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("transformers_bot.tools.resize_checkpoint.write_weights", fails)
    with pytest.raises(TooLittleMemory, match=r"ran out of memory: it takes up to .* MB"):
        resize_checkpoint(saved(*GPT2)[0], tmp_path / "out", **size_fields("gpt2", SMALLER))
    assert os.listdir(tmp_path) == []


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shape"), compat.told_of_memory("This", 1):
        raise RuntimeError("shape")
