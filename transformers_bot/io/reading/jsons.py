"""JSON of a checkpoint, with caps on size, values and depth before and after parsing."""

import json
from pathlib import Path
from typing import Any

from ...errors import BadCheckpoint
from .headers import LFS_POINTER
from .paths import opened, shown, shown_path

# The largest index on the hub has some 10 MB and 100,000 entries, the largest config some 3 MB.
MAX_BYTES = 16_000_000
MAX_VALUES = 500_000
MAX_DEPTH = 32


def read_json(path: Path, most: int = MAX_BYTES, values: int = MAX_VALUES) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Takes at most some 140 MB whatever the file holds: every value costs a comma or a bracket, and
    those are counted before any is built.

    Args:
        most: bytes that the file may have.
        values: names, numbers, lists and objects that it may hold.

    Raises:
        BadCheckpoint: too large, too deep, not JSON, not an object, or a name given twice.
    """
    found = read_value(path, most, values)
    if not isinstance(found, dict):
        raise BadCheckpoint(
            f"{shown_path(path)} holds a {type(found).__name__}, not an object with named fields. Download it again."
        )
    return found


def read_value(path: Path, most: int = MAX_BYTES, values: int = MAX_VALUES) -> Any:
    """Whatever a JSON file of a checkpoint holds; see `read_json`."""
    with opened(path) as (stream, size):
        if size > most:
            raise BadCheckpoint(
                f"{shown_path(path)} has {size:,} bytes; {most:,} is the most it can have. Download it again."
            )
        data = stream.read(most)
    if data.startswith(LFS_POINTER):
        raise BadCheckpoint(
            f"{shown_path(path)} is a Git LFS pointer. Run `git lfs pull` in its folder, or use the Hub id."
        )
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > values:
        raise BadCheckpoint(f"{shown_path(path)} holds more than {values:,} values. Download it again.")
    try:
        # str, not bytes: json would guess UTF-16 from bytes, where transformers reads UTF-8 only.
        found = json.loads(data.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else _reason(error)
        raise BadCheckpoint(f"{shown_path(path)} cannot be read as JSON: {what}. Download it again.") from None
    if _depth(found) > MAX_DEPTH:
        raise BadCheckpoint(f"{shown_path(path)} is nested deeper than {MAX_DEPTH} levels. Download it again.")
    return found


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} in line {error.lineno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} is given twice")
    return fields


def _depth(value: Any) -> int:
    """Levels of nesting; level by level, since recursion is what deep nesting breaks."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))]
        level = [member for members in inner for member in members]
    return depth
