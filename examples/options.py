"""Command-line options that the training scripts share. Use them through `training`."""

import argparse
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from checkpoints import newest_whole_checkpoint
from recipes import Recipes
from transformers import HfArgumentParser, TrainingArguments

from transformers_bot.errors import BadOption
from transformers_bot.methods import METHODS

EPILOG = """Every other option of transformers.TrainingArguments works too, for example
--gradient_checkpointing, --adam_beta2 0.95, --lr_scheduler_type cosine, --dataloader_num_workers 4."""

TRAINING = (  # ours by the same name in TrainingArguments
    "output_dir",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "lr_scheduler_type",
    "max_steps",
    "num_train_epochs",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "seed",
    "bf16",
    "fp16",
)


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the shared options; a script adds its own. Read it with `parse`."""
    argument_parser = argparse.ArgumentParser(
        description=description,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _model_options(argument_parser.add_argument_group("model"))
    _teacher_options(argument_parser.add_argument_group("distillation"))
    _training_options(argument_parser.add_argument_group("training"))
    return argument_parser


def add(group: Any, name: str, **settings: Any) -> None:
    """Add `--a-b`, which may also be written `--a_b`."""
    forms = [f"--{name}"] + ([f"--{name.replace('-', '_')}"] if "-" in name else [])
    group.add_argument(*forms, **settings)


def _model_options(group: Any) -> None:
    methods = sorted({"scratch", *METHODS})
    add(group, "init", default="bot", metavar="METHOD", help=f"where the weights start: {', '.join(methods)} "
        "(also joined, as in tile+stack); scratch is random weights (default: bot)")  # fmt: skip
    add(group, "source", metavar="CHECKPOINT", help="trained model to start from: a hub id or a folder")
    add(group, "config", metavar="CONFIG", help="size of the model to train: a ready name such as bert-small, a "
        "folder or a config.json (default: the source's own size)")  # fmt: skip
    add(group, "set", action="append", metavar="FIELD=VALUE", help="change one field of that config; repeatable")
    add(group, "bot-config", action="append", metavar="KEY=VALUE",
        help="one option of BoTConfig, such as wavelet=db2; repeatable")  # fmt: skip
    add(group, "fit-steps", type=int, default=100, help="ligo, mango: steps that fit the operator (default: 100)")
    add(group, "fit-lr", type=float, help="ligo, mango: learning rate of the operator (default: the paper's)")
    add(group, "fit-batch-size", type=int, help="ligo, mango: batch size of the operator (default: --batch-size)")


def _teacher_options(group: Any) -> None:
    add(group, "teacher", metavar="CHECKPOINT", help="trained model whose outputs are learned as well (KD)")
    add(group, "distill-alpha", type=float, default=0.5, metavar="A",
        help="loss = (1 - A) * cross entropy + A * T^2 * KL(teacher/T || student/T) (default: 0.5)")  # fmt: skip
    add(group, "distill-temperature", type=float, default=2.0, metavar="T", help="T in that formula (default: 2)")


def _training_options(group: Any) -> None:
    add(group, "preset", metavar="NAME", help="a recipe of the paper; options override it")
    add(group, "output-dir", required=True, help="folder for checkpoints, log.csv, summary.json and the final model")
    add(
        group,
        "resume",
        action="store_true",
        help="continue from the newest complete checkpoint in --output-dir, if any",
    )
    add(group, "batch-size", type=int, default=32, help="examples in one step, over all processes (default: 32)")
    add(group, "per-device-batch-size", type=int, help="examples at once on one device; the rest of the batch is "
        "gradient accumulation (default: batch size / processes)")  # fmt: skip
    add(group, "learning-rate", type=float, default=5e-5, help="peak learning rate of AdamW (default: 5e-5)")
    add(group, "weight-decay", type=float, default=0.0, help="weight decay of AdamW (default: 0)")
    add(group, "warmup-steps", type=float, default=0, help="steps until the peak learning rate; below 1, the share")
    add(group, "lr-scheduler-type", default="linear", help="linear, cosine, constant, ... (default: linear)")
    add(group, "max-steps", type=int, default=-1, help="number of optimizer steps; overrides epochs")
    add(group, "num-train-epochs", type=float, default=3.0, help="passes over the training data (default: 3)")
    add(group, "eval-steps", type=float, default=500, help="evaluate every so many steps (default: 500)")
    add(
        group,
        "save-steps",
        type=float,
        default=500,
        help="write a checkpoint every so many steps; best a multiple of "
        "--logging-steps, as a resumed run averages its losses anew (default: 500)",
    )
    add(group, "save-total-limit", type=int, default=2, help="checkpoints to keep (default: 2)")
    add(group, "logging-steps", type=float, default=50, help="log the training loss every so many steps (default: 50)")
    add(group, "seed", type=int, default=42, help="seed of weights, data order, masks and dropout (default: 42)")
    add(group, "bf16", action="store_true", help="mixed precision in bfloat16")
    add(group, "fp16", action="store_true", help="mixed precision in float16")


def parse(
    argument_parser: argparse.ArgumentParser, presets: Recipes, arguments: list[str] | None = None
) -> argparse.Namespace:
    """All options of a run: what the command line gives, else the preset, else the default.

    Returns:
        The namespace of `argument_parser`, in which `set` and `bot_config` are dicts, `checkpoint` is the folder
        to resume from or None, and `arguments` is the finished `TrainingArguments`, gradient
        accumulation included.

    Raises:
        BadOption: a preset that does not exist; a batch that cannot be split; checkpoints in the
            output folder without --resume.
    """
    defaults, rest = argument_parser.parse_known_args(arguments)
    call = _given(vars(argument_parser.parse_known_args(arguments, _blank(vars(defaults)))[0]))
    trainer_given = _training_fields(rest)
    recipe = _recipe(defaults.preset, presets)
    if "num_train_epochs" in call and "max_steps" not in call:
        recipe = {**recipe, "max_steps": -1}
    own_fields = {name: value for name, value in recipe.items() if name in vars(defaults)}
    options = argparse.Namespace(**{**vars(defaults), **own_fields, **call})
    options.set, options.bot_config = _pairs("--set", options.set), _pairs("--bot-config", options.bot_config)
    further = {name: value for name, value in recipe.items() if name not in vars(defaults)}
    options.arguments = _training_arguments(options, {**further, **trainer_given})
    options.checkpoint = _checkpoint(options)
    return options


def _training_fields(rest: list[str]) -> dict[str, Any]:
    """The remaining arguments as fields of TrainingArguments; argparse refuses unknown ones."""
    reader = HfArgumentParser(TrainingArguments, allow_abbrev=False)
    names = [field.name for field in dataclasses.fields(TrainingArguments)]
    return _given(vars(reader.parse_args(rest, _blank(names))))


def _blank(names: Iterable[str]) -> argparse.Namespace:
    """A namespace in which argparse sets no defaults, so that `_given` returns only options that were given."""
    return argparse.Namespace(**dict.fromkeys(names))


def _given(parsed: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parsed.items() if value is not None}


def _recipe(name: str | None, presets: Recipes) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in presets:
        raise BadOption(f"--preset {name!r} does not exist; this script has {', '.join(presets)}.")
    return presets[name]


def _pairs(option: str, pairs: list[str] | None) -> dict[str, Any]:
    """`["a=1", "b=haar"]` as `{"a": 1, "b": "haar"}`; values are read as JSON where they are JSON."""
    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise BadOption(f"{option} {pair!r} is not of the form NAME=VALUE, as in {option} hidden_size=256.")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:  # a plain word
            values[name] = value
    return values


def _training_arguments(options: argparse.Namespace, further: dict[str, Any]) -> TrainingArguments:
    fields: dict[str, Any] = {
        **{name: getattr(options, name) for name in TRAINING},
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "logging_first_step": True,
        "report_to": "none",
        "remove_unused_columns": False,  # the data sets hold what their collators need
        "ddp_find_unused_parameters": False,
        **further,
    }
    arguments = TrainingArguments(**fields)
    if arguments.n_gpu > 1:
        raise BadOption(
            f"this process sees {arguments.n_gpu} GPUs: start one process for each with accelerate launch "
            f"--num_processes {arguments.n_gpu}, or show it one with CUDA_VISIBLE_DEVICES=0."
        )
    processes = arguments.world_size
    size = options.per_device_batch_size or options.batch_size // processes
    if size < 1 or options.batch_size % (size * processes):
        raise BadOption(
            f"--batch-size {options.batch_size} cannot be split over {processes} processes of {max(size, 1)} examples: "
            "choose a --per-device-batch-size that times the number of processes divides it."
        )
    arguments.per_device_train_batch_size = size
    arguments.gradient_accumulation_steps = options.batch_size // (size * processes)
    if "per_device_eval_batch_size" not in further:
        arguments.per_device_eval_batch_size = size
    return arguments


def _checkpoint(options: argparse.Namespace) -> Path | None:
    folder = Path(options.output_dir)
    if options.resume:
        return newest_whole_checkpoint(folder, options.arguments.world_size)
    if any(folder.glob("checkpoint-*")):
        raise BadOption(
            f"{folder} holds checkpoints of an earlier run: add --resume to continue, or name another folder."
        )
    return None
