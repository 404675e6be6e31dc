"""The loss of every task from its logits, and the loss against a teacher's logits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Batch = dict[str, Tensor]
TARGETS = ("labels", "soft_labels", "start_positions", "end_positions")
IGNORED = -100


def check_labels(student: Any, teacher: Any) -> None:
    """Refuse a teacher whose classes have the student's names in another order."""
    names = [[config.id2label[i] for i in sorted(config.id2label)] for config in (student, teacher)]
    if names[0] != names[1] and sorted(names[0]) == sorted(names[1]):
        raise ValueError(
            f"the teacher's classes are {names[1]} and the student's {names[0]}: in this order it would teach wrong "
            "classes. Train the teacher with the student's label order."
        )


def without_targets(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name not in TARGETS}


def task_loss(outputs: Any, batch: Batch, shifted: bool = False, count: Any = None) -> Tensor:
    """Cross entropy (squared error for float labels), as a mean over the labelled rows.

    Args:
        outputs: of the model, with `logits` or with `start_logits` and `end_logits`.
        batch: holds the targets (see `training`).
        shifted: each position predicts the next one (causal language models).
        count: divide the sum by this instead of the number of labelled rows, for a micro-batch
            that is part of a larger one.
    """
    if "start_positions" in batch:
        start = F.cross_entropy(outputs.start_logits.float(), batch["start_positions"])
        return (start + F.cross_entropy(outputs.end_logits.float(), batch["end_positions"])) / 2
    (logits, keep), labels = labelled(outputs.logits, batch, shifted), batch["labels"]
    if "soft_labels" in batch:
        total = F.cross_entropy(logits, batch["soft_labels"][keep], reduction="sum")
    elif labels.is_floating_point():
        total = F.mse_loss(logits.reshape(-1), labels.reshape(-1).float(), reduction="sum")
    else:
        total = F.cross_entropy(logits, (labels[:, 1:] if shifted else labels)[keep], reduction="sum")
    return total / (len(logits) if count is None else count)


def distillation(
    outputs: Any, lesson: Any, batch: Batch, shifted: bool, temperature: float, count: Any = None
) -> Tensor:
    """T^2 KL(teacher/T || student/T) as a mean over the labelled rows (Hinton et al. 2015).

    A regression has no distribution: there it is the squared difference.
    """
    if "start_positions" in batch:
        start = softened(outputs.start_logits.float(), lesson.start_logits.float(), temperature)
        end = softened(outputs.end_logits.float(), lesson.end_logits.float(), temperature)
        return (start + end) / (2 * len(batch["start_positions"]))
    student, _ = labelled(outputs.logits, batch, shifted)
    teacher, _ = labelled(lesson.logits, batch, shifted)
    if student.shape != teacher.shape:
        raise ValueError(
            f"the teacher gives {teacher.shape[-1]} logits where the student gives {student.shape[-1]}: a teacher "
            "needs the student's vocabulary or labels."
        )
    if batch["labels"].is_floating_point():
        total = F.mse_loss(student, teacher, reduction="sum")
    else:
        total = softened(student, teacher, temperature)
    return total / (len(student) if count is None else count)


def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The sum over rows (..., classes) of T^2 KL(teacher/T || student/T)."""
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


def labelled(logits: Tensor, batch: Batch, shifted: bool) -> tuple[Tensor, Tensor]:
    """The rows of the logits that have a label, in float32 (rows, classes), and where they are."""
    labels = batch["labels"]
    if labels.is_floating_point():
        keep = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        return logits[keep].float(), keep
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    keep = labels != IGNORED
    return logits[keep].float(), keep
