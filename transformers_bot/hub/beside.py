"""Reads what stands beside a model's weights, in a folder or on the Hub: a source's card, a result's report."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from transformers import PreTrainedModel
from transformers.utils import cached_file

from ..compat import NO_ERROR
from ..console.progress import logger
from ..errors import BadCheckpoint
from ..io.plain_yaml import NotPlain, read_yaml
from ..io.reading import opened
from ..report.report import FILE as REPORT_FILE
from ..report.report import Report
from .card import HOME
from .origin import Place, hub_source

LARGEST_CARD = 256_000  # bytes read of a source's card; its metadata stands first
KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")
# The HTTP client's own base error, of whichever client this huggingface_hub is built on (httpx, httpx2).
CONNECTION: type[Exception] = HfHubHTTPError.__mro__[1]
HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")


def source_licence(name: str, keywords: Mapping[str, Any]) -> str | None:
    """The licence that a source's own card names, None where there is no card, no licence, or no way to it."""
    found = source_card(name, keywords).get("license")
    return found if isinstance(found, str) else None


def source_card(name: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """What a resized model's card takes over from its source's: licence, languages, pipeline tag.

    Args:
        name: hub id or folder.
        keywords: those of the Hub: revision, token, cache_dir, local_files_only, force_download, proxies.

    Absence is never an error: no card, no access, no network, or metadata that cannot be read give an
    empty dict. Only the beginning of the file is read, as plain YAML.
    """
    path = _found(name, "README.md", keywords)
    if path is None:
        return {}
    try:
        with opened(Path(path)) as (stream, _):
            text = stream.read(LARGEST_CARD).decode("utf-8-sig", "replace")
    except BadCheckpoint as error:
        logger.info("nothing is taken over from the model card of %r: %s", name, error)
        return {}
    block = REGEX_YAML_BLOCK.match(text)
    try:
        data = read_yaml(block[2]) if block else None
    except NotPlain as error:
        logger.info("nothing is taken over from the model card of %r: its metadata cannot be read, %s", name, error)
        return {}
    found = {key: data[key] for key in KEPT if _is_plain(data.get(key))} if isinstance(data, dict) else {}
    link = found.get("license_link", "")
    if "://" not in link:  # a file of the source's repository or folder, not of the result's
        found.pop("license_link", None)
        if link and not os.path.isdir(name):
            found["license_link"] = f"{HOME}/{name}/blob/{keywords.get('revision') or 'main'}/{link}"
    return found


def card_of_source(provenance: Mapping[str, Any], place: Place | None, token: bool | str | None) -> dict[str, Any]:
    """The `source_card` of a model's source, if that can be reached.

    Args:
        provenance: names a source on the Hub; a folder that it names is not opened.
        place: the source that a user named in this process.
    """
    if place is not None and os.path.isdir(place.source):
        return source_card(place.source, {})
    found = hub_source(provenance)
    return source_card(found[0], {"revision": found[1], "token": token}) if found else {}


def report_of(model: PreTrainedModel, provenance: Mapping[str, Any], token: bool | str | None = None) -> Report | None:
    """The report that came with a model: in memory, or saved beside the weights it was loaded from."""
    held = getattr(model, "transfer_report", None)
    if isinstance(held, Report):
        return held
    place = str(model.config.name_or_path or "")
    path = _found(place, REPORT_FILE, {"token": token}) if place else None
    if path is None:
        return None
    try:
        found = Report.load(os.path.dirname(path))
    except BadCheckpoint as error:
        logger.warning("the card goes without a report: %s", error)
        return None
    sizes = {role: after for role, (_, after) in found.sizes.items()}
    if any(sizes.get(role, length) != length for role, length in provenance["target_sizes"].items()):
        logger.warning("the card goes without a report: %s in %s is of a model of other sizes", REPORT_FILE, place)
        return None
    return found


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, list) and len(value) <= 300 else [value]
    return all(isinstance(item, str) and 0 < len(item) <= 500 and item.isprintable() for item in items)


def _found(name: str, filename: str, keywords: Mapping[str, Any]) -> str | None:
    """The path of a file of a folder or repository, None where there is none or no way to it."""
    if os.path.isdir(name):
        path = os.path.join(name, filename)
        return path if os.path.isfile(path) else None
    try:
        path = cached_file(
            name,
            filename,
            **{key: keywords[key] for key in HUB if keywords.get(key) is not None},
            **NO_ERROR,
        )
    except (OSError, CONNECTION) as error:  # no such repository, no connection: loading says so itself
        logger.info("%s of %r cannot be read: %s", filename, name, error)
        return None
    return str(path) if path is not None else None
