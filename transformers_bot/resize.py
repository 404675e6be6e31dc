"""Runs a plan tensor by tensor: memory is the result plus one tensor's temporaries."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from transformers.utils import logging

from .measure import Watch
from .planner import Plan, Step
from .recipe import Moments, Watcher, run


def run_plan(
    plan: Plan,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    watch: Watch | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (target name, tensor) for every tensor that the source provides.

    A copy is the source's own tensor, also where several target tensors are copies of it.

    Args:
        plan: what to do.
        tensors: source name -> tensor; each is asked for only by the steps that read it.
        dtype: of the results; integers and copies of the same dtype are handed over as they are.
        device: where the computation runs and the results lie.
        watch: measures what is read and made, for the report; it changes no result.

    Raises:
        BadWeights: with a watch, a result that is not finite although what it is made of is.
    """
    steps = [step for step in plan.steps if step.recipe is not None]
    known: Moments = {}
    tensors = watch.reading(tensors) if watch else tensors
    for step in logging.tqdm(steps, desc="Resampling weights", unit="tensor"):
        trace = watch.following(step) if watch else None
        out = _run_step(step, tensors, dtype, torch.device(device), known, trace)
        if watch:
            watch.made(step, out)
        yield step.target, out


def _run_step(
    step: Step,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    known: Moments,
    watch: Watcher | None,
) -> Tensor:
    if step.recipe is None:
        raise ValueError(f"{step.target} is {step.action}: there is nothing to compute")
    with torch.no_grad():
        out = run(step.recipe, lambda one: tensors[step.reads[one]], dtype, device, known, watch)
    if tuple(out.shape) != step.shape:
        raise RuntimeError(f"{step.target}: planned {step.shape}, computed {tuple(out.shape)}; please report this.")
    return out
