"""One request for a whole call: what it says is read once, planned once, and refused in words where it cannot be."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from families import resized_config
from transformers import GPT2Config

import transformers_bot
from transformers_bot import (
    BadKeyword,
    BadOption,
    BadSize,
    BoTConfig,
    BoTError,
    BoTModelForCausalLM,
    resize_checkpoint,
)

PACKAGE = str(Path(transformers_bot.__file__).parent)
GPT2 = ("gpt2", "GPT2LMHeadModel")
HUGE = 10**5000  # Python itself refuses to write it


def entered(call) -> Counter:
    """How often each function of the package is entered while `call()` runs."""
    names: Counter = Counter()

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            names[frame.f_code.co_name] += 1

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names


CALLS = {
    "from_pretrained": lambda source, _, **sizes: BoTModelForCausalLM.from_pretrained(source, **sizes),
    "resize_checkpoint": lambda source, out, **sizes: transformers_bot.resize_checkpoint(source, out, **sizes),
    "plan": lambda source, _, **sizes: transformers_bot.plan(source, **sizes),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_planned_once_and_asks_for_sizes_once_a_side(saved, tmp_path, name):
    source, _ = saved(*GPT2)
    names = entered(lambda: CALLS[name](source, tmp_path / "out", n_layer=1, n_embd=6))
    assert names["make_plan"] == 1
    assert names["role_sizes"] == 2
    assert names["sort_keywords"] == 1


def test_verify_and_the_integration_plan_once(saved, tmp_path):
    import transformers

    source, built = saved(*GPT2)
    transformers_bot.resize_checkpoint(source, tmp_path / "out", n_layer=1)
    names = entered(lambda: transformers_bot.verify(tmp_path / "out", source))
    assert (names["make_plan"], names["role_sizes"]) == (1, 2)
    wanted = resized_config(built.config, layer=3, hidden=24, heads=6)
    with transformers_bot.integration():
        names = entered(lambda: transformers.GPT2LMHeadModel.from_pretrained(source, config=wanted))
    assert (names["make_plan"], names["role_sizes"]) == (1, 2)


def test_an_adapter_registered_meanwhile_changes_no_call_that_runs(saved, monkeypatch):
    """The adapter travels with the request: the registry may forget it."""
    from transformers_bot import architectures
    from transformers_bot.run import loading

    source, _ = saved(*GPT2)
    real = loading.open_resize
    monkeypatch.setattr(loading, "open_resize", lambda request: (architectures.ADAPTERS.pop("gpt2"), real(request))[1])
    monkeypatch.setattr(architectures, "ADAPTERS", dict(architectures.ADAPTERS))
    model = BoTModelForCausalLM.from_pretrained(source, n_layer=3)
    assert "gpt2" not in architectures.ADAPTERS
    assert model.config.n_layer == 3


# -- numbers that nothing can write ----------------------------------------------------------------

SAID = {
    "revision": HUGE,
    "n_layer": HUGE,
    "config": {"n_layer": [HUGE]},
    "bot_config": {"gain": HUGE},
    "method": HUGE,
    "nonfinite": HUGE,
    "dtype": HUGE,
    "strict": HUGE,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("keyword", SAID)
def test_a_number_of_thousands_of_digits_is_refused_in_few_words(saved, tmp_path, name, keyword):
    source, _ = saved(*GPT2)
    given = {"n_layer": 3, keyword: SAID[keyword]}
    if keyword == "config":
        del given["n_layer"]
    with pytest.raises(BadOption, match="a number of thousands of digits") as caught:
        CALLS[name](source, tmp_path / "out", **given)
    assert str(caught.value).startswith({"config": "n_layer", "bot_config": "gain"}.get(keyword, keyword))
    assert len(str(caught.value)) < 120


def test_also_where_no_keywords_are_sorted(saved, tmp_path):
    source, built = saved(*GPT2)
    config = resized_config(built.config, layer=3)
    config.n_embd = HUGE
    grown = BoTModelForCausalLM.from_pretrained(source, n_layer=3, method="ligo")
    calls = {
        "task": lambda: transformers_bot.plan(source, n_layer=3, task=HUGE),
        "max_shard_size": lambda: transformers_bot.resize_checkpoint(
            source, tmp_path / "out", n_layer=3, max_shard_size=HUGE
        ),
        "revision of a load": lambda: BoTModelForCausalLM.from_pretrained(source, revision=HUGE),
        "a source's config": lambda: transformers_bot.plan(config, n_layer=2),
        "a target's config": lambda: transformers_bot.plan(source, config),
        "options": lambda: BoTConfig(gain=HUGE),
        "enable": lambda: transformers_bot.enable(method=HUGE),
        "integration": lambda: transformers_bot.integration({"seed": HUGE}).__enter__(),
        "verify": lambda: transformers_bot.verify(source, revision=HUGE),
        "fit": lambda: transformers_bot.fit(grown, [], HUGE),
    }
    for call in calls.values():
        with pytest.raises(BadOption, match="thousands of digits"):
            call()


def test_an_unknown_option_is_named_with_its_nearest():
    with pytest.raises(BadKeyword, match=r"has no option 'wavlet'.* Did you mean 'wavelet'\?") as caught:
        BoTConfig(wavlet="haar")
    assert isinstance(caught.value, BoTError)
    assert isinstance(caught.value, TypeError)
    assert "wavelet" in BoTConfig.__init__.__annotations__


# -- generators ------------------------------------------------------------------------------------


def test_no_call_seeds_a_generator_of_the_caller(saved, tmp_path, monkeypatch):
    """Neither the CPU's state nor any GPU's: `torch.manual_seed` would seed those of all devices."""
    source, built = saved(*GPT2)
    seeded = []
    holders = (torch, "manual_seed"), (torch.cuda, "manual_seed"), (torch.cuda, "manual_seed_all")
    for module, name in (*holders, (torch.random, "manual_seed")):
        monkeypatch.setattr(module, name, seeded.append)
    before = torch.get_rng_state()
    batches = [{**built.inputs, "labels": built.inputs["input_ids"]}]
    out = tmp_path / "out"
    transformers_bot.resize_checkpoint(source, out, n_layer=3, method="ligo", fit={"batches": batches, "steps": 1})
    grown = BoTModelForCausalLM.from_pretrained(source, n_layer=3, method="ligo")
    transformers_bot.fit(grown, batches, steps=1)
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), before)


WRONG = {
    "dtype": {"dtype": "float31"},
    "method": {"method": "bott"},
    "option": {"bot_config": {"wavelet": "haarr"}},
    "nonfinite": {"nonfinite": "ignore"},
    "strict": {"strict": 1},
    "size": {"n_head": 3},
    "field": {"n_embd": "many"},
}
WRONG_OF_FOLDERS = {
    "tokenizer": {"tokenizer": "yes"},
    "modules": {"modules": None},
    "shards": {"max_shard_size": "2 boxes"},
    "overwrite": {"overwrite": "always"},
    "fit": {"fit": {"steps": 1}},
}


@pytest.mark.parametrize("wrong", [*WRONG.values(), *WRONG_OF_FOLDERS.values()], ids=[*WRONG, *WRONG_OF_FOLDERS])
def test_a_call_is_checked_before_weights_are_looked_for(tmp_path, wrong):
    """The source has a config.json and no weights: only an error of the call itself can come first."""
    GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11).save_pretrained(tmp_path / "source")
    calls = [lambda **fields: resize_checkpoint(tmp_path / "source", tmp_path / "out", **fields)]
    if wrong in WRONG.values():
        calls += [lambda **fields: BoTModelForCausalLM.from_pretrained(tmp_path / "source", **fields)]
    for call in calls:
        with pytest.raises((BadOption, BadSize)):
            call(**{"n_layer": 1, **wrong})
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("device_map", ["cuda:99", {"": "cuda:99"}, torch.device("cuda", 99)], ids=str)
def test_a_device_that_is_not_here_is_refused_before_weights_are_looked_for(tmp_path, device_map):
    GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11).save_pretrained(tmp_path)
    with pytest.raises(BadOption, match=r"device_map names cuda:99, and torch sees \d+ CUDA devices"):
        BoTModelForCausalLM.from_pretrained(tmp_path, n_layer=1, device_map=device_map)
