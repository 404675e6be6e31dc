"""Differences between the record, config.json and report of a result and those of the recomputed result."""

import copy
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import __version__ as installed

from ..console.text import brief
from ..errors import BadCheckpoint
from ..hub.provenance import COMMIT, claimed_source, is_local, names_of
from ..io.checkpoint import stored_dtype
from ..io.config_files import NAMELESS, described
from ..io.files import shown
from ..report.measure import Watch, make_report
from ..report.report import FILE as REPORT
from ..report.report import Report
from ..run.execute import provenance
from ..run.opening import Resize

ORIGIN = ("source", "local", "revision", "subfolder", "path", "claimed_source")
# Compared by functions of their own; the modules together with their files.
SEPARATE = (*ORIGIN, "files", "versions", "allow_pickle", "seed_of_new_heads", "modules")
# Fields of a report: sentences, the record (compared by itself), and fingerprints of files that people may change.
UNCOMPARED = ("warnings", "provenance", "written")
MANY = 10  # the most lines about one report
CLOSE = 1e-3  # tolerance of measured shares: float32 sums depend on the order of the addends


def other_record(record: Mapping[str, Any], resize: Resize) -> Iterator[str]:
    """A line for every fact of a record that is missing, unknown, or differs from the recomputed one.

    The facts on the place of the source are compared in `other_origin`.
    """
    expected = json.loads(json.dumps(provenance(resize)))
    keys = sorted({*record, *expected} - {*SEPARATE})
    for key in keys:
        yield from _unequal("record", record, expected, key)
    yield from _other_versions(record, expected)
    yield from _other_files(record, resize)
    if "allow_pickle" not in record:
        yield f"record allow_pickle: missing, recomputed {expected['allow_pickle']}"
    elif not record["allow_pickle"] and any(file.suffix == ".bin" for file in resize.checkpoint.files):
        yield f"record allow_pickle: {record['allow_pickle']}, recomputed True: the source's weights are pickled"
    seed = expected.get("options", {}).get("seed", record.get("seed_of_new_heads"))
    if "seed_of_new_heads" in record and (seed is None or record["seed_of_new_heads"] != seed):
        yield f"record seed_of_new_heads: {record['seed_of_new_heads']}, recomputed {seed}"


def other_origin(
    record: Mapping[str, Any], resize: Resize, given: str | None, inside: str | None
) -> tuple[list[str], list[str]]:
    """Compare the source's place with the record: lines on differences, and lines on facts that cannot be compared.

    Args:
        given: where the caller says the source is; a moved or copied source may have another name.
        inside: the subfolder that the record names, if the caller has given that folder itself.
    """
    subfolder, revision = resize.request.subfolder, resize.checkpoint.revision
    expected = described(resize.request.name, subfolder, revision)
    lines = [f"record {key}: missing, recomputed {shown(expected[key])}" for key in expected if key not in record]
    lines += _other_claim(record, resize)
    lines += [] if _names_path(record) else [f"record path: {shown(record['path'])}, of another folder than the source"]
    facts = {key: record[key] for key in ("source", "local", "revision", "subfolder") if key in record}
    notes: list[str] = []
    if is_local(record):
        expected["revision"] = None
        if (
            inside is not None and Path(resize.request.name).name == Path(inside).name
        ):  # the caller has given the subfolder itself
            expected["subfolder"] = inside
    elif not COMMIT.fullmatch(str(record.get("revision"))):
        facts.pop("revision", None)
        lines.append(
            f"record revision: {shown(record.get('revision'))}, which is no commit of {shown(facts['source'])}"
        )
    elsewhere = given is not None and is_local(record) != expected["local"]
    for key, value in facts.items():
        may_differ = elsewhere or (key == "source" and _may_be_renamed(record, expected, given))
        # A record may hold the path of a folder as its name.
        same = value == expected[key] or (key == "source" and expected[key] in names_of(str(value)))
        if not same:
            line = f"record {key}: {shown(value)}, recomputed {shown(expected[key])}"
            (notes if may_differ and not (key == "local" and value is None) else lines).append(line)
    return lines, notes


