"""The versions that pyproject.toml allows are those that the core tests were run with; see `tests/ranges`."""

import json
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RESULTS = json.loads((ROOT / "tests" / "ranges" / "results.json").read_text())


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.partition("+")[0].split(".")]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: f"{result['end']} {result['python']}")
def test_what_was_run_has_passed(result):
    assert result["failed"] == 0
    assert result["passed"] > 300


def test_the_lowest_allowed_versions_were_run():
    (lowest,) = [result for result in RESULTS if result["end"] == "lowest"]
    bounds = dict(requirement.split(",")[0].split(">=") for requirement in PROJECT["dependencies"])
    assert bounds
    for name, bound in bounds.items():
        assert numbers(lowest[name])[: len(numbers(bound))] == numbers(bound), name
    assert f">={'.'.join(lowest['python'].split('.')[:2])}" == PROJECT["requires-python"]


def test_the_newest_named_python_was_run():
    named = [label.rpartition(" ")[2] for label in PROJECT["classifiers"] if "Python :: 3." in label]
    newest = max(named, key=numbers)
    assert [result for result in RESULTS if numbers(result["python"])[:2] == numbers(newest)]
