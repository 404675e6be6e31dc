"""Opens a source against a target: checked files, memory-mapped tensors, the plan for what they hold."""

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from .. import methods
from ..architectures import Adapter
from ..architectures.axes import find_rule
from ..architectures.inventory import class_in_mapping, inventory_of, named_class, own_class, predict, rules_of
from ..architectures.sizes import without_crossing
from ..compat import check_room, quiet, reuse
from ..console import progress
from ..console.progress import logger
from ..errors import BadCheckpoint, BadWeights, PlanError, UnsupportedArchitecture
from ..hub.provenance import without_places
from ..io.checkpoint import Checkpoint, Source, check_amount, check_files, open_source, stored_dtype
from ..io.companions import code_of
from ..io.files import has_file, is_folder
from ..io.weights import find_nonfinite, nonfinite_message, wrapper_hint
from ..methods import Method, Task
from ..planning.planner import ABSENT, Pairing, Plan, Side, make_plan, pair, task_of
from ..request.request import Keywords, Request, asked_dtype, init_keywords
from ..request.source_class import with_likely_class
from ..rewrite import Network, Opened, OutOfRange, Place

CODE_FIELDS = ("auto_map", "custom_pipelines")


@dataclass(frozen=True)
class Resize:
    """A resize with its source open: everything is decided, nothing is computed yet.

    Attributes:
        request: what the call asks for.
        checkpoint: the source's files, as they were checked.
        opened: the source, memory-mapped.
        config: of the target, with the fields that the checkpoint and the method decide.
        plan: every tensor exactly once.
        tensors: source name -> tensor, rewritten where the method does so.
        method: as it is after it has seen the source.
        task: what it is asked to do.
    """

    request: Request
    checkpoint: Checkpoint
    opened: Source
    config: PreTrainedConfig
    plan: Plan
    tensors: Mapping[str, torch.Tensor]
    method: Method
    task: Task

    @property
    def dtype(self) -> torch.dtype:
        """Of the target."""
        return self.plan.dtypes[1]


def open_resize(request: Request) -> Resize:
    """Check the source's files, open them and plan the resize.

    What configs can refuse is refused before any file is fetched, what file headers can before any
    weight is read.

    Raises:
        BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint: files that cannot or must not be read.
        BadWeights: NaN or infinity in the source, unless `nonfinite` says otherwise.
        TooLittleMemory: not even one tensor could be made.
        What `make_plan` raises.
    """
    reuse()
    name, keywords = request.name, request.keywords
    # Files that are here are looked at before the tensors of two configs, which can be many where one is damaged.
    here = any(Path(name, request.subfolder or "").glob("*.safetensors"))
    with progress.part("checking the source", progress.CHECKING_SECONDS) as checking:
        checkpoint = _checked(request) if here else None
        request = _of_likely_class(request, checkpoint)
        checking.at(0.5)
        expected, paired = check_request(request)
        if checkpoint is None:
            checkpoint = _checked(request)
            request = _of_likely_class(request, checkpoint)
    with progress.part("opening the source", progress.OPENING_SECONDS):
        opened = open_checked(
            request.model_class, name, without_crossing(request.source), keywords.of_files, checkpoint, keywords.init
        )
    with progress.part("looking for NaN and infinity", progress.LOOKING_SECONDS):
        gaps, odd = _refuse_gaps(request, opened), _refuse_nonfinite(opened, keywords)
    spoiled = bool(odd) and keywords.nonfinite == "warn" and not request.calibrated
    config, plan, tensors, method, task = _plan_opened(request, opened, expected, spoiled)
    _check_room(((step.target, step.shape) for step in plan.steps if step.action == "resample"), plan.dtypes[1])
    progress.expects(progress.resizing_seconds(plan) + progress.finishing_seconds(plan))
    _refuse_low_share(request, paired, plan)
    config, coded = _without_code(config)
    notes = (*request.notes, *_about_generation(request, {**keywords.of_files, **as_checked(checkpoint)}))
    said = (*notes, *plan.warnings, *checkpoint.notes, *gaps, *odd, *coded)
    plan = replace(plan, warnings=without_places(said, name))
    logger.info("%s", plan)  # rendered only where it is shown
    return Resize(request, checkpoint, opened, config, plan, tensors, method, task)


