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
from ..architectures.adapter import Adapter, find_rule
from ..architectures.inventory import class_in_mapping, inventory_of, named_class, own_class, predict, rules_of
from ..architectures.sizes import get_field, set_field, without_crossing
from ..compat import check_room, quiet, reuse
from ..console import progress
from ..console.progress import logger
from ..errors import BadCheckpoint, BadWeights, PlanError, UnsupportedArchitecture
from ..io.checkpoint import Checkpoint, Source, check_amount, open_source, stored_dtype
from ..io.companions import code_of
from ..io.config_files import without_places
from ..io.files import has_file, is_folder
from ..io.weights import find_nonfinite, nonfinite_message, wrapper_hint
from ..methods import Method, Task
from ..planning.planner import ABSENT, Pairing, Plan, Side, make_plan, pair, task_of
from ..request.request import Keywords, Request, asked_dtype, init_keywords
from ..request.source_class import with_likely_class
from ..request.vocabulary import renumber
from ..rewrite.network import Network, OutOfRange, Place
from ..rewrite.principal import Opened

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
        method: after it has seen the source's weights.
        task: what the method has to do.
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

    What the configs show to be impossible is refused before any file is fetched, and what the headers of files
    show before any weight is read.

    Raises:
        BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint: files that cannot or must not be read.
        BadWeights: NaN or infinity in the source, unless `nonfinite` says otherwise.
        TooLittleMemory: the largest tensor alone does not fit.
        What `make_plan` raises.
    """
    reuse()
    name, keywords = request.name, request.keywords
    # Local files are checked first: a damaged config can describe so many tensors that listing them takes long.
    here = any(Path(name, request.subfolder or "").glob("*.safetensors"))
    with progress.part("checking the source", progress.CHECKING_SECONDS) as checking:
        request = _with_files(request) if here else request
        checking.at(0.5)
        expected, paired = check_request(request)
        request = request if here else _with_files(request)
    checkpoint = request.files()
    with progress.part("opening the source", progress.OPENING_SECONDS):
        opened = open_checked(
            request.model_class, name, without_crossing(request.source), keywords.of_files, checkpoint, keywords.init
        )
    with progress.part("looking for NaN and infinity", progress.LOOKING_SECONDS):
        gaps, nonfinite = _refuse_gaps(request, opened), _refuse_nonfinite(opened, keywords)
    undirected = bool(nonfinite) and keywords.nonfinite == "warn" and not request.calibrated
    config, plan, tensors, method, task = _plan_opened(request, opened, expected, undirected)
    _check_room(((step.target, step.shape) for step in plan.steps if step.action == "resample"), plan.dtypes[1])
    progress.expects(progress.resizing_seconds(plan) + progress.finishing_seconds(plan))
    _refuse_low_share(request, paired, plan)
    config, code_notes = _without_code(config)
    notes = (*request.notes, *_about_generation(request, {**keywords.of_files, **as_checked(checkpoint)}))
    warnings = (*notes, *plan.warnings, *checkpoint.notes, *gaps, *nonfinite, *code_notes)
    plan = replace(plan, warnings=without_places(warnings, name))
    logger.info("%s", plan)  # rendered only where it is shown
    return Resize(request, checkpoint, opened, config, plan, tensors, method, task)


def check_request(request: Request) -> tuple[Side, Pairing]:
    """Refuse what the two configs show to be impossible, as if the source held every tensor of its class.

    Returns:
        The target by the configs alone, and the tensors of it that have a counterpart in the source.

    Raises:
        What `pair` raises.
    """
    source, target = config_sides(request, own_class(request.source))
    paired = pair(
        request.adapter, source, target, request.method, request.keywords.ignore_mismatched_sizes, request.calibrated
    )
    resized = (name for name in paired.counterparts if paired.shapes_before[name] != target.inventory.shapes[name])
    _check_room(((name, target.inventory.shapes[name]) for name in resized), target.dtype)
    return target, paired


def config_sides(
    request: Request, source_class: type[PreTrainedModel], beside: tuple[str, ...] = ()
) -> tuple[Side, Side]:
    """Source and target of a resize by their configs alone, without any checkpoint.

    Args:
        source_class: the class of the source's weights.
        beside: names of further tensors in the source's files.
    """
    source_config, target_config, keywords = request.source, request.target, request.keywords
    before, after = request.sizes
    stored = asked_dtype(None, source_config) or torch.float32
    dtype = asked_dtype(keywords.dtype, target_config) or stored
    alone = without_crossing(source_config)
    with quiet():
        inventory = predict(source_class, alone)
        full = inventory if alone is source_config else predict(source_class, source_config)
        crossed = tuple(name for name in full.shapes if name not in inventory.shapes)
        source = Side(alone, before, inventory, stored, extra=(*crossed, *beside))
        target = Side(target_config, after, predict(request.model_class, target_config, keywords.init), dtype)
    if request.kept:
        numbered = copy.deepcopy(source_config)
        renumber(request.kept, request.adapter, numbered)
        target = replace(target, kept={request.kept.role: request.kept.rows}, numbered=numbered)
    return source, target


def _check_room(tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: torch.dtype) -> None:
    """Refuse a resize whose largest tensor alone does not fit into memory."""
    name, shape = max(tensors, key=lambda tensor: math.prod(tensor[1]), default=("", ()))
    if name:
        check_room(
            math.prod(shape) * dtype.itemsize,
            f"the tensor {name} of shape {shape}",
            "Choose smaller sizes, or a machine with more.",
        )


def _with_files(request: Request) -> Request:
    """The request with the source's files, checked, and the class of its weights, if the files show it.

    Raises:
        BadCheckpoint: files that hold far less than the config describes.
        What `check_files` raises.
    """
    checkpoint = request.files()
    with quiet():
        own = predict(own_class(request.source), request.source)
    check_amount(checkpoint, own.shapes, own.ties)
    request = replace(request, checkpoint=checkpoint)
    if named_class(request.source) is not None:
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
        where: the hub and file keywords that the files were found with.
        init: keywords of the class's constructor.
    """
    return open_source(model_class, name, config, {**where, **(init or {}), **as_checked(checkpoint)}, checkpoint)


