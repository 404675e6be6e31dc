"""Whether a folder is still what this package wrote: fingerprints of its files, kept in the transfer report.

A fingerprint is SHA-256 over a file's size and its bytes; of a large file of weights over its header and some
stretches of every tensor, so that it costs milliseconds whatever the size. Training changes every tensor that it
trains, and a stretch of each is looked at; one value set by hand in a large tensor can be missed.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .checkpoint.headers import MAX_HEADER
from .checkpoint.jsons import read_json
from .checkpoint.paths import opened
from .errors import BoTError

REPORT = "transfer_report.json"
# Not looked at: the report itself, the card (what people write into it is kept), and what systems leave.
PASSED = (REPORT, "README.md", ".gitattributes", ".DS_Store")
WHOLE = 1 << 20  # bytes up to which a file is hashed as a whole
STRETCHES, STRETCH = 4, 512  # of every tensor, and bytes in each


def fingerprints(folder: Path) -> dict[str, str]:
    """Name -> fingerprint of every file of a saved model.

    Raises:
        BoTError: a file that cannot be read.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return {name: fingerprint(folder / name) for name in names if name not in PASSED}


def fingerprint(path: Path) -> str:
    """The fingerprint of one file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with opened(path) as (stream, size):
        digest.update(size.to_bytes(8, "little"))
        small = size <= WHOLE or path.suffix != ".safetensors"
        for start, end in [(0, size)] if small else _spans(stream):
            stream.seek(start)
            _update(digest, stream, end - start)
    return digest.hexdigest()


def why_foreign(folder: Path) -> str | None:
    """Why a folder is not, or no longer, what `resize_checkpoint` wrote; None where it is."""
    if not (folder / REPORT).is_file():
        return f"it has no {REPORT}"
    try:
        known = read_json(folder / REPORT).get("written")
        if not isinstance(known, dict) or not known:
            return f"its {REPORT} does not say which files were written"
        found = fingerprints(folder)
    except (BoTError, OSError) as error:
        return str(error).rstrip(".")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "its weights are no safetensors files"
    for name in sorted({*known, *found}):
        if known.get(name) != found.get(name):
            what = "was added" if name not in known else "is gone" if name not in found else "was changed"
            return f"{name} {what} since"
    return None


def _spans(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """The parts of a file of weights that are looked at: its header, and stretches of every tensor."""
    length = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(min(length, MAX_HEADER)))
    yield 0, 8 + length
    for entry in (entry for name, entry in header.items() if name != "__metadata__"):
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if end - begin <= STRETCHES * STRETCH:
            yield begin, end
            continue
        step = (end - begin - STRETCH) // (STRETCHES - 1)
        yield from ((at, at + STRETCH) for at in range(begin, begin + STRETCHES * step, step))


def _update(digest: "hashlib._Hash", stream: BinaryIO, count: int) -> None:
    while count > 0 and (piece := stream.read(min(count, WHOLE))):
        digest.update(piece)
        count -= len(piece)


__all__ = ["fingerprint", "fingerprints", "why_foreign"]
