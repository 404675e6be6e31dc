"""A model at its source's own sizes: loaded by transformers, after the same checks of its files as for a resize."""

import os
from typing import Any, Protocol

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .. import architectures
from ..architectures.inventory import predict
from ..architectures.sizes import role_sizes
from ..compat import building, forget_renames, quiet
from ..console import progress
from ..errors import BadOption, BoTError
from ..io.checkpoint import Checkpoint, check_files
from ..io.config_files import ConfigFile
from ..io.weights import renaming
from ..request.names import ELSEWHERE, ONLY_RESIZING
from ..request.request import Keywords, init_keywords, known_dtype, picked, read_config, source_name
from .opening import open_checked


class Factory(Protocol):
    """The part of a factory's class that is used here."""

    auto_class: Any

    def class_for(self, config: PreTrainedConfig, /) -> type[PreTrainedModel]: ...


def load_unchanged(
    factory: Factory,
    name: str | os.PathLike[str],
    model_args: tuple[Any, ...],
    kwargs: dict[str, Any],
    keywords: Keywords,
    described: ConfigFile | None = None,
) -> Any:
    """The model as `factory`'s Auto class of transformers loads it.

    Args:
        kwargs: what the user gave; all but our own keywords go on to transformers.
        keywords: the same, sorted.
        described: the source's config.json, if it was read and checked before.
    """
    if keywords.calibration is not None:
        raise BadOption("calibration= is for shrinking, but the sizes are the source's own. Leave it out.")
    arguments = {**{k: v for k, v in kwargs.items() if k not in ONLY_RESIZING}, **_known_dtype(keywords)}
    if any(keywords.refused.get(key) is not None for key in ELSEWHERE):
        progress.withdraw()  # transformers shows its own bar
        with building():
            return factory.auto_class.from_pretrained(name, *model_args, **arguments)
    where, pickled = {**keywords.hub, **keywords.files}, keywords.allow_pickle
    checkpoint = check_files(source_name(name), where, allow_pickle=pickled, resampled=False, described=described)
    wrapped = bool(checkpoint.wrapper) and arguments.get("key_mapping") is None
    if wrapped:
        arguments["key_mapping"] = renaming(checkpoint.wrapper)
    progress.withdraw()  # transformers shows its own bar
    try:
        with building(), checkpoint.reading():
            loaded = factory.auto_class.from_pretrained(name, *model_args, **arguments)
    except (BoTError, OSError):
        raise
    except Exception:
        reason = _config_fault(factory, source_name(name), kwargs, keywords, checkpoint)
        if reason is None:
            raise
        raise reason from None
    if wrapped:
        forget_renames(loaded[0] if isinstance(loaded, tuple) else loaded)
    return loaded


def _known_dtype(keywords: Keywords) -> dict[str, torch.dtype]:
    """The dtype under a name that transformers does not know, as a keyword; empty for every other one.

    Raises:
        BadOption: a name that is no dtype.
    """
    name = keywords.dtype
    if not isinstance(name, str) or name == "auto" or isinstance(getattr(torch, name, None), torch.dtype):
        return {}
    return {"dtype": known_dtype(name)}


def _config_fault(
    factory: Factory, name: str, kwargs: dict[str, Any], keywords: Keywords, checkpoint: Checkpoint
) -> BoTError | None:
    """The fault of the config or weights behind a failed load, as an error of ours; None if there is none."""
    if keywords.hub.get("trust_remote_code"):
        return None
    requested = kwargs.get("config")
    try:
        config = requested if isinstance(requested, PreTrainedConfig) else read_config(name, keywords.hub)
        model_class = factory.class_for(config)
        adapter = architectures.ADAPTERS.get(config.model_type)
        if adapter is not None:
            role_sizes(adapter, config, "source")
        with quiet():
            predict(model_class, config, picked(kwargs, init_keywords(model_class)))
        if adapter is not None:
            open_checked(model_class, name, config, keywords.of_files, checkpoint)
    except BoTError as error:
        return error
    except Exception:  # not ours to explain: the error of the load itself is raised
        return None
    return None
