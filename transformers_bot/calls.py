"""What a call of a factory or of `plan` does. Apart from `auto.py`, which is imported long before the first call."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from transformers import PreTrainedConfig, PreTrainedModel

from . import architectures, methods
from .architectures.classes import own_class
from .architectures.fields import field_warnings
from .architectures.inventory import predict
from .architectures.sizes import differing_roles, role_sizes
from .compat import building, forget_renames, quiet
from .console import progress
from .console.progress import logger
from .errors import BadKeyword, BadOption, BoTError
from .io.checkpoint import Source, check_files, open_source
from .io.weights import renaming
from .options import BoTConfig
from .planning.planner import Plan
from .request.keywords import FILES, HUB, ONLY_RESIZING, Keywords, init_keywords, overrides_of, picked, sort_keywords
from .request.source_class import seen_beside, with_class
from .request.targets import plan_from_configs, read_config, sides, target_config
from .run.distributed import load_resized
from .run.opening import as_checked, refuse_unsound

ClassFor = Callable[[PreTrainedConfig], type[PreTrainedModel]]


class Factory(Protocol):
    """What is used of a factory's class."""

    auto_class: Any

    def class_for(self, config: PreTrainedConfig, /) -> type[PreTrainedModel]: ...


def load(factory: Factory, name: str | os.PathLike[str], model_args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model that `factory.from_pretrained` gives; see there."""
    if any(isinstance(value, (PreTrainedConfig, dict)) for value in model_args):
        raise BadKeyword("a config is taken by keyword only: pass the target as config=.")
    as_it_is = kwargs.get("config") is None and not overrides_of(kwargs)
    if as_it_is and kwargs.get("method") != methods.Scratch.name:
        BoTConfig.from_any(kwargs.get("bot_config"))
        return _as_auto(factory, name, *model_args, **kwargs)
    if model_args:
        raise BadKeyword("a resize takes keywords only: pass the target as config=.")
    return _resized(factory, source_name(name), kwargs)


def _resized(factory: Factory, name: str, kwargs: dict[str, Any]) -> Any:
    with progress.part("reading the configs", progress.READING_SECONDS):
        source, words = read_call(name, kwargs, factory.class_for)
    anew = words.method == methods.Scratch.name  # the source's weights are not wanted at any size
    if words.config is None and not words.overrides and not anew:
        return _as_auto(factory, name, **kwargs)
    wanted = target_config(source, words)
    before, after = sides(source, wanted, BoTConfig.from_any(words.bot_config))
    if not differing_roles(before, after) and not anew:
        if source.num_labels != wanted.num_labels:  # a head of another size is refused here as elsewhere
            plan_from_configs(source, wanted, own_class(source), factory.class_for(wanted), words)
        logger.info("source and target have the same sizes: nothing to resample")
        for sentence in field_warnings(architectures.get(source.model_type), source, wanted):
            logger.warning(sentence)
        kept = {key: value for key, value in kwargs.items() if key not in words.overrides}
        model, info = _as_auto(factory, name, **{**kept, "config": wanted, "output_loading_info": True})
        if not words.target:  # what is placed, split or quantised by now is transformers' business
            opened = Source(model, frozenset(info["missing_keys"]), tuple(info["unexpected_keys"]))
            for sentence in refuse_unsound(name, source, opened, words):
                logger.warning(sentence)
        return (model, info) if words.output_loading_info else model
    return load_resized(factory.class_for(wanted), name, source, wanted, words)


def _as_auto(factory: Factory, name: str | os.PathLike[str], *model_args: Any, **kwargs: Any) -> Any:
    if kwargs.get("calibration") is not None:
        raise BadOption("calibration= is for shrinking, but the sizes are the source's own. Leave it out.")
    if any(kwargs.get(key) is not None for key in ("state_dict", "gguf_file")):
        kept = {k: v for k, v in kwargs.items() if k not in ONLY_RESIZING}
        progress.withdraw()  # transformers shows its own
        with building():
            return factory.auto_class.from_pretrained(name, *model_args, **kept)
    given, pickled = picked(kwargs, (*HUB, *FILES)), bool(kwargs.get("allow_pickle"))
    checkpoint = check_files(source_name(name), given, allow_pickle=pickled, resampled=False)
    kept = {k: v for k, v in kwargs.items() if k not in ONLY_RESIZING}
    wrapped = bool(checkpoint.wrapper) and kept.get("key_mapping") is None
    if wrapped:
        kept["key_mapping"] = renaming(checkpoint.wrapper)
    progress.withdraw()  # transformers shows its own
    try:
        with building(), checkpoint.reading():
            loaded = factory.auto_class.from_pretrained(name, *model_args, **kept)
    except (BoTError, OSError):
        raise
    except Exception:
        reason = _config_fault(factory, source_name(name), kwargs)
        if reason is None:
            raise
        raise reason from None
    if wrapped:
        forget_renames(loaded[0] if isinstance(loaded, tuple) else loaded)
    return loaded


def _config_fault(factory: Factory, name: str, kwargs: dict[str, Any]) -> BoTError | None:
    """What is wrong with the config or its weights, looked for where transformers could not load them."""
    if kwargs.get("trust_remote_code"):
        return None
    hub, asked = picked(kwargs, HUB), kwargs.get("config")
    try:
        config = asked if isinstance(asked, PreTrainedConfig) else read_config(name, hub)
        model_class = factory.class_for(config)
        if config.model_type in architectures.ADAPTERS:
            role_sizes(architectures.get(config.model_type), config, "source")
        with quiet():
            predict(model_class, config, picked(kwargs, init_keywords(model_class)))
        if config.model_type in architectures.ADAPTERS:
            where = {key: value for key, value in picked(kwargs, (*HUB, *FILES)).items() if key != "code_revision"}
            pickled = bool(kwargs.get("allow_pickle"))
            checkpoint = check_files(name, where, allow_pickle=pickled, resampled=False)
            open_source(model_class, name, config, {**where, **as_checked(checkpoint)}, checkpoint)
    except BoTError as error:
        return error
    except Exception:  # as the call itself: what it said is told
        return None
    return None


def source_name(source: Any) -> str:
    """The hub id or folder of a source as a string; a model object or None is a `BadKeyword`."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    raise BadKeyword(
        f"the source must be a hub id or a folder, got {type(source).__name__}; save a model in memory "
        "with save_pretrained first."
    )


