"""Code that the training scripts share: options, the starting model, the loss, logs, resuming.

A script is five calls

    parser = training.parser(__doc__)                                    # options.py; add your own with training.add
    options = training.parse(parser, recipes.MLM)                        # flags > preset > defaults
    model = training.initial_model(options, BoTModelForMaskedLM, {...})  # starting_model.py
    teacher = training.load_teacher(options, BoTModelForMaskedLM)        # None without --teacher
    training.run(options, model, training.Data(train, evaluation, collate), teacher=teacher)

in a `main` that is started as `training.script(main)`.

`options` holds every option by its name, plus `arguments` (the finished `TrainingArguments`),
`checkpoint` (folder to resume from, or None), and `set` and `bot_config` as dicts.

A batch is a dict of tensors: the model's inputs and the targets. Targets are `labels` (token or
class numbers, -100 for none; floats are a regression) and, optionally, `soft_labels`
(batch, classes), which replace `labels` in the loss; or `start_positions` and `end_positions`.
`run` computes the loss from the logits itself, so that it is the same mean over all labelled
positions of the global batch for every number of processes and accumulation steps; transformers'
BERT, for one, divides by the positions of one micro-batch.

So that a resumed run repeats the one that was not interrupted, a data set draws random things from
a generator seeded with `(seed, epoch, index)`: the trainer calls its `set_epoch(epoch)` if it has one.

Two processes on the CPU, which `accelerate launch --cpu --num_processes 2` does not start (1.15):

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 examples/pretrain_clm.py ...

`run` writes into --output-dir: `log.csv` (a row for each logged step, whole again after a kill and
resume), `summary.json`, checkpoints, and the final model with its tokenizer or image processor.
"""

import argparse
import atexit
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from logs import HIDDEN, seconds_logged, write_log, write_whole
from losses import check_labels, distillation, task_loss, without_targets
from options import add, parse, parser
from starting_model import fit_flops, initial_model, load_teacher
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import PreTrainedModel, Trainer

import transformers_bot
from transformers_bot.learned.flops import forward_flops, training_flops

__all__ = [
    "BudgetTrainer",
    "Data",
    "add",
    "batches",
    "initial_model",
    "load_teacher",
    "parse",
    "parser",
    "run",
    "script",
]

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Data:
    """What is trained and evaluated on.

    Attributes:
        train, evaluation: map-style data sets with a length.
        collate: list of items -> training batch.
        collate_evaluation: the same for evaluation, without augmentation; None is `collate`.
        tokens: tokens of one example, for the log's `tokens` column; None leaves the column out.
        shifted: each position predicts the next one, as in causal language models.
    """

    train: Dataset[Any]
    evaluation: Dataset[Any]
    collate: Callable[[list[Any]], Batch]
    collate_evaluation: Callable[[list[Any]], Batch] | None = None
    tokens: int | None = None
    shifted: bool = False


