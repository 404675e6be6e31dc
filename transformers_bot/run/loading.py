"""From an open source to an ordinary transformers model: run the plan, hand the tensors over, sign the result."""

import copy
import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures.classes import named_class
from ..architectures.fields import crossing
from ..architectures.sizes import changed_fields
from ..compat import Releasing, building, commit_of, forget_renames, quiet
from ..console import progress
from ..console.progress import logger
from ..errors import PlanError
from ..hub.provenance import Place, attach, claimed_source, described
from ..hub.push import push_to_hub
from ..io.checkpoint import say_left_behind
from ..planning.planner import Plan
from ..report.measure import Watch
from ..report.report import Report
from ..report.rows import make_report
from ..request.keywords import Keywords
from ..version import __version__
from .execute import run_plan
from .opening import Resize, open_resize

if TYPE_CHECKING:
    from .gpu import LazyTensor

LEFT_OUT = 50  # names of left-out tensors in a record
RELEASED = 128 << 20  # bytes of results after which freed memory is given back: what is given back is faulted in again


def load_alone(
    model_class: type[PreTrainedModel],
    name: str,
    source_config: PreTrainedConfig,
    wanted: PreTrainedConfig,
    words: Keywords,
) -> PreTrainedModel | tuple[PreTrainedModel, dict[str, Any]]:
    """Resize checkpoint `name` into `model_class(wanted)` in this process; see `BoTModel.from_pretrained`."""
    resize = open_resize(model_class, name, source_config, wanted, words)
    watch = Watch(resize.plan, resize.adapter)
    gpu = _gpu_of(resize)
    unchanged = resize.checkpoint.check_unchanged
    with progress.part("resizing", progress.resizing_seconds(resize.plan)):
        results = run_plan(resize.plan, resize.tensors, resize.dtype, gpu or "cpu", watch, unchanged)
        if gpu is None:
            resized = apart(results)
        else:
            from .gpu import LazyResults

            with LazyResults(results, gpu) as lazy:
                model, info = hand_over(resize, lazy.state_dict(_computed(resize.plan)), gpu)
    if gpu is None:
        with progress.part("building the model", progress.finishing_seconds(resize.plan)):
            model, info = hand_over(resize, resized)
    unchanged()
    report = make_report(resize.plan, watch, model.config.transformers_bot)
    place = Place.of(name, words.hub.get("subfolder"))
    attach(model, report, push_to_hub, resize.checkpoint.named, place)
    for sentence in resize.plan.warnings:
        logger.warning(sentence)
    say_left_behind(name, words.hub, "save_pretrained of a model in memory")
    return (model, loading_info(resize.plan, info, report)) if words.output_loading_info else model


def _gpu_of(resize: Resize) -> torch.device | None:
    """The GPU on which the whole result is to lie; None for every other place."""
    if resize.words.target.get("device_map") is None:
        return None
    from .gpu import gpu_for  # streams and threads, which a call for the CPU has no use for

    return gpu_for(resize.words.target, resize.config)