def _may_be_renamed(record: Mapping[str, Any], expected: Mapping[str, Any], given: str | None) -> bool:
    """Whether a source with another name can be the recorded one."""
    if not expected["local"]:
        return False
    # A user's home folder is recorded without a name.
    return given is not None or NAMELESS in (record["source"], expected["source"])


def _names_path(record: Mapping[str, Any]) -> bool:
    """Whether a recorded path belongs to the source that the record names."""
    if "path" not in record:
        return True
    path = record["path"]
    return isinstance(path, str) and record["source"] in (*names_of(path), NAMELESS)


def _other_claim(record: Mapping[str, Any], resize: Resize) -> list[str]:
    """A line if the recorded claim of origin is not that of the source's config; none is recorded for the Hub."""
    claim = claimed_source(resize.opened.model.config)
    expected = [claim] if is_local(record) else [claim, None]
    if "claimed_source" not in record:
        return [f"record claimed_source: missing, recomputed {shown(expected[-1])}"]
    recorded = record["claimed_source"]
    return [] if recorded in expected else [f"record claimed_source: {shown(recorded)}, recomputed {shown(claim)}"]


def _other_versions(record: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Lines on recorded versions that are missing or no versions; they may differ from the present ones."""
    versions = record.get("versions")
    if not isinstance(versions, dict):
        yield f"record versions: {_entry(record, 'versions')}, recomputed {shown(now['versions'])}"
        return
    for name in sorted({*versions, *now["versions"]}):
        if name not in now["versions"]:
            yield f"record versions.{_name(name)}: {shown(versions[name])}, recomputed without it"
        elif not _is_version(versions.get(name)):
            yield f"record versions.{name}: {_entry(versions, name)}, which is no version; now {now['versions'][name]}"


def _is_version(text: Any) -> bool:
    try:
        Version(text)
    except (InvalidVersion, TypeError):
        return False
    return True


def _other_files(record: Mapping[str, Any], resize: Resize) -> Iterator[str]:
    """A line for every file of the source that differs from the record.

    A record of `resize_checkpoint` names all files; that of a model in memory only those with known hashes.
    """
    recorded = record.get("files")
    if not isinstance(recorded, dict):
        yield f"record files: {_entry(record, 'files')}, recomputed {', '.join(sorted(resize.checkpoint.named))}"
        return
    names_all = "seed_of_new_heads" in record
    hashes = resize.checkpoint.hashes(compute=names_all or bool(recorded))
    for file, digest in recorded.items():
        if hashes.get(file) != digest:
            yield f"source file {_name(file)}: sha256 {_short(hashes.get(file))}, was {_short(digest)}"
    if names_all:
        yield from (
            f"record files.{_name(file)}: missing, recomputed {hashes[file]}"
            for file in sorted({*hashes} - {*recorded})
        )


def _short(digest: str | None) -> str:
    return "none..." if digest is None else f"{_name(digest[:12])}..."


def other_config(
    fields: Mapping[str, Any], resize: Resize, stored: PreTrainedModel, skeleton: PreTrainedModel
) -> Iterator[str]:
    """A line for every field of config.json that differs from the recomputed config.

    Fields of the record's `config` are compared there. This covers missing and added fields, other types, and the
    fields on the class and the dtype.

    Args:
        fields: of config.json, as it was read.
    """
    classes, dtype = [resize.request.model_class.__name__], _dtype_name(stored)
    if fields.get("architectures") != classes:
        yield f"config architectures: {_entry(fields, 'architectures')}, recomputed {shown(classes)}"
    recorded = fields.get("dtype", fields.get("torch_dtype"))
    if recorded != dtype:
        yield f"config dtype: {'missing' if recorded is None else shown(recorded)}, the weights are {dtype}"
    version = fields.get("transformers_version")
    if not _is_version(version):
        yield f"config transformers_version: {_entry(fields, 'transformers_version')}, which is no version"
    if version == installed:  # other versions write other fields
        expected = _written(skeleton.config)
        separate = {"transformers_bot", "architectures", "dtype", "torch_dtype", "transformers_version"}
        for key in sorted({*fields, *expected} - separate):
            yield from _unequal("config", fields, expected, key)


def _written(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a config as `save_pretrained` writes them."""
    fields: dict[str, Any] = json.loads(copy.deepcopy(config).to_json_string())
    return fields


def _dtype_name(model: PreTrainedModel) -> str:
    return str(stored_dtype(model)).removeprefix("torch.")


def report_of_result(place: str) -> Report | str | None:
    """The report beside a result; None if there is none, a sentence if it cannot be read."""
    if not Path(place, REPORT).exists():
        return None
    try:
        return Report.load(place)
    except BadCheckpoint as error:
        return f"{REPORT}: {brief(str(error))}"


def other_report(report: Report, record: Mapping[str, Any], resize: Resize, watch: Watch) -> list[str]:
    """A line for every fact of a report that differs from the recomputed one."""
    expected, stored = make_report(resize.plan, watch, dict(record)).to_dict(), report.to_dict()
    lines = [
        line
        for key in stored
        if key not in UNCOMPARED
        for line in _differences(f"{REPORT} {key}", stored[key], expected[key])
    ]
    rest = [f"{REPORT}: {len(lines) - MANY} further facts are not as recomputed"] if len(lines) > MANY else []
    return [*lines[:MANY], *rest, *_conflicts(report.provenance, record)]


def _conflicts(report_facts: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """A line for every fact on which report and record differ; both were written together."""
    for key in sorted({*report_facts, *record}):
        if _text(report_facts.get(key, ...)) != _text(record.get(key, ...)):
            yield f"record {_name(key)}: {_entry(record, key)}, in {REPORT} {_entry(report_facts, key)}"


def _differences(where: str, stored: Any, expected: Any) -> Iterator[str]:
    """A line for every entry in which two JSON values differ; measured numbers may differ a little."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        for key in dict.fromkeys((*stored, *expected)):
            yield from _differences(f"{where}.{_name(key)}", stored.get(key, ...), expected.get(key, ...))
    elif isinstance(stored, list) and isinstance(expected, list) and len(stored) == len(expected):
        for number, pair in enumerate(zip(stored, expected, strict=True)):
            yield from _differences(f"{where}[{number}]", *pair)
    elif not _is_close(stored, expected):
        left, right = ("missing" if value is ... else shown(value) for value in (stored, expected))
        yield f"{where}: {left}, recomputed {right}"


def _is_close(stored: Any, expected: Any) -> bool:
    if isinstance(stored, float) and isinstance(expected, (int, float)) and not isinstance(expected, bool):
        return math.isclose(stored, expected, rel_tol=CLOSE, abs_tol=CLOSE * CLOSE)
    return _text(stored) == _text(expected)


def _unequal(where: str, stored: Mapping[str, Any], expected: Mapping[str, Any], key: str) -> Iterator[str]:
    """A line if a fact differs; for a table, one for every entry that differs."""
    name = f"{where} {_name(key)}"
    if key not in expected:
        yield f"{name}: {shown(stored[key])}, recomputed without it"
    elif key in stored and isinstance(stored[key], dict) and isinstance(expected[key], dict):
        for inner in sorted({*stored[key], *expected[key]}):
            left, right = _entry(stored[key], inner), _entry(expected[key], inner)
            if _text(stored[key].get(inner, ...)) != _text(expected[key].get(inner, ...)):
                yield f"{name}.{_name(inner)}: {left}, recomputed {right}"
    elif _text(stored.get(key, ...)) != _text(expected[key]):
        yield f"{name}: {_entry(stored, key)}, recomputed {shown(expected[key])}"


def _text(value: Any) -> str:
    """A value as JSON, in which true is not 1; a missing value is `...`."""
    return "..." if value is ... else json.dumps(value, sort_keys=True)


def _entry(table: Mapping[str, Any], key: str) -> str:
    return shown(table[key]) if key in table else "missing"


def _name(name: str) -> str:
    """A name from a file as it is, or quoted, escaped and cut if it is long or not printable."""
    return name if name.isprintable() and 0 < len(name) <= 80 else shown(name)