def plan_for(class_for: ClassFor, source: Any, config: Any, kwargs: dict[str, Any]) -> Plan:
    """The plan for a target class chosen by `class_for`; see `plan`."""
    given = {**kwargs, "config": config}
    notes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    if not isinstance(source, PreTrainedConfig):
        name = source_name(source)
        source_config, words = read_call(name, given, class_for)
        if class_for is own_class:
            source_config, notes = with_class(source_config, name, words, fetch=False)
        if not notes:
            beside, notes = seen_beside(source_config, name, words, class_for(source_config))
    else:
        source_config, words = source, sort_keywords(given, init_keywords(class_for(source)))
    wanted = target_config(source_config, words)
    source_class = own_class(source_config) if source_config.architectures else class_for(source_config)
    made = plan_from_configs(source_config, wanted, source_class, class_for(wanted), words, beside)
    return replace(made, warnings=(*notes, *made.warnings))


def read_call(name: str, kwargs: dict[str, Any], class_for: ClassFor) -> tuple[PreTrainedConfig, Keywords]:
    """The source's config, and the call's keywords sorted with the constructor's own set apart."""
    config = kwargs.get("config")
    like = type(config) if isinstance(config, PreTrainedConfig) else None
    source = read_config(name, picked(kwargs, HUB), like)
    architectures.get(source.model_type)
    words = sort_keywords(kwargs, init_keywords(class_for(source)))
    methods.get(words.method, BoTConfig.from_any(words.bot_config))
    return source, words
