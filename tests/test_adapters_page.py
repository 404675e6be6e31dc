"""The page on adapters: it explains every field of the language, and its examples hold."""

import re
from dataclasses import fields, replace

import pytest
from snippets import ROOT, snippets_of
from transformers import CLIPConfig, GPT2Config, GPT2LMHeadModel

import transformers_bot
from transformers_bot import BadOption, BoTConfig, adapters
from transformers_bot.adapters import Adapter, Norm, Numbered, Role, Roles, Scale, Variant, parse_rules
from transformers_bot.architectures.adapter import KINDS
from transformers_bot.architectures.tiny import random_model
from transformers_bot.tools.conformance import grown

PAGE = ROOT / "docs" / "adapters.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = {block.mark[1]: block.text for block in snippets_of(PAGE) if block.mark and block.mark[0] == "test"}
PRIVATE = ("locked",)  # for built-in adapters alone


@pytest.mark.parametrize("language", [Adapter, Role, Norm])
def test_every_field_has_a_row(language):
    section = {Adapter: "The adapter", Role: "Roles", Norm: "Norms"}[language]
    rows = re.findall(r"^\| `(\w+)` \|", TEXT.partition(f"\n## {section}\n")[2].partition("\n## ")[0], re.MULTILINE)
    expected = {field.name for field in fields(language)} - set(PRIVATE)
    assert expected <= set(rows) <= expected | set(KINDS)
    if language is Role:
        assert set(KINDS) <= set(rows)


@pytest.mark.parametrize("small", [Numbered, Scale, Variant])
def test_small_classes_are_written_as_they_are_called(small):
    assert f"`{small.__name__}({', '.join(field.name for field in fields(small))})`" in TEXT


@pytest.mark.parametrize("name", ["distilbert.py", "gemma.py", "mbart.py"])
def test_examples_are_valid(name):
    namespace = {}
    exec(FILES[name], namespace)
    (adapter,) = (value for value in namespace.values() if isinstance(value, Adapter))
    adapters.validate(adapter)
    assert adapter.model_type == name.removesuffix(".py")


def rules_of_the_tables():
    written = re.findall(r"`([\w.{},]+ : [^`]+)`", TEXT)
    return [rule for rule in written if "axes" not in rule]


@pytest.mark.parametrize("rule", rules_of_the_tables())
def test_rules_of_the_tables_can_be_read(rule):
    assert parse_rules(rule)


def test_a_stream_whose_norms_have_no_weight_keeps_its_basis():
    """Nothing says what such norms keep, such as the mean."""
    gpt2 = adapters.get("gpt2")
    assert gpt2.turned == ("hidden",)
    assert replace(gpt2, norms=()).turned == ()


def test_options_of_a_check_take_roles_that_nobody_registered():
    roles = Roles(Role("own_heads", "unit", "n_head"), Role("own_entries", "entry", 4, within="own_heads"))
    assert grown.options(roles).wavelet_for("own_entries") == "bior2.2"
    with pytest.raises(BadOption, match="own_entries"):
        BoTConfig(wavelet={"own_entries": "bior2.2"})


def test_a_check_leaves_roles_that_must_stay():
    """What a wider model would compute otherwise says nothing about the rules, if no model gets wider."""
    gpt2, sizes = adapters.get("gpt2"), {"n_layer": 1, "n_embd": 12, "n_head": 3, "vocab_size": 20, "n_positions": 16}
    model = random_model(GPT2LMHeadModel, GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    wrong = replace(gpt2, gains={"wte": lambda config: config.n_embd})
    assert grown.changes_by_doubling(wrong, model)
    fixed = replace(gpt2.roles["hidden"], stays=lambda _config: "positions are computed from it")
    assert grown.changes_by_doubling(replace(wrong, roles=wrong.roles.with_(fixed)), model) == {}


def test_lemon_takes_towers_of_different_widths():
    """Their ratios count, and these are 1 if only layers are added."""
    narrow, wide = ({"hidden_size": 12 * n, "num_attention_heads": 3, "intermediate_size": 16} for n in (1, 2))
    source = CLIPConfig(
        text_config={**narrow, "num_hidden_layers": 1, "vocab_size": 20},
        vision_config={**wide, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4},
    )
    deeper = transformers_bot.plan(source, text_config={"num_hidden_layers": 2}, method="lemon")
    assert deeper.target_sizes["text_layer"] == 2
    with pytest.raises(BadOption, match="different ratios"):
        transformers_bot.plan(source, vision_config={"hidden_size": 36}, method="lemon")
