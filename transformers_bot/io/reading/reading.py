"""From a checked config.json to transformers' config object."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers import __version__ as version

from ...architectures import ADAPTERS
from ...errors import BadCheckpoint, HubError, UnsupportedArchitecture, suggest
from .configs import source_config
from .from_hub import from_hub
from .paths import clean, shown, shown_path


def model_config(
    name: str, keywords: Mapping[str, Any], like: type[PreTrainedConfig] | None = None
) -> PreTrainedConfig:
    """The config of a folder, a JSON file or a hub id; only what it says of a model is ever acted on.

    Args:
        keywords: hub keywords. Code from the hub runs only with `trust_remote_code=True` among them, and
            nobody is asked for it at the terminal.
        like: the class to use where an old config.json does not name its model type.

    Raises:
        UnsupportedArchitecture: a config of timm, or a model type that this transformers does not have.
        BadCheckpoint, BadSize, UnsafeCheckpoint: see `source_config`, and what transformers cannot build.
        HubError: a hub id that is not there, or cannot be reached.
    """
    path, fields = source_config(name, keywords)
    if not (keywords.get("trust_remote_code") and "auto_map" in fields):
        _check_type(path, fields, named=like is None)
    reader = like if like is not None and "model_type" not in fields else AutoConfig
    try:
        with from_hub(name, keywords.get("revision")):
            config: PreTrainedConfig = reader.from_pretrained(name, **{"trust_remote_code": False, **keywords})
    except Exception as error:  # config classes compute with their fields, and fail in every way there is
        if isinstance(error, HubError):
            raise
        reason = clean(str(error)).rstrip(".") or type(error).__name__
        raise BadCheckpoint(
            f"the config of {shown_path(name)} cannot be used: {reason}. Correct its {path.name}, or download it again."
        ) from None
    return config


def _check_type(path: Path, fields: Mapping[str, Any], named: bool) -> None:
    """Refuse configs of which transformers makes nothing, before it advises to install something.

    Args:
        named: the config must name its model type itself.

    Raises:
        UnsupportedArchitecture: a config of timm, or a model type that this transformers does not have.
        BadCheckpoint: no model type at all.
    """
    where, supported = shown_path(path), f"Supported are {', '.join(ADAPTERS)}"
    model_type = fields.get("model_type")
    if "pretrained_cfg" in fields or model_type == "timm_wrapper":
        what = shown(fields.get("architecture", "a model"))
        raise UnsupportedArchitecture(
            f"{where} is a config of timm ({what}), whose tensors have other names and shapes. {supported}: use a "
            "checkpoint in transformers' own format, such as google/vit-base-patch16-224 for a ViT."
        )
    if model_type is None and named:
        raise BadCheckpoint(
            f"the config of {shown_path(path.parent)} cannot be used: it names no model_type. {supported}: write the "
            f"right one into {path.name}."
        )
    if model_type is not None and model_type not in CONFIG_MAPPING:
        raise UnsupportedArchitecture(
            f"{where} is of the model type {shown(model_type)}, which transformers {version} does not have."
            f"{suggest(model_type, ADAPTERS)} {supported}."
        )
