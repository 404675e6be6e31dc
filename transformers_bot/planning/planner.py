"""The plan: every source and target tensor exactly once, decided from configs alone.

A target tensor is one of
    copy      the source tensor as it is
    resample  computed from one or more source tensors by a recipe
    fresh     initialised by transformers' own rules, with the reason
    tie       the same tensor as another target tensor
and a source tensor that no target reads is dropped, with the reason.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..architectures.adapter import FIXED, Adapter, Roles, Rule, Sizes, find_rule
from ..architectures.inventory import Inventory, rules_of
from ..architectures.sizes import crossing, field_warnings, smaller_roles
from ..console.text import printable
from ..errors import BadOption, BadSize, IncompatibleModels, PlanError
from ..methods import Fresh, Linear, Method, Task
from ..ops.axis_map import forget_large
from ..ops.recipe import Read, Recipe, Rows, is_identity
from ..rewrite.network import alternations
from .presence import check_tensors_stay


def general_warnings(
    adapter: Adapter,
    configs: tuple[Any, Any],
    sizes: tuple[Sizes, Sizes],
    renewed: Sequence[str],
    model_class: str,
    lists: Mapping[str, Any] | None = None,
) -> list[str]:
    """Warnings about the (source, target) configs and sizes, newly initialised tensors and the target's class.

    Args:
        lists: as for `field_warnings`.
    """
    warnings = []
    # transformers warns of it when it builds the model, but its messages are off at that point.
    flag = adapter.causal_flag
    if flag and not getattr(configs[1], flag) and model_class in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        warnings.append(f"{model_class} sees the words that come next: to generate text, pass {flag}=True")
    warnings += field_warnings(adapter, *configs, lists)
    if _labels_disagree(*configs):
        warnings.append("label2id does not fit id2label: it is kept as it is. Give both where one changes")
    if renewed:
        shown = ", ".join(renewed[:4]) + (", ..." if len(renewed) > 4 else "")
        subject = "1 tensor is" if len(renewed) == 1 else f"{len(renewed)} tensors are"
        warnings.append(f"{subject} newly initialised, train the model before use: {shown}")
    if smaller := smaller_roles(adapter.roles, sizes):
        roles = " and ".join(smaller)
        warnings.append(f"shrinking {roles} loses part of the source's function: train the model before use")
    for place in adapter.roles.of("place"):
        if _change(sizes, place) > 0:
            grown = f"{sizes[0][place]} -> {sizes[1][place]}"
            warnings.append(f"text positions {grown}: the new ones have never been trained")
    for role in adapter.roles.of("frequency"):
        before, after = (side.get(role) or 1 for side in sizes)
        if max(before, after) % min(before, after):
            noun = adapter.roles[role].noun
            warnings.append(
                f"{noun} {before} -> {after} is not a whole multiple: each pair takes the nearest source frequency"
            )
    return warnings


def _known(sizes: Sizes) -> dict[str, int]:
    return {role: length for role, length in sizes.items() if length is not None}


def _change(sizes: tuple[Sizes, Sizes], role: str) -> int:
    before, after = (side.get(role) or 0 for side in sizes)
    return after - before


def _labels_disagree(source: Any, target: Any) -> bool:
    """Whether the target has new label names (id2label), but label2id does not match them."""
    names, numbers = target.id2label, target.label2id
    changed = names is not None and (names, numbers) != (source.id2label, source.label2id)
    return changed and numbers is not None and numbers != {name: number for number, name in names.items()}


MAX_READS = 1 << 20  # the most reads in a plan; each needs about 200 bytes
RENEWED = "its place in the target is initialised anew"
FOREIGN = "not part of "
ABSENT = "the source has no such tensor"


@dataclass(frozen=True, repr=False)
class Step:
    """What happens to one target tensor.

    Attributes:
        target: its name.
        action: "copy", "resample", "fresh" or "tie".
        shape: its shape.
        reads: what the recipe reads -> name of that source tensor.
        source_shape: the shape of the source's tensors of the same rule, None if it has none.
        recipe: how it is computed, None for "fresh" and "tie".
        reason: why it is fresh or tied, or how it is resampled.
    """

    target: str
    action: str
    shape: tuple[int, ...]
    reads: dict[Read, str] = field(default_factory=dict)
    source_shape: tuple[int, ...] | None = None
    recipe: Recipe | None = None
    reason: str = ""

    def __repr__(self) -> str:
        before = f"{self.source_shape} -> " if self.source_shape else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"<Step: {self.action} {printable(self.target)} {before}{self.shape}{printable(reason)}>"

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """The step as JSON types."""
        reads = self.recipe.reads if self.recipe else ()
        return {
            "target": self.target,
            "action": self.action,
            "shape": list(self.shape),
            "sources": sorted(set(self.reads.values())),
            "source_shape": list(self.source_shape) if self.source_shape else None,
            "layers": [[read.layer, read.weight] for read in reads if read.layer is not None],
            "reason": self.reason,
        }


@dataclass(frozen=True, repr=False)
class Plan:
    """The whole resize, before any weight is read. Print it, or take `to_dict()`.

    Attributes:
        source: the source's inventory.
        target: the target's inventory.
        source_sizes: role -> length.
        target_sizes: role -> length.
        steps: one per target tensor, in the target's order.
        dropped: source tensor -> why no target tensor reads it.
        method: the method's choices.
        warnings: sentences a user should read.
        dtypes: of source and target.
        roles: what the roles of the architecture are.
    """

    source: Inventory
    target: Inventory
    source_sizes: dict[str, int | None]
    target_sizes: dict[str, int | None]
    steps: tuple[Step, ...]
    dropped: dict[str, str]
    method: dict[str, Any]
    warnings: tuple[str, ...]
    dtypes: tuple[torch.dtype, torch.dtype]
    roles: Roles = field(default_factory=Roles)

    def __repr__(self) -> str:
        from .render import plan_lines

        return plan_lines(self)

    def _repr_html_(self) -> str:
        from .render import plan_page

        return plan_page(self)

    def __str__(self) -> str:
        from .render import render

        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """All that the printed plan shows, as JSON types."""
        return {
            "source": {"model_class": self.source.model_class, "sizes": _known(self.source_sizes)},
            "target": {"model_class": self.target.model_class, "sizes": _known(self.target_sizes)},
            "method": self.method,
            "steps": [step.to_dict() for step in self.steps],
            "dropped": dict(self.dropped),
            "parameters": {"source": self.source_parameters, "target": self.parameters},
            "bytes": {"source": self.source_bytes, "target": self.target_bytes},
            "inherited": self.inherited,
            "warnings": list(self.warnings),
        }

    def names(self, action: str) -> list[str]:
        return [step.target for step in self.steps if step.action == action]

    @property
    def renewed(self) -> list[str]:
        """Dropped source tensors whose place in the target is initialised anew."""
        return [name for name, reason in self.dropped.items() if reason == RENEWED]

    @property
    def left_out(self) -> list[str]:
        """Dropped source tensors that the target's class has no place for, such as another head."""
        return [name for name, reason in self.dropped.items() if reason.startswith(FOREIGN)]

    @property
    def parameters(self) -> int:
        """Parameters of the target; tied ones count once."""
        return sum(step.parameters for step in self.steps if step.action != "tie")

    @property
    def source_parameters(self) -> int:
        """Parameters of the source; tied ones count once."""
        return sum(math.prod(shape) for name, shape in self.source.shapes.items() if name not in self.source.ties)

    @property
    def source_bytes(self) -> int:
        """Bytes of the source's parameters, as they are stored."""
        return int(self.source_parameters * self.dtypes[0].itemsize)

    @property
    def target_bytes(self) -> int:
        """Bytes of the target's parameters."""
        return int(self.parameters * self.dtypes[1].itemsize)

    @property
    def positions(self) -> int | None:
        """Text positions of the target, None where it has no table of them."""
        return next((self.target_sizes[role] for role in self.roles.of("place")), None)

    @property
    def shrinks(self) -> bool:
        """Whether some role gets shorter: the result has lost a part of the source and must be trained."""
        return bool(smaller_roles(self.roles, (self.source_sizes, self.target_sizes)))

    @property
    def inherited(self) -> float:
        """The share of the target's parameters that comes from the source."""
        inherited = sum(step.parameters for step in self.steps if step.action in ("copy", "resample"))
        return inherited / max(1, self.parameters)


