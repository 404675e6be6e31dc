"""`transformers-bot resize`: a checkpoint at another size, as a folder that is whole or not there."""

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

REPORT = "transfer_report.json"  # as `Report.save` calls it


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
    output = parser.add_argument_group("the output")
    flag = argparse.BooleanOptionalAction
    output.add_argument(
        "--overwrite", action=flag, help="replace OUT if a resize wrote it and nobody trained or changed it since"
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
        help="note in OUT where the folder SOURCE is; without it only its name and the hashes of its files",
    )
    output.add_argument("--max-shard-size", metavar="SIZE", help="largest weight file, such as 2GB")
    add_method(parser)
    add_calibration(parser, "SOURCE and OUT")
    add_fit(parser)
    add_reading(parser, result=True)
    add_hub(parser)
    add_adapter(parser)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> int:
    from ..console import progress

    read_adapters(chosen)
    given = settings(chosen)
    source, out = required(given, "source"), required(given, "out")
    if chosen.overwrite_foreign:
        given["overwrite"] = "foreign"
    with _collected_warnings() as warnings, progress.bar("resizing"):
        with progress.loading("tools.resize_checkpoint"):
            from ..tools.resize_checkpoint import resize_checkpoint
        given = _with_data(source, given)
        report = resize_checkpoint(**{**given, "source": source, "out": out})
        warnings[:] = [text for text in warnings if text not in report.warnings]  # which the table tells
    done = f"{shown(out)} is written and whole, its report is in {shown((Path(out) / REPORT).as_posix())}"
    if chosen.json:
        say(json.dumps(report.to_dict(), indent=2), done)
    else:
        told = replace(report, warnings=tuple(map(in_options, report.warnings)))
        say("\n".join([str(told), "", *_how_to_load(source, out, report)]), done)
    return 0


def _how_to_load(source: str, out: str, report: "Report") -> list[str]:
    """Lines of Python and of the shell that load the result and check it."""
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
    """How `verify` finds the source, where the result does not say it."""
    told = not record.get("local") or record.get("path")
    return "" if told else f" --source {shlex.quote(source)}"


def _with_data(source: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings with batches in the place of the files to calibrate with; a method that learns has data."""
    from ..learned.batches import read_batches
    from ..learned.fitting import LEARNED
    from ..request.request import HUB, picked

    if given.get("method") in LEARNED and "fit" not in given:
        raise BadOption(
            f"method {given['method']} learns from data how to grow, and without it the result is worse than random "
            "weights: give texts or images with --fit-data FILE and, if 100 steps are not enough, --fit-steps N; or "
            "choose a method that needs none, such as bot."
        )
    amounts = {name: given.pop(f"calibration_{name}", None) for name in ("tokens", "images")}
    if "calibration" in given:
        chosen = {name: value for name, value in amounts.items() if value is not None}
        task = given.get("task")
        batches = read_batches(source, given["calibration"], task=task, **chosen, **picked(given, HUB))
        return {**given, "calibration": batches}
    if any(value is not None for value in amounts.values()):
        raise BadOption("how much to calibrate with is said, but not with what: give --calibration FILE.")
    return given


@contextlib.contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collects our warnings; what is left of them in the end goes to standard error, also when the call fails."""
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
    """The Auto class that makes `model_class` of the folder's config, or that class itself."""
    from ..architectures.inventory import auto_class_of
    from ..request.request import read_config

    found = auto_class_of(read_config(folder, {}), model_class)
    return found[1] if found else model_class
