"""From a checked config.json to transformers' config object."""

import os
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..errors import BadCheckpoint
from .configs import source_config
from .paths import clean, shown_path


def model_config(
    name: str, keywords: Mapping[str, Any], like: type[PreTrainedConfig] | None = None
) -> PreTrainedConfig:
    """The config of a folder, a JSON file or a hub id; only what it says of a model is ever acted on.

    Args:
        keywords: hub keywords. Code from the hub runs only with `trust_remote_code=True` among them, and
            nobody is asked for it at the terminal.
        like: the class to use where an old config.json does not name its model type.

    Raises:
        BadCheckpoint, BadSize, UnsafeCheckpoint: see `source_config`, and what transformers cannot build.
        OSError: transformers' own, for hub ids that cannot be reached.
    """
    _, fields = source_config(name, keywords)
    reader = like if like is not None and "model_type" not in fields else AutoConfig
    try:
        config: PreTrainedConfig = reader.from_pretrained(name, **{"trust_remote_code": False, **keywords})
    except Exception as error:  # config classes compute with their fields, and fail in every way there is
        if isinstance(error, OSError) and not os.path.exists(name):
            raise
        raise BadCheckpoint(f"the config of {shown_path(name)} cannot be used: {clean(str(error))}") from error
    return config
