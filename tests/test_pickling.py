"""What the package gives goes wherever Python sends objects: pickled, copied, and as a key where it is frozen."""

import copy
import dataclasses
import pickle

import pytest
import torch

import transformers_bot
from transformers_bot import BoTConfig, BoTError, BoTModelForCausalLM, adapters, errors
from transformers_bot.options import Wavelets
from transformers_bot.tools import inspecting

WAYS = {
    # The oldest protocol, the first with `__reduce_ex__`, and the newest: the others write objects as one of these.
    **{f"pickle {n}": lambda value, n=n: pickle.loads(pickle.dumps(value, n)) for n in (0, 2, pickle.HIGHEST_PROTOCOL)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
GROWN = {"n_layer": 3, "n_embd": 24, "n_head": 6}


@pytest.fixture(scope="module")
def values(saved, tmp_path_factory):
    """Name -> an object that a public call gives."""
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    out = tmp_path_factory.mktemp("values") / "out"
    options = BoTConfig(wavelet={"default": "haar", "ffn": "db2"}, detail="gaussian")
    report = transformers_bot.resize_checkpoint(folder, out, **GROWN, bot_config=options)
    proposals = transformers_bot.suggest(folder, ratio=0.5)
    return {
        "options": options,
        "default options": BoTConfig(),
        "wavelets": options.wavelet,
        "plan": transformers_bot.plan(folder, **GROWN, bot_config=options),
        "plan of a loaded size": BoTModelForCausalLM.plan(folder, n_layer=1),
        "report": report,
        "loaded report": transformers_bot.Report.load(out),
        "verification": transformers_bot.verify(out, folder),
        "suggestion": proposals[0],
        "suggestions": proposals,
        "inspection": inspecting.inspect(folder),
    }


NAMES = (
    *("options", "default options", "wavelets", "plan", "plan of a loaded size", "report", "loaded report"),
    *("verification", "suggestion", "suggestions", "inspection"),
)
PLANS = ("plan", "plan of a loaded size")  # whose maps are made when they are first used, and compared by what they do
HASHABLE = ("options", "default options", "wavelets", "verification")  # the others hold tables or lists


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_call_gives_comes_back_equal(values, name):
    value = values[name]
    for way, again in WAYS.items():
        other = again(value)
        assert type(other) is type(value), way
        if name not in PLANS:
            assert other == value, way
        assert repr(other) == repr(value), way
        assert str(other) == str(value), way
        if hasattr(value, "to_dict"):
            assert other.to_dict() == value.to_dict(), way
        if name in HASHABLE:
            assert hash(other) == hash(value), way


@pytest.mark.parametrize("name", PLANS)
def test_the_maps_of_a_plan_come_back(values, name):
    value, compared = values[name], 0
    for other in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        for step, again in zip(value.steps, other.steps, strict=True):
            if step.recipe is None:
                assert again.recipe is None
                continue
            assert again.recipe.reads == step.recipe.reads
            maps, others = (
                [m for axis in r.maps for segment in axis for m in segment] for r in (step.recipe, again.recipe)
            )
            for one, two in zip(maps, others, strict=True):
                assert (one.dense() == two.dense()).all()
                compared += not one.is_identity
    assert compared or name != "plan"


def test_every_value_is_looked_at(values):
    assert tuple(values) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_does_not_change(values, name):
    value = values[name]
    if dataclasses.is_dataclass(value):
        first = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, first, None)
    elif isinstance(value, Wavelets):
        with pytest.raises(TypeError):
            value["default"] = "db3"


@pytest.mark.parametrize(
    "kind", [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, BoTError)]
)
def test_an_error_comes_back_with_its_words(kind):
    error = kind("what, why, and what to do")
    error.add_note("where")
    for way in ("pickle 2", f"pickle {pickle.HIGHEST_PROTOCOL}", "copy", "deepcopy"):
        other = WAYS[way](error)
        assert type(other) is kind
        assert (str(other), other.args) == (str(error), error.args)
        assert other.__notes__ == ["where"]


@pytest.mark.parametrize("call", [
    lambda folder: BoTModelForCausalLM.from_pretrained(folder, n_embd=25),
    lambda folder: BoTModelForCausalLM.from_pretrained(folder, n_layers=3),
    lambda folder: BoTModelForCausalLM.from_pretrained(folder, n_embd=24, method="harr"),
    lambda folder: BoTModelForCausalLM.from_pretrained(folder + "-none", n_embd=24),
    lambda _: BoTConfig(wavelet="harr"),
    lambda _: adapters.get("mbart"),
])  # fmt: skip
def test_an_error_that_was_raised_goes_to_another_process(saved, call):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        call(saved("gpt2", "GPT2LMHeadModel")[0])
    other = pickle.loads(pickle.dumps(caught.value))
    assert type(other) is type(caught.value)
    assert str(other) == str(caught.value)


def test_a_model_is_copied_with_what_is_attached(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    model = BoTModelForCausalLM.from_pretrained(folder, **GROWN, bot_config={"wavelet": {"default": "haar"}})
    for again in (copy.deepcopy, WAYS["pickle 2"], WAYS[f"pickle {pickle.HIGHEST_PROTOCOL}"]):
        other = again(model)
        assert all(torch.equal(x, y) for x, y in zip(other.parameters(), model.parameters(), strict=True))
        assert other.transfer_report == model.transfer_report
        assert other.config.to_dict() == model.config.to_dict()
        assert "push_to_hub" in vars(other)
        assert other.lm_head.weight is other.transformer.wte.weight


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("smollm2-135m", {"hidden_size": 1152}),
        ("gemma-3-270m", {"hidden_size": 320, "num_hidden_layers": 9}),
        ("whisper-tiny", {"d_model": 576, "encoder_layers": 6}),
    ],
)
def test_a_plan_between_configs_is_pickled(name, sizes):
    plan = transformers_bot.plan(transformers_bot.configs.get(name), **sizes)
    again = pickle.loads(pickle.dumps(plan))
    assert again.to_dict() == plan.to_dict()
    changed = [(step, other) for step, other in zip(plan.steps, again.steps, strict=True) if step.recipe]
    assert len(changed) > 50
    for step, other in changed[:: len(changed) // 8]:
        for axis, same in zip(step.recipe.maps, other.recipe.maps, strict=True):
            assert [[m.target for m in segment] for segment in axis] == [
                [m.target for m in segment] for segment in same
            ]
