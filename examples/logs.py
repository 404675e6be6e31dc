"""The log of a run as a table, taken from the history that the trainer keeps in its checkpoints."""

import csv
import io
import json
import os
from pathlib import Path

HIDDEN = ("runtime", "per_second", "preparation_time")  # columns of the Trainer that vary from run to run


def seconds_logged(checkpoint: Path) -> float:
    """Seconds of training up to the last row that the checkpoint holds."""
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return max((row.get("seconds", 0.0) for row in history), default=0.0)


def write_log(path: Path, history: list[dict[str, float]]) -> None:
    """The trainer's history as a table with one row for each step that was logged or evaluated."""
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        if "loss" in entry or "eval_loss" in entry:
            values = {("train_loss" if name == "loss" else name): value for name, value in entry.items()}
            rows.setdefault(int(entry["step"]), {}).update(values)
    names = dict.fromkeys(name for row in rows.values() for name in row if not name.endswith(HIDDEN))
    first = ["step", "epoch", "examples", "tokens", "train_loss", "eval_loss"]
    columns = [name for name in first if name in names] + [name for name in names if name not in first]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows[step] for step in sorted(rows))
    write_whole(path, text.getvalue())


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
