"""The ready configs hold the numbers of supplement Tables 6 (DeiT), 10 (BERT) and 12 (RoBERTa, GPT-2), or those of
published decoders.
"""

import pytest
import torch
import transformers

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
# Radford et al. (arXiv 2212.04356), Table 1, in millions. It counts a little more than the models' files hold: 3.2 %
# for the smallest one, 0.4 % for the largest.
WHISPERS = {"tiny": 39, "base": 74, "small": 244, "medium": 769, "large": 1550, "large-v2": 1550, "large-v3": 1550}
COUNTED = 0.035
ENGLISH = ("tiny", "base", "small", "medium")
SEQUENCE = {"bert": 128, "roberta": 128, "gpt2": 1024}


def test_every_structure_of_the_tables_is_there():
    whispers = [f"whisper-{size}{end}" for end in ("", ".en") for size in (ENGLISH if end else WHISPERS)]
    assert sorted(configs.names()) == sorted([*(row[0] for row in ROWS), *PARAMETERS, *whispers])
    assert sorted({**configs.PUBLISHED}) == sorted([*PARAMETERS, *whispers])
    assert {family: [*sizes] for family, sizes in configs.SIZES.items()} == {f: [*t] for f, t in TABLES.items()}


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


@pytest.mark.covering(few=3)
@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_their_parameters_and_no_field_that_nobody_knows(name):
    config = configs.get(name)
    plan = transformers_bot.plan(config, num_hidden_layers=2 * config.num_hidden_layers)
    assert round(plan.source_parameters / 1e6) == PARAMETERS[name]
    assert plan.warnings == ()


LARGE = {"medium", "large", "large-v2", "large-v3"}  # most of a second to build each


@pytest.mark.parametrize("size", [pytest.param(s, marks=[pytest.mark.slow] if s in LARGE else []) for s in WHISPERS])
def test_whispers_have_the_parameters_of_their_table(size):
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(configs.get(f"whisper-{size}"))
    count = sum(tensor.numel() for tensor in model.parameters()) / 1e6
    assert count == pytest.approx(WHISPERS[size], rel=COUNTED)


@pytest.mark.parametrize("size", WHISPERS)
def test_whispers_of_many_languages(size):
    config = configs.get(f"whisper-{size}")
    newest = size == "large-v3"
    assert (config.vocab_size, config.num_mel_bins) == ((51866, 128) if newest else (51865, 80))
    assert (config.eos_token_id, config.decoder_start_token_id) == (50257, 50258)


@pytest.mark.parametrize("size", ENGLISH)
def test_english_whispers_lack_one_word(size):
    """The two kinds differ in the words alone, and where the special tokens begin."""
    many, english = (configs.get(f"whisper-{size}{end}").to_dict() for end in ("", ".en"))
    assert (english["vocab_size"], english["eos_token_id"], english["begin_suppress_tokens"]) == (
        51864,
        50256,
        [220, 50256],
    )
    differ = {name for name in many if many[name] != english[name]}
    assert differ == {
        *("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
        "begin_suppress_tokens",
    }


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