def apart(results: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """All results; two layers copied from one source tensor must not become one shared parameter."""
    apart: dict[str, Tensor] = {}
    given: set[int] = set()
    releasing = Releasing(RELEASED)
    for name, tensor in results:
        apart[name] = tensor.clone() if tensor.data_ptr() in given else tensor
        given.add(apart[name].data_ptr())
        releasing.made(tensor.nbytes)
    return apart


def _computed(plan: Plan) -> list[str]:
    return [step.target for step in plan.steps if step.recipe is not None]


def hand_over(
    resize: Resize, resized: "Mapping[str, Tensor | LazyTensor]", gpu: torch.device | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Let transformers build the target: it ties, casts, places, quantises and initialises new heads.

    Args:
        resized: target name -> tensor, for every step that computes one.
        gpu: on which the whole target is to lie, where that is so.
    """
    words, opened = resize.words, resize.opened
    keywords = {**words.target, **words.init}
    if getattr(resize.config, "output_attentions", False):  # other implementations do not give them, nor are saved
        keywords.setdefault("attn_implementation", "eager")
    if resize.model_class.can_generate() and "generation_config" not in keywords:
        keywords["generation_config"] = copy.deepcopy(getattr(opened.model, "generation_config", None))
    if gpu is not None:
        keywords["device_map"] = {"": gpu}  # with its number: "cuda" alone would be another one in another thread
    elif keywords.get("device_map") is not None:
        # Under its own name too: where a tensor goes to disk, transformers finds those tied to it only so.
        ties = resize.plan.target.ties.items()
        resized = {**resized, **{name: resized[held] for name, held in ties if held in resized}}
    with building(), quiet():
        model, info = resize.model_class.from_pretrained(
            None, config=resize.config, state_dict=resized, dtype=resize.dtype, output_loading_info=True, **keywords
        )
    _check_complete(resize.plan, info)
    forget_source(model)
    model.config.transformers_bot = provenance(resize)
    return model, info


def forget_source(model: PreTrainedModel) -> None:
    """Take away what transformers notes about the files that a model was loaded from."""
    # The model is stored nowhere yet, and its source is another one: a name would make adapters (PEFT) and
    # cards say that they belong to that. Without any, transformers notes the string "None".
    model.config.name_or_path = ""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.name_or_path = ""
    forget_renames(model)


def _check_complete(plan: Plan, info: dict[str, Any]) -> None:
    """Every parameter came from a step; transformers agrees on which are new."""
    fresh = set(plan.names("fresh"))
    unplanned = set(info["missing_keys"]) - fresh - set(plan.names("tie"))
    if unplanned or info["unexpected_keys"] or info["mismatched_keys"]:
        raise PlanError(
            "transformers did not take the resized tensors as planned: "
            f"missing {sorted(unplanned)[:3]}, unexpected {sorted(info['unexpected_keys'])[:3]}, "
            f"mismatched {sorted(info['mismatched_keys'])[:3]}. Please report this."
        )


def provenance(resize: Resize) -> dict[str, Any]:
    """What made this model, in JSON types: it is saved in `config.json` and survives a reload.

    The files' SHA-256 are those that the hub's cache knows; others cost reading the files. A folder is called by its
    own name (see `provenance.described`).
    """
    shown = ("layer", "hidden", "heads", "ffn")
    alone = {"add_cross_attention": False} if crossing(resize.adapter, resize.plan.dropped) else {}
    plan, words, source = resize.plan, resize.words, resize.opened.model.config
    wrote = named_class(source)
    revision = resize.checkpoint.revision or commit_of(source) or words.hub.get("revision")
    return {
        **described(resize.name, words.hub.get("subfolder"), revision, words.record_path),
        "claimed_source": claimed_source(source) if os.path.isdir(resize.name) else None,
        "variant": words.files.get("variant"),
        "files": resize.checkpoint.hashes(compute=False),
        "source_sizes": {role: plan.source_sizes[role] for role in shown},
        "target_sizes": {role: plan.target_sizes[role] for role in shown},
        "inherited": round(plan.inherited, 6),
        "classes": [wrote.__name__ if wrote else None, resize.model_class.__name__],
        "left_out": plan.left_out[:LEFT_OUT],
        **plan.method,
        "config": {**changed_fields(source, resize.config), **alone},
        **{key: getattr(words, key) for key in ("ignore_mismatched_sizes", "nonfinite", "strict", "allow_pickle")},
        "dtype": str(resize.dtype).removeprefix("torch."),
        "versions": {package: metadata.version(package) for package in ("transformers", "torch", "pywavelets")}
        | {"transformers_bot": __version__},
    }


def loading_info(plan: Plan, info: dict[str, Any], report: Report) -> dict[str, Any]:
    """transformers' loading info, with what the plan knows of every tensor."""
    clash = {step.target: step for step in plan.steps if step.action == "fresh" and step.source_shape}
    return {
        **info,
        "missing_keys": {n for n in plan.names("fresh") if n not in clash},
        "unexpected_keys": set(plan.dropped) - set(plan.renewed),
        "mismatched_keys": {(n, step.source_shape, step.shape) for n, step in clash.items()},
        "resampled_keys": set(plan.names("resample")),
        "copied_keys": set(plan.names("copy")),
        "report": report,
    }
