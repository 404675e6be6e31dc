"""What a call asks for: its keywords, sorted by whom they are for, the configs of both sides and their sizes."""

import copy
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from .. import methods
from ..architectures import configs
from ..architectures.adapter import Adapter, get
from ..architectures.inventory import ModelClass, class_in_mapping, named_class, own_class
from ..architectures.sizes import (
    check_supported,
    cut_across,
    differing_roles,
    forget_pruned,
    get_field,
    nested,
    rebuild,
    role_sizes,
    set_field,
    stretched,
)
from ..errors import BadKeyword, BadOption, HubError, IncompatibleModels, suggest
from ..io.config_files import check_names, model_config
from ..io.files import HUB as FINDING
from ..io.kept_tokens import KeptTokens
from ..io.weights import FLOATS
from ..methods.base import option_names
from ..options import BoTConfig, check_writable
from ..tasks import TASKS
from .signatures import OURS
from .vocabulary import kept_tokens, with_kept

ClassFor = Callable[[PreTrainedConfig], type[PreTrainedModel]]
Lengths = dict[str, int | None]

HUB = (*FINDING, "trust_remote_code", "code_revision")
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
ONLY_RESIZING = (
    *("bot_config", "method", "calibration", "allow_pickle", "nonfinite", "strict", "record_path"),
    "vocab_keep",
)
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

DTYPES = {"fp16": "float16", "f16": "float16", "bf16": "bfloat16"}  # what torch itself has no name for
DTYPES |= {"fp32": "float32", "f32": "float32", "fp64": "float64", "f64": "float64"}

READY = "ready:"  # prefix that marks the name of a ready config
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
    vocab_keep: Any = None

    @property
    def of_files(self) -> dict[str, Any]:
        """Where and how the source's files are found, without the keyword that concerns only its code."""
        return {key: value for key, value in {**self.hub, **self.files}.items() if key != "code_revision"}

    @property
    def names_target(self) -> bool:
        """Whether the call names a target, even one of the source's own size."""
        return self.config is not None or bool(self.overrides) or self.vocab_keep is not None


def place(path: os.PathLike[str]) -> str:
    """A path as a string that cannot be taken for a name: a relative one begins with "./".

    >>> from pathlib import Path
    >>> place(Path("bert-small"))
    './bert-small'
    """
    return os.path.join("" if os.path.isabs(path) else os.curdir, path)


def init_keywords(model_class: type[PreTrainedModel]) -> frozenset[str]:
    """The keywords of a model's constructor beside its config, such as `add_pooling_layer`."""
    parameters = inspect.signature(model_class.__init__).parameters.values()
    own = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(own - {"self", "config"})


def overrides_of(keywords: dict[str, Any], init: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The keywords of a call that can only be config fields."""
    return {name: value for name, value in keywords.items() if name not in KNOWN and name not in init}


def picked(keywords: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of `names` that a call has."""
    return {name: keywords[name] for name in names if name in keywords}


def check_numbers(keywords: Mapping[str, Any]) -> None:
    """Refuse numbers with too many digits for Python to print, in all keywords but the calibration data."""
    config = keywords.get("config")
    fields = {"config": vars(config)} if isinstance(config, PreTrainedConfig) else {}
    check_writable({name: value for name, value in {**keywords, **fields}.items() if name != "calibration"})


def read_call(name: str, keywords: dict[str, Any], class_for: ClassFor) -> tuple[PreTrainedConfig, Adapter, Keywords]:
    """The source's config, the adapter of its model type, and the keywords sorted: the way in for every call.

    Args:
        class_for: config -> the model class that the call chooses for it.

    Raises:
        UnsupportedArchitecture: a model type without an adapter.
        What `sort_keywords` and `read_config` raise.
    """
    check_numbers(keywords)  # first of all: what is wrong with a source is said with the keywords that name it
    config = keywords.get("config")
    source = read_config(name, picked(keywords, HUB), type(config) if isinstance(config, PreTrainedConfig) else None)
    return source, get(source.model_type), sort_keywords(keywords, init_keywords(class_for(source)), checked=True)


def sort_keywords(keywords: dict[str, Any], init: frozenset[str] = frozenset(), *, checked: bool = False) -> Keywords:
    """Sort the keywords of a `from_pretrained` call; an unknown keyword counts as a config override.

    Args:
        keywords: as the user gave them.
        init: names that the model's constructor takes.
        checked: whether `check_numbers` has seen the keywords.

    Raises:
        BadKeyword: a keyword that a resize cannot honour, a config of a wrong type, or overrides
            beside a config object.
        BadOption: a number of thousands of digits, a method that is not named by a string, an unknown `nonfinite`,
            an impossible name of a branch, folder or variant.
    """
    if not checked:
        check_numbers(keywords)
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
    check_devices(keywords.get("device_map"))
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
        vocab_keep=keywords.get("vocab_keep"),
    )


