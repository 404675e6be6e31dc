"""The tasks of a suite: a `Task` for every `task:` entry."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import images
import sentences
import text
from task import Task


def load(spec: dict[str, Any], data: Path, cache: Path) -> Task:
    """The task of a suite's entry; made once a process.

    Args:
        spec: `kind` ("causal", "masked", "sentences" or "images") and that kind's own fields.
        data: the research data's folder.
        cache: a folder for tokenised text.

    Raises:
        MissingData: the data set is not under `data`.
        KeyError, TypeError: a kind or field that does not exist.
    """
    return _load(tuple(sorted(spec.items())), data, cache)


@lru_cache(maxsize=8)
def _load(items: tuple[tuple[str, Any], ...], data: Path, cache: Path) -> Task:
    kinds = {"causal": text.causal, "masked": text.masked, "sentences": sentences.task, "images": images.task}
    spec = dict(items)
    return kinds[spec.pop("kind")](data, cache, **spec)
