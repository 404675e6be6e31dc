"""Many threads get what one gets, and a process keeps everything that all of its threads share."""

import contextlib
import gc
import hashlib
import logging
import os
import random
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import learned
import pytest
import torch
from families import resized_config
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, initialization
from transformers.utils import logging as library

import transformers_bot
from transformers_bot import BoTModelForCausalLM, BoTModelForMaskedLM
from transformers_bot.compat import building, drawn_from, no_bars, quiet
from transformers_bot.learned import fitting
from transformers_bot.methods import METHODS
from transformers_bot.tools import inspecting

GPT2, BERT = ("gpt2", "GPT2LMHeadModel"), ("bert", "BertForMaskedLM")


def shared_state() -> dict[str, object]:
    """Everything that transformers, torch and Python keep for a whole process and that a call could leave changed."""
    modules = {name: sys.modules[name] for name in initialization.TORCH_MODULES_TO_PATCH if name in sys.modules}
    loggers = {name: one for name, one in logging.root.manager.loggerDict.items() if name.startswith("transformers")}
    methods = ("from_pretrained", "tie_weights", "init_weights", "initialize_weights", "get_init_context")
    return {
        "initialising": {
            (name, function): getattr(module, function, None)
            for name, module in modules.items()
            for function in initialization.TORCH_INIT_FUNCTIONS
        },
        "methods": {name: PreTrainedModel.__dict__.get(name) for name in methods},
        "torch": (torch.get_default_dtype(), torch.linspace, torch.utils._device.CURRENT_DEVICE),
        "precision": (torch.get_float32_matmul_precision(), _onednn_precision()),
        "TF32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "generators": (torch.get_rng_state().tolist(), random.getstate()),
        "verbosity": (library.get_verbosity(), library.is_progress_bar_enabled(), getattr(library, "_tqdm_hook", None)),
        "filters": {name: list(one.filters) for name, one in loggers.items() if isinstance(one, logging.Logger)},
        "gc": (gc.get_threshold(), gc.isenabled()),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


def _onednn_precision() -> str | None:
    """A setting that came with torch 2.9."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return None if matmul is None else matmul.fp32_precision


def digest(state: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(name.encode() + tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def calls(saved, tmp_path_factory):
    """Name -> a call that gives something comparable; each can be made again and again."""
    (gpt2, _), (bert, masked) = saved(*GPT2), saved(*BERT)
    place, larger = tmp_path_factory.mktemp("written"), resized_config(masked.config, hidden=24, heads=6, ffn=40)
    transformers_bot.resize_checkpoint(gpt2, place / "known", n_layer=3)

    def loaded(factory, source, **keywords):
        return lambda: digest(factory.from_pretrained(source, **keywords).state_dict())

    def written():
        out = Path(place, f"{threading.get_ident()}-{random.SystemRandom().random()}")
        transformers_bot.resize_checkpoint(bert, out, num_hidden_layers=3, task="sequence-classification")
        return [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in ("model.safetensors", "config.json")]

    def integrated():
        with transformers_bot.integration({"seed": 3}):
            resized = AutoModelForMaskedLM.from_pretrained(bert, config=larger)
            plain = AutoModelForCausalLM.from_pretrained(gpt2)
        return [digest(model.state_dict()) for model in (resized, plain)]

    return {
        "plan": lambda: str(transformers_bot.plan(gpt2, n_layer=3, n_embd=24)),
        "grow": loaded(BoTModelForCausalLM, gpt2, n_layer=3, n_embd=24),
        "shrink": loaded(BoTModelForMaskedLM, bert, hidden_size=6),
        "same size": loaded(BoTModelForCausalLM, gpt2),
        "resize": written,
        "verify": lambda: transformers_bot.verify(place / "known", gpt2).to_dict(),
        "suggest": lambda: [one.to_dict() for one in transformers_bot.suggest(gpt2, ratio=0.5)],
        "inspect": lambda: str(inspecting.inspect(bert)),
        "integration": integrated,
    }


@pytest.mark.slow
def test_eight_threads_get_what_one_gets_and_leave_nothing_behind(calls):
    expected = {name: call() for name, call in calls.items()}
    names = list(calls) * 3
    random.Random(0).shuffle(names)
    before, ready = shared_state(), threading.Barrier(8)
    with ThreadPoolExecutor(8, initializer=ready.wait) as pool:
        found = list(pool.map(lambda name: (name, calls[name]()), names))
    assert [name for name, result in found if result != expected[name]] == []
    after = shared_state()
    assert [kind for kind in before if before[kind] != after[kind]] == []


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("name", ["plan", "grow", "shrink", "resize", "verify", "suggest", "inspect", "integration"])
def test_no_call_changes_what_a_process_shares(calls, name):
    before = shared_state()
    calls[name]()
    after = shared_state()
    assert [kind for kind in before if before[kind] != after[kind]] == []


GROWS, DEEPENS = ("ligo", "mango", "lemon", "fpi", "aki", "tile"), ("stack", "interpolate", "depth_upscale")


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("method", [*METHODS, "bot, fitted"])
def test_no_result_depends_on_the_default_dtype_which_other_threads_set(saved, method):
    # from_pretrained of transformers sets it for the whole process, in any thread.
    folder, _ = saved("gpt2", "GPT2LMHeadModel", dtype=torch.float32, ffn=24)
    asked = f"tile+{method}" if method in DEEPENS else method.split(",")[0]
    sizes = {"n_layer": 3, "n_embd": 24, "n_inner": 48} if method in (*GROWS, *DEEPENS) else {"n_layer": 1, "n_embd": 6}
    keywords = {"method": asked, **sizes}
    if method in ("bot, fitted", "importance"):
        keywords["calibration"] = [{"input_ids": torch.arange(10).view(2, 5)}]

    def resized():
        torch.manual_seed(0)
        return digest(BoTModelForCausalLM.from_pretrained(folder, **keywords).state_dict())

    with torch.random.fork_rng(devices=[]):
        expected = resized()
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            found = resized()
        finally:
            torch.set_default_dtype(before)
    assert found == expected


def test_plans_need_no_turn_while_another_thread_builds(calls):
    # A thread that holds the right to build waits for the disk, or for the Hub.
    with building(), ThreadPoolExecutor(1) as pool:
        for name in ("plan", "suggest"):
            assert pool.submit(calls[name]).result(timeout=60) == calls[name]()


def test_what_other_threads_do_with_torch_is_not_touched_while_a_plan_is_made(calls):
    # Layers that are made beside plans are initialised, and the numbers drawn for them are not drawn again.
    stop, state = threading.Event(), torch.get_rng_state()

    def plans():
        while not stop.is_set():
            calls["plan"]()

    torch.manual_seed(5)
    expected = [torch.nn.Linear(8, 8).weight.detach().clone() for _ in range(300)]
    torch.manual_seed(5)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(plans) for _ in range(2)]
        found = [torch.nn.Linear(8, 8).weight.detach().clone() for _ in range(300)]
        stop.set()
        assert [one.result() for one in running] == [None, None]
    torch.set_rng_state(state)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_muting_hides_messages_and_bars_of_this_thread_alone(monkeypatch):
    monkeypatch.setattr(library, "_tqdm_active", True)  # a command line that ran in this process has switched it off
    shown, bars = [], {}
    logger = logging.getLogger("transformers.modeling_utils")
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    logger.addHandler(handler)
    steps = threading.Barrier(2)

    def other():
        steps.wait()
        logger.warning("theirs")
        bars["theirs"] = type(library.tqdm([]))
        steps.wait()

    try:
        thread = threading.Thread(target=other)
        thread.start()
        with quiet():
            steps.wait()
            logger.warning("ours")
            logger.error("an error of ours")
            bars["ours"] = type(library.tqdm([]))
            steps.wait()
        thread.join()
        logger.warning("later")
    finally:
        logger.removeHandler(handler)
    assert sorted(shown) == ["an error of ours", "later", "theirs"]
    assert bars["ours"] is library.EmptyTqdm
    # transformers 5.0 has no hook yet, and its switch is for all threads.
    assert (bars["theirs"] is library.EmptyTqdm) != hasattr(library, "set_tqdm_hook")
    assert type(library.tqdm([])) is not library.EmptyTqdm


@pytest.mark.skipif(not hasattr(library, "set_tqdm_hook"), reason="this transformers has no hook for bars")
def test_a_hook_for_bars_that_others_set_stays_theirs():
    def hook(factory, args, keywords):
        return factory(*args, **keywords)

    before = library.set_tqdm_hook(None)
    try:
        with no_bars():
            library.set_tqdm_hook(hook)
        assert library.set_tqdm_hook(None) is hook
    finally:
        library.set_tqdm_hook(before)


@pytest.mark.parametrize("function", [name for name in initialization.TORCH_INIT_FUNCTIONS if name.endswith("_")])
def test_numbers_are_drawn_as_after_a_seed_by_every_function(function):
    shape = (6, 5, 3) if function == "dirac_" else (6, 5)
    more = {"constant_": (0.5,), "sparse_": (0.2,)}.get(function, ())

    def fill():
        return getattr(torch.nn.init, function)(torch.empty(shape), *more)

    before = torch.get_rng_state()
    with drawn_from(11):
        found = fill()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(11)
        assert torch.equal(found, fill())


@pytest.mark.slow
def test_generators_of_no_other_device_are_seeded(calls, monkeypatch, tmp_path):
    seeded, (folder, config, batch) = [], learned.gpt2(tmp_path)
    for module in (torch.cuda, torch.xpu):
        monkeypatch.setattr(module, "manual_seed_all", lambda seed: seeded.append(seed))
    for name in ("resize", "verify", "grow"):
        calls[name]()
    model = BoTModelForCausalLM.from_pretrained(folder, config=resized_config(config, **learned.BIG), method="ligo")
    before = torch.get_rng_state()
    transformers_bot.fit(model, [batch], steps=1, source=folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert seeded == []


def test_fitting_seeds_the_device_of_its_model_alone(monkeypatch):
    seeded = []
    for module, name in ((torch.cuda, "cuda"), (torch.xpu, "xpu")):
        monkeypatch.setattr(module, "manual_seed", lambda seed, name=name: seeded.append((name, chosen[-1], seed)))
        monkeypatch.setattr(module, "device", lambda device: contextlib.nullcontext(chosen.append(device)))
    chosen = []
    with torch.random.fork_rng(devices=[]):
        for device in (torch.device("cpu"), torch.device("cuda", 1), torch.device("xpu", 0)):
            fitting._seed(device, 7)
            drawn = torch.rand(3)
            assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert seeded == [("cuda", torch.device("cuda", 1), 7), ("xpu", torch.device("xpu", 0), 7)]


def test_the_first_table_of_a_process_draws_no_number_of_its_caller():
    code = (
        "import random, sys; from transformers_bot.console.tables import table; before = random.getstate(); "
        "assert 'rich.style' not in sys.modules; table([('a',), ('b',)]); assert 'rich.style' in sys.modules; "
        "assert random.getstate() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
