"""The tensors of a checkpoint, and the share of their energy that halving each role would keep.

An orthonormal wavelet level splits a tensor into a low and a high band whose energies (sums of squares) add up to the
energy of the tensor. Halving a role keeps the share of the low band along that role: 0.5 for weights in random order,
such as noise, and 1 for weights that are constant along the role. With an odd length one entry stays as it is (a
partial level). A role that is on both axes of a tensor is halved on both, as in a resize, so that noise has 0.25 there.

A resize with the defaults keeps more than this, because it first puts similar units next to each other.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import pywt
import torch
from torch import Tensor

from ..architectures.adapter import DEPTH, Factor, Roles, Rule
from ..architectures.inventory import inventory_of, predict, rules_of
from ..architectures.sizes import check_fields, role_sizes, without_crossing
from ..compat import Releasing, quiet
from ..console import progress
from ..console.pictures import picture, save
from ..console.tables import Row, html_table, lines, page
from ..console.text import shape, size
from ..errors import BadOption
from ..io.checkpoint import check_amount
from ..ops.axis_map import AxisMap, identity
from ..ops.blocks import energy
from ..ops.recipe import TensorMap, apply
from ..ops.wavelets import analysis_map, check_name
from ..request.names import FILES, HUB, check_known
from ..request.request import class_for_task, read_call
from ..request.source_class import with_class
from ..run.opening import open_checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..request.signatures import SourceKeywords

LITTLE = 4 << 20  # bytes of tensors after which freed memory is returned to the system
NOISE = 0.5  # the share that halving an axis keeps of weights in random order
CELL, ROW = 0.46, 0.27  # inches of a cell that holds a number
MANY = 16  # layers; with more, a cell has no room for a number


@dataclass(frozen=True)
class Stack:
    """The tensors of one function in all layers.

    Attributes:
        name: of the tensors, with {layer}, {decoder_layer} or the like for the number of the layer.
        axes: the roles of its axes, as in the adapter's rule.
        shape: of one tensor.
        dtype: as stored, such as "float32".
        layers: number of layers; 0 for a tensor outside the layers.
        parameters: of all layers together; 0 for a tensor that is tied to another one.
        kept: role (or depth) -> share of the energy that halving it keeps; NaN if weights are not finite, empty for
            tensors of zeros.
        by_layer: role -> that share for each layer.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    layers: int
    parameters: int
    kept: Mapping[str, float] = field(default_factory=dict)
    by_layer: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @property
    def parts(self) -> tuple[str, str]:
        """What stands in the name before the layer's number, and behind it; all behind outside the layers."""
        number = re.search(rf"{DEPTH}\.", self.name)
        return (self.name[: number.start()], self.name[number.end() :]) if number else ("", self.name)

    @property
    def bytes(self) -> int:
        return int(self.parameters * getattr(torch, self.dtype).itemsize)


