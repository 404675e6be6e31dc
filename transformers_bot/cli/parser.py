"""The parser of every command: short usage errors, help that fits the terminal and keeps its examples whole."""

import argparse
import difflib
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import errors

USAGE = 2
MISSPELT = 0.85  # likeness of a word that is an option and no field of a config
WRAP: Any = {"break_on_hyphens": False, "break_long_words": False}


class Formatter(argparse.HelpFormatter):
    """Wraps paragraphs; lines that start with a space (examples) stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = (
            indent + line if line[:1].isspace() else "\n".join(textwrap.wrap(line, width - len(indent), **WRAP))
            for line in text.splitlines()
        )
        return "\n".join(line if line.startswith(indent) else textwrap.indent(line, indent) for line in lines)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # --no-overwrite is there to overrule a recipe; in the help it would only be in the way.
        shown = super()._format_action_invocation(action)
        return shown.split(",")[0] if isinstance(action, argparse.BooleanOptionalAction) else shown

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, **WRAP)


class Parser(argparse.ArgumentParser):
    """Says a usage error in one line, with what was probably meant."""

    def __init__(self, **keywords: object) -> None:
        # No abbreviations: --meth would mean something else once a second option starts so.
        super().__init__(**{"formatter_class": Formatter, "allow_abbrev": False, **keywords})  # type: ignore[arg-type]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; what is left over is refused here, where the command and its options are known."""
        found, left = super().parse_known_args(
            None if args is None else [self._spelled(word) for word in args], namespace
        )
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}{self._meant(left)}")
        return found, left

    def error(self, message: str) -> NoReturn:
        from .terminal import said

        self.exit(USAGE, f"{self.prog}: error: {said(' '.join(message.split()))} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = errors.suggest(value, known)
            what = f"invalid choice: {value!r}.{hint} Choose from {', '.join(known)}"
            raise argparse.ArgumentError(action, what)

    def _spelled(self, word: str) -> str:
        """An option that is spelled as in Python, `--max_shard_size`, as it is spelled here."""
        name, equals, value = word.partition("=")
        known = self._option_string_actions
        hyphens = name.replace("_", "-")
        return hyphens + equals + value if name.startswith("--") and name not in known and hyphens in known else word

    def _meant(self, left: Sequence[str]) -> str:
        """What to write in the place of the first option that does not exist."""
        place = next((place for place, word in enumerate(left) if re.match(r"--?\w", word)), None)
        options = [name for name in self._option_string_actions if name.startswith("--")]
        if place is None:
            return self._too_many(left)
        name, equals, value = left[place].partition("=")
        if not equals and place + 1 < len(left) and not left[place + 1].startswith("-"):
            value = left[place + 1]
        hint = errors.suggest(name, options)
        if difflib.get_close_matches(name, options, n=1, cutoff=MISSPELT):  # no library is imported to say so
            return f".{hint}"
        if "--set" in options and _is_field(field := name.lstrip("-").replace("-", "_")):
            return f". {field} is a field of the model's config.json: write --set {field}={value or 'VALUE'}"
        return f".{hint}" if hint else ""

    def _too_many(self, left: Sequence[str]) -> str:
        if "--set" in self._option_string_actions and all(re.match(r"\w+=", word) for word in left):
            return f". Write {' '.join(f'--set {word}' for word in left)}"
        return ""


def _is_field(name: str) -> bool:
    """Whether a config of any supported family has such a field."""
    from transformers import CONFIG_MAPPING  # slow, and only looked at after a mistake

    from ..architectures import ADAPTERS

    return any(
        name in vars(CONFIG_MAPPING[kind]()) or name in CONFIG_MAPPING[kind].attribute_map
        for kind in ADAPTERS
        if kind in CONFIG_MAPPING
    )
