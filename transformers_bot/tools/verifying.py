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
from ..errors import BadCheckpoint, BadOption
from ..hub.provenance import damage_of, is_local, recorded_path
from ..io.checkpoint import Source, check_files
from ..io.files import Folder, opened, shown, shown_path
from ..io.sentences import LIST
from ..planning.planner import Plan
from ..report.measure import Watch
from ..report.report import Report
from ..request.names import HUB, check_known
from ..request.request import Request, check_numbers, check_same_type, read_call, read_source, source_name
from ..request.source_class import with_likely_class
from ..run.opening import Resize, open_checked, open_resize
from ..run.writing import skeleton_of, tensors_of
from .differences import other_config, other_origin, other_record, other_report, report_of_result
from .resize_checkpoint import modules_of

if TYPE_CHECKING:
    from ..request.signatures import HubKeywords

RECORDED = ("method", "revision", "subfolder", "variant", "dtype", "ignore_mismatched_sizes", "nonfinite", "vocab_keep")
SWITCHES = ("strict",)
LISTED = 50  # the most differences in a notebook


@dataclass(frozen=True, repr=False)
class Verification:
    """The result of `verify`. Print it, or take `to_dict()`.

    Attributes:
        folder: the result.
        source: the source that it was recomputed from.
        compared: number of tensors that were recomputed.
        differing: a line for every difference.
        unknown: new heads of a model saved from memory, whose random seed is not recorded.
        changed: those of the differing tensors that have the right shape, but other values or another dtype.
        unchecked: recorded facts that cannot be checked, because the given source has another name.
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
        """Whether every tensor and fact that can be recomputed is the same, tensors bit by bit."""
        return not self.differing

    @property
    def trained(self) -> bool:
        """Whether more than half of the tensors have other values: the result was trained, or is another model."""
        return len(self.changed) > max(3, self.compared // 2)

    def __repr__(self) -> str:
        verdict, *others = str(self).splitlines()
        return lines(f"Verification: {verdict}", *([f"{len(others)} more lines: print() shows them"] if others else []))

    def _repr_html_(self) -> str:
        verdict, *others = str(self).splitlines()
        rows = [line.strip() for line in others[:LISTED]]
        rows += [f"and {len(others) - LISTED} more"] if len(others) > LISTED else []
        return page(verdict, [], [html_table([("difference",), *((line,) for line in rows)])] if rows else [])

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


def _trained(verification: Verification) -> str:
    """The text about a model that was trained since, without a line for every tensor."""
    names = set(verification.changed)
    others = [line for line in verification.differing if line.partition(":")[0] not in names]
    verdict = (
        f"{verification.folder} was trained or changed since it was made from {verification.source}: "
        f"{len(verification.changed)} of {verification.compared} tensors have other values."
    )
    return "\n".join([verdict, *(f"  {line}" for line in others)])


@progress.bar("verifying")
def verify(
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    *,
    allow_pickle: bool = False,
    **hub: "Unpack[HubKeywords]",
) -> Verification:
    """Check that a resized checkpoint is what its record says: resize the same source again and compare bit by bit.

    Compared are the weights, the whole record, config.json, the modules of a sentence-transformers folder, and the
    figures of transfer_report.json; not the card, the tokenizer files, and the warnings and file hashes (`written`)
    of the report. Changed, missing and added facts are reported as differences with both values. The versions of
    libraries may differ from those that the result was made with.

    Example:
        >>> print(verify("my-gpt2"))                                              # doctest: +SKIP
        my-gpt2: bit-equal (76 tensors computed again from gpt2)

    Args:
        folder: written by `resize_checkpoint`, or saved from `BoTModel.from_pretrained`.
        source: where the source is now, if it is not where the record says.
        allow_pickle: read pickled weights, as tensors only, if the result was made from such weights.
        hub: hub keywords that the record does not hold (`token`, `cache_dir`, ...).

    Raises:
        FileNotFoundError: there is no such folder, or a local source is not where it was.
        BadCheckpoint: the folder is no checkpoint, or its record is missing or damaged.
        BadOption: the result depends on data that is not stored with it (calibration, a fitted operator).
        What `BoTModel.from_pretrained` raises if the source cannot be opened.

    Memory: as `resize_checkpoint`; both checkpoints stay on disk.
    """
    place = source_name(folder)
    if not os.path.isdir(place):
        raise FileNotFoundError(f"there is no folder {place!r} to verify.")
    check_known("verify", hub, HUB)
    check_numbers(hub)
    config, described = read_source(place, {})
    record = _record(place, config)
    adapter = architectures.adapter_of(config)
    said = {**_keywords(record, hub), "allow_pickle": allow_pickle}
    checkpoint = check_files(place, {}, allow_pickle=allow_pickle, described=described)
    target_class = own_class(with_likely_class(adapter, config, checkpoint, _recorded_class(config, record)))
    given = None if source is None else source_name(source)
    name = given or _recorded_source(place, record)
    subfolder = _drop_subfolder(name, said)
    call = read_call("verify", name, said, lambda _: target_class)
    check_same_type(call.source, config)
    target = copy.deepcopy(config)
    del target.transformers_bot
    target.dtype = None
    resize = open_resize(Request.of(call, target=target))
    progress.expects(progress.resizing_seconds(resize.plan) + progress.finishing_seconds(resize.plan))
    stored = open_checked(target_class, place, config, {}, checkpoint)
    lines, unchecked = other_origin(record, resize, given, subfolder)
    lines += [
        *other_record(record, resize),
        *_lost_head(record, call.source, resize.plan),
        *_other_names(stored, resize),
        *_other_modules(place, record, resize),
    ]
    return _verification(place, record, described[1], resize, stored, lines, unchecked)


def _drop_subfolder(name: str, keywords: dict[str, Any]) -> str | None:
    """Remove `subfolder` from the keywords if `name` is that subfolder itself; return its name then, else None."""
    inside = keywords.get("subfolder") or ""
    if not os.path.isdir(name) or os.path.isdir(os.path.join(name, inside)):
        return None
    return str(keywords.pop("subfolder"))


def _verification(
    place: str,
    record: Mapping[str, Any],
    fields: Mapping[str, Any],
    resize: Resize,
    stored: Source,
    lines: list[str],
    unchecked: list[str],
) -> Verification:
    """Recompute every tensor and give the verdict.

    Args:
        fields: of the result's config.json.
        lines: differences so far.
        unchecked: facts that cannot be compared.
    """
    seed, report = record.get("seed_of_new_heads"), report_of_result(place)
    unknown = tuple(resize.plan.names("fresh")) if seed is None else ()
    skeleton = skeleton_of(resize, seed or 0)
    watch = Watch(resize.plan, resize.request.adapter) if isinstance(report, Report) else None
    compared, changed, state = 0, [], stored.model.state_dict()
    lines += other_config(fields, resize, stored.model, skeleton)
    differing = []
    with progress.part("computing again", progress.resizing_seconds(resize.plan)):
        for tensor, expected in tensors_of(resize, skeleton, watch):
            if tensor in {*unknown, *stored.missing}:
                continue
            compared += 1
            line = _difference(tensor, state[tensor], expected)
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
    """The class that config.json or else the record names; without either, the base model."""
    named_config, classes = copy.deepcopy(config), record.get("classes")
    if named_class(config) is None and isinstance(classes, list) and len(classes) == 2:
        named_config.architectures = classes[1:]
    return own_class(named_config)


def _recorded_source(place: str, record: Mapping[str, Any]) -> str:
    """The source that the record names; a missing local folder is an error, not a name on the Hub."""
    path = recorded_path(record)
    if path is not None and os.path.isdir(path):
        return path
    if is_local(record):
        reason = "which is not here" if path else "and does not say where that is"
        raise FileNotFoundError(
            f"{shown_path(place)} was made from the local folder {path or record['source']!r}, {reason}: pass "
            "source= with its path. The hashes in the record show whether that is the same one."
        )
    return str(record["source"])


def _keywords(record: Mapping[str, Any], hub: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of the call that made the result."""
    recorded = {key: record[key] for key in RECORDED if record.get(key) is not None}
    switches = {key: record[key] for key in SWITCHES if key in record}
    return {**recorded, **switches, "bot_config": record.get("options"), **hub}


