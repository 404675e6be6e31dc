"""A model at its source's own sizes: loaded by transformers, after the same checks of its files as for a resize."""

import os
from typing import Any, Protocol

from transformers import PreTrainedConfig, PreTrainedModel

from .. import architectures
from ..architectures.inventory import predict
from ..architectures.sizes import role_sizes
from ..compat import building, forget_renames, quiet
from ..console import progress
from ..errors import BadOption, BoTError
from ..io.checkpoint import check_files
from ..io.weights import renaming
from ..request.request import FILES, HUB, ONLY_RESIZING, init_keywords, picked, read_config, source_name
from .opening import open_checked


class Factory(Protocol):
    """The part of a factory's class that is used here."""

    auto_class: Any

    def class_for(self, config: PreTrainedConfig, /) -> type[PreTrainedModel]: ...


def load_unchanged(factory: Factory, name: str | os.PathLike[str], *model_args: Any, **kwargs: Any) -> Any:
    if kwargs.get("calibration") is not None:
        raise BadOption("calibration= is for shrinking, but the sizes are the source's own. Leave it out.")
    if any(kwargs.get(key) is not None for key in ("state_dict", "gguf_file")):
        arguments = {k: v for k, v in kwargs.items() if k not in ONLY_RESIZING}
        progress.withdraw()  # transformers shows its own bar
        with building():
            return factory.auto_class.from_pretrained(name, *model_args, **arguments)
    source_keywords, pickled = picked(kwargs, (*HUB, *FILES)), bool(kwargs.get("allow_pickle"))
    checkpoint = check_files(source_name(name), source_keywords, allow_pickle=pickled, resampled=False)
    arguments = {k: v for k, v in kwargs.items() if k not in ONLY_RESIZING}
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
        reason = _config_fault(factory, source_name(name), kwargs)
        if reason is None:
            raise
        raise reason from None
    if wrapped:
        forget_renames(loaded[0] if isinstance(loaded, tuple) else loaded)
    return loaded


def _config_fault(factory: Factory, name: str, kwargs: dict[str, Any]) -> BoTError | None:
    """The fault of the config or weights behind a failed load, as an error of ours; None if there is none."""
    if kwargs.get("trust_remote_code"):
        return None
    hub, requested = picked(kwargs, HUB), kwargs.get("config")
    try:
        config = requested if isinstance(requested, PreTrainedConfig) else read_config(name, hub)
        model_class = factory.class_for(config)
        adapter = architectures.ADAPTERS.get(config.model_type)
        if adapter is not None:
            role_sizes(adapter, config, "source")
        with quiet():
            predict(model_class, config, picked(kwargs, init_keywords(model_class)))
        if adapter is not None:
            source_keywords = {
                key: value for key, value in picked(kwargs, (*HUB, *FILES)).items() if key != "code_revision"
            }
            pickled = bool(kwargs.get("allow_pickle"))
            checkpoint = check_files(name, source_keywords, allow_pickle=pickled, resampled=False)
            open_checked(model_class, name, config, source_keywords, checkpoint)
    except BoTError as error:
        return error
    except Exception:  # not ours to explain: the error of the load itself is raised
        return None
    return None
