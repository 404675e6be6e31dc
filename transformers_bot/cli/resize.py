"""`transformers-bot resize`: write a checkpoint at another size into a new folder."""

import argparse
import contextlib
import json
import logging
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadOption
from .options import (
    FIELDS,
    add_adapter,
    add_calibration,
    add_fit,
    add_hub,
    add_method,
    add_reading,
    add_source,
    add_target,
    read_adapters,
    required,
    settings,
)
from .terminal import complain, in_options, say, shown

if TYPE_CHECKING:
    from ..report.report import Report

REPORT = "transfer_report.json"  # the file name of `Report.save`


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "resize",
        usage="transformers-bot resize SOURCE OUT [--set FIELD=VALUE] [options]",
        help="resize a checkpoint and save the result",
        description="Resize a trained model and save it, with its tokenizer, a report and a model card, as a folder "
        "that every from_pretrained loads. Weights are read and written one after another, so the model need not fit "
        f"into memory. OUT appears whole or not at all. {FIELDS}",
        epilog="examples:\n"
        "  transformers-bot resize gpt2 my-gpt2 --set n_layer=6 --set n_embd=384 \\\n"
        "    --set n_head=6\n"
        "  transformers-bot resize bert-base-uncased my-bert --config bert-small\n"
        "  transformers-bot resize --recipe small.yaml\n"
        "small.yaml (paths are relative to the folder you are in):\n"
        "  source: gpt2\n"
        "  out: my-gpt2\n"
        "  config: {n_layer: 6, n_embd: 384, n_head: 6}\n"
        "  bot_config: {depth: even}",
    )
    add_source(parser, optional=True)
    parser.add_argument("out", metavar="OUT", nargs="?", help="the folder to write")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on standard output")
    add_target(parser)
    _add_output(parser)
    add_method(parser)
    add_calibration(parser, "SOURCE and OUT")
    add_fit(parser)
    add_reading(parser, result=True)
    add_hub(parser)
    add_adapter(parser)
    parser.set_defaults(run=run)


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Options of what is written."""
    output = parser.add_argument_group("the output")
    flag = argparse.BooleanOptionalAction
    output.add_argument(
        "--overwrite", action=flag, help="replace OUT if it was written by a resize and is unchanged since"
    )
    output.add_argument(
        "--overwrite-foreign",
        action="store_true",
        help="replace OUT even if it holds a model that was made elsewhere, trained or changed: that model is lost",
    )
    output.add_argument(
        "--no-tokenizer",
        dest="tokenizer",
        action="store_const",
        const=False,
        help="leave the source's tokenizer and processor files out",
    )
    output.add_argument(
        "--no-modules",
        dest="modules",
        action="store_const",
        const=False,
        help="leave the modules of a sentence-transformers folder out: OUT is then a plain model",
    )
    output.add_argument(
        "--record-path",
        action=flag,
        help="record in OUT the path of the folder SOURCE; otherwise only its name and the hashes of its files",
    )
    output.add_argument("--max-shard-size", metavar="SIZE", help="largest weight file, such as 2GB")


def run(args: argparse.Namespace) -> int:
    from ..console import progress

    read_adapters(args)
    recipe = settings(args)
    source, out = required(recipe, "source"), required(recipe, "out")
    if args.overwrite_foreign:
        recipe["overwrite"] = "foreign"
    with _collected_warnings() as warnings, progress.bar("resizing"):
        with progress.loading("tools.resize_checkpoint"):
            from ..tools.resize_checkpoint import resize_checkpoint
        recipe = _with_data(source, recipe)
        report = resize_checkpoint(**{**recipe, "source": source, "out": out})
        warnings[:] = [text for text in warnings if text not in report.warnings]  # those are in the printed report
    result = f"{shown(out)} is written and whole, its report is in {shown((Path(out) / REPORT).as_posix())}"
    if args.json:
        say(json.dumps(report.to_dict(), indent=2), result)
    else:
        shown_report = replace(report, warnings=tuple(map(in_options, report.warnings)))
        say("\n".join([str(shown_report), "", *_how_to_load(source, out, report)]), result)
    return 0


def _how_to_load(source: str, out: str, report: "Report") -> list[str]:
    """Lines that say how to load the result in Python and how to check it in a shell."""
    from ..io.sentences import folder_class

    folder = Path(out).as_posix()
    if library_class := folder_class(out):
        code = [f"  from sentence_transformers import {library_class}", f"  model = {library_class}({folder!r})"]
    else:
        name = _auto_class(out, report.classes[1])
        code = [f"  from transformers import {name}", f"  model = {name}.from_pretrained({folder!r})"]
    verify = f"  transformers-bot verify {shown(shlex.quote(out))}{_where(source, report.provenance)}"
    return [f"Written to {shown(out)}. Load it with", *code, "and check it with", verify]


def _where(source: str, record: dict[str, Any]) -> str:
    """The option with which `verify` finds the source, if the result does not say where it is."""
    is_known = not record.get("local") or record.get("path")
    return "" if is_known else f" --source {shlex.quote(source)}"


def _with_data(source: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings, with the batches that are read from the calibration files.

    Raises:
        BadOption: a method that learns has no data, or calibration has a size but no files.
    """
    from ..learned.batches import read_batches
    from ..learned.fitting import operator_of
    from ..request.names import HUB
    from ..request.request import picked

    if operator_of(recipe.get("method")) and "fit" not in recipe:
        raise BadOption(
            f"method {recipe['method']} learns from data how to grow, and without it the result is worse than random "
            "weights: give texts or images with --fit-data FILE and, if 100 steps are not enough, --fit-steps N; or "
            "choose a method that needs none, such as bot."
        )
    amounts = {name: recipe.pop(f"calibration_{name}", None) for name in ("tokens", "images")}
    if "calibration" in recipe:
        limits = {name: value for name, value in amounts.items() if value is not None}
        task = recipe.get("task")
        batches = read_batches(source, recipe["calibration"], task=task, **limits, **picked(recipe, HUB))
        return {**recipe, "calibration": batches}
    if any(value is not None for value in amounts.values()):
        raise BadOption("--calibration-tokens and --calibration-images need data: give --calibration FILE, too.")
    return recipe


@contextlib.contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect our warnings; those that remain in the list go to standard error, also if the call fails."""
    from ..console.progress import diverted

    collector = _Collector()
    try:
        with diverted(collector):
            yield collector.texts
    finally:
        for text in collector.texts:
            complain(f"warning: {text}")


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _auto_class(folder: str, model_class: str) -> str:
    """The Auto class that loads the folder as `model_class`, or `model_class` if there is none."""
    from ..architectures.inventory import auto_class_of
    from ..request.request import read_config

    auto_class = auto_class_of(read_config(folder, {}), model_class)
    return auto_class[1] if auto_class else model_class