def check_request(request: Request) -> tuple[Side, Pairing]:
    """Refuse what two configs can refuse, before any file is fetched: the source is taken to hold what its class does.

    Returns:
        The target as configs alone make it, and which of its tensors the source has a counterpart of.

    Raises:
        What `pair` raises.
    """
    source, target = config_sides(request, own_class(request.source))
    paired = pair(
        request.adapter, source, target, request.method, request.keywords.ignore_mismatched_sizes, request.calibrated
    )
    other = (name for name in paired.counterparts if paired.shapes_before[name] != target.inventory.shapes[name])
    _check_room(((name, target.inventory.shapes[name]) for name in other), target.dtype)
    return target, paired


def config_sides(
    request: Request, source_class: type[PreTrainedModel], beside: tuple[str, ...] = ()
) -> tuple[Side, Side]:
    """Both ends of a resize as their configs tell them, without any checkpoint.

    Args:
        source_class: of the weights.
        beside: names of further tensors that the source is known to hold.
    """
    source_config, wanted, keywords = request.source, request.target, request.keywords
    before, after = request.sizes
    stored = asked_dtype(None, source_config) or torch.float32
    dtype = asked_dtype(keywords.dtype, wanted) or stored
    alone = without_crossing(source_config)
    with quiet():
        held = predict(source_class, alone)
        whole = held if alone is source_config else predict(source_class, source_config)
        crossed = tuple(name for name in whole.shapes if name not in held.shapes)
        source = Side(alone, before, held, stored, extra=(*crossed, *beside))
        target = Side(wanted, after, predict(request.model_class, wanted, keywords.init), dtype)
    return source, target


def _check_room(made: Iterable[tuple[str, tuple[int, ...]]], dtype: torch.dtype) -> None:
    """Refuse a resize of which not even one tensor could be made."""
    name, shape = max(made, key=lambda tensor: math.prod(tensor[1]), default=("", ()))
    if name:
        check_room(
            math.prod(shape) * dtype.itemsize,
            f"the tensor {name} of shape {shape}",
            "Choose smaller sizes, or a machine with more.",
        )


def _checked(request: Request) -> Checkpoint:
    """The source's files, and that they hold about as much as its config says; a folder's cost no download."""
    checkpoint = check_files(request.name, request.keywords.of_files, allow_pickle=request.keywords.allow_pickle)
    with quiet():
        own = predict(own_class(request.source), request.source)
    check_amount(checkpoint, own.shapes, own.ties)
    return checkpoint


def _of_likely_class(request: Request, checkpoint: Checkpoint | None) -> Request:
    """The request with a source that names the class of its weights, where its files can tell it."""
    if checkpoint is None or named_class(request.source) is not None:
        return request
    likely = with_likely_class(request.adapter, request.source, checkpoint, request.model_class)
    return replace(request, source=likely)


def open_checked(
    model_class: type[PreTrainedModel],
    name: str,
    config: PreTrainedConfig,
    where: Mapping[str, Any],
    checkpoint: Checkpoint,
    init: Mapping[str, Any] | None = None,
) -> Source:
    """Open the very files that were checked into a class; see `open_source`.

    Args:
        where: hub and file keywords with which the files were found.
        init: keywords of the class's constructor.
    """
    return open_source(model_class, name, config, {**where, **(init or {}), **as_checked(checkpoint)}, checkpoint)


def _without_code(config: PreTrainedConfig) -> tuple[PreTrainedConfig, list[str]]:
    """The config without the fields that name code files of the source, which are never copied; and what they name."""
    named = {name: value for name in CODE_FIELDS if (value := getattr(config, name, None)) is not None}
    if not named:
        return config, []
    config = copy.deepcopy(config)
    for name in named:
        delattr(config, name)
    return config, [
        f"{name} in the config names code of the source ({code_of(value)}), which is not copied: it is left out"
        for name, value in named.items()
    ]


