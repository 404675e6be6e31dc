"""Configs with provenance and cards to look into, for the tests of model cards."""

import re

import transformers
from families import tiny_config

from transformers_bot.hub.card import MARKER, read_metadata, split_card

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = COMMIT[::-1]
OPTIONS = {"wavelet": {"default": "haar", "layer": "db2"}, "gain": "consistent", "seed": 0}


def made(base=None, **changes) -> transformers.PreTrainedConfig:
    """A config with provenance, as resizing leaves it; `changes` are fields of the provenance."""
    config = base or tiny_config("gpt2", "GPT2LMHeadModel")
    config.transformers_bot = {
        "source": "org/source",
        "revision": COMMIT,
        "source_sizes": {"layer": 2, "hidden": 6, "heads": 3, "ffn": 10},
        "target_sizes": {"layer": 2, "hidden": 12, "heads": 3, "ffn": 20},
        "method": "bot",
        "options": OPTIONS,
        "files": {"model.safetensors": "ab" * 32},
        "versions": {"torch": "2.13.0", "transformers_bot": "0.1.0"},
        **changes,
    }
    return config


def metadata(card: str) -> dict:
    return read_metadata(split_card(card.removeprefix("\ufeff"))[1])


def recipe_in(card: str) -> str:
    return re.search(r"(`{3,})yaml\n(.*?)\1", card, re.DOTALL)[2]


def sections(card: str) -> int:
    return sum(mark[1] == "begin" for mark in MARKER.finditer(card))