@dataclass(frozen=True)
class Side:
    """The source or the target of a resize.

    Attributes:
        config: of the model.
        sizes: role -> length.
        inventory: the tensors of its class.
        dtype: of its weights.
        absent: tensors of the inventory that the checkpoint does not hold.
        extra: tensors that the checkpoint holds beside the inventory.
        kept: of a target: role -> the entries of the source that it keeps of an axis that is never resampled.
        numbered: of a target: the source's config with the numbers that these entries have in the target.
    """

    config: Any
    sizes: dict[str, int | None]
    inventory: Inventory
    dtype: torch.dtype
    absent: frozenset[str] = frozenset()
    extra: tuple[str, ...] = ()
    kept: Mapping[str, Rows] = field(default_factory=dict)
    numbered: Any = None

    @property
    def held(self) -> set[str]:
        """Tensors that the checkpoint holds and that are not tied to another one."""
        return set(self.inventory.shapes) - set(self.inventory.ties) - self.absent


@dataclass(frozen=True)
class Pairing:
    """Which source tensors belong to each target tensor, before any recipe is made.

    Attributes:
        source_rules: source name -> its rule and layer.
        rules: target name -> its rule and layer.
        templates: target name -> its name with the layer left open.
        stacks: template -> layer -> the source's tensor.
        shapes_before: target tensor with a counterpart -> the shape of its source tensors.
        clashes: target tensor with a counterpart -> the fixed role whose length differs; such a tensor is
            initialised anew.
    """

    source_rules: dict[str, tuple[Rule, int | None]]
    rules: dict[str, tuple[Rule, int | None]]
    templates: dict[str, str]
    stacks: dict[str, dict[int | None, str]]
    shapes_before: dict[str, tuple[int, ...]]
    clashes: dict[str, str]

    @property
    def counterparts(self) -> list[str]:
        """Target tensors that can be made of source tensors."""
        return [name for name in self.shapes_before if name not in self.clashes]


