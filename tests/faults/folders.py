"""A model folder of two layers, and the tools that damage it: raw headers, links, pipes."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from families import build

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLE = "pytorch_model.bin"
Mutator = Callable[[Path], None]


def make_sources(folder: Path) -> dict[str, Path]:
    """The same model three times: in one file, in shards, and pickled."""
    model = build("gpt2", "GPT2LMHeadModel", dtype=torch.float32).model
    sources = {name: folder / name for name in ("single", "sharded", "pickled")}
    model.save_pretrained(sources["single"])
    model.save_pretrained(sources["sharded"], max_shard_size="3KB")
    shutil.copytree(sources["single"], sources["pickled"])
    (sources["pickled"] / WEIGHTS).unlink()
    torch.save(model.state_dict(), sources["pickled"] / PICKLE)
    return sources


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors' bytes of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path: Path, header: Any, tensors: bytes, length: int | None = None) -> None:
    """Write a safetensors file from a header (an object, or its text) as it is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(joined(text, tensors, length))


def joined(text: bytes, tensors: bytes, length: int | None = None) -> bytes:
    """The content of a safetensors file with a header of this text."""
    return struct.pack("<Q", len(text) if length is None else length) + text + tensors


def header(change: Callable[[dict[str, Any]], Any], name: str = WEIGHTS) -> Mutator:
    """A mutator that edits the header's object; what `change` returns, if anything, takes its place."""

    def mutate(folder: Path) -> None:
        fields, tensors = split(folder / name)
        join(folder / name, change(fields) or fields, tensors)

    return mutate


def field(name: str, value: Any) -> Mutator:
    """A mutator that sets one field of the first tensor in the header."""
    return header(lambda fields: first(fields).update({name: value}))


def first(fields: dict[str, Any]) -> dict[str, Any]:
    """The first tensor of a header, by its place in the file."""
    return in_order(fields)[0]


def in_order(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """All tensors of a header by their place in the file."""
    tensors = [value for name, value in fields.items() if name != "__metadata__"]
    return sorted(tensors, key=lambda tensor: tensor["data_offsets"])


def header_text(text: bytes, tensors: bytes = b"") -> Mutator:
    """A mutator that puts a file of this header in the place of the weights."""
    return lambda folder: join(folder / WEIGHTS, text, tensors)


def content(data: bytes, name: str = WEIGHTS) -> Mutator:
    """A mutator that replaces a file's content."""
    return lambda folder: Path(folder / name).write_bytes(data) and None


def cut(size: int, name: str = WEIGHTS) -> Mutator:
    """A mutator that cuts a file to `size` bytes, or by as many where negative."""

    def mutate(folder: Path) -> None:
        length = (folder / name).stat().st_size
        os.truncate(folder / name, size if size >= 0 else length + size)

    return mutate


def json_edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Mutator:
    """A mutator that edits the object of a JSON file; what `change` returns, if anything, takes its place."""

    def mutate(folder: Path) -> None:
        fields = json.loads((folder / name).read_text())
        changed = change(fields)
        (folder / name).write_text(json.dumps(fields if changed is None else changed))

    return mutate


def index(change: Callable[[dict[str, Any]], Any]) -> Mutator:
    return json_edit(INDEX, change)


def config(**fields: Any) -> Mutator:
    """A mutator that sets fields of config.json."""
    return json_edit(CONFIG, lambda known: known.update(fields))


def first_shard(name: Any) -> Mutator:
    """A mutator that lets the index name another file in the place of the first shard."""

    def change(fields: dict[str, Any]) -> None:
        shard = next(iter(fields["weight_map"].values()))
        for tensor, file in fields["weight_map"].items():
            fields["weight_map"][tensor] = name if file == shard else file

    return index(change)


def moved_out(name: str, link: bool = True) -> Mutator:
    """A mutator that moves a file out of the folder and leaves a link to it (or nothing)."""

    def mutate(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        shutil.move(folder / name, outside / Path(name).name)
        if link:
            (folder / name).symlink_to(outside / Path(name).name)

    return mutate


def replaced(name: str, make: Callable[[Path], Any]) -> Mutator:
    """A mutator that makes something else in the place of a file: `make(path)`."""

    def mutate(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return mutate


def both(*mutators: Mutator) -> Mutator:
    """One mutator after the other."""

    def mutate(folder: Path) -> None:
        for each in mutators:
            each(folder)

    return mutate


def shard(number: int) -> str:
    """The name of a shard of the sharded source."""
    return f"model-{number:05d}-of-{SHARDS:05d}.safetensors"


SHARDS = 5
