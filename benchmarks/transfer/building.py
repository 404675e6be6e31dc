"""The target model of a run, made with the public API of transformers_bot, and sources that are trained here."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks
import torch
import train
from suite import Method, Run, budget_from, source_key
from task import Task, need, on
from transformers import AutoConfig

import transformers_bot
from transformers_bot import BadOption, BoTConfig, methods
from transformers_bot.learned.flops import counted
from transformers_bot.planning.planner import Plan
from transformers_bot.tools.demo import fetch_model

# no run has dropout, which would add noise to the comparison of methods
DROPOUT = {
    "gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "vit": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "deit": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
}


@dataclass(frozen=True)
class Places:
    """The folders and the device of a run."""

    data: Path
    cache: Path
    device: str = "cpu"


def source_folder(spec: dict[str, Any], places: Places) -> Path:
    """The folder of a source; a trained one must have been made by `train_source`."""
    if "data" in spec:
        return need(places.data / spec["data"])
    if "demo" in spec:
        return fetch_model()
    folder = _cached(spec, places)
    if not folder.exists():
        raise FileNotFoundError(f"the source {folder} was not trained yet; run.py does so before anything else.")
    return folder


def train_source(spec: dict[str, Any], places: Places, say: Callable[[str], None] = print) -> bool:
    """Train and store a source that the suite describes, if it is missing; return whether it was trained."""
    if "train" not in spec or _cached(spec, places).exists():
        return False
    wanted = dict(spec["train"])
    task = tasks.load(wanted["task"], places.data, places.cache)
    torch.manual_seed(wanted.get("seed", 0))
    fields = dict(wanted["config"])
    model_type = fields.pop("model_type")
    config = AutoConfig.for_model(model_type, **{**fields, **_no_dropout(model_type), **task.fields})
    factory = getattr(transformers_bot, task.factory)
    model = factory.class_for(config)(config).to(places.device)
    budget = budget_from(wanted["budget"], "a source")
    outcome = train.loop(model, task, budget, float(wanted["rate"]), wanted.get("seed", 0))
    say(f"trained the source {_cached(spec, places).name}: {outcome['curve'][-1]}")
    _keep(model, _cached(spec, places))
    return True


def plan(run: Run, places: Places) -> Plan:
    """The plan of the method, from configs alone.

    Raises:
        BoTError: the method does not cover this direction, ratio or family.
    """
    folder = source_folder(run.setting.source_spec, places)
    calibration = {"calibration": []} if run.method.calibration else {}  # that there is some; a plan looks at no batch
    return transformers_bot.plan(
        folder, **run.setting.target, **calibration, method=run.method.method, bot_config=run.method.bot_config
    )


def target(run: Run, task: Task, places: Places) -> tuple[Any, float]:
    """The model of a run before training, on the device, and the FLOPs that calibrating or fitting it took.

    Raises:
        BadOption: the method or option does not exist, or does not cover this direction.
    """
    folder = source_folder(run.setting.source_spec, places)
    config = AutoConfig.from_pretrained(folder)
    fields = {**_no_dropout(config.model_type), **task.fields, **run.setting.target}
    factory = getattr(transformers_bot, task.factory)
    options = seeded_options(run.method, run.seed)
    keywords: dict[str, Any] = {"method": run.method.method, "bot_config": options, "dtype": torch.float32}
    if run.method.calibration:
        keywords["calibration"] = _calibration(run, task)
    torch.manual_seed(run.seed)  # fresh heads, and all of a model from scratch
    with counted() if run.method.calibration else nullcontext() as counter:
        model = factory.from_pretrained(folder, **fields, **keywords).to(places.device)
    spent = float(counter.get_total_flops()) if counter else 0.0  # running the source and all products of what it shows
    if run.method.fit is None:
        return model, spent
    steps, rate = int(run.method.fit["steps"]), float(run.method.fit["rate"])
    batches = (on(batch, torch.device(places.device)) for batch in task.batches(run.seed, run.budget.batch))
    fitted = transformers_bot.fit(model, batches, steps=steps, lr=rate, seed=run.seed)
    return fitted.to(places.device), spent + float(fitted.config.transformers_bot["fit"]["flops"])


def _calibration(run: Run, task: Task) -> list[dict[str, Any]]:
    """The first training batches without labels, which the source's own head may not fit."""
    drawn = itertools.islice(task.batches(run.seed, run.budget.batch), run.method.calibration)
    batches = [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in drawn]
    if "pixel_values" in batches[0]:  # of the target's size: the source stretches its positions to it
        batches = [{**batch, "interpolate_pos_encoding": True} for batch in batches]
    return batches


def teacher(run: Run, task: Task, places: Places) -> Any:
    """The source itself with its own head, frozen; None for methods without a teacher."""
    if run.method.teacher is None:
        return None
    folder = source_folder(run.setting.source_spec, places)
    model = getattr(transformers_bot, task.factory).from_pretrained(folder, dtype=torch.float32).to(places.device)
    return task.wrap(model).eval().requires_grad_(False)


def seeded_options(method: Method, seed: int) -> dict[str, Any]:
    """The method's options, with the seed if it uses one.

    Raises:
        BadOption, BadKeyword: a method or option that does not exist.
    """
    methods.get(method.method, BoTConfig.from_any(method.bot_config))
    try:
        methods.get(method.method, BoTConfig(seed=seed))
    except BadOption:  # it has no such option, because it draws nothing at random
        return dict(method.bot_config)
    return {**method.bot_config, "seed": seed}


def _no_dropout(model_type: str) -> dict[str, float]:
    return dict.fromkeys(DROPOUT[model_type], 0.0)


def _cached(spec: dict[str, Any], places: Places) -> Path:
    return places.cache / f"source-{spec['train']['config']['model_type']}-{source_key(spec)}"


def _keep(model: Any, folder: Path) -> None:
    """Write the folder in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = tempfile.mkdtemp(prefix=".source-", dir=folder.parent)
    try:
        model.save_pretrained(staged)
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
