"""Examples of a fine-tuning task as rows of padded tensors, and the tokenizer that makes them."""

import argparse
from typing import Any

import torch
from data_text import load_tokenizer
from tokenizers import processors
from torch.utils.data import Dataset
from transformers import AutoConfig

from transformers_bot import configs
from transformers_bot.errors import BadOption


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Rows of tensors that share their first axis.

    Args:
        columns: name -> (rows, ...). Whole numbers are kept as given (32 bits save memory) and
            come out of `collate` with 64.
    """

    def __init__(self, columns: dict[str, torch.Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows as a batch."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: value if value.is_floating_point() else value.long() for name, value in batch.items()}


def padded(encoded: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
    """The output of a tokenizer for many texts, as tensors (rows, longest row), padded on the right.

    One length for all rows keeps the cost of every step the same, so that the log's FLOPs are exact.
    """
    filler = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "token_type_ids": tokenizer.pad_token_type_id}
    columns = {}
    for name in tokenizer.model_input_names:
        rows = encoded[name]
        column = torch.full((len(rows), max(map(len, rows))), filler[name], dtype=torch.int32)
        for row, values in zip(column, rows, strict=True):
            row[: len(values)] = torch.tensor(values, dtype=torch.int32)
        columns[name] = column
    return columns


def pair_tokenizer(options: argparse.Namespace) -> Any:
    """The tokenizer of the options, able to pad and to join two texts.

    GPT-2's has neither a padding token nor a separator: its end-of-text token serves as both, after
    each text of a pair. GPT-2's classifier reads the last token that is not padding.

    It gives `token_type_ids` only if the model has an embedding for them.

    Raises:
        BadOption: there is no end-of-text token either, or no model is named.
    """
    tokenizer = load_tokenizer(options)
    if not _tells_segments(options):
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    joins = tokenizer.num_special_tokens_to_add(pair=True) > 0
    if tokenizer.pad_token is not None and joins:
        return tokenizer
    if tokenizer.eos_token is None:
        raise BadOption(
            f"the tokenizer {options.tokenizer or options.source} has no token for padding or between two texts, and "
            "no end-of-text token to use instead: set eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not joins:
        end = tokenizer.eos_token
        template = processors.TemplateProcessing(
            single="$A", pair=["$A:0", f"{end}:0", "$B:1", f"{end}:1"], special_tokens=[(end, tokenizer.eos_token_id)]
        )
        own = tokenizer.backend_tokenizer.post_processor
        tokenizer.backend_tokenizer.post_processor = template if own is None else processors.Sequence([own, template])
    return tokenizer


def _tells_segments(options: argparse.Namespace) -> bool:
    """Whether the model has an embedding of its own for the second text of a pair, as BERT has.

    RoBERTa's embedding has only one row, and GPT-2 would look the numbers up in its word embedding.
    """
    if options.config in configs.names():
        config = configs.get(options.config)
    elif options.config is None and options.source is None:
        raise BadOption("no model is named: give --source CHECKPOINT or --config CONFIG.")
    else:
        config = AutoConfig.from_pretrained(options.config or options.source)
    return getattr(config, "type_vocab_size", 0) > 1
