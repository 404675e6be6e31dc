"""What in a result's record, config.json and report is not as it comes out when the result is made again."""

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
from ..hub.provenance import COMMIT, NAMELESS, claimed_source, described, is_local, names_of
from ..io.checkpoint import stored_dtype
from ..io.config_files import read_json
from ..io.files import shown
from ..report.measure import Watch
from ..report.report import FILE as REPORT
from ..report.report import Report
from ..report.rows import make_report
from ..run.execute import provenance
from ..run.opening import Resize

ORIGIN = ("source", "local", "revision", "subfolder", "path", "claimed_source")
# Compared by rules of their own; the modules are with their files.
APART = (*ORIGIN, "files", "versions", "allow_pickle", "seed_of_new_heads", "modules")
# Of a report: sentences, what is compared as the record, and fingerprints of files that people may change.
UNCOMPARED = ("warnings", "provenance", "written")
MANY = 10  # lines on one report
CLOSE = 1e-3  # of measured shares, which are sums of float32 in another order elsewhere


def other_record(record: Mapping[str, Any], resize: Resize) -> Iterator[str]:
    """A line for every fact of a record that comes out otherwise, is missing, or is none.

    Where the source is has a function of its own, `other_origin`.
    """
    again = json.loads(json.dumps(provenance(resize)))
    compared = sorted({*record, *again} - {*APART})
    for key in compared:
        yield from _unequal("record", record, again, key)
    yield from _other_versions(record, again)
    yield from _other_files(record, resize)
    if "allow_pickle" not in record:
        yield f"record allow_pickle: missing, recomputed {again['allow_pickle']}"
    elif not record["allow_pickle"] and any(file.suffix == ".bin" for file in resize.checkpoint.files):
        yield f"record allow_pickle: {record['allow_pickle']}, recomputed True: the source's weights are pickled"
    seed = again.get("options", {}).get("seed", record.get("seed_of_new_heads"))
    if "seed_of_new_heads" in record and (seed is None or record["seed_of_new_heads"] != seed):
        yield f"record seed_of_new_heads: {record['seed_of_new_heads']}, recomputed {seed}"


def other_origin(
    record: Mapping[str, Any], resize: Resize, given: str | None, inside: str | None
) -> tuple[list[str], list[str]]:
    """What a record says of its source's place: lines that contradict it, and what cannot be compared.

    Args:
        given: where the caller says the source is: what was moved or copied may have another name.
        inside: the folder inside of the source that the record names, where the caller has named that itself.
    """
    subfolder, revision = resize.request.subfolder, resize.checkpoint.revision
    again = described(resize.request.name, subfolder, revision)
    lines = [f"record {key}: missing, recomputed {shown(again[key])}" for key in again if key not in record]
    lines += _other_claim(record, resize)
    lines += [] if _names_path(record) else [f"record path: {shown(record['path'])}, of another folder than the source"]
    facts = {key: record[key] for key in ("source", "local", "revision", "subfolder") if key in record}
    notes: list[str] = []
    if is_local(record):
        again["revision"] = None
        if inside is not None and Path(resize.request.name).name == Path(inside).name:  # named from within
            again["subfolder"] = inside
    elif not COMMIT.fullmatch(str(record.get("revision"))):
        facts.pop("revision", None)
        lines.append(
            f"record revision: {shown(record.get('revision'))}, which is no commit of {shown(facts['source'])}"
        )
    elsewhere = given is not None and is_local(record) != again["local"]
    for key, value in facts.items():
        moved = elsewhere or (key == "source" and _may_be_renamed(record, again, given))
        # Earlier records hold the path of a folder as its name.
        same = value == again[key] or (key == "source" and again[key] in names_of(str(value)))
        if not same:
            said = f"record {key}: {shown(value)}, recomputed {shown(again[key])}"
            (notes if moved and not (key == "local" and value is None) else lines).append(said)
    return lines, notes


