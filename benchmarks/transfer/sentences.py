"""Sentence tasks of GLUE: STS-B by the cosine of mean-pooled vectors, the others by a fresh classifier."""

import csv
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from task import Batch, Task, device_of, need, on, ridge
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from transformers_bot.tools.demo import fetch_model

Example = tuple[str, str | None, float]


class Similarity(nn.Module):
    """An encoder that is judged by the cosine of its mean-pooled vectors; batches hold first halves, then second."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, labels: Tensor, **inputs: Tensor) -> SequenceClassifierOutput:
        mask = inputs["attention_mask"][..., None].float()  # (sentence, token, 1)
        hidden = self.encoder(**inputs).last_hidden_state.float()
        first, second = ((hidden * mask).sum(1) / mask.sum(1)).chunk(2)
        cosine = F.cosine_similarity(first, second)
        return SequenceClassifierOutput(loss=F.mse_loss(cosine, labels), logits=cosine)


def task(
    data: Path,
    _cache: Path,
    dataset: str,
    validation: int,
    train: int | None = None,
    tokenizer: str = "minilm",
    length: int = 64,
    probe: int = 0,
) -> Task:
    """One of STS-B, CoLA, MRPC, SST-2, RTE.

    Args:
        validation, train: how many samples, from the front of the file; `train` None for all.
        tokenizer: "minilm" (of the demo's model) or a folder under the data's tokenizers.
        length: tokens at most.
        probe: training samples for the ridge probe of a fresh head; 0 for none.
    """
    known, unseen = _read(data / "glue", dataset, "train")[:train], _read(data / "glue", dataset, "dev")[:validation]
    encoder = _encoder(data, tokenizer, length)
    paired = dataset == "STS-B"

    def batches(seed: int, number: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for places in torch.randperm(len(known), generator=generator).split(number):
                if len(places) == number:
                    yield _batch(encoder, [known[place] for place in places], paired)

    chunks = _in_chunks(encoder, unseen, paired)
    truth = torch.cat([chunk["labels"] for chunk in chunks])

    @torch.no_grad()
    def evaluate(model: Any) -> dict[str, float]:
        scores = torch.cat([model(**on(chunk, device_of(model))).logits.float().cpu() for chunk in chunks])
        loss = F.mse_loss(scores, truth) if paired else F.cross_entropy(scores, truth)
        return {"loss": float(loss), **_figures(dataset, scores, truth)}

    @torch.no_grad()
    def probed(model: Any) -> dict[str, float]:
        some = _in_chunks(encoder, known[:probe], paired)
        features, new = (torch.cat([_pooled(model, chunk) for chunk in part]) for part in (some, chunks))
        return _figures(dataset, ridge(features, torch.cat([chunk["labels"] for chunk in some]), new), truth)

    return _task(dataset, batches, evaluate, probed if probe else None)


def _task(dataset: str, batches: Any, evaluate: Any, probe: Any) -> Task:
    higher = {"loss": False, **dict.fromkeys(METRICS[dataset], True)}
    if dataset == "STS-B":
        return Task("BoTModel", higher, batches, evaluate, wrap=Similarity)
    return Task("BoTModelForSequenceClassification", higher, batches, evaluate, {"num_labels": 2}, probe=probe)


METRICS = {
    "STS-B": ("spearman",),
    "CoLA": ("matthews", "accuracy"),
    "MRPC": ("f1", "accuracy"),
    "SST-2": ("accuracy",),
    "RTE": ("accuracy",),
}


def _figures(dataset: str, scores: Tensor, truth: Tensor) -> dict[str, float]:
    if dataset == "STS-B":
        return {"spearman": float(spearmanr(scores.numpy(), truth.numpy())[0])}
    guess = scores.argmax(1)
    hit, miss = int(((guess == 1) & (truth == 1)).sum()), int(((guess == 0) & (truth == 1)).sum())
    false, right = int(((guess == 1) & (truth == 0)).sum()), int(((guess == 0) & (truth == 0)).sum())
    spread = ((hit + false) * (hit + miss) * (right + false) * (right + miss)) ** 0.5
    found = {
        "matthews": (hit * right - false * miss) / spread if spread else 0.0,  # 0 by definition for a constant guess
        "f1": 2 * hit / (2 * hit + false + miss),
        "accuracy": (hit + right) / len(truth),
    }
    return {name: found[name] for name in METRICS[dataset]}


def _pooled(model: Any, chunk: Batch) -> Tensor:
    inputs = on({name: tensor for name, tensor in chunk.items() if name != "labels"}, device_of(model))
    mask = inputs["attention_mask"][..., None]
    hidden = model.base_model(**inputs).last_hidden_state
    return ((hidden * mask).sum(1) / mask.sum(1)).float().cpu()


def _encoder(data: Path, tokenizer: str, length: int) -> Tokenizer:
    if tokenizer == "minilm":
        encoder = Tokenizer.from_file(str(fetch_model() / "tokenizer.json"))
    else:
        pieces = BertWordPieceTokenizer(str(need(data / "tokenizers" / tokenizer / "vocab.txt")), lowercase=True)
        encoder = pieces._tokenizer
    encoder.enable_truncation(length)
    encoder.enable_padding(pad_id=0, pad_to_multiple_of=8)  # few lengths, so that their FLOPs are counted once
    return encoder


def _in_chunks(encoder: Tokenizer, examples: list[Example], paired: bool) -> list[Batch]:
    return [_batch(encoder, examples[at : at + 50], paired) for at in range(0, len(examples), 50)]


def _batch(encoder: Tokenizer, examples: list[Example], paired: bool) -> Batch:
    first, second, scores = zip(*examples, strict=True)
    if paired:
        encoded, labels = encoder.encode_batch([*first, *second]), torch.tensor(scores) / 5
    else:
        texts = [a if b is None else (a, b) for a, b in zip(first, second, strict=True)]
        encoded, labels = encoder.encode_batch(texts), torch.tensor(scores).long()
    return {
        "input_ids": torch.tensor([one.ids for one in encoded]),
        "attention_mask": torch.tensor([one.attention_mask for one in encoded]),
        "token_type_ids": torch.tensor([one.type_ids for one in encoded]),
        "labels": labels,
    }


def _read(folder: Path, dataset: str, part: str) -> list[Example]:
    """All samples of a part: (sentence, second sentence or None, label)."""
    if dataset == "CoLA":
        rows = _lines(folder / "CoLA" / f"in_domain_{part}.tsv")
        return [(row[3], None, float(row[1])) for row in rows]
    if dataset == "MRPC":
        return [(row[3], row[4], float(row[0])) for row in _lines(folder / "MRPC" / f"{part}.tsv")[1:]]
    if dataset == "STS-B":
        return [(row[1], row[2], float(row[0])) for row in _lines(folder / "STS-B" / f"{part}.tsv")[1:]]
    name = {"train": "train.tsv", "dev": "test.tsv"}[part]  # SST-2's own dev shares sentences with its training part
    if dataset == "SST-2":
        path = folder / "SST-2" / (f"{name}.xz" if part == "train" else name)
        return [(row[0], None, float(row[1])) for row in _lines(path)[1:]]
    if dataset == "RTE":
        return [(row[1], row[2], float(row[0] == "entailment")) for row in _lines(folder / "RTE" / name)[1:]]
    raise ValueError(f"unknown dataset {dataset!r}; known are {', '.join(METRICS)}.")


def _lines(path: Path) -> list[list[str]]:
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(need(path), "rt", encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