class BudgetTrainer(Trainer):
    """transformers' Trainer with our loss, a teacher, and the budget spent in every logged row.

    Besides Trainer's own arguments: `data`, `teacher`, `alpha`, `temperature`, and `costs`, the
    FLOPs before the first step and for one example.
    """

    def __init__(
        self,
        *args: Any,
        data: Data,
        teacher: PreTrainedModel | None,
        alpha: float,
        temperature: float,
        costs: tuple[int, int],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.data, self.alpha, self.temperature = data, alpha, temperature
        if teacher is not None:
            check_labels(self.model.config, teacher.config)
        self.teacher = None if teacher is None else teacher.to(self.args.device)
        self.flops_before, self.flops_each = costs
        self.model_accepts_loss_kwargs = True  # have the trainer count the labels of the global batch
        self.started, self.seconds_before = time.monotonic(), 0.0

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing to do: `initial_model` has read the weights with `from_pretrained`.

        Trainer's own way skips tensors whose names on disk differ from the module's, as all blocks of
        ViT and DeiT do since transformers 5, and continues with random weights.
        """

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Trainer has one collator for both; evaluation has its own here."""
        kept, self.data_collator = self.data_collator, self.data.collate_evaluation or self.data.collate
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = kept

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        training = model.training
        count = num_items_in_batch if training else None
        self.loss_is_scaled_for_ga = count is not None  # else the trainer divides by the accumulation steps
        features = without_targets(inputs)
        outputs = model(**features)
        loss = task_loss(outputs, inputs, self.data.shifted, count)
        if training and self.teacher is not None:
            with torch.no_grad():
                lesson = self.teacher(**features)
            learned = distillation(outputs, lesson, inputs, self.data.shifted, self.temperature, count)
            loss = (1 - self.alpha) * loss + self.alpha * learned
        if count is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # `count` is global and gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def examples_at(self, step: int) -> int:
        """Training examples seen after so many optimizer steps; an epoch's last step may be short."""
        args = self.args
        each, total = args.train_batch_size * args.world_size, len(self.data.train)  # type: ignore[arg-type]
        loads = total // each if args.dataloader_drop_last else -(-total // each)
        epoch = loads * each if args.dataloader_drop_last else total
        done, rest = divmod(step, -(-loads // args.gradient_accumulation_steps))
        return done * epoch + min(rest * each * args.gradient_accumulation_steps, epoch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the budget to a row; the rows live in the trainer's state, which checkpoints carry."""
        examples = self.examples_at(self.state.global_step)
        logs["examples"] = examples
        if self.data.tokens is not None:
            logs["tokens"] = examples * self.data.tokens
        logs["flops"] = self.flops_before + examples * self.flops_each
        logs["seconds"] = round(self.seconds_before + time.monotonic() - self.started, 3)
        super().log(logs, start_time)
        if self.is_world_process_zero():
            write_log(Path(self.args.output_dir) / "log.csv", self.state.log_history)


def run(
    options: argparse.Namespace,
    model: PreTrainedModel,
    data: Data,
    *,
    teacher: PreTrainedModel | None = None,
    metrics: Callable[[Any], dict[str, float]] | None = None,
    logits_for_metrics: Callable[[Any, Any], Any] | None = None,
    processing: Any = None,
    trainer_class: type[BudgetTrainer] = BudgetTrainer,
) -> dict[str, Any]:
    """Train, evaluate (at step 0, every --eval-steps and at the end), save; returns the summary.

    Args:
        metrics: transformers' `compute_metrics`; without it only the loss is evaluated.
        logits_for_metrics: transformers' `preprocess_logits_for_metrics`.
        processing: tokenizer or image processor, saved beside the model.
        trainer_class: a subclass, for tasks whose evaluation is more than a function of the logits.
    """
    options.arguments.eval_on_start = options.checkpoint is None
    trainer = trainer_class(
        model=model,
        args=options.arguments,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        data_collator=data.collate,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=logits_for_metrics,
        processing_class=processing,
        data=data,
        teacher=teacher,
        alpha=options.distill_alpha,
        temperature=options.distill_temperature,
        costs=(fit_flops(model), flops_of_example(model, data, teacher)),
    )
    if options.checkpoint is not None:
        trainer.seconds_before = seconds_logged(options.checkpoint)
    trainer.train(resume_from_checkpoint=None if options.checkpoint is None else str(options.checkpoint))
    history = trainer.state.log_history
    if not any("eval_loss" in row and row["step"] == trainer.state.global_step for row in history):
        trainer.evaluate()
    trainer.save_model()
    summary = summarise(options, model, trainer)
    if trainer.is_world_process_zero():
        write_whole(Path(options.output_dir) / "summary.json", json.dumps(summary, indent=2, default=str) + "\n")
    return summary


def script(main: Callable[[], None]) -> None:
    """Run a script; a mistake in its call becomes one sentence and exit code 2."""
    atexit.register(_leave)
    try:
        main()
    except transformers_bot.BoTError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


def _leave() -> None:
    """Close the group of processes: its threads, still running at exit, would abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def batches(data: Data, seed: int) -> Callable[[int], Iterator[Batch]]:
    """batch size -> endless shuffled training batches, to fit a learned operator with."""

    def endless(size: int) -> Iterator[Batch]:
        order = torch.Generator().manual_seed(seed)
        sampler = RandomSampler(data.train, generator=order)  # type: ignore[arg-type]
        while True:
            loader = DataLoader(data.train, batch_size=size, sampler=sampler, collate_fn=data.collate)
            yield from ({k: v for k, v in batch.items() if k != "soft_labels"} for batch in loader)

    return endless


def flops_of_example(model: PreTrainedModel, data: Data, teacher: PreTrainedModel | None) -> int:
    """Measured training FLOPs of one example, the teacher's forward pass included."""
    batch = {name: value for name, value in data.collate([data.train[0]]).items() if name != "soft_labels"}
    spent = training_flops(model, batch)
    return spent if teacher is None else spent + forward_flops(teacher, without_targets(batch))


def summarise(options: argparse.Namespace, model: PreTrainedModel, trainer: BudgetTrainer) -> dict[str, Any]:
    """Arguments, final metrics, budget, versions and where the model came from."""
    evaluated = [row for row in trainer.state.log_history if "eval_loss" in row][-1]
    return {
        "options": {name: value for name, value in vars(options).items() if name != "arguments"},
        "training_arguments": options.arguments.to_dict(),
        "metrics": {k: v for k, v in evaluated.items() if k.startswith("eval_") and not k.endswith(HIDDEN)},
        "steps": trainer.state.global_step,
        "examples": evaluated["examples"],
        "flops": evaluated["flops"],
        "fit_flops": trainer.flops_before,
        "seconds": evaluated["seconds"],
        "processes": trainer.args.world_size,
        "parameters": model.num_parameters(),
        "source": getattr(model.config, "transformers_bot", None),
        "versions": {
            "transformers_bot": transformers_bot.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
