"""One training: AdamW over a budget, with the metric and the FLOPs so far at chosen steps."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from suite import Budget
from task import Batch, Task, device_of, on
from torch import Tensor

from transformers_bot.learned.flops import forward_flops, training_flops

_COUNTED: dict[tuple[Any, ...], int] = {}  # FLOPs do not depend on the weights: counted once a process


def loop(
    model: Any,
    task: Task,
    budget: Budget,
    rate: float,
    seed: int,
    teacher: Any = None,
    distil: dict[str, float] | None = None,
    spent: float = 0.0,
) -> dict[str, Any]:
    """Train a model and return its curve.

    Args:
        model: on its device; trained in place.
        teacher, distil: the wrapped teacher, with `weight` and `temperature` of its part of the loss.
        spent: FLOPs that were spent before the first step, such as those of a fitted operator.

    Returns:
        `curve`: step, flops (of training so far) and every metric of the task, from step 0 on; `diverged`:
        whether the loss became NaN or infinite, which ends the run; `train_seconds`.
    """
    wrapped = task.wrap(model)
    precise = _precision(budget, device_of(wrapped))
    optimizer = torch.optim.AdamW(_groups(wrapped, budget), lr=rate, betas=budget.betas)
    watched = set(evaluation_steps(budget))
    curve = [{"step": 0, "flops": spent, **_judged(wrapped, task, precise)}]
    batches = task.batches(seed, budget.batch)
    seconds = 0.0
    for step in range(budget.steps):
        start = time.perf_counter()
        batch = on(next(batches), device_of(wrapped))
        spent += _cost(wrapped, teacher, batch)
        for group in optimizer.param_groups:
            group["lr"] = rate * _scale(step, budget)
        loss = _step(wrapped, batch, optimizer, budget, precise, _distilled(teacher, distil))
        last = step + 1 in watched
        finite = not last or math.isfinite(float(loss))  # reading the loss waits for the device
        seconds += time.perf_counter() - start
        if last and finite:
            found = _judged(wrapped, task, precise)
            finite = all(map(math.isfinite, found.values()))
            curve += [{"step": step + 1, "flops": spent, **found}] if finite else []
        if not finite:
            return {"curve": curve, "diverged": True, "train_seconds": round(seconds, 2)}
    return {"curve": curve, "diverged": False, "train_seconds": round(seconds, 2)}


def evaluation_steps(budget: Budget) -> list[int]:
    """Half of the evaluations spaced geometrically (a good start is reached early), half evenly.

    >>> evaluation_steps(Budget(steps=100, batch=8, evaluations=8))
    [1, 3, 10, 25, 32, 50, 75, 100]
    """
    if budget.steps == 0:
        return []
    half = max(1, budget.evaluations // 2)
    early = [round(budget.steps ** (place / half)) for place in range(half)]
    even = [round(budget.steps * (place + 1) / half) for place in range(half)]
    return sorted({*early, *even} - {0})


def _scale(step: int, budget: Budget) -> float:
    """The share of the learning rate at a step: linear warm-up, then decay to zero at the end."""
    if step < budget.warmup:
        return (step + 1) / (budget.warmup + 1)
    past = (step - budget.warmup) / max(1, budget.steps - budget.warmup)
    if budget.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * past))
    return 1 - past if budget.schedule == "linear" else 1.0


def _groups(model: Any, budget: Budget) -> list[dict[str, Any]]:
    """Matrices decay, biases and norms do not."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    decayed, kept = [p for p in wanted if p.dim() > 1], [p for p in wanted if p.dim() <= 1]
    return [{"params": decayed, "weight_decay": budget.weight_decay}, {"params": kept, "weight_decay": 0.0}]


def _step(
    model: Any,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    budget: Budget,
    precise: Callable[[], AbstractContextManager[Any]],
    extra: Callable[[Any, Batch], Tensor] | None,
) -> Tensor:
    model.train()
    with precise():
        out = model(**batch)
        loss = out.loss if extra is None else extra(out, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), budget.clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def _distilled(teacher: Any, distil: dict[str, float] | None) -> Callable[[Any, Batch], Tensor] | None:
    """(1 - a) CE + a T^2 KL(teacher / T || student / T), at positions that have a label."""
    if teacher is None or distil is None:
        return None
    weight, heat = distil["weight"], distil["temperature"]

    def loss(out: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            taught = teacher(**batch).logits
        counted = batch["labels"] != -100  # (row, token) or (row,)
        student, wanted = (F.log_softmax(x[counted].float() / heat, dim=-1) for x in (out.logits, taught))
        apart = F.kl_div(student, wanted, reduction="batchmean", log_target=True)
        return (1 - weight) * out.loss + weight * heat**2 * apart

    return loss


def _cost(model: Any, teacher: Any, batch: Batch) -> int:
    """Training FLOPs of one batch, with the teacher's forward pass."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(batch.items()))
    parts = [(model, training_flops)] + ([] if teacher is None else [(teacher, forward_flops)])
    total = 0
    for part, count in parts:
        sizes = tuple((name, tuple(parameter.shape)) for name, parameter in part.named_parameters())
        key = (count.__name__, sizes, shapes)
        if key not in _COUNTED:
            part.train(part is model)
            _COUNTED[key] = count(part, batch)
        total += _COUNTED[key]
    return total


@torch.no_grad()
def _judged(model: Any, task: Task, precise: Callable[[], AbstractContextManager[Any]]) -> dict[str, float]:
    model.eval()
    with precise():
        found = task.evaluate(model)
    return {name: round(value, 6) for name, value in found.items()}


def _precision(budget: Budget, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    if budget.precision == "bfloat16" and device.type == "cuda":
        return lambda: torch.autocast("cuda", torch.bfloat16)
    return nullcontext
