"""Weights as they are stored: safetensors headers, the index of shards, pickles; quantised, wrapped or not finite."""

import json
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..console import progress
from ..errors import BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint
from .config_files import read_json
from .files import LFS_POINTER, Stamp, changed, clean, count, is_plain, listed, opened, shown, shown_path
from .safetensors_writer import DTYPES

# The library accepts headers of up to 100 MB, and needs some 900 bytes of memory for each tensor in one. So a header
# that is larger than any model's is refused first. The largest published ones have some 100,000 tensors and 10 MB.
MAX_HEADER = 32_000_000  # bytes
# Values are counted by their commas: at most so many in all, so many for each tensor, and so many in the metadata.
MAX_VALUES = 1_000_000
TENSOR_VALUES = 16
OTHER_VALUES = 20_000
MAX_NAME = 1_024  # characters; the longest names of published models have some 150
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"\s*+(:?)')
NAME = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*+:\s*+\{')
END = re.compile(rb'"data_offsets"\s*+:\s*+\[\s*+\d++\s*+,\s*+(\d++)')
# First bytes of other files that are often found in place of weights.
OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive or pickled PyTorch file"),
    (b"\x80", "a pickled file"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<", "an HTML or XML page"),
    (b"\x1f\x8b", "a gzip archive"),
)
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
    """Name -> tensor of a safetensors file, from its header and its size alone.

    The library's reader refuses a header that is no JSON or that contradicts itself: dtypes, shapes and offsets that
    do not fit together, tensors that overlap, gaps, bytes beyond the end. This function also refuses what the library
    accepts: a header that costs gigabytes or minutes, duplicate names, unknown fields, endless names. And its messages
    say what the file is instead, or how much of it is missing.

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
        _check_amount(path, text)
        if Stamp.of(os.fstat(stream.fileno())) != Stamp.of(os.stat(path)):
            raise changed(path)  # if it is a named pipe by now, the library would wait for ever
        try:
            with safe_open(path, "np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                metadata = file.metadata()
                tensors = {
                    name: StoredTensor(part.get_dtype(), tuple(part.get_shape()), path) for name, part in slices.items()
                }
        except SafetensorError as error:
            raise BadCheckpoint(_reason(path, text, size - 8 - length, error)) from None
    _check_names(path, text, tensors, metadata)
    return tensors


def _check_amount(path: Path, text: bytes) -> None:
    values = text.count(b",")
    if values <= OTHER_VALUES:
        return
    most = min(MAX_VALUES, OTHER_VALUES + TENSOR_VALUES * sum(1 for _ in END.finditer(text)))
    if values > most:
        raise BadCheckpoint(
            f"the header of {shown_path(path)} holds {values:,} values, more than its tensors can have ({most:,}). "
            f"{AGAIN}"
        )


def _reason(path: Path, text: bytes, available: int, error: SafetensorError) -> str:
    """Why the library refuses a header: how much of the file is missing, or else its own message."""
    needed = max((int(match[1][:20]) for match in END.finditer(text)), default=available)
    if "ncomplete" in str(error) and needed > available:
        return _truncated(path, needed, available, " for its tensors")
    if "ncomplete" in str(error) and needed < available:
        rest = available - needed
        return f"{shown_path(path)} has {rest:,} bytes behind its last tensor that belong to no tensor. {AGAIN}"
    message = clean(str(error).removeprefix("Error while deserializing header: "))
    return f"the header of {shown_path(path)} is not what safetensors writes: {message}. {AGAIN}"


def _check_names(
    path: Path, text: bytes, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str] | None
) -> None:
    """Refuse duplicate names, of which the library keeps the last value, and unknown fields, which it ignores."""
    longest = max(tensors, key=len, default="")
    if len(longest) > MAX_NAME:
        raise BadCheckpoint(
            f"the header of {shown_path(path)} has a tensor name of {len(longest):,} characters, {longest[:40]!r}...; "
            f"{MAX_NAME:,} is the most a name can have. {AGAIN}"
        )
    name_count = sum(match[1] == b":" for match in STRING.finditer(text))
    if name_count == 4 * len(tensors) + (0 if metadata is None else 1 + len(metadata)):
        return  # every tensor's name with its dtype, shape and data_offsets, all of them once
    name, times = Counter(match[1] for match in NAME.finditer(text)).most_common(1)[0]
    if times > 1:
        raise BadCheckpoint(f"the header of {shown_path(path)} names {shown(str(json.loads(name)))} twice. {AGAIN}")
    raise BadCheckpoint(
        f"the header of {shown_path(path)} has a name twice, or fields that are none of dtype, shape and data_offsets. "
        f"{AGAIN}"
    )


def check_content(path: Path, start: bytes, size: int) -> None:
    """Refuse an empty file and a Git LFS pointer, whatever format is expected."""
    if not size:
        raise BadCheckpoint(f"{shown_path(path)} is empty (0 bytes). {AGAIN}")
    if start.startswith(LFS_POINTER):
        raise BadCheckpoint(
            f"{shown_path(path)} is a Git LFS pointer, not the weights. Run `git lfs pull` in its folder, or use the "
            "Hub id."
        )


def _header_length(path: Path, start: bytes, size: int) -> int:
    hint = next((f" ({kind})" for mark, kind in OTHER_FORMATS if start.startswith(mark)), "")
    fault = f"{shown_path(path)} is not a safetensors file{hint} (first bytes {start[:12]!r})"
    if size < 8:
        raise BadCheckpoint(f"{fault}: it has {size} bytes. {AGAIN}")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER:
        raise BadCheckpoint(
            f"{fault}: it declares a header of {length:,} bytes, and {MAX_HEADER:,} is the most there can be. {AGAIN}"
        )
    if length < 2 or start[8:9] not in (b"{", b""):
        raise BadCheckpoint(f"{fault}: no header begins after its first 8 bytes. {AGAIN}")
    if 8 + length > size:
        raise BadCheckpoint(_truncated(path, 8 + length, size, " for the header alone"))
    return length


def _truncated(path: Path, needs: int, has: int, purpose: str = "") -> str:
    return f"{shown_path(path)} is truncated (needs {needs:,} bytes{purpose}, has {has:,}). {AGAIN}"


# -- the index of a sharded checkpoint ---------------------------------------------------------------

Headers = Mapping[str, Mapping[str, StoredTensor]]  # shard -> its tensors


def read_index(path: Path, suffix: str) -> dict[str, str]:
    """Tensor -> shard, both as the index names them.

    Args:
        suffix: what the name of every shard must end with.

    Raises:
        UnsafeCheckpoint: a shard that is no plain name inside the folder, or of another format.
        BadCheckpoint: no index, or one that transformers cannot follow.
    """
    fields = read_json(path)
    weight_map = fields.get("weight_map")
    if not isinstance(weight_map, dict):
        raise BadCheckpoint(f"{shown_path(path)} has no 'weight_map' from tensors to files. Download it again.")
    if not weight_map:
        raise BadCheckpoint(f"{shown_path(path)} lists no tensors. Download it again.")
    if not isinstance(fields.get("metadata"), dict):
        raise BadCheckpoint(
            f"{shown_path(path)} has no 'metadata' object, which transformers reads. "
            'Add "metadata": {} to it, or download it again.'
        )
    wrong = [name for name, shard in weight_map.items() if not isinstance(shard, str)]
    if wrong:
        raise BadCheckpoint(
            f"{shown_path(path)} gives tensor {shown(wrong[0])} the file {shown(weight_map[wrong[0]])}, which is no "
            "file name. Download it again."
        )
    for shard in dict.fromkeys(weight_map.values()):
        if not is_plain(shard):
            raise UnsafeCheckpoint(
                f"{shown_path(path)}: the index names a file outside of the model folder: {shown(shard)}. "
                "Nothing of it was opened; get the checkpoint from a source you trust."
            )
        if not shard.endswith(suffix):
            raise UnsafeCheckpoint(
                f"{shown_path(path)} names {shown(shard)}, which is no {suffix} file: another format could run code. "
                "Get the checkpoint from a source you trust."
            )
    return weight_map


def check_agreement(path: Path, index: Mapping[str, str], headers: Headers) -> None:
    """The index must name exactly the tensors of each shard, each in one shard.

    Raises:
        BadCheckpoint: with the names.
    """
    holders = Counter(name for tensors in headers.values() for name in tensors)
    duplicates = [name for name, count in holders.items() if count > 1]
    if duplicates:
        shards = [shard for shard, tensors in headers.items() if duplicates[0] in tensors]
        raise BadCheckpoint(
            f"more than one shard of {shown_path(path)} holds {count(len(duplicates), 'tensor')}: {listed(duplicates)} "
            f"(the first is in {listed(shards)}). Which one counts is undefined; save the model again."
        )
    lacking = [name for name, shard in index.items() if name not in headers[shard]]
    if lacking:
        raise BadCheckpoint(
            f"{shown_path(path)} lists {count(len(lacking), 'tensor')} that the shards lack: {listed(lacking)} (the "
            f"first should be in {shown(index[lacking[0]])}). Download index and shards again, from one revision."
        )
    omitted = [name for name in holders if name not in index]
    if omitted:
        raise BadCheckpoint(
            f"{shown_path(path)} omits {count(len(omitted), 'tensor')} that its shards hold: {listed(omitted)}. "
            "Download index and shards again, from one revision."
        )


# -- pickled weights ---------------------------------------------------------------------------------

NAMES = {**DTYPES, torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}


def read_pickle(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of a pickled file, without running anything that it holds.

    Raises:
        UnsafeCheckpoint: it holds more than tensors and plain containers.
        BadCheckpoint: it is damaged, or no tensors by name.
        UnsupportedCheckpoint: torch is older than 2.6, whose reader of pickles is not safe.
    """
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):  # came with 2.6
        raise UnsupportedCheckpoint(
            f"{shown_path(path)} is pickled, and torch {torch.__version__} can be made to run code by such a file even "
            "with weights_only=True (CVE-2025-32434): transformers refuses to read it. Update to torch>=2.6, or get "
            "the weights as safetensors."
        )
    with opened(path) as (stream, size):
        start = stream.read(128)
    check_content(path, start, size)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except pickle.UnpicklingError:
        if not start.startswith((b"PK", b"\x80")):
            raise BadCheckpoint(
                f"{shown_path(path)} is not a PyTorch file (first bytes {start[:12]!r}). Download it again."
            ) from None
        raise UnsafeCheckpoint(
            f"{shown_path(path)} holds pickled objects other than tensors; they were not built. Get the weights as "
            "safetensors, from a source you trust."
        ) from None
    except Exception as error:  # on a damaged pickle, the unpickler can raise anything
        raise BadCheckpoint(f"{shown_path(path)} cannot be read: {clean(str(error))}. Download it again.") from None
    return _described(path, content)


