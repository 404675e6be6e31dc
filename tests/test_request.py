"""One request for a whole call: what it says is read once, planned once, and refused in words where it cannot be."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from families import resized_config
from transformers import GPT2Config, GPT2LMHeadModel

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
from transformers_bot.cli import main
from transformers_bot.request.names import PLACING
from transformers_bot.request.request import check_devices
from transformers_bot.tools.inspecting import inspect

PACKAGE = str(Path(transformers_bot.__file__).parent)
GPT2 = ("gpt2", "GPT2LMHeadModel")
HUGE = 10**5000  # Python itself refuses to write it


CALLS = {
    "from_pretrained": lambda source, _, **sizes: BoTModelForCausalLM.from_pretrained(source, **sizes),
    "resize_checkpoint": lambda source, out, **sizes: transformers_bot.resize_checkpoint(source, out, **sizes),
    "plan": lambda source, _, **sizes: transformers_bot.plan(source, **sizes),
}


# -- nothing is done twice ---------------------------------------------------------------------------


def counted(call) -> tuple[Counter, Counter]:
    """How often each function of the package is entered while `call()` runs, and each config and weight file is read.

    Sizes are counted by the side that they are of.
    """
    names, files = Counter(), Counter()

    def profile(frame, event, _):
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        name, given = frame.f_code.co_name, frame.f_locals
        if name == "role_sizes":
            name = f"sizes of the {given['which']}"
        if name in ("read_value", "read_header") and given["path"].name in ("config.json", "model.safetensors"):
            files[given["path"]] += 1
        names[name] += 1

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return names, files


def _integrated(source, _):
    config = GPT2Config.from_pretrained(source)
    config.n_layer, config.n_embd, config.n_head = 3, 24, 4
    with transformers_bot.integration():
        return GPT2LMHeadModel.from_pretrained(source, config=config)


def _at_its_size(source, _):
    return BoTModelForCausalLM.from_pretrained(source)


HALF = {"n_layer": 1, "n_embd": 6}
SET = [f"--set={name}={value}" for name, value in HALF.items()]
BATCHES = [{"input_ids": torch.arange(6)[None], "labels": torch.arange(6)[None]}]
GROWN = {}  # folder -> the source of that folder, grown by an operator
# Entry -> the call, with a source and a folder that holds a result of it.
ENTRIES = {
    "from_pretrained": lambda source, _: BoTModelForCausalLM.from_pretrained(source, **HALF),
    "from_pretrained, its size": _at_its_size,
    "from_pretrained, equal sizes": lambda source, _: BoTModelForCausalLM.from_pretrained(source, n_layer=2),
    "plan": lambda source, _: transformers_bot.plan(source, **HALF),
    "plan of a factory": lambda source, _: BoTModelForCausalLM.plan(source, **HALF),
    "resize_checkpoint": lambda source, folder: resize_checkpoint(source, folder / "out", overwrite=True, **HALF),
    "verify": lambda source, folder: transformers_bot.verify(folder / "half", source),
    "integration": _integrated,
    "inspect": lambda source, _: inspect(source),
    "suggest": lambda source, _: transformers_bot.suggest(source, ratio=0.5),
    "fit": lambda source, folder: transformers_bot.fit(GROWN[folder], BATCHES, steps=1, source=source),
    "plan on the command line": lambda source, _: main(["plan", str(source), *SET]),
    "resize on the command line": lambda source, folder: main(
        ["resize", str(source), str(folder / "out"), "--overwrite", *SET]
    ),
    "verify on the command line": lambda source, folder: main(
        ["verify", str(folder / "half"), "--source", str(source)]
    ),
    "inspect on the command line": lambda source, _: main(["inspect", str(source)]),
    "suggest on the command line": lambda source, _: main(["suggest", str(source), "--ratio", "0.5"]),
}
ONLY_READ = ("inspect", "from_pretrained, ")  # entries without a plan


@pytest.fixture(scope="module")
def results(saved, tmp_path_factory):
    """Whether the config names a class -> a source, and the folder with a result of it."""
    folders = {}
    for named in (True, False):
        place = tmp_path_factory.mktemp("results")
        source = Path(shutil.copytree(saved(*GPT2)[0], place / "source"))
        if not named:
            fields = json.loads((source / "config.json").read_text())
            del fields["architectures"]
            (source / "config.json").write_text(json.dumps(fields))
        resize_checkpoint(source, place / "half", **HALF)
        GROWN[place] = BoTModelForCausalLM.from_pretrained(source, n_layer=3, method="ligo")
        folders[named] = source, place
    return folders


@pytest.mark.covering("name")
@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
@pytest.mark.parametrize("name", ENTRIES)
def test_nothing_is_done_twice(results, name, named):
    """Keywords are sorted once, files read once, sizes asked for once a side, and a target is planned once."""
    source, folder = results[named]
    names, files = counted(lambda: ENTRIES[name](source, folder))
    assert names["sort_keywords"] == 1
    assert files
    assert set(files.values()) == {1}, files
    assert names["fitting_classes"] <= 1  # the class that the tensors show
    assert names["sizes of the source"] == (name != "from_pretrained, its size")
    assert names["make_plan"] == (0 if name.startswith(ONLY_READ) else names["plan_of"] or 1)
    targets = names["make_plan"] or (name == "from_pretrained, equal sizes")
    most = 2 * targets if "suggest" in name else targets  # fields of a suggestion may have to say more than the width
    assert targets <= names["sizes of the target"] <= most
    assert names["plan_of"] <= (6 if "suggest" in name else 1)


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is here")
@pytest.mark.parametrize("device_map", [0, {"": 0}, {"": "cpu", "lm_head": 1}, "cuda", torch.device("cuda:0")], ids=str)
def test_without_a_gpu_its_number_is_refused(device_map):
    with pytest.raises(BadOption, match=r"device_map names cuda:[01], and torch sees 0 CUDA devices here"):
        check_devices(device_map)


@pytest.mark.parametrize(
    "device_map", [["cpu"], {"": "gpu"}, {"": None}, {"": "auto"}, {"": 1.0}, True, -1, 1.5], ids=str
)
def test_what_names_no_device_is_refused(device_map):
    with pytest.raises(BadOption, match=r"device_map must be one of 'auto', .*or a dict of devices, got"):
        check_devices(device_map)


def test_devices_that_are_anywhere_are_let_through():
    for device_map in (
        None,
        "cpu",
        *PLACING,
        torch.device("cpu"),
        {"": "disk"},
        {"a": "cpu", "b": torch.device("meta")},
    ):
        check_devices(device_map)


# -- the same help everywhere ------------------------------------------------------------------------

# Entry -> a call of it with a source and keywords; none gets as far as any weights.
ASKED = {
    "from_pretrained": lambda source, **given: BoTModelForCausalLM.from_pretrained(source, **given),
    "plan": lambda source, **given: transformers_bot.plan(source, **given),
    "resize_checkpoint": lambda source, **given: resize_checkpoint(source, "never written", **given),
    "verify": lambda source, **given: transformers_bot.verify(source, **given),
    "inspect": lambda source, **given: inspect(source, **given),
    "suggest": lambda source, **given: transformers_bot.suggest(source, **{"ratio": 0.5, **given}),
    "fit": lambda source, **given: transformers_bot.fit(_grown(), BATCHES, source=source, **given),
    "integration": lambda _, **given: transformers_bot.integration(**given).__enter__(),
    "enable": lambda _, **given: transformers_bot.enable(**given),
    "within the integration": lambda source, **given: _integrated_call(source, **given),
}
SIZED = ("from_pretrained", "plan", "resize_checkpoint")
READ = ("verify", "inspect", "suggest", "fit")
NAMES = {
    "misspelt, of the Hub": ((*SIZED, *READ, "within the integration"), {"revison": "main"}, "Did you mean 'revision'"),
    "misspelt, ours": (("integration", "enable"), {"methd": "bot"}, "Did you mean 'method'"),
    "of another family": ((*SIZED, "within the integration"), {"d_model": 8}, "Its sizes are n_layer, n_embd, n_inner"),
    "an option": (
        (*SIZED, "integration", "enable", "within the integration"),
        {"wavelet": "haar"},
        "option of the method",
    ),
    "a size": (READ, {"n_layer": 1}, "has no keyword 'n_layer'. It takes .*where the source is found"),
    "of other calls": (READ, {"strict": False}, "strict= belongs to from_pretrained, plan and resize_checkpoint"),
    "of a tool": (SIZED, {"ratio": 0.5}, "ratio= belongs to suggest"),
    "of a file": (("from_pretrained", "plan"), {"tokenizer": True}, "tokenizer= belongs to resize_checkpoint"),
    "of a function": (("from_pretrained",), {"task": "base"}, "class that is called says the task"),
    "among the fields": (SIZED, {"config": {"method": "tile"}}, "Pass method= beside the fields"),
    "of the block": (
        ("within the integration",),
        {"n_layer": 1, "method": "tile"},
        r"method= is given to integration\(\)",
    ),
}
VALUES = {
    "source": ((*SIZED, *READ), None, "the source must be a hub id or a folder"),
    "batches": (SIZED, {"n_layer": 1, "calibration": "corpus.txt"}, r"got str\. To read texts .*read_batches"),
    "device": (SIZED[:2], {"n_layer": 1, "device_map": "gpu"}, "device_map must be one of .*Did you mean 'cpu'"),
    "generation": (
        SIZED[:1],
        {"n_layer": 1, "generation_config": {"max_new_tokens": 2}},
        "generation_config must be a GenerationConfig, got dict",
    ),
    "renames": (SIZED, {"n_layer": 1, "key_mapping": "x"}, "key_mapping must be a dict .*, got 'x'"),
    "rename": (SIZED, {"n_layer": 1, "key_mapping": {"a": 1}}, "key_mapping must be a dict .*, got {'a': 1}"),
    "pattern": (
        SIZED,
        {"n_layer": 1, "key_mapping": {"(": "b"}},
        "key_mapping has '\\(', which is no regular expression",
    ),
    "switch": (SIZED, {"n_layer": 1, "ignore_mismatched_sizes": "yes"}, "must be True or False, got 'yes'"),
    "switch at its size": (("from_pretrained",), {"strict": "no"}, "strict must be True or False, got 'no'"),
    "dtype at its size": (("from_pretrained",), {"dtype": "float31"}, "dtype must be float64.*got 'float31'"),
    "method at its size": (("from_pretrained",), {"method": 3}, "method must be the name of a method, got 3"),
    "like": (("suggest",), {"ratio": None, "like": 3}, "like must be a ready config's name"),
}


def _grown():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11))
    model.config.transformers_bot = {"method": "ligo", "options": {}, "source_sizes": {}, "source": "x"}
    return model


def _integrated_call(source, **given):
    with transformers_bot.integration():
        return GPT2LMHeadModel.from_pretrained(source, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, (calls, *_) in NAMES.items() for call in calls])
def test_a_name_that_a_call_does_not_have_is_told_where_it_belongs(whole, name, call):
    _, given, message = NAMES[name]
    with pytest.raises(BadKeyword, match=message):
        ASKED[call](whole, **given)


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, (calls, *_) in VALUES.items() for call in calls])
def test_a_value_that_no_call_can_use_is_refused_by_all(whole, name, call):
    _, given, message = VALUES[name]
    with pytest.raises((BadKeyword, BadOption), match=message):
        ASKED[call](whole if given else whole.stat(), **(given or {}))
