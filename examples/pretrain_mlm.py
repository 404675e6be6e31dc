"""Pretrain BERT or RoBERTa with masked language modelling, from random weights or a resized model.

    python examples/pretrain_mlm.py --source google-bert/bert-base-uncased --config bert-small \\
        --train-file wiki/*.txt --output-dir runs/bert-small --preset paper --bf16

    accelerate launch --num_processes 2 examples/pretrain_mlm.py --init scratch --config bert-small \\
        --tokenizer google-bert/bert-base-uncased --dataset Salesforce/wikitext:wikitext-2-raw-v1 \\
        --output-dir runs/scratch --max-steps 1000 --batch-size 256 --per-device-batch-size 32 --resume

15 % of the tokens are masked, anew in each epoch. The preset `paper` is Table 11 of the supplement.
"""

import math
from typing import Any

import torch
import training
from data_text import check_fit, load_tokenizer, text_blocks, text_options, vocabulary
from randomness import generator_for
from recipes import MLM
from transformers import DataCollatorForLanguageModeling

from transformers_bot import BoTModelForMaskedLM


class Masking(DataCollatorForLanguageModeling):
    """transformers' masking (80 % [MASK], 10 % random, 10 % kept), the same for each (seed, epoch, example).

    Without a seed it is for evaluation: the same masks in every epoch and every run.
    """

    def __init__(self, tokenizer: Any, probability: float, seed: int | None = None) -> None:
        super().__init__(tokenizer=tokenizer, mlm_probability=probability)
        self.key = seed

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        special = set(self.tokenizer.all_special_ids)
        inputs, labels = [], []
        for example in examples:
            number = example["index"]
            self.generator = generator_for(*((number,) if self.key is None else (self.key, example["epoch"], number)))
            fixed = torch.tensor([[int(token) in special for token in example["input_ids"]]])
            masked, wanted = self.torch_mask_tokens(example["input_ids"][None].clone(), special_tokens_mask=fixed)
            inputs.append(masked)
            labels.append(wanted)
        return {"input_ids": torch.cat(inputs), "labels": torch.cat(labels)}  # (batch, seq_length) each


def main() -> None:
    parser = training.parser(__doc__)
    text_options(parser, seq_length=128)
    training.add(parser, "mlm-probability", type=float, default=0.15, help="share of masked tokens (default: 0.15)")
    options = training.parse(parser, MLM)

    tokenizer = load_tokenizer(options)
    special = ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    train, evaluation = text_blocks(options, tokenizer, special)
    data = training.Data(
        train=train,
        evaluation=evaluation,
        collate=Masking(tokenizer, options.mlm_probability, options.seed),
        collate_evaluation=Masking(tokenizer, options.mlm_probability),
        tokens=options.seq_length,
    )
    model = training.initial_model(
        options, BoTModelForMaskedLM, vocabulary(options, tokenizer), training.batches(data, options.seed)
    )
    check_fit(model.config, tokenizer, options.seq_length)
    teacher = training.load_teacher(options, BoTModelForMaskedLM)
    summary = training.run(options, model, data, teacher=teacher, processing=tokenizer)
    loss = summary["metrics"]["eval_loss"]
    print(f"masked loss {loss:.4f} (perplexity {math.exp(loss):.2f}) after {summary['steps']} steps")


if __name__ == "__main__":
    training.script(main)
