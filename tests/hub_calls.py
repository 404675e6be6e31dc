"""What tests do on the Hub, in a process of its own: its address is read when huggingface_hub is imported."""

import contextlib
import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from hub_repos import TOKEN
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, PreTrainedModel

import transformers_bot
from transformers_bot import BoTModelForCausalLM, cli
from transformers_bot.hub import push as pushing

SIZES = {"n_layer": 3, "n_embd": 24, "n_head": 6}

Call = Callable[..., Any]


@contextlib.contextmanager
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
    pushing.WAITS = (0.01, 0.01)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))  # huggingface_hub waits up to 8 s before it tries again


def digest(model: PreTrainedModel) -> str:
    """Of all tensors, by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def resized(source: str, sizes: dict[str, int] | None = None, **keywords: Any) -> PreTrainedModel:
    return BoTModelForCausalLM.from_pretrained(source, **(sizes or SIZES), **keywords)


def resize(source: str, **keywords: Any) -> dict[str, Any]:
    """Load at another size; what came out."""
    model = resized(source, **keywords)
    return {"digest": digest(model), "provenance": model.config.transformers_bot, "class": type(model).__name__}


def push(source: str, repo: str, sizes: dict[str, int] | None = None, **keywords: Any) -> dict[str, Any]:
    """Resize and push by the model's own method."""
    model = resized(source, sizes)
    info = model.push_to_hub(repo, **keywords)
    summary = model.transfer_report.summary()
    return {"digest": digest(model), "oid": info.oid, "url": info.commit_url, "pull": info.pr_url, "summary": summary}


def push_local(source: str, repo: str, way: str) -> None:
    """Push what was made from a folder whose path was recorded, straight from memory or loaded again."""
    if way == "memory":
        model = resized(source, record_path=True)
        model.push_to_hub(repo)
        return
    with tempfile.TemporaryDirectory() as folder:
        transformers_bot.resize_checkpoint(source, f"{folder}/out", record_path=True, **SIZES)
        model = AutoModelForCausalLM.from_pretrained(f"{folder}/out")
        if way != "reloaded":  # the path stood where the name is now
            model.config.transformers_bot |= {"source": model.config.transformers_bot.pop("path")}
        pushing.push_to_hub(model, repo)


def push_again(repo: str, to: str, changed: bool = False) -> str:
    """Load a pushed model as anybody does, train it if asked, and push it; the commit."""
    model = AutoModelForCausalLM.from_pretrained(repo)
    if changed:
        with torch.no_grad():
            model.transformer.wte.weight.add_(1.0)
    return pushing.push_to_hub(model, to).oid


def push_plain(source: str, repo: str) -> str:
    """Push a model that was never resized by our function."""
    return pushing.push_to_hub(AutoModelForCausalLM.from_pretrained(source), repo).oid


def load(repo: str, **keywords: Any) -> dict[str, Any]:
    """Load with plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(repo, **keywords)
    return {"digest": digest(model), "provenance": model.config.transformers_bot}


def remake(recipe: str, folder: str) -> dict[str, Any]:
    """What the command line makes of a card's recipe."""
    with contextlib.chdir(folder):
        Path("recipe.yaml").write_text(recipe, encoding="utf-8")
        code = cli.main(["resize", "--recipe", "recipe.yaml"])
        out = next(path for path in Path().iterdir() if path.is_dir())
        card = (out / "README.md").read_text(encoding="utf-8")
        return {"code": code, "digest": digest(AutoModelForCausalLM.from_pretrained(out)), "card": card}


def verify(repo: str, **keywords: Any) -> bool:
    """Download what was pushed and compute it again."""
    return transformers_bot.verify(snapshot_download(repo), **keywords).equal


def plan(source: str, **keywords: Any) -> int:
    return len(transformers_bot.plan(source, **SIZES, **keywords).steps)


def licence(name: str, keywords: dict[str, Any]) -> str | None:
    return pushing.source_card(name, keywords).get("license")


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