def _lost_head(record: Mapping[str, Any], origin: PreTrainedConfig, plan: Plan) -> list[str]:
    """Lines on the head of a source that does not name its class, if the head was left out without a record.

    A record without `left_out` does not say whether the head was lost on purpose.
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
    """A line for every module file of sentence-transformers that differs from the recomputed one."""
    folder = Folder.at(place)
    if "modules" not in record and not folder.holds(LIST):
        return  # they were left out, or the result was saved from memory, without such files
    carried = modules_of(resize, {**resize.request.keywords.hub, "revision": resize.checkpoint.revision})
    files = carried.files if carried else {}
    if record.get("modules") != sorted(files) or (carried is None and "modules" in record):
        yield f"record modules: {shown(record.get('modules', 'missing'))}, recomputed {shown(sorted(files))}"
    for name, content in sorted(files.items()):
        expected = content.read_bytes() if isinstance(content, Path) else content()
        if not folder.holds(name):
            yield f"{name}: not in the result"
            continue
        with opened(folder.locate(name)) as (stream, size):
            if size != len(expected) or stream.read(size) != expected:
                yield f"{name}: not as it is made of the source's"


def _difference(name: str, stored: Tensor, expected: Tensor) -> str | None:
    if stored.dtype != expected.dtype or stored.shape != expected.shape:
        return f"{name}: {stored.dtype} {tuple(stored.shape)}, recomputed {expected.dtype} {tuple(expected.shape)}"
    if torch.equal(_bits(stored), _bits(expected)):  # bits, so that NaN equals NaN
        return None
    gap = (stored.float() - expected.float()).abs()
    return f"{name}: {int((gap != 0).sum())} of {gap.numel()} values differ, by up to {float(gap.max()):.3g}"


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)
