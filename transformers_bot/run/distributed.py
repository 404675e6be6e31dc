"""Loads a resized model in a job of many processes: one of each node writes it, and all load that.

What is written is an ordinary checkpoint folder, so that slicing (FSDP2, tensor parallel, ZeRO-3) is left to
transformers, and offloading to accelerate through transformers' `device_map`. A call in one process does not
import this module.
"""

import copy
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed as zero

from ..compat import building, quiet, zero_init_is_active
from ..console import progress
from ..console.progress import logger
from ..errors import PlanError, RankError, SaveError
from ..io.checkpoint import say_left_behind
from ..io.safetensors_writer import total_bytes
from ..report.measure import make_report
from ..report.report import Report
from ..request.names import OFFLOADING, SPLITTING
from ..request.request import Request, picked
from .execute import attach, forget_source, loading_info
from .opening import open_resize
from .writing import ROOM, layout_of, save_configs, skeleton_of, write_weights


@dataclass(frozen=True)
class Written:
    """What the process that resized passes to the others beside the files."""

    config: PreTrainedConfig
    info: dict[str, Any]
    report: Report
    files: dict[str, Path]


def is_split(target: Mapping[str, Any]) -> bool:
    """Whether loading with these keywords splits the model, so that every rank takes part in it."""
    return bool(zero.is_deepspeed_zero3_enabled()) or any(target.get(name) is not None for name in SPLITTING)


def is_shared(model_class: type[PreTrainedModel], target: Mapping[str, Any]) -> bool:
    """Whether one process is to resize for all of its node: with several processes, or ZeRO-3.

    Starts torch.distributed if transformers itself is about to: for ZeRO-3, and for
    `distributed_config` under a launcher. A model that may be offloaded to disk is not shared, because it
    reads its files for as long as it lives.

    Args:
        target: the keywords with which the result is to be loaded.

    Raises:
        RankError: inside `deepspeed.zero.Init`, which partitions every weight as soon as it is made.
    """
    _refuse_zero_init()
    offloads = isinstance(target.get("device_map"), str) or any(target.get(name) is not None for name in OFFLOADING)
    if not dist.is_available() or (offloads and not is_split(target)):
        return False
    if not dist.is_initialized():
        _start(model_class, target)
    return dist.is_initialized() and (dist.get_world_size() > 1 or bool(zero.is_deepspeed_zero3_enabled()))


def _start(model_class: type[PreTrainedModel], target: Mapping[str, Any]) -> None:
    if zero.is_deepspeed_zero3_enabled():
        import deepspeed  # type: ignore[import-not-found]

        deepspeed.init_distributed()
    elif target.get("distributed_config") is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        model_class.prepare_distribute_model(target["distributed_config"], device_map=target.get("device_map"))


def _refuse_zero_init() -> None:
    if zero_init_is_active():
        raise RankError(
            "a model cannot be resized inside deepspeed.zero.Init: its weights would be empty. Leave the context "
            "out; transformers splits the result itself while an HfDeepSpeedConfig (or TrainingArguments) is alive."
        )


def load_shared(request: Request) -> PreTrainedModel | tuple[PreTrainedModel, dict[str, Any]]:
    """The resized model, in every process of a job; see `rendezvous.once_per_node`.

    Raises:
        SaveError: the temporary folder has no room for the result.
        RankError: processes that do not fit together.
        What a resize in one process raises, in every process that asks for the model.
    """
    keywords = request.keywords

    def write(folder: Path) -> Written:
        return _write(folder, request)

    def load(folder: Path, written: Written) -> PreTrainedModel | tuple[PreTrainedModel, dict[str, Any]]:
        model, info = _load(folder, written, request)
        attach(model, written.report, request, written.files)
        return (model, {**info, **written.info}) if keywords.output_loading_info else model

    from .rendezvous import once_per_node  # not needed in one process

    local = os.path.join(request.name, request.subfolder or "")
    return once_per_node(_call(request), write, load, source=local, together=is_split(keywords.target))


def _call(request: Request) -> list[str]:
    """Everything that decides the weights, as text that is the same in every process."""
    keywords = request.keywords
    chosen = (
        picked(keywords.hub, ("revision", "subfolder")),
        keywords.files,
        keywords.init,
        keywords.bot_config,
        keywords.method,
    )
    rules = keywords.dtype, keywords.ignore_mismatched_sizes, keywords.allow_pickle, keywords.nonfinite, keywords.strict
    configs = request.source.to_json_string(), request.target.to_json_string()
    calibrated, kept = str(request.calibrated), repr(request.kept.record if request.kept else None)
    return [request.model_class.__name__, request.name, *configs, repr(chosen), repr(rules), calibrated, kept]


def _write(folder: Path, request: Request) -> Written:
    """Resize into a plain checkpoint, whose new heads are drawn from the caller's random state."""
    # Without the target keywords: placing and splitting happen when the result is loaded.
    resize = open_resize(replace(request, keywords=replace(request.keywords, target={})))
    with progress.part("building the model", progress.finishing_seconds(resize.plan) / 2):
        skeleton = skeleton_of(resize, seed=None)
    stored, shards = layout_of(resize, skeleton)
    needs, free = total_bytes(shards) + ROOM, shutil.disk_usage(folder.parent).free
    remedy = "Let TMPDIR name a folder with more room"
    if needs > free:
        raise SaveError(f"the resized model needs {needs:,} bytes in {folder.parent}, {free:,} are free. {remedy}.")
    try:
        folder.mkdir()
        watch = write_weights(folder, resize, skeleton, stored, shards)
        save_configs(folder, skeleton)
    except OSError as error:
        raise SaveError(f"the resized model could not be written to {folder}: {error}. {remedy}.") from None
    for sentence in resize.plan.warnings:
        logger.warning(sentence)
    say_left_behind(request.name, request.keywords.hub, "save_pretrained of a model in memory")
    report = make_report(resize.plan, watch, skeleton.config.transformers_bot)
    return Written(skeleton.config, loading_info(resize.plan, {}, report), report, resize.checkpoint.named)


def _load(folder: Path, written: Written, request: Request) -> tuple[PreTrainedModel, dict[str, Any]]:
    call = request.keywords
    keywords = {**call.target, **call.init, "config": written.config, "dtype": written.config.dtype}
    if request.kept and keywords.get("generation_config") is not None:
        keywords["generation_config"] = copy.deepcopy(keywords["generation_config"])
        request.kept.renumber(keywords["generation_config"])
    with progress.part("loading what was written"), building(), quiet():
        model, info = request.model_class.from_pretrained(folder, output_loading_info=True, **keywords)
    missing = set(info["missing_keys"]) - set(getattr(model, "all_tied_weights_keys", None) or {})
    if missing or info["unexpected_keys"] or info["mismatched_keys"]:
        raise PlanError(
            f"transformers did not load the resized tensors as they were written: missing {sorted(missing)[:3]}, "
            f"unexpected {sorted(info['unexpected_keys'])[:3]}, mismatched {sorted(info['mismatched_keys'])[:3]}. "
            "Please report this."
        )
    forget_source(model)
    return model, info
