"""What a call asks for: its keywords, sorted by whom they are for, the configs of both sides and their sizes."""

import copy
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from .. import methods
from ..architectures import configs
from ..architectures.adapter import Adapter, Role, get
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
from ..console.text import brief
from ..errors import BadKeyword, BadOption, HubError, IncompatibleModels, suggest
from ..io.checkpoint import Checkpoint, check_files
from ..io.config_files import ConfigFile, check_names, model_config
from ..io.kept_tokens import KeptTokens
from ..io.weights import FLOATS
from ..methods.base import check_calibration, option_names
from ..options import check_writable
from ..tasks import TASKS
from .names import (
    DTYPES,
    FILES,
    HUB,
    KNOWN,
    NONFINITE,
    OPTIONS,
    PLACING,
    READY,
    REFUSED,
    SWITCHES,
    TARGET,
    remedy,
)
from .signatures import DEFAULTS
from .vocabulary import kept_tokens, with_kept

ClassFor = Callable[[PreTrainedConfig], type[PreTrainedModel]]
Lengths = dict[str, int | None]


@dataclass(frozen=True)
class Keywords:
    """The keywords of one call, sorted by whom they are for.

    Attributes:
        call: the public name of the call, for messages.
        refused: those that a resize cannot honour.
    """

    call: str
    hub: dict[str, Any]
    files: dict[str, Any]
    target: dict[str, Any]
    overrides: dict[str, Any]
    init: dict[str, Any]
    refused: dict[str, Any]
    config: PreTrainedConfig | str | None
    bot_config: Any
    method: Any
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

    def check(self) -> "Keywords":
        """The same keywords, if a resize can honour each of them.

        Raises:
            BadKeyword: one that it cannot honour, or overrides beside a config object.
            BadOption: a value that a keyword does not take.
        """
        for name, value in self.refused.items():
            if value not in (None, False):
                raise BadKeyword(f"{name}= cannot be used for resizing: {REFUSED[name]}.")
        self.check_values()
        self._check_overrides()
        return self

    def check_values(self) -> None:
        """Refuse values that no call can use, at any size.

        Raises:
            BadOption: such a value.
        """
        check_names(self.hub | self.files)
        if not isinstance(self.method, str):
            raise BadOption(f"method must be the name of a method, got {self.method!r}.")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise BadOption(f"{name} must be True or False, got {getattr(self, name)!r}.")
        check_devices(self.target.get("device_map"))
        check_settings(self.target.get("generation_config"), self.files.get("key_mapping"))
        check_batches(self.calibration)
        if self.nonfinite not in NONFINITE:
            raise BadOption(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {self.nonfinite!r}.")

    def _check_overrides(self) -> None:
        nameless = [name for name in self.overrides if not isinstance(name, str)]
        if nameless:
            raise BadKeyword(f"the names of config fields must be strings, got {nameless[0]!r}.")
        option = next((name for name in self.overrides if name in OPTIONS), None)
        if option:
            where = " to integration()" if self.call == "integration" else ""
            raise BadKeyword(f"{option} is an option of the method: pass it as bot_config={{{option!r}: ...}}{where}.")
        if self.config is not None and self.overrides:
            name = next(iter(self.overrides))
            raise BadKeyword(
                f"unknown keyword {name!r}: beside config= only transformers' keywords and bot_config= are allowed."
                f"{remedy(self.call, self.method, name, ())} "
                "Set config fields on the config itself, or leave config= out to override the source's."
            )


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


def overrides_of(keywords: Mapping[str, Any], init: frozenset[str] = frozenset()) -> dict[str, Any]:
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


def sort_keywords(
    call: str, keywords: Mapping[str, Any], init: frozenset[str] = frozenset(), *, checked: bool = True
) -> Keywords:
    """Sort the keywords of a call, once for everything that it does; an unknown keyword counts as a config override.

    `check_numbers` comes before: messages quote what the keywords hold.

    Args:
        call: its public name, for messages.
        keywords: as the user gave them.
        init: names that the model's constructor takes.
        checked: off, whether a resize can honour them is left to `Keywords.check`.

    Raises:
        BadKeyword: a config of a wrong type, or a field that is given twice.
        What `Keywords.check` raises.
    """
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
    ours = {name: keywords[name] for name in (*SWITCHES, "method", "nonfinite") if keywords.get(name) is not None}
    sorted_keywords = Keywords(
        call,
        hub=picked(keywords, HUB),
        files=picked(keywords, FILES),
        target=picked(keywords, TARGET),
        overrides=overrides,
        init=picked(keywords, init),
        refused=picked(keywords, REFUSED),
        config=place(config) if isinstance(config, os.PathLike) else config,
        bot_config=keywords.get("bot_config"),
        dtype=keywords.get("dtype", keywords.get("torch_dtype")),
        calibration=keywords.get("calibration"),
        vocab_keep=keywords.get("vocab_keep"),
        **{**DEFAULTS, **ours},
    )
    return sorted_keywords.check() if checked else sorted_keywords


def check_batches(calibration: Any) -> None:
    """Refuse a `calibration=` that is no list of batches; each batch is looked at when the source runs on it.

    Raises:
        BadOption: one batch alone, names of files, or no list at all.
    """
    if isinstance(calibration, Mapping):
        raise BadOption("calibration= is one batch; pass a list of batches.")
    is_list = hasattr(calibration, "__iter__") or hasattr(calibration, "__getitem__")
    if calibration is not None and (not is_list or isinstance(calibration, (str, bytes, os.PathLike))):
        raise BadOption(
            f"calibration= must be a list of batches, got {type(calibration).__name__}. To read texts or images, call "
            "read_batches(source, files)."
        )


def check_devices(device_map: Any) -> None:
    """Refuse a `device_map` that names no device, or a CUDA device which this machine does not have, before any work.

    Raises:
        BadOption: such a device, with the number of those that are here; or what names none.
    """
    if isinstance(device_map, dict):
        numbers = [_cuda_number(device, ("disk",), device_map) for device in device_map.values()]
    else:
        numbers = [_cuda_number(device_map, (None, *PLACING), device_map)]
    largest = max((number for number in numbers if number is not None), default=-1)
    if largest >= torch.cuda.device_count():
        raise BadOption(
            f"device_map names cuda:{largest}, and torch sees {torch.cuda.device_count()} CUDA devices here. "
            "Use 'cpu', or leave device_map out."
        )


def _cuda_number(device: Any, others: tuple[Any, ...], device_map: Any) -> int | None:
    """The number of the CUDA device that an entry of a `device_map` names; None for another device.

    Args:
        others: what the entry may be beside a device.
    """
    if isinstance(device, int) and not isinstance(device, bool) and device >= 0:
        # A number alone is one of the machine's accelerators, which need not be CUDA's.
        return device if _accelerator() in (None, "cuda") else None
    if (device is None or isinstance(device, str)) and device in others:
        return None
    if isinstance(device, str):
        with suppress(RuntimeError):
            device = torch.device(device)
    if not isinstance(device, torch.device):
        said = brief(repr(device_map))
        raise BadOption(
            f"device_map must be one of {', '.join(map(repr, PLACING))}, a device such as 'cpu' or 'cuda:0', the "
            f"number of an accelerator, or a dict of devices, got {said}."
            f"{suggest(device, (*PLACING, 'cpu', 'cuda')) if isinstance(device, str) else ''}"
        )
    return (device.index or 0) if device.type == "cuda" else None


def _accelerator() -> str | None:
    """The kind of accelerator that this torch is made for; None for the CPU alone."""
    found = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
    return found.type if found is not None else None


def check_settings(generation: Any, renames: Any) -> None:
    """Refuse a `generation_config` that holds no settings, and a `key_mapping` that renames nothing.

    Raises:
        BadOption: another type, or a pattern that is none.
    """
    if generation is not None and not isinstance(generation, GenerationConfig):
        raise BadOption(
            f"generation_config must be a GenerationConfig, got {type(generation).__name__}. Pass "
            "GenerationConfig(max_new_tokens=20), for example."
        )
    if renames is None:
        return
    is_dict = isinstance(renames, Mapping)
    if not is_dict or not all(isinstance(name, str) for pair in renames.items() for name in pair):
        raise BadOption(
            f"key_mapping must be a dict from patterns of tensor names to other names, got {brief(repr(renames))}."
        )
    for pattern in renames:
        try:
            re.compile(pattern)
        except re.error as error:
            raise BadOption(
                f"key_mapping has {brief(repr(pattern))}, which is no regular expression: {error}."
            ) from None


@dataclass(frozen=True, kw_only=True)
class Call:
    """The source of one call and its keywords: all that is known without a target.

    Attributes:
        name: hub id or folder of the source; empty where a config alone stands for it.
        source: the source's config.
        adapter: of its model type; looked up once.
        keywords: the call's keywords, sorted by whom they are for.
        class_for: config -> the model class that the call chooses for it.
        described: the source's config.json, as it was read and checked.
        checkpoint: the source's files, once something has looked at them.
        notes: sentences on the source, for the plan's warnings.
    """

    name: str
    source: PreTrainedConfig
    adapter: Adapter
    keywords: Keywords
    class_for: ClassFor
    described: ConfigFile | None = None
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()

    def files(self) -> Checkpoint:
        """The source's files: checked now, or as they were checked for this call before.

        Raises:
            What `check_files` raises.
        """
        if self.checkpoint is not None:
            return self.checkpoint
        allow_pickle = self.keywords.allow_pickle
        return check_files(self.name, self.keywords.of_files, allow_pickle=allow_pickle, described=self.described)

    def with_source(self, source: PreTrainedConfig, notes: tuple[str, ...] = ()) -> Self:
        """The same call, once the source's files have shown the class of its weights.

        Args:
            source: its config, naming that class.
            notes: sentences on how the class was found.
        """
        return replace(self, source=source, notes=notes)


def read_call(
    call: str,
    source: Any,
    keywords: Mapping[str, Any],
    class_for: ClassFor,
    *,
    like: type[PreTrainedConfig] | None = None,
) -> Call:
    """Read a source's config and sort the keywords, each of them once: the way in for every call.

    Args:
        call: its public name, for messages.
        source: hub id or folder, or for a call without weights a config.
        class_for: config -> the model class that the call chooses for it.
        like: the config class to use where an old config.json does not name its model type; by default that of the
            config which the keywords hold.

    Raises:
        UnsupportedArchitecture: a model type without an adapter.
        What `source_name`, `sort_keywords` and `read_config` raise.
    """
    config, name, described = source, "", None
    if isinstance(source, PreTrainedConfig):
        check_numbers({"config": source})
        check_numbers(keywords)
    else:
        name, target = source_name(source), keywords.get("config")
        check_numbers(keywords)  # first of all: what is wrong with a source is said with the keywords that name it
        like = type(target) if like is None and isinstance(target, PreTrainedConfig) else like
        config, described = read_source(name, picked(keywords, HUB), like)
    adapter = get(config.model_type)
    said = sort_keywords(call, keywords, init_keywords(class_for(config)))
    return Call(name=name, source=config, adapter=adapter, keywords=said, class_for=class_for, described=described)


@dataclass(frozen=True, kw_only=True)
class Request(Call):
    """One call, read and checked: source, target and everything that decides how to get from one to the other.

    Attributes:
        adapter: of both configs; that of their variant, if they are of one.
        target: the config that is asked for.
        sizes: role -> length, in the source and in the target.
        model_class: of the target.
        options: of the method.
        method: before it has seen the source's weights.
        kept: the rows of the vocabulary that the target has, None for all.
    """

    target: PreTrainedConfig
    sizes: tuple[Lengths, Lengths]
    model_class: type[PreTrainedModel]
    options: methods.Options
    method: methods.Method
    kept: KeptTokens | None = None

    @classmethod
    def of(
        cls,
        call: Call,
        *,
        target: PreTrainedConfig | None = None,
        before: Lengths | None = None,
        after: Lengths | None = None,
    ) -> "Request":
        """Decide everything that two configs and the keywords decide, and refuse what they show to be impossible.

        Args:
            target: if it is known already; otherwise it is made from the keywords.
            before: the sizes of the source, likewise.
            after: those of the target.

        Raises:
            BadKeyword, BadOption, BadSize: an override, an option or a size that does not exist or cannot be.
            IncompatibleModels: another model type, or heads that would be cut across.
            UnsupportedArchitecture: a setting that no rule of the adapter describes.
        """
        source, keywords = call.source, call.keywords
        options = methods.options_of(keywords.method, keywords.bot_config)
        method = methods.get(keywords.method, options)
        calibrated = keywords.calibration is not None
        if calibrated:
            check_calibration(method)
        adapter = call.adapter.of(source)
        target = target_config(adapter, source, keywords) if target is None else target
        check_variants(call.adapter, source, target)
        kept = None
        if keywords.vocab_keep is not None:
            generation = keywords.target.get("generation_config")
            kept = kept_tokens(keywords.vocab_keep, call.name, adapter, (source, target), keywords.hub, generation)
            renumbered = kept.again or not keywords.overrides
            target, after = with_kept(kept, adapter, target, renumbered), None
        before = role_sizes(adapter, source, "source") if before is None else before
        after = role_sizes(adapter, target, "target") if after is None else after
        whole = keywords.config is not None
        target = with_lists(adapter, source, target, (before, after), method, calibrated, whole=whole)
        check_supported(adapter, (source, target), before, after)
        _check_heads(adapter, before, after, options, method)
        if keywords.dtype not in (None, "auto"):
            asked_dtype(keywords.dtype, target)  # raises for an unknown one, before weights are fetched
        known = {**vars(call), "adapter": adapter, "target": target, "sizes": (before, after), "kept": kept}
        return cls(**known, model_class=call.class_for(target), options=options, method=method)

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

    def with_source(self, source: PreTrainedConfig, notes: tuple[str, ...] = ()) -> Self:
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


def read_source(
    source: str, hub: dict[str, Any], like: type[PreTrainedConfig] | None = None
) -> tuple[PreTrainedConfig, ConfigFile]:
    """The source's own config, read by transformers, and its file as it was checked; errors say what is wrong.

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


def read_config(source: str, hub: dict[str, Any], like: type[PreTrainedConfig] | None = None) -> PreTrainedConfig:
    """The config of `read_source` alone."""
    return read_source(source, hub, like)[0]


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
        elsewhere = partial(remedy, keywords.call, keywords.method)
        target = rebuild(adapter, source, keywords.overrides, elsewhere)
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
    whole: bool = False,
) -> PreTrainedConfig:
    """The target config with its lists of one entry per layer in the order of the layers that it is made of.

    A list that is neither the default of its class nor stretched over the layers is what somebody wants, and stays.
    So are fields that choose layers by their numbers, if they are neither the default nor the source's.

    Args:
        whole: the target is a config of its own, whose lists may be the default of its class at an equal depth, too.
    """
    changed = [stack for stack in adapter.roles.depths if sizes[0][stack] != sizes[1][stack]]
    kept = [stack for stack in adapter.roles.depths if whole and differing_roles(*sizes) and stack not in changed]
    stacks = [role for role in map(adapter.roles.__getitem__, (*changed, *kept)) if role.lists or role.numbered]
    if not isinstance(method, methods.Linear) or not stacks:
        return target
    lists = {name: get_field(source, name, None) for role in stacks for name in _names_of_lists(role)}
    lists = {name: copy.copy(entries) for name, entries in lists.items() if entries is not None}
    if any(role.name in changed for role in stacks):
        task = methods.Task(adapter, *sizes, tied=False, calibrated=calibrated)
        method.check(task)
        moved = method.lists(task, source)
        of_changed = {name for stack in changed for name in _names_of_lists(adapter.roles[stack])}
        lists = {name: entries for name, entries in lists.items() if name not in of_changed} | moved
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


def _names_of_lists(role: Role) -> tuple[str, ...]:
    """The fields that say of which kind each layer of a stack is."""
    return role.lists + tuple(name for numbered in role.numbered for name in numbered.fields(()))


def _default(config_class: type[PreTrainedConfig], fields: dict[str, Any]) -> PreTrainedConfig | None:
    """The class's own config with these fields; None where it wants more, such as a list of so many layers."""
    try:
        return config_class(**fields)
    except (StrictDataclassError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
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
    return None if dtype is None else known_dtype(dtype)


def known_dtype(requested: Any) -> torch.dtype:
    """A dtype by its object or its name; `BadOption` if no weights can have it."""
    dtype = requested
    if isinstance(dtype, str):
        name = dtype.lower().removeprefix("torch.")
        dtype = getattr(torch, DTYPES.get(name, name), None)
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
