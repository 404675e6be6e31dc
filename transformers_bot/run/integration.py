"""Opt-in: transformers' own `from_pretrained` resizes where sizes do not fit. Reversible, never on import.

transformers' Auto classes and concrete classes all end in `PreTrainedModel.from_pretrained`. While the
integration is on, that one method looks at the config it is given. Where transformers would fail on a
tensor of another size, or initialise anew what the checkpoint lacks at that size (more layers), the
checkpoint is resized. Everything else goes to the original method untouched: fewer layers of the same
widths, of which transformers keeps the first, and another number of heads at the same width.
"""

import contextlib
import functools
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from transformers import PreTrainedConfig, PreTrainedModel

from .. import methods
from ..architectures import ADAPTERS
from ..architectures.inventory import predict
from ..architectures.sizes import differing_roles, role_sizes, sizes_to_set
from ..compat import building, names_peft_adapter, quiet
from ..console.progress import logger
from ..errors import BadKeyword, BadOption, BoTError, suggest
from ..io.checkpoint import check_files
from ..options import BoTConfig
from ..request.names import CALLS, ELSEWHERE, FILES, HUB, KNOWN, OPTIONS, check_known
from ..request.request import (
    Call,
    Request,
    check_numbers,
    init_keywords,
    overrides_of,
    picked,
    read_source,
    sort_keywords,
    target_config,
)
from .loading import load_resized

if TYPE_CHECKING:
    from ..request.signatures import NoKeywords, Options


@dataclass(eq=False)
class _Options:
    """How to resize, of one `enable` or one with block; `is_on` until that ends."""

    method: str
    bot_config: BoTConfig
    is_on: bool = True


UNKNOWN = re.compile(r"__init__\(\) got an unexpected keyword argument '(\w*)'")  # of a model's constructor, by Python
OF_BLOCK = CALLS["integration"]
_LOCK = threading.Lock()
_original: Any = None  # transformers' own method, while ours is in its place
_users = 0  # with blocks of all threads, and `enable`
_enabled: _Options | None = None
_BLOCKS: ContextVar[tuple[_Options, ...]] = ContextVar("blocks", default=())  # of this thread or task, outermost first
_inside = threading.local()


def enable(bot_config: "Options" = None, method: str = "bot", **unknown: "Unpack[NoKeywords]") -> None:
    """Let `AutoModelFor*.from_pretrained(src, config=other_size)` resize; `disable()` takes it back.

    It holds in all threads of the process; `integration()` holds in its own alone and goes before it.
    Which calls are resized is said there.

    Example:
        >>> from transformers import AutoModelForCausalLM
        >>> enable()
        >>> model = AutoModelForCausalLM.from_pretrained("gpt2", config=small)  # doctest: +SKIP
        >>> disable()

    Args:
        bot_config: a `BoTConfig` or dict for every model resized this way.
        method: the resizing method.

    Raises:
        BadKeyword, BadOption: a keyword, a method or an option that does not exist.
    """
    global _enabled
    options = _checked("enable", bot_config, method, unknown)
    with _LOCK:
        if _enabled is None:
            _put_in_place()
        _enabled = options


def disable() -> None:
    """Take `enable()` back; without effect when it is not enabled. With blocks of `integration` keep theirs."""
    global _enabled
    with _LOCK:
        if _enabled is not None:
            _take_back()
        _enabled = None


@contextlib.contextmanager
def integration(bot_config: "Options" = None, method: str = "bot", **unknown: "Unpack[NoKeywords]") -> Iterator[None]:
    """Inside the block, and in this thread (or asyncio task) alone, transformers' `from_pretrained` resizes.

    Resized are the calls that transformers would fail with ("size mismatch"), and those that leave weights
    newly initialised because of a size: other widths, vocabularies or positions, more layers. All other
    calls are transformers' own, bit for bit: with fewer layers and equal widths it keeps the first ones
    (`BoTModel` takes the ones that `BoTConfig.depth` says), and with another number of heads at the same
    width it cuts the same matrices elsewhere.

    Example:
        >>> with integration({"wavelet": "haar"}):
        ...     model = AutoModelForCausalLM.from_pretrained("gpt2", config=small)  # doctest: +SKIP

    A thread that is started inside is not affected, except by `asyncio.to_thread`, which passes the context on;
    use `enable()` for a pool of threads.

    Args:
        bot_config: a `BoTConfig` or dict for every model resized in the block; blocks nest, and the inner one decides.
        method: the resizing method.

    Raises:
        BadKeyword, BadOption: a keyword, a method or an option that does not exist.
    """
    options = _checked("integration", bot_config, method, unknown)
    with _LOCK:
        _put_in_place()
    _BLOCKS.set((*_BLOCKS.get(), options))
    try:
        yield
    finally:
        options.is_on = False  # also in contexts that were copied from this one
        _BLOCKS.set(tuple(block for block in _BLOCKS.get() if block.is_on))  # blocks can be left in any order
        with _LOCK:
            _take_back()


def _checked(call: str, bot_config: Any, method: str, unknown: Mapping[str, Any]) -> _Options:
    check_known(call, unknown)
    check_numbers({"method": method, "bot_config": bot_config})
    if not isinstance(method, str):
        raise BadOption(f"method must be the name of a method, got {method!r}.")
    options = methods.options_of(method, bot_config)
    methods.get(method, options)
    return _Options(method, options)