def check_devices(device_map: Any) -> None:
    """Refuse a `device_map` that names a CUDA device which this machine does not have, before any work is done.

    Raises:
        BadOption: such a device, with the number of those that are here.
    """
    named = device_map.values() if isinstance(device_map, dict) else (device_map,)
    devices = (re.fullmatch(r"cuda(?::(\d{1,4}))?", str(device)) for device in named)
    numbers = [int(device[1] or 0) for device in devices if device]
    if numbers and max(numbers) >= torch.cuda.device_count():
        raise BadOption(
            f"device_map names cuda:{max(numbers)}, and torch sees {torch.cuda.device_count()} CUDA devices here. "
            "Use 'cpu', or leave device_map out."
        )


def _check_overrides(overrides: dict[str, Any], beside_config: bool) -> None:
    nameless = [name for name in overrides if not isinstance(name, str)]
    if nameless:
        raise BadKeyword(f"the names of config fields must be strings, got {nameless[0]!r}.")
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


@dataclass(frozen=True)
class Request:
    """One call, read and checked: source, target and everything that decides how to get from one to the other.

    Attributes:
        name: hub id or folder of the source; empty where a config alone stands for it.
        source: the source's config.
        target: the config that is asked for.
        adapter: of both; looked up once.
        sizes: role -> length, in the source and in the target.
        class_for: config -> the model class that the call chooses for it.
        model_class: of the target.
        options: of the method.
        method: before it has seen the source's weights.
        keywords: the call's keywords, sorted by whom they are for.
        notes: sentences on the source, for the plan's warnings.
        kept: the rows of the vocabulary that the target has, None for all.
    """

    name: str
    source: PreTrainedConfig
    target: PreTrainedConfig
    adapter: Adapter
    sizes: tuple[Lengths, Lengths]
    class_for: ClassFor
    model_class: type[PreTrainedModel]
    options: methods.Options
    method: methods.Method
    keywords: Keywords
    notes: tuple[str, ...] = ()
    kept: KeptTokens | None = None

    @classmethod
    def of(
        cls,
        name: str,
        source: PreTrainedConfig,
        adapter: Adapter,
        keywords: Keywords,
        class_for: ClassFor,
        *,
        target: PreTrainedConfig | None = None,
        sizes: tuple[Lengths, Lengths] | None = None,
    ) -> "Request":
        """Decide everything that two configs and the keywords decide, and refuse what they show to be impossible.

        Args:
            target: if it is known already; otherwise it is made from the keywords.
            sizes: likewise.
            adapter: of the model type; configs of a variant take that of the variant.

        Raises:
            BadKeyword, BadOption, BadSize: an override, an option or a size that does not exist or cannot be.
            IncompatibleModels: another model type, or heads that would be cut across.
            UnsupportedArchitecture: a setting that no rule of the adapter describes.
        """
        options = methods.options_of(keywords.method, keywords.bot_config)
        method = methods.get(keywords.method, options)
        own = adapter.of(source)
        target = target_config(own, source, keywords) if target is None else target
        check_variants(adapter, source, target)
        adapter = own
        kept = None
        if keywords.vocab_keep is not None:
            generation = keywords.target.get("generation_config")
            kept = kept_tokens(keywords.vocab_keep, name, adapter, (source, target), keywords.hub, generation)
            renumbered = kept.again or not keywords.overrides
            target, sizes = with_kept(kept, adapter, target, renumbered), None
        before, after = sizes or (role_sizes(adapter, source, "source"), role_sizes(adapter, target, "target"))
        calibrated = keywords.calibration is not None
        target = with_lists(adapter, source, target, (before, after), method, calibrated)
        check_supported(adapter, (source, target), before, after)
        _check_heads(adapter, before, after, options, method)
        if keywords.dtype not in (None, "auto"):
            asked_dtype(keywords.dtype, target)  # raises for an unknown one, before weights are fetched
        model_class = class_for(target)
        sizes = before, after
        return cls(name, source, target, adapter, sizes, class_for, model_class, options, method, keywords, kept=kept)

    @property
    def changes_size(self) -> bool:
        """Whether any role has another length in the target."""
        return bool(differing_roles(*self.sizes))

    @property
    def subfolder(self) -> str | None:
        """The folder inside of the source that holds its files."""
        return self.keywords.hub.get("subfolder")

    @property
    def calibrated(self) -> bool:
        """Whether the source is first run on a few batches."""
        return self.keywords.calibration is not None

    def with_source(self, source: PreTrainedConfig, notes: tuple[str, ...]) -> "Request":
        """The same request, once the source's files have shown the class of its weights.

        Args:
            source: its config, naming that class.
            notes: sentences on how the class was found.
        """
        target = self.target
        if named_class(target) is None:
            target = copy.deepcopy(target)
            target.architectures = source.architectures
        return replace(self, source=source, target=target, model_class=self.class_for(target), notes=notes)


