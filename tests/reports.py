"""Resizing a tiny model under a `Watch`, for the tests of what it measures."""

from dataclasses import dataclass

import torch
from families import adapter_of, class_of
from networks import network_for
from transformers import PreTrainedConfig, PreTrainedModel

from transformers_bot import BoTConfig, methods
from transformers_bot.architectures.inventory import inventory_of, predict
from transformers_bot.architectures.sizes import role_sizes
from transformers_bot.planning.planner import Plan, Side, make_plan, task_of
from transformers_bot.report.measure import Watch, make_report
from transformers_bot.report.report import Report
from transformers_bot.rewrite.network import Network
from transformers_bot.rewrite.principal import Opened
from transformers_bot.run.execute import run_plan


@dataclass(frozen=True)
class Watched:
    """A resize that has run: its plan, what it read, what it made and what was measured."""

    plan: Plan
    source: Network
    results: dict[str, torch.Tensor]
    watch: Watch

    @property
    def report(self) -> Report:
        return make_report(self.plan, self.watch, {"source": "tiny"})


def planned(
    model: PreTrainedModel, wanted: PreTrainedConfig, method: str = "bot", dtype=None, renew=False, **options
) -> tuple[Plan, Network]:
    """The plan of a resize to `wanted` as the model's own class, and the tensors to run it on."""
    head, family = type(model).__name__, model.config.model_type
    adapter, stored = adapter_of(family), next(model.parameters()).dtype
    source = Side(model.config, role_sizes(adapter, model.config, "source"), inventory_of(model), stored)
    target = Side(wanted, role_sizes(adapter, wanted, "target"), predict(class_of(head), wanted), dtype or stored)
    task = task_of(adapter, source, target)
    chosen = methods.get(method, BoTConfig(**options))
    chosen.check(task)
    chosen, tensors = chosen.prepare(task, Opened(network_for(model, keep_ties=task.tied), model, None))
    return make_plan(adapter, source, target, chosen, renew), tensors


def watched(
    model: PreTrainedModel, wanted: PreTrainedConfig, method: str = "bot", dtype=None, renew=False, **options
) -> Watched:
    """Resize a model to `wanted`; `options` are those of `BoTConfig`."""
    plan, tensors = planned(model, wanted, method, dtype, renew, **options)
    watch = Watch(plan, adapter_of(model.config.model_type))
    results = dict(run_plan(plan, tensors, plan.dtypes[1], watch=watch))
    return Watched(plan, tensors, results, watch)
