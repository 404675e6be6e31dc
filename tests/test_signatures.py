"""The signatures of public calls: what inspection, type checkers and editors see of our keywords and transformers'."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import transformers_bot
from transformers_bot import BoTModelForMaskedLM, plan, resize_checkpoint, suggest
from transformers_bot.architectures.families import BUILT_IN
from transformers_bot.architectures.inventory import class_in_mapping
from transformers_bot.auto import FACTORIES, stated
from transformers_bot.errors import BadKeyword, UnsupportedArchitecture
from transformers_bot.request import signatures
from transformers_bot.request.names import FILES, HUB, IGNORED, OURS, REFUSED, TARGET
from transformers_bot.request.request import init_keywords
from transformers_bot.request.signatures import (
    ConfigFields,
    FolderKeywords,
    HubKeywords,
    InitKeywords,
    ModelKeywords,
)
from transformers_bot.tasks import TASKS
from transformers_bot.tools.inspecting import inspect as inspect_

FOLDER = Path(transformers_bot.__file__).parent
# Fields of every config that a resize decides, or that a keyword of the call says.
NOT_ASKED_FOR = {"architectures", "dtype", "transformers_version"}


def keywords_of(call) -> set[str]:
    return {p.name for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY}


# -- in step with keywords.py and transformers -----------------------------------------------------


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_every_factory_shows_all_of_our_keywords(factory):
    assert keywords_of(factory.from_pretrained) == set(OURS)
    assert keywords_of(factory.plan) | {"config"} == set(OURS)


def test_plan_and_resize_checkpoint_show_them_too():
    assert keywords_of(plan) - {"task"} | {"config"} == set(OURS)
    assert set(OURS) - keywords_of(resize_checkpoint) == {"config", "output_loading_info"}


def test_what_is_not_given_is_written_once():
    for call in (*(one.from_pretrained for one in FACTORIES.values()), plan, resize_checkpoint):
        for name, parameter in inspect.signature(call).parameters.items():
            if name in OURS:
                assert parameter.default is signatures.DEFAULTS.get(name), name


def test_the_typed_keywords_are_those_that_are_read():
    theirs = {name for name in IGNORED if not name.startswith("_")} - {"mirror"}
    rest = set(ConfigFields.__annotations__) | set(InitKeywords.__annotations__)
    assert set(HubKeywords.__annotations__) == set(HUB)
    assert set(ModelKeywords.__annotations__) - rest == {*HUB, *FILES, *TARGET, *theirs}
    assert set(FolderKeywords.__annotations__) - rest == {*HUB, *FILES, "generation_config"}
    assert not set(ModelKeywords.__annotations__) & {*OURS, *REFUSED}
    assert not set(ConfigFields.__annotations__) & {*HUB, *FILES, *TARGET}


@pytest.mark.parametrize("adapter", BUILT_IN, ids=lambda one: one.model_type)
def test_every_field_of_a_built_in_config_has_a_type(adapter):
    config = CONFIG_MAPPING[adapter.model_type]
    fields = {field.name for field in dataclasses.fields(config) if field.init and field.name[0] != "_"}
    fields |= set(config.attribute_map)
    fields |= {
        role.size for role in adapter.roles.values() if isinstance(role.size, str) and hasattr(config(), role.size)
    }
    assert fields - {*ConfigFields.__annotations__, *InitKeywords.__annotations__} - NOT_ASKED_FOR == set()


def test_no_typed_field_is_one_of_no_config():
    every = set()
    for adapter in BUILT_IN:
        config = CONFIG_MAPPING[adapter.model_type]
        every |= {field.name for field in dataclasses.fields(config)} | set(config.attribute_map)
    assert set(ConfigFields.__annotations__) - every == {"num_labels", "output_attentions"}


def test_every_keyword_of_a_constructor_has_a_type():
    found = set()
    for adapter in BUILT_IN:
        for factory in FACTORIES.values():
            try:
                found |= init_keywords(
                    class_in_mapping(TASKS[factory.task].mapping, CONFIG_MAPPING[adapter.model_type](), "x")
                )
            except UnsupportedArchitecture:
                continue
    assert found == set(InitKeywords.__annotations__)


# -- what is said when nothing is meant ------------------------------------------------------------

NOTHING = {**dict.fromkeys(OURS), "strict": None, "method": None, "nonfinite": None}
SMALLER = {"num_hidden_layers": 1}


@pytest.mark.slow
@pytest.mark.parametrize("nothing", [NOTHING, {**dict.fromkeys(OURS), **signatures.DEFAULTS}], ids=["None", "default"])
def test_a_keyword_that_says_nothing_changes_nothing(saved, tmp_path, nothing):
    folder, built = saved("bert", "BertForMaskedLM")
    assert stated(**nothing) == {}
    beside = {name: value for name, value in nothing.items() if name not in ("config", "output_loading_info")}
    assert plan(folder, **SMALLER, **beside).to_dict() == plan(folder, **SMALLER).to_dict()
    resize_checkpoint(folder, tmp_path / "one", **SMALLER)
    resize_checkpoint(folder, tmp_path / "two", **SMALLER, **beside)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    whole = BoTModelForMaskedLM.from_pretrained(folder, **nothing)  # the source's own size
    assert [tuple(x.shape) for x in whole.parameters()] == [tuple(x.shape) for x in built.model.parameters()]
    assert BoTModelForMaskedLM.from_pretrained(folder, **SMALLER, **nothing).config.num_hidden_layers == 1


@pytest.mark.parametrize("call", [suggest, inspect_], ids=["suggest", "inspect"])
def test_an_unknown_keyword_is_an_error_with_the_nearest(call, saved):
    folder, _ = saved("bert", "BertForMaskedLM")
    given = {"ratio": 0.5} if call is suggest else {}
    with pytest.raises(BadKeyword, match=r"no keyword 'revison'.*revision"):
        call(folder, **given, revison="main")


# -- names -----------------------------------------------------------------------------------------


def test_dir_shows_public_names_alone():
    """Beside them only what Python and notebooks ask for by name: `__str__`, `_repr_html_`."""
    assert dir(transformers_bot) == sorted(transformers_bot.__all__)
    for name in transformers_bot.__all__:
        shown = [one for one in dir(getattr(transformers_bot, name)) if one.startswith("_")]
        assert [one for one in shown if not one.endswith("_")] == [], name


# -- type checkers ---------------------------------------------------------------------------------

GOOD = """
import os
from pathlib import Path
from typing import Any