def pair(
    adapter: Adapter, source: Side, target: Side, method: Method, renew: bool = False, calibrated: bool = False
) -> Pairing:
    """Find the source tensors of every target tensor; raise what needs no recipe to be seen.

    Args, Raises: as `make_plan`.
    """
    task = task_of(adapter, source, target, calibrated)
    method.check(task)
    _check_groups(task, method)
    _check_ties(source, target)
    source_rules = rules_of(adapter, source.inventory, source.sizes)
    rules = rules_of(adapter, target.inventory, target.sizes)
    inventories = source.inventory, target.inventory
    outside = _outside(source.inventory, source_rules), _outside(target.inventory, rules)
    if outside[0] != outside[1]:
        check_tensors_stay(adapter, (source.config, target.config), inventories, outside)
    templates = {name: rule.template(target.inventory.canonical(name)) for name, (rule, _) in rules.items()}
    stacks: dict[str, dict[int | None, str]] = {}
    for name, (rule, layer) in source_rules.items():
        if name not in source.absent:
            stacks.setdefault(rule.template(source.inventory.canonical(name)), {})[layer] = name
    source_shapes: dict[str, tuple[int, ...]] = {}
    clashes: dict[str, str] = {}
    for name, (rule, _) in rules.items():
        available = stacks.get(templates[name])
        if not available or name in target.inventory.ties:
            continue
        source_shapes[name], shape = (
            source.inventory.shapes[next(iter(available.values()))],
            target.inventory.shapes[name],
        )
        clash = _clash(rule, task, source_shapes[name], shape)
        if clash and not renew:
            configs = source.config, target.config
            raise IncompatibleModels(_clash_message(adapter, clash, name, source_shapes[name], shape, configs))
        if clash:
            clashes[name] = clash
    return Pairing(source_rules, rules, templates, stacks, source_shapes, clashes)


