"""Runs a plan tensor by tensor: memory is the result plus the temporaries of one tensor, which the next one uses."""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ..console import progress
from ..ops.blocks import forget_placed
from ..ops.moments_noise import Kept
from ..ops.recipe import Watcher, run
from ..planning.planner import Plan, Step
from ..report.measure import Watch
from ..rewrite import Network


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
        dtype: of the results; integers and copies of the same dtype are handed over as they are.
        device: where the computation runs and the results lie.
        watch: measures what is read and made, for the report; it changes no result.
        before: called before each tensor is read; what it raises ends the run.

    Raises:
        BadWeights: with a watch, a result that is not finite although what it is made of is.
    """
    steps = [step for step in plan.steps if step.recipe is not None]
    # Made here and not by the first `next`, which may come from another thread.
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
    kept = Kept()
    with _on(device, tensors, order) as there:
        there = watch.reading(there) if watch else there
        for step in steps:
            if before is not None:
                before()
            trace = watch.following(step) if watch else None
            out = _run_step(step, there, dtype, device, kept, trace)
            if watch:
                watch.made(step, out)
            yield step.target, out
    if watch:
        stored = tensors.stored if isinstance(tensors, Network) else tensors
        watch.passed_over({name: stored[name] for name in dropped if name in stored})


@contextlib.contextmanager
def _on(device: torch.device, tensors: Mapping[str, Tensor], order: list[str]) -> Iterator[Mapping[str, Tensor]]:
    """The same tensors on the device; what is rewritten is sent as it is stored and rewritten there."""
    if device.type != "cuda":
        yield tensors
        return
    from .gpu import CudaEngine, Prefetched  # as in `loading`

    stored = tensors.stored if isinstance(tensors, Network) else tensors
    with Prefetched(stored, CudaEngine(device), order) as sent:
        try:
            yield tensors.over(sent) if isinstance(tensors, Network) else sent
        finally:
            forget_placed()


def _order(steps: list[Step]) -> list[str]:
    """The names that steps read, in that order."""
    recipes = ((step, one) for step in steps if step.recipe for one in (step.recipe, *step.recipe.plus))
    return [step.reads[one] for step, recipe in recipes for one in recipe.reads]


def _run_step(
    step: Step,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    kept: Kept,
    watch: Watcher | None,
) -> Tensor:
    if step.recipe is None:
        raise ValueError(f"{step.target} is {step.action}: there is nothing to compute")
    with torch.no_grad():
        out = run(step.recipe, lambda one: tensors[step.reads[one]], dtype, device, kept, watch)
    if tuple(out.shape) != step.shape:
        raise RuntimeError(f"{step.target}: planned {step.shape}, computed {tuple(out.shape)}; please report this.")
    return out
