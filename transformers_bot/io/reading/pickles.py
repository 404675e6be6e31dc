"""Pickled weights that a user allowed: read as tensors only, and described like a header.

`torch.load(weights_only=True)` builds tensors and plain containers and refuses everything else; with
`mmap` no weight is read.
"""

import pickle
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from ...errors import BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint
from .headers import StoredTensor, check_content
from .paths import clean, opened, shown_path

DTYPES = {
    **{torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"},
    **{torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"},
    **{torch.bool: "BOOL", torch.complex64: "C64"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
}


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
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except pickle.UnpicklingError:
        if not start.startswith((b"PK", b"\x80")):
            raise BadCheckpoint(
                f"{shown_path(path)} is not a PyTorch file (first bytes {start[:12]!r}). Download it again."
            ) from None
        raise UnsafeCheckpoint(
            f"{shown_path(path)} holds pickled objects other than tensors; they were not built. Get the weights as "
            "safetensors, from a source you trust."
        ) from None
    except Exception as error:  # damaged pickles make the unpickler fail in every way there is
        raise BadCheckpoint(f"{shown_path(path)} cannot be read: {clean(str(error))}. Download it again.") from None
    return _described(path, found)


def _described(path: Path, found: Any) -> dict[str, StoredTensor]:
    named = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items()
    )
    if not named or not found:
        raise BadCheckpoint(
            f"{shown_path(path)} does not hold tensors by name, as a state dict does. Save the model's state dict, or "
            "use save_pretrained."
        )
    return {
        name: StoredTensor(DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), path)
        for name, tensor in found.items()
    }