def make_plan(
    adapter: Adapter, source: Side, target: Side, method: Method, renew: bool = False, calibrated: bool = False
) -> Plan:
    """Pair every tensor of the target with the source.

    Args:
        renew: tensors whose fixed axes (vocabulary, labels, ...) differ are initialised anew
            instead of being an error (transformers' `ignore_mismatched_sizes=True`).
        calibrated: the source will be run on a few batches first.

    Raises:
        IncompatibleModels: a fixed axis differs and `renew` is off.
        PlanError: a tensor without a rule.
    """
    try:
        return _plan(adapter, source, target, method, renew, calibrated)
    finally:
        forget_large(*_mapped_lengths(adapter, source, target))


def _mapped_lengths(adapter: Adapter, source: Side, target: Side) -> tuple[list[int], list[int]]:
    """The lengths that maps are made for, on both sides: the counts of layers, then those of all other roles."""
    resampled = adapter.roles.of("stream", "unit", "entry", "frequency", "place", "grid")
    layers, entries = (
        [side.sizes[role] or 0 for side in (source, target) for role in roles]
        for roles in (adapter.roles.of("depth"), resampled)
    )
    return layers, entries


def _plan(adapter: Adapter, source: Side, target: Side, method: Method, renew: bool, calibrated: bool) -> Plan:
    task = task_of(adapter, source, target, calibrated)
    pairing = pair(adapter, source, target, method, renew, calibrated)
    steps = list(_steps(task, target, method, pairing))
    renewed = [step.target for step in steps if step.action == "fresh"]
    fresh = {pairing.templates[name] for name in renewed}
    sizes = source.sizes, target.sizes
    configs = target.numbered or source.config, target.config
    lists = method.lists(task, source.config) if isinstance(method, Linear) else {}
    advice = general_warnings(adapter, configs, sizes, renewed, target.inventory.model_class, lists)
    advice += [sentence for rows in target.kept.values() for sentence in rows.remarks]
    crossed = crossing(adapter, source.extra)
    if crossed:
        subject = (
            "1 tensor of cross attention is" if len(crossed) == 1 else f"{len(crossed)} tensors of cross attention are"
        )
        advice.append(f"{subject} left out, the decoder no longer reads another model: {crossed[0]}, ...")
    read = {name for step in steps for name in step.reads.values()}
    dropped = _dropped(source, target, pairing.source_rules, read, set(pairing.templates.values()), fresh)
    return Plan(
        source.inventory,
        target.inventory,
        source.sizes,
        target.sizes,
        tuple(steps),
        dropped,
        method.describe(task),
        (*_about_left_out(dropped, crossed, target), *advice, *method.warnings(task)),
        (source.dtype, target.dtype),
        adapter.roles,
    )


def _outside(inventory: Inventory, rules: dict[str, tuple[Rule, int | None]]) -> set[str]:
    """The tensors outside of the layers, without the base model's prefix."""
    return {inventory.canonical(name) for name, (rule, _) in rules.items() if not rule.layered}


def _check_ties(source: Side, target: Side) -> None:
    if getattr(source.config, "tie_word_embeddings", False):
        return
    untied = sorted(source.held.intersection(target.inventory.ties))
    if untied:
        raise IncompatibleModels(
            f"the source has a {untied[0]} of its own, which the target config ties to "
            f"{target.inventory.ties[untied[0]]}: it would be lost. Set tie_word_embeddings=False in the target config."
        )


def task_of(adapter: Adapter, source: Side, target: Side, calibrated: bool = False) -> Task:
    wants_tie = bool(getattr(target.config, "tie_word_embeddings", False))
    modules = {target.inventory.canonical(name).rpartition(".")[0] for name in target.inventory.shapes}
    tied = wants_tie and (bool(target.inventory.ties) or adapter.readout)
    tied = tied or not modules.isdisjoint(adapter.implied_ties)
    gains = {}
    for name, gain in adapter.gains.items():
        before, after = gain(source.config), gain(target.config)
        if before is not None and (name in adapter.roles or _has(adapter, name, target.inventory)):
            gains[name] = 1.0 if after is None else after / before
    # Entries are picked of what a method makes of all of them, so that methods need not know of it.
    sizes = {**target.sizes, **{role: source.sizes[role] for role in target.kept}}
    return Task(adapter, source.sizes, sizes, tied, gains, calibrated)