import transformers_bot
from transformers import BertConfig, PreTrainedModel
from transformers_bot import (
    BoTConfig, BoTModel, BoTModelForCausalLM, BoTModelForImageClassification, BoTModelForSequenceClassification,
    enable, fit, integration, plan, resize_checkpoint, suggest, verify,
)

small = BoTModelForCausalLM.from_pretrained("gpt2", n_layer=6, n_embd=384, n_head=6, attn_pdrop=0.0)
small.generate(max_new_tokens=4)
one: PreTrainedModel = BoTModel.from_pretrained(Path("bert"), num_hidden_layers=6, add_pooling_layer=False, dtype=None)
two, info = BoTModel.from_pretrained("bert", config={"hidden_size": 384}, output_loading_info=True)
two.save_pretrained("small")
keys: dict[str, Any] = info
three = BoTModelForSequenceClassification.from_pretrained(
    "bert", num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}, device_map="auto",
    problem_type="single_label_classification", ignore_mismatched_sizes=True, revision="main", token=None,
)
four = BoTModelForImageClassification.from_pretrained("vit", image_size=(224, 160), patch_size=16, hidden_size=384)
batches = [{"input_ids": [[1, 2]]}]
five = BoTModel.from_pretrained("bert", hidden_size=384, calibration=batches, bot_config=BoTConfig(order="kept"))
six = BoTModel.from_pretrained("bert", config=BertConfig(), method="lemon", nonfinite="warn", bot_config={"seed": 1})
shown = plan("bert", hidden_size=384, bot_config={"wavelet": "db2"}, dtype="float16")
also = BoTModel.plan(BertConfig(), {"hidden_size": 384}, strict=False)
best = suggest("bert", ratio=0.5, revision="main")[0]
seven = BoTModel.from_pretrained("bert", **best.fields)
report = resize_checkpoint("bert", "small", hidden_size=384, bot_config={"depth": "first"}, overwrite="foreign")
print(report.inherited, verify("small", cache_dir="x").equal, shown.inherited)
fit(one, batches, steps=3, subfolder="x")
with integration({"depth": "even"}, method="bot"):
    pass
