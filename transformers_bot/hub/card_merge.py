"""Updates a model card in place: our section and our metadata change, everything a person wrote stays."""

import hashlib
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

from ..console.progress import logger
from ..errors import SaveError
from ..io.plain_yaml import NotPlain, read_yaml

BEGIN = "<!-- transformers_bot: begin -->"
MARKER = re.compile(r"^<!-- transformers_bot: (begin|end)(?: ([0-9a-f]{16}))? -->[ \t]*(?=\r?$)", re.MULTILINE)
UNITED = ("tags", "base_model")  # lists to which ours are added; every other field of a person's stays as it is


def in_markers(text: str) -> str:
    """Our section between its two comments; the last one says by a hash whether a person has edited it since."""
    safe = MARKER.sub(lambda found: found[0].replace("<", "&lt;"), text.strip("\n"))
    return f"{BEGIN}\n{safe}\n<!-- transformers_bot: end {_digest(safe)} -->"


def update_card(existing: str, fresh: str) -> str:
    """An existing card with the section and the metadata of a freshly made one.

    Of our section only what we wrote is replaced. A section that somebody edited, or that has lost a
    marker, stays as text, and the new one goes to the end. Metadata that is there stays as it is
    written, comments included; what is missing is added, tags and base models are united. Updating
    twice gives what updating once gives.

    Raises:
        SaveError: metadata that is no YAML table; the Hub would refuse such a card as well.
    """
    if not existing.strip():
        return fresh
    bom = "\ufeff" if existing.startswith("\ufeff") else ""
    newline = "\r\n" if 2 * existing.count("\r\n") > existing.count("\n") else "\n"  # what most lines end with
    _, ours, fresh_body = split_card(fresh)
    before, header, body = split_card(existing.removeprefix(bom))
    begin, end = _section(fresh_body)
    section = fresh_body[begin:end].replace("\n", newline)
    data = read_metadata(ours)
    if header is None:
        head = f"---{newline}{_dumped(data, newline)}{newline}---{newline}{newline}"
    else:
        opening, closing = before
        head = f"{opening}{_merged(header, data, newline, opening)}{closing}"
        head += "" if head.endswith("\n") else newline
    return bom + head + _with_section(body, section, newline)


def split_card(card: str) -> tuple[tuple[str, str], str | None, str]:
    """The lines around the metadata, the metadata (None where a card has none), and the text after it."""
    found = REGEX_YAML_BLOCK.match(card)
    if not found:
        return ("", ""), None, card
    return (found[1], found[3]), found[2], card[found.end() :]


def read_metadata(header: str | None, before: str = "---\n") -> dict[str, Any]:
    """The metadata of a card as a table.

    Args:
        before: what stands before it in the card, so that a message names the line.

    Raises:
        SaveError: it is no YAML, no table, beyond all measure, or written with anchors, aliases, merge keys or types
            of its own, which could not be kept.
    """
    try:
        found = read_yaml(header or "", first_line=before.count("\n") + 1)
    except NotPlain as error:
        raise SaveError(
            f"the metadata of the model card (README.md, between the lines ---) cannot be read as plain YAML: {error}. "
            "Mend it there first; nothing was changed."
        ) from None
    if found is not None and not isinstance(found, dict):
        raise SaveError(
            "the metadata of the model card (README.md, between the lines ---) is not a table of fields such as "
            "'license: mit'. Mend it there first; nothing was changed."
        )
    return found or {}


def _digest(section: str) -> str:
    """Of the text without line ends, which editors and git change on their own."""
    lines = "\n".join(line.rstrip() for line in section.strip().splitlines())
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _section(body: str) -> tuple[int, int]:
    """Where the section that may be replaced begins and ends; both are 0 where there is none."""
    marks = list(MARKER.finditer(body))
    for first, last in pairwise(marks):
        if (first[1], last[1]) != ("begin", "end"):
            continue
        if last[2] in (None, _digest(body[first.end() : last.start()])):
            return first.start(), last.end()
    return 0, 0


def _with_section(body: str, section: str, newline: str) -> str:
    begin, end = _section(body)
    if end:
        return body[:begin] + section + body[end:]
    if MARKER.search(body):
        logger.warning(
            "the model card's section of transformers_bot was edited or has lost a marker: it stays, and the new one "
            "goes to the end of the card."
        )
    gap = "" if not body else newline if body.endswith(("\n", "\r")) else newline * 2
    return f"{body}{gap}{section}{newline}"


def _merged(header: str, ours: Mapping[str, Any], newline: str, before: str) -> str:
    """The metadata's text with ours added, as it is written where that can be done."""
    theirs = read_metadata(header, before)
    wanted, text, missing = dict(theirs), header, {}
    for name, value in ours.items():
        known = theirs.get(name)
        if name not in theirs:
            wanted[name] = missing[name] = value
        elif known is None or name in UNITED:
            wanted[name] = _united(known, value)
            if wanted[name] != known:
                text = _with_value(text, name, wanted[name], newline)
    if missing:
        text = (text.rstrip("\r\n") + newline if text.strip() else "") + _dumped(missing, newline)
    if _reads_as(text, wanted):
        return text
    logger.warning("the model card's metadata is written in a way that cannot be added to; it is written anew.")
    return _dumped(wanted, newline)


def _reads_as(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return read_metadata(text) == wanted
    except SaveError:
        return False


def _united(theirs: Any, ours: Any) -> Any:
    """Theirs, then what only ours has; one name stays a name."""
    lists = [value if isinstance(value, list) else [] if value is None else [value] for value in (theirs, ours)]
    added = [value for value in lists[1] if value not in lists[0]]
    if theirs is None:
        return ours
    return [*lists[0], *added] if added else theirs


def _with_value(text: str, name: str, value: Any, newline: str) -> str:
    """The metadata's text with another value of one field: new list items go after the last one, as it is written."""
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    node = [found for key, found in root.value if key.value == name][-1]
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        at = node.value[-1].end_mark.index
        line_end = re.compile(r"\r?$", re.MULTILINE).search(text, at)
        at = line_end.start() if line_end else len(text)
        items = [f"{' ' * node.start_mark.column}- {_inline(item)}" for item in value[len(node.value) :]]
        return text[:at] + newline + newline.join(items) + text[at:]
    start, end = node.start_mark.index, node.end_mark.index
    return f"{text[:start]}{'' if text[:start].endswith(' ') else ' '}{_inline(value)}{text[end:]}"


def _inline(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=2**20, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _dumped(data: Mapping[str, Any], newline: str) -> str:
    return str(yaml_dump(dict(data), sort_keys=False, line_break=newline)).strip()