def _steps(task: Task, target: Side, method: Method, pairing: Pairing) -> Iterator[Step]:
    """A step for every tensor of the target.

    Raises:
        BadSize: the plan has more than `MAX_READS` reads, so that it alone would take gigabytes.
    """
    reads = 0
    for name in pairing.rules:
        step = _step(name, task, target, method, pairing)
        reads += len(step.reads)
        if reads > MAX_READS:
            before, after = task.lengths(pairing.rules[name][0].depth or task.roles.depths[0])
            raise BadSize(
                f"from {before} to {after} layers this method makes one tensor of as many as {len(step.reads)}: "
                f"a plan holds at most {MAX_READS:,} reads of tensors. Choose fewer layers, or a rule for depth that "
                "mixes fewer of them."
            )
        yield step


def _step(name: str, task: Task, target: Side, method: Method, pairing: Pairing) -> Step:
    shape, (rule, layer), template = target.inventory.shapes[name], pairing.rules[name], pairing.templates[name]
    if name in target.inventory.ties:
        return Step(name, "tie", shape, reason=f"tied to {target.inventory.ties[name]}")
    before = pairing.shapes_before.get(name)
    if before is None:
        return Step(name, "fresh", shape, reason=ABSENT)
    if name in pairing.clashes:
        reason = f"{pairing.clashes[name]} differs: {before} -> {shape}"
        return Step(name, "fresh", shape, source_shape=before, reason=reason)
    recipe = _with_direction(task, method, rule, layer, template)
    if isinstance(recipe, Fresh):
        return Step(name, "fresh", shape, reason=recipe.reason)
    recipe, stacks = _compensated(task, rule, template, recipe), pairing.stacks
    if not (rule.depth and task.roles[rule.depth].numbered):  # layers of several kinds are not mixed
        recipe = recipe.with_reads(partial(_nearest, stacks))
    if orders := alternations(rule, task.target):
        recipe = replace(recipe, alternations=orders)
    recipe = _picked(recipe, rule, target.kept)
    missing = [read for read in recipe.needs if read.layer not in stacks.get(read.name, {})]
    if missing and layer is not None and missing[0].name in stacks:
        raise IncompatibleModels(
            f"{name} is made of layer {missing[0].layer} of the source, which has no such tensor: its layers are of "
            "several kinds, which are neither averaged nor turned into each other. Leave depth, and the fields that "
            "say which layers are of which kind, at their defaults."
        )
    if missing:
        raise PlanError(f"target tensor {name!r} needs {missing[0]} of the source, which does not have it.")
    reads = {read: stacks[read.name][read.layer] for read in recipe.needs}
    action = "copy" if recipe.is_copy else "resample"
    return Step(name, action, shape, reads, before, recipe, recipe.note)


def _picked(recipe: Recipe, rule: Rule, kept: Mapping[str, Rows]) -> Recipe:
    """The recipe, of whose result only the kept entries stay.

    Raises:
        PlanError: such entries are a part of an axis.
    """
    picks = []
    for dim, axis in enumerate(rule.axes):
        roles = {factor.role for segment in axis.segments for factor in segment}
        for role in roles & kept.keys():
            if len(roles) > 1 or len(axis.segments) > 1 or len(axis.segments[0]) > 1:
                raise PlanError(f"{role} shares an axis in the rule {rule.text!r}: its entries cannot be picked there.")
            picks.append((dim, kept[role]))
    if not picks:
        return recipe
    return replace(recipe, picks=tuple(picks), note=", ".join(filter(None, [recipe.note, picks[0][1].note])))


