"""The surroundings of the package's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from surroundings import loudness  # noqa: F401