def _described(path: Path, content: Any) -> dict[str, StoredTensor]:
    is_state_dict = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items()
    )
    if not is_state_dict or not content:
        raise BadCheckpoint(
            f"{shown_path(path)} does not hold tensors by name, as a state dict does. Save the model's state dict, or "
            "use save_pretrained."
        )
    return {
        name: StoredTensor(NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), path)
        for name, tensor in content.items()
    }


# -- quantised weights: codes that mean nothing without their scales ---------------------------------

FLOATS = {DTYPES[dtype]: dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
# What a quantiser writes beside, or instead of, a weight: the end of a tensor's name -> the quantiser.
MARKS = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "scales": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "SCB": "bitsandbytes int8",
    "weight_format": "bitsandbytes int8",
    "absmax": "bitsandbytes 4-bit",
    "quant_map": "bitsandbytes 4-bit",
    "bitsandbytes__nf4": "bitsandbytes 4-bit",
    "bitsandbytes__fp4": "bitsandbytes 4-bit",
    "weight_scale": "fp8 or int8",
    "weight_scale_inv": "fp8",
    "weight_packed": "compressed-tensors",
    "weight_zero_point": "compressed-tensors",
    "weight_scales": "EETQ",
    "input_scale": "fp8",
    "codebooks": "AQLM",
    "W_q": "HQQ",
    "_data": "quanto",
    "_scale": "quanto",
}
REMEDY = "Dequantise it first, or use the checkpoint it was made from."


