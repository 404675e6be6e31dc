"""From a source checkpoint and a target config to an ordinary transformers model."""

import copy
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from . import adapters, configs, methods
from .adapters import Adapter
from .classes import own_class
from .errors import BadCheckpoint, BadOption, IncompatibleModels, PlanError
from .inventory import inventory_of, predict, rules_of
from .keywords import Keywords
from .methods import Method, Task
from .options import BoTConfig
from .planner import Plan, Side, make_plan, task_of
from .resize import run_plan
from .rewrite import Network, Opened, Place
from .sizes import check_supported, config_field, rebuild, role_sizes
from .source import Source, open_source, quiet, stored_dtype
from .version import __version__

logger = logging.get_logger("transformers.bot")


def read_config(source: str, hub: dict[str, Any], like: type[PreTrainedConfig] | None = None) -> PreTrainedConfig:
    """The source's own config, through transformers, with errors that name what is wrong.

    Args:
        like: the config class to use where an old config.json does not name its model type.

    Raises:
        BadCheckpoint: a config.json that is missing from a folder, or that cannot be read.
        OSError: transformers' own, for hub ids that cannot be reached.
    """
    local = os.path.exists(source)
    if not local and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise FileNotFoundError(f"there is no folder or file {source!r}.")
    try:
        fields, _ = PreTrainedConfig.get_config_dict(source, **hub)
        reader = like if like is not None and "model_type" not in fields else AutoConfig
        return reader.from_pretrained(source, **hub)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise BadCheckpoint(f"the config of {source!r} cannot be used: {' '.join(str(error).split())}") from error
    except OSError as error:
        if local:
            raise BadCheckpoint(f"the config of {source!r} cannot be read: {' '.join(str(error).split())}") from error
        raise


def named_config(name: str, like: type[PreTrainedConfig] | None = None) -> PreTrainedConfig:
    """A config by path or hub id, or a ready one by its name; an existing path comes first."""
    ready = name in configs.names() and not os.path.exists(name)
    return configs.get(name) if ready else read_config(name, {}, like)


def target_config(source: PreTrainedConfig, words: Keywords) -> PreTrainedConfig:
    """The config the user asks for: an object, a path, a ready config's name, or overrides.

    Raises:
        IncompatibleModels: another model type than the source's.
        BadKeyword, BadSize: an override that does not exist or cannot be.
    """
    adapter = adapters.get(source.model_type)
    if words.config is None:
        wanted = rebuild(adapter, source, words.overrides)
    elif isinstance(words.config, str):
        wanted = named_config(words.config, type(source))
    else:
        wanted = copy.deepcopy(words.config)
    if wanted.model_type != source.model_type:
        raise IncompatibleModels(
            f"the source is a {source.model_type} model and the target config is {wanted.model_type}: weights move "
            "only between sizes of one model type. Use a config of the source's type."
        )
    if wanted.architectures is None:
        wanted.architectures = source.architectures
    return wanted


def sides(
    source: PreTrainedConfig, target: PreTrainedConfig, options: BoTConfig
) -> tuple[dict[str, int | None], dict[str, int | None]]:
    """Both lists of sizes, checked against each other where configs alone can tell."""
    adapter = adapters.get(source.model_type)
    before, after = role_sizes(adapter, source, "source"), role_sizes(adapter, target, "target")
    check_supported(adapter, target, before, after)
    if before["hidden"] == after["hidden"] and before["heads"] != after["heads"] and options.reheads == "error":
        raise IncompatibleModels(
            f"{config_field(adapter, 'heads')} goes from {before['heads']} to {after['heads']} at the same "
            f"{config_field(adapter, 'hidden')} {before['hidden']}: heads would be cut across. Choose "
            "BoTConfig(reheads='resample') to resize heads and head_dim, or reheads='reshape' to keep the matrices."
        )
    return before, after


