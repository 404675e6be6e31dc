"""No entry draws from the generators of its caller or seeds one: torch's of any device, Python's, numpy's.

Whoever trains after a resize gets the numbers that came without it. What draws as transformers does, such as new heads
and `method="scratch"`, is the exception, and follows `torch.manual_seed`.
"""

import random

import learned
import numpy as np
import pytest
import torch
from families import resized_config
from test_batches import TEXT, with_tokenizer
from transformers import AutoModelForCausalLM

import transformers_bot
from transformers_bot import BoTModelForCausalLM, BoTModelForMaskedLM, adapters, cli
from transformers_bot.methods import METHODS
from transformers_bot.tools import inspecting
from transformers_bot.tools.conformance.check import check

DEVICES = (torch.cuda, torch.xpu, torch.mps)
SEEDING = ("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state", "set_rng_state_all")
GROWN = {"n_layer": 3, "n_embd": 24, "n_head": 6, "n_inner": 48}
ONLY_DEPTH = ("stack", "interpolate", "depth_upscale")
ONLY_SHRINKS = ("importance", "weight_selection")


@pytest.fixture
def untouched(monkeypatch):
    """Fails where a generator is another after the test than here, or one of a device has been seeded."""
    seeded = []
    for device in DEVICES:
        for name in SEEDING:
            if hasattr(device, name):
                said = f"{device.__name__}.{name}"
                monkeypatch.setattr(device, name, lambda *_, said=said, **__: seeded.append(said))
    random.seed(1)
    np.random.seed(2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        before = _states()
        yield
        after = _states()
    assert [name for name in before if before[name] != after[name]] == []
    assert seeded == []


def _states() -> dict[str, object]:
    numpy = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": (numpy["state"]["key"].tolist(), numpy["state"]["pos"], numpy["has_gauss"]),
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder, its config and a labelled batch."""
    return learned.gpt2(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    """A result of `resize_checkpoint` with noise in it."""
    out = tmp_path_factory.mktemp("written") / "out"
    transformers_bot.resize_checkpoint(source[0], out, **GROWN, bot_config={"detail": "gaussian"})
    return out


def loaded(source, _, **keywords):
    return BoTModelForCausalLM.from_pretrained(source[0], **{**GROWN, **keywords})


def integrated(source, _):
    with transformers_bot.integration({"detail": "uniform"}):
        AutoModelForCausalLM.from_pretrained(source[0], config=resized_config(source[1], layer=3, hidden=24, heads=6))


def read(source, tmp_path):
    with_tokenizer(tmp_path)
    (tmp_path / "corpus.txt").write_text(TEXT)
    assert transformers_bot.read_batches(tmp_path, tmp_path / "corpus.txt", config=source[1], seed=4)


# what is called -> a call
ENTRIES = {
    "from_pretrained": loaded,
    "from_pretrained, noise": lambda *where: loaded(*where, bot_config={"detail": "gaussian", "seed": 5}),
    "from_pretrained, filtered noise": lambda *where: loaded(
        *where, bot_config={"detail": "uniform", "wavelet": "db2", "gain": "raw"}
    ),
    "from_pretrained, calibrated": lambda *where: loaded(*where, n_embd=6, n_inner=10, calibration=[where[0][2]]),
    "from_pretrained, same size": lambda source, _: BoTModelForCausalLM.from_pretrained(source[0]),
    "plan": lambda source, _: transformers_bot.plan(source[0], **GROWN),
    "plan of a class": lambda source, _: BoTModelForCausalLM.plan(source[0], **GROWN),
    "resize_checkpoint": lambda source, place: transformers_bot.resize_checkpoint(source[0], place / "out", **GROWN),
    "resize_checkpoint, fitted": lambda source, place: transformers_bot.resize_checkpoint(
        source[0], place / "out", **GROWN, method="ligo", fit={"batches": [source[2]], "steps": 2}
    ),
    "integration": integrated,
    "suggest": lambda source, _: transformers_bot.suggest(source[0], ratio=0.5),
    "inspect": lambda source, _: inspecting.inspect(source[0]),
    "memory_bound": lambda source, _: transformers_bot.memory_bound(transformers_bot.plan(source[0], **GROWN)),
    "read_batches": read,
    "adapters.get": lambda *_: adapters.get("vit"),
    "check": lambda source, _: check(adapters.get("gpt2"), source[1]),
    "wavelets": lambda *_: transformers_bot.wavelets.analysis(torch.ones(4, 8)),
    "command line": lambda source, place: [
        cli.main([command, source[0], *more])
        for command, more in {
            "plan": ["--set", "n_layer=1"],
            "resize": [str(place / "out"), "--set", "n_embd=6", "--set", "n_head=3"],
            "suggest": ["--ratio", "0.5"],
            "inspect": [],
        }.items()
    ],
}


@pytest.mark.covering(few=4)
@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("entry", ENTRIES)
def test_no_entry_touches_a_generator(source, tmp_path, entry):
    ENTRIES[entry](source, tmp_path)


@pytest.mark.covering(few=3)
@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"scratch"}))
def test_no_method_touches_a_generator(source, method):
    sizes = {"n_layer": 3} if method in ONLY_DEPTH else GROWN
    sizes = {"n_embd": 6, "n_inner": 10, "n_layer": 1} if method in ONLY_SHRINKS else sizes
    more = {"calibration": [source[2]]} if method == "importance" else {}
    BoTModelForCausalLM.from_pretrained(source[0], **sizes, method=method, **more)


@pytest.mark.slow
@pytest.mark.usefixtures("untouched")
def test_verifying_touches_no_generator(source, written):
    assert transformers_bot.verify(written, source[0]).equal


@pytest.mark.slow
def test_fitting_touches_no_generator(source, request):
    model = BoTModelForCausalLM.from_pretrained(source[0], **GROWN, method="mango").train()
    request.getfixturevalue("untouched")
    transformers_bot.fit(model, [source[2]], steps=2, source=source[0])


@pytest.mark.slow
def test_new_heads_are_drawn_as_transformers_draws_them(saved):
    folder, _ = saved("bert", "BertModel")
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            model = BoTModelForMaskedLM.from_pretrained(folder, hidden_size=24, num_attention_heads=6)
            drawn.append(model.cls.predictions.transform.dense.weight.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
