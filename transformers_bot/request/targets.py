"""What a call asks for: the source's config, the target's, their sizes, and the plan that configs alone give."""

import copy
import os
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .. import architectures, methods
from ..architectures import configs
from ..architectures.classes import named_class
from ..architectures.fields import forget_pruned, without_crossing
from ..architectures.inventory import predict
from ..architectures.sizes import check_supported, config_field, rebuild, role_sizes
from ..compat import quiet
from ..errors import BadOption, HubError, IncompatibleModels, suggest
from ..io.config_files import model_config
from ..io.weights import FLOATS
from ..options import BoTConfig
from ..planning.planner import Plan, Side, make_plan
from .keywords import Keywords

DTYPES = {"fp16": "float16", "f16": "float16", "bf16": "bfloat16"}  # what torch itself has no name for
DTYPES |= {"fp32": "float32", "f32": "float32", "fp64": "float64", "f64": "float64"}

READY = "ready:"  # before the name of a ready config


def read_config(source: str, hub: dict[str, Any], like: type[PreTrainedConfig] | None = None) -> PreTrainedConfig:
    """The source's own config, through transformers, with errors that name what is wrong.

    Args:
        like: the config class to use where an old config.json does not name its model type.

    Raises:
        BadCheckpoint: a config.json that is missing from a folder, or that cannot be read.
        HubError: a hub id that is not there, or cannot be reached.
    """
    local = os.path.exists(source)
    if not local and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise FileNotFoundError(f"there is no folder or file {source!r}.")
    return model_config(source, hub, like)


def named_config(name: str, like: type[PreTrainedConfig] | None = None) -> PreTrainedConfig:
    """A config by path or hub id, or a ready one by its name ("ready:bert-small" where a folder has that name).

    Raises:
        BadOption: a ready config and also a folder; or a name that is nothing at all, with the nearest ready one.
        HubError: a hub id that is not there, or cannot be reached.
        What `read_config` raises.
    """
    if name.startswith(READY):
        return configs.get(name.removeprefix(READY))
    if name not in configs.names():
        try:
            return read_config(name, {}, like)
        except HubError as error:
            if "/" in name:
                raise HubError(f"config {name!r}: {error}") from None
            ready = f"no ready config ({', '.join(configs.names())})"
            raise BadOption(f"config {name!r} is {ready}. {error}{suggest(name, configs.names())}") from None
    if os.path.exists(name):
        raise BadOption(
            f"config {name!r} is a ready config, and there is a folder or file of that name. Write "
            f"{os.path.join(os.curdir, name)!r} for what is here, {READY + name!r} for the ready config."
        )
    return configs.get(name)


def target_config(source: PreTrainedConfig, words: Keywords) -> PreTrainedConfig:
    """The config the user asks for: an object, a path, a ready config's name, or overrides.

    Raises:
        IncompatibleModels: another model type than the source's.
        BadKeyword, BadSize: an override that does not exist or cannot be.
    """
    adapter = architectures.get(source.model_type)
    if words.config is None:
        wanted = rebuild(adapter, source, words.overrides)
    elif isinstance(words.config, str):
        wanted = named_config(words.config, type(source))
    else:
        wanted = copy.deepcopy(words.config)
    check_same_type(source, wanted)
    forget_pruned(wanted)
    if named_class(wanted) is None:
        wanted.architectures = source.architectures
    return wanted


def check_same_type(source: PreTrainedConfig, wanted: PreTrainedConfig) -> None:
    """Refuse to move weights between model types."""
    if wanted.model_type != source.model_type:
        raise IncompatibleModels(
            f"the source is a {source.model_type} model and the target config is {wanted.model_type}: weights move "
            "only between sizes of one model type. Use a config of the source's type."
        )


def sides(
    source: PreTrainedConfig, target: PreTrainedConfig, options: BoTConfig
) -> tuple[dict[str, int | None], dict[str, int | None]]:
    """Both lists of sizes, checked against each other where configs alone can tell."""
    adapter = architectures.get(source.model_type)
    before, after = role_sizes(adapter, source, "source"), role_sizes(adapter, target, "target")
    check_supported(adapter, (source, target), before, after)
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
    beside: tuple[str, ...] = (),
) -> Plan:
    """A plan without any checkpoint: the source is taken to hold what its architecture holds.

    Args:
        beside: names of further tensors that it is known to hold.
    """
    adapter = architectures.get(source_config.model_type)
    options = BoTConfig.from_any(words.bot_config)
    before, after = sides(source_config, wanted, options)
    stored = asked_dtype(None, source_config) or torch.float32
    dtype = asked_dtype(words.dtype, wanted) or stored
    alone = without_crossing(source_config)
    with quiet():
        held = predict(source_class, alone)
        whole = held if alone is source_config else predict(source_class, source_config)
        crossed = tuple(name for name in whole.shapes if name not in held.shapes)
        source = Side(alone, before, held, stored, extra=(*crossed, *beside))
        target = Side(wanted, after, predict(target_class, wanted, words.init), dtype)
    method = methods.get(words.method, options)
    return make_plan(adapter, source, target, method, words.ignore_mismatched_sizes, words.calibration is not None)


def asked_dtype(asked: Any, wanted: PreTrainedConfig) -> torch.dtype | None:
    """The dtype of the result, None for the checkpoint's own."""
    dtype = wanted.dtype if asked in (None, "auto") else asked
    if isinstance(dtype, str):
        name = dtype.lower().removeprefix("torch.")
        found = getattr(torch, DTYPES.get(name, name), None)
        dtype = found if isinstance(found, torch.dtype) else dtype
    if dtype is None:
        return None
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS.values():
        raise BadOption(f"dtype must be float64, float32, bfloat16, float16 or 'auto', got {asked!r}.")
    return dtype
