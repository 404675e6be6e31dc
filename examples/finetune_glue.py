"""Fine-tune BERT, RoBERTa or GPT-2 on a task of GLUE, resized from a trained model or from scratch.

    python examples/finetune_glue.py --task cola --source google-bert/bert-base-uncased \\
        --config bert-small --output-dir runs/cola --preset paper --num-train-epochs 6

    accelerate launch --num_processes 2 examples/finetune_glue.py --task mrpc --data-dir glue \\
        --source my-bert --set num_hidden_layers=12 --output-dir runs/mrpc --seeds 0,1,2,3,4

The preset `paper` is supplement C.2.3; its epochs, 3 here, were searched for in {3, 6, 10} for each task.
Metrics are GLUE's, computed in numpy: Matthews correlation (cola), accuracy and F1 (mrpc, qqp), Pearson
and Spearman correlation (stsb), accuracy (the others; mnli on its matched part).
"""

import argparse
from typing import Any

import training
from data_glue import TASKS, Task, glue_examples, glue_options, glue_rows
from data_rows import collate, pair_tokenizer
from data_text import check_fit, vocabulary
from metrics_glue import METRICS
from recipes import Recipes
from several_seeds import add_seeds, run_seeds

from transformers_bot import BoTModelForSequenceClassification

GLUE: Recipes = {
    "paper": {  # supplement C.2.3: Adam, which is AdamW without weight decay
        "optim": "adamw_torch",
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "batch_size": 32,
        "num_train_epochs": 3,
        "fit_steps": 100,  # C.5
        "fit_batch_size": 256,
    }
}


def metrics_of(task: Task) -> Any:
    """The task's metrics as a function of what the trainer has gathered: logits (examples, labels)."""

    def compute(gathered: Any) -> dict[str, float]:
        logits, wanted = gathered.predictions, gathered.label_ids
        predicted = logits.argmax(-1) if task.labels else logits.reshape(-1)
        return {name: METRICS[name](predicted, wanted.reshape(-1)) for name in task.metrics}

    return compute


def head_of(task: Task, tokenizer: Any) -> dict[str, Any]:
    """Config fields that the task decides."""
    kind = {"problem_type": "single_label_classification" if task.labels else "regression"}
    names = dict(enumerate(task.labels or ("score",)))
    named = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    return {**kind, **named, "pad_token_id": tokenizer.pad_token_id}  # GPT-2's head looks for the padding


def once(options: argparse.Namespace) -> dict[str, Any]:
    """One run; its summary."""
    task, tokenizer = TASKS[options.task], pair_tokenizer(options)
    train, held = (glue_rows(part, task, tokenizer, options.seq_length) for part in glue_examples(options))
    data = training.Data(train=train, evaluation=held, collate=collate)
    model = training.initial_model(
        options,
        BoTModelForSequenceClassification,
        {**vocabulary(options, tokenizer), **head_of(task, tokenizer)},
        training.batches(data, options.seed),
        new_head=True,
    )
    check_fit(model.config, tokenizer, train.columns["input_ids"].shape[1])
    teacher = training.load_teacher(options, BoTModelForSequenceClassification)
    return training.run(options, model, data, teacher=teacher, metrics=metrics_of(task), processing=tokenizer)


def main() -> None:
    parser = training.parser(__doc__)
    glue_options(parser)
    add_seeds(parser)
    summary = run_seeds(parser, GLUE, once)
    for name in TASKS[parser.parse_known_args()[0].task].metrics:
        if "spread" in summary:
            mean, spread = summary["mean"][f"eval_{name}"], summary["spread"][f"eval_{name}"]
            print(f"{name} {mean:.4f} +- {spread:.4f} over seeds {summary['seeds']}")
        else:
            print(f"{name} {summary['metrics'][f'eval_{name}']:.4f} after {summary['steps']} steps")


if __name__ == "__main__":
    training.script(main)
