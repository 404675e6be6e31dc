"""Safetensors headers, read without trusting a single number in them.

Layout (format specification of the safetensors project): 8 bytes, the length N of the header as a
little-endian integer; N bytes of JSON, an object {name: {"dtype", "shape", "data_offsets": [from, to]}}
with an optional "__metadata__" {text: text}, padded with spaces; the tensors' bytes without gaps.

The JSON is taken apart one tensor at a time: a parser that builds the whole object first would let a
header of 100 MB claim gigabytes before anything could be refused.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BadCheckpoint
from .paths import opened, shown, shown_path

MAX_HEADER = 100_000_000  # bytes; the cap of the safetensors library itself
MAX_TENSORS = 1_000_000
MAX_NAME = 1_024  # bytes; the longest names of published models have some 150
MAX_METADATA = 8_000_000  # bytes, in as many texts:
MAX_TEXTS = 10_000
# Bits of one element. Names as in the format; the last two rows are sub-byte and 8-bit floats.
BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64},
    **{"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
}
LFS_POINTER = b"version https://git-lfs"
# First bytes of what people find in the place of weights.
OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive or pickled PyTorch file"),
    (b"\x80", "a pickled file"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<", "an HTML or XML page"),
    (b"\x1f\x8b", "a gzip archive"),
)
SPACE = re.compile(rb"[ \t\n\r]*+")
STRING = re.compile(rb'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"')
OBJECT = re.compile(rb"\{[^{}]{0,4096}+\}")
OPEN, CLOSE, COMMA, COLON = (re.compile(re.escape(mark)) for mark in (b"{", b"}", b",", b":"))
AGAIN = "Download it again."


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a header says of one tensor.

    Attributes:
        dtype: the format's name, such as "F32" or "BF16".
        shape: its lengths.
        file: the file that holds it.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of a safetensors file, in the file's order, from its header and its size alone.

    Example:
        >>> read_header(Path("model.safetensors"))["wte.weight"].shape  # doctest: +SKIP
        (50257, 768)

    Raises:
        BadCheckpoint: not a safetensors file, truncated, or a header that contradicts itself; always
            before memory is taken for what the header claims.
    """
    with opened(path) as (stream, size):
        start = stream.read(128)
        check_content(path, start, size)
        length = _header_length(path, start, size)
        stream.seek(8)
        text = stream.read(length)
    # Inside of a text the quotes would be escaped: this counts tensors before any is built.
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise BadCheckpoint(
            f"the header of {shown_path(path)} names more than {MAX_TENSORS:,} tensors, which no model has. {AGAIN}"
        )
    tensors: dict[str, StoredTensor] = {}
    ranges: list[tuple[int, int, str]] = []
    for key, value in _Header(path, text).entries():
        name = _name(path, key)
        if name in tensors:
            raise BadCheckpoint(f"the header of {shown_path(path)} names {shown(name)} twice. {AGAIN}")
        tensors[name], begin, end = _tensor(path, name, value)
        ranges.append((begin, end, name))
    _check_layout(path, ranges, size - 8 - length)
    return tensors


def check_content(path: Path, start: bytes, size: int) -> None:
    """Refuse an empty file and a Git LFS pointer, whatever the format that is expected."""
    if not size:
        raise BadCheckpoint(f"{shown_path(path)} is empty (0 bytes). {AGAIN}")
    if start.startswith(LFS_POINTER):
        raise BadCheckpoint(
            f"{shown_path(path)} is a Git LFS pointer, not the weights. Run `git lfs pull` in its folder, or use the "
            "Hub id."
        )


def _header_length(path: Path, start: bytes, size: int) -> int:
    what = next((f" ({kind})" for mark, kind in OTHER_FORMATS if start.startswith(mark)), "")
    alien = f"{shown_path(path)} is not a safetensors file{what} (first bytes {start[:12]!r})"
    if size < 8:
        raise BadCheckpoint(f"{alien}: it has {size} bytes. {AGAIN}")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER:
        raise BadCheckpoint(
            f"{alien}: it declares a header of {length:,} bytes, and {MAX_HEADER:,} is the most there can be. {AGAIN}"
        )
    if length < 2 or start[8:9] not in (b"{", b""):
        raise BadCheckpoint(f"{alien}: no header begins after its first 8 bytes. {AGAIN}")
    if 8 + length > size:
        raise BadCheckpoint(_truncated(path, 8 + length, size, " for the header alone"))
    return length


def _truncated(path: Path, needs: int, has: int, what: str = "") -> str:
    return f"{shown_path(path)} is truncated (needs {needs:,} bytes{what}, has {has:,}). {AGAIN}"


