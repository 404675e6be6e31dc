"""Options that several commands share, recipes, and what both say together: the source, the target, the method."""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import auto, errors
from ..console.text import cut
from ..tasks import TASKS

# Options of BoTConfig; it checks the values itself and names the nearest one.
BOT_OPTIONS = {
    "wavelet": "how neighbours are merged or told apart: haar takes pairs, db2 and longer ones blend more of them; a "
    "PyWavelets name, auto, or one per role: hidden=haar,layer=db2",
    "gain": "consistent keeps what the network computes as far as its size allows (default); raw is the published "
    "method as written, for comparison",
    "depth": "which layers the result has. Growing: identity adds layers that change nothing, repeat doubles layers, "
    "wavelet blends them. Shrinking: even leaves out every so many, first keeps the first, wavelet averages "
    "neighbours, strongest keeps those that do most (needs --calibration); or auto",
    "detail": "whether new weights get noise when growing, so that copies train apart: zero (none), gaussian, uniform "
    "or auto",
    "detail_scale": "how large that noise is, beside the weights' own spread (default: 1)",
    "heads": "attention heads: whole keeps heads as they are, filter blends them, flat takes all as one; or auto",
    "positions": "text positions: crop keeps the first ones, interpolate stretches them over the new length",
    "grids": "image positions at another size: bicubic as transformers interpolates them, or antialiased",
    "reheads": "another number of heads at the same width: error (default), resample, or reshape, which cuts the same "
    "weights into other heads",
    "basis": "shrinking: principal keeps the directions that carry most (GPT-2, ViT, DeiT); plain keeps directions as "
    "they are; or auto",
    "order": "shrinking: similar merges units that are alike, strongest keeps those that do most (needs "
    "--calibration), kept merges neighbours as they stand; or auto",
    "seed": "of noise and of new heads, a whole number: the same seed gives the same model",
}
DATA = (
    "texts (.txt: paragraphs or lines; .jsonl: the field text of every line) or images, for an image model; a file, "
    "several, or a folder of them. Give it after {}"
)
METAVARS = {"wavelet": "NAME", "detail_scale": "NUMBER", "seed": "NUMBER"}
DEEPEST = 8  # levels of a config field
CONSTANTS = {"True": True, "False": False, "None": None}  # which JSON writes true, false and null
FIELDS = (
    "The sizes to set are fields of the model's config.json; hidden_size, num_hidden_layers and num_attention_heads "
    "work for every family."
)


def number(kind: type[int] | type[float], meaning: str) -> Callable[[str], float]:
    """What reads an option that is a number; a text that is none is told what the number means."""

    def read(text: str) -> float:
        try:
            return kind(text)
        except ValueError:  # so many digits, too, as Python refuses to read
            raise argparse.ArgumentTypeError(f"{meaning}, got {cut(text, 40)!r}") from None

    return read


TYPES = {
    "detail_scale": number(float, "how large the noise is beside the weights' own spread is a number such as 0.5"),
    "seed": number(int, "a seed draws the same noise and new heads every time: it is a whole number such as 0"),
}
TOKENS = number(int, "how many tokens to run on is a whole number such as 8192")
PICTURES = number(int, "how many images to run on is a whole number such as 64")
STEPS = number(int, "how many steps to learn for is a whole number such as 100")
RATE = number(float, "the learning rate is a number such as 0.001")
BATCH = number(int, "how many texts or images a step has is a whole number such as 8")
RANK = number(int, "the rank of mango's operator is a whole number such as 1")


