"""Recomputes a resized checkpoint from its own record and compares bit by bit."""

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from .. import architectures
from ..architectures.inventory import named_class, own_class
from ..console import progress
from ..console.tables import html_table, lines, page
from ..errors import BadCheckpoint, BadKeyword, BadOption, suggest
from ..hub.provenance import damage_of, is_local, recorded_path
from ..io.checkpoint import Source, check_files
from ..io.files import Folder, opened, shown, shown_path
from ..io.sentences import LIST
from ..planning.planner import Plan
from ..report.measure import Watch
from ..report.report import Report
from ..request.request import (
    HUB,
    Request,
    check_numbers,
    check_same_type,
    init_keywords,
    read_config,
    sort_keywords,
    source_name,
)
from ..request.source_class import with_likely_class
from ..run.opening import Resize, open_checked, open_resize
from ..run.writing import skeleton_of, tensors_of
from .differences import other_config, other_origin, other_record, other_report, report_of_result
from .resize_checkpoint import modules_of

if TYPE_CHECKING:
    from ..request.signatures import HubKeywords

KEPT = ("method", "revision", "subfolder", "variant", "dtype", "ignore_mismatched_sizes", "nonfinite")
SWITCHES = ("strict",)
LISTED = 50  # the most differences in a page


@dataclass(frozen=True, repr=False)
class Verification:
    """What recomputing a result has shown. Print it, or take `to_dict()`.

    Attributes:
        folder: the result.
        source: what it was recomputed from.
        compared: tensors that were computed again.
        differing: a line for everything that is not as recomputed.
        unknown: new heads of a model saved from memory: nothing says how they were drawn.
        changed: tensors among the differing ones that have their shape, but other values or another dtype.
        unchecked: facts of the record that the given source cannot show, where it is called otherwise than recorded.
    """

    folder: str
    source: str
    compared: int
    differing: tuple[str, ...]
    unknown: tuple[str, ...]
    changed: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether every tensor and fact that can be computed again is the same, tensors bit by bit."""
        return not self.differing

    @property
    def trained(self) -> bool:
        """Whether more than half of the tensors have other values: it was trained, or it is another model."""
        return len(self.changed) > max(3, self.compared // 2)

    def __repr__(self) -> str:
        head, *others = str(self).splitlines()
        return lines(f"Verification: {head}", *([f"{len(others)} more lines: print() shows them"] if others else []))

    def _repr_html_(self) -> str:
        head, *others = str(self).splitlines()
        shown = [line.strip() for line in others[:LISTED]]
        shown += [f"and {len(others) - LISTED} more"] if len(others) > LISTED else []
        return page(head, [], [html_table([("difference",), *((line,) for line in shown)])] if shown else [])

    def __str__(self) -> str:
        if self.trained:
            return _trained(self)
        count = len(self.differing)
        verdict = "bit-equal" if self.equal else f"differs in {count} place{'s' * (count > 1)}"
        lines = [f"{self.folder}: {verdict} ({self.compared} tensors computed again from {self.source})"]
        lines += [f"  {line}" for line in self.differing]
        if self.unknown:
            lines.append(f"  not compared, drawn at random when made: {', '.join(self.unknown)}")
        lines += [f"  not compared, the source is named otherwise now: {line}" for line in self.unchecked]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "source": self.source,
            "equal": self.equal,
            "compared": self.compared,
            "differing": list(self.differing),
            "trained": self.trained,
            "unknown": list(self.unknown),
            "unchecked": list(self.unchecked),
        }


def _trained(one: Verification) -> str:
    """The verdict on a model that was trained since: no line for every tensor."""
    names = set(one.changed)
    others = [line for line in one.differing if line.partition(":")[0] not in names]
    head = (
        f"{one.folder} was trained or changed since it was made from {one.source}: {len(one.changed)} of "
        f"{one.compared} tensors have other values."
    )
    return "\n".join([head, *(f"  {line}" for line in others)])


@progress.bar("verifying")
def verify(
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    allow_pickle: bool = False,
    **hub: "Unpack[HubKeywords]",
) -> Verification:
    """Whether a resized checkpoint is what its record says: the same source resized again, bit by bit.

    Weights, the whole record and config.json, the modules of a sentence-transformers folder and what a
    transfer_report.json measured are compared; the card, tokenizer files, a report's warnings and its hashes of the
    result's files (`written`) are not. What is changed, missing or added is a difference, with both
    values. Versions of libraries may be others than when the result was made.

    Example:
        >>> print(verify("my-gpt2"))                                              # doctest: +SKIP
        my-gpt2: bit-equal (76 tensors computed again from gpt2)

    Args:
        folder: written by `resize_checkpoint`, or saved from `BoTModel.from_pretrained`.
        source: where the source is now, if not where the record says.
        allow_pickle: read pickled weights, as tensors only, where the result was made of such.
        hub: hub keywords that the record does not hold (`token`, `cache_dir`, ...).

    Raises:
        FileNotFoundError: no such folder, or a local source that is not where it was.
        BadCheckpoint: no checkpoint, or one without a record of ours, or with a damaged one.
        BadOption: a result that depends on data that it does not hold (calibration, a fitted operator).
        What `BoTModel.from_pretrained` raises where the source cannot be opened.

    Memory: as `resize_checkpoint`; both checkpoints stay on disk.
    """
    place = source_name(folder)
    if not os.path.isdir(place):
        raise FileNotFoundError(f"there is no folder {place!r} to verify.")
    check_numbers(hub)
    for name in set(hub) - set(HUB):
        raise BadKeyword(f"verify has no keyword {name!r}.{suggest(name, HUB)}")
    config = read_config(place, {})
    record = _record(place, config)
    adapter = architectures.get(config.model_type)
    said = {**_keywords(record, hub), "allow_pickle": allow_pickle}
    checked = check_files(place, {}, allow_pickle=allow_pickle)
    target_class = own_class(with_likely_class(adapter, config, checked, _recorded_class(config, record)))
    given = None if source is None else source_name(source)
    name = given or _recorded_source(place, record)
    inside = _leave_out_subfolder(name, said)
    keywords = sort_keywords(said, init_keywords(target_class))
    origin = read_config(name, keywords.hub)
    check_same_type(origin, config)
    wanted = copy.deepcopy(config)
    del wanted.transformers_bot
    wanted.dtype = None
    resize = open_resize(Request.of(name, origin, adapter, keywords, lambda _: target_class, target=wanted))
    progress.expects(progress.resizing_seconds(resize.plan) + progress.finishing_seconds(resize.plan))
    stored = open_checked(target_class, place, config, {}, checked)
    lines, unchecked = other_origin(record, resize, given, inside)
    lines += [
        *other_record(record, resize),
        *_lost_head(record, origin, resize.plan),
        *_other_names(stored, resize),
        *_other_modules(place, record, resize),
    ]
    return _compared(place, record, resize, stored, lines, unchecked)


def _leave_out_subfolder(name: str, keywords: dict[str, Any]) -> str | None:
    """Take the folder inside of a source from the keywords where that is what was given; its name if so."""
    inside = keywords.get("subfolder") or ""
    if not os.path.isdir(name) or os.path.isdir(os.path.join(name, inside)):
        return None
    return str(keywords.pop("subfolder"))


def _compared(
    place: str,
    record: Mapping[str, Any],
    resize: Resize,
    stored: Source,
    lines: list[str],
    unchecked: list[str],
) -> Verification:
    """The verdict, once every tensor was computed again.

    Args:
        lines: what differs already.
        unchecked: what cannot be told.
    """
    seed, report = record.get("seed_of_new_heads"), report_of_result(place)
    unknown = tuple(resize.plan.names("fresh")) if seed is None else ()
    skeleton = skeleton_of(resize, seed or 0)
    watch = Watch(resize.plan, resize.request.adapter) if isinstance(report, Report) else None
    compared, changed, state = 0, [], stored.model.state_dict()
    lines += other_config(place, resize, stored.model, skeleton)
    differing = []
    with progress.part("computing again", progress.resizing_seconds(resize.plan)):
        for tensor, again in tensors_of(resize, skeleton, watch):
            if tensor in {*unknown, *stored.missing}:
                continue
            compared += 1
            line = _difference(tensor, state[tensor], again)
            differing += [line] if line else []
            changed += [tensor] if line and state[tensor].shape == resize.plan.target.shapes[tensor] else []
    if watch is not None and isinstance(report, Report):
        lines += other_report(report, record, resize, watch)
    elif isinstance(report, str):
        lines.append(report)
    lines = list(dict.fromkeys((*lines, *differing)))
    return Verification(place, resize.request.name, compared, tuple(lines), unknown, tuple(changed), tuple(unchecked))


def _record(place: str, config: PreTrainedConfig) -> dict[str, Any]:
    record = getattr(config, "transformers_bot", None)
    if not isinstance(record, dict) or not {"source", "method"} & set(record):
        raise BadCheckpoint(
            f"{place} has no record of a resize (transformers_bot in its config.json): only what "
            "a resize wrote can be verified."
        )
    damage = damage_of(record, printable=True)
    if damage:
        raise BadCheckpoint(
            f"the record of {shown_path(place)} is damaged: {damage} (transformers_bot in its config.json). Take an "
            "undamaged copy, or resize the source again."
        )
    data = "calibration batches" if record.get("calibrated") else "the batches of fit()" if "fit" in record else None
    if data:
        raise BadOption(f"{place} was made with {data}, which are not stored with it: it cannot be recomputed.")
    return record


def _recorded_class(config: PreTrainedConfig, record: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class that a record names, for a result whose config.json does not; else the base model."""
    named, classes = copy.deepcopy(config), record.get("classes")
    if named_class(config) is None and isinstance(classes, list) and len(classes) == 2:
        named.architectures = classes[1:]
    return own_class(named)


