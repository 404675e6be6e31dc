"""Evaluation on real data: STS-B for encoders, held-out text for GPT-2, antibodies for Sapiens."""

import csv
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoTokenizer

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"  # ids 4 to 23; <s> 0, </s> 2, <mask> 24


def sts_spearman(tokenizer_folder: Path, path: Path) -> Callable[[Any], float]:
    """Spearman correlation on STS-B of cosine similarities, mean pooling over tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sentences = [row["sentence1"] for row in rows] + [row["sentence2"] for row in rows]
    scores = [float(row["score"]) for row in rows]

    @torch.inference_mode()
    def evaluate(model: Any) -> float:
        vectors: list[Tensor] = [torch.empty(0)] * len(sentences)
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        for start in range(0, len(order), 64):
            places = order[start : start + 64]
            batch = tokenizer([sentences[i] for i in places], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None]  # (sentence, token, 1)
            pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            for place, vector in zip(places, pooled, strict=True):
                vectors[place] = vector
        left, right = torch.stack(vectors).chunk(2)
        return round(float(spearmanr(F.cosine_similarity(left, right).numpy(), scores)[0]), 4)

    return evaluate


def gpt2_loss(folder: Path, sequences: int = 96, length: int = 128) -> Callable[[Any], float]:
    """Next-token loss on held-out text."""
    tokens = torch.from_numpy(np.load(folder / "heldout.npy").astype(np.int64))
    blocks = tokens[: sequences * length].reshape(sequences, length)

    @torch.inference_mode()
    def evaluate(model: Any) -> float:
        model.eval()
        losses = [float(model(input_ids=b, labels=b).loss) for b in blocks.split(16)]
        return round(float(np.mean(losses)), 4)

    return evaluate


def sapiens_loss(path: Path) -> Callable[[Any], float]:
    """Masked loss on the last 200 antibody sequences, 15 % masked, the same masks every time."""
    with lzma.open(path, "rt") as file:
        lines = [line.strip() for line in file][-200:]
    sequences = [line for line in lines if set(line) <= set(AMINO_ACIDS)]

    @torch.inference_mode()
    def evaluate(model: Any) -> float:
        generator = torch.Generator().manual_seed(0)
        losses = []
        for sequence in sequences:
            ids = torch.tensor([[0, *(4 + AMINO_ACIDS.index(c) for c in sequence[:142]), 2]])
            masked = torch.rand(ids.shape, generator=generator) < 0.15
            masked[:, 0] = masked[:, -1] = False
            if masked.any():
                labels = ids.masked_fill(~masked, -100)
                losses.append(float(model(input_ids=ids.masked_fill(masked, 24), labels=labels).loss))
        return round(float(np.mean(losses)), 4)

    return evaluate
