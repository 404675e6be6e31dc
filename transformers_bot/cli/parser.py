"""The parser of every command: short usage errors, and help that fits the terminal without breaking examples.

It is argparse's; only its formatter and its errors are changed. argparse either wraps everything or nothing, and its
error lists every option of the command instead of the one that is probably meant. click or typer would be one more
dependency, and fix the options of a command beforehand; here those of a user's own method are added when its file is
read.
"""

import argparse
import difflib
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import errors

USAGE = 2
MISSPELT = 0.85  # similarity from which a word is taken for a misspelt option, not for a config field
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
        # --no-overwrite exists to overrule a recipe; the help is clearer without it.
        shown = super()._format_action_invocation(action)
        return shown.split(",")[0] if isinstance(action, argparse.BooleanOptionalAction) else shown

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, **WRAP)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a usage error in one line, with a suggestion."""

    def __init__(self, **keywords: object) -> None:
        # No abbreviations: --meth would become ambiguous if another option began so.
        super().__init__(**{"formatter_class": Formatter, "allow_abbrev": False, **keywords})  # type: ignore[arg-type]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but refuse unknown arguments here, where the options of the command are known."""
        known, rest = super().parse_known_args(
            None if args is None else [self._spelled(argument) for argument in args], namespace
        )
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._suggestion(rest)}")
        return known, rest

    def error(self, message: str) -> NoReturn:
        from .terminal import said

        self.exit(USAGE, f"{self.prog}: error: {said(' '.join(message.split()))} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = errors.suggest(value, choices)
            message = f"invalid choice: {value!r}.{hint} Choose from {', '.join(choices)}"
            raise argparse.ArgumentError(action, message)

    def _spelled(self, word: str) -> str:
        """The argument; an option that is spelled as in Python, `--max_shard_size`, gets hyphens."""
        name, equals, value = word.partition("=")
        options = self._option_string_actions
        hyphens = name.replace("_", "-")
        return (
            hyphens + equals + value if name.startswith("--") and name not in options and hyphens in options else word
        )

    def _suggestion(self, rest: Sequence[str]) -> str:
        """A sentence that says what to write instead of the first unknown option."""
        place = next((place for place, word in enumerate(rest) if re.match(r"--?\w", word)), None)
        options = [name for name in self._option_string_actions if name.startswith("--")]
        if place is None:
            return self._too_many(rest)
        name, equals, value = rest[place].partition("=")
        if not equals and place + 1 < len(rest) and not rest[place + 1].startswith("-"):
            value = rest[place + 1]
        hint = errors.suggest(name, options)
        if difflib.get_close_matches(name, options, n=1, cutoff=MISSPELT):  # decided without importing a library
            return f".{hint}"
        if "--set" in options and _is_field(field := name.lstrip("-").replace("-", "_")):
            return f". {field} is a field of the model's config.json: write --set {field}={value or 'VALUE'}"
        return f".{hint}" if hint else ""

    def _too_many(self, rest: Sequence[str]) -> str:
        if "--set" in self._option_string_actions and all(re.match(r"\w+=", word) for word in rest):
            return f". Write {' '.join(f'--set {word}' for word in rest)}"
        return ""


def _is_field(name: str) -> bool:
    """Whether a config of any supported family has this field."""
    from transformers import CONFIG_MAPPING  # slow to import, and needed only after a mistake

    from ..architectures import ADAPTERS

    return any(
        name in vars(CONFIG_MAPPING[kind]()) or name in CONFIG_MAPPING[kind].attribute_map
        for kind in ADAPTERS
        if kind in CONFIG_MAPPING
    )