def _recorded_source(place: str, record: Mapping[str, Any]) -> str:
    """The source that the record names; a folder that is not here is not looked for on the Hub."""
    where = recorded_path(record)
    if where is not None and os.path.isdir(where):
        return where
    if is_local(record):
        what = "which is not here" if where else "and does not say where that is"
        raise FileNotFoundError(
            f"{shown_path(place)} was made from the local folder {where or record['source']!r}, {what}: pass "
            "source= with its path. The hashes in the record show whether that is the same one."
        )
    return str(record["source"])


def _keywords(record: Mapping[str, Any], hub: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of the call that made the result."""
    known = {key: record[key] for key in KEPT if record.get(key) is not None}
    switches = {key: record[key] for key in SWITCHES if key in record}
    return {**known, **switches, "bot_config": record.get("options"), **hub}


def _lost_head(record: Mapping[str, Any], origin: PreTrainedConfig, plan: Plan) -> list[str]:
    """The head of a source that does not name its class, where no record says that it was to be left out.

    Version 1.0 took such a source for a base model.
    """
    if "left_out" in record or named_class(origin) is not None:
        return []
    return [f"{name}: in the source, and left out without a record of it" for name in plan.left_out]


def _other_names(stored: Source, resize: Resize) -> Iterator[str]:
    tied = set(resize.plan.names("tie"))
    yield from (f"{name}: not in the result" for name in sorted(stored.missing - tied))
    yield from (f"{name}: in the result, but of no tensor of the model" for name in stored.unexpected)
    state = stored.model.state_dict()
    for name, holder in resize.plan.target.ties.items():
        if name in tied and name not in stored.missing and not torch.equal(_bits(state[name]), _bits(state[holder])):
            yield f"{name}: tied to {holder}, but another tensor in the result"


def _other_modules(place: str, record: Mapping[str, Any], resize: Resize) -> Iterator[str]:
    """Modules of sentence-transformers that are not as the source's own come out at this size."""
    folder = Folder.at(place)
    if "modules" not in record and not folder.holds(LIST):
        return  # left out, or saved from memory, which carries no files
    carried = modules_of(resize, {**resize.request.keywords.hub, "revision": resize.checkpoint.revision})
    files = carried.files if carried else {}
    if record.get("modules") != sorted(files) or (carried is None and "modules" in record):
        yield f"record modules: {shown(record.get('modules', 'missing'))}, recomputed {shown(sorted(files))}"
    for name, content in sorted(files.items()):
        again = content.read_bytes() if isinstance(content, Path) else content()
        if not folder.holds(name):
            yield f"{name}: not in the result"
            continue
        with opened(folder.locate(name)) as (stream, size):
            if size != len(again) or stream.read(size) != again:
                yield f"{name}: not as it is made of the source's"


def _difference(name: str, stored: Tensor, again: Tensor) -> str | None:
    if stored.dtype != again.dtype or stored.shape != again.shape:
        return f"{name}: {stored.dtype} {tuple(stored.shape)}, recomputed {again.dtype} {tuple(again.shape)}"
    if torch.equal(_bits(stored), _bits(again)):  # bits, so that NaN equals NaN
        return None
    off = (stored.float() - again.float()).abs()
    return f"{name}: {int((off != 0).sum())} of {off.numel()} values differ, by up to {float(off.max()):.3g}"


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)