def add_source(parser: Any, optional: bool = False) -> None:
    """The positional source and where it is found on the Hub."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?" if optional else None,
        help="the trained model: a name on the Hugging Face Hub such as gpt2, or a folder",
    )


def add_head(parser: Any) -> None:
    """Which head the source has, for commands that only look at it."""
    parser.add_argument(
        "--task",
        choices=TASKS,
        metavar="TASK",
        help=f"the head, where config.json does not name it: {', '.join(TASKS)}",
    )


def add_hub(parser: Any) -> None:
    group = parser.add_argument_group("the source on the Hub")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit")
    group.add_argument("--subfolder", metavar="NAME", help="a folder inside of the repository or source folder")
    group.add_argument("--variant", metavar="NAME", help="weight files of this variant, such as fp16")


def add_reading(parser: Any, result: bool = False) -> None:
    """How carefully the source is read; `result`: for a command that makes something of it."""
    group = parser.add_argument_group("reading the source")
    group.add_argument(
        "--allow-pickle",
        action=argparse.BooleanOptionalAction,
        help="read .bin files, which can run code: only for a source you trust",
    )
    if result:
        group.add_argument(
            "--nonfinite", metavar="CHOICE", help="weights that are NaN or infinity: error, warn or zero"
        )
        text = "go on where the source lacks its own head, or has tensors that no model of its type has"
        group.add_argument("--no-strict", dest="strict", action="store_const", const=False, help=text)


def add_adapter(parser: Any) -> None:
    parser.add_argument(
        "--adapter",
        metavar="FILE.py",
        action="append",
        default=[],
        help="a Python file with an adapter for an architecture that is not built in; it is run",
    )


def read_adapters(chosen: argparse.Namespace) -> None:
    """Make the architectures of --adapter known."""
    from ..architectures import load, register

    for path in chosen.adapter:
        for adapter in load(path):
            register(adapter)


def hub_keywords(chosen: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about where and how the source is read."""
    names = ("revision", "subfolder", "variant", "allow_pickle", "nonfinite")
    return {name: value for name in names if (value := getattr(chosen, name, None)) is not None}


def add_target(parser: Any) -> None:
    """What the result shall be, and its recipe."""
    group = parser.add_argument_group("the target")
    group.add_argument(
        "--config",
        metavar="TARGET",
        help="a ready config such as bert-small, a folder (./bert-small if it is called so), a .json file, or a Hub "
        "id with a slash",
    )
    group.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="set a field of the target's config; what is not set stays as in --config, or as in the source. May be "
        "repeated",
    )
    group.add_argument("--task", choices=TASKS, metavar="TASK", help=f"the target's head: {', '.join(TASKS)}")
    group.add_argument(
        "--dtype", metavar="TYPE", help="of the result: float32, bfloat16, float16, or auto (the source's)"
    )
    group.add_argument(
        "--ignore-mismatched-sizes",
        action=argparse.BooleanOptionalAction,
        help="start anew, instead of refusing, what must not be resampled (another vocabulary or label count)",
    )
    group.add_argument(
        "--recipe",
        metavar="FILE",
        help="a YAML file with these settings, as docs/command-line.md lists them; options given here win",
    )


def add_calibration(parser: Any, places: str) -> None:
    """The data that a source is run on before it shrinks; `places` are the positional arguments of the command."""
    group = parser.add_argument_group(
        "calibration",
        "The source is run on a few texts or images before it shrinks, so that what it does on them is kept: the best "
        "shrinking that there is.",
    )
    group.add_argument("--calibration", metavar="FILE", nargs="+", action="extend", help=DATA.format(places))
    group.add_argument(
        "--calibration-tokens", metavar="N", type=TOKENS, help="how many tokens of text to run on (default: 8192)"
    )
    group.add_argument("--calibration-images", metavar="N", type=PICTURES, help="how many images at most (default: 64)")


def add_fit(parser: Any) -> None:
    """The data of methods that learn."""
    group = parser.add_argument_group("fitting", "For the methods ligo and mango, which learn from data how to grow.")
    group.add_argument("--fit-data", metavar="FILE", nargs="+", action="extend", help=DATA.format("SOURCE and OUT"))
    group.add_argument("--fit-steps", metavar="N", type=STEPS, help="how many steps to learn for (default: 100)")
    group.add_argument("--fit-lr", metavar="RATE", type=RATE, help="the learning rate (default: the paper's)")
    group.add_argument("--fit-batch-size", metavar="N", type=BATCH, help="texts or images in a step (default: 8)")
    group.add_argument("--fit-rank", metavar="N", type=RANK, help="the rank of mango's operator (default: 1)")


