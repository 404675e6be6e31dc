"""The model a run starts from, its teacher, and what both cost. Use it through `training`."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, set_seed
from transformers.utils import logging

import transformers_bot
from transformers_bot import adapters, configs
from transformers_bot.architectures.sizes import rebuild
from transformers_bot.errors import BadOption, IncompatibleModels

logger = logging.get_logger("transformers." + __name__)

LEARNED = ("ligo", "mango")
SIZE_FIELDS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
SIZES = {"gpt2": ("n_layer", "n_embd", "n_head")}

Batch = dict[str, torch.Tensor]


def initial_model(
    options: argparse.Namespace,
    factory: Any,
    fields: dict[str, Any] | None = None,
    batches: Callable[[int], Iterable[Batch]] | None = None,
    new_head: bool = False,
) -> PreTrainedModel:
    """The model that --init, --source, --config and --set describe, ready to train.

    On --resume it is the checkpoint's, and no source is read.

    Args:
        options: from `training.parse`.
        factory: the class of the task, such as `BoTModelForMaskedLM`.
        fields: config fields that the data decides (`num_labels`); --set wins over them.
        batches: batch size -> endless training batches, which fit the operator of ligo and mango.
        new_head: start with a new head where the source's has other labels, instead of an error.

    Raises:
        BadOption: options that do not say which model is meant.
        BoTError: what `factory.from_pretrained` raises.
    """
    set_seed(options.seed)
    if options.checkpoint is not None:
        config = AutoConfig.from_pretrained(options.checkpoint)
        return _plain(factory.class_for(config).from_pretrained(options.checkpoint))
    config = wanted_config(options, fields or {})
    if options.init == "scratch":
        return _from_config(factory, config)
    more: dict[str, Any] = {"ignore_mismatched_sizes": True} if new_head else {}
    model = factory.from_pretrained(
        options.source, config=config, method=options.init, bot_config=options.bot_config or None, **more
    )
    if options.init in LEARNED:
        model = _fitted(options, model, batches)
    return _plain(model)


def wanted_config(options: argparse.Namespace, fields: dict[str, Any]) -> PreTrainedConfig:
    """The config of the model to train, a new object.

    A ready name beside a source sets the sizes only: vocabulary, positions and patches are the
    source's, because weights for others do not exist.
    """
    if options.source is None and (options.init != "scratch" or options.config is None):
        need = "--source CHECKPOINT" + (" or --config CONFIG" if options.init == "scratch" else "")
        raise BadOption(f"--init {options.init} needs {need} to know which model to train.")
    own = None if options.source is None else AutoConfig.from_pretrained(options.source)
    changes = {**fields, **options.set}
    if options.config is None:
        base = own
    elif options.config not in configs.names():
        base = AutoConfig.from_pretrained(options.config)
    else:
        base = configs.get(options.config)
        if own is not None:
            if own.model_type != base.model_type:
                raise IncompatibleModels(
                    f"--config {options.config} is a {base.model_type} model and --source {options.source} a "
                    f"{own.model_type}: name a size of the source's type, or set its fields with --set."
                )
            names = SIZES.get(own.model_type, SIZE_FIELDS)
            base, changes = own, {**{name: getattr(base, name) for name in names}, **changes}
    return rebuild(adapters.get(base.model_type), base, changes)


def _from_config(factory: Any, config: PreTrainedConfig) -> PreTrainedModel:
    return _plain(factory.class_for(config)(config))


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    return model.float().train()  # mixed precision keeps the weights in float32


def _fitted(options: argparse.Namespace, model: PreTrainedModel, batches: Any) -> PreTrainedModel:
    if batches is None:
        raise BadOption(f"--init {options.init} fits an operator on training batches, which this script does not give.")
    size = options.fit_batch_size or options.batch_size
    logger.info(f"fitting the operator of {options.init}: {options.fit_steps} steps of {size}")
    model = model.to(options.arguments.device)
    return transformers_bot.fit(model, batches(size), steps=options.fit_steps, lr=options.fit_lr, seed=options.seed)


def load_teacher(options: argparse.Namespace, factory: Any) -> PreTrainedModel | None:
    """The frozen model of --teacher with the head of the task, None without that option."""
    if options.teacher is None:
        return None
    if not 0 <= options.distill_alpha <= 1 or options.distill_temperature <= 0:
        raise BadOption(
            f"--distill-alpha must lie between 0 and 1 and --distill-temperature above 0, got {options.distill_alpha} "
            f"and {options.distill_temperature}."
        )
    teacher: PreTrainedModel = factory.auto_class.from_pretrained(options.teacher)
    return teacher.eval().requires_grad_(False)


def fit_flops(model: PreTrainedModel) -> int:
    """FLOPs that fitting a learned operator has cost, as its provenance says; 0 for other methods."""
    return int((getattr(model.config, "transformers_bot", None) or {}).get("fit", {}).get("flops", 0))
