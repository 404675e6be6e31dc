"""Running text as token ids: film reviews with the Brown corpus, and the help texts of Python."""

import csv
import lzma
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from task import need
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

HELD_OUT = 0.02  # share of the documents


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus: one stream for training, streams for evaluation, and the tokenizer's ids."""

    train: np.ndarray
    validation: dict[str, np.ndarray]
    mask: int
    vocabulary: int
    special: tuple[int, ...]


def help_texts() -> tuple[np.ndarray, np.ndarray]:
    """Python's help topics as bytes: (training part, every tenth topic held out)."""
    from pydoc_data.topics import topics

    texts = [topics[name].encode() for name in sorted(topics)]
    train = b"\n".join(text for place, text in enumerate(texts) if place % 10)
    return np.frombuffer(train, np.uint8), np.frombuffer(b"\n".join(texts[::10]), np.uint8)


def reviews_and_brown(data: Path, cache: Path, tokenizer: str, documents: int = 100_000) -> Tokens:
    """IMDB reviews and the Brown corpus, with 2 % of the documents and WikiText-2 for evaluation.

    Args:
        tokenizer: "bert-base-uncased", "roberta" or "gpt2".
        documents: reviews to read at most; the token ids are kept under `cache`.
    """
    encoder, ends, mask, special = _tokenizer(data / "tokenizers" / tokenizer)
    folder = cache / f"tokens-{tokenizer}-{documents}-unique"
    names = ("train", "held out", "wikitext")
    if not all((folder / f"{name}.npy").exists() for name in names):
        texts = list(dict.fromkeys(_documents(data / "text", documents)))  # some reviews occur twice
        order = np.random.default_rng(0).permutation(len(texts))
        cut = int(len(texts) * HELD_OUT)
        parts = {"held out": [texts[i] for i in order[:cut]], "train": [texts[i] for i in order[cut:]]}
        with lzma.open(need(data / "text" / "wikitext-2" / "valid.txt.xz"), "rt", encoding="utf-8") as file:
            parts["wikitext"] = [file.read()]
        for name, part in parts.items():
            _save(folder / f"{name}.npy", _encode(encoder, part, ends))
    read = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    return Tokens(read.pop("train"), read, mask, encoder.get_vocab_size(), special)


def _tokenizer(folder: Path) -> tuple[BertWordPieceTokenizer | ByteLevelBPETokenizer, list[int], int, tuple[int, ...]]:
    """The tokenizer, the ids that end a document, the mask's id and the ids that are never masked."""
    need(folder)
    if (folder / "merges.txt").exists():
        bpe = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
        if folder.name == "roberta":
            return bpe, [2], 50264, (0, 2)
        return bpe, [50256], 0, ()
    pieces = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    return pieces, [102], 103, (101, 102)


def _documents(folder: Path, reviews: int) -> Iterator[str]:
    with lzma.open(need(folder / "brown" / "brown.txt.xz"), "rt", encoding="utf-8") as file:
        yield from file.read().split("\n\n")
    count = 0
    for part in ("train", "unsup", "test"):
        with lzma.open(need(folder / "imdb" / f"{part}.tsv.xz"), "rt", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                if count == reviews:
                    return
                count += 1
                yield row["text"]


def _encode(encoder: BertWordPieceTokenizer | ByteLevelBPETokenizer, texts: list[str], ends: list[int]) -> np.ndarray:
    pieces: list[Iterable[int]] = []
    for start in range(0, len(texts), 1000):
        encoded = encoder.encode_batch(texts[start : start + 1000], add_special_tokens=False)
        pieces += [np.array(one.ids + ends, np.uint16) for one in encoded]
    return np.concatenate(pieces)


def _save(path: Path, tokens: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        np.save(file, tokens)
    os.replace(staged, path)
