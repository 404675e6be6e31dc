"""The transfer report: what became of every tensor, as plain data."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from ..errors import BadCheckpoint
from ..io.reading import read_json, shown_path
from ..planning.planner import Plan
from .decoding import decode
from .measure import Watch
from .rows import DIGITS, Depths, Role, Stack, Tensor, energy_kept, role_rows, tensor_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "transfer_report.json"
FORMAT = 1
SHRINKING = ("layer", "hidden", "ffn", "heads", "head_dim")


@dataclass(frozen=True, repr=False)
class Report:
    """What a resize did, tensor by tensor. Print it, or take `markdown()`, `to_dict()`, `plot(path)`.

    Example:
        report = Report.load("my-resized-model")
        print(report)
        halved = [one.name for one in report.tensors if one.energy_kept is not None and one.energy_kept < 0.5]

    A source that the method rewrites first (orders its units, turns its stream) is measured as rewritten,
    for that is what the maps see; it computes what the stored one does.

    Attributes:
        classes: names of the source's and the target's model class.
        dtypes: of both.
        sizes: role -> (source length, target length).
        parameters: of both; tied ones count once.
        bytes: of both.
        inherited: share of the target's parameters that comes from the source.
        method: its choices.
        provenance: where the source comes from.
        roles: every role and side that changed, over all tensors, weighted by energy.
        stacks: every stack whose depth changed.
        tensors: every tensor of the target once, in its order.
        dropped: source tensors that nothing is made of -> why.
        warnings: sentences a user should read.
        energy_kept: share of the squares of all the source's weights that the maps keep, layers that are left out
            included; None where nothing shrinks, or where more than a twentieth of it cannot be told.
        written: file -> fingerprint, of what `resize_checkpoint` wrote beside report and card; by these it knows
            a folder that it may replace. Empty for a model in memory.
    """

    classes: tuple[str, str]
    dtypes: tuple[str, str]
    sizes: dict[str, tuple[int, int]]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    inherited: float
    method: dict[str, Any]
    provenance: dict[str, Any]
    roles: tuple[Role, ...]
    stacks: tuple[Stack, ...]
    tensors: tuple[Tensor, ...]
    dropped: dict[str, str]
    warnings: tuple[str, ...]
    energy_kept: float | None = field(default=None, metadata={"optional": True})
    written: dict[str, str] = field(default_factory=dict, metadata={"optional": True})

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON types: `Report.from_dict(report.to_dict()) == report`."""
        plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asdict(self)}))
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Report":
        """The report of a `to_dict()`.

        Raises:
            BadCheckpoint: it is not one, or one of a format that this version does not know.
        """
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            found = plain.get("format") if isinstance(plain, dict) else type(plain).__name__
            raise BadCheckpoint(f"not a transfer report of format {FORMAT}, but {found!r}; resize the source again.")
        try:
            known = {name: value for name, value in plain.items() if name != "format"}
            made: Report = decode(cls, known, "report")
        except ValueError as error:
            raise BadCheckpoint(f"a transfer report that is not whole: {error}; resize the source again.") from None
        return made

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `transfer_report.json` into a folder; the same report gives the same bytes."""
        path = Path(folder) / FILE
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Report":
        """Read what `save` wrote.

        Raises:
            BadCheckpoint: the folder has no report, or not a whole one.
        """
        path = Path(folder) / FILE
        if not os.path.exists(path):
            raise BadCheckpoint(f"{shown_path(folder)} holds no {FILE}: it was not saved by transformers_bot.")
        return cls.from_dict(read_json(path))

    @property
    def parameters_kept(self) -> float:
        """The share of the source's parameters that the target has, at most 1."""
        before, after = self.parameters
        return min(1.0, after * self.inherited / max(1, before))

    @property
    def shrinks(self) -> bool:
        """Whether layers or units get fewer: the result has lost a part, and must be trained."""
        return any(self.sizes[role][1] < self.sizes[role][0] for role in SHRINKING if role in self.sizes)

    def __repr__(self) -> str:
        from .render import report_lines

        return report_lines(self)

    def _repr_html_(self) -> str:
        from .render import report_page

        return report_page(self)

    def __str__(self) -> str:
        from .render import terminal

        return terminal(self)

    def markdown(self) -> str:
        """The whole report as a markdown page."""
        from .render import markdown

        return markdown(self)

    def summary(self) -> str:
        """A few lines and one table of markdown, for a model card."""
        from .render import summary

        return summary(self)

    @overload
    def plot(self, path: None = None) -> "Figure": ...

    @overload
    def plot(self, path: str | os.PathLike[str]) -> Path: ...

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Path | Figure":
        """Energy kept and change of spread, by kind of tensor and layer.

        Args:
            path: the picture file to write. None writes none.

        Returns:
            The file, or without a path matplotlib's figure, which a notebook shows and `.savefig` writes;
            pyplot does not know it, so nothing has to be closed.

        Raises:
            BadOption: matplotlib is not installed (`pip install transformers-bot[plot]`), or an ending that it
                does not write.
        """
        from .plot import plot

        return plot(self, None if path is None else Path(path))


def make_report(plan: Plan, watch: Watch, provenance: dict[str, Any]) -> Report:
    """The report of a plan that has run under `watch` to its end.

    Args:
        provenance: in JSON types; kept as it is given.

    Raises:
        ValueError: the plan has not run to its end.
    """
    missing = [step.target for step in plan.steps if step.recipe is not None and step.target not in watch.results]
    if missing:
        raise ValueError(
            f"{len(missing)} steps have not run under this watch, {missing[0]!r} first; run the plan first."
        )
    told, depths = plan.to_dict(), Depths(plan, watch)
    unfinite = [f"{name} is not finite, because its source is not" for name in watch.unfinite]
    before, after = told["source"]["sizes"], told["target"]["sizes"]
    return Report(
        classes=(plan.source.model_class, plan.target.model_class),
        dtypes=(_name(plan.dtypes[0]), _name(plan.dtypes[1])),
        sizes={role: (length, after[role]) for role, length in before.items() if role in after},
        parameters=(told["parameters"]["source"], told["parameters"]["target"]),
        bytes=(told["bytes"]["source"], told["bytes"]["target"]),
        inherited=round(plan.inherited, DIGITS),
        method=_plain(plan.method),
        provenance=_plain(provenance),
        roles=role_rows(plan, watch, depths),
        stacks=depths.stacks(),
        tensors=tuple(tensor_row(step, watch, depths) for step in plan.steps),
        dropped=dict(plan.dropped),
        warnings=(*plan.warnings, *unfinite),
        energy_kept=energy_kept(plan, watch, depths) if plan.shrinks else None,
    )


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(value))
    return made


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
