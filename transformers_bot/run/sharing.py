"""Loads a resized model in many processes: one of each node writes it, all of them load what was written."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..compat import building, quiet
from ..console import progress
from ..console.progress import logger
from ..errors import PlanError, SaveError
from ..hub import origin, push
from ..io import companions
from ..io.safetensors_writer import total_bytes
from ..report.report import Report
from ..report.rows import make_report
from ..request.keywords import Keywords, picked
from . import processes
from .loading import forget_source, load_alone, loading_info
from .opening import open_resize
from .writing import ROOM, layout_of, save_configs, skeleton_of, write_weights


@dataclass(frozen=True)
class Written:
    """What the process that resized tells the others beside the files."""

    config: PreTrainedConfig
    info: dict[str, Any]
    report: Report
    files: dict[str, Path]


@progress.bar("resizing")
def load_resized(
    model_class: type[PreTrainedModel],
    name: str,
    source_config: PreTrainedConfig,
    wanted: PreTrainedConfig,
    words: Keywords,
) -> PreTrainedModel | tuple[PreTrainedModel, dict[str, Any]]:
    """Resize checkpoint `name` into `model_class(wanted)`, once a node; see `BoTModel.from_pretrained`."""
    load = load_shared if processes.is_shared(model_class, words.target) else load_alone
    return load(model_class, name, source_config, wanted, words)


def load_shared(
    model_class: type[PreTrainedModel],
    name: str,
    source_config: PreTrainedConfig,
    wanted: PreTrainedConfig,
    words: Keywords,
) -> PreTrainedModel | tuple[PreTrainedModel, dict[str, Any]]:
    """What `loading.load_alone` returns, in every process of a job; see `processes.once_per_node`.

    Raises:
        SaveError: the temporary folder has no room for the result.
        RankError: processes that do not fit together.
        What `loading.load_alone` raises, in every process that asks for the model.
    """

    def write(folder: Path) -> Written:
        return _write(folder, model_class, name, source_config, wanted, words)

    def load(folder: Path, written: Written) -> PreTrainedModel | tuple[PreTrainedModel, dict[str, Any]]:
        model, info = _load(folder, written, model_class, words)
        push.attach(model, written.report, written.files, origin.Place.of(name, words.hub.get("subfolder")))
        return (model, {**info, **written.info}) if words.output_loading_info else model

    local = os.path.join(name, words.hub.get("subfolder") or "")
    call = _call(model_class, name, source_config, wanted, words)
    return processes.once_per_node(call, write, load, source=local, together=processes.is_split(words.target))


def _call(
    model_class: type[PreTrainedModel],
    name: str,
    source_config: PreTrainedConfig,
    wanted: PreTrainedConfig,
    words: Keywords,
) -> list[str]:
    """All that decides about the weights, in words that are the same in every process."""
    chosen = picked(words.hub, ("revision", "subfolder")), words.files, words.init, words.bot_config, words.method
    rules = words.dtype, words.ignore_mismatched_sizes, words.allow_pickle, words.nonfinite, words.strict
    configs = source_config.to_json_string(), wanted.to_json_string()
    return [model_class.__name__, name, *configs, repr(chosen), repr(rules), str(words.calibration is not None)]


def _write(
    folder: Path,
    model_class: type[PreTrainedModel],
    name: str,
    source_config: PreTrainedConfig,
    wanted: PreTrainedConfig,
    words: Keywords,
) -> Written:
    """Resize into a plain checkpoint, whose new heads are drawn from the caller's random state."""
    whole = replace(words, target={})  # where it is placed and how it is split is for those who load it
    resize = open_resize(model_class, name, source_config, wanted, whole)
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
    companions.say_left_behind(name, words.hub, "save_pretrained of a model in memory")
    report = make_report(resize.plan, watch, skeleton.config.transformers_bot)
    return Written(skeleton.config, loading_info(resize.plan, {}, report), report, resize.checkpoint.named)


def _load(
    folder: Path, written: Written, model_class: type[PreTrainedModel], words: Keywords
) -> tuple[PreTrainedModel, dict[str, Any]]:
    keywords = {**words.target, **words.init, "config": written.config, "dtype": written.config.dtype}
    with progress.part("loading what was written"), building(), quiet():
        model, info = model_class.from_pretrained(folder, output_loading_info=True, **keywords)
    lost = set(info["missing_keys"]) - set(getattr(model, "all_tied_weights_keys", None) or {})
    if lost or info["unexpected_keys"] or info["mismatched_keys"]:
        raise PlanError(
            f"transformers did not load the resized tensors as they were written: missing {sorted(lost)[:3]}, "
            f"unexpected {sorted(info['unexpected_keys'])[:3]}, mismatched {sorted(info['mismatched_keys'])[:3]}. "
            "Please report this."
        )
    forget_source(model)
    return model, info
