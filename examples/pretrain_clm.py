"""Pretrain GPT-2 with causal language modelling, from random weights or a resized model.

    python examples/pretrain_clm.py --source gpt2 --config gpt2-small --train-file books/*.txt \\
        --output-dir runs/gpt2-small --preset paper-small --per-device-batch-size 16 --bf16

    accelerate launch --num_processes 2 examples/pretrain_clm.py --init scratch --config gpt2-small \\
        --tokenizer gpt2 --teacher gpt2 --dataset Salesforce/wikitext:wikitext-2-raw-v1 \\
        --output-dir runs/distilled --max-steps 1000 --batch-size 64 --resume

The presets `paper-small` and `paper-base` are Table 13 of the supplement.
"""

import math
from typing import Any

import torch
import training
from data_text import check_fit, load_tokenizer, text_blocks, text_options, vocabulary
from recipes import CLM

from transformers_bot import BoTModelForCausalLM


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Each token predicts the next; the loss does the shift."""
    ids = torch.stack([example["input_ids"] for example in examples])  # (batch, seq_length)
    return {"input_ids": ids, "labels": ids.clone()}


def main() -> None:
    parser = training.parser(__doc__)
    text_options(parser, seq_length=1024)
    training.add(parser, "dropout", type=float, help="all dropout rates of the model (default: the config's)")
    options = training.parse(parser, CLM)

    tokenizer = load_tokenizer(options)
    train, evaluation = text_blocks(options, tokenizer)
    data = training.Data(train=train, evaluation=evaluation, collate=collate, tokens=options.seq_length, shifted=True)
    fields: dict[str, Any] = vocabulary(options, tokenizer)
    if not options.source:
        fields |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if options.dropout is not None:
        fields |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), options.dropout)
    model = training.initial_model(options, BoTModelForCausalLM, fields, training.batches(data, options.seed))
    check_fit(model.config, tokenizer, options.seq_length)
    teacher = training.load_teacher(options, BoTModelForCausalLM)
    summary = training.run(options, model, data, teacher=teacher, processing=tokenizer)
    loss = summary["metrics"]["eval_loss"]
    print(f"loss {loss:.4f} (perplexity {math.exp(loss):.2f}) after {summary['steps']} steps")


if __name__ == "__main__":
    training.script(main)
