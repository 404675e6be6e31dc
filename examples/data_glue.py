"""GLUE's tasks: their texts from tab-separated files or from the hub, tokenised."""

import argparse
import csv
import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data_rows import Rows, padded
from data_text import hub_dataset
from options import add
from transformers.utils import logging

from transformers_bot.errors import BadOption

logger = logging.get_logger("transformers." + __name__)

HUB = "nyu-mll/glue"
Example = tuple[tuple[str, ...], float]  # one or two texts, and the label's number or the score


@dataclass(frozen=True)
class Files:
    """The task as tab-separated files.

    Attributes:
        folder: its name under --data-dir.
        texts, label: columns.
        train, dev, test: files of a split, without .tsv; the first set that is there is read.
        header: column names where the files have no first line with them.
    """

    folder: str
    texts: tuple[str, ...]
    label: str = "label"
    train: tuple[tuple[str, ...], ...] = (("train",),)
    dev: tuple[tuple[str, ...], ...] = (("dev",),)
    test: tuple[tuple[str, ...], ...] = (("test",),)
    header: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Task:
    """One task of GLUE.

    Attributes:
        texts: fields on the hub.
        labels: names in the order of the hub's numbers; none for a score.
        metrics: names in `metrics_glue.METRICS`; GLUE's main one first, the paper's where they differ.
        files: None where only the hub has the task.
        dev: the hub's split to evaluate on.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    files: Files | None = None
    dev: str = "validation"


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
COLA = Files(
    "CoLA",
    ("sentence",),
    train=(("train",), ("in_domain_train",)),
    dev=(("dev",), ("in_domain_dev", "out_of_domain_dev")),  # GLUE's dev set is both
    header=("source", "label", "mark", "sentence"),
)
MRPC = Files("MRPC", ("#1 String", "#2 String"), label="Quality", test=(("test_labeled",),))
TASKS = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy"), COLA),
    "mrpc": Task(PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), MRPC),
    "rte": Task(PAIR, ENTAILMENT, files=Files("RTE", PAIR)),
    "sst2": Task(("sentence",), ("negative", "positive"), files=Files("SST-2", ("sentence",))),
    "stsb": Task(PAIR, (), ("pearson", "spearman"), Files("STS-B", PAIR, label="score")),
    "qnli": Task(("question", "sentence"), ENTAILMENT),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), dev="validation_matched"),
    "wnli": Task(PAIR, ("not_entailment", "entailment")),
}


def glue_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which task is read and from where."""
    group = parser.add_argument_group("task")
    add(group, "task", required=True, choices=sorted(TASKS), help="task of GLUE")
    add(group, "data-dir", type=Path, metavar="FOLDER", help="read FOLDER/CoLA/train.tsv and so on, also .tsv.xz "
        "(cola, mrpc, rte, sst2, stsb)")  # fmt: skip
    add(group, "dataset", default=HUB, metavar="NAME", help=f"without --data-dir: a data set of the hub, or a folder "
        f"of one, with GLUE's configs and fields; needs pip install datasets (default: {HUB})")  # fmt: skip
    add(group, "eval-split", choices=("dev", "test"), help="file to evaluate on; a test file must have labels "
        "(default: dev, test if there is no dev)")  # fmt: skip
    add(group, "tokenizer", metavar="CHECKPOINT", help="hub id or folder of the tokenizer (default: the source's)")
    add(group, "seq-length", type=int, default=128, help="tokens of an example at most; shorter ones are padded to "
        "the longest (default: 128)")  # fmt: skip
    add(group, "max-eval-examples", type=int, help="evaluate on this many examples at most (default: all)")