def _without_code(config: PreTrainedConfig) -> tuple[PreTrainedConfig, list[str]]:
    """The config without the fields that name code files of the source, which are never copied; and what they name."""
    code_fields = {name: value for name in CODE_FIELDS if (value := getattr(config, name, None)) is not None}
    if not code_fields:
        return config, []
    config = copy.deepcopy(config)
    for name in code_fields:
        delattr(config, name)
    return config, [
        f"{name} in the config names code of the source ({code_of(value)}), which is not copied: it is left out"
        for name, value in code_fields.items()
    ]


def as_checked(checkpoint: Checkpoint) -> dict[str, object]:
    """Keywords that keep transformers to the very files and commit that were checked."""
    safe = all(file.suffix == ".safetensors" for file in checkpoint.files)
    pinned: dict[str, object] = {"use_safetensors": safe} if safe else {"use_safetensors": False, "weights_only": True}
    if not checkpoint.revision:
        return pinned
    # All files are here: a download while the model is built would keep other threads from building theirs.
    return {**pinned, "revision": checkpoint.revision, "local_files_only": True, "force_download": False}


def refuse_unsound(request: Request, opened: Source) -> list[str]:
    """Check an opened source for missing, unknown and non-finite tensors: raise, or return warnings."""
    return [*_refuse_gaps(request, opened), *_refuse_nonfinite(opened, request.keywords)]


