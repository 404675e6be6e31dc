"""Runs a plan tensor by tensor, and lets transformers build the target around the results.

Memory is the result plus the temporaries of one tensor, which the next one uses.
"""

import contextlib
import copy
import functools
import os
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.inventory import named_class
from ..architectures.sizes import changed_fields, crossing
from ..compat import Releasing, building, commit_of, forget_renames, quiet
from ..console import progress
from ..errors import BadCheckpoint, PlanError
from ..hub.provenance import claimed_source
from ..hub.push import OwnPush, Place
from ..io.config_files import described
from ..io.files import stamps_of
from ..ops.blocks import forget_placed
from ..ops.recipe import Cache, Watcher, run
from ..planning.planner import Plan, Step
from ..report.measure import Watch
from ..report.report import Report
from ..request.request import Request
from ..rewrite.network import Network
from ..version import __version__
from .opening import Resize

if TYPE_CHECKING:
    from .gpu import LazyTensor

LEFT_OUT = 50  # names of left-out tensors in a record
RELEASED = 128 << 20  # bytes of results after which freed memory is returned; more often costs page faults

_version = functools.cache(metadata.version)  # which looks through every folder of `sys.path`


def run_plan(
    plan: Plan,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    watch: Watch | None = None,
    before: Callable[[], None] | None = None,
) -> Generator[tuple[str, Tensor], None, None]:
    """Yield (target name, tensor) for every tensor that the source provides.

    A copy is the source's own tensor, also where several target tensors are copies of it.

    Args:
        plan: what to do.
        tensors: source name -> tensor; each is asked for only by the steps that read it.
        dtype: of the results; integers and copies of the same dtype are passed on unchanged.
        device: where the computation runs and the results lie.
        watch: measures sources and results for the report; it changes no result.
        before: called before each tensor is read; what it raises ends the run.

    Raises:
        BadWeights: with a watch, a result that is not finite although its sources are.
    """
    steps = [step for step in plan.steps if step.recipe is not None]
    # Made here, not in the generator: its first `next` may come from another thread.
    sizes = [float(progress.numbers_of(plan, step)) for step in steps]
    tracked = progress.tracked(steps, sizes, [f"resizing {step.target}" for step in steps])
    dropped = tuple(plan.dropped)
    return _run_steps(tracked, _order(steps), tensors, dtype, torch.device(device), watch, before, dropped)


def _run_steps(
    steps: Iterable[Step],
    order: list[str],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    watch: Watch | None,
    before: Callable[[], None] | None,
    dropped: tuple[str, ...],
) -> Generator[tuple[str, Tensor], None, None]:
    cache = Cache()
    with _on(device, tensors, order) as placed:
        placed = watch.measured(placed) if watch else placed
        for step in steps:
            if before is not None:
                before()
            trace = watch.trace(step) if watch else None
            out = _run_step(step, placed, dtype, device, cache, trace)
            if watch:
                watch.record(step, out)
            yield step.target, out
    if watch:
        stored = tensors.stored if isinstance(tensors, Network) else tensors
        watch.record_unread({name: stored[name] for name in dropped if name in stored})


@contextlib.contextmanager
def _on(device: torch.device, tensors: Mapping[str, Tensor], order: list[str]) -> Iterator[Mapping[str, Tensor]]:
    """The same tensors on the device; rewritten ones are sent as they are stored, and rewritten there."""
    if device.type != "cuda":
        yield tensors
        return
    from .gpu import CudaEngine, Prefetched  # streams and threads, not needed for the CPU

    stored = tensors.stored if isinstance(tensors, Network) else tensors
    with Prefetched(stored, CudaEngine(device), order) as sent:
        try:
            yield tensors.over(sent) if isinstance(tensors, Network) else sent
        finally:
            forget_placed()


def _order(steps: list[Step]) -> list[str]:
    """The names of source tensors in the order in which the steps read them."""
    recipes = ((step, recipe) for step in steps if step.recipe for recipe in (step.recipe, *step.recipe.plus))
    return [step.reads[name] for step, recipe in recipes for name in recipe.reads]


def _run_step(
    step: Step,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    cache: Cache,
    watch: Watcher | None,
) -> Tensor:
    if step.recipe is None:
        raise ValueError(f"{step.target} is {step.action}: there is nothing to compute")
    with torch.no_grad():
        out = run(step.recipe, lambda name: tensors[step.reads[name]], dtype, device, cache, watch)
    if tuple(out.shape) != step.shape:
        raise RuntimeError(f"{step.target}: planned {step.shape}, computed {tuple(out.shape)}; please report this.")
    return out


