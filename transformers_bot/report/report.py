"""The transfer report: what became of every tensor, as plain data."""

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints, overload

from ..architectures.sizes import smaller_roles
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
    """What the maps of one role did, in one tensor or in all tensors with that role.

    Attributes:
        role: of the architecture, such as a stream or the depth; "heads x head_dim" if the method maps both as one.
        side: "written" or "read"; "depth" for layers.
        before, after: lengths.
        gain: Frobenius norm of the map divided by the square root of the shorter length: 1 for an orthonormal map.
            For layers it is that of whole stacks; in one tensor, the root of the sum of its squared weights.
        energy_kept: share of the energy left by the maps before that these maps keep; None: not measured.
        tensors: number of tensors.
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
        source_shape: their shape; None if there are none.
        shape: in the target.
        parameters: number of parameters; a tied tensor counts once, at the name that holds it.
        inherited: number of these that come from the source.
        roles: of the axes that change, in the order in which they are mapped.
        gain: of all maps and the depth together; None if they are not one linear map.
        energy_kept: share of the energy of all tensors that were read; None if it has no meaning.
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
    """Tensors of the same function in all layers, and the source layers that they are made of."""

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
        halved = [row.name for row in report.tensors if row.energy_kept is not None and row.energy_kept < 0.5]

    If the method first rewrites the source into an equivalent one (orders its units, turns its stream), the rewritten
    one is measured, because the maps are applied to it.

    Attributes:
        classes: names of the source's and the target's model class.
        dtypes: of both.
        sizes: role -> (source length, target length).
        parameters: of both; tied ones count once.
        bytes: of both.
        inherited: share of the target's parameters that comes from the source.
        method: the choices of the method.
        provenance: where the source comes from.
        roles: every role and side that changed, over all tensors, weighted by energy.
        stacks: every stack whose depth changed.
        tensors: every tensor of the target once, in its order.
        dropped: source tensors that nothing is made of -> the reason.
        warnings: sentences a user should read.
        energy_kept: share of the sum of squares of all source weights, layers that are left out included, that the
            maps keep; None if nothing shrinks, or if it is unknown for more than a twentieth of that sum.
        written: file -> fingerprint, for the files that `resize_checkpoint` wrote beside report and card; they show
            it which folders it may replace. Empty for a model in memory.
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
            BadCheckpoint: it is no report, or has a format that this version does not know.
        """
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            kind = plain.get("format") if isinstance(plain, dict) else type(plain).__name__
            raise BadCheckpoint(f"not a transfer report of format {FORMAT}, but {kind!r}; resize the source again.")
        try:
            values = {name: value for name, value in plain.items() if name != "format"}
            report: Report = decode(cls, values, "report")
        except ValueError as error:
            raise BadCheckpoint(f"a transfer report that is not whole: {error}; resize the source again.") from None
        return report

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
        """The share of the source's parameters that the target still has; new parameters do not count."""
        layers = {_pattern(stack.name): (stack.source_layers, stack.target_layers) for stack in self.stacks}
        common = 0.0
        for tensor in self.tensors:
            name = _pattern(tensor.name)
            stack = layers.get(name) or layers.get(name.partition(".")[2], (1, 1))  # without the base model's prefix
            common += common_numbers(tensor.source_shape, tensor.shape, stack) if tensor.inherited else 0.0
        return min(1.0, common / max(1, self.parameters[0]))

    @property
    def shrinks(self) -> bool:
        """Whether some role gets shorter: the result has lost a part of the source and must be trained.

        Groups that are only formed anew, such as queries that share a key, lose nothing.
        """
        from .render import known_roles

        roles = known_roles(self)
        if not roles.resized:  # the architecture is not known here
            return any(after < before for before, after in self.sizes.values())
        # A role that is not among the sizes has the length of its tensors.
        before, after = ({role: self.sizes.get(role, (None, None))[side] for role in roles} for side in (0, 1))
        return bool(smaller_roles(roles, (before, after)))

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
        """The whole report as a Markdown page."""
        from .render import markdown

        return markdown(self)

    def summary(self) -> str:
        """A few lines and one table in Markdown, for a model card."""
        from .render import summary

        return summary(self)

    @overload
    def plot(self, path: None = None) -> "Figure": ...

    @overload
    def plot(self, path: str | os.PathLike[str]) -> Path: ...

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Path | Figure":
        """Draw the energy kept and the change of spread by kind of tensor and layer.

        Args:
            path: the file to write; None for none.

        Returns:
            The file, or without a path the figure of matplotlib, which a notebook shows and `.savefig` writes. Pyplot
            does not hold it, so it need not be closed.

        Raises:
            BadOption: matplotlib is not installed (`pip install transformers-bot[plot]`), or does not
                write files with this ending.
        """
        from .plot import plot

        return plot(self, None if path is None else Path(path))


def _pattern(name: str) -> str:
    """The name with its layer, a number or {layer}, replaced by `#`."""
    return re.sub(r"\.(\d+|\{\w+\})\.", ".#.", name, count=1)


# -- from JSON types, with a check of every value --------------------------------------------------


def decode(hint: Any, value: Any, where: str) -> Any:
    """The value that a type hint describes, made from JSON types.

    >>> decode(tuple[int, ...], [1, 2], "shape")
    (1, 2)

    Args:
        hint: a dataclass, a tuple, a dict with text keys, `X | None`, str, int, float or Any.
        where: the name of the value, for the message.

    Raises:
        ValueError: the value is of another type.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is UnionType:
        inner = next(item for item in args if item is not NoneType)
        return None if value is None else decode(inner, value, where)
    if origin is tuple:
        return _decode_tuple(args, value, where)
    if origin is dict:
        return {name: decode(args[1], item, f"{where}.{name}") for name, item in _checked(value, dict, where).items()}
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        optional = {
            item.name for item in fields(hint) if item.metadata.get("optional")
        }  # fields that older reports lack
        unexpected = (set(_checked(value, dict, where)) ^ set(hints)) - (optional - set(value))
        if unexpected:
            raise ValueError(f"{where} has missing or unknown fields: {', '.join(sorted(map(str, unexpected)))}")
        present = ((name, inner) for name, inner in hints.items() if name in value)
        return hint(**{name: decode(inner, value[name], f"{where}.{name}") for name, inner in present})
    if hint is Any:
        return value
    return float(_checked(value, (int, float), where)) if hint is float else _checked(value, hint, where)


def _decode_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    items = _checked(value, list, where)
    hints = [args[0]] * len(items) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(items):
        raise ValueError(f"{where} has {len(items)} entries instead of {len(hints)}")
    return tuple(
        decode(item_hint, item, f"{where}[{i}]") for i, (item_hint, item) in enumerate(zip(hints, items, strict=True))
    )


def _checked(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where} is {type(value).__name__}, which is the wrong type")
    return value