def _may_be_renamed(record: Mapping[str, Any], again: Mapping[str, Any], given: str | None) -> bool:
    """Whether a source of another name may be the one that a record names."""
    if not again["local"]:
        return False
    # A folder has no name of its own where that is a user's.
    return given is not None or NAMELESS in (record["source"], again["source"])


def _names_path(record: Mapping[str, Any]) -> bool:
    """Whether the path that a record holds is of the source that it names."""
    if "path" not in record:
        return True
    path = record["path"]
    return isinstance(path, str) and record["source"] in (*names_of(path), NAMELESS)


def _other_claim(record: Mapping[str, Any], resize: Resize) -> list[str]:
    """The origin that the source's own config claims; of a source on the Hub it is not written down."""
    claim = claimed_source(resize.opened.model.config)
    expected = [claim] if is_local(record) else [claim, None]
    if "claimed_source" not in record:
        return [f"record claimed_source: missing, recomputed {shown(expected[-1])}"]
    found = record["claimed_source"]
    return [] if found in expected else [f"record claimed_source: {shown(found)}, recomputed {shown(claim)}"]


def _other_versions(record: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[str]:
    """Other versions may make a result again, so that they only have to be there and to be versions."""
    found = record.get("versions")
    if not isinstance(found, dict):
        yield f"record versions: {_said(record, 'versions')}, recomputed {shown(again['versions'])}"
        return
    for name in sorted({*found, *again["versions"]}):
        if name not in again["versions"]:
            yield f"record versions.{_word(name)}: {shown(found[name])}, recomputed without it"
        elif not _is_version(found.get(name)):
            yield f"record versions.{name}: {_said(found, name)}, which is no version; now {again['versions'][name]}"


def _is_version(text: Any) -> bool:
    try:
        Version(text)
    except (InvalidVersion, TypeError):
        return False
    return True


def _other_files(record: Mapping[str, Any], resize: Resize) -> Iterator[str]:
    """Files of the source that are not those that the record names.

    What `resize_checkpoint` wrote names all; a model that was in memory those whose hashes were known.
    """
    known = record.get("files")
    if not isinstance(known, dict):
        yield f"record files: {_said(record, 'files')}, recomputed {', '.join(sorted(resize.checkpoint.named))}"
        return
    whole = "seed_of_new_heads" in record
    now = resize.checkpoint.hashes(compute=whole or bool(known))
    for file, digest in known.items():
        if now.get(file) != digest:
            yield f"source file {_word(file)}: sha256 {_start(now.get(file))}, was {_start(digest)}"
    if whole:
        yield from (
            f"record files.{_word(file)}: missing, recomputed {now[file]}" for file in sorted({*now} - {*known})
        )


def _start(digest: str | None) -> str:
    return "none..." if digest is None else f"{_word(digest[:12])}..."


def other_config(place: str, resize: Resize, stored: PreTrainedModel, skeleton: PreTrainedModel) -> Iterator[str]:
    """A line for every field of config.json that is not as it would be written.

    A value that differs is in the record's `config` too and is named there; here are fields that are gone or added,
    or written as another type, and those on the class and the numbers' type.
    """
    found = read_json(Path(place, "config.json"))
    classes, dtype = [resize.request.model_class.__name__], _most(stored)
    if found.get("architectures") != classes:
        yield f"config architectures: {_said(found, 'architectures')}, recomputed {shown(classes)}"
    written = found.get("dtype", found.get("torch_dtype"))
    if written != dtype:
        yield f"config dtype: {'missing' if written is None else shown(written)}, the weights are {dtype}"
    version = found.get("transformers_version")
    if not _is_version(version):
        yield f"config transformers_version: {_said(found, 'transformers_version')}, which is no version"
    if version == installed:  # each version has fields of its own
        again = _written(skeleton.config)
        apart = {"transformers_bot", "architectures", "dtype", "torch_dtype", "transformers_version"}
        for key in sorted({*found, *again} - apart):
            yield from _unequal("config", found, again, key)


def _written(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a config as `save_pretrained` writes them."""
    fields: dict[str, Any] = json.loads(copy.deepcopy(config).to_json_string())
    return fields


def _most(model: PreTrainedModel) -> str:
    return str(stored_dtype(model)).removeprefix("torch.")


def report_of_result(place: str) -> Report | str | None:
    """The report beside a result: None where there is none, a sentence where it cannot be read."""
    if not Path(place, REPORT).exists():
        return None
    try:
        return Report.load(place)
    except BadCheckpoint as error:
        return f"{REPORT}: {brief(str(error))}"


def other_report(found: Report, record: Mapping[str, Any], resize: Resize, watch: Watch) -> list[str]:
    """A line for every fact of a report that comes out otherwise."""
    again, held = make_report(resize.plan, watch, dict(record)).to_dict(), found.to_dict()
    lines = [line for key in held if key not in UNCOMPARED for line in _apart(f"{REPORT} {key}", held[key], again[key])]
    more = [f"{REPORT}: {len(lines) - MANY} further facts are not as recomputed"] if len(lines) > MANY else []
    return [*lines[:MANY], *more, *_other_told(found.provenance, record)]


def _other_told(told: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """Facts on which a report and a record do not agree: both were written at once."""
    for key in sorted({*told, *record}):
        if _text(told.get(key, ...)) != _text(record.get(key, ...)):
            yield f"record {_word(key)}: {_said(record, key)}, in {REPORT} {_said(told, key)}"


def _apart(where: str, found: Any, again: Any) -> Iterator[str]:
    """The places in which two plain values differ; measured numbers may do so a little."""
    if isinstance(found, dict) and isinstance(again, dict):
        for key in dict.fromkeys((*found, *again)):
            yield from _apart(f"{where}.{_word(key)}", found.get(key, ...), again.get(key, ...))
    elif isinstance(found, list) and isinstance(again, list) and len(found) == len(again):
        for number, pair in enumerate(zip(found, again, strict=True)):
            yield from _apart(f"{where}[{number}]", *pair)
    elif not _is_close(found, again):
        one, other = ("missing" if value is ... else shown(value) for value in (found, again))
        yield f"{where}: {one}, recomputed {other}"


def _is_close(found: Any, again: Any) -> bool:
    if isinstance(found, float) and isinstance(again, (int, float)) and not isinstance(again, bool):
        return math.isclose(found, again, rel_tol=CLOSE, abs_tol=CLOSE * CLOSE)
    return _text(found) == _text(again)


def _unequal(where: str, found: Mapping[str, Any], again: Mapping[str, Any], key: str) -> Iterator[str]:
    """A line where a fact is not the same in both, of a table one for every entry that is not."""
    name = f"{where} {_word(key)}"
    if key not in again:
        yield f"{name}: {shown(found[key])}, recomputed without it"
    elif key in found and isinstance(found[key], dict) and isinstance(again[key], dict):
        for inner in sorted({*found[key], *again[key]}):
            one, other = _said(found[key], inner), _said(again[key], inner)
            if _text(found[key].get(inner, ...)) != _text(again[key].get(inner, ...)):
                yield f"{name}.{_word(inner)}: {one}, recomputed {other}"
    elif _text(found.get(key, ...)) != _text(again[key]):
        yield f"{name}: {_said(found, key)}, recomputed {shown(again[key])}"


def _text(value: Any) -> str:
    """A value as JSON, by which true is not 1; a missing one is `...`."""
    return "..." if value is ... else json.dumps(value, sort_keys=True)


def _said(table: Mapping[str, Any], key: str) -> str:
    return shown(table[key]) if key in table else "missing"


def _word(name: str) -> str:
    """A foreign name as it is where it can be shown, else quoted, escaped and cut."""
    return name if name.isprintable() and 0 < len(name) <= 80 else shown(name)
