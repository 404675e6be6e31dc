"""Opens a checkpoint through transformers: it does renames, prefixes, shards, revisions for us.

Loaded with its stored dtype on the CPU, every tensor is a view of the memory-mapped file: nothing
is read until a step of the plan asks for it.
"""

import contextlib
import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures.pruned import refuse_pruned
from ..compat import building, drawn_from, quiet
from ..errors import BadCheckpoint
from .reading import Checkpoint, from_hub, renaming, wrapper_hint

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
        model: the source model; its state dict holds the tensors.
        missing: tensors of the class that the checkpoint does not hold (they are random: unusable).
        unexpected: tensors of the checkpoint that the class does not have.
    """

    model: PreTrainedModel
    missing: frozenset[str]
    unexpected: tuple[str, ...]


def open_source(
    model_class: type[PreTrainedModel],
    name: str,
    config: PreTrainedConfig,
    keywords: dict[str, Any],
    checkpoint: Checkpoint | None = None,
) -> Source:
    """Load `name` into `model_class` at its own sizes, without copying its weights.

    Args:
        keywords: hub and file keywords of `from_pretrained` (revision, subfolder, variant, ...).
        checkpoint: its files, whose own dtype keeps the tensors views of them; the config may name another.

    Raises:
        BadCheckpoint: no tensor of the class is in the checkpoint, or tensors are empty or misshapen.
        HubError: a hub id that is not there, or cannot be reached.
    """
    if checkpoint is not None and checkpoint.wrapper and keywords.get("key_mapping") is None:
        keywords = {**keywords, "key_mapping": renaming(checkpoint.wrapper)}
    # What transformers draws for tensors that the files lack is never used: the caller's random state stays.
    reading = checkpoint.reading() if checkpoint is not None else contextlib.nullcontext()
    with from_hub(name, keywords.get("revision")), building(), reading, quiet(), drawn_from(0):
        model, info = model_class.from_pretrained(
            name,
            config=copy.deepcopy(config),
            dtype=_stored(checkpoint) or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **keywords,
        )
    state = model.state_dict()
    empty = [key for key, tensor in state.items() if tensor.numel() == 0]
    if empty:
        raise BadCheckpoint(
            f"{len(empty)} tensors of {name} are empty ({empty[0]}, ...): they are split over processes "
            "(DeepSpeed ZeRO-3). Resize in one process first, then load the saved result."
        )
    if info["mismatched_keys"]:
        refuse_pruned(name, config, info["mismatched_keys"])
        key, stored, built = sorted(info["mismatched_keys"])[0]
        raise BadCheckpoint(
            f"{name}: {key} is {tuple(stored)} in the weights but {tuple(built)} by its own config. "
            "Config and weights do not belong together."
        )
    missing = frozenset(info["missing_keys"])
    if len(missing) >= len(set(state) - set(getattr(model, "all_tied_weights_keys", {}) or {})):
        raise BadCheckpoint(
            f"{name} holds none of the tensors of {model_class.__name__}; it has "
            f"{sorted(info['unexpected_keys'])[:3]}, ... Use the class that wrote it."
            f"{wrapper_hint(info['unexpected_keys'])}"
        )
    return Source(model, missing, tuple(sorted(info["unexpected_keys"])))


def _stored(checkpoint: Checkpoint | None) -> torch.dtype | None:
    """The floating dtype of most of the files' elements; None where only the files' contents tell."""
    counts: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values() if checkpoint else ():
        counts[tensor.dtype] += math.prod(tensor.shape) if tensor.dtype in FLOATS else 0
    return FLOATS[counts.most_common(1)[0][0]] if counts.total() else None


def stored_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype of most of the source's elements."""
    counts: dict[torch.dtype, int] = {}
    for tensor in model.state_dict().values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])
