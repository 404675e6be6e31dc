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
from typing import Any

from transformers import PreTrainedModel

from .adapters import ADAPTERS
from .keywords import sort_keywords
from .loading import load_resized, read_config, sides, target_config
from .options import BoTConfig
from .sizes import differing_roles

_original: Any = None
_options: tuple[str, Any] = ("bot", None)
_inside = threading.local()


def enable(bot_config: Any = None, method: str = "bot") -> None:
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
    _options = (method, BoTConfig.from_any(bot_config))
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
def integration(bot_config: Any = None, method: str = "bot") -> Iterator[None]:
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
    def from_pretrained(cls: type[PreTrainedModel], name: Any, *model_args: Any, **kwargs: Any) -> Any:
        if getattr(_inside, "resize", False) or name is None or model_args:
            return original(cls, name, *model_args, **kwargs)
        _inside.resize = True
        try:
            found = _resize_request(cls, name, kwargs)
            if found is not None:
                source, wanted, words = found
                return load_resized(cls, os.fspath(name), source, wanted, words)
        finally:
            _inside.resize = False
        return original(cls, name, **kwargs)

    return from_pretrained


def _resize_request(cls: type[PreTrainedModel], name: Any, kwargs: dict[str, Any]) -> Any:
    """(source config, target config, keywords) if this call asks for other sizes, else None."""
    config = kwargs.get("config")
    model_type = getattr(config if config is not None else cls.config_class, "model_type", None)
    if isinstance(config, (dict, str, os.PathLike)):
        model_type = getattr(cls.config_class, "model_type", None)
    if model_type not in ADAPTERS or any(kwargs.get(key) is not None for key in ("state_dict", "gguf_file")):
        return None
    words = sort_keywords({**_without_adapter(kwargs), "method": _options[0], "bot_config": _options[1]})
    if config is None and not words.overrides:
        return None
    source = read_config(os.fspath(name), words.hub)
    if source.model_type not in ADAPTERS or source.model_type != model_type:
        return None
    wanted = target_config(source, words)
    before, after = sides(source, wanted, _options[1])
    return (source, wanted, words) if differing_roles(before, after) else None


def _without_adapter(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Auto classes pass `adapter_kwargs` even where the checkpoint has no adapter."""
    given = kwargs.get("adapter_kwargs") or {}
    if "_adapter_model_path" in given:
        return kwargs
    return {name: value for name, value in kwargs.items() if name != "adapter_kwargs"}
