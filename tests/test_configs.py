"""The ready configs hold the numbers of supplement Tables 6 (DeiT), 10 (BERT) and 12 (RoBERTa, GPT-2), or those of
published decoders.
"""

import pytest

import transformers_bot
from transformers_bot import BadOption, configs
from transformers_bot.architectures import ADAPTERS
from transformers_bot.architectures.sizes import role_sizes

# name -> layers, hidden, heads
TABLE_6 = {"tiny": (3, 192, 3), "small": (6, 384, 6), "base": (12, 768, 12), "large": (24, 1024, 16)}
TABLE_10 = TABLE_6
TABLE_12 = {"small": (6, 384, 6), "base": (12, 768, 12)}
TABLES = {"deit": TABLE_6, "bert": TABLE_10, "roberta": TABLE_12, "gpt2": TABLE_12}
ROWS = [(f"{family}-{size}", *row) for family, table in TABLES.items() for size, row in table.items()]
VOCABULARY = {"bert": 30522, "roberta": 50265, "gpt2": 50257}
# Parameters that the pages of the published models give, in millions.
PARAMETERS = {"qwen3-0.6b": 596, "llama-3.2-1b": 1236, "smollm2-135m": 135, "smollm2-360m": 362}
PARAMETERS |= {"gemma-3-270m": 268, "gemma-3-1b": 1000, "modernbert-base": 149, "modernbert-large": 395}
SEQUENCE = {"bert": 128, "roberta": 128, "gpt2": 1024}


def test_every_structure_of_the_tables_is_there():
    assert sorted(configs.names()) == sorted([*(row[0] for row in ROWS), *PARAMETERS])


@pytest.mark.parametrize(("name", "layers", "hidden", "heads"), ROWS)
def test_sizes_are_the_tables(name, layers, hidden, heads):
    config = configs.get(name)
    family = name.split("-")[0]
    assert config.model_type == family
    sizes = role_sizes(ADAPTERS[family], config, "source")
    assert (sizes["layer"], sizes["hidden"], sizes["heads"]) == (layers, hidden, heads)
    assert (sizes["head_dim"], sizes["ffn"]) == (64, 4 * hidden)


@pytest.mark.parametrize("name", [row[0] for row in ROWS if not row[0].startswith("deit")])
def test_vocabularies_are_the_tables_and_the_sequences_fit(name):
    config = configs.get(name)
    family = name.split("-")[0]
    assert config.vocab_size == VOCABULARY[family]
    assert role_sizes(ADAPTERS[family], config, "source")["position"] >= SEQUENCE[family]


@pytest.mark.parametrize("size", TABLE_6)
def test_images_are_table_6(size):
    config = configs.get(f"deit-{size}")
    assert (config.image_size, config.patch_size) == (224, 16)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_their_parameters_and_no_field_that_nobody_knows(name):
    config = configs.get(name)
    plan = transformers_bot.plan(config, num_hidden_layers=2 * config.num_hidden_layers)
    assert round(plan.source_parameters / 1e6) == PARAMETERS[name]
    assert plan.warnings == ()


def test_overrides_win_and_each_call_gives_a_fresh_object():
    assert configs.get("gpt2-base", vocab_size=99, n_layer=2).to_dict()["n_layer"] == 2
    first, second = configs.get("bert-tiny"), configs.get("bert-tiny")
    first.hidden_size = 1
    assert second.hidden_size == 192


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert-smal", "Did you mean 'bert-small'"),
        ("gpt2-tiny", "unknown config 'gpt2-tiny'; known are"),
        ("", "known are"),
    ],
)
def test_an_unknown_name_is_an_error(name, message):
    with pytest.raises(BadOption, match=message):
        configs.get(name)
