"""Language modelling: next-token and masked loss on running text and on antibody sequences."""

import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import torch
from task import Batch, Task, device_of, need, on
from torch import Tensor

IGNORED = -100  # label of a position without a loss
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"  # ids 4 to 23 of Sapiens; <s> 0, <pad> 1, </s> 2, <mask> 24


@dataclass(frozen=True)
class Corpus:
    """Token ids for training and evaluation.

    Attributes:
        draw: generator and number -> that many training rows (row, token).
        validation: name -> rows; the first one's loss is called "loss", others by their name.
        mask, vocabulary, special: the mask's id, the number of ids, and ids that are never masked.
        pad: the id that fills short rows, None where every row is full.
    """

    draw: Callable[[torch.Generator, int], Tensor]
    validation: dict[str, Tensor]
    mask: int = 0
    vocabulary: int = 0
    special: tuple[int, ...] = field(default=())
    pad: int | None = None


def causal(data: Path, cache: Path, **spec: Any) -> Task:
    """Next-token prediction; see `_corpus` for the fields."""
    corpus = _corpus(data, cache, **spec)

    def batches(seed: int, size: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            ids = corpus.draw(generator, size)
            yield {"input_ids": ids, "labels": ids}

    judged = {name: [{"input_ids": rows, "labels": rows} for rows in _chunks(all_rows)]
              for name, all_rows in corpus.validation.items()}  # fmt: skip
    return _language_task("BoTModelForCausalLM", batches, judged)


def masked(data: Path, cache: Path, **spec: Any) -> Task:
    """Masked prediction of 15 % of the tokens (of these 80 % masked, 10 % replaced, 10 % left)."""
    corpus = _corpus(data, cache, **spec)

    def batches(seed: int, size: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield _hide(corpus.draw(generator, size), corpus, generator)

    generator = torch.Generator().manual_seed(0)  # the same masks at every evaluation
    judged = {name: [_hide(rows, corpus, generator) for rows in _chunks(all_rows)]
              for name, all_rows in corpus.validation.items()}  # fmt: skip
    return _language_task("BoTModelForMaskedLM", batches, judged)


def _language_task(
    factory: str, batches: Callable[[int, int], Iterator[Batch]], judged: dict[str, list[Batch]]
) -> Task:
    names = {name: "loss" if place == 0 else f"loss {name}" for place, name in enumerate(judged)}

    def evaluate(model: Any) -> dict[str, float]:
        return {names[name]: _mean_loss(model, chunks) for name, chunks in judged.items()}

    return Task(factory, dict.fromkeys(names.values(), False), batches, evaluate)


@torch.no_grad()
def _mean_loss(model: Any, chunks: list[Batch]) -> float:
    total, tokens = 0.0, 0
    for chunk in chunks:
        count = int((chunk["labels"] != IGNORED).sum())
        total += float(model(**on(chunk, device_of(model))).loss) * count
        tokens += count
    return total / tokens


def _hide(ids: Tensor, corpus: Corpus, generator: torch.Generator) -> Batch:
    fixed = torch.isin(ids, torch.tensor([*corpus.special, *([] if corpus.pad is None else [corpus.pad])]))
    chosen = (torch.rand(ids.shape, generator=generator) < 0.15) & ~fixed
    chosen[0, int((~fixed[0]).nonzero()[0])] = True  # at least one, so that there is a loss
    fate = torch.rand(ids.shape, generator=generator)
    other = torch.randint(corpus.vocabulary, ids.shape, generator=generator)
    shown = torch.where(chosen & (fate < 0.8), corpus.mask, ids)
    shown = torch.where(chosen & (fate >= 0.9), other, shown)
    batch = {"input_ids": shown, "labels": ids.masked_fill(~chosen, IGNORED)}
    return batch if corpus.pad is None else {**batch, "attention_mask": (ids != corpus.pad).long()}


def _chunks(rows: Tensor, size: int = 16) -> tuple[Tensor, ...]:
    return rows.split(size)


def _corpus(data: Path, cache: Path, corpus: str, validation: int, length: int = 128, **spec: Any) -> Corpus:
    """Read a corpus.

    Args:
        corpus: "gcide" (dictionary, tokens of the gpt2-gcide pair), "antibody", "imdb+brown" (give
            `tokenizer`) or "help" (Python's help texts as bytes, always there).
        validation: rows of held-out text.
        length: tokens a row.
    """
    if corpus == "antibody":
        return _antibodies(need(data / "antibody" / "heavy.txt.xz"), validation, **spec)
    if corpus == "gcide":
        folder = need(data / "weights" / "gpt2-gcide")
        train, held_out = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("train", "heldout"))
        return Corpus(_crops(train, length), {"held out": _rows(held_out, validation, length)}, **spec)
    if corpus == "help":
        train, held_out = corpora.help_texts()
        rows = {"held out": _rows(held_out, validation, length)}
        return Corpus(_crops(train, length), rows, mask=256, vocabulary=257, **spec)
    if corpus == "imdb+brown":
        found = corpora.reviews_and_brown(data, cache, **spec)
        rows = {name: _rows(ids, validation, length) for name, ids in found.validation.items()}
        return Corpus(_crops(found.train, length), rows, found.mask, found.vocabulary, found.special)
    raise ValueError(f"unknown corpus {corpus!r}; known are gcide, antibody, imdb+brown, help.")


def _crops(tokens: np.ndarray, length: int) -> Callable[[torch.Generator, int], Tensor]:
    def draw(generator: torch.Generator, number: int) -> Tensor:
        starts = torch.randint(0, len(tokens) - length, (number,), generator=generator)
        return torch.stack([torch.from_numpy(tokens[s : s + length].astype(np.int64)) for s in starts])

    return draw


def _rows(tokens: np.ndarray, number: int, length: int) -> Tensor:
    count = min(number, len(tokens) // length)
    return torch.from_numpy(tokens[: count * length].astype(np.int64)).reshape(count, length)


def _antibodies(path: Path, validation: int) -> Corpus:
    """Heavy chains: the last `validation` to judge by, the others to train on; unclear ones left out."""
    with lzma.open(path, "rt") as file:
        lines = [line.strip() for line in file]
    # Sapiens has 144 positions, two of them for the ends.
    known = [line[:142] for line in lines if set(line) <= set(AMINO_ACIDS)]
    if not 0 < validation < len(known):
        raise ValueError(f"validation must lie between 1 and {len(known) - 1} sequences, got {validation}.")
    longest = max(map(len, known)) + 2
    rows = torch.full((len(known), longest), 1)
    for row, line in zip(rows, known, strict=True):
        row[: len(line) + 2] = torch.tensor([0, *(4 + AMINO_ACIDS.index(c) for c in line), 2])
    train = rows[:-validation]

    def draw(generator: torch.Generator, number: int) -> Tensor:
        chosen = train[torch.randint(0, len(train), (number,), generator=generator)]
        return chosen[:, : int((chosen != 1).sum(1).max())]

    return Corpus(draw, {"held out": rows[-validation:]}, mask=24, vocabulary=25, special=(0, 2), pad=1)
