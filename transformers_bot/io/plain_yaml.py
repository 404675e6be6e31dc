"""Reads plain data from untrusted YAML: the metadata of every card, and every recipe.

PyYAML's safe loader builds the data, after a pass over its events. Why that pass is needed: the safe loader follows
anchors, aliases and merge keys, with which a few hundred bytes can grow to gigabytes or contain themselves; it recurses
as deep as the text is nested; and of two values with one name it keeps the last. All of that is refused, with its line.
"""

import math
from collections.abc import Iterator
from typing import Any

import yaml

MAX_CHARACTERS = 256_000  # a card with the results of an embedding model on a whole benchmark has about half
MAX_VALUES = 50_000
MAX_DEPTH = 24
MAX_DIGITS = 40


class NotPlain(ValueError):
    """Text that is not YAML, or YAML beyond plain data; the message names the line."""


def read_yaml(text: str, first_line: int = 1, most: int = MAX_CHARACTERS) -> Any:
    r"""The tables, lists, texts, numbers and dates of a YAML document; None for an empty one.

    >>> read_yaml("license: mit\nlanguage: [en, de]\n")
    {'license': 'mit', 'language': ['en', 'de']}
    >>> read_yaml("a: &x [1]\nb: *x\n")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
        ...
    transformers_bot.io.plain_yaml.NotPlain: line 1 has an anchor (&x), which is not read: write the value itself

    Args:
        first_line: the number of the text's first line in its file, for messages.
        most: characters that the text may have.

    Raises:
        NotPlain: no YAML; anchors, aliases, merge keys or explicit types; a name twice, or one that is no text or
            number; too long, too many values, too deep.
    """
    if len(text) > most:
        raise NotPlain(f"it has {len(text):,} characters; at most {most:,} are read")
    try:
        _check(yaml.parse(text, Loader=LOADER))
        return yaml.load(text, Loader=LOADER)
    except _Refusal as error:
        raise NotPlain(f"line {error.line + first_line} {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + first_line}" if mark else ""
        raise NotPlain(f"{_one_line(error.problem or error.context or 'it cannot be read')}{where}") from None
    except yaml.YAMLError as error:
        raise NotPlain(_one_line(error)) from None
    except UnicodeEncodeError:
        raise NotPlain("it holds characters that are no text") from None


class _Refusal(Exception):
    """A part of the text that is not plain data: the reason, and its line, from 0."""

    def __init__(self, event: Any, reason: str) -> None:
        super().__init__(reason)
        self.line: int = event.start_mark.line


def _check(events: Iterator[Any]) -> None:
    """Refuse anything but plain data, and more of it than the limits allow."""
    documents = values = depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise _Refusal(event, f"has an alias (*{_shown(event.anchor)}), which is not read: write the value itself")
        if getattr(event, "anchor", None):
            raise _Refusal(event, f"has an anchor (&{_shown(event.anchor)}), which is not read: write the value itself")
        tag, scalar = getattr(event, "tag", None), isinstance(event, yaml.ScalarEvent)
        if tag:  # also a bare "!": it marks 12 as text, but the loader would make it a number
            raise _Refusal(event, f"has a type ({_shown(tag)}), which is not read: leave it out")
        if scalar and event.value == "<<" and event.implicit[0] and not event.style:
            raise _Refusal(event, "has a merge key (<<), which is not read: write the fields themselves")
        starts = isinstance(event, yaml.CollectionStartEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        values += scalar or starts
        depth += starts - isinstance(event, yaml.CollectionEndEvent)
        if documents > 1:
            raise _Refusal(event, "begins a second document")
        if depth > MAX_DEPTH:
            raise _Refusal(event, f"is nested deeper than {MAX_DEPTH} levels")
        if values > MAX_VALUES:
            raise _Refusal(event, f"is beyond the {MAX_VALUES:,} values that are read")


def plain_loader(base: Any) -> Any:
    """A safe loader that refuses duplicate names, and reads as text what only looks like a date or a number."""

    class PlainLoader(base):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise _Refusal(key, "has a list or a table as a name")
                name = self.construct_object(key)
                if name in names or name != name:  # NaN is not equal to itself, so it would never be a duplicate
                    raise _Refusal(key, f"has the name {_shown(name)} for the second time")
                names.add(name)
            fields: dict[Any, Any] = super().construct_mapping(node, deep)
            return fields

        def construct_if_valid(self, node: Any) -> Any:
            kind = node.tag.rpartition(":")[2]
            if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
                raise _Refusal(node, f"has a number of {len(node.value):,} characters")
            try:
                value = getattr(self, f"construct_yaml_{kind}")(node)
            except (ValueError, OverflowError, LookupError, AttributeError):
                return node.value  # such as 2024-02-31, or a single =
            # NaN is always the same object, so that reading a text twice gives equal data.
            return math.nan if value != value else value

    for kind in ("int", "float", "timestamp", "value"):
        PlainLoader.add_constructor(f"tag:yaml.org,2002:{kind}", PlainLoader.construct_if_valid)
    return PlainLoader


LOADER = plain_loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # some twenty times as fast where libyaml is there


def _shown(value: object) -> str:
    text = "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in str(value)[:60])
    return text if len(str(value)) <= 60 else f"{text}..."


def _one_line(error: object) -> str:
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in " ".join(str(error).split())[:300])