def _put_in_place() -> None:
    global _original, _users
    if not _users:
        _original = PreTrainedModel.__dict__["from_pretrained"]
        PreTrainedModel.from_pretrained = classmethod(_resizing(_original.__func__))  # type: ignore[assignment]
    _users += 1


def _take_back() -> None:
    global _original, _users
    _users -= 1
    if not _users:
        PreTrainedModel.from_pretrained = _original  # type: ignore[method-assign]
        _original = None


def _current() -> _Options | None:
    """The options that hold for a call of this thread; None where it is transformers' own."""
    return next((block for block in reversed(_BLOCKS.get()) if block.is_on), _enabled)


def _resizing(original: Any) -> Any:
    @functools.wraps(original)
    def from_pretrained(
        cls: type[PreTrainedModel], pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any
    ) -> Any:
        name, options = pretrained_model_name_or_path, _current()
        if options is None or getattr(_inside, "resize", False):
            return original(cls, name, *model_args, **kwargs)
        if name is not None and not model_args:
            _inside.resize = True
            try:
                request = _request_if_resized(cls, name, kwargs, options)
                if request is not None:
                    return load_resized(request)
                _fetch(name, kwargs)
            finally:
                _inside.resize = False
        try:
            with building():
                return original(cls, name, *model_args, **kwargs)
        except TypeError as error:
            unknown = UNKNOWN.search(str(error))
            if unknown is None or unknown[1] not in kwargs:
                raise
            raise _unknown_field(cls, unknown[1]) from error

    return from_pretrained


def _unknown_field(cls: type[PreTrainedModel], name: str) -> BadKeyword:
    """The error for a keyword that neither transformers nor a config has, in place of the constructor's own."""
    config, adapter = cls.config_class(), ADAPTERS.get(getattr(cls.config_class, "model_type", ""))
    known = (*init_keywords(cls), *config.to_dict(), *config.attribute_map, *KNOWN)
    hint = _of_block(name) or suggest(name, known) or (sizes_to_set(adapter, config) if adapter else "")
    return BadKeyword(f"{cls.__name__} has no keyword {name!r}, and its config no such field.{hint}")


def _of_block(name: str) -> str:
    """A sentence on what is said once for all models, where the integration is switched on."""
    if name in OPTIONS:
        return f" It is an option of the method: write integration(bot_config={{{name!r}: ...}})."
    return f" {name}= is given to integration() or enable()." if name in OF_BLOCK else ""


def _fetch(name: Any, kwargs: dict[str, Any]) -> None:
    """Bring a hub id's files into the cache, so that other threads need not wait for that to build their models."""
    if os.path.isdir(name) or any(kwargs.get(key) is not None for key in ELSEWHERE):
        return
    with contextlib.suppress(Exception):  # the original method reports what is wrong with its source
        check_files(os.fspath(name), picked(kwargs, (*HUB, *FILES)), allow_pickle=True, resampled=False)


def _request_if_resized(
    cls: type[PreTrainedModel], name: Any, kwargs: dict[str, Any], options: _Options
) -> Request | None:
    """The call as a request if it asks for other sizes; None where the original method serves."""
    adapter = ADAPTERS.get(getattr(cls.config_class, "model_type", ""))
    init, picks = init_keywords(cls), kwargs.get("vocab_keep") is not None
    is_like_source = kwargs.get("config") is None and not picks and not overrides_of(kwargs, init)
    if adapter is None or is_like_source or any(kwargs.get(key) is not None for key in ELSEWHERE):
        return None
    check_numbers(kwargs)
    try:
        source, described = read_source(os.fspath(name), picked(kwargs, HUB), cls.config_class)
        if source.model_type != adapter.model_type:
            return None
        own = adapter.of(source)
        before = role_sizes(own, source, "source")
    except (BoTError, OSError):
        return None  # the original method reports what is wrong with its source
    asked = {**_without_adapter(kwargs), "method": options.method, "bot_config": options.bot_config}
    keywords = sort_keywords("integration", asked, init, checked=False)
    target = target_config(own, source, keywords)
    after = role_sizes(own, target, "target")
    if not differing_roles(before, after) and not picks:
        return None
    if not picks and not _needs_resize(cls, source, target):
        logger.info("%s has every tensor in the sizes that are asked for: it is loaded by transformers alone", name)
        return None
    both = next((name for name in OF_BLOCK if kwargs.get(name) is not None), None)
    if both is not None:
        raise BadKeyword(f"from_pretrained of transformers has no keyword {both!r}.{_of_block(both)}")
    call = Call(
        name=os.fspath(name),
        source=source,
        adapter=adapter,
        keywords=keywords.check(),
        class_for=lambda _: cls,
        described=described,
    )
    return Request.of(call, target=target, before=before, after=after)


def _needs_resize(cls: type[PreTrainedModel], source: PreTrainedConfig, target: PreTrainedConfig) -> bool:
    """Whether a tensor of the target is missing, or has another size, in a model of the source's sizes."""
    with quiet():
        try:
            stored, expected = predict(cls, source).shapes, predict(cls, target).shapes
        except BoTError:
            return True  # the resize gives the better message
    return any(stored.get(name) != shape for name, shape in expected.items())


def _without_adapter(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Auto classes pass `adapter_kwargs` even where the checkpoint has no adapter."""
    if names_peft_adapter(kwargs):
        return kwargs
    return {name: value for name, value in kwargs.items() if name != "adapter_kwargs"}
