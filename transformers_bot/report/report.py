"""The transfer report: what became of every tensor, as plain data."""

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints, overload

from ..errors import BadCheckpoint
from ..io.config_files import read_json
from ..io.files import shown_path
from ..planning.render import common_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "transfer_report.json"
FORMAT = 1


@dataclass(frozen=True)
class Role:
    """What the maps of one role did, in one tensor or in all that have it.

    Attributes:
        role: of the architecture, such as a stream or the depth; "heads x head_dim" where a method has them as one.
        side: "written" or "read"; "depth" for layers.
        before, after: lengths.
        gain: Frobenius norm of the map over the square root of the shorter length: 1 for an orthonormal one;
            over layers that of whole stacks, and in one tensor the root of its squared weights' sum.
        energy_kept: share of the energy that the maps keep of what those before them kept; None: not measured.
        tensors: in how many tensors.
    """

    role: str
    side: str
    before: int
    after: int
    gain: float | None
    energy_kept: float | None
    tensors: int = 1


@dataclass(frozen=True)
class Tensor:
    """What became of one target tensor.

    Attributes:
        name: in the target.
        action: "copy", "resample", "fresh" or "tie".
        reason: how it is resampled, or why it is fresh or tied.
        reads: the source tensors it is made of.
        source_shape: of those, None if the source has none.
        shape: in the target.
        parameters: how many; a tied tensor counts at the name that holds it.
        inherited: how many of them come from the source.
        roles: of the axes that change, in the order in which they are mapped.
        gain: of all maps and the depth together; None where they are not one linear map.
        energy_kept: share of the energy of all that was read; None where the source's low band has no meaning.
        noise: share of the result's energy that is noise in its detail bands.
        std_before: of the source tensors together.
        std_after: of the result.
    """

    name: str
    action: str
    reason: str
    reads: tuple[str, ...]
    source_shape: tuple[int, ...] | None
    shape: tuple[int, ...]
    parameters: int
    inherited: int
    roles: tuple[Role, ...] = ()
    gain: float | None = None
    energy_kept: float | None = None
    noise: float | None = None
    std_before: float | None = None
    std_after: float | None = None


@dataclass(frozen=True)
class Stack:
    """Tensors of the same function over the layers: which source layers they are made of."""

    name: str  # with {layer} open
    source_layers: int
    target_layers: int
    left_out: tuple[int, ...]  # source layers that no target layer reads


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
        """The share of the source's parameters that the target still has: what is new beside them does not count."""
        layers = {_numberless(stack.name): (stack.source_layers, stack.target_layers) for stack in self.stacks}
        common = 0.0
        for tensor in self.tensors:
            name = _numberless(tensor.name)
            stack = layers.get(name) or layers.get(name.partition(".")[2], (1, 1))  # without the base model's prefix
            common += common_numbers(tensor.source_shape, tensor.shape, stack) if tensor.inherited else 0.0
        return min(1.0, common / max(1, self.parameters[0]))

    @property
    def shrinks(self) -> bool:
        """Whether layers or units get fewer: the result has lost a part, and must be trained."""
        from .render import known_roles

        roles = known_roles(self).resized or self.sizes
        return any(self.sizes[role][1] < self.sizes[role][0] for role in roles if role in self.sizes)

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


def _numberless(name: str) -> str:
    """A name with its layer open, whether it stands there as a number or as {layer}."""
    return re.sub(r"\.(\d+|\{\w+\})\.", ".#.", name, count=1)


# -- from JSON types: what a file holds is checked before it is believed ---------------------------


def decode(hint: Any, value: Any, where: str) -> Any:
    """The value that a type hint describes, made of JSON types.

    >>> decode(tuple[int, ...], [1, 2], "shape")
    (1, 2)

    Args:
        hint: a dataclass, a tuple, a dict with text keys, `X | None`, str, int, float or Any.
        where: what the value is, for the message.

    Raises:
        ValueError: the value is of another type.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is UnionType:
        inner = next(one for one in args if one is not NoneType)
        return None if value is None else decode(inner, value, where)
    if origin is tuple:
        return _decode_tuple(args, value, where)
    if origin is dict:
        return {name: decode(args[1], one, f"{where}.{name}") for name, one in _checked(value, dict, where).items()}
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        optional = {one.name for one in fields(hint) if one.metadata.get("optional")}  # what older reports lack
        odd = (set(_checked(value, dict, where)) ^ set(hints)) - (optional - set(value))
        if odd:
            raise ValueError(f"{where} has missing or unknown fields: {', '.join(sorted(map(str, odd)))}")
        given = ((name, inner) for name, inner in hints.items() if name in value)
        return hint(**{name: decode(inner, value[name], f"{where}.{name}") for name, inner in given})
    if hint is Any:
        return value
    return float(_checked(value, (int, float), where)) if hint is float else _checked(value, hint, where)


def _decode_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    items = _checked(value, list, where)
    hints = [args[0]] * len(items) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(items):
        raise ValueError(f"{where} has {len(items)} entries instead of {len(hints)}")
    return tuple(decode(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(hints, items, strict=True)))


def _checked(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where} is {type(value).__name__} where it should be another type")
    return value