def plan_from_configs(
    source_config: PreTrainedConfig,
    wanted: PreTrainedConfig,
    source_class: type[PreTrainedModel],
    target_class: type[PreTrainedModel],
    words: Keywords,
) -> Plan:
    """A plan without any checkpoint: the source is taken to hold what its architecture holds."""
    adapter = adapters.get(source_config.model_type)
    options = BoTConfig.from_any(words.bot_config)
    before, after = sides(source_config, wanted, options)
    stored = _asked_dtype(None, source_config) or torch.float32
    dtype = _asked_dtype(words.dtype, wanted) or stored
    with quiet():
        source = Side(source_config, before, predict(source_class, source_config), stored)
        target = Side(wanted, after, predict(target_class, wanted, words.init), dtype)
    method = methods.get(words.method, options)
    return make_plan(adapter, source, target, method, words.ignore_mismatched_sizes, words.calibration is not None)


def load_resized(
    model_class: type[PreTrainedModel],
    name: str,
    source_config: PreTrainedConfig,
    wanted: PreTrainedConfig,
    words: Keywords,
) -> PreTrainedModel | tuple[PreTrainedModel, dict[str, Any]]:
    """Resize checkpoint `name` into `model_class(wanted)`; see `BoTModel.from_pretrained`."""
    # Once from configs alone, so that what they can refuse is refused before any download.
    plan_from_configs(source_config, wanted, own_class(source_config), model_class, words)
    hub = {key: value for key, value in words.hub.items() if key != "code_revision"}  # only configs take it
    opened = open_source(model_class, name, source_config, {**hub, **words.files, **words.init})
    wanted, plan, tensors = _plan_opened(model_class, opened, source_config, wanted, words)
    logger.info("%s", plan)  # rendered only where it is shown
    dtype = plan.dtypes[1]
    resized = dict(run_plan(plan, tensors, dtype))
    model, info = _hand_over(model_class, wanted, resized, dtype, opened, words)
    _check_complete(plan, info)
    _finish(model, name, plan, words, opened)
    for sentence in plan.warnings:
        logger.warning(sentence)
    if not words.output_loading_info:
        return model
    return model, _loading_info(plan, info)


def _plan_opened(
    model_class: type[PreTrainedModel],
    opened: Source,
    source_config: PreTrainedConfig,
    wanted: PreTrainedConfig,
    words: Keywords,
) -> tuple[PreTrainedConfig, Plan, Mapping[str, torch.Tensor]]:
    """The config that fits the checkpoint's ties, the plan for the tensors it holds, and those tensors."""
    options = BoTConfig.from_any(words.bot_config)
    before, after = sides(source_config, wanted, options)
    stored = stored_dtype(opened.model)
    tensors = inventory_of(opened.model)
    source = Side(opened.model.config, before, tensors, stored, opened.missing, opened.unexpected)
    with quiet():
        dtype = _asked_dtype(words.dtype, wanted) or stored
        target = Side(wanted, after, predict(model_class, wanted, words.init), dtype)
        wanted, target = _settle_ties(model_class, wanted, source, target, words)
    adapter = adapters.get(source_config.model_type)
    task = task_of(adapter, source, target, words.calibration is not None)
    method = methods.get(words.method, options)
    method.check(task)
    network = network_of(adapter, source, opened.model.state_dict(), target if task.tied else None)
    method, prepared = method.prepare(task, Opened(network, opened.model, words.calibration))
    wanted = _with_method_fields(task, method, source, target)
    return (
        wanted,
        make_plan(adapter, source, target, method, words.ignore_mismatched_sizes, words.calibration is not None),
        prepared,
    )


def network_of(adapter: Adapter, source: Side, tensors: Mapping[str, torch.Tensor], tied: Side | None) -> Network:
    """The checkpoint's tensors with the meaning of their axes; `tied` is a target that ties some of them."""
    places = {
        name: Place(rule, layer, rule.template(source.inventory.canonical(name)))
        for name, (rule, layer) in rules_of(adapter, source.inventory, source.sizes).items()
        if name not in source.absent
    }
    pairs = tied.inventory.ties.items() if tied else ()
    shared = {tied.inventory.canonical(name) for pair in pairs for name in pair} if tied else set()
    held = frozenset(name for name in places if source.inventory.canonical(name) in shared)
    return Network(adapter, source.sizes, tensors, places, held)


def _with_method_fields(task: Task, method: Method, source: Side, target: Side) -> PreTrainedConfig:
    """The target config with the fields that the method's formula sets."""
    chosen = method.config_fields(task, source.config)
    if not chosen:
        return target.config
    wanted = copy.deepcopy(target.config)
    for name, value in chosen.items():
        setattr(wanted, name, value)
    return wanted