def fit_of(chosen: argparse.Namespace, written: dict[str, Any]) -> dict[str, Any]:
    """The recipe's `fit` with the options of the command line over it, under the API's names."""
    names = {"fit_data": "batches", "fit_steps": "steps", "fit_lr": "lr"}
    names |= {"fit_batch_size": "batch_size", "fit_rank": "rank"}
    given = {key: value for name, key in names.items() if (value := getattr(chosen, name, None)) is not None}
    return {**written, **given}


def own_options() -> dict[str, Any]:
    """The options of methods that were registered in this process, by name."""
    methods = sys.modules.get("transformers_bot.methods")
    if methods is None:
        return {}
    classes = [getattr(method, "options_class", None) for method in methods.METHODS.values()]
    return {field.name: field for own in classes if own is not None for field in dataclasses.fields(own)}


def meaning_of(name: str) -> str:
    """What an option of a method is for, and its default where it is a registered method's own."""
    if name in BOT_OPTIONS:
        return BOT_OPTIONS[name]
    field = own_options()[name]
    choices = field.metadata.get("choices")
    listed = f"; one of {', '.join(map(str, choices))}" if choices else ""
    return f"{field.metadata.get('meaning', name)}{listed} (default: {field.default})"


def load_methods(arguments: list[str]) -> None:
    """Register the methods of the files behind `--method-file`, before the options of the command are known.

    Raises:
        BadOption: a file that defines no method.
    """
    files = [after for word, after in pairwise([*arguments, ""]) if word == "--method-file"]
    files += [word.partition("=")[2] for word in arguments if word.startswith("--method-file=")]
    if files:
        from .. import methods

        for file in files:
            methods.load(file)


def add_method_file(parser: Any) -> None:
    """The file of a method that is not built in."""
    parser.add_argument(
        "--method-file", metavar="FILE", action="append", help="a Python file with a method of your own; it is run"
    )


def add_method(parser: Any) -> None:
    """The method, the options of BoTConfig, and those of methods that were registered."""
    group = parser.add_argument_group(
        "the method", "The defaults are good; `transformers-bot methods` explains others."
    )
    group.add_argument("--method", metavar="NAME", help="bot (default), weight_selection, fpi, tile+stack, ...")
    add_method_file(group)
    for name in dict.fromkeys([*BOT_OPTIONS, *own_options()]):
        text = meaning_of(name)
        metavar = METAVARS.get(name, "CHOICE" if name in BOT_OPTIONS else "VALUE")
        read = TYPES.get(name) or _reader(own_options().get(name))
        group.add_argument(f"--{name.replace('_', '-')}", type=read, metavar=metavar, help=text)


def _reader(option: Any) -> Callable[[str], Any]:
    """What reads an option of a registered method: a value of the type of its default."""
    default = getattr(option, "default", "")
    if isinstance(default, bool):
        return lambda text: text.lower() in ("true", "yes", "1")
    if isinstance(default, (int, float)):
        return number(type(default), "it is a whole number" if isinstance(default, int) else "it is a number")
    return str


def settings(chosen: argparse.Namespace) -> dict[str, Any]:
    """The recipe's settings with those of the command line over them, under the API's names.

    Raises:
        BadOption: a recipe that cannot be read, a pair without a value, or no source.
        BadKeyword: a recipe's setting that does not exist.
    """
    given = read_recipe(chosen.recipe) if chosen.recipe else {}
    local = given.pop("local_source", None)
    for name in SETTINGS:
        value = getattr(chosen, name, None)
        if value is not None and name not in ("config", "bot_config"):
            given[name] = value
    if local is not None and "source" not in given:
        raise errors.BadOption(
            f"the recipe {chosen.recipe} was made from a local folder called {local!r}, and does not say where that "
            "is: give its path as SOURCE on the command line, or as source: in the recipe."
        )
    given["config"] = _config(given.get("config"), chosen.config, dict(_field(text) for text in chosen.set))
    if fit := fit_of(chosen, given.get("fit", {})):
        given["fit"] = fit
    options = {**given.get("bot_config", {}), **_bot_options(chosen)}
    return {**given, **({"bot_config": options} if options else {})}


