"""Where a resized model comes from: its provenance, and the Hub repository behind it."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import PreTrainedConfig

from .errors import BadOption

COMMIT = re.compile(r"[0-9a-f]{40}")
# A folder of the Hub's own cache names the repository and the commit that it holds.
SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?$")
LONGEST_CHAIN = 8  # resized from a result that was resized from a result ...


def provenance_of(config: PreTrainedConfig) -> dict[str, Any]:
    """What made a model, from its config.

    Raises:
        BadOption: the config has none, or it is not in the form that resizing writes.
    """
    found = getattr(config, "transformers_bot", None)
    if found is None:
        raise BadOption(
            "this model has no provenance: its config has no field transformers_bot, so it was not resized with this "
            "package. Push it with its own push_to_hub."
        )
    sizes = [found.get(key) for key in ("source_sizes", "target_sizes")] if isinstance(found, dict) else []
    named = isinstance(found, dict) and isinstance(found.get("source"), str) and isinstance(found.get("method"), str)
    if not named or not all(isinstance(table, dict) for table in sizes):
        raise BadOption(
            "the provenance in this model's config (field transformers_bot) is damaged: source, method, source_sizes "
            "and target_sizes must be there. Resize the model again, or delete the field and push without it."
        )
    return dict(found)


def hub_source(provenance: Mapping[str, Any]) -> tuple[str, str] | None:
    """The repository and commit that a model was made from, None for a folder of unknown origin.

    Only what was loaded from the Hub has a commit; a relative folder may look like an id. Of a folder
    in the Hub's cache the path tells; a folder that holds a result of ours tells in its own config.
    """
    for _ in range(LONGEST_CHAIN):
        source, revision = str(provenance.get("source")), str(provenance.get("revision"))
        cached = SNAPSHOT.search(source)
        if cached and _is_repo_id(cached[1].replace("--", "/", 1)):
            return cached[1].replace("--", "/", 1), cached[2]
        if COMMIT.fullmatch(revision) and _is_repo_id(source):
            return source, revision
        before = _provenance_in(source)
        if before is None:
            return None
        provenance = before
    return None


def base_model(provenance: Mapping[str, Any]) -> str | None:
    """The Hub id for the card's `base_model`; a local path is never one."""
    found = hub_source(provenance)
    return found[0] if found else None


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _provenance_in(folder: str) -> dict[str, Any] | None:
    """The provenance of a result of ours in a local folder."""
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            found = json.load(file).get("transformers_bot")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # no folder, no JSON, no table: then nothing is known of where it came from
    return found if isinstance(found, dict) else None
