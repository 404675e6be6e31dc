"""Writes the tensors of a target into files one by one, without ever holding a whole model."""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ..compat import Releasing, drawn_from
from ..console import progress
from ..errors import PlanError
from ..io.safetensors_writer import Entry, Shard, ShardWriter, lay_out
from ..planning.planner import Plan
from ..report.measure import Watch
from .execute import hand_over, run_plan
from .opening import Resize

ROOM = 4 * 2**20  # bytes on the disk beside the weights: configs, report, card
RELEASED = 32 << 20  # most bytes of results after which freed memory is returned
WORKSPACE = 64 * 2**20  # bytes of memory beside the tensors: the plan, filters, buffers of libraries


def layout_of(
    resize: Resize, skeleton: PreTrainedModel, max_shard_size: int | str = "50GB"
) -> tuple[dict[str, str], tuple[Shard, ...]]:
    """Target tensor -> its name in the files, and the files."""
    stored = _stored_names(resize, skeleton)
    return stored, lay_out(_entries(resize, stored), max_shard_size)


def write_weights(
    folder: Path, resize: Resize, skeleton: PreTrainedModel, stored: dict[str, str], shards: tuple[Shard, ...]
) -> Watch:
    """Run the plan into the files of a layout in `folder`; return the measurements."""
    watch = Watch(resize.plan, resize.request.adapter)
    writing = ShardWriter(folder, shards, parameters=skeleton.num_parameters())
    with progress.part("resizing and writing", progress.resizing_seconds(resize.plan)), writing as writer:
        for target, tensor in tensors_of(resize, skeleton, watch):
            writer.put(stored[target], tensor)
    return watch


def write_tensors(
    folder: Path, skeleton: PreTrainedModel, tensors: Mapping[str, Tensor], shards: tuple[Shard, ...]
) -> None:
    with ShardWriter(folder, shards, parameters=skeleton.num_parameters()) as writer:
        for name, tensor in tensors.items():
            writer.put(name, tensor)


def save_configs(folder: Path, skeleton: PreTrainedModel) -> None:
    """config.json, and generation_config.json of a model that generates."""
    skeleton.config.save_pretrained(folder)
    if skeleton.can_generate():
        skeleton.generation_config.save_pretrained(folder)


def tensors_of(resize: Resize, skeleton: PreTrainedModel, watch: Watch | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the target's files: resampled ones as they are made, new ones from the skeleton."""
    # Memory that glibc keeps counts against `memory_bound`, which is small if all tensors are small.
    releasing = Releasing(min(RELEASED, _largest(resize.plan)))
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


def _largest(plan: Plan) -> int:
    """The number of elements of the largest tensor in source or target."""
    return max(math.prod(shape) for shape in (*plan.source.shapes.values(), *plan.target.shapes.values()))


def _stored_names(resize: Resize, skeleton: PreTrainedModel) -> dict[str, str]:
    """Target tensor (without tied ones) -> its name in the files, in the order of `save_pretrained`.

    transformers keeps the names of older versions in files (ViT, DeiT).
    """
    state = skeleton.state_dict()
    tensors = {step.target: state[step.target] for step in resize.plan.steps if step.action != "tie"}
    owner = {tensor.data_ptr(): name for name, tensor in tensors.items()}
    stored = {
        owner.get(tensor.data_ptr()): name for name, tensor in revert_weight_conversion(skeleton, tensors).items()
    }
    if set(stored) != set(tensors):
        raise PlanError("transformers stores this model's tensors in another form than it loads them.")
    return {str(name): stored_name for name, stored_name in stored.items()}


def _entries(resize: Resize, stored: dict[str, str]) -> list[Entry]:
    shapes = {step.target: step.shape for step in resize.plan.steps}
    return [Entry(stored_name, resize.dtype, shapes[name]) for name, stored_name in stored.items()]