def source_name(source: Any) -> str:
    """The hub id or folder of a source as a string; a model object or None is a `BadKeyword`."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    raise BadKeyword(
        f"the source must be a hub id or a folder, got {type(source).__name__}; save a model in memory "
        "with save_pretrained first."
    )


def read_config(source: str, hub: dict[str, Any], like: type[PreTrainedConfig] | None = None) -> PreTrainedConfig:
    """The source's own config, read by transformers, with errors that say what is wrong.

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
        BadOption: a name of both a ready config and a folder; or of neither, with the nearest ready config.
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


def target_config(adapter: Adapter, source: PreTrainedConfig, keywords: Keywords) -> PreTrainedConfig:
    """The config the user asks for: an object, a path, a ready config's name, or overrides.

    Raises:
        IncompatibleModels: another model type than the source's.
        BadKeyword, BadSize: an override that does not exist or cannot be.
    """
    if keywords.config is None:
        target = rebuild(adapter, source, keywords.overrides, OURS)
    elif isinstance(keywords.config, str):
        target = named_config(keywords.config, type(source))
    else:
        target = copy.deepcopy(keywords.config)
    check_same_type(source, target)
    forget_pruned(target)
    if named_class(target) is None:
        target.architectures = source.architectures
    return target


def with_lists(
    adapter: Adapter,
    source: PreTrainedConfig,
    target: PreTrainedConfig,
    sizes: tuple[Lengths, Lengths],
    method: methods.Method,
    calibrated: bool = False,
) -> PreTrainedConfig:
    """The target config with its lists of one entry per layer in the order of the layers that it is made of.

    A list that is neither the default of its class nor stretched over the layers is what somebody wants, and stays.
    So are fields that choose layers by their numbers, if they are neither the default nor the source's.
    """
    stacks = [adapter.roles[stack] for stack in adapter.roles.depths if sizes[0][stack] != sizes[1][stack]]
    if not isinstance(method, methods.Linear) or not any(role.lists or role.numbered for role in stacks):
        return target
    task = methods.Task(adapter, *sizes, tied=False, calibrated=calibrated)
    method.check(task)
    lists = method.lists(task, source)
    target = copy.deepcopy(target)
    for role in stacks:
        layers = sizes[1][role.name] or 0
        default = _default(type(target), nested(target, {role.field: layers}))
        for name in (name for name in role.lists if name in lists):
            unsaid = (None, get_field(default, name, None), stretched(get_field(source, name), layers))
            if get_field(target, name, None) in unsaid:
                set_field(target, name, lists[name])
        for numbered in role.numbered:
            fields = {name: lists[name] for name in numbered.fields(()) if name in lists}
            said = {name: get_field(target, name) for name in fields}
            if said in ({name: get_field(config, name) for name in fields} for config in (source, default) if config):
                for name, entry in fields.items():
                    set_field(target, name, entry)
    return target


