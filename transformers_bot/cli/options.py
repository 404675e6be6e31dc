"""The options that several commands share, recipe files, and the settings that both give together."""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import auto, errors
from ..console.text import cut
from ..tasks import TASKS

DATA = (
    "texts (.txt: paragraphs or lines; .jsonl: the field text of every line), for an image model images, for a model "
    "of speech sounds (.wav); a file, several, or a folder of them. Give it after {}"
)
OWN = "own_option_"  # in front of the names of methods' options, which may be those of settings, such as `out`
DEEPEST = 8  # the most levels of a config field
CONSTANTS = {"True": True, "False": False, "None": None}  # JSON writes them true, false and null
BOOLEANS = {**dict.fromkeys(("true", "yes", "1"), True), **dict.fromkeys(("false", "no", "0"), False)}
FIELDS = (
    "The sizes to set are fields of the model's config.json; hidden_size, num_hidden_layers and num_attention_heads "
    "work for every family."
)


def number(kind: type[int] | type[float], meaning: str) -> Callable[[str], float]:
    """A reader of an option that is a number; for other text, its error says what the number means."""

    def read(text: str) -> float:
        try:
            return kind(text)
        except ValueError:  # also raised for more digits than Python reads
            raise argparse.ArgumentTypeError(f"{meaning}, got {cut(text, 40)!r}") from None

    return read


TOKENS = number(int, "how many tokens to run on is a whole number such as 8192")
PICTURES = number(int, "how many images to run on is a whole number such as 64")
STEPS = number(int, "how many steps to learn for is a whole number such as 100")
RATE = number(float, "the learning rate is a number such as 0.001")
BATCH = number(int, "how many texts or images a step has is a whole number such as 8")
RANK = number(int, "the rank of mango's operator is a whole number such as 1")


def add_source(parser: Any, optional: bool = False) -> None:
    """The positional argument SOURCE."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?" if optional else None,
        help="the trained model: a name on the Hugging Face Hub such as gpt2, or a folder",
    )


def add_head(parser: Any) -> None:
    """The head of the source, for commands that only read it."""
    parser.add_argument(
        "--task",
        choices=TASKS,
        metavar="TASK",
        help=f"the head, if config.json does not name it: {', '.join(TASKS)}",
    )


def add_hub(parser: Any) -> None:
    group = parser.add_argument_group("the source on the Hub")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit")
    group.add_argument("--subfolder", metavar="NAME", help="a folder inside the repository or source folder")
    group.add_argument("--variant", metavar="NAME", help="weight files of this variant, such as fp16")


def add_reading(parser: Any, result: bool = False) -> None:
    """Options on checks of the source; with `result`, those of commands that write a result."""
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
        text = "go on if the source lacks its own head, or has tensors that no model of its type has"
        group.add_argument("--no-strict", dest="strict", action="store_const", const=False, help=text)


def add_adapter(parser: Any) -> None:
    parser.add_argument(
        "--adapter",
        metavar="FILE.py",
        action="append",
        default=[],
        help="a Python file with an adapter for an architecture that is not built in; the file is run as code",
    )


def read_adapters(args: argparse.Namespace) -> None:
    """Register the adapters of the files behind --adapter."""
    from ..architectures import load, register

    for path in args.adapter:
        for adapter in load(path):
            register(adapter)


def hub_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """The options on where and how the source is read, as keywords of the API."""
    names = ("revision", "subfolder", "variant", "allow_pickle", "nonfinite")
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def add_target(parser: Any) -> None:
    """Options on the result, and the recipe."""
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
        help="set a field of the target's config; other fields stay as in --config, or as in the source. May be "
        "repeated",
    )
    group.add_argument("--task", choices=TASKS, metavar="TASK", help=f"the target's head: {', '.join(TASKS)}")
    group.add_argument(
        "--dtype", metavar="TYPE", help="of the result: float32, bfloat16, float16, or auto (the source's)"
    )
    group.add_argument(
        "--ignore-mismatched-sizes",
        action=argparse.BooleanOptionalAction,
        help="initialise anew, instead of refusing, tensors that must not be resampled (vocabulary, labels)",
    )
    group.add_argument(
        "--vocab-keep",
        metavar="FILE",
        help="keep only these tokens: a file with one id or token a line, a JSON list, or a tokenizer's file or folder",
    )
    group.add_argument(
        "--recipe",
        metavar="FILE",
        help="a YAML file with these settings, as docs/command-line.md lists them; options override it",
    )


def add_calibration(parser: Any, places: str) -> None:
    """The data that the source is run on before it shrinks; `places` names the positional arguments of the command."""
    group = parser.add_argument_group(
        "calibration",
        "Run the source on a few texts or images before it shrinks, so that the result behaves "
        "like it on such data. This gives the best results.",
    )
    group.add_argument("--calibration", metavar="FILE", nargs="+", action="extend", help=DATA.format(places))
    group.add_argument(
        "--calibration-tokens", metavar="N", type=TOKENS, help="how many tokens of text to run on (default: 8192)"
    )
    group.add_argument(
        "--calibration-images", metavar="N", type=PICTURES, help="the most images or sounds to run on (default: 64)"
    )


def add_fit(parser: Any) -> None:
    """The data of methods that learn."""
    group = parser.add_argument_group("fitting", "For the methods ligo and mango, which learn from data how to grow.")
    group.add_argument("--fit-data", metavar="FILE", nargs="+", action="extend", help=DATA.format("SOURCE and OUT"))
    group.add_argument("--fit-steps", metavar="N", type=STEPS, help="how many steps to learn for (default: 100)")
    group.add_argument("--fit-lr", metavar="RATE", type=RATE, help="the learning rate (default: the paper's)")
    group.add_argument("--fit-batch-size", metavar="N", type=BATCH, help="texts or images in a step (default: 8)")
    group.add_argument("--fit-rank", metavar="N", type=RANK, help="the rank of mango's operator (default: 1)")


def fit_of(args: argparse.Namespace, recipe: dict[str, Any]) -> dict[str, Any]:
    """The `fit` of the recipe, overridden by the options of the command line, under the API's names."""
    names = {"fit_data": "batches", "fit_steps": "steps", "fit_lr": "lr"}
    names |= {"fit_batch_size": "batch_size", "fit_rank": "rank"}
    values = {key: value for name, key in names.items() if (value := getattr(args, name, None)) is not None}
    return {**recipe, **values}