class _Header:
    """Takes a header's JSON apart from front to back."""

    def __init__(self, path: Path, text: bytes) -> None:
        self.path, self.text, self.place = path, text, 0
        self.take(SPACE, "space")

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """The names and values as JSON text, without `__metadata__`; then the text must end."""
        for key in self.members():
            if key == b'"__metadata__"':
                self.skip_metadata()
            else:
                yield key, self.take(OBJECT, "a tensor's dtype, shape and data_offsets")
        if self.place != len(self.text):
            raise self.broken("the end")

    def members(self) -> Iterator[bytes]:
        """The names of the object that begins here; the caller takes each value before the next name."""
        self.take(OPEN, "'{'")
        first = True
        while self.text[self.place : self.place + 1] != b"}":
            if not first:
                self.take(COMMA, "','")
            first = False
            key = self.take(STRING, "a quoted name")
            self.take(COLON, "':'")
            yield key
        self.take(CLOSE, "'}'")

    def skip_metadata(self) -> None:
        """Pass over an object of texts; its content is not used, but must be what the library can read."""
        begin = self.place
        for number, key in enumerate(self.members()):
            value = self.take(STRING, "a text in __metadata__")
            if self.place - begin > MAX_METADATA or number >= MAX_TEXTS:
                raise self.broken(f"at most {MAX_METADATA:,} bytes and {MAX_TEXTS:,} texts of __metadata__")
            _text(self.path, key)
            _text(self.path, value)

    def take(self, pattern: re.Pattern[bytes], wanted: str) -> bytes:
        """The text that a pattern matches here; the place moves behind it and behind spaces."""
        found = pattern.match(self.text, self.place)
        if found is None:
            raise self.broken(wanted)
        space = SPACE.match(self.text, found.end())
        self.place = space.end() if space else found.end()
        return found.group()

    def broken(self, wanted: str) -> BadCheckpoint:
        found = self.text[self.place : self.place + 20]
        return BadCheckpoint(
            f"the header of {shown_path(self.path)} is not what safetensors writes: expected {wanted} at byte "
            f"{8 + self.place:,}, found {found!r}. {AGAIN}"
        )


def _name(path: Path, key: bytes) -> str:
    if len(key) > MAX_NAME + 2:
        raise BadCheckpoint(
            f"the header of {shown_path(path)} has a tensor name of {len(key) - 2:,} bytes, {key[1:41]!r}...; "
            f"{MAX_NAME:,} is the most a name can have. {AGAIN}"
        )
    return _text(path, key)


def _text(path: Path, quoted: bytes) -> str:
    """A quoted text, decoded; half a surrogate pair is none, although Python's parser takes it."""
    try:
        text = str(json.loads(quoted))
        text.encode()
    except ValueError:
        raise BadCheckpoint(f"the header of {shown_path(path)} has {quoted[:40]!r} as a text. {AGAIN}") from None
    return text


def _tensor(path: Path, name: str, value: bytes) -> tuple[StoredTensor, int, int]:
    """A tensor and the range of its bytes, each number checked against the others."""
    bad = f"{shown_path(path)}: tensor {shown(name)} has "
    try:
        fields = json.loads(value, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{bad}an entry that cannot be read ({shown(str(error))}). {AGAIN}") from None
    if set(fields) != {"dtype", "shape", "data_offsets"}:
        raise BadCheckpoint(f"{bad}the fields {sorted(fields)[:4]!r:.200}, not dtype, shape and data_offsets. {AGAIN}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise BadCheckpoint(f"{bad}the dtype {shown(dtype)}, which is none of {', '.join(BITS)}. {AGAIN}")
    if not _are_lengths(shape):
        raise BadCheckpoint(f"{bad}the shape {shown(shape)}, which is no list of lengths. {AGAIN}")
    if not _are_lengths(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadCheckpoint(f"{bad}the data_offsets {shown(offsets)}, which are no range of bytes. {AGAIN}")
    bits = math.prod(shape) * BITS[dtype]
    begin, end = offsets
    if bits != 8 * (end - begin):
        raise BadCheckpoint(
            f"{bad}the shape {shown(shape)} of {dtype}, which is {shown(bits // 8)} bytes, but data_offsets for "
            f"{end - begin:,}. {AGAIN}"
        )
    return StoredTensor(dtype, tuple(shape), path), begin, end


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is given twice")
    return fields


def _are_lengths(value: Any) -> bool:
    return isinstance(value, list) and all(type(length) is int and 0 <= length < 1 << 63 for length in value)


def _check_layout(path: Path, ranges: list[tuple[int, int, str]], held: int) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    ranges.sort()
    reached, before = 0, ""
    for begin, end, name in ranges:
        if begin < reached:
            raise BadCheckpoint(
                f"{shown_path(path)}: tensors {shown(before)} and {shown(name)} overlap in the file. {AGAIN}"
            )
        if begin > reached:
            raise BadCheckpoint(
                f"{shown_path(path)}: {begin - reached:,} bytes before tensor {shown(name)} belong to no tensor. "
                f"{AGAIN}"
            )
        reached, before = end, name
    if reached > held:
        raise BadCheckpoint(_truncated(path, reached, held, " for its tensors"))
    if reached < held:
        raise BadCheckpoint(
            f"{shown_path(path)} has {held - reached:,} bytes behind its last tensor that belong to no tensor. {AGAIN}"
        )
