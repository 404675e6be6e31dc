"""Writes the tensors of a target into files one by one, without ever holding a whole model."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ..architectures.inventory import rules_of
from ..compat import Releasing, drawn_from
from ..console import progress
from ..errors import PlanError
from ..io.safetensors_writer import Entry, Shard, ShardWriter, lay_out
from ..planning.planner import Plan
from ..report.measure import Watch
from ..rewrite.network import is_bank
from .execute import hand_over, run_plan
from .opening import Resize

ROOM = 4 * 2**20  # bytes on the disk beside the weights: configs, report, card
RELEASED = 32 << 20  # most bytes of results after which freed memory is returned
WORKSPACE = 64 * 2**20  # bytes of memory beside the tensors: the plan, filters, buffers of libraries


Stored = Mapping[str, tuple[str, ...]]  # target tensor -> its names in the files: of one tensor, or of its parts


def layout_of(
    resize: Resize, skeleton: PreTrainedModel, max_shard_size: int | str = "50GB"
) -> tuple[Stored, tuple[Shard, ...]]:
    """Target tensor -> its names in the files, and the files.

    transformers keeps the names of older versions in files (ViT, DeiT), and stores experts one by one.

    Raises:
        PlanError: files have a tensor that is made of several of the model's.
    """
    shapes = {step.target: step.shape for step in resize.plan.steps if step.action != "tie"}
    blank = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    together = revert_weight_conversion(skeleton, blank)  # in the order of save_pretrained
    parts = {
        name: {name: tensor} if name in together else revert_weight_conversion(skeleton, {name: tensor})
        for name, tensor in blank.items()
    }
    owner = {part: name for name, tensors in parts.items() for part in tensors}
    if set(owner) != set(together) or len(owner) != sum(map(len, parts.values())):
        raise PlanError("transformers stores this model's tensors in another form than it loads them.")
    stored: dict[str, tuple[str, ...]] = {}
    for part in together:
        stored[owner[part]] = (*stored.get(owner[part], ()), part)
    entries = [Entry(part, resize.dtype, tuple(parts[owner[part]][part].shape)) for part in together]
    return stored, lay_out(entries, max_shard_size)


def parts_of(skeleton: PreTrainedModel, names: tuple[str, ...], target: str, tensor: Tensor) -> dict[str, Tensor]:
    """The tensors of the files that hold a target tensor.

    Args:
        names: of these tensors, see `layout_of`.
    """
    return {target: tensor} if names == (target,) else revert_weight_conversion(skeleton, {target: tensor})


def write_weights(
    folder: Path, resize: Resize, skeleton: PreTrainedModel, stored: Stored, shards: tuple[Shard, ...]
) -> Watch:
    """Run the plan into the files of a layout in `folder`; return the measurements."""
    watch = Watch(resize.plan, resize.request.adapter)
    writing = ShardWriter(folder, shards, parameters=skeleton.num_parameters())
    with progress.part("resizing and writing", progress.resizing_seconds(resize.plan)), writing as writer:
        _put(writer, skeleton, stored, tensors_of(resize, skeleton, watch))
    return watch


def write_tensors(
    folder: Path, skeleton: PreTrainedModel, tensors: Mapping[str, Tensor], stored: Stored, shards: tuple[Shard, ...]
) -> None:
    """Write tensors that are in memory, by the names of the target."""
    with ShardWriter(folder, shards, parameters=skeleton.num_parameters()) as writer:
        _put(writer, skeleton, stored, ((name, tensors[name]) for name in stored))


def _put(writer: ShardWriter, skeleton: PreTrainedModel, stored: Stored, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for target, tensor in tensors:
        for name, part in parts_of(skeleton, stored[target], target, tensor).items():
            writer.put(name, part)


def save_configs(folder: Path, skeleton: PreTrainedModel) -> None:
    """config.json, and generation_config.json of a model that generates."""
    skeleton.config.save_pretrained(folder)
    if skeleton.can_generate():
        skeleton.generation_config.save_pretrained(folder)


def tensors_of(resize: Resize, skeleton: PreTrainedModel, watch: Watch | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the target's files: resampled ones as they are made, new ones from the skeleton."""
    # Memory that glibc keeps counts against `memory_bound`, which is small if all tensors are small.
    releasing = Releasing(min(RELEASED, _largest(resize.plan) * resize.dtype.itemsize))
    unchanged = resize.checkpoint.check_unchanged
    for result in run_plan(resize.plan, resize.tensors, resize.dtype, watch=watch, before=unchanged):
        size = result[1].nbytes
        yield result
        del result
        releasing.made(size)
    state = skeleton.state_dict()
    yield from ((name, state[name]) for name in resize.plan.names("fresh"))


def skeleton_of(resize: Resize, seed: int | None) -> PreTrainedModel:
    """The target without its weights: transformers builds it around one-element views of their shapes.

    New heads have real weights, drawn by transformers' rules: from `seed`, which leaves the caller's random state
    alone, or from that state if it is None.
    """
    blank = {
        step.target: torch.zeros((), dtype=resize.dtype).expand(step.shape)
        for step in resize.plan.steps
        if step.recipe is not None
    }
    with drawn_from(seed) if seed is not None else nullcontext():
        model, _ = hand_over(resize, blank)
    return model


def memory_bound(plan: Plan, workspace: int = WORKSPACE) -> int:
    """Bytes of memory that a resize without calibration needs at most, beside the source's mapped pages.

    Four float32 copies of the largest tensor (what is read, its sum over layers, the result and one
    temporary), and if a width changes, six float64 matrices over the widest axis: what ordering units and
    turning the stream take at most. None of it grows with the number of layers.
    """
    roles = plan.roles
    widths = [*roles.streams, *roles.units]
    changes = any(plan.target_sizes[role] != plan.source_sizes[role] for role in widths)
    widest = max(plan.source_sizes[role] or 0 for role in widths if not roles.is_whole(role))
    return 4 * 4 * _largest(plan) + (6 * 8 * widest**2 if changes else 0) + workspace


def merged_bytes(resize: Resize) -> int:
    """Bytes of the source's tensors that transformers makes of several while it loads, such as the experts of a layer:
    they are in memory, not on pages of the files.
    """
    stored, state = resize.checkpoint.shapes, resize.opened.model.state_dict()
    rules = rules_of(resize.request.adapter, resize.plan.source, resize.plan.source_sizes)
    banks = (name for name, (rule, _) in rules.items() if is_bank(rule, resize.plan.roles) and name not in stored)
    return sum(state[name].nbytes for name in banks)


def _largest(plan: Plan) -> int:
    """The number of elements of the largest tensor in source or target."""
    return max(math.prod(shape) for shape in (*plan.source.shapes.values(), *plan.target.shapes.values()))