def as_checked(checkpoint: Checkpoint) -> dict[str, object]:
    """Keywords that keep transformers to the very files and commit that were checked."""
    safe = all(file.suffix == ".safetensors" for file in checkpoint.files)
    pinned: dict[str, object] = {"use_safetensors": safe} if safe else {"use_safetensors": False, "weights_only": True}
    if not checkpoint.revision:
        return pinned
    # Nothing is left to fetch: a thread that builds a model keeps others from doing so.
    return {**pinned, "revision": checkpoint.revision, "local_files_only": True, "force_download": False}


def refuse_unsound(request: Request, opened: Source) -> list[str]:
    """What an opened source lacks, has too much of, or holds instead of numbers: errors, or sentences."""
    return [*_refuse_gaps(request, opened), *_refuse_nonfinite(opened, request.keywords)]


def _refuse_gaps(request: Request, opened: Source) -> list[str]:
    """Tensors that should be there and are not, or that nobody knows: errors, or sentences where not strict."""
    name, adapter, config = request.name, request.adapter, request.source
    refused = refused_tensors(adapter, opened.unexpected)
    if refused:
        what = next(iter(refused.values()))
        raise UnsupportedArchitecture(
            f"{name} holds {len(refused)} tensors that are {what}: {_listed(list(refused))}. transformers no longer "
            "computes them, and without them the model is another one. Use another checkpoint."
        )
    inside, head = lost_tensors(config, opened)
    foreign = foreign_tensors(adapter, opened)
    architecture = own_class(config).__name__
    if inside:
        raise BadCheckpoint(
            f"{name} lacks {len(inside)} tensors of its own architecture {architecture}: {_listed(inside)}. "
            f"Nothing can stand in for them: use a complete checkpoint.{wrapper_hint(opened.unexpected)}"
        )
    found = []
    if head:
        text = f"{name} lacks {len(head)} tensors of the head of its own architecture {architecture}: {_listed(head)}"
        found.append((text, "Use a complete checkpoint, or pass strict=False to initialise them anew."))
    if foreign:
        text = f"{name} holds {len(foreign)} tensors that no {config.model_type} model has: {_listed(foreign)}"
        found.append((text, f"Pass strict=False to leave them out.{wrapper_hint(foreign)}"))
    if found and request.keywords.strict:
        raise BadCheckpoint(". ".join(found[0]))
    return [text for text, _ in found]


def _refuse_nonfinite(opened: Source, keywords: Keywords) -> list[str]:
    """NaN and infinity in the source: an error, a sentence, or zeros in their place."""
    held = ((n, x) for n, x in opened.model.state_dict().items() if n not in opened.missing)
    found = find_nonfinite({n: x for n, x in held if x.is_floating_point() and not x.is_meta})
    if not found:
        return []
    message = nonfinite_message(found)
    if keywords.nonfinite == "error":
        raise BadWeights(f"{message}. Use a sound checkpoint, or pass nonfinite='zero' (or 'warn') to go on.")
    if keywords.nonfinite == "warn":
        return [f"{message}; shrinking neither turns the stream nor orders units by weights that are no numbers"]
    for name in found:
        stored = opened.model.get_parameter_or_buffer(name)
        stored.data = torch.nan_to_num(stored.data, nan=0.0, posinf=0.0, neginf=0.0)
    return [f"{message}; they were set to zero"]


def _about_generation(request: Request, where: Mapping[str, Any]) -> list[str]:
    """A sentence where the source has settings for generating and the target does not generate."""
    name, model_class = request.name, request.model_class
    if model_class.can_generate() or not (is_folder(name) or own_class(request.source).can_generate()):
        return []
    if not has_file(name, GENERATION_CONFIG_NAME, where):
        return []
    return [f"{GENERATION_CONFIG_NAME} of the source is left out: {model_class.__name__} does not generate"]


