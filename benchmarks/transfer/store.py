"""The results of a suite in one JSON file, written whole after every run."""

import json
import sys
from pathlib import Path
from typing import Any

from suite import Run, Suite, possible_runs

import transformers_bot

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the shared modules are in the folder above
from json_file import write_json

DONE, REFUSED, FAILED = "done", "refused", "failed"


class Store:
    """Outcomes by the key of their run; a finished run is not repeated.

    Attributes:
        data: `suite` (all settings as they were run), `machine`, `versions`, `date` and `runs`.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.path, self.device = path, device
        self.data: dict[str, Any] = {"suite": {}, "runs": {}}
        if path.exists():
            self.data = json.loads(path.read_text(encoding="utf-8"))

    def begin(self, suite: Suite, facts: dict[str, Any]) -> None:
        """Store the suite that will be run; drop outcomes of entries that are no longer in it."""
        wanted = {run.key for run in possible_runs(suite)}
        kept = {key: outcome for key, outcome in self.data["runs"].items() if key in wanted}
        self.data = {"suite": suite.to_dict(), **facts, "runs": kept}
        self.write()

    def outcome(self, run: Run) -> dict[str, Any] | None:
        """The stored outcome of a run; None if it has not been run."""
        return self.data["runs"].get(run.key)

    def finished(self, run: Run) -> bool:
        """Whether a run need not be run again; refusals and failures are tried again, because they may be mended.

        Results of another version of the package or another device are made again, too.
        """
        outcome = self.outcome(run)
        if outcome is None or outcome["status"] != DONE:
            return False
        here = {"version": transformers_bot.__version__, "device": self.device}
        return all(outcome.get(name, value) == value for name, value in here.items())

    def add(self, run: Run, outcome: dict[str, Any]) -> None:
        self.data["runs"][run.key] = {"run": str(run), **outcome}
        self.write()

    def write(self) -> None:
        write_json(self.path, self.data)


def final(outcome: dict[str, Any], metric: str) -> float:
    """The metric at a run's last evaluation."""
    return float(outcome["curve"][-1][metric])


def chosen_rate(store: "Store", runs: list[Run], metric: str, higher: bool) -> float | None:
    """The rate with the best result on the first seed; None if no run reached its end."""
    ended = []
    for run in runs:
        outcome = store.outcome(run)
        if outcome is not None and outcome["status"] == DONE and not outcome["diverged"]:
            ended.append((final(outcome, metric), run.rate))
    if not ended:
        return None
    return max(ended)[1] if higher else min(ended)[1]
