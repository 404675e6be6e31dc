"""The check of adapters: it runs every class of every built-in family, finds mistakes in adapters of families that are
not built in, and says what it could not run.
"""

import dataclasses
import json
import re

import pytest
import transformers
from checked import CONFIGS, NOT_RUN
from own_families import OPT, OWN
from transformers import Wav2Vec2Config
from unseen_adapters import MISTAKES, UNSEEN

from transformers_bot import UnsupportedArchitecture, adapters, cli, plan
from transformers_bot.architectures.families import BUILT_IN
from transformers_bot.tools.conformance import check as checking
from transformers_bot.tools.conformance.check import check, classes_of


@pytest.mark.slow
def test_every_built_in_type_has_a_config_here():
    assert {make().model_type for make in CONFIGS.values()} == {adapter.model_type for adapter in BUILT_IN}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_class_of_every_built_in_family_runs_and_fits(name):
    config = CONFIGS[name]()
    names = [each.__name__ for each in classes_of(config)]
    done = check(adapters.get(config.model_type), config)
    assert done.problems == []
    assert done.not_run.keys() == NOT_RUN.keys() & set(names)
    assert all(why in done.not_run[name] for name, why in NOT_RUN.items() if name in names)
    assert set(done.run) == set(names) - NOT_RUN.keys()
    assert all("layers added to" in " ".join(tried) and "halved" in " ".join(tried) for tried in done.tried.values())


def test_a_class_that_cannot_be_resized_is_refused_by_name():
    config = Wav2Vec2Config(num_hidden_layers=2, architectures=["Wav2Vec2ForAudioFrameClassification"])
    with pytest.raises(UnsupportedArchitecture, match="Wav2Vec2ForAudioFrameClassification cannot be resized: "):
        plan(config, num_hidden_layers=1)


REFUSING = dataclasses.replace(OPT, refused={"ForSequenceClassification": "its head reads another token."})


def test_a_check_that_runs_nothing_says_so_and_fails(monkeypatch, capsys, tmp_path):
    _, config, _, _ = OWN["opt"]
    monkeypatch.setattr(checking, "classes_of", lambda _: [transformers.OPTForSequenceClassification])
    monkeypatch.setattr(checking, "_own", lambda _: [])
    monkeypatch.setitem(adapters.ADAPTERS, "opt", REFUSING)
    config.save_pretrained(tmp_path)
    assert cli.main(["adapters", "check", "opt", "--model", str(tmp_path)]) == 4
    out = " ".join(capsys.readouterr().out.split())  # the window may be narrow
    assert "COULD NOT RUN OPTForSequenceClassification: cannot be resized: its head reads another token." in out
    assert "problem: no model could be built, so nothing was compared" in out
    assert "The adapter does not fit: 1 problem." in out


@pytest.mark.slow
def test_a_class_that_is_not_run_is_named_beside_those_that_are(monkeypatch, capsys, tmp_path):
    _, config, name, _ = OWN["opt"]
    heads = [transformers.OPTForCausalLM, transformers.OPTForSequenceClassification]
    monkeypatch.setattr(checking, "classes_of", lambda _: heads)
    monkeypatch.setattr(checking, "_own", lambda _: [])
    monkeypatch.setitem(adapters.ADAPTERS, "opt", REFUSING)
    config.save_pretrained(tmp_path)
    call = ["adapters", "check", "opt", "--model", str(tmp_path)]
    assert cli.main(call) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "COULD NOT RUN OPTForSequenceClassification: cannot be resized" in out
    assert "turned hidden; layers added to layer" in out
    assert out.endswith("The adapter fits. 1 of its classes could not be run, see above.")
    assert cli.main([*call, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], list(told["not_run"])) == ([name], ["OPTForSequenceClassification"])


@pytest.mark.slow
@pytest.mark.parametrize("family", UNSEEN)
def test_an_adapter_that_is_written_from_the_documentation_fits(family):
    adapter, config = UNSEEN[family]
    done = check(adapter, config)
    assert (done.problems, done.not_run) == ([], {})
    assert len(done.run) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("family", "changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_the_check_says_how_to_mend_a_mistake(family, changes, message, monkeypatch):
    adapter, config = UNSEEN[family]
    name = {"phi": "PhiForCausalLM", "biogpt": "BioGptForCausalLM"}[family]
    monkeypatch.setattr(checking, "classes_of", lambda _: [getattr(transformers, name)])
    problems = check(dataclasses.replace(adapter, **changes), config).problems
    assert any(re.search(message, problem) for problem in problems), problems