def _refuse_gaps(request: Request, opened: Source) -> list[str]:
    """Check for missing and unknown tensors: raise if strict, else return warnings."""
    name, adapter, config = request.name, request.adapter, request.source
    refused = refused_tensors(adapter, opened.unexpected)
    if refused:
        kind = next(iter(refused.values()))
        raise UnsupportedArchitecture(
            f"{name} holds {len(refused)} tensors that are {kind}: {_listed(list(refused))}. transformers no longer "
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
    faults = []
    if head:
        text = f"{name} lacks {len(head)} tensors of the head of its own architecture {architecture}: {_listed(head)}"
        faults.append((text, "Use a complete checkpoint, or pass strict=False to initialise them anew."))
    if foreign:
        text = f"{name} holds {len(foreign)} tensors that no {config.model_type} model has: {_listed(foreign)}"
        faults.append((text, f"Pass strict=False to leave them out.{wrapper_hint(foreign)}"))
    if faults and request.keywords.strict:
        raise BadCheckpoint(". ".join(faults[0]))
    return [text for text, _ in faults]


def _refuse_nonfinite(opened: Source, keywords: Keywords) -> list[str]:
    """Check for NaN and infinity: raise, return a warning, or replace them by zeros, as `nonfinite` says."""
    read = ((n, x) for n, x in opened.model.state_dict().items() if n not in opened.missing)
    places = find_nonfinite({n: x for n, x in read if x.is_floating_point() and not x.is_meta})
    if not places:
        return []
    message = nonfinite_message(places)
    if keywords.nonfinite == "error":
        raise BadWeights(f"{message}. Use a sound checkpoint, or pass nonfinite='zero' (or 'warn') to go on.")
    if keywords.nonfinite == "warn":
        return [f"{message}; because of them, shrinking does not turn the stream and keeps the order of units"]
    for name in places:
        stored = opened.model.get_parameter_or_buffer(name)
        stored.data = torch.nan_to_num(stored.data, nan=0.0, posinf=0.0, neginf=0.0)
    return [f"{message}; they were set to zero"]


def _about_generation(request: Request, where: Mapping[str, Any]) -> list[str]:
    """A warning if the source has generation settings and the target cannot generate."""
    name, model_class = request.name, request.model_class
    if model_class.can_generate() or not (is_folder(name) or own_class(request.source).can_generate()):
        return []
    if not has_file(name, GENERATION_CONFIG_NAME, where):
        return []
    return [f"{GENERATION_CONFIG_NAME} of the source is left out: {model_class.__name__} does not generate"]


def _refuse_low_share(request: Request, paired: Pairing, plan: Plan) -> None:
    """Raise if the target inherits less than the configs promise: then the checkpoint lacks tensors."""
    absent = [step for step in plan.steps if step.action == "fresh" and step.reason == ABSENT]
    missing = [step for step in absent if step.target in paired.counterparts]
    if missing:  # only if needed: finding the optional tensors builds two more empty models
        optional = optional_tensors(request.source)
        missing = [step for step in missing if plan.target.canonical(step.target) not in optional]
    if missing and request.keywords.strict:
        promised = plan.inherited + sum(step.parameters for step in missing) / max(1, plan.parameters)
        raise BadCheckpoint(
            f"only {100 * plan.inherited:.1f} % of the target's parameters would come from {request.name}, its config "
            f"promises {100 * promised:.1f} %: {_listed([step.target for step in missing])} would be initialised anew. "
            "Use a complete checkpoint, or pass strict=False."
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(name if name.isprintable() and len(name) < 100 else repr(name[:100]) for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def _plan_opened(
    request: Request, opened: Source, target: Side, undirected: bool = False
) -> tuple[PreTrainedConfig, Plan, Mapping[str, torch.Tensor], Method, Task]:
    """The config with the checkpoint's ties, the plan for its tensors, these tensors, the method and its task."""
    if undirected:  # NaN allow neither a basis nor an order
        request = replace(request, method=request.method.undirected() or request.method)
    adapter, prefix = request.adapter, f"{request.model_class.base_model_prefix}."
    stored = stored_dtype(opened.model)
    extra = tuple(name for name in opened.unexpected if not adapter.is_buffer(name.removeprefix(prefix)))
    inventory = inventory_of(opened.model)
    source = Side(opened.model.config, request.sizes[0], inventory, stored, opened.missing, extra)
    target = replace(target, dtype=asked_dtype(request.keywords.dtype, target.config) or stored)
    with quiet():
        target = _settle_ties(request, source, target)
    task = task_of(adapter, source, target, request.calibrated)
    network = network_of(adapter, source, opened.model.state_dict(), target if task.tied else None)
    preparing = progress.preparing_seconds(task, network, request.keywords.calibration)
    progress.expects(preparing + progress.after_plan_seconds(network))
    with progress.part("looking at the weights", preparing):
        method, prepared, notes = _prepared(task, network, opened, request)
    config = _with_method_fields(task, method, request.method, source, target)
    if any(task.roles[stack].numbered for stack in task.changes("depth")):  # other layers may be of another kind
        with quiet():
            inventory = predict(request.model_class, config, request.keywords.init)
        target = replace(target, config=config, inventory=inventory)
    renew = request.keywords.ignore_mismatched_sizes
    # Tensors are paired a second time: `check_request` knew only the configs, which must do to refuse a call before any
    # file is fetched. The files may lack tensors or hold others, and the method may have set fields of the config.
    plan = make_plan(adapter, source, target, method, renew, request.calibrated)
    return config, replace(plan, warnings=(*plan.warnings, *notes)), prepared, method, task


def _prepared(
    task: Task, network: Network, opened: Source, request: Request
) -> tuple[Method, Mapping[str, torch.Tensor], list[str]]:
    """The method once it has seen the source, the tensors to read, and warnings.

    If products of weights overflow float32, everything is computed in float64. If they overflow that too, the
    stream is not turned and units keep their order.

    Raises:
        BadWeights: such weights, if the method, an option or calibration needs their products.
    """
    method, undirected = request.method, request.method.undirected()
    method.check(task)
    edits = network.over(network.stored)  # a copy, because preparing records its edits in it
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
        if undirected is None or method.is_directed:
            raise BadWeights(_out_of_range(reason)) from None
    note = f"{_out_of_range(reason)} The stream is not turned and units keep their order, as with basis='plain'."
    return *undirected.prepare(task, Opened(network, opened.model)), [note]


def _out_of_range(product: str) -> str:
    return f"the weights are too large, or too small, to compute with: {product} is not finite. Scale or correct them."


def network_of(adapter: Adapter, source: Side, tensors: Mapping[str, torch.Tensor], tied: Side | None) -> Network:
    """The checkpoint's tensors with the meaning of their axes; `tied` is a target that ties some of them."""
    places = {
        name: Place(rule, layer, rule.template(source.inventory.canonical(name)))
        for name, (rule, layer) in rules_of(adapter, source.inventory, source.sizes).items()
        if name not in source.absent
    }
    pairs = tied.inventory.ties.items() if tied else ()
    tied_names = {tied.inventory.canonical(name) for pair in pairs for name in pair} if tied else set()
    held = frozenset(name for name in places if source.inventory.canonical(name) in tied_names)
    return Network(adapter, source.sizes, tensors, places, held)


def _with_method_fields(task: Task, method: Method, unseen: Method, source: Side, target: Side) -> PreTrainedConfig:
    """The target config with the fields that the method sets; a list per layer that the caller gave stays.

    Args:
        unseen: the method before it has seen the source, whose layers the lists of the target follow so far.
    """
    method_fields = method.config_fields(task, source.config)
    planned = unseen.lists(task, source.config) if isinstance(unseen, methods.Linear) else {}
    for name, entries in planned.items():
        if get_field(target.config, name) != entries:
            del method_fields[name]
    if not method_fields:
        return target.config
    config = copy.deepcopy(target.config)
    for name, value in method_fields.items():
        set_field(config, name, value)
    return config


def _settle_ties(request: Request, source: Side, target: Side) -> Side:
    """Untie the target's output embedding if the checkpoint holds its own, although the config ties it."""
    if not getattr(source.config, "tie_word_embeddings", False) or source.held.isdisjoint(target.inventory.ties):
        return target
    config = copy.deepcopy(target.config)
    config.tie_word_embeddings = False
    return replace(target, config=config, inventory=predict(request.model_class, config, request.keywords.init))


# -- tensors that a checkpoint lacks of its own architecture, or that no model of its family has ------


def lost_tensors(config: PreTrainedConfig, opened: Source) -> tuple[list[str], list[str]]:
    """Tensors that the source's own architecture has, the opened class wants, and the files do not hold.

    A head of another class than the source's own does not count, because it is new in the target. Nor does a
    pooler, which checkpoints often leave out.

    Returns:
        The names in the base model, and those in its head.
    """
    if not opened.missing:
        return [], []
    present = _names(own_class(config), config) - optional_tensors(config)
    here = inventory_of(opened.model)
    absent = [name for name in here.shapes if name in opened.missing and here.canonical(name) in present]
    base = _names(class_in_mapping("MODEL_MAPPING", config, "the source"), config)
    inside = [name for name in absent if here.canonical(name) in base]
    return inside, [name for name in absent if name not in inside]


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
    layers = {stack: int(get_field(config, adapter.roles[stack].field)) for stack in adapter.roles.depths}
    return [name for name in opened.unexpected if not _is_known(adapter, name.removeprefix(prefix), layers)]


def refused_tensors(adapter: Adapter, names: Iterable[str]) -> dict[str, str]:
    """Name -> kind of the tensors without which the model computes another function."""
    patterns = adapter.foreign.items()
    return {name: kind for name in names for pattern, kind in patterns if re.search(rf"(^|\.){pattern}$", name)}


def _names(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, init: Mapping[str, Any] | None = None
) -> set[str]:
    """The tensors of a class, without the base model's prefix."""
    with quiet():
        inventory = predict(model_class, config, init)
    return {inventory.canonical(name) for name in inventory.shapes}


def _is_known(adapter: Adapter, name: str, layers: Mapping[str, int]) -> bool:
    """Whether a rule names the tensor, outside of layers or in one of the config's, or the adapter leaves it out."""
    if adapter.is_left_out(name):
        return True
    try:
        rule, layer = find_rule(adapter.rules, name)
    except PlanError:
        return False
    return layer is None or layer < layers[rule.depth]