def required(given: dict[str, Any], name: str) -> str:
    """A setting that must be there; the error says both places where it can be given."""
    if name not in given:
        if any(isinstance(given.get(one), (list, dict)) for one in ("calibration", "fit")):
            raise errors.BadOption(
                f"{name.upper()} is missing: give it before --calibration and --fit-data, which take all files that "
                f"follow them, or as {name}: in --recipe."
            )
        raise errors.BadOption(f"{name.upper()} is missing: give it on the command line, or as {name}: in --recipe.")
    return str(given[name])


def planner(task: str | None) -> Any:
    """The `plan` of a task's factory; without a task, of the source's own architecture."""
    tasks = auto.FACTORIES
    if task is None:
        return auto.plan
    if task not in tasks:
        raise errors.BadOption(f"task must be one of {', '.join(tasks)}, got {task!r}.{errors.suggest(task, tasks)}")
    return tasks[task].plan


def _bot_options(chosen: argparse.Namespace) -> dict[str, Any]:
    names = dict.fromkeys([*BOT_OPTIONS, *own_options()])
    given = {name: getattr(chosen, name) for name in names if getattr(chosen, name, None) is not None}
    if "=" in given.get("wavelet", ""):
        given["wavelet"] = dict(_pair(part, "--wavelet") for part in given["wavelet"].split(","))
    return given


def _pair(text: str, name: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key.strip() and value.strip()):
        example = "--set num_hidden_layers=6" if name == "--set" else f"{name} hidden=haar"
        raise errors.BadOption(f"{name} takes NAME=VALUE, got {text!r}. Write it as {example}.")
    return key.strip(), value.strip()


def _field(text: str) -> tuple[str, Any]:
    """A config field and its value: numbers, true, false, null (as Python writes them, too) and JSON, else text."""
    name, value = _pair(text, "--set")
    if value in CONSTANTS:
        return name, CONSTANTS[value]
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        if len(parts := re.split(r"[,;\s]\s*(?=\w+\s*=)", text)) > 1:
            each = " ".join(f"--set {part}" for part in parts)
            raise errors.BadOption(f"--set takes one field, got {text!r}: repeat it, {each}.") from None
        found = value
    except (RecursionError, ValueError):  # nested beyond what Python counts; a number of thousands of digits
        raise errors.BadOption(f"--set {name}: no field of a model takes {cut(value, 40)!r}.") from None
    if not isinstance(found, str) and _depth(found) > DEEPEST:
        raise errors.BadOption(f"--set {name}: a value of more than {DEEPEST} levels is no setting of a model.")
    return name, found


