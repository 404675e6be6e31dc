"""SQuAD: questions from its JSON files or from the hub, cut into windows over long contexts."""

import argparse
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data_rows import Rows, padded
from data_text import hub_dataset
from options import add

from transformers_bot.errors import BadOption


@dataclass(frozen=True)
class Question:
    """One question on a paragraph.

    Attributes:
        answers: (text, first character in the context); none if the context does not answer it.
    """

    id: str
    title: str
    text: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Windows:
    """Questions with parts of their contexts, as rows and as what is needed to read answers out of them.

    Attributes:
        rows: model inputs (windows, longest window) with `start_positions` and `end_positions` (windows):
            tokens of the answer, or twice `nulls` where the window does not hold it whole.
        questions: what was cut.
        owner: question of each window, by its place in `questions`.
        spans: (windows, longest window, 2) first character of each token in the context and the one
            after its last; -1 for tokens that are not context.
        nulls: (windows) the token that stands for "no answer here".
    """

    rows: Rows
    questions: list[Question]
    owner: list[int]
    spans: torch.Tensor
    nulls: torch.Tensor


def squad_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which questions are read and how they are cut."""
    group = parser.add_argument_group("questions")
    add(group, "train-file", type=Path, metavar="FILE", help="SQuAD's JSON, v1.1 or v2.0, also .json.xz")
    add(group, "eval-file", type=Path, metavar="FILE", help="the same to evaluate on")
    add(group, "split-by-title", metavar="N/M", help="without --eval-file: train on the first N articles of the "
        "training file and evaluate on its last M, as in 36/12")  # fmt: skip
    add(group, "dataset", metavar="NAME", help="read a data set of the hub instead, rajpurkar/squad or "
        "rajpurkar/squad_v2, or a folder of one; needs pip install datasets")  # fmt: skip
    add(group, "tokenizer", metavar="CHECKPOINT", help="hub id or folder of the tokenizer (default: the source's)")
    add(group, "seq-length", type=int, default=384, help="tokens of a window at most, question included; shorter "
        "ones are padded to the longest (default: 384)")  # fmt: skip
    add(group, "stride", type=int, default=128, help="tokens that neighbouring windows share (default: 128)")
    add(group, "max-question-length", type=int, default=64, help="tokens of a question that are kept (default: 64)")
    add(group, "max-eval-examples", type=int, help="evaluate on this many questions at most (default: all)")


def squad_questions(options: argparse.Namespace) -> tuple[list[Question], list[Question]]:
    """Questions to train on and to evaluate on.

    Raises:
        BadOption: no questions are named, a file is not SQuAD's JSON, or the titles do not suffice.
    """
    if (options.dataset is None) == (options.train_file is None):
        raise BadOption("give either --train-file FILE or --dataset NAME to say which questions to train on.")
    if options.dataset is not None:
        if options.eval_file is not None or options.split_by_title is not None:
            raise BadOption("--dataset brings its own questions to evaluate on: leave the options of files out.")
        train, evaluation = _of_hub(options.dataset)
    elif (options.eval_file is None) == (options.split_by_title is None):
        raise BadOption("give either --eval-file FILE or --split-by-title N/M to say which questions to evaluate on.")
    elif options.eval_file is not None:
        train, evaluation = _of_file(options.train_file), _of_file(options.eval_file)
    else:
        train, evaluation = _split(_of_file(options.train_file), options.split_by_title)
    return train, evaluation[: options.max_eval_examples]


def _of_file(path: Path) -> list[Question]:
    opened = lzma.open if path.suffix == ".xz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            articles = json.load(file)["data"]
        return [
            Question(
                entry["id"],
                article["title"],
                entry["question"].strip(),
                paragraph["context"],
                tuple((answer["text"], answer["answer_start"]) for answer in entry["answers"]),
            )
            for article in articles
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
    except FileNotFoundError as error:
        raise BadOption(f"there is no file {path}.") from error
    except (json.JSONDecodeError, KeyError, TypeError, lzma.LZMAError) as error:
        raise BadOption(
            f"{path} is not in SQuAD's form, data / paragraphs / qas with id, question and answers "
            f"({type(error).__name__}: {error})."
        ) from error


def _split(questions: list[Question], wanted: str) -> tuple[list[Question], list[Question]]:
    titles = list(dict.fromkeys(question.title for question in questions))
    first, _, last = wanted.partition("/")
    if not (first.isdigit() and last.isdigit() and int(first) and int(last)):
        raise BadOption(f"--split-by-title {wanted!r} is not two numbers of articles such as 36/12.")
    if int(first) + int(last) > len(titles):
        raise BadOption(f"--split-by-title {wanted} needs {int(first) + int(last)} articles, there are {len(titles)}.")
    ours, theirs = set(titles[: int(first)]), set(titles[-int(last) :])
    return [q for q in questions if q.title in ours], [q for q in questions if q.title in theirs]


def _of_hub(name: str) -> tuple[list[Question], list[Question]]:
    splits = hub_dataset(name)
    read = []
    for split in ("train", "validation"):
        fields = splits[split].column_names if split in splits else []
        missing = [field for field in ("id", "title", "question", "context", "answers") if field not in fields]
        if missing:
            raise BadOption(f"{name} has no field {missing[0]!r} in split {split}: is it SQuAD?")
        read.append([_question(row) for row in splits[split]])
    return read[0], read[1]


def _question(row: dict[str, Any]) -> Question:
    answers = tuple(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))
    return Question(row["id"], row["title"], row["question"].strip(), row["context"], answers)


def windows(questions: list[Question], tokenizer: Any, options: argparse.Namespace) -> Windows:
    """Cut the questions' contexts into overlapping windows that fit the model.

    Raises:
        BadOption: --seq-length leaves too little room for the context, or there are no questions.
    """
    if not questions:
        raise BadOption("there are no questions to train or to evaluate on.")
    texts = [_shortened(question.text, tokenizer, options.max_question_length) for question in questions]
    beside = options.max_question_length + tokenizer.num_special_tokens_to_add(pair=True)
    if options.seq_length - beside <= options.stride:
        raise BadOption(
            f"--seq-length {options.seq_length} leaves {options.seq_length - beside} tokens for the context beside a "
            f"question of {options.max_question_length}, and neighbouring windows share {options.stride}: make it "
            "longer, or --stride or --max-question-length shorter."
        )
    encoded = tokenizer(
        texts,
        [question.context for question in questions],
        truncation="only_second",
        max_length=options.seq_length,
        stride=options.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    columns = padded(encoded, tokenizer)
    owner = encoded["overflow_to_sample_mapping"]
    spans = torch.full((*columns["input_ids"].shape, 2), -1, dtype=torch.int32)
    for i in range(len(owner)):
        inside = torch.tensor([part == 1 for part in encoded.sequence_ids(i)])
        spans[i, : len(inside)][inside] = torch.tensor(encoded["offset_mapping"][i], dtype=torch.int32)[inside]
    nulls = _nulls(columns, tokenizer)
    found = [_answer(questions[owner[i]], spans[i], int(nulls[i])) for i in range(len(owner))]
    columns["start_positions"] = torch.tensor([start for start, _ in found])
    columns["end_positions"] = torch.tensor([end for _, end in found])
    return Windows(Rows(columns), questions, owner, spans, nulls)


def _shortened(text: str, tokenizer: Any, length: int) -> str:
    offsets = tokenizer(
        text, add_special_tokens=False, truncation=True, max_length=length, return_offsets_mapping=True
    ).offset_mapping
    return text[: offsets[-1][1]] if offsets else text


def _nulls(columns: dict[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
    """The first token where the tokenizer puts [CLS] there, else the last, which alone has read all in GPT-2."""
    if tokenizer.cls_token_id is not None and bool((columns["input_ids"][:, 0] == tokenizer.cls_token_id).all()):
        return torch.zeros(len(columns["input_ids"]), dtype=torch.int64)
    return columns["attention_mask"].long().sum(1) - 1


def _answer(question: Question, spans: torch.Tensor, null: int) -> tuple[int, int]:
    """First and last token of the first answer if the window holds it whole, else the null token twice."""
    if not question.answers:
        return null, null
    text, first = question.answers[0]
    after = first + len(text)
    context = spans[:, 1] > spans[:, 0]
    covering = torch.nonzero(context & (spans[:, 1] > first) & (spans[:, 0] < after)).flatten()
    whole = len(covering) and spans[covering[0], 0] <= first and spans[covering[-1], 1] >= after
    return (int(covering[0]), int(covering[-1])) if whole else (null, null)