def check_not_quantised(source: str, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse what cannot be resampled as numbers.

    Args:
        source: the checkpoint, for messages.
        config: the fields of its config.json.
        tensors: what the headers say.

    Raises:
        UnsupportedCheckpoint: naming the quantiser and the tensor or field that shows it.
    """
    for field in ("quantization_config", "compression_config"):
        if config.get(field):
            kind = _method(config[field])
            raise UnsupportedCheckpoint(
                f"{source}: quantised ({kind}) weights cannot be resampled: config.json has a {field}. {REMEDY} Where "
                "the weights are plain floats, remove that field."
            )
    for name, tensor in tensors.items():
        kind = _kind_of(name, tensor)
        if kind:
            raise UnsupportedCheckpoint(
                f"{source}: quantised ({kind}) weights cannot be resampled: {shown(name)} is stored as {tensor.dtype}. "
                f"{REMEDY}"
            )
    for name in tensors:
        kind = MARKS.get(name.rpartition(".")[2], "")
        if kind:
            raise UnsupportedCheckpoint(
                f"{source}: quantised ({kind}) weights cannot be resampled: it holds {shown(name)}. {REMEDY}"
            )


def _method(field: Any) -> str:
    """The quantiser's name from config.json, for a message."""
    method = field.get("quant_method") if isinstance(field, dict) else None
    return shown(method).strip("'") if method else "method not named"


def _kind_of(name: str, tensor: StoredTensor) -> str:
    """How a tensor is quantised by its dtype, empty where it is not."""
    if tensor.dtype.startswith("F8"):
        return "fp8"
    if tensor.dtype == "F4" or tensor.dtype.startswith("F6_"):
        return tensor.dtype.lower().replace("f", "fp", 1)
    # Integers are normal in buffers: position ids, GPT-2's causal mask (1, 1, n, n) as U8 or BOOL.
    is_mask = len(tensor.shape) == 4 and tensor.shape[2] == tensor.shape[3]
    if tensor.dtype == "I8" or (tensor.dtype == "U8" and not is_mask):
        return "int8"
    if tensor.dtype not in FLOATS and name.endswith(".weight"):
        return tensor.dtype.lower().replace("i", "int", 1)
    return ""


# -- prefixes that wrappers of a model put before its names ------------------------------------------

# What a wrapper puts before the names of the model inside it -> the wrapper, and where it holds the model.
WRAPPERS = {
    "module.": ("DistributedDataParallel or DataParallel", "model.module"),
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "_fsdp_wrapped_module.": ("FSDP", "model.module"),
    "_checkpoint_wrapped_module.": ("torch's activation checkpointing", "model._checkpoint_wrapped_module"),
}
LEADING = re.compile(f"(?:{'|'.join(map(re.escape, WRAPPERS))})*")


def wrapper_of(names: Iterable[str]) -> str:
    """What wrappers put before every name, nested ones together; empty unless all names have the same.

    >>> wrapper_of(["_orig_mod.module.wte.weight", "_orig_mod.module.wpe.weight"])
    '_orig_mod.module.'
    >>> wrapper_of(["module.wte.weight", "wpe.weight"])
    ''
    """
    wrappers = {_leading(name) for name in names}
    return wrappers.pop() if len(wrappers) == 1 else ""


def renaming(wrapper: str) -> dict[str, str]:
    """The `key_mapping` with which transformers reads names without their wrapper."""
    return {f"^{re.escape(wrapper)}": ""} if wrapper else {}


def wrapper_hint(names: Iterable[str]) -> str:
    """A sentence on the wrappers that names show, at their beginning or within; empty if they show none.

    >>> wrapper_hint(["bert._orig_mod.pooler.dense.bias"])
    " '_orig_mod.' in a name comes from torch.compile: save the model inside of it (model._orig_mod.save_pretrained)."
    """
    shown = [mark for mark in WRAPPERS if any(_begins(mark, name) or _is_within(mark, name) for name in names)]
    sentences = (
        f" {mark!r} in a name comes from {WRAPPERS[mark][0]}: save the model inside of it "
        f"({WRAPPERS[mark][1]}.save_pretrained)."
        for mark in shown
    )
    return "".join(sentences)


def _leading(name: str) -> str:
    match = LEADING.match(name)
    return match.group() if match else ""


def _begins(mark: str, name: str) -> bool:
    return re.search(rf"(?:^|\.){re.escape(mark)}", _leading(name)) is not None


def _is_within(mark: str, name: str) -> bool:
    return mark.startswith("_") and f".{mark}" in name


# -- NaN and infinity, found in one pass without a copy ----------------------------------------------

BLOCK = 1 << 22  # elements checked together: at most 32 MB of temporaries (float64 of one block)
ROW = 1 << 10
HALVES = (torch.bfloat16, torch.float16)  # their norms are summed up in float32 without a copy
NAMED = 10


def find_nonfinite(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> index of the first NaN or infinity, for every tensor that holds one.

    A sum, or a norm, is NaN or infinite if any term is, and needs one pass over a block without a copy. Since finite
    terms can overflow it too, a block with such a sum is then checked element by element.

    Example:
        >>> find_nonfinite({"a": torch.ones(3), "b": torch.tensor([[0.0, 1.0], [float("inf"), 2.0]])})
        {'b': (1, 0)}
    """
    tracked = progress.tracked(tensors.items(), [x.numel() for x in tensors.values()])
    return {name: place for name, tensor in tracked if (place := _first(tensor)) is not None}


def nonfinite_message(places: Mapping[str, tuple[int, ...]]) -> str:
    """The result of `find_nonfinite` as a clause.

    >>> nonfinite_message({"h.0.w": (0, 17), "s": ()})
    "2 tensors hold NaN or Inf: 'h.0.w' (first at [0, 17]), 's'"
    """
    parts = [shown(name) + (f" (first at {list(place)})" if place else "") for name, place in places.items()]
    rest = f" and {len(parts) - NAMED:,} more" if len(parts) > NAMED else ""
    count = "1 tensor holds" if len(parts) == 1 else f"{len(parts):,} tensors hold"
    return f"{count} NaN or Inf: {', '.join(parts[:NAMED])}{rest}"


def _first(tensor: Tensor) -> tuple[int, ...] | None:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return None
    for offset, block in _blocks(tensor.detach()):
        if bool(torch.isfinite(_total(block)).all()):
            continue
        bad = ~torch.isfinite(block.to(torch.float32) if block.element_size() == 1 else block)
        place = int(bad.flatten().to(torch.uint8).argmax())
        if bool(bad.flatten()[place]):
            inside = [int(index) for index in torch.unravel_index(torch.tensor(place), block.shape)]
            return _shifted(offset, inside)
    return None


def _total(block: Tensor) -> Tensor:
    """One or several numbers, of which one is not finite if any entry is not."""
    if block.dtype in HALVES and block.is_contiguous() and block.numel() % ROW == 0:
        norms: Tensor = torch.linalg.vector_norm(block.view(-1, ROW), dim=1)
        return norms
    # float8 has no sum of its own; float16 would overflow at 65504.
    return block.to(torch.float32).sum() if block.element_size() < 4 else block.sum()


def _shifted(offset: tuple[int, ...], inside: list[int]) -> tuple[int, ...]:
    """The index in the tensor of an index in a block, which begins at `offset`."""
    if not inside:
        return offset
    return (*offset[:-1], offset[-1] + inside[0], *inside[1:])


def _blocks(tensor: Tensor, leading: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Views of at most `BLOCK` elements in row-major order, each with the index of its first element's row."""
    if tensor.numel() == 0:
        return
    if tensor.dim() == 0 or tensor.numel() <= BLOCK:
        yield (*leading, 0) if tensor.dim() else leading, tensor
        return
    row = tensor.numel() // len(tensor)
    if row > BLOCK:
        for place in range(len(tensor)):
            yield from _blocks(tensor[place], (*leading, place))
        return
    step = BLOCK // row
    for place in range(0, len(tensor), step):
        yield (*leading, place), tensor[place : place + step]