def apart(results: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """All results by name, where copies of one source tensor do not share memory: they are separate parameters."""
    state: dict[str, Tensor] = {}
    addresses: set[int] = set()
    releasing = Releasing(RELEASED)
    for name, tensor in results:
        state[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(state[name].data_ptr())
        releasing.made(tensor.nbytes)
    return state


def hand_over(
    resize: Resize, resized: "Mapping[str, Tensor | LazyTensor]", gpu: torch.device | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Let transformers build the target: it ties, casts, places, quantises and initialises new heads.

    Args:
        resized: target name -> tensor, for every step that computes one.
        gpu: the GPU that is to hold the whole target, if any.
    """
    request, opened = resize.request, resize.opened
    keywords = {**request.keywords.target, **request.keywords.init}
    if getattr(resize.config, "output_attentions", False):  # others return none and cannot be saved
        keywords.setdefault("attn_implementation", "eager")
    if request.model_class.can_generate() and "generation_config" not in keywords:
        keywords["generation_config"] = copy.deepcopy(getattr(opened.model, "generation_config", None))
    if request.kept and keywords.get("generation_config") is not None:
        keywords["generation_config"] = copy.deepcopy(keywords["generation_config"])
        request.kept.renumber(keywords["generation_config"])
    if gpu is not None:
        keywords["device_map"] = {"": gpu}  # with its number: "cuda" alone depends on the thread
    elif keywords.get("device_map") is not None:
        # Also under its own name: only so does transformers find a tensor that is tied to one on the disk.
        ties = resize.plan.target.ties.items()
        resized = {**resized, **{name: resized[holder] for name, holder in ties if holder in resized}}
    with building(), quiet():
        model, info = request.model_class.from_pretrained(
            None, config=resize.config, state_dict=resized, dtype=resize.dtype, output_loading_info=True, **keywords
        )
    _check_complete(resize.plan, info)
    forget_source(model)
    model.config.transformers_bot = provenance(resize)
    return model, info


def forget_source(model: PreTrainedModel) -> None:
    """Remove what transformers has recorded about the files that a model was loaded from."""
    # The model is not stored yet: with the source's name, adapters (PEFT) and cards would say that they belong to
    # the source. If it is left alone, transformers sets the string "None".
    model.config.name_or_path = ""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.name_or_path = ""
    forget_renames(model)


def _check_complete(plan: Plan, info: dict[str, Any]) -> None:
    """Check that every parameter came from a step, and that transformers agrees on which are new."""
    fresh = set(plan.names("fresh"))
    unplanned = set(info["missing_keys"]) - fresh - set(plan.names("tie"))
    if unplanned or info["unexpected_keys"] or info["mismatched_keys"]:
        raise PlanError(
            "transformers did not take the resized tensors as planned: "
            f"missing {sorted(unplanned)[:3]}, unexpected {sorted(info['unexpected_keys'])[:3]}, "
            f"mismatched {sorted(info['mismatched_keys'])[:3]}. Please report this."
        )


def provenance(resize: Resize) -> dict[str, Any]:
    """The record of how this model was made, in JSON types, which is saved in `config.json`.

    It has the SHA-256 of files in the hub's cache only, because others would have to be read. A folder is called by
    its own name (see `config_files.described`).
    """
    roles = resize.plan.roles
    shown = (*roles.depths, *roles.streams, *roles.units)
    request, plan, source = resize.request, resize.plan, resize.opened.model.config
    keywords = request.keywords
    alone = {"add_cross_attention": False} if crossing(request.adapter, resize.plan.dropped) else {}
    wrote, is_folder = named_class(source), os.path.isdir(request.name)
    revision = resize.checkpoint.revision or commit_of(source) or keywords.hub.get("revision")
    return {
        **described(request.name, request.subfolder, revision, keywords.record_path),
        # Only a source that was resized itself has a record, and so a claim.
        "claimed_source": claimed_source(source) if is_folder and hasattr(source, "transformers_bot") else None,
        "variant": keywords.files.get("variant"),
        "files": resize.checkpoint.hashes(compute=False),
        "source_sizes": {role: plan.source_sizes[role] for role in shown},
        "target_sizes": {role: plan.target_sizes[role] for role in shown},
        "inherited": round(plan.inherited, 6),
        "classes": [wrote.__name__ if wrote else None, request.model_class.__name__],
        "left_out": plan.left_out[:LEFT_OUT],
        **plan.method,
        "config": {**changed_fields(source, resize.config), **alone},
        **{key: getattr(keywords, key) for key in ("ignore_mismatched_sizes", "nonfinite", "strict", "allow_pickle")},
        **({"vocab_keep": request.kept.record} if request.kept else {}),
        "dtype": str(resize.dtype).removeprefix("torch."),
        "versions": {package: _version(package) for package in ("transformers", "torch", "pywavelets")}
        | {"transformers_bot": __version__},
    }


def attach(model: PreTrainedModel, report: Report, request: Request, files: Mapping[str, Path]) -> None:
    """Give a model its report, and make its own `push_to_hub` write our card.

    The class is not changed: both are attributes of this instance, which its copies and pickles keep.

    Args:
        files: the source's files, by their names in the record.
    """
    stamps = {}
    with contextlib.suppress(BadCheckpoint):  # a file is gone: its hash is not recorded
        stamps = {name: (path, stamps_of([path])[path]) for name, path in files.items()}
    # Absolute, so that it stays valid when the current folder changes.
    name = os.path.abspath(request.name) if os.path.isdir(request.name) else request.name
    model.transfer_report = report
    model.push_to_hub = OwnPush(weakref.ref(model), stamps, Place(name, request.subfolder))


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
