"""The parser of every command: short usage errors, help that fits the terminal and keeps its examples whole."""

import argparse
import textwrap
from typing import Any, NoReturn

USAGE = 2
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
    """Says a usage error in one line."""

    def __init__(self, **keywords: object) -> None:
        # No abbreviations: --meth would mean something else once a second option starts so.
        super().__init__(**{"formatter_class": Formatter, "allow_abbrev": False, **keywords})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")