@dataclass(frozen=True, repr=False)
class Inspection:
    """The result of `inspect`. Print it, or take `to_dict()` or `plot(path)`.

    Attributes:
        model_class: the class that the checkpoint is for.
        sizes: role -> length.
        wavelet: the wavelet that `kept` was measured with.
        stacks: the tensors, in the model's order.
        missing: tensors of the class that the checkpoint does not hold.
        unexpected: tensors that the class does not have.
        notes: remarks on the files.
        roles: of the architecture.
    """

    model_class: str
    sizes: dict[str, int | None]
    wavelet: str
    stacks: tuple[Stack, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...] = ()
    roles: Roles = field(default_factory=Roles)

    @property
    def lengths(self) -> dict[str, int]:
        """The known sizes, without those of roles that only repeat another role."""
        return {role: length for role, length in self.sizes.items() if length and role not in self.roles.echoes}

    @property
    def measured(self) -> list[str]:
        """The roles that were measured, in the order of the sizes."""
        roles = {role for stack in self.stacks for role in stack.kept}
        return [role for role in self.sizes if role in roles]

    def __repr__(self) -> str:
        lengths = [f"{role} {length}" for role, length in self.lengths.items()]
        notes = [f"{len(self.missing)} tensors are missing"] if self.missing else []
        notes += [f"{len(self.unexpected)} are of no such model"] if self.unexpected else []
        notes += [".plot() draws them"]
        return lines(
            f"Inspection: {self.model_class}, {self.parameters:,} parameters, {size(self.bytes)}",
            ", ".join(lengths),
            f"{len(self.stacks)} kinds of tensors, wavelet {self.wavelet}; {'; '.join(notes)}",
        )

    def _repr_html_(self) -> str:
        roles = self.measured
        rows: list[Row] = [("tensor", "shape", "layers", "bytes", "axes", *roles)]
        for stack in self.stacks:
            values = (stack.kept.get(role) for role in roles)
            shares = ("" if share is None else f"{share:.2f}" for share in values)
            weight = size(stack.bytes) if stack.parameters else "tied"
            rows.append((stack.name, shape(stack.shape), str(stack.layers or ""), weight, stack.axes, *shares))
        lengths = ", ".join(f"{role} {length}" for role, length in self.lengths.items())
        warnings = [f"{len(self.missing)} tensors are not in the checkpoint"] if self.missing else []
        warnings += [f"{len(self.unexpected)} tensors are not part of {self.model_class}"] if self.unexpected else []
        return page(
            f"{self.model_class}: {self.parameters:,} parameters, {size(self.bytes)}",
            [lengths, f"the columns of roles: share of the energy that halving keeps, wavelet {self.wavelet}"],
            [html_table(rows, right=(2, 3, *range(5, 5 + len(roles))))],
            [*warnings, *self.notes],
        )

    @property
    def parameters(self) -> int:
        return sum(stack.parameters for stack in self.stacks)

    @property
    def bytes(self) -> int:
        return sum(stack.bytes for stack in self.stacks)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; NaN is written as None."""
        return {
            "model_class": self.model_class,
            "sizes": {role: length for role, length in self.sizes.items() if length is not None},
            "parameters": self.parameters,
            "bytes": self.bytes,
            "wavelet": self.wavelet,
            "tensors": [_as_dict(stack) for stack in self.stacks],
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "notes": list(self.notes),
        }

    @overload
    def plot(self, path: None = None) -> "Figure": ...

    @overload
    def plot(self, path: str | os.PathLike[str]) -> Path: ...

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Path | Figure":
        """Draw a heat map for every role: a row per kind of tensor, a column per layer, the share kept as colour.

        Args:
            path: the file to write; None for none.

        Returns:
            The file, or without a path the figure of matplotlib, which a notebook shows and `.savefig` writes. Pyplot
            does not hold it, so it need not be closed.

        Raises:
            BadOption: matplotlib is not installed (`pip install transformers-bot[plot]`), or does not
                write files with this ending.
        """
        return _plot(self, None if path is None else Path(path))


@progress.bar("measuring the weights")
def inspect(
    source: str | os.PathLike[str],
    *,
    wavelet: str = "haar",
    task: str | None = None,
    allow_pickle: bool = False,
    **keywords: "Unpack[SourceKeywords]",
) -> Inspection:
    """Show the tensors of a checkpoint: roles of their axes, shapes, and the energy that halving would keep.

    Tensors are read one after another: beside the mapped files this needs about three times the largest tensor in
    float32, for any number of layers.

    Example:
        >>> inspect("gpt2").stacks[0].kept  # doctest: +SKIP
        {'hidden': 0.51}

    Args:
        source: hub id or folder.
        wavelet: an orthogonal wavelet; for others the energies of the bands do not add up to the whole.
        task: the head, if config.json does not name it and the tensors fit several classes.
        allow_pickle: read pytorch_model.bin, as tensors only, if there is no safetensors file.
        keywords: of the Hub (revision, subfolder, token, ...) and of the files (variant, ...).

    Raises:
        BadOption: an unknown wavelet, or one that is not orthogonal.
        BadCheckpoint, UnsafeCheckpoint: weights that cannot be read, as in `from_pretrained`.
        UnsupportedArchitecture: a model type without an adapter.
    """
    if not pywt.Wavelet(check_name(wavelet)).orthogonal or wavelet == "dmey":
        raise BadOption(f"wavelet {wavelet!r} is not orthogonal: its bands' energies do not add up. Try haar or db2.")
    check_known("inspect", keywords, (*HUB, *FILES))
    call = read_call("inspect", source, {**keywords, "allow_pickle": allow_pickle}, class_for_task(task))
    adapter = call.adapter.of(call.source)
    sizes = role_sizes(adapter, call.source, "source")
    check_fields(adapter, call.source, "source")
    call = with_class(call) if task is None else call
    config = without_crossing(call.source)
    progress.expects(10)
    with progress.part("opening the source", 2):
        checkpoint, model_class = call.files(), call.class_for(config)
        with quiet():
            described = predict(model_class, config)
        check_amount(checkpoint, described.shapes, described.ties)
        opened = open_checked(model_class, call.name, config, call.keywords.of_files, checkpoint)
    inventory = inventory_of(opened.model)
    tensors = opened.model.state_dict()
    groups: dict[str, list[str]] = {}
    rules = rules_of(adapter, inventory, sizes)
    for tensor, (rule, _) in rules.items():
        if tensor not in opened.missing:
            groups.setdefault(_stack_name(tensor, rule, inventory.canonical(tensor)), []).append(tensor)
    stacks = []
    sizes_of = [float(sum(tensors[tensor_name].numel() for tensor_name in names)) for names in groups.values()]
    for shown, names in progress.tracked(groups.items(), sizes_of, [f"measuring {shown}" for shown in groups]):
        rule, layer = rules[names[0]]
        tied = names[0] in inventory.ties
        reader = _Reader(rule, adapter.roles, [tensors[tensor_name] for tensor_name in names], sizes, wavelet)
        stacks.append(reader.stack(shown, layered=layer is not None, tied=tied))
    missing = tuple(sorted(opened.missing))
    measured = inventory.model_class, sizes, wavelet, tuple(stacks), missing, opened.unexpected
    return Inspection(*measured, (*call.notes, *checkpoint.notes), adapter.roles)


@dataclass(frozen=True)
class _Reader:
    """Measures the tensors of one stack."""

    rule: Rule
    roles: Roles
    tensors: list[Tensor]
    sizes: Mapping[str, int | None]
    wavelet: str

    def stack(self, name: str, layered: bool, tied: bool) -> Stack:
        first = self.tensors[0]
        energies = [energy(x.detach()) for x in self.tensors]
        has_energy = sum(energies) != 0  # zeros have no energy to take a share of
        shares = {role: list(self._by_layer(role)) for role in self._halved() if has_energy}
        kept = {role: _share(kept, energies) for role, kept in shares.items()}
        if layered and has_energy and len(self.tensors) > 1:
            kept[self.rule.depth] = _share(self._over_layers(), energies)
        by_layer = {
            role: tuple(_share([part], [all_]) for part, all_ in zip(kept_of, energies, strict=True))
            for role, kept_of in shares.items()
            if layered
        }
        parameters = 0 if tied else sum(x.numel() for x in self.tensors)
        axes = self.rule.text.partition(":")[2].strip()
        dtype = str(first.dtype).removeprefix("torch.")
        layers = len(self.tensors) if layered else 0
        return Stack(name, axes, tuple(first.shape), dtype, layers, parameters, kept, by_layer)

    def _halved(self) -> list[str]:
        """The roles to halve; a role that follows another one is halved with it."""
        leaders = {self.roles.leader(role) for role in self.rule.roles}
        return [role for role in self.roles.resized if role in leaders and (self.sizes[role] or 1) > 1]

    def _by_layer(self, role: str) -> Iterator[float]:
        """The energy of each tensor's low band along a role."""
        maps: TensorMap = tuple(
            tuple(tuple(self._map(factor, role) for factor in segment) for segment in axis.segments)
            for axis in self.rule.axes
        )
        releasing = Releasing(LITTLE)
        for x in self.tensors:
            low_band = energy(apply(_floats(x), maps))
            yield low_band if math.isfinite(low_band) else energy(apply(x.detach().double(), maps))
            releasing.made(x.nbytes)

    def _map(self, factor: Factor, role: str) -> AxisMap:
        length = factor.length(self.sizes)
        if length is None or not factor.role or self.roles.leader(factor.role) != role:
            return identity(-1 if length is None else length)
        return halving(length, self.wavelet)

    def _over_layers(self) -> Iterator[float]:
        """The energies of the low band over the layers, one tensor of it at a time."""
        for row in halving(len(self.tensors), self.wavelet).dense():
            low_band = energy(self._summed(row, torch.float32))
            yield low_band if math.isfinite(low_band) else energy(self._summed(row, torch.float64))

    def _summed(self, row: Any, dtype: torch.dtype) -> Tensor:
        total = torch.zeros(self.tensors[0].shape, dtype=dtype)
        for weight, x in zip(row, self.tensors, strict=True):
            if weight:
                total.add_(_floats(x), alpha=float(weight))
        return total


