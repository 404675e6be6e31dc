"""Which keyword of `from_pretrained` is for the source, which for the target, which for BoT."""

import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import BadKeyword, BadOption, suggest
from ..io.config_files import check_names
from ..options import BoTConfig
from .signatures import OURS

HUB = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
    "code_revision",
)
FILES = ("variant", "use_safetensors", "weights_only", "key_mapping", "disable_mmap")
TARGET = (
    "device_map",
    "max_memory",
    "offload_folder",
    "offload_buffers",
    "quantization_config",
    "distributed_config",
    "device_mesh",
    "tp_plan",
    "tp_size",
    "attn_implementation",
    "experts_implementation",
    "use_kernels",
    "allow_all_kernels",
    "kernel_config",
    "generation_config",
)
SPLITTING = ("distributed_config", "tp_plan", "tp_size", "device_mesh")  # those of TARGET that split over ranks
OFFLOADING = ("max_memory", "offload_folder")  # those that may leave weights on disk
ONLY_RESIZING = ("bot_config", "method", "calibration", "allow_pickle", "nonfinite", "strict", "record_path")
NONFINITE = ("error", "warn", "zero")
# transformers 5 accepts these and does nothing with them.
IGNORED = (
    "low_cpu_mem_usage",
    "_fast_init",
    "mirror",
    "offload_state_dict",
    "_from_auto",
    "_commit_hash",
    "_from_pipeline",
)
REFUSED = {
    "state_dict": "the source is a checkpoint name or folder; save the tensors there first",
    "gguf_file": "GGUF weights are quantised and cannot be resampled; use the safetensors checkpoint",
    "from_tf": "TensorFlow checkpoints are not read by transformers 5; convert to safetensors",
    "from_flax": "Flax checkpoints are not read by transformers 5; convert to safetensors",
    "adapter_kwargs": "adapters are merged before resizing: merge_and_unload(), save, resize the folder",
}

OPTIONS = tuple(field.name for field in fields(BoTConfig))
KNOWN = (*HUB, *FILES, *TARGET, *OURS, *IGNORED, *REFUSED)


@dataclass(frozen=True)
class Keywords:
    """The keywords of one call, sorted by whom they are for."""

    hub: dict[str, Any]
    files: dict[str, Any]
    target: dict[str, Any]
    overrides: dict[str, Any]
    init: dict[str, Any]
    config: PreTrainedConfig | str | None
    bot_config: Any
    method: str
    dtype: Any
    output_loading_info: bool
    ignore_mismatched_sizes: bool
    calibration: Any = None
    allow_pickle: bool = False
    nonfinite: str = "error"
    strict: bool = True
    record_path: bool = False


def place(path: os.PathLike[str]) -> str:
    """A path as a string that cannot be taken for a name: a relative one begins with "./".

    >>> from pathlib import Path
    >>> place(Path("bert-small"))
    './bert-small'
    """
    return os.path.join("" if os.path.isabs(path) else os.curdir, path)


def init_keywords(model_class: type[PreTrainedModel]) -> frozenset[str]:
    """The keywords of a model's constructor beside its config, such as `add_pooling_layer`."""
    named = inspect.signature(model_class.__init__).parameters.values()
    own = {p.name for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(own - {"self", "config"})


def overrides_of(keywords: dict[str, Any], init: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The keywords of a call that can only be config fields."""
    return {name: value for name, value in keywords.items() if name not in KNOWN and name not in init}


def picked(keywords: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of `names` that a call has."""
    return {name: keywords[name] for name in names if name in keywords}


def sort_keywords(keywords: dict[str, Any], init: frozenset[str] = frozenset()) -> Keywords:
    """Sort the keywords of a `from_pretrained` call; what nobody knows counts as a config override.

    Args:
        keywords: as the user gave them.
        init: names that the model's constructor takes.

    Raises:
        BadKeyword: a keyword that a resize cannot honour, a config that is none, or overrides
            beside a config object.
        BadOption: a method that is not named by a string, a `nonfinite` that is none of its values, what no branch,
            folder or variant can be called.
    """
    for name, why in REFUSED.items():
        if keywords.get(name) not in (None, False):
            raise BadKeyword(f"{name}= cannot be used for resizing: {why}.")
    check_names(keywords)
    overrides = overrides_of(keywords, init)
    config = keywords.get("config")
    if isinstance(config, dict):
        both = sorted(set(config) & set(overrides))
        if both:
            raise BadKeyword(f"{both[0]} is given both in config= and as a keyword; keep one.")
        overrides, config = {**config, **overrides}, None
    elif config is not None and not isinstance(config, (PreTrainedConfig, str, os.PathLike)):
        raise BadKeyword(
            f"config must be a config object, a path, a dict of overrides or None, got {type(config).__name__}."
        )
    _check_overrides(overrides, beside_config=config is not None)
    method = keywords.get("method", "bot")
    if not isinstance(method, str):
        raise BadOption(f"method must be the name of a method, got {method!r}.")
    for name in ("allow_pickle", "strict", "record_path"):
        if not isinstance(keywords.get(name, False), bool):
            raise BadOption(f"{name} must be True or False, got {keywords[name]!r}.")
    nonfinite = keywords.get("nonfinite", "error")
    if nonfinite not in NONFINITE:
        raise BadOption(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}.")
    return Keywords(
        hub=picked(keywords, HUB),
        files=picked(keywords, FILES),
        target=picked(keywords, TARGET),
        overrides=overrides,
        init=picked(keywords, init),
        config=place(config) if isinstance(config, os.PathLike) else config,
        bot_config=keywords.get("bot_config"),
        method=method,
        dtype=keywords.get("dtype", keywords.get("torch_dtype")),
        output_loading_info=bool(keywords.get("output_loading_info", False)),
        ignore_mismatched_sizes=bool(keywords.get("ignore_mismatched_sizes", False)),
        calibration=keywords.get("calibration"),
        allow_pickle=bool(keywords.get("allow_pickle", False)),
        nonfinite=nonfinite,
        strict=bool(keywords.get("strict", True)),
        record_path=bool(keywords.get("record_path", False)),
    )


def _check_overrides(overrides: dict[str, Any], beside_config: bool) -> None:
    nameless = [name for name in overrides if not isinstance(name, str)]
    if nameless:
        raise BadKeyword(f"the fields of a config have names that are text, not {nameless[0]!r}.")
    option = next((name for name in overrides if name in OPTIONS), None)
    if option:
        raise BadKeyword(f"{option} is an option of the method: pass it as bot_config={{{option!r}: ...}}.")
    if beside_config and overrides:
        name = next(iter(overrides))
        hint = suggest(name, KNOWN)
        raise BadKeyword(
            f"unknown keyword {name!r}: beside config= only transformers' keywords and bot_config= are allowed.{hint} "
            "Set config fields on the config itself, or leave config= out to override the source's."
        )