def _refuse_low_share(request: Request, paired: Pairing, plan: Plan) -> None:
    """What the configs promise to inherit is inherited; a checkpoint that gives less lacks something."""
    absent = [step for step in plan.steps if step.action == "fresh" and step.reason == ABSENT]
    lost = [step for step in absent if step.target in paired.counterparts]
    if lost:  # seldom: what is optional takes two more models of no weights to know
        optional = optional_tensors(request.source)
        lost = [step for step in lost if plan.target.canonical(step.target) not in optional]
    if lost and request.keywords.strict:
        promised = plan.inherited + sum(step.parameters for step in lost) / max(1, plan.parameters)
        raise BadCheckpoint(
            f"only {100 * plan.inherited:.1f} % of the target's parameters would come from {request.name}, its config "
            f"promises {100 * promised:.1f} %: {_listed([step.target for step in lost])} would be initialised anew. "
            "Use a complete checkpoint, or pass strict=False."
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(name if name.isprintable() and len(name) < 100 else repr(name[:100]) for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def _plan_opened(
    request: Request, opened: Source, target: Side, spoiled: bool = False
) -> tuple[PreTrainedConfig, Plan, Mapping[str, torch.Tensor], Method, Task]:
    """The config that fits the checkpoint's ties, the plan for the tensors it holds, those tensors, method and task."""
    if spoiled:  # no basis and no order can be found among NaN
        request = _undirected(request)
    adapter, prefix = request.adapter, f"{request.model_class.base_model_prefix}."
    stored = stored_dtype(opened.model)
    extra = tuple(name for name in opened.unexpected if not adapter.is_buffer(name.removeprefix(prefix)))
    held = inventory_of(opened.model)
    source = Side(opened.model.config, request.sizes[0], held, stored, opened.missing, extra)
    target = replace(target, dtype=asked_dtype(request.keywords.dtype, target.config) or stored)
    with quiet():
        target = _settle_ties(request, source, target)
    task = task_of(adapter, source, target, request.calibrated)
    network = network_of(adapter, source, opened.model.state_dict(), target if task.tied else None)
    preparing = progress.preparing_seconds(task, network, request.keywords.calibration)
    progress.expects(preparing + progress.after_plan_seconds(network))
    with progress.part("looking at the weights", preparing):
        method, prepared, told = _prepared(task, network, opened, request)
    wanted = _with_method_fields(task, method, source, target)
    renew = request.keywords.ignore_mismatched_sizes
    plan = make_plan(adapter, source, target, method, renew, request.calibrated)
    return wanted, replace(plan, warnings=(*plan.warnings, *told)), prepared, method, task


def _undirected(request: Request) -> Request:
    """The same request to a method that looks at no weight: the stream is not turned and units keep their order."""
    options = replace(request.options, basis="plain", order="kept")
    return replace(request, options=options, method=methods.get(request.keywords.method, options))


def _prepared(
    task: Task, network: Network, opened: Source, request: Request
) -> tuple[Method, Mapping[str, torch.Tensor], list[str]]:
    """The method once it has seen the source, the tensors to read, and what there is to say.

    Where products of weights are beyond float32, everything is computed in float64. What is beyond that too
    decides nothing: the stream is not turned and units keep their order.

    Raises:
        BadWeights: such weights where the method, an option or calibration asks for what they cannot tell.
    """
    method, options = request.method, request.options
    method.check(task)
    asked = request.calibrated or options.basis == "principal" or options.order not in ("auto", "kept")
    edits = network.over(network.stored)  # preparing notes edits in the one that it is given
    try:
        return *method.prepare(task, Opened(edits, opened.model, request.keywords.calibration)), []
    except OutOfRange as error:
        reason = str(error)
        if request.calibrated:
            raise BadWeights(_out_of_range(reason)) from None
    try:
        wide = Network(network.adapter, network.sizes, network.stored, network.places, network.tied, wide=True)
        return *method.prepare(task, Opened(wide, opened.model)), []
    except OutOfRange:
        if asked or method.name != "bot":
            raise BadWeights(_out_of_range(reason)) from None
    told = f"{_out_of_range(reason)} The stream is not turned and units keep their order, as with basis='plain'."
    return *_undirected(request).method.prepare(task, Opened(network, opened.model)), [told]


def _out_of_range(what: str) -> str:
    return f"the weights are too large, or too small, to compute with: {what} is not finite. Scale or mend them."


def network_of(adapter: Adapter, source: Side, tensors: Mapping[str, torch.Tensor], tied: Side | None) -> Network:
    """The checkpoint's tensors with the meaning of their axes; `tied` is a target that ties some of them."""
    places = {
        name: Place(rule, layer, rule.template(source.inventory.canonical(name)))
        for name, (rule, layer) in rules_of(adapter, source.inventory, source.sizes).items()
        if name not in source.absent
    }
    pairs = tied.inventory.ties.items() if tied else ()
    shared = {tied.inventory.canonical(name) for pair in pairs for name in pair} if tied else set()
    held = frozenset(name for name in places if source.inventory.canonical(name) in shared)
    return Network(adapter, source.sizes, tensors, places, held)


def _with_method_fields(task: Task, method: Method, source: Side, target: Side) -> PreTrainedConfig:
    """The target config with the fields that the method's formula sets."""
    chosen = method.config_fields(task, source.config)
    if not chosen:
        return target.config
    wanted = copy.deepcopy(target.config)
    for name, value in chosen.items():
        setattr(wanted, name, value)
    return wanted


def _settle_ties(request: Request, source: Side, target: Side) -> Side:
    """An output embedding that the checkpoint holds apart, although its config ties it, stays apart."""
    if not getattr(source.config, "tie_word_embeddings", False) or source.held.isdisjoint(target.inventory.ties):
        return target
    wanted = copy.deepcopy(target.config)
    wanted.tie_word_embeddings = False
    return replace(target, config=wanted, inventory=predict(request.model_class, wanted, request.keywords.init))


# -- what a checkpoint lacks of its own architecture, and what it holds beyond any of its family ------


def lost_tensors(config: PreTrainedConfig, opened: Source) -> tuple[list[str], list[str]]:
    """Tensors that the source's own architecture has, the opened class wants, and the files do not hold.

    A head of another class than the source's own is no loss: it is new in the target. Nor is a pooler,
    which checkpoints often leave out.

    Returns:
        Those of the base model, and those of its head.
    """
    if not opened.missing:
        return [], []
    present = _names(own_class(config), config) - optional_tensors(config)
    here = inventory_of(opened.model)
    lost = [name for name in here.shapes if name in opened.missing and here.canonical(name) in present]
    base = _names(class_in_mapping("MODEL_MAPPING", config, "the source"), config)
    inside = [name for name in lost if here.canonical(name) in base]
    return inside, [name for name in lost if name not in inside]


def optional_tensors(config: PreTrainedConfig) -> set[str]:
    """Tensors of the source's own architecture that it can be built without: the pooler."""
    own = own_class(config)
    if "add_pooling_layer" not in init_keywords(own):
        return set()
    return _names(own, config) - _names(own, config, {"add_pooling_layer": False})


def foreign_tensors(adapter: Adapter, opened: Source) -> list[str]:
    """Tensors of the files that no model of this family has: without a rule, or of a layer beyond the config's."""
    prefix = f"{type(opened.model).base_model_prefix}."
    config = opened.model.config
    layers = {stack: int(getattr(config, adapter.roles[stack].field)) for stack in adapter.roles.depths}
    return [name for name in opened.unexpected if not _is_known(adapter, name.removeprefix(prefix), layers)]


def refused_tensors(adapter: Adapter, names: Iterable[str]) -> dict[str, str]:
    """Tensors without which a checkpoint computes another function, and what they are."""
    patterns = adapter.foreign.items()
    return {name: what for name in names for pattern, what in patterns if re.search(rf"(^|\.){pattern}$", name)}


def _names(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, init: Mapping[str, Any] | None = None
) -> set[str]:
    """The tensors of a class, without the base model's prefix."""
    with quiet():
        inventory = predict(model_class, config, init)
    return {inventory.canonical(name) for name in inventory.shapes}


def _is_known(adapter: Adapter, name: str, layers: Mapping[str, int]) -> bool:
    """Whether a rule names it, for one of the config's layers or outside of them, or it is one of those left out."""
    if adapter.is_left_out(name):
        return True
    try:
        rule, layer = find_rule(adapter.rules, name)
    except PlanError:
        return False
    return layer is None or layer < layers[rule.depth]
