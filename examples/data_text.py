"""Text for language modelling: files or data sets of the hub, tokenised and cut into blocks."""

import argparse
import csv
import glob
import gzip
import lzma
import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy
import torch
from options import add
from randomness import generator_for
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from transformers_bot import configs
from transformers_bot.errors import BadOption

PIECES = 1000  # pieces of text that are tokenised together


def text_options(parser: argparse.ArgumentParser, seq_length: int) -> None:
    """Add the options that say which text is read and how it is cut."""
    group = parser.add_argument_group("text")
    add(group, "train-file", nargs="+", metavar="FILE", help="text to train on: .txt or .tsv, also .xz or .gz; "
        "patterns such as 'books/*.txt' are allowed")  # fmt: skip
    add(group, "eval-file", nargs="+", metavar="FILE", help="text to evaluate on (default: a share of the other)")
    add(group, "text-column", metavar="NAME", help="the files are tab-separated with a header, and the text is in "
        "this column; for --dataset the field of the text (default there: text)")  # fmt: skip
    add(group, "dataset", metavar="NAME[:CONFIG]", help="read a data set of the hub instead, as in "
        "wikitext:wikitext-2-raw-v1; needs pip install datasets")  # fmt: skip
    add(group, "tokenizer", metavar="CHECKPOINT", help="hub id or folder of the tokenizer (default: the source's)")
    add(group, "seq-length", type=int, default=seq_length, help=f"tokens in one example (default: {seq_length})")
    add(group, "eval-share", type=float, default=0.05, metavar="SHARE",
        help="share of the blocks to hold out if there is no text to evaluate on (default: 0.05)")  # fmt: skip
    add(group, "max-eval-examples", type=int, help="evaluate on this many blocks at most (default: all)")


class Blocks(Dataset[dict[str, Any]]):
    """Blocks of token ids, each with its number and the epoch, from which random masks are drawn.

    Args:
        ids: (blocks, seq_length), special tokens included.
    """

    def __init__(self, ids: numpy.ndarray) -> None:
        self.ids, self.epoch = ids, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.from_numpy(self.ids[index].astype(numpy.int64))
        return {"input_ids": ids, "index": index, "epoch": self.epoch}


def text_blocks(
    options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, special: tuple[list[int], list[int]] = ([], [])
) -> tuple[Blocks, Blocks]:
    """Blocks to train on and to evaluate on.

    Documents are joined with the tokenizer's end (or separator) token and cut into blocks without
    overlap; what does not fill the last block is left out.

    Args:
        special: ids before and after the text of each block, as in ([CLS], [SEP]).

    Raises:
        BadOption: no text is named, a file does not exist, or there is too little text.
    """
    train, evaluation = documents(options, "train"), documents(options, "eval")
    if train is None:
        raise BadOption("no text to train on: give --train-file FILE or --dataset NAME.")
    blocks = packed(train, tokenizer, options.seq_length, special)
    if evaluation is not None:
        held_out = packed(evaluation, tokenizer, options.seq_length, special)
    else:  # the same blocks whatever the --seed, so that runs can be compared
        order = torch.randperm(len(blocks), generator=generator_for(0)).numpy()
        count = max(1, round(options.eval_share * len(blocks)))
        held_out, blocks = blocks[numpy.sort(order[:count])], blocks[numpy.sort(order[count:])]
    if not len(blocks) or not len(held_out):
        raise BadOption(
            f"the text gives {len(blocks)} blocks of {options.seq_length} tokens to train on and {len(held_out)} to "
            "evaluate on, at least one each is needed: give more text or a smaller --seq-length."
        )
    return Blocks(blocks), Blocks(held_out[: options.max_eval_examples])


