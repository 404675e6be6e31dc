"""Any suite at tiny sizes: the same sources, methods and ratios, cut until all of it runs in a minute or so."""

from dataclasses import replace
from typing import Any

from suite import BadSuite, Method, Setting, Suite

# Lengths are divided, so that ratios (what a method accepts or refuses) stay.
DIVIDED = {"hidden_size": 16, "n_embd": 16, "intermediate_size": 16, "n_inner": 16}
DIVIDED |= dict.fromkeys(("num_attention_heads", "n_head", "num_hidden_layers", "n_layer"), 3)
SAMPLES = {"documents": 60, "train": 64, "validation": 4, "probe": 16, "length": 32}  # of a task, at most
BUDGET = {"steps": 1, "batch": 2, "warmup": 0, "evaluations": 1}


def at_tiny_sizes(suite: Suite) -> Suite:
    """The suite with sources of a few thousand parameters, one step of two samples, one rate and one seed."""
    return Suite(f"{suite.name}-tiny", tuple(map(_setting, suite.settings)))


def _setting(setting: Setting) -> Setting:
    if "train" not in setting.source_spec:
        raise BadSuite(f"setting {setting.name}: {setting.source} is a finished checkpoint, its sizes are fixed")
    return replace(
        setting,
        source_spec={"train": _source(setting.source_spec["train"])},
        target=_sizes(setting.target),
        task=_samples(setting.task),
        budget=replace(setting.budget, **BUDGET),
        rates=setting.rates[:1],
        seeds=setting.seeds[:1],
        methods=tuple(map(_method, setting.methods)),
        step0=tuple(map(_method, setting.step0)),
    )


def _source(wanted: dict[str, Any]) -> dict[str, Any]:
    budget = {**wanted["budget"], **BUDGET}
    return {**wanted, "config": _sizes(wanted["config"]), "task": _samples(wanted["task"]), "budget": budget}


def _sizes(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value // DIVIDED[name] if name in DIVIDED else value for name, value in fields.items()}


def _samples(task: dict[str, Any]) -> dict[str, Any]:
    return {name: min(value, SAMPLES[name]) if name in SAMPLES else value for name, value in task.items()}


def _method(method: Method) -> Method:
    fit = {**method.fit, "steps": 2} if method.fit else None
    return replace(method, fit=fit, calibration=min(method.calibration, 1))
