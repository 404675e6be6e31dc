"""Writes safetensors files tensor by tensor: the bytes of save_pretrained, without the memory of a model.

Why by hand: safetensors' own save_file takes all tensors of a file at once, in memory. How tensors are split into files
is huggingface_hub's.
"""

import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from ..errors import BadOption, PlanError

# safetensors' own names, in the order of its files: what needs the strictest alignment comes first.
DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ORDER = {dtype: place for place, dtype in enumerate(DTYPES)}
PIECE = 16 * 2**20  # bytes of a tensor that are copied at a time, where a copy is needed at all


@dataclass(frozen=True)
class Entry:
    """A tensor that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A file that is going to be written, with its tensors in the given order."""

    file: str
    entries: tuple[Entry, ...]

    @cached_property
    def header(self) -> bytes:
        """The length of the header in 8 bytes, then the header: JSON, padded with spaces to a multiple of 8 bytes."""
        fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for entry in self._stored:
            span = [start, start + entry.bytes]
            fields[entry.name] = {"dtype": DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
            start += entry.bytes
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def starts(self) -> dict[str, int]:
        """Where the bytes of each tensor begin in the file."""
        starts, start = {}, len(self.header)
        for entry in self._stored:
            starts[entry.name] = start
            start += entry.bytes
        return starts

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return len(self.header) + sum(entry.bytes for entry in self.entries)

    @property
    def _stored(self) -> list[Entry]:
        return sorted(self.entries, key=lambda entry: (ORDER[entry.dtype], entry.name))


def lay_out(entries: Sequence[Entry], max_shard_size: int | str = "50GB") -> tuple[Shard, ...]:
    """Return the files for these tensors, split and named as save_pretrained does for a state dict in this order.

    >>> entries = [Entry("a", torch.float32, (1000,)), Entry("b", torch.bfloat16, (1000,)), Entry("c", torch.int64, ())]
    >>> [(shard.file, shard.bytes) for shard in lay_out(entries, "5KB")]
    [('model-00001-of-00002.safetensors', 4104), ('model-00002-of-00002.safetensors', 2160)]

    Args:
        max_shard_size: bytes of tensors in a file, or text such as "2GB"; a larger tensor has a file of its own.

    Raises:
        BadOption: an impossible size.
        PlanError: a duplicate name, one that the format reserves, or a dtype that it does not have.
    """
    by_name = {entry.name: entry for entry in entries}
    if len(by_name) < len(entries) or "__metadata__" in by_name:
        duplicates = sorted(name for name in by_name if sum(entry.name == name for entry in entries) > 1) or [
            "__metadata__"
        ]
        raise PlanError(f"tensor names must be unique, and not '__metadata__': {duplicates}.")
    if unknown := [entry for entry in entries if entry.dtype not in DTYPES]:
        raise PlanError(f"{unknown[0].name} is {unknown[0].dtype}, which cannot be written; these can: {[*DTYPES]}.")
    if isinstance(max_shard_size, (int, float)) and not max_shard_size >= 1:
        raise BadOption(f"max_shard_size is {max_shard_size!r}: it must be at least one byte.")
    try:
        split = split_state_dict_into_shards_factory(
            by_name,
            get_storage_size=lambda entry: entry.bytes,
            # torch gives all tensors without elements the same address, so that transformers takes them for one.
            get_storage_id=lambda entry: entry.name if entry.bytes else 0,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise BadOption(f"max_shard_size {max_shard_size!r}: give bytes, or text such as '2GB' ({error}).") from None
    return tuple(
        Shard(file, tuple(by_name[name] for name in names)) for file, names in split.filename_to_tensors.items()
    )


def total_bytes(shards: Sequence[Shard]) -> int:
    """Return what the files take on the disk; the index, some 100 bytes a tensor, is counted with them."""
    index = sum(len(shard.file) + len(entry.name) + 12 for shard in shards for entry in shard.entries)
    return sum(shard.bytes for shard in shards) + (index + 200 if len(shards) > 1 else 0)


class ShardWriter:
    """Writes tensors into the files of a layout, in any order, each exactly once.

    >>> import tempfile
    >>> from safetensors.torch import load_file
    >>> shards = lay_out([Entry("weight", torch.bfloat16, (2, 3))])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ShardWriter(Path(folder), shards, parameters=6) as writer:
    ...         writer.put("weight", torch.ones(2, 3, dtype=torch.bfloat16))
    ...     load_file(f"{folder}/model.safetensors")["weight"].sum()
    tensor(6., dtype=torch.bfloat16)

    On entering, the files are made, with their headers and with their space reserved, so that a disk that is too
    small is found at once. On leaving, every tensor must have been put, and a sharded result gets its index. No
    tensor is kept, and none is copied as a whole: a contiguous one in main memory is written from where it lies,
    any other is copied 16 MiB at a time. Numbers are written as they lie in memory, which is the order of the format
    on little-endian machines; big-endian ones (s390x) are not supported.

    Args:
        folder: where to write; an existing folder.
        shards: what `lay_out` returned.
        parameters: the model's number of parameters (`model.num_parameters()`), which goes into the index.

    Raises:
        PlanError: a tensor of another name, shape or dtype than laid out, put twice, or missing at the end.
        OSError: the system's own, when the disk is full or fails.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], *, parameters: int) -> None:
        self.folder, self.shards, self.parameters = folder, tuple(shards), parameters
        self._open = {entry.name: (entry, shard) for shard in shards for entry in shard.entries}
        self._put: set[str] = set()
        self._buffer = torch.empty(PIECE, dtype=torch.uint8)  # one for all tensors: the allocator would keep many

    def __enter__(self) -> "ShardWriter":
        for shard in self.shards:
            with open(self.folder / shard.file, "xb") as file:
                file.write(shard.header)
                file.flush()
                _reserve(file.fileno(), shard.bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor."""
        if name in self._put:
            raise PlanError(f"{name!r} is written twice.")
        if name not in self._open:
            raise PlanError(f"{name!r} is not among the {len(self._open)} tensors that were laid out.")
        entry, shard = self._open[name]
        if (tuple(tensor.shape), tensor.dtype) != (entry.shape, entry.dtype):
            raise PlanError(
                f"{name!r} is laid out as {entry.dtype} {entry.shape}, got {tensor.dtype} {tuple(tensor.shape)}."
            )
        with open(self.folder / shard.file, "r+b") as file:
            start = shard.starts[name]
            for piece in _pieces(tensor.detach(), self._buffer):
                start = _write(file.fileno(), piece, start)
        self._put.add(name)

    def close(self) -> None:
        """Check that all is written, and write the index of a sharded result."""
        if missing := [name for name in self._open if name not in self._put]:
            raise PlanError(f"{len(missing)} of {len(self._open)} tensors were not written: {', '.join(missing[:3])}.")
        if len(self.shards) > 1:
            (self.folder / "model.safetensors.index.json").write_text(self._index(), encoding="utf-8")

    def _index(self) -> str:
        size = sum(entry.bytes for shard in self.shards for entry in shard.entries)
        files = {entry.name: shard.file for shard in self.shards for entry in shard.entries}
        fields = {"metadata": {"total_parameters": self.parameters, "total_size": size}, "weight_map": files}
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"


def _reserve(handle: int, size: int) -> None:
    """Take the space of the file on the disk now, where the filesystem can."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            return os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
    return os.ftruncate(handle, size)


def _pieces(tensor: Tensor, buffer: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of `tensor` in order: in place, or copied to `buffer` and then valid until the next piece."""
    size = tensor.numel() * tensor.itemsize
    if size == 0:
        return
    if tensor.is_contiguous() and tensor.device.type == "cpu":
        yield tensor.view(-1).view(torch.uint8).numpy().data
    elif size <= len(buffer):
        buffer[:size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        yield buffer[:size].numpy().data
    elif len(tensor) == 1:
        yield from _pieces(tensor[0], buffer)
    else:
        for part in torch.split(tensor, max(1, len(buffer) * len(tensor) // size)):
            yield from _pieces(part, buffer)


def _write(handle: int, data: memoryview, start: int) -> int:
    """Write all of `data` at `start`, which can take the system several calls, and return where it ends."""
    while data:
        done = os.pwrite(handle, data, start)
        data, start = data[done:], start + done
    return start