enable(bot_config=BoTConfig())
"""
# Every line has one mistake.
BAD = """
from transformers import BertConfig
from transformers_bot import BoTModel, BoTModelForCausalLM, fit, integration, plan, resize_checkpoint, suggest, verify

BoTModel.from_pretrained("bert", bot_confg={"wavelet": "db2"})
BoTModelForCausalLM.from_pretrained("gpt2", n_layer=6, methd="bot")
BoTModel.from_pretrained("bert", n_layerz=6)
BoTModel.from_pretrained("bert", hidden_size="384")
BoTModel.from_pretrained("bert", nonfinite="ignore")
BoTModel.from_pretrained("bert", strict="no")
BoTModel.from_pretrained("bert", BertConfig())
BoTModel.from_pretrained("bert", state_dict={})
BoTModel.from_pretrained("bert", calibraton=[])
BoTModel.from_pretrained("bert", output_loading_info=True).eval()
BoTModel.plan("bert", bot_confg={})
plan("bert", bot_confg={})
plan("bert", bot_config="haar")
resize_checkpoint("bert", "out", methd="bot")
resize_checkpoint("bert", "out", hidden_size=384, device_map="auto")
resize_checkpoint("bert", "out", hidden_size=384, overwrite="yes")
verify("out", revison="main")
suggest("bert", ratoi=0.5)
fit(BoTModel.from_pretrained("bert"), [], step=3)
integration(bot_confg={})
"""


def missed(lines: set[int], code: str) -> list[str]:
    """The lines of `code` with a mistake that were not marked."""
    every = code.splitlines()
    first = next(number for number, line in enumerate(every) if line.startswith("BoTModel"))
    return [every[number] for number in range(first, len(every)) if number + 1 not in lines]


# What the signatures name of the two large libraries, which take checkers a minute or more to read.
STUBS = {
    "transformers": """
from typing import Any
class PreTrainedConfig: ...
class BertConfig(PreTrainedConfig): ...
class GenerationConfig: ...
class GenerationMixin: ...
class PreTrainedModel:
    def eval(self) -> PreTrainedModel: ...
    def save_pretrained(self, folder: str) -> None: ...
""",
    "torch": "class dtype: ...\nclass device: ...\nclass Tensor: ...\n",
}
MYPY = """
[mypy]
follow_imports = skip
ignore_missing_imports = True
[mypy-transformers_bot.*,transformers,torch]
follow_imports = silent
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    """Scripts of a user beside the package, as an installation has it."""
    place = tmp_path_factory.mktemp("user")
    (place / "good.py").write_text(GOOD, encoding="utf-8")
    (place / "bad.py").write_text(BAD, encoding="utf-8")
    (place / "transformers_bot").symlink_to(FOLDER)
    for name, text in STUBS.items():
        (place / "stubs" / name).mkdir(parents=True)
        (place / "stubs" / name / "__init__.pyi").write_text(text, encoding="utf-8")
    (place / "mypy.ini").write_text(MYPY, encoding="utf-8")
    (place / "pyrightconfig.json").write_text('{"stubPath": "stubs"}', encoding="utf-8")
    return place


@pytest.mark.slow
def test_mypy_passes_good_calls_and_marks_misspelt_ones(user):
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "good.py", "bad.py"]
    env = {**os.environ, "MYPYPATH": "stubs"}
    done = subprocess.run(command, cwd=user, env=env, capture_output=True, text=True, check=False)
    marked = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [line for line in marked if not line.startswith("bad.py")] == []
    assert missed({int(line.split(":")[1]) for line in marked}, BAD) == []


@pytest.mark.slow
def test_pyright_passes_good_calls_and_marks_misspelt_ones(user):
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent)) or pytest.skip("pyright is not installed")
    command = [pyright, "--outputjson", "--pythonpath", sys.executable, "good.py", "bad.py"]
    done = subprocess.run(command, cwd=user, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not run here: {done.stderr[-300:]}")
    found = [one for one in json.loads(done.stdout)["generalDiagnostics"] if one["severity"] == "error"]
    assert [one["message"] for one in found if one["file"].endswith("good.py")] == []
    assert missed({one["range"]["start"]["line"] + 1 for one in found if one["file"].endswith("bad.py")}, BAD) == []


def test_an_editable_install_is_a_path():
    """A finder, which setuptools makes of other layouts, is nothing that type checkers follow."""
    settings = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["package-dir"] == {"": "."}