def halving(length: int, wavelet: str) -> AxisMap:
    """One orthonormal level on `length` entries; an odd length n gives (n + 1) / 2 entries.

    >>> halving(3, "haar").dense().round(2).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.71, 0.71]]
    """
    return analysis_map(length, (length + 1) // 2, wavelet, unit_dc=False)


def _stack_name(name: str, rule: Rule, canonical: str) -> str:
    return name[: len(name) - len(canonical)] + rule.template(canonical)


def _floats(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _share(kept: Any, whole: list[float]) -> float:
    """The kept part of an energy as a share; 1 for zeros, which lose nothing."""
    total = sum(whole)
    return float(sum(kept)) / total if total else 1.0


def _as_dict(stack: Stack) -> dict[str, Any]:
    def plain(share: float) -> float | None:
        return round(share, 6) if share == share else None

    return {
        "name": stack.name,
        "axes": stack.axes,
        "shape": list(stack.shape),
        "dtype": stack.dtype,
        "layers": stack.layers,
        "parameters": stack.parameters,
        "bytes": stack.bytes,
        "kept": {role: plain(share) for role, share in stack.kept.items()},
        "kept_by_layer": {role: [plain(share) for share in shares] for role, shares in stack.by_layer.items()},
    }


def _plot(inspection: "Inspection", path: Path | None) -> "Path | Figure":
    """Draw an inspection; returns the figure, or the written file; see `Inspection.plot`."""
    panels = _panels(inspection)
    if not panels:
        raise BadOption(f"{inspection.model_class} has no layers to draw.")
    layers = max(stack.layers for stack in inspection.stacks)
    rows = [len(panel) for panel in panels.values()]
    size = (4.5 + CELL * min(layers, MANY), 1.2 + sum(ROW * count + 0.7 for count in rows))
    figure = picture(*size)
    all_axes = figure.subplots(len(panels), 1, height_ratios=rows, squeeze=False)[:, 0]
    for axes, (role, stacks) in zip(all_axes, panels.items(), strict=True):
        image = _panel(axes, role, stacks, layers)
    figure.suptitle(f"{inspection.model_class}: share of the energy kept, one {inspection.wavelet} level", fontsize=11)
    figure.colorbar(image, ax=all_axes.tolist(), label="kept (0.5: no more than of noise)", shrink=0.6)
    return figure if path is None else save(figure, path, dpi=120)


def _panels(inspection: "Inspection") -> dict[str, list["Stack"]]:
    """Role -> the matrices in layers that have it; biases and norms have too few entries for a useful share."""
    panels: dict[str, list[Stack]] = {}
    for stack in inspection.stacks:
        for role in stack.by_layer:
            if len(stack.shape) > 1:
                panels.setdefault(role, []).append(stack)
    return panels


def _panel(axes: Any, role: str, stacks: "list[Stack]", layers: int) -> Any:
    values = [list(stack.by_layer[role]) + [float("nan")] * (layers - stack.layers) for stack in stacks]
    image = axes.imshow(values, cmap="RdBu", vmin=0, vmax=2 * NOISE, aspect="auto")
    axes.set_title(f"halving {role}", fontsize=10, loc="left")
    axes.set_yticks(range(len(stacks)), [stack.parts[1] for stack in stacks], fontsize=8)
    axes.set_xticks(range(0, layers, 1 if layers <= MANY else max(1, layers // 8)))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("layer", fontsize=8)
    if layers <= MANY:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7)
    return image
