"""What `from_pretrained` of a factory does: transformers' own load at the source's sizes, else a resized model."""

import os
import re
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed as zero

from .. import methods
from ..architectures.sizes import field_warnings, get_field
from ..compat import zero_init_is_active
from ..console import progress
from ..console.progress import logger
from ..errors import BadKeyword
from ..io.checkpoint import Source, say_left_behind
from ..report.measure import Watch, make_report
from ..request.request import Keywords, Request, check_numbers, overrides_of, read_call, sort_keywords
from .execute import apart, attach, hand_over, loading_info, run_plan
from .opening import Resize, check_request, open_resize, refuse_unsound
from .unchanged import Factory, load_unchanged

CALL = "from_pretrained"


def load(factory: Factory, name: str | os.PathLike[str], model_args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model that `factory.from_pretrained` gives; see there."""
    if any(isinstance(value, (PreTrainedConfig, dict, str, os.PathLike)) for value in model_args):
        raise BadKeyword("a config is taken by keyword only: pass the target as config=.")
    as_it_is = kwargs.get("config") is None and kwargs.get("vocab_keep") is None and not overrides_of(kwargs)
    if as_it_is and kwargs.get("method") != methods.Scratch.name:
        check_numbers(kwargs)
        keywords = sort_keywords(CALL, kwargs, checked=False)
        keywords.check_values()
        return _as_it_is(factory, name, model_args, kwargs, keywords)
    if model_args:
        raise BadKeyword("a resize takes keywords only: pass the target as config=.")
    return _resized(factory, name, kwargs)


def _resized(factory: Factory, name: str | os.PathLike[str], kwargs: dict[str, Any]) -> Any:
    with progress.part("reading the configs", progress.READING_SECONDS):
        call = read_call(CALL, name, kwargs, factory.class_for)
    anew = call.keywords.method == methods.Scratch.name  # the source's weights are not used at any size
    if not (call.keywords.names_target or anew):
        return _as_it_is(factory, name, (), kwargs, call.keywords)
    request = Request.of(call)
    return load_resized(request) if request.changes_size or anew else _as_large(factory, request, kwargs)


def _as_it_is(
    factory: Factory,
    name: str | os.PathLike[str],
    model_args: tuple[Any, ...],
    kwargs: dict[str, Any],
    keywords: Keywords,
) -> Any:
    """The source at its own sizes, as transformers loads it; options of a method are checked all the same."""
    methods.options_of(keywords.method, keywords.bot_config)
    return load_unchanged(factory, name, model_args, kwargs, keywords)


def _as_large(factory: Factory, request: Request, kwargs: dict[str, Any]) -> Any:
    """The model of a target that has the source's sizes: transformers loads it into the target's config."""
    source, target, keywords = request.source, request.target, request.keywords
    if source.num_labels != target.num_labels or _shapes_may_differ(request):  # it is refused as in a resize
        check_request(request)
    logger.info("source and target have the same sizes: nothing to resample")
    for sentence in field_warnings(request.adapter, source, target):
        logger.warning(sentence)
    remaining = {key: value for key, value in kwargs.items() if key not in keywords.overrides}
    arguments = {**remaining, "config": target, "output_loading_info": True}
    model, info = load_unchanged(factory, request.name, (), arguments, keywords, request.described)
    if not keywords.target:  # a placed, split or quantised model is not checked here
        opened = Source(model, frozenset(info["missing_keys"]), tuple(info["unexpected_keys"]))
        for sentence in refuse_unsound(request, opened):
            logger.warning(sentence)
    return (model, info) if keywords.output_loading_info else model


def _shapes_may_differ(request: Request) -> bool:
    """Whether the configs differ in a field of a role whose length only the tensors tell, such as labels."""
    told = [role.field for role in request.adapter.roles.values() if role.size is None]
    names = {name for field in told for name in re.findall(r"[\w.]+", field)}
    before, after = (
        {name: get_field(config, name, None) for name in names} for config in (request.source, request.target)
    )
    return before != after


@progress.bar("resizing")
def load_resized(request: Request) -> PreTrainedModel | tuple[PreTrainedModel, dict[str, Any]]:
    """The resized model, made once a node; see `BoTModel.from_pretrained`."""
    if _is_alone():
        return _load_alone(request)
    from .distributed import is_shared, load_shared  # not needed in one process

    return load_shared(request) if is_shared(request.model_class, request.keywords.target) else _load_alone(request)


def _is_alone() -> bool:
    """Whether this is the only process, and nothing splits its models: no launcher, no process group, no ZeRO-3."""
    grouped = dist.is_available() and dist.is_initialized()
    launched = os.environ.get("WORLD_SIZE", "1") != "1"
    return not (grouped or launched or zero.is_deepspeed_zero3_enabled() or zero_init_is_active())


def _load_alone(request: Request) -> PreTrainedModel | tuple[PreTrainedModel, dict[str, Any]]:
    """The resized model, made in this process."""
    resize = open_resize(request)
    keywords, plan, unchanged = request.keywords, resize.plan, resize.checkpoint.check_unchanged
    watch = Watch(plan, request.adapter)
    model, info = _built(resize, watch)
    unchanged()
    report = make_report(plan, watch, model.config.transformers_bot)
    attach(model, report, request, resize.checkpoint.named)
    for sentence in plan.warnings:
        logger.warning(sentence)
    if request.kept:
        logger.warning(
            "ids of the source's tokenizer do not match this model, which has a part of the vocabulary: "
            "resize_checkpoint writes the tokenizer that does"
        )
    say_left_behind(request.name, keywords.hub, "save_pretrained of a model in memory")
    return (model, loading_info(plan, info, report)) if keywords.output_loading_info else model


def _built(resize: Resize, watch: Watch) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The target as transformers builds it around the results, on the CPU or as they arrive on one GPU."""
    plan, target, unchanged = resize.plan, resize.request.keywords.target, resize.checkpoint.check_unchanged
    if target.get("device_map") is not None:
        from .gpu import LazyResults, gpu_for  # streams and threads, not needed for the CPU

        gpu = gpu_for(target, resize.config)
        if gpu is not None:
            with progress.part("resizing", progress.resizing_seconds(plan)):
                results = run_plan(plan, resize.tensors, resize.dtype, gpu, watch, unchanged)
                with LazyResults(results, gpu) as lazy:
                    computed = [step.target for step in plan.steps if step.recipe is not None]
                    return hand_over(resize, lazy.state_dict(computed), gpu)
    with progress.part("resizing", progress.resizing_seconds(plan)):
        resized = apart(run_plan(plan, resize.tensors, resize.dtype, "cpu", watch, unchanged))
    with progress.part("building the model", progress.finishing_seconds(plan)):
        return hand_over(resize, resized)
