"""Sharded GPT-2 checkpoints of any size, written tensor by tensor: no model is held."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUMBERS = 2**17  # normal numbers that all weights are cut from
STD = 0.02
SHARD = 2 * 10**9


@dataclass(frozen=True)
class Scale:
    """A GPT-2 of some size; its target has half the layers, half the width and half the heads."""

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int = 50257

    def config(self) -> Any:
        from transformers import GPT2Config

        sizes = {"n_layer": self.layers, "n_embd": self.width, "n_head": self.heads, "vocab_size": self.vocabulary}
        ends = {"bos_token_id": 0, "eos_token_id": 0}  # in any vocabulary
        return GPT2Config(**sizes, **ends, architectures=["GPT2LMHeadModel"], dtype="bfloat16")

    @property
    def target(self) -> "Scale":
        return Scale(f"half of {self.name}", self.layers // 2, self.width // 2, self.heads // 2, self.vocabulary)

    @property
    def parameters(self) -> int:
        """Parameters of embeddings, 1024 positions, blocks (12 width^2 + 13 width) and the last norm; the head is tied.

        >>> Scale("gpt2", 12, 768, 12).parameters
        124439808
        """
        blocks = self.layers * (12 * self.width**2 + 13 * self.width)
        return blocks + (self.vocabulary + 1024 + 2) * self.width

    @property
    def bytes(self) -> int:
        """Bytes in bfloat16."""
        return 2 * self.parameters


SCALES = (
    Scale("0.1 B", 12, 768, 12),
    Scale("0.3 B", 24, 1024, 16),
    Scale("1 B", 34, 1536, 24),
    Scale("3 B", 36, 2560, 40),
    Scale("7 B", 34, 4096, 64),
)
QUICK_SCALES = tuple(Scale(f"quick {width}", 4, width, 4, vocabulary=1000) for width in (64, 128, 256))


def write(scale: Scale, folder: Path) -> Path:
    """The checkpoint in shards of 2 GB with their index, synchronised with the disk.

    Matrices are shifted windows of the same normal numbers, each with its own start: they have full rank and no equal
    rows, and need no memory. Norms are ones, biases zeros.
    """
    import torch
    from transformers import GPT2LMHeadModel

    from transformers_bot.io.safetensors_writer import Entry, ShardWriter, lay_out

    with torch.device("meta"):
        state = GPT2LMHeadModel(scale.config()).state_dict()
    state.pop("lm_head.weight")
    entries = [Entry(name, torch.bfloat16, tuple(tensor.shape)) for name, tensor in state.items()]
    numbers = (STD * torch.randn(NUMBERS, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    place = folder / scale.name.replace(" ", "-")
    place.mkdir(parents=True)
    shards = lay_out(entries, SHARD)
    with ShardWriter(place, shards, parameters=scale.parameters) as writer:
        for order, entry in enumerate(entries):
            writer.put(entry.name, weight(entry, order, numbers))
    scale.config().save_pretrained(place)
    for shard in shards:
        _synchronise(place / shard.file)
    return place


def weight(entry: Any, order: int, numbers: Any) -> Any:
    """A weight of a tensor's shape, cut from `numbers`; norms are ones, biases zeros."""
    if len(entry.shape) == 1:
        return numbers.new_full(entry.shape, 1.0 if entry.name.endswith("weight") else 0.0)
    rows, columns = entry.shape
    start = order * 7919 % (len(numbers) - rows - columns)
    return numbers.as_strided((rows, columns), (1, 1), start)


def _synchronise(path: Path) -> None:
    """Wait until the file is on the disk, so that writing it does not slow the next measurement."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