def _nearest(stacks: dict[str, dict[int | None, str]], read: Read) -> Read:
    """A read of a tensor that its layer does not have, of the nearest layer that has it: the first layer may lack a
    norm, and be the only one with a table that all read.
    """
    layers = [layer for layer in stacks.get(read.name, {}) if layer is not None]
    if read.layer is None or read.layer in layers or not layers:
        return read
    return replace(read, layer=min(layers, key=lambda layer: (abs(layer - (read.layer or 0)), layer)))


def _with_direction(task: Task, method: Method, rule: Rule, layer: int | None, name: str) -> Recipe | Fresh:
    """The method's recipe. A direction (see `Adapter.weight_norms`) gets no noise, which would change its length, and
    what its length becomes goes into the tensor of lengths.
    """
    recipe, pairs = method.recipe(task, rule, layer, name), task.adapter.weight_norms
    if isinstance(recipe, Fresh):
        if name in pairs or name in pairs.values():
            raise BadOption(
                f"method={method.name!r} leaves {name} to transformers, which cannot initialise a weight that is "
                "stored as length and direction. Build such a model with from_config of transformers' Auto class."
            )
        return recipe
    if name in pairs.values():
        return replace(recipe, detail=None)
    if name not in pairs:
        return recipe
    direction = method.recipe(task, find_rule(task.adapter.rules, pairs[name], task.target)[0], layer, pairs[name])
    if isinstance(direction, Fresh) or is_identity(direction.maps):
        return recipe
    return replace(recipe, direction=replace(direction, detail=None))


