"""Names that a user gives: ready configs, folders, ids; what is said of a wrong one; and what a result is called."""

import ast
import traceback
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel

import transformers_bot
from transformers_bot import BadOption, BoTError, BoTModel, BoTModelForCausalLM, HubError, configs
from transformers_bot.architectures.families import BUILT_IN
from transformers_bot.cli import main
from transformers_bot.request.request import named_config

TINY = {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 40, "n_positions": 20}


@pytest.fixture
def gpt2(tmp_path) -> Path:
    GPT2LMHeadModel(GPT2Config(**TINY)).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


# -- ready configs and folders --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-small", "gpt2-base"])
def test_a_ready_name_that_is_also_a_folder_is_an_error_that_says_how_to_write_each(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    family = name.split("-")[0]
    other = BertConfig(hidden_size=24, num_attention_heads=2) if family == "bert" else GPT2Config(n_embd=24, n_head=2)
    source = type(other)()
    other.save_pretrained(name)
    for call in (
        lambda: transformers_bot.plan(source, name),
        lambda: transformers_bot.suggest(source, like=name),
        lambda: named_config(name),
    ):
        with pytest.raises(BadOption, match=rf"'\./{name}' for what is here, 'ready:{name}' for the ready config"):
            call()
    for folder in (f"./{name}", Path(name), tmp_path / name):
        assert transformers_bot.plan(source, folder).target_sizes["hidden"] == 24
    ready = transformers_bot.plan(source, f"ready:{name}").target_sizes["hidden"]
    assert ready == configs.get(name).hidden_size
    assert transformers_bot.suggest(source, like=Path(name))[0].sizes["hidden"] == 24
    Path(name, "config.json").unlink()
    Path(name).rmdir()
    assert transformers_bot.plan(source, name).target_sizes["hidden"] == ready


def test_the_command_line_says_the_same(gpt2, monkeypatch, capsys):
    monkeypatch.chdir(gpt2.parent)
    GPT2Config(**{**TINY, "n_embd": 24}).save_pretrained("gpt2-small")
    assert main(["plan", "source", "--config", "gpt2-small"]) == 2
    assert "'./gpt2-small' for what is here, 'ready:gpt2-small'" in capsys.readouterr().err
    assert main(["plan", "source", "--config", "./gpt2-small"]) == 0
    assert main(["plan", "source", "--config", "ready:gpt2-small", "--ignore-mismatched-sizes"]) == 0
    assert main(["plan", "source", "--config", "ready:gpt2-smal"]) == 2
    assert "Did you mean 'gpt2-small'?" in capsys.readouterr().err


def test_no_example_of_the_help_makes_a_folder_with_a_ready_name(capsys):
    for command in ("plan", "resize", "suggest", "verify", "inspect"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        for line in capsys.readouterr().out.splitlines():
            words = line.split()
            if words[:2] == ["transformers-bot", "resize"] and len(words) > 3:
                assert words[3] not in configs.names()


# -- wrong names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "near"), [("gpt2-smal", "gpt2-small"), ("bert_small", "bert-small"), ("deit-tinny", "deit-tiny")]
)
def test_a_config_that_is_nothing_is_named_with_the_nearest_ready_one(gpt2, wrong, near):
    for call in (
        lambda: BoTModelForCausalLM.from_pretrained(gpt2, config=wrong),
        lambda: transformers_bot.plan(gpt2, wrong),
        lambda: transformers_bot.resize_checkpoint(gpt2, gpt2.parent / "out", wrong),
        lambda: transformers_bot.suggest(gpt2, like=wrong),
    ):
        with pytest.raises(
            BadOption, match=rf"config '{wrong}' is no ready config .*Did you mean '{near}'\?"
        ) as caught:
            call()
        assert len(traceback.format_exception(caught.value.with_traceback(None))) == 1


@pytest.mark.parametrize("name", ["nobody-has-this", "nobody/has-this", "not an id", "a/b/c", "x" * 200])
def test_a_source_that_is_nothing_is_one_sentence_everywhere(tmp_path, name):
    for call in (
        lambda: BoTModel.from_pretrained(name),
        lambda: BoTModel.from_pretrained(name, hidden_size=8),
        lambda: BoTModel.plan(name, hidden_size=8),
        lambda: transformers_bot.plan(name, hidden_size=8),
        lambda: transformers_bot.resize_checkpoint(name, tmp_path / "out", hidden_size=8),
        lambda: transformers_bot.suggest(name, ratio=0.5),
    ):
        with pytest.raises(OSError, match="no folder") as caught:
            call()
        assert len(traceback.format_exception(caught.value.with_traceback(None))) == 1
        assert "\n" not in str(caught.value)
    assert issubclass(HubError, BoTError)


# -- what a result is called ----------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("place", ["name", "config"])
def test_a_result_has_no_name_rather_than_a_wrong_one(gpt2, place):
    """An adapter (PEFT) or a card would name it as its base model."""
    made = BoTModelForCausalLM.from_pretrained(gpt2, n_embd=32, n_head=4)
    for part in (made, made.transformer):
        assert (part.config if place == "config" else part).name_or_path == ""
    with transformers_bot.integration():
        made = transformers.AutoModelForCausalLM.from_pretrained(gpt2, n_embd=32, n_head=4)
    assert (made.config if place == "config" else made).name_or_path == ""


def test_a_saved_result_is_called_what_it_is_loaded_from(gpt2, tmp_path):
    out = tmp_path / "out"
    BoTModelForCausalLM.from_pretrained(gpt2, n_embd=32, n_head=4).save_pretrained(out)
    assert '"None"' not in (out / "config.json").read_text()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert loaded.name_or_path == str(out)
    same = BoTModelForCausalLM.from_pretrained(gpt2)
    assert same.name_or_path == str(gpt2)
    assert torch.equal(same.lm_head.weight, GPT2LMHeadModel.from_pretrained(gpt2).lm_head.weight)


# -- names of families ----------------------------------------------------------------------------

FOLDER = Path(transformers_bot.__file__).parent
SIZES = ("depth", "stream", "unit", "entry", "frequency", "place", "grid")
IMAGES = "transformers' own name for it in all its models of images, which their image processors are compared with"
# A file that names a family or one of its config fields, what it names, and why.
NAMED = {
    "io/sentences.py": (
        {"bert", "roberta", "distilbert", "camembert", "xlm-roberta"},
        "sentence-transformers once named a settings file by the type of its model; the names are fixed",
    ),
    "architectures/tiny.py": (
        {"image_size", "max_source_positions"},
        f"{IMAGES}, and in its models of spectrograms for the length that these must have",
    ),
    "io/companions.py": ({"image_size"}, IMAGES),
    "learned/batches.py": ({"image_size"}, IMAGES),
    "tools/demo.py": (
        {"num_hidden_layers", "hidden_size", "num_attention_heads"},
        "the sizes that the demo shows, of the one model that it downloads",
    ),
    "tools/demo_llm.py": ({"num_hidden_layers", "hidden_size"}, "the same, of the demo's language model"),
}


def names_in(file: Path, types: set[str], fields: set[str]) -> set[str]:
    """Model types that a file has as a string, and fields that it has as a string or reads as an attribute."""
    source = file.read_text()
    if not any(f'"{name}"' in source for name in types | fields) and not any(f".{name}" in source for name in fields):
        return set()
    nodes = [*ast.walk(ast.parse(source))]
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return (types | fields) & strings | fields & {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_no_module_outside_of_the_families_names_one_or_a_field_of_its_sizes():
    known = [adapter for built_in in BUILT_IN for adapter in (built_in, *(v.adapter for v in built_in.variants))]
    types = {adapter.model_type for adapter in known}
    roles = [role for adapter in known for role in adapter.roles.values() if role.kind in SIZES]
    sizes = {size for role in roles for size in (role.size, role.field if role.kind == "grid" else "")}
    fields = {size.rpartition(".")[2] for size in sizes if isinstance(size, str) and size}
    assert {"n_embd", "encoder_layers", "num_key_value_heads"} <= fields
    named = {
        file.relative_to(FOLDER).as_posix(): found
        for file in FOLDER.rglob("*.py")
        if "families" not in file.parts and (found := names_in(file, types, fields - ORDINARY))
    }
    assert named == {file: names for file, (names, _) in NAMED.items()}


# A word of the language as well: torch's `Tensor.dim`, and the kind of role that is the inside of a head.
ORDINARY = {"dim"}
