"""Measures what a plan reads and makes while it runs, in one pass over each tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..architectures import Adapter
from ..architectures.inventory import rules_of
from ..errors import BadWeights
from ..ops.energy import Stretches, Sums, sums
from ..planning.planner import Plan, Step
from .tracing import Along, Trace


@dataclass(frozen=True)
class Made:
    """What was measured of one target tensor.

    Attributes:
        source: sums of the tensors that were read.
        result: sums of the tensor, as stored.
        along: one entry per role and side that was mapped, in the order of the maps.
        depth: the layers' energy and how much of it their sum kept; None where that has no meaning.
        axes: the energy of that sum and how much of it the maps kept.
        gain: of all the maps together: 1 for orthonormal ones.
        noise: energy of the noise in the detail bands.
        linear: it is a weighted sum of layers under one map per axis, to which at most noise was added.
    """

    source: Sums
    result: Sums
    along: tuple[Along, ...]
    depth: tuple[float, float] | None
    axes: tuple[float, float]
    gain: float
    noise: float
    linear: bool


class Watch:
    """Collects what `make_report` tells, while `run_plan(..., watch=watch)` runs.

    Example:
        watch = Watch(plan, adapter)
        resized = dict(run_plan(plan, tensors, dtype, watch=watch))
        report = make_report(plan, watch, provenance)

    Args:
        plan: what is going to be run.
        adapter: of its source and target; its rules tell which axis has which role.
    """

    def __init__(self, plan: Plan, adapter: Adapter) -> None:
        self.rules = rules_of(adapter, plan.target, plan.target_sizes)
        self.templates = {
            name: rule.template(plan.target.canonical(name)) for name, (rule, _) in self.rules.items()
        }  # stacks of same-function tensors
        self.results: dict[str, Made] = {}
        self.unfinite: list[str] = []  # results that are not finite because their source is not
        self.unread = 0.0  # energy of the source tensors that nothing was made of
        self._sources: dict[str, Sums] = {}
        self._stretches = Stretches()
        self._trace: Trace | None = None

    def reading(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same tensors, each measured when it is first read."""
        return _Measured(tensors, self._sources)

    def passed_over(self, tensors: Mapping[str, Tensor]) -> None:
        """Take down the source tensors that nothing was made of."""
        self.unread = sum(sums(x).squares for x in tensors.values() if x.is_floating_point())

    @property
    def sources(self) -> Mapping[str, Sums]:
        """Source tensor -> its sums, of all that were read."""
        return self._sources

    def following(self, step: Step) -> Trace:
        """What `recipe.run` tells about this step."""
        self._trace = Trace(step, self.rules[step.target][0], self._sources, self._stretches)
        return self._trace

    def made(self, step: Step, out: Tensor) -> None:
        """Take down what the step has made.

        Raises:
            BadWeights: it is not finite, although all that was read is.
        """
        trace, recipe = self._trace, step.recipe
        if trace is None or recipe is None:
            raise ValueError(f"{step.target}: nothing was followed; call following(step) first.")
        result, source = sums(out), trace.source
        if not result.is_finite:
            if source.is_finite:
                raise BadWeights(_overflow_message(step.target, out))
            self.unfinite.append(step.target)
        depth, axes = trace.depth, trace.axes
        if recipe.is_copy:
            depth = axes = (source.squares, source.squares)
        linear = not recipe.undo and not recipe.plus and any(one.weight for one in recipe.reads)
        self.results[step.target] = Made(source, result, trace.along(), depth, axes, trace.gain, trace.noise, linear)
        self._trace = None


class _Measured(Mapping[str, Tensor]):
    """Tensors that leave their sums when they are read: reading again may mean computing again."""

    def __init__(self, tensors: Mapping[str, Tensor], found: dict[str, Sums]) -> None:
        self._tensors, self._found = tensors, found

    def __getitem__(self, name: str) -> Tensor:
        x = self._tensors[name]
        if name not in self._found:
            self._found[name] = sums(x)
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _overflow_message(name: str, out: Tensor) -> str:
    bad = (~torch.isfinite(out)).nonzero()
    dtype = str(out.dtype).removeprefix("torch.")
    wider = {"float16": "dtype='bfloat16' or dtype='float32'", "float64": "a source with smaller values"}
    remedy = wider.get(dtype, "dtype='float64'")
    return (
        f"{name}: {len(bad)} of {out.numel()} entries (the first at {bad[0].tolist()}) are not finite as {dtype}, "
        f"whose largest number is {torch.finfo(out.dtype).max:.5g}, although all that they are made of is. "
        f"Pass {remedy}."
    )
