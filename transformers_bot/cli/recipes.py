"""Recipes: a YAML file with the settings of one resize, under the names that the Python API has for them."""

from pathlib import Path
from typing import Any

import yaml

from .. import errors

# setting -> the YAML types it may have
SETTINGS: dict[str, tuple[type, ...]] = {
    "source": (str,),
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
    "strict": (bool,),
    "overwrite": (bool,),
    "tokenizer": (bool,),
    "modules": (bool,),
}
WORDS = {str: "text", dict: "a table of fields", int: "a whole number", bool: "true or false"}
ODD = "a value or a key of it is not text, a number, true, false, a list or a table."
LARGEST = 64_000  # bytes; a recipe has a few dozen lines


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data only: no aliases, which can blow a small file up, and no key twice, of which one would be lost."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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
        found = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, LookupError) as error:
        # The last four come out of constructors: `!!timestamp x`, `!!bool x`, a list as a key.
        what = " ".join(str(error).split()) if isinstance(error, (yaml.YAMLError, UnicodeDecodeError)) else ODD
        raise errors.BadOption(f"{path} is not a YAML recipe: {what}") from None
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
    return value