def _depth(value: Any) -> int:
    """Levels of lists and objects, without recursion."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        inner = [one for one in level if isinstance(one, (list, dict))]
        level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
        depth += bool(inner)
    return depth


def _config(written: Any, named: str | None, fields: dict[str, Any]) -> Any:
    """The target: --config or the recipe's, with the fields of --set over it; None for the source's own sizes."""
    base = written if named is None else named
    if isinstance(base, dict):
        return {**base, **fields}
    return target(base, fields) if base is not None else fields or None


def target(name: str, overrides: dict[str, Any]) -> Any:
    """A config by name or place, with fields set otherwise.

    Raises:
        BadOption: a name that is no ready config, no folder or file, and no Hub id.
    """
    from .. import architectures
    from ..architectures import configs, sizes
    from ..request.request import READY, named_config

    ready = name.removeprefix(READY)
    if ready not in configs.names() and not os.path.exists(name) and "/" not in name:
        hint = errors.suggest(ready, configs.names())
        raise errors.BadOption(
            f"{name!r} is neither a folder, a file, a Hub id with a slash, nor a ready config "
            f"({', '.join(configs.names())}).{hint}"
        )
    config = named_config(name)
    return sizes.rebuild(architectures.get(config.model_type), config, overrides) if overrides else config


# -- recipes: a YAML file with the settings of one resize, under the API's names ---------------------

# setting -> the YAML types it may have
SETTINGS: dict[str, tuple[type, ...]] = {
    "source": (str,),
    "local_source": (str,),
    "out": (str,),
    "revision": (str,),
    "subfolder": (str,),
    "variant": (str,),
    "config": (str, dict),
    "task": (str,),
    "method": (str,),
    "bot_config": (dict,),
    "dtype": (str,),
    "max_shard_size": (str, int),
    "ignore_mismatched_sizes": (bool,),
    "nonfinite": (str,),
    "allow_pickle": (bool,),
    "calibration": (str, list),
    "calibration_tokens": (int,),
    "calibration_images": (int,),
    "fit": (dict,),
    "strict": (bool,),
    "record_path": (bool,),
    "overwrite": (bool,),
    "tokenizer": (bool,),
    "modules": (bool,),
}
YAML_TYPES = {
    str: "text",
    list: "a list of files",
    dict: "a table of fields",
    int: "a whole number",
    bool: "true or false",
}
LARGEST_RECIPE = 64_000  # bytes; a recipe has a few dozen lines


def read_recipe(path: str) -> dict[str, Any]:
    """The settings of a recipe file.

    Example:
        source: gpt2
        out: gpt2-small
        config: {n_layer: 6, n_embd: 384, n_head: 6}
        bot_config: {depth: even}

    Raises:
        BadOption: no such file, a file that is no YAML table or is too large, a value of another type.
        BadKeyword: a setting that does not exist, with the nearest one.
    """
    from ..io.plain_yaml import NotPlain, read_yaml  # which help can do without

    file = Path(path)
    if not file.is_file():
        raise errors.BadOption(f"there is no recipe file {path!r}.")
    if file.stat().st_size > LARGEST_RECIPE:
        raise errors.BadOption(f"{path} has {file.stat().st_size:,} bytes; a recipe has at most {LARGEST_RECIPE:,}.")
    try:
        found = read_yaml(file.read_text(encoding="utf-8"), most=LARGEST_RECIPE)
    except NotPlain as error:
        raise errors.BadOption(f"{path} is not a YAML recipe: {error}.") from None
    except UnicodeDecodeError as error:
        raise errors.BadOption(f"{path} is not a YAML recipe: byte {error.start} is not UTF-8.") from None
    if not isinstance(found, dict):
        raise errors.BadOption(f"{path} must be a YAML table of settings such as 'source: gpt2'.")
    return {
        _known_setting(path, name): _checked_setting(path, name, value)
        for name, value in found.items()
        if value is not None
    }


def _known_setting(path: str, name: Any) -> str:
    if name in SETTINGS:
        return str(name)
    hint = errors.suggest(name, SETTINGS) or f" It may have {', '.join(SETTINGS)}."
    raise errors.BadKeyword(f"{path} has an unknown setting {name!r}.{hint}")


def _checked_setting(path: str, name: str, value: Any) -> Any:
    kinds = SETTINGS[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(YAML_TYPES[kind] for kind in kinds)
        hint = " Put it in quotes." if str in kinds and not isinstance(value, (dict, list)) else ""
        raise errors.BadOption(f"{path}: {name} must be {wanted}, got {value!r}.{hint}")
    for field in value if isinstance(value, dict) else ():
        if not isinstance(field, str):
            raise errors.BadOption(f"{path}: {name} has a field {field!r}; the names of fields are text.")
    return value
