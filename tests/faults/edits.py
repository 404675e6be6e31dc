"""Seeded edits of bytes and of JSON."""

import copy
import json
import random
from typing import Any

# Values that parsers, shapes and config classes trip over.
NASTY = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        3,
        7,
        12,
        255,
        1 << 16,
        1 << 24,
        1 << 31,
        1 << 32,
        (1 << 63) - 1,
        1 << 63,
        -(1 << 63),
    ),
    *(1 << 70, -(1 << 70), 10**400, 0.0, -0.0, 0.5, -1.5, 1e-300, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", " ", "a", "0", "-1", "2.5", "nan", "gpt2", "bert", "F32", "I8", "bfloat16", "float16", "int8", "gelu"),
    *(
        "../x.safetensors",
        "/etc/passwd",
        "model.safetensors",
        "config.json",
        ".",
        "..",
        "a/b",
        "\0",
        "\x1b[31m",
        "\u202e",
    ),
    *("\ud800", "a" * 10_000, "__class__", "shape", [], {}, [[]], [0], [-1], [1 << 40, 1 << 40], [0, 0], ["a"], [None]),
    *({"a": 1}, {"": {}}, {"0": "a"}, list(range(100)), [[[[[[[[1]]]]]]]], {"a": {"b": {"c": [{"d": 1}]}}}),
)


def bytes_edited(data: bytes, generator: random.Random, head: int) -> bytes:
    """One to three edits of bytes, four in five of them in the first `head` bytes."""
    for _ in range(generator.randint(1, 3)):
        within = min(len(data), head if generator.random() < 0.8 else len(data))
        place = generator.randrange(within + 1)
        length = generator.choice((1, 1, 1, 2, 4, 8, 64))
        new = bytes(generator.choice((generator.randrange(256), 0, 255, 34, 44, 48, 57)) for _ in range(length))
        end = place + length
        data = generator.choice(
            (
                data[:place] + new + data[end:],  # replaced
                data[:place] + new + data[place:],  # put in
                data[:place] + data[end:],  # taken out
                data[:end] + data[place:],  # repeated
                data[:place],  # cut
            )
        )
    return data


def json_edited(value: Any, generator: random.Random, keys: tuple[str, ...] = ()) -> str:
    """The JSON text of an object after one to three edits of its members.

    Args:
        keys: names that may be put in.
    """
    edited = copy.deepcopy(value)
    for _ in range(generator.randint(1, 3)):
        holder = _any_holder(edited, generator)
        _edit(holder, generator, keys)
    return json.dumps(edited)


def _any_holder(value: Any, generator: random.Random) -> Any:
    """An object or list somewhere inside, any depth."""
    while True:
        members = value.values() if isinstance(value, dict) else value
        inner = [member for member in members if isinstance(member, (dict, list)) and member]
        if not inner or generator.random() < 0.4:
            return value
        value = generator.choice(inner)


def _edit(holder: Any, generator: random.Random, keys: tuple[str, ...]) -> None:
    nasty = copy.deepcopy(generator.choice(NASTY))
    names = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    if not names:
        return
    name = generator.choice(names)
    kind = generator.choice(("replace", "replace", "remove", "move", "add"))
    if kind == "replace":
        holder[name] = nasty
    elif kind == "remove":
        del holder[name]
    elif kind == "move":
        holder[generator.choice(names)] = copy.deepcopy(holder[name])
    elif isinstance(holder, dict):
        holder[generator.choice((*keys, "a", "", "\x1b", "a" * 2_000, "__class__"))] = nasty
    else:
        holder.append(nasty)
