"""Fine-tune BERT, RoBERTa or GPT-2 on SQuAD v1.1 or v2.0, resized from a trained model or from scratch.

    python examples/finetune_squad.py --train-file train-v1.1.json --eval-file dev-v1.1.json \\
        --source google-bert/bert-base-uncased --config bert-small --output-dir runs/squad --preset paper

    accelerate launch --num_processes 2 examples/finetune_squad.py --train-file dev-v2.0.json.xz \\
        --split-by-title 26/9 --source my-bert --set num_hidden_layers=12 --output-dir runs/squad2

The preset `paper` is supplement C.2.3; its epochs, 2 here, were chosen from {2, 4, 8}. Where some
questions have no answer (v2.0), the model may say so: it does if the score of "no answer" is more than
--null-threshold above that of the best span.

Beside the usual files --output-dir gets those of the last evaluation: `predictions.json`, question id ->
answer (empty for none), and, where questions may have no answer, `null_odds.json`, question id ->
score of "no answer" less that of the best span. SQuAD's evaluation script reads both.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import training
from accelerate import PartialState
from data_rows import collate, pair_tokenizer
from data_squad import Windows, squad_options, squad_questions, windows
from data_text import check_fit, vocabulary
from metrics_squad import scores
from recipes import Recipes
from several_seeds import add_seeds, run_seeds
from span_answers import answers

from transformers_bot import BoTModelForQuestionAnswering

SQUAD: Recipes = {
    "paper": {  # supplement C.2.3: Adam, which is AdamW without weight decay
        "optim": "adamw_torch",
        "learning_rate": 3e-5,
        "weight_decay": 0.0,
        "batch_size": 12,
        "num_train_epochs": 2,
        "fit_steps": 100,  # C.5
        "fit_batch_size": 256,
    }
}


class SpanMetrics:
    """Exact match and F1 of what the trainer has gathered; writes the predictions they are of."""

    def __init__(self, held: Windows, options: argparse.Namespace, may_be_none: bool) -> None:
        self.held, self.options, self.may_be_none = held, options, may_be_none

    def __call__(self, gathered: Any) -> dict[str, float]:
        start, end = gathered.predictions
        found = answers(self.held, start, end, self.options.n_best, self.options.max_answer_length)
        threshold = self.options.null_threshold
        texts = {
            key: "" if self.may_be_none and answer.null_odds > threshold else answer.text
            for key, answer in found.items()
        }
        if PartialState().is_main_process:
            folder = Path(self.options.output_dir)
            training.write_whole(folder / "predictions.json", json.dumps(texts, ensure_ascii=False, indent=1) + "\n")
            if self.may_be_none:
                odds = {key: answer.null_odds for key, answer in found.items()}
                training.write_whole(folder / "null_odds.json", json.dumps(odds, indent=1) + "\n")
        return scores(texts, {question.id: [text for text, _ in question.answers] for question in self.held.questions})


def once(options: argparse.Namespace) -> dict[str, Any]:
    """One run; its summary."""
    tokenizer = pair_tokenizer(options)
    questions = squad_questions(options)
    may_be_none = not all(question.answers for part in questions for question in part)
    train, held = (windows(part, tokenizer, options) for part in questions)
    data = training.Data(train=train.rows, evaluation=held.rows, collate=collate)
    model = training.initial_model(
        options,
        BoTModelForQuestionAnswering,
        {**vocabulary(options, tokenizer), "num_labels": 2, "pad_token_id": tokenizer.pad_token_id},
        training.batches(data, options.seed),
        new_head=True,
    )
    check_fit(model.config, tokenizer, train.rows.columns["input_ids"].shape[1])
    teacher = training.load_teacher(options, BoTModelForQuestionAnswering)
    metrics = SpanMetrics(held, options, may_be_none)
    return training.run(options, model, data, teacher=teacher, metrics=metrics, processing=tokenizer)


def main() -> None:
    parser = training.parser(__doc__)
    squad_options(parser)
    group = parser.add_argument_group("answers")
    training.add(group, "n-best", type=int, default=20, help="starts and ends that are combined (default: 20)")
    training.add(group, "max-answer-length", type=int, default=30, help="tokens of an answer at most (default: 30)")
    training.add(group, "null-threshold", type=float, default=0.0, help="v2.0: score above the best span's that "
        "makes \"no answer\" the answer (default: 0)")  # fmt: skip
    add_seeds(parser)
    summary = run_seeds(parser, SQUAD, once)
    for name in ("exact_match", "f1"):
        if "spread" in summary:
            mean, spread = summary["mean"][f"eval_{name}"], summary["spread"][f"eval_{name}"]
            print(f"{name} {mean:.2f} +- {spread:.2f} over seeds {summary['seeds']}")
        else:
            print(f"{name} {summary['metrics'][f'eval_{name}']:.2f} after {summary['steps']} steps")


if __name__ == "__main__":
    training.script(main)