def packed(
    texts: Iterable[Iterable[str]], tokenizer: Any, seq_length: int, special: tuple[list[int], list[int]]
) -> numpy.ndarray:
    """Documents (each in pieces) as blocks of ids (blocks, seq_length)."""
    before, after = special
    room = seq_length - len(before) - len(after)
    if room < 1:
        raise BadOption(f"--seq-length {seq_length} leaves no room beside {len(before) + len(after)} special tokens.")
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    ids = array("I")
    for document in texts:
        pieces = iter(document)
        while some := list(islice(pieces, PIECES)):
            for piece in tokenizer(
                some, add_special_tokens=False, return_attention_mask=False, verbose=False
            ).input_ids:
                ids.extend(piece)
        if end is not None:
            ids.append(end)
    count = len(ids) // room
    body = numpy.frombuffer(ids, dtype=numpy.uint32)[: count * room].reshape(count, room)
    sides = [numpy.tile(numpy.array(side, dtype=numpy.uint32), (count, 1)) for side in (before, after)]
    return numpy.concatenate([sides[0], body, sides[1]], axis=1)


def documents(options: argparse.Namespace, split: str) -> Iterator[Iterable[str]] | None:
    """The documents of a split, each as pieces of text; None where the options name none."""
    patterns = getattr(options, f"{split}_file")
    if patterns:
        if options.dataset:
            raise BadOption(f"--dataset and --{split}-file are given; keep one.")
        return _of_files(_paths(patterns), options.text_column)
    if options.dataset:
        return _of_hub(options.dataset, options.text_column or "text", split)
    return None


def _paths(patterns: list[str]) -> list[Path]:
    found = [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern)) or [pattern]]
    for path in found:
        if not path.is_file():
            raise BadOption(f"there is no file {path}.")
    return found


def _of_files(paths: list[Path], column: str | None) -> Iterator[Iterable[str]]:
    csv.field_size_limit(sys.maxsize)  # a cell may hold a whole book
    for path in paths:
        with _opened(path) as file:
            if column is None:
                yield file
                continue
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if column not in (rows.fieldnames or []):
                raise BadOption(f"{path} has no column {column!r}; it has {', '.join(rows.fieldnames or ['none'])}.")
            for row in rows:
                yield [row[column]]


def _opened(path: Path) -> TextIO:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def hub_dataset(name: str) -> Any:
    """All splits of `NAME[:CONFIG]` through the datasets library."""
    try:
        import datasets
    except ImportError as error:
        raise BadOption(f"--dataset {name} is read with the datasets library: pip install datasets.") from error
    repository, _, config = name.partition(":")
    return datasets.load_dataset(repository, config or None)


def _of_hub(name: str, column: str, split: str) -> Iterator[Iterable[str]] | None:
    splits = hub_dataset(name)
    wanted = "train" if split == "train" else next((s for s in ("validation", "test") if s in splits), None)
    if wanted is None:
        return None
    if column not in splits[wanted].column_names:
        raise BadOption(f"{name} has no field {column!r}; it has {', '.join(splits[wanted].column_names)}.")
    return ([text] for text in splits[wanted][column])


def load_tokenizer(options: argparse.Namespace) -> Any:
    """The tokenizer of --tokenizer, else the source's; a folder may hold bare vocabulary files."""
    name = options.tokenizer or options.source
    if name is None:
        raise BadOption("no tokenizer is named: give --tokenizer CHECKPOINT (a hub id or a folder).")
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer_config.json")):
        return AutoTokenizer.from_pretrained(name, tokenizer_type=_model_type(options))
    return AutoTokenizer.from_pretrained(name)


def _model_type(options: argparse.Namespace) -> str:
    if options.config in configs.names():
        return str(configs.get(options.config).model_type)
    return str(AutoConfig.from_pretrained(options.config or options.source).model_type)


def vocabulary(options: argparse.Namespace, tokenizer: Any) -> dict[str, int]:
    """Config fields that follow from the tokenizer for a model without a source."""
    return {} if options.source else {"vocab_size": len(tokenizer)}


def check_fit(config: PreTrainedConfig, tokenizer: Any, seq_length: int) -> None:
    """Refuse a tokenizer or length that the model has no embeddings for.

    Raises:
        BadOption: with what the model has room for.
    """
    if len(tokenizer) > config.vocab_size:
        raise BadOption(
            f"the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}: give the tokenizer that the "
            "source was trained with as --tokenizer."
        )
    reserved = config.pad_token_id + 1 if config.model_type == "roberta" else 0  # rows that are no text positions
    room = config.max_position_embeddings - reserved
    if seq_length > room:
        raise BadOption(f"--seq-length {seq_length} is more than the model's {room} positions.")
