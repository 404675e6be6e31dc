"""What tests do on the Hub, in a process of its own: its address is read when huggingface_hub is imported."""

import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from hub_repos import TOKEN
from transformers import AutoModelForCausalLM, PreTrainedModel

import transformers_bot
from transformers_bot import BoTModelForCausalLM, hub
from transformers_bot.report import Report, Tensor

SIZES = {"n_layer": 3, "n_embd": 24, "n_head": 6}

Call = Callable[..., Any]


@contextmanager
def client(url: str, home: Path, **environment: str) -> Iterator[Call]:
    """`call(function, *args)` runs a function of this module in a process that knows only the local hub."""
    ours = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    ours |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    ours |= {"NO_PROXY": "*", "no_proxy": "*", **environment}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_settle) as pool:
        with mock.patch.dict(os.environ, ours):
            pool.submit(_settle).result(timeout=120)  # starts the process while the environment is ours
        yield lambda function, *args, **keywords: pool.submit(function, *args, **keywords).result(timeout=120)


def _settle() -> None:
    torch.set_num_threads(1)
    hub.WAITS = (0.01, 0.01)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))  # huggingface_hub waits up to 8 s before it tries again


def a_report(model: PreTrainedModel) -> Report:
    """A small report that belongs to a model."""
    made = model.config.transformers_bot
    sizes = {role: (made["source_sizes"][role], length) for role, length in made["target_sizes"].items()}
    only = Tensor("wte.weight", "resample", "low-pass", ("wte.weight",), (23, 12), (23, 24), 552, 552)
    classes, dtypes = ("GPT2LMHeadModel", "GPT2LMHeadModel"), ("float32", "float32")
    counts = (276, 552), (1104, 2208)
    plain = {"method": "bot"}, {"source": made["source"]}
    return Report(classes, dtypes, sizes, *counts, 1.0, *plain, (), (), (only,), {}, ("A made-up warning.",))


def digest(model: PreTrainedModel) -> str:
    """Of all tensors, by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def resized(source: str, sizes: dict[str, int] | None = None, **keywords: Any) -> PreTrainedModel:
    model = BoTModelForCausalLM.from_pretrained(source, **(sizes or SIZES), **keywords)
    hub.attach(model, a_report(model))
    return model


def resize(source: str, **keywords: Any) -> dict[str, Any]:
    """Load at another size; what came out."""
    model = BoTModelForCausalLM.from_pretrained(source, **SIZES, **keywords)
    return {"digest": digest(model), "provenance": model.config.transformers_bot, "class": type(model).__name__}


def push(source: str, repo: str, sizes: dict[str, int] | None = None, **keywords: Any) -> dict[str, Any]:
    """Resize and push by the model's own method."""
    model = resized(source, sizes)
    info = model.push_to_hub(repo, **keywords)
    return {"digest": digest(model), "oid": info.oid, "url": info.commit_url, "pull": info.pr_url}


def push_again(repo: str, to: str, changed: bool = False) -> str:
    """Load a pushed model as anybody does, train it if asked, and push it; the commit."""
    model = AutoModelForCausalLM.from_pretrained(repo)
    if changed:
        with torch.no_grad():
            model.transformer.wte.weight.add_(1.0)
    return hub.push_to_hub(model, to).oid


def push_plain(source: str, repo: str) -> str:
    """Push a model that was never resized by our function."""
    return hub.push_to_hub(AutoModelForCausalLM.from_pretrained(source), repo).oid


def load(repo: str, **keywords: Any) -> dict[str, Any]:
    """Load with plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(repo, **keywords)
    return {"digest": digest(model), "provenance": model.config.transformers_bot}


def plan(source: str, **keywords: Any) -> int:
    return len(transformers_bot.plan(source, **SIZES, **keywords).steps)


def licence(name: str, keywords: dict[str, Any]) -> str | None:
    return hub.source_licence(name, keywords)


def raised(function: Call, *args: Any, **keywords: Any) -> tuple[list[str], list[str], str]:
    """The kinds of the error that a call raises, those of its cause, and its message."""
    try:
        function(*args, **keywords)
    except Exception as error:
        kinds = [[kind.__name__ for kind in type(e).__mro__] for e in (error, error.__cause__)]
        return kinds[0], kinds[1], str(error)
    raise AssertionError("nothing was raised")


def save_and_push(source: str, repo: str) -> set[str]:
    """`save_pretrained(push_to_hub=True)`, which is transformers' own way."""
    with tempfile.TemporaryDirectory() as folder:
        resized(source).save_pretrained(folder, push_to_hub=True, repo_id=repo)
        return {path.name for path in Path(folder).iterdir()}


def train_and_push(source: str, repo: str) -> str:
    """`Trainer.push_to_hub`, then the model's own method; the commit of the latter."""
    model = resized(source).float()
    rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}] * 2
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, max_steps=1, report_to=[], hub_model_id=repo, use_cpu=True, disable_tqdm=True, push_to_hub=True
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        trainer.push_to_hub()
        return trainer.model.push_to_hub(repo).oid
