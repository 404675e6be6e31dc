"""Opt-in: transformers' own `from_pretrained` resizes where it would fail. Reversible, never on import.

transformers' Auto classes and concrete classes all end in `PreTrainedModel.from_pretrained`. While
the integration is on, that one method looks at the config it is given: other sizes than the
checkpoint's own are resized, everything else goes to the original method untouched.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, PreTrainedModel

from . import methods
from .adapters import ADAPTERS
from .errors import BoTError
from .keywords import HUB, init_keywords, overrides_of, picked, sort_keywords
from .loading import load_resized
from .options import BoTConfig
from .sizes import differing_roles, role_sizes
from .targets import read_config, target_config

if TYPE_CHECKING:
    from .signatures import Options

_original: Any = None
_options: tuple[str, Any] = ("bot", None)
_inside = threading.local()


def enable(bot_config: "Options" = None, method: str = "bot") -> None:
    """Let `AutoModelFor*.from_pretrained(src, config=other_size)` resize; `disable()` takes it back.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> enable()
        >>> model = AutoModelForCausalLM.from_pretrained("gpt2", config=small)  # doctest: +SKIP
        >>> disable()

    Args:
        bot_config: a `BoTConfig` or dict for every model resized this way.
        method: the resizing method.
    """
    global _original, _options
    options = BoTConfig.from_any(bot_config)
    methods.get(method, options)
    _options = (method, options)
    if _original is None:
        _original = PreTrainedModel.__dict__["from_pretrained"]
        PreTrainedModel.from_pretrained = classmethod(_resizing(_original.__func__))  # type: ignore[assignment]


def disable() -> None:
    """Give transformers its own `from_pretrained` back; without effect when it is not enabled."""
    global _original
    if _original is not None:
        PreTrainedModel.from_pretrained = _original  # type: ignore[method-assign]
        _original = None


@contextlib.contextmanager
def integration(bot_config: "Options" = None, method: str = "bot") -> Iterator[None]:
    """`enable()` for the duration of a with block; an outer `enable()` is restored at its end."""
    global _options
    outer, was_on = _options, _original is not None
    enable(bot_config, method)
    try:
        yield
    finally:
        _options = outer
        if not was_on:
            disable()


def _resizing(original: Any) -> Any:
    @functools.wraps(original)
    def from_pretrained(
        cls: type[PreTrainedModel], pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any
    ) -> Any:
        name = pretrained_model_name_or_path
        if getattr(_inside, "resize", False) or name is None or model_args:
            return original(cls, name, *model_args, **kwargs)
        _inside.resize = True
        try:
            source = _source_if_resized(cls, name, kwargs)
            if source is not None:
                given = {**_without_adapter(kwargs), "method": _options[0], "bot_config": _options[1]}
                words = sort_keywords(given, init_keywords(cls))
                return load_resized(cls, os.fspath(name), source, target_config(source, words), words)
        finally:
            _inside.resize = False
        return original(cls, name, **kwargs)

    return from_pretrained


def _source_if_resized(cls: type[PreTrainedModel], name: Any, kwargs: dict[str, Any]) -> PreTrainedConfig | None:
    """The source's config if this call asks for other sizes; None where the original method serves."""
    config = kwargs.get("config")
    own_type = getattr(cls.config_class, "model_type", None)
    if own_type not in ADAPTERS or any(kwargs.get(key) is not None for key in ("state_dict", "gguf_file")):
        return None
    fields = overrides_of(kwargs, init_keywords(cls))
    if config is None and not fields:
        return None
    try:
        source = read_config(os.fspath(name), picked(kwargs, HUB), cls.config_class)
        before = role_sizes(ADAPTERS[own_type], source, "source")
    except (BoTError, OSError):
        return None  # the original method tells what is wrong with its source
    if source.model_type != own_type:
        return None
    words = sort_keywords({"config": config} if config is not None else fields)
    wanted = target_config(source, words)
    return source if differing_roles(before, role_sizes(ADAPTERS[own_type], wanted, "target")) else None


def _without_adapter(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Auto classes pass `adapter_kwargs` even where the checkpoint has no adapter."""
    given = kwargs.get("adapter_kwargs") or {}
    if "_adapter_model_path" in given:
        return kwargs
    return {name: value for name, value in kwargs.items() if name != "adapter_kwargs"}
