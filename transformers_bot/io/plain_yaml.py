"""Plain data out of YAML that anybody may have written: the one reader of every card's metadata and every recipe.

What is written with an anchor, an alias, a merge key or a type of its own is refused, not followed: with them a few
hundred bytes grow to gigabytes, or hold themselves. Nothing here is recursive, and what is read is bounded before it
is built: bytes, values, levels.
"""

import math
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

MAX_CHARACTERS = 256_000  # a card with the results of an embedding model on a whole benchmark has about half
MAX_VALUES = 50_000
MAX_DEPTH = 24
MAX_DIGITS = 40
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # some twenty times as fast where libyaml is there
RESOLVER = yaml.resolver.Resolver()  # type: ignore[no-untyped-call]
SCALARS = yaml.constructor.SafeConstructor()  # type: ignore[no-untyped-call]
PLAIN = "tag:yaml.org,2002:"


class NotPlain(ValueError):
    """Text that is no YAML, or YAML that says more than plain data; the message names the line."""


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
        return _Reader(first_line).document(yaml.parse(text, Loader=LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + first_line}" if mark else ""
        raise NotPlain(f"{_one_line(error.problem or error.context or 'it cannot be read')}{where}") from None
    except yaml.YAMLError as error:
        raise NotPlain(_one_line(error)) from None
    except UnicodeEncodeError:
        raise NotPlain("it holds characters that are no text") from None


class _Reader:
    """Builds values out of the events of a parser, with a stack of its own instead of calls."""

    def __init__(self, first_line: int) -> None:
        self._first_line = first_line
        self._values = 0

    def document(self, events: Iterator[Any]) -> Any:
        root: list[Any] = []
        stack: list[list[Any] | _Table] = [root]
        documents = 0
        for event in events:
            self._refuse(event)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._fail(event, "begins a second document")
            elif isinstance(event, yaml.ScalarEvent):
                self._put(stack[-1], self._scalar(event), event)
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(stack) > MAX_DEPTH:
                    self._fail(event, f"is nested deeper than {MAX_DEPTH} levels")
                made: list[Any] | _Table = [] if isinstance(event, yaml.SequenceStartEvent) else _Table()
                self._put(stack[-1], made.fields if isinstance(made, _Table) else made, event)
                stack.append(made)
            elif isinstance(event, yaml.CollectionEndEvent):
                stack.pop()
        return root[0] if root else None

    def _put(self, place: "list[Any] | _Table", value: Any, event: Any) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            self._fail(event, f"is beyond the {MAX_VALUES:,} values that are read")
        if isinstance(place, list):
            place.append(value)
        elif place.has_name:
            place.fields[place.name], place.has_name = value, False
        else:
            if isinstance(value, (list, dict)):
                self._fail(event, "has a list or a table as a name")
            if value in place.fields or value != value:  # two NaN are two names
                self._fail(event, f"has the name {_shown(value)} for the second time")
            place.name, place.has_name = value, True

    def _refuse(self, event: Any) -> None:
        """What is no plain data."""
        if isinstance(event, yaml.AliasEvent):
            self._fail(event, f"has an alias (*{_shown(event.anchor)}), which is not read: write the value itself")
        if getattr(event, "anchor", None):
            self._fail(event, f"has an anchor (&{_shown(event.anchor)}), which is not read: write the value itself")
        tag = getattr(event, "tag", None)
        # "!" says of a text only that it is one.
        if tag and not (tag == "!" and isinstance(event, yaml.ScalarEvent)):
            self._fail(event, f"has a type ({_shown(tag)}), which is not read: leave it out")

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if not event.implicit[0] or event.style or event.tag == "!":
            return text
        tag = RESOLVER.resolve(yaml.ScalarNode, text, (True, False)).removeprefix(PLAIN)  # type: ignore[no-untyped-call]
        if tag == "merge":
            self._fail(event, "has a merge key (<<), which is not read: write the fields themselves")
        if tag not in ("null", "bool", "int", "float", "timestamp"):
            return text
        if tag in ("int", "float") and len(text) > MAX_DIGITS:
            self._fail(event, f"has a number of {len(text):,} characters")
        node = yaml.ScalarNode(f"{PLAIN}{tag}", text)
        try:
            value = getattr(SCALARS, f"construct_yaml_{tag}")(node)
        except (ValueError, OverflowError, LookupError):
            return text  # looks like a date or a number and is none, as 2024-02-31
        return math.nan if value != value else value  # one object, so that what is read twice is equal

    def _fail(self, event: Any, what: str) -> NoReturn:
        raise NotPlain(f"line {event.start_mark.line + self._first_line} {what}")


class _Table:
    """A table that is being read: its fields so far, and the name that waits for its value."""

    def __init__(self) -> None:
        self.fields: dict[Any, Any] = {}
        self.name: Any = None
        self.has_name = False


def _shown(value: object) -> str:
    text = "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in str(value)[:60])
    return text if len(str(value)) <= 60 else f"{text}..."


def _one_line(error: object) -> str:
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in " ".join(str(error).split())[:300])