def method_options() -> dict[str, list[dataclasses.Field[Any]]]:
    """The options of all methods by name: BoT's, of which built-in methods read some, and those of registered ones.

    Two classes may have options of the same name. BoT's are read from their class, because the methods themselves need
    torch, and --help does not.
    """
    from ..options import BoTConfig

    methods = sys.modules.get("transformers_bot.methods")
    names = () if methods is None else methods.METHODS
    every = [_fields(BoTConfig), *(options_of_method(name) for name in names)]
    named: dict[str, dict[dataclasses.Field[Any], None]] = {}
    for name, field in ((name, field) for fields in every for name, field in fields.items()):
        named.setdefault(name, {})[field] = None
    return {name: [*fields] for name, fields in named.items()}


def options_of_method(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The options of one method's class by name."""
    from ..methods.base import METHODS, options_class

    return _fields(options_class(METHODS[name]))


def _fields(options: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(options)}


def meaning_of(option: dataclasses.Field[Any]) -> str:
    """The meaning of a method's option, with its choices and default unless the meaning tells them."""
    meaning = str(option.metadata.get("meaning", option.name))
    if option.metadata.get("explained"):
        return meaning
    choices = option.metadata.get("choices")
    listed = f"; one of {', '.join(map(str, choices))}" if choices else ""
    return f"{meaning}{listed} (default: {option.default})"


def load_methods(arguments: list[str]) -> None:
    """Register the methods of the files behind `--method-file`, before the parser adds the methods' options.

    Raises:
        BadOption: a file that defines no method.
    """
    files = [following for argument, following in pairwise([*arguments, ""]) if argument == "--method-file"]
    files += [argument.partition("=")[2] for argument in arguments if argument.startswith("--method-file=")]
    if files:
        from .. import methods

        for file in files:
            methods.load(file)


def add_method_file(parser: Any) -> None:
    """The option for a file with a method."""
    parser.add_argument(
        "--method-file",
        metavar="FILE",
        action="append",
        help="a Python file with a method of your own; the file is run as code",
    )


def add_method(parser: Any) -> None:
    """The method, and the options of all methods."""
    group = parser.add_argument_group(
        "the method", "The defaults are good; `transformers-bot methods` explains others."
    )
    group.add_argument("--method", metavar="NAME", help="bot (default), weight_selection, fpi, tile+stack, ...")
    add_method_file(group)
    for name, options in method_options().items():
        first = options[0].metadata
        metavar = first.get("metavar") or ("CHOICE" if first.get("choices") else "VALUE")
        meanings = "; for another method: ".join(map(meaning_of, options))
        # What is one option's number may be another's name: then the method that is asked for decides.
        kinds = {_kind(option) for option in options}
        reader = _reader(options[0]) if len(kinds) == 1 else str
        group.add_argument(f"--{name.replace('_', '-')}", dest=OWN + name, type=reader, metavar=metavar, help=meanings)


def _kind(option: dataclasses.Field[Any]) -> type:
    """The type of an option's values as far as the command line tells types apart."""
    kind = option.metadata.get("kind") or type(option.default)
    return kind if kind in (bool, int, float) else str


def _reader(option: dataclasses.Field[Any]) -> Callable[[str], Any]:
    """A reader of a method's option, which gives a value of the type of its default; other text stays as it is."""
    kind = _kind(option)
    if kind is bool:
        return _boolean
    if kind is int or kind is float:
        unsaid = "it is a whole number" if kind is int else "it is a number"
        return number(kind, option.metadata.get("number") or unsaid)
    return str


def _boolean(text: str) -> bool:
    """An option that is true or false, as --set and recipes write it."""
    if text.lower() not in BOOLEANS:
        raise argparse.ArgumentTypeError(f"it is true or false, got {cut(text, 40)!r}")
    return BOOLEANS[text.lower()]


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the recipe, overridden by those of the command line, under the API's names.

    Raises:
        BadOption: a recipe that cannot be read, a pair without a value, or no source.
        BadKeyword: a recipe's setting that does not exist.
    """
    values = read_recipe(args.recipe) if args.recipe else {}
    folder_name = values.pop("local_source", None)
    for name in SETTINGS:
        value = getattr(args, name, None)
        if value is not None and name not in ("config", "bot_config"):
            values[name] = value
    if folder_name is not None and "source" not in values:
        raise errors.BadOption(
            f"the recipe {args.recipe} was made from a local folder called {folder_name!r}, and does not say where "
            "that is: give its path as SOURCE on the command line, or as source: in the recipe."
        )
    values["config"] = _config(values.get("config"), args.config, dict(_field(text) for text in args.set))
    if fit := fit_of(args, values.get("fit", {})):
        values["fit"] = fit
    options = {**values.get("bot_config", {}), **_bot_options(args, values.get("method", "bot"))}
    return {**values, **({"bot_config": options} if options else {})}


def required(values: dict[str, Any], name: str) -> str:
    """A setting that must be given; the error names both places for it."""
    if name not in values:
        if any(isinstance(values.get(key), (list, dict)) for key in ("calibration", "fit")):
            raise errors.BadOption(
                f"{name.upper()} is missing: give it before --calibration and --fit-data, which take all files that "
                f"follow them, or as {name}: in --recipe."
            )
        raise errors.BadOption(f"{name.upper()} is missing: give it on the command line, or as {name}: in --recipe.")
    return str(values[name])


def planner(task: str | None) -> Any:
    """The `plan` function of a task's factory; without a task, that for the source's own class."""
    tasks = auto.FACTORIES
    if task is None:
        return auto.plan
    if task not in tasks:
        raise errors.BadOption(f"task must be one of {', '.join(tasks)}, got {task!r}.{errors.suggest(task, tasks)}")
    return tasks[task].plan


def _bot_options(args: argparse.Namespace, method: str) -> dict[str, Any]:
    options = method_options()
    given = {name: value for name in options if (value := getattr(args, OWN + name, None)) is not None}
    if not given:
        return {}
    from ..methods import base

    own = _fields(base.options_class_of(method))
    return {name: _value(own.get(name, options[name][0]), value) for name, value in given.items()}


def _value(option: dataclasses.Field[Any], value: Any) -> Any:
    """The value of an option; where it may have one for each role, `role=value,role=value` is a dict.

    Raises:
        BadOption: text that is no value of this option.
    """
    if not isinstance(value, str):
        return value
    flag = f"--{option.name.replace('_', '-')}"
    if option.metadata.get("by_role") and "=" in value:
        return dict(_pair(part, flag) for part in value.split(","))
    try:
        return _reader(option)(value)
    except argparse.ArgumentTypeError as error:
        raise errors.BadOption(f"{flag}: {error}.") from None


def _pair(text: str, name: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key.strip() and value.strip()):
        example = "--set num_hidden_layers=6" if name == "--set" else f"{name} hidden=haar"
        raise errors.BadOption(f"{name} takes NAME=VALUE, got {text!r}. Write it as {example}.")
    return key.strip(), value.strip()


def _field(text: str) -> tuple[str, Any]:
    """A config field and its value: a constant, as JSON or Python writes it, other JSON, or else text."""
    name, value = _pair(text, "--set")
    if value in CONSTANTS:
        return name, CONSTANTS[value]
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        if len(parts := re.split(r"[,;\s]\s*(?=\w+\s*=)", text)) > 1:
            options = " ".join(f"--set {part}" for part in parts)
            raise errors.BadOption(f"--set takes one field, got {text!r}: repeat it, {options}.") from None
        parsed = value
    except (RecursionError, ValueError):  # nested too deeply for Python; or a number of thousands of digits
        raise errors.BadOption(f"--set {name}: no field of a model takes {cut(value, 40)!r}.") from None
    if not isinstance(parsed, str) and _depth(parsed) > DEEPEST:
        raise errors.BadOption(f"--set {name}: a value of more than {DEEPEST} levels is no setting of a model.")
    return name, parsed


def _depth(value: Any) -> int:
    """The levels of lists and objects, counted without recursion, which deep input could exhaust."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        inner = [container for container in level if isinstance(container, (list, dict))]
        level = [
            part for container in inner for part in (container.values() if isinstance(container, dict) else container)
        ]
        depth += bool(inner)
    return depth


def _config(from_recipe: Any, name: str | None, fields: dict[str, Any]) -> Any:
    """The target: --config or the recipe's config, with the fields of --set; None for the source's own sizes."""
    base = from_recipe if name is None else name
    if isinstance(base, dict):
        return {**base, **fields}
    return target(base, fields) if base is not None else fields or None


def target(name: str, overrides: dict[str, Any]) -> Any:
    """A config by name or path, with some fields changed.

    Raises:
        BadOption: a name that is no ready config, no folder or file, and no Hub id.
    """
    from .. import architectures
    from ..architectures import configs, sizes
    from ..request.names import READY, remedy
    from ..request.request import named_config

    ready_name = name.removeprefix(READY)
    if ready_name not in configs.names() and not os.path.exists(name) and "/" not in name:
        hint = errors.suggest(ready_name, configs.names())
        raise errors.BadOption(
            f"{name!r} is neither a folder, a file, a Hub id with a slash, nor a ready config "
            f"({', '.join(configs.names())}).{hint}"
        )
    config = named_config(name)
    elsewhere = partial(remedy, "resize_checkpoint", "bot")
    return sizes.rebuild(architectures.adapter_of(config), config, overrides, elsewhere) if overrides else config


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
    "vocab_keep": (str, list, dict),
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
        BadOption: there is no such file, it is no YAML table or too large, or a value has the wrong type.
        BadKeyword: a setting that does not exist, with the nearest one.
    """
    from ..io.plain_yaml import NotPlain, read_yaml  # imported late: --help does not need it

    file = Path(path)
    if not file.is_file():
        raise errors.BadOption(f"there is no recipe file {path!r}.")
    if file.stat().st_size > LARGEST_RECIPE:
        raise errors.BadOption(f"{path} has {file.stat().st_size:,} bytes; a recipe has at most {LARGEST_RECIPE:,}.")
    try:
        recipe = read_yaml(file.read_text(encoding="utf-8"), most=LARGEST_RECIPE)
    except NotPlain as error:
        raise errors.BadOption(f"{path} is not a YAML recipe: {error}.") from None
    except UnicodeDecodeError as error:
        raise errors.BadOption(f"{path} is not a YAML recipe: byte {error.start} is not UTF-8.") from None
    if not isinstance(recipe, dict):
        raise errors.BadOption(f"{path} must be a YAML table of settings such as 'source: gpt2'.")
    return {
        _known_setting(path, name): _checked_setting(path, name, value)
        for name, value in recipe.items()
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
        expected = " or ".join(YAML_TYPES[kind] for kind in kinds)
        hint = " Put it in quotes." if str in kinds and not isinstance(value, (dict, list)) else ""
        raise errors.BadOption(f"{path}: {name} must be {expected}, got {value!r}.{hint}")
    for field in value if isinstance(value, dict) else ():
        if not isinstance(field, str):
            raise errors.BadOption(f"{path}: {name} has a field {field!r}; the names of fields are text.")
    return value