def _default(config_class: type[PreTrainedConfig], fields: dict[str, Any]) -> PreTrainedConfig | None:
    """The class's own config with these fields; None where it wants more, such as a list of so many layers."""
    try:
        return config_class(**fields)
    except (StrictDataclassError, AttributeError, KeyError, TypeError, ValueError):
        return None


def check_same_type(source: PreTrainedConfig, target: PreTrainedConfig) -> None:
    """Refuse to move weights between model types."""
    if target.model_type != source.model_type:
        raise IncompatibleModels(
            f"the source is a {source.model_type} model and the target config is {target.model_type}: weights move "
            "only between sizes of one model type. Use a config of the source's type."
        )


def check_variants(adapter: Adapter, source: PreTrainedConfig, target: PreTrainedConfig) -> None:
    """Refuse a target whose tensors mean something else than the source's."""
    for variant in adapter.variants:
        before, after = variant.holds(source), variant.holds(target)
        if before != after:
            which = ("source", "target") if before else ("target", "source")
            raise IncompatibleModels(
                f"in the {which[0]} config {variant.when}, in the {which[1]} config not: such {adapter.model_type} "
                "models have other tensors. Choose sizes of which both are of one kind."
            )


def _check_heads(
    adapter: Adapter, before: Lengths, after: Lengths, options: methods.Options, method: methods.Method
) -> None:
    """Refuse another number of heads at the same width, unless an option says how to change them."""
    for unit in cut_across(adapter.roles, before, after) if options.reheads == "error" else ():
        streams, field = adapter.roles.streams, adapter.roles[unit].field
        whole = (stream for stream in streams if (field, adapter.roles[stream].field) in adapter.divides)
        stream = next(whole, streams[0])
        remedy = "Keep the number of heads, or use method='bot'."
        if "reheads" in option_names(method):
            remedy = (
                f"Choose {type(options).__name__}(reheads='resample') to resize heads and head_dim, or "
                "reheads='reshape' to keep the matrices."
            )
        raise IncompatibleModels(
            f"{field} goes from {before[unit]} to {after[unit]} at the same "
            f"{adapter.roles[stream].field} {before[stream]}: heads would be cut across. {remedy}"
        )


def asked_dtype(requested: Any, config: PreTrainedConfig) -> torch.dtype | None:
    """The dtype of the result, None for the checkpoint's own."""
    dtype = config.dtype if requested in (None, "auto") else requested
    if isinstance(dtype, str):
        name = dtype.lower().removeprefix("torch.")
        attribute = getattr(torch, DTYPES.get(name, name), None)
        dtype = attribute if isinstance(attribute, torch.dtype) else dtype
    if dtype is None:
        return None
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS.values():
        raise BadOption(f"dtype must be float64, float32, bfloat16, float16 or 'auto', got {requested!r}.")
    return dtype


def class_for_task(task: str | None) -> Callable[[PreTrainedConfig], ModelClass]:
    """A function from a config to the class of a task; without a task, to the class that the config names.

    Raises:
        BadOption: an unknown task; the message suggests the nearest one.
    """
    if task is None:
        return own_class
    check_writable({"task": task})
    if task not in TASKS:
        raise BadOption(f"task must be one of {', '.join(TASKS)}, got {task!r}.{suggest(task, TASKS)}")
    return partial(_class_for, task)


def _class_for(task: str, config: PreTrainedConfig) -> ModelClass:
    return class_in_mapping(TASKS[task].mapping, config, TASKS[task].factory)