def _check_groups(task: Task, method: Method) -> None:
    """Refuse maps of a stream that go over the groups of a grouped convolution (see `Role.grouped`).

    Raises:
        BadSize: another number of groups.
        BadOption: such maps.
    """
    for stream in task.roles.streams:
        member = task.roles[stream].grouped
        if not member or not isinstance(method, Linear):
            continue
        noun, model_type = task.roles[stream].noun, task.adapter.model_type
        before, after = (a // b for a, b in zip(task.lengths(stream), task.lengths(member), strict=True))
        if before != after:
            raise BadSize(
                f"{' or '.join(_fields_of_groups(task, stream))} goes from {before} to {after}: a convolution of "
                f"{model_type} models reads the {noun} of a group only, so they cannot move to another group. Keep "
                f"{before} groups."
            )
        if stream not in task.changes("stream"):
            continue
        whole, own = (method.axis_pair(task, role, *task.lengths(role), None) for role in (stream, member))
        groups = np.eye(before)
        sides = ((whole.produce, own.produce), (whole.consume, own.consume))
        if not all(np.allclose(both.dense(), np.kron(groups, part.dense())) for both, part in sides):
            raise BadOption(
                f"method={method.name!r} with these options moves {noun} between the groups of a convolution of "
                f"{model_type} models, or mixes them. Use method='bot' with wavelet='auto'."
            )


def _fields_of_groups(task: Task, stream: str) -> list[str]:
    """The config fields that divide a stream and are the number of nothing else, such as heads."""
    roles = task.roles
    counted = {role.size for role in roles.values()}
    return [part for part, whole in task.adapter.divides if whole == roles[stream].field and part not in counted]


def _read_streams(adapter: Adapter, module: str) -> set[str]:
    """The roles of streams that a module outside of the layers reads, as an output embedding does."""
    rules = [rule for rule in adapter.rules if rule.maps and rule.match(f"{module}.weight")[0]]
    factors = (factor for rule in rules for factor in rule.factors)
    return {f.role for f in factors if f.reads and adapter.roles.kind(f.role) == "stream"}


def _has(adapter: Adapter, module: str, inventory: Inventory) -> bool:
    """Whether a class has a module, of tied tables the one that holds, or is the body without any head."""
    read = _read_streams(adapter, module)
    modules = {inventory.canonical(name).rpartition(".")[0]: name in inventory.ties for name in inventory.shapes}
    if not read:
        return not modules.get(module, True)
    return module in modules or not any(read & _read_streams(adapter, other) for other in modules)


def _compensated(task: Task, rule: Rule, name: str, recipe: Recipe) -> Recipe:
    """The recipe, corrected for the factors of the forward pass that depend on a size (see `Adapter.gains`).

    A table whose rows the model multiplies by g takes 1 / g. Where the same table is the output embedding, which
    nothing multiplies, the norm in front of it takes g; where the model multiplies what the output embedding gives
    by g, that norm takes 1 / g. Other readers of that norm, such as a classifier, take the inverse of its factor. A
    norm that multiplies by 1 + w is mapped as 1 + w.
    """
    roles, norms, stem = task.roles, task.adapter.norm_names, name.rpartition(".")[0]
    modules = {module: gain for module, gain in task.gains.items() if module not in roles}
    gain = 1 / modules.get(stem, 1.0)
    followers = [f for f in rule.factors if roles.is_network_wide(f.role) and roles.leader(f.role) != f.role]
    if task.tied and followers and (stem in norms or any(factor.reads for factor in followers)):
        reads = {module: bool(_read_streams(task.adapter, module)) for module in modules}
        others = [(module, gain) for module, gain in modules.items() if module not in norms]
        tables = math.prod(1 / other if reads[module] else other for module, other in others)
        gain = gain * tables if stem in norms else gain / tables
    if stem in norms and norms[stem].gain == "1+w" and name.endswith(".weight"):
        recipe = replace(recipe, shift=1.0)
    if gain == 1.0:
        return recipe
    return replace(recipe, reads=tuple(replace(read, weight=read.weight * gain) for read in recipe.reads))


def _clash(rule: Rule, task: Task, source_shape: tuple[int, ...], shape: tuple[int, ...]) -> str | None:
    """The fixed role, if any, in which source and target tensor differ."""
    for axis, before, after in zip(rule.axes, source_shape, shape, strict=True):
        for segment in axis.segments:
            for factor in segment:
                if not factor.role or task.roles.kind(factor.role) not in FIXED:
                    continue
                source_length = task.source[factor.role]
                differs = before != after if source_length is None else source_length != task.target[factor.role]
                if differs:
                    return factor.role
    return None


def _clash_message(
    adapter: Adapter,
    role: str,
    name: str,
    source: tuple[int, ...],
    target: tuple[int, ...],
    configs: tuple[Any, Any],
) -> str:
    differs = f"{name} is {source} in the source and {target} in the target config: "
    advice = adapter.clash(role, name, *configs) if adapter.clash else None
    if advice:
        return differs + advice
    known_role = adapter.roles[role]
    return (
        f"{differs}{role} entries have an identity of their own and are never resampled. Set {known_role.field} to the "
        "source's value, or pass ignore_mismatched_sizes=True to initialise such tensors anew."
        f"{known_role.remedy and ' '}{known_role.remedy}"
    )


def _about_left_out(dropped: dict[str, str], mentioned: Collection[str], target: Side) -> list[str]:
    """A warning about source tensors that the target's class has no place for, except those that have one already."""
    names = [name for name, reason in dropped.items() if reason.startswith(FOREIGN) and name not in mentioned]
    if not names:
        return []
    count = "1 tensor of the source is" if len(names) == 1 else f"{len(names)} tensors of the source are"
    shown = ", ".join(printable(name)[:100] for name in names[:4]) + (", ..." if len(names) > 4 else "")
    return [f"{count} left out, because {target.inventory.model_class} has no place for such: {shown}"]


def _dropped(
    source: Side,
    target: Side,
    source_rules: dict[str, tuple[Rule, int | None]],
    read: set[str],
    made_templates: set[str],
    fresh: set[str],
) -> dict[str, str]:
    foreign = FOREIGN + target.inventory.model_class
    dropped = dict.fromkeys(source.extra, foreign)
    held = source.held
    for name, (rule, _) in source_rules.items():
        if name in read or name not in held:
            continue
        template = rule.template(source.inventory.canonical(name))
        reason = "no target tensor is made of it" if template in made_templates else foreign
        dropped[name] = RENEWED if template in fresh else reason
    return dropped
