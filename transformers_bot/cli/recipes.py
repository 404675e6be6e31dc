"""Recipes: a YAML file with the settings of one resize, under the names that the Python API has for them."""

from pathlib import Path
from typing import Any

from .. import errors
from ..io.plain_yaml import NotPlain, read_yaml

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
WORDS = {str: "text", list: "a list of files", dict: "a table of fields", int: "a whole number", bool: "true or false"}
LARGEST = 64_000  # bytes; a recipe has a few dozen lines


def read(path: str) -> dict[str, Any]:
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
    file = Path(path)
    if not file.is_file():
        raise errors.BadOption(f"there is no recipe file {path!r}.")
    if file.stat().st_size > LARGEST:
        raise errors.BadOption(f"{path} has {file.stat().st_size:,} bytes; a recipe has at most {LARGEST:,}.")
    try:
        found = read_yaml(file.read_text(encoding="utf-8"), most=LARGEST)
    except NotPlain as error:
        raise errors.BadOption(f"{path} is not a YAML recipe: {error}.") from None
    except UnicodeDecodeError as error:
        raise errors.BadOption(f"{path} is not a YAML recipe: byte {error.start} is not UTF-8.") from None
    if not isinstance(found, dict):
        raise errors.BadOption(f"{path} must be a YAML table of settings such as 'source: gpt2'.")
    return {_known(path, name): _checked(path, name, value) for name, value in found.items() if value is not None}


def _known(path: str, name: Any) -> str:
    if name in SETTINGS:
        return str(name)
    hint = errors.suggest(name, SETTINGS) or f" It may have {', '.join(SETTINGS)}."
    raise errors.BadKeyword(f"{path} has an unknown setting {name!r}.{hint}")


def _checked(path: str, name: str, value: Any) -> Any:
    kinds = SETTINGS[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(WORDS[kind] for kind in kinds)
        hint = " Put it in quotes." if str in kinds and not isinstance(value, (dict, list)) else ""
        raise errors.BadOption(f"{path}: {name} must be {wanted}, got {value!r}.{hint}")
    for field in value if isinstance(value, dict) else ():
        if not isinstance(field, str):
            raise errors.BadOption(f"{path}: {name} has a field {field!r}; the names of fields are text.")
    return value