def _settle_ties(
    model_class: type[PreTrainedModel], wanted: PreTrainedConfig, source: Side, target: Side, words: Keywords
) -> tuple[PreTrainedConfig, Side]:
    """An output embedding that the checkpoint holds apart, although its config ties it, stays apart."""
    if not getattr(source.config, "tie_word_embeddings", False) or source.held.isdisjoint(target.inventory.ties):
        return wanted, target
    wanted = copy.deepcopy(wanted)
    wanted.tie_word_embeddings = False
    return wanted, Side(wanted, target.sizes, predict(model_class, wanted, words.init), target.dtype)


def _asked_dtype(asked: Any, wanted: PreTrainedConfig) -> torch.dtype | None:
    """The dtype of the result, None for the checkpoint's own."""
    dtype = wanted.dtype if asked in (None, "auto") else asked
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
    if dtype is None:
        return None
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise BadOption(f"dtype must be a floating-point torch.dtype, its name, or 'auto', got {asked!r}.")
    return dtype


def _hand_over(
    model_class: type[PreTrainedModel],
    wanted: PreTrainedConfig,
    resized: dict[str, torch.Tensor],
    dtype: torch.dtype,
    opened: Source,
    words: Keywords,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Let transformers build the target: it ties, casts, places, quantises and initialises new heads."""
    keywords = {**words.target, **words.init}
    if model_class.can_generate() and "generation_config" not in keywords:
        keywords["generation_config"] = copy.deepcopy(getattr(opened.model, "generation_config", None))
    with quiet():
        model, info = model_class.from_pretrained(
            None, config=wanted, state_dict=resized, dtype=dtype, output_loading_info=True, **keywords
        )
    return model, info


def _check_complete(plan: Plan, info: dict[str, Any]) -> None:
    """Every parameter came from a step; transformers agrees on which are new."""
    fresh = set(plan.names("fresh"))
    unplanned = set(info["missing_keys"]) - fresh - set(plan.names("tie"))
    if unplanned or info["unexpected_keys"] or info["mismatched_keys"]:
        raise PlanError(
            "transformers did not take the resized tensors as planned: "
            f"missing {sorted(unplanned)[:3]}, unexpected {sorted(info['unexpected_keys'])[:3]}, "
            f"mismatched {sorted(info['mismatched_keys'])[:3]}. Please report this."
        )


def _finish(model: PreTrainedModel, name: str, plan: Plan, words: Keywords, opened: Source) -> None:
    # Without a name transformers writes the string "None"; the model is stored nowhere yet.
    model.config.name_or_path = ""
    # Set by the loader to undo its renames on saving: the result has only new names to save.
    if hasattr(model, "_weight_conversions"):
        del model._weight_conversions
    model.config.transformers_bot = provenance(name, plan, words, opened.model.config)


def provenance(name: str, plan: Plan, words: Keywords, source_config: PreTrainedConfig) -> dict[str, Any]:
    """What made this model, in JSON types: it is saved in `config.json` and survives a reload."""
    shown = ("layer", "hidden", "heads", "ffn")
    return {
        "source": str(name),
        "revision": getattr(source_config, "_commit_hash", None) or words.hub.get("revision"),
        "source_sizes": {role: plan.source_sizes[role] for role in shown},
        "target_sizes": {role: plan.target_sizes[role] for role in shown},
        "inherited": round(plan.inherited, 6),
        **plan.method,
        "versions": {package: metadata.version(package) for package in ("transformers", "torch", "pywavelets")}
        | {"transformers_bot": __version__},
    }


def _loading_info(plan: Plan, info: dict[str, Any]) -> dict[str, Any]:
    clash = {step.target: step for step in plan.steps if step.action == "fresh" and step.source_shape}
    return {
        **info,
        "missing_keys": {n for n in plan.names("fresh") if n not in clash},
        "unexpected_keys": set(plan.dropped) - set(plan.renewed),
        "mismatched_keys": {(n, step.source_shape, step.shape) for n, step in clash.items()},
        "resampled_keys": set(plan.names("resample")),
        "copied_keys": set(plan.names("copy")),
    }