def glue_examples(options: argparse.Namespace) -> tuple[list[Example], list[Example]]:
    """The task's examples to train on and to evaluate on.

    Raises:
        BadOption: files, columns or labels that are not there, or a task that has no files.
    """
    task = TASKS[options.task]
    if options.data_dir is None:
        return _of_hub(options, task)
    if task.files is None:
        local = ", ".join(name for name, each in TASKS.items() if each.files)
        raise BadOption(f"--data-dir has {local}; read {options.task} from the hub with --dataset {HUB}.")
    folder = options.data_dir / task.files.folder
    train = _found(folder, task.files.train)
    if options.eval_split is None and not _there(folder, task.files.dev):
        logger.warning(f"{folder} has no dev file: evaluating on its test file.")
        evaluation = _found(folder, task.files.test)
    else:
        evaluation = _found(folder, task.files.test if options.eval_split == "test" else task.files.dev)
    examples = [
        [example for path in paths for example in _of_file(path, task, task.files)] for paths in (train, evaluation)
    ]
    return examples[0], examples[1][: options.max_eval_examples]


def glue_rows(examples: list[Example], task: Task, tokenizer: Any, seq_length: int) -> Rows:
    """Examples as rows; labels (rows) are int64, or float32 for a score."""
    texts = [[pieces[i] for pieces, _ in examples] for i in range(len(task.texts))]
    encoded = tokenizer(*texts, truncation="longest_first", max_length=seq_length)
    kind = torch.int64 if task.labels else torch.float32
    labels = torch.tensor([label for _, label in examples], dtype=torch.float64).to(kind)
    return Rows({**padded(encoded, tokenizer), "labels": labels})


def _there(folder: Path, choices: Iterable[tuple[str, ...]]) -> list[Path] | None:
    for names in choices:
        forms = [[folder / f"{name}.tsv{end}" for end in ("", ".xz")] for name in names]
        files = [next((path for path in paths if path.is_file()), None) for paths in forms]
        if None not in files:
            return [path for path in files if path is not None]
    return None


def _found(folder: Path, choices: tuple[tuple[str, ...], ...]) -> list[Path]:
    files = _there(folder, choices)
    if files is None:
        expected = " or ".join(" + ".join(f"{name}.tsv" for name in names) for names in choices)
        present = ", ".join(sorted(path.name for path in folder.glob("*.tsv*"))) or "no .tsv file"
        raise BadOption(
            f"{folder} needs {expected} (or .tsv.xz) and holds {present}: check --data-dir and --eval-split."
        )
    return files


def _of_file(path: Path, task: Task, files: Files) -> list[Example]:
    """A file's examples; quotation marks are text, and a byte order mark is skipped."""
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = list(files.header or next(reader, []))
        missing = [name for name in (*files.texts, files.label) if name not in header]
        if missing:
            raise BadOption(f"{path} has no column {missing[0]!r}; it has {', '.join(header) or 'none'}.")
        places, label = [header.index(name) for name in files.texts], header.index(files.label)
        examples = []
        for row in reader:
            if len(row) != len(header):
                raise BadOption(f"{path}, line {reader.line_num}: {len(row)} columns instead of {len(header)}.")
            target = _target(row[label], task, f"{path}, line {reader.line_num}")
            examples.append((tuple(row[place] for place in places), target))
    if not examples:
        raise BadOption(f"{path} has no examples.")
    return examples


def _target(text: str, task: Task, where: str) -> float:
    """A label by its name or number, or a score."""
    if text in task.labels:
        return task.labels.index(text)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0 or (task.labels and value not in range(len(task.labels))):
        expected = f"one of {', '.join(task.labels)} or its number" if task.labels else "a number of at least 0"
        raise BadOption(f"{where}: label {text!r} is not {expected}.")
    return value


def _of_hub(options: argparse.Namespace, task: Task) -> tuple[list[Example], list[Example]]:
    if options.eval_split == "test":
        raise BadOption("--eval-split test needs --data-dir: GLUE's test labels are not on the hub.")
    splits = hub_dataset(f"{options.dataset}:{options.task}")
    for name in ("train", task.dev):
        fields = splits[name].column_names if name in splits else []
        missing = [field for field in (*task.texts, "label") if field not in fields]
        if missing:
            raise BadOption(f"{options.dataset} has no field {missing[0]!r} in {options.task}, split {name}.")
    train, evaluation = ([_example(row, task) for row in splits[name]] for name in ("train", task.dev))
    return train, evaluation[: options.max_eval_examples]


def _example(row: dict[str, Any], task: Task) -> Example:
    return tuple(row[name] for name in task.texts), float(row["label"])
