"""The count of operations against the closed form of a small GPT-2, whatever attention kernel runs."""

import pytest
import torch
from families import build
from transformers import GPT2Config, GPT2LMHeadModel

from transformers_bot.learned.flops import forward_flops, training_flops

LAYERS, WIDTH, FFN, VOCABULARY, BATCH, LENGTH = 2, 12, 20, 23, 3, 8


def model(dropout: float, attention: str) -> GPT2LMHeadModel:
    drops = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    sizes = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": 3, "n_inner": FFN, "vocab_size": VOCABULARY}
    config = GPT2Config(**sizes, n_positions=LENGTH, bos_token_id=0, eos_token_id=0, **drops)
    config._attn_implementation = attention
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).train()


def forward_by_hand() -> int:
    tokens = BATCH * LENGTH
    matrices = LAYERS * (4 * WIDTH * WIDTH + 2 * WIDTH * FFN) + VOCABULARY * WIDTH
    attention = LAYERS * 2 * LENGTH * WIDTH  # a token's scores and its sum of values
    return 2 * tokens * (matrices + attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_count_is_the_closed_form(dropout, attention):
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    batch = {"input_ids": ids, "labels": ids}
    assert forward_flops(model(dropout, attention), batch) == forward_by_hand()
    # Backward: the gradients of both factors of every product.
    assert training_flops(model(dropout, attention), batch) == 3 * forward_by_hand()


def test_counting_leaves_gradients_alone():
    built = build("gpt2", "GPT2LMHeadModel")
    batch = {**built.inputs, "labels": built.inputs["input_ids"]}
    first = next(built.model.parameters())
    first.grad = torch.ones_like(first)
    training_flops(built.model, batch)
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in list(built.model.parameters())[1:])
