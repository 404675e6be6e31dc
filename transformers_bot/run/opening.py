"""Opens a source against a target: checked files, memory-mapped tensors, the plan for what they hold."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from .. import architectures, methods
from ..architectures import Adapter
from ..architectures.classes import own_class
from ..architectures.fields import without_crossing
from ..architectures.inventory import inventory_of, predict, rules_of
from ..compat import check_room, quiet, reuse
from ..console import progress
from ..console.progress import logger
from ..errors import BadCheckpoint, BadWeights, UnsupportedArchitecture
from ..hub.provenance import without_places
from ..io.checkpoint import Checkpoint, Source, check_amount, check_files, open_source, stored_dtype
from ..io.companions import code_of
from ..io.files import has_file, is_folder
from ..io.weights import find_nonfinite, nonfinite_message, wrapper_hint
from ..methods import Method, Task
from ..options import BoTConfig
from ..planning.planner import Plan, Side, make_plan, task_of
from ..request.keywords import Keywords
from ..request.source_class import with_likely_class
from ..request.targets import asked_dtype, plan_from_configs, sides
from ..rewrite import Network, Opened, OutOfRange, Place
from .gaps import foreign_tensors, lost_tensors, optional_tensors, refused_tensors

CODE_FIELDS = ("auto_map", "custom_pipelines")


@dataclass(frozen=True)
class Resize:
    """A resize with its source open: everything is decided, nothing is computed yet.

    Attributes:
        name: hub id or folder of the source.
        words: the call's keywords.
        checkpoint: the source's files, as they were checked.
        opened: the source, memory-mapped.
        model_class: of the target.
        config: of the target, with the fields that the checkpoint and the method decide.
        plan: every tensor exactly once.
        tensors: source name -> tensor, rewritten where the method does so.
        method: as it is after it has seen the source.
        task: what it is asked to do.
    """

    name: str
    words: Keywords
    checkpoint: Checkpoint
    opened: Source
    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    plan: Plan
    tensors: Mapping[str, torch.Tensor]
    method: Method
    task: Task

    @property
    def adapter(self) -> Adapter:
        """Of both sides."""
        return architectures.get(self.config.model_type)

    @property
    def dtype(self) -> torch.dtype:
        """Of the target."""
        return self.plan.dtypes[1]


def open_resize(
    model_class: type[PreTrainedModel],
    name: str,
    source_config: PreTrainedConfig,
    wanted: PreTrainedConfig,
    words: Keywords,
    notes: tuple[str, ...] = (),
) -> Resize:
    """Check the source's files, open them and plan the resize into `model_class(wanted)`.

    What configs can refuse is refused before any file is fetched, what file headers can before any
    weight is read.

    Args:
        notes: what is known of the source already, for the plan's warnings.

    Raises:
        BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint: files that cannot or must not be read.
        BadWeights: NaN or infinity in the source, unless `nonfinite` says otherwise.
        What `plan` raises.
    """
    reuse()
    hub = {key: value for key, value in words.hub.items() if key != "code_revision"}  # only configs take it
    sides(source_config, wanted, BoTConfig.from_any(words.bot_config))
    # The plan of a damaged config can be a long one: files that are here are looked at first.
    here = any(Path(name, words.hub.get("subfolder") or "").glob("*.safetensors"))
    with progress.part("checking the source", progress.CHECKING_SECONDS) as checking:
        checkpoint = _checked(name, hub, source_config, words) if here else None
        if checkpoint is not None:
            source_config = with_likely_class(source_config, checkpoint, model_class)
        checking.at(0.5)
        expected = plan_from_configs(source_config, wanted, own_class(source_config), model_class, words)
        _check_room(expected)
        if checkpoint is None:
            checkpoint = _checked(name, hub, source_config, words)
            source_config = with_likely_class(source_config, checkpoint, model_class)
    given = {**hub, **words.files, **words.init, **as_checked(checkpoint)}
    with progress.part("opening the source", progress.OPENING_SECONDS):
        opened = open_source(model_class, name, without_crossing(source_config), given, checkpoint)
    with progress.part("looking for NaN and infinity", progress.LOOKING_SECONDS):
        gaps, odd = _refuse_gaps(name, source_config, opened, words), _refuse_nonfinite(opened, words)
    spoiled = bool(odd) and words.nonfinite == "warn" and words.calibration is None
    planned = Side(wanted, expected.target_sizes, expected.target, expected.dtypes[1])
    config, plan, tensors, method, task = _plan_opened(model_class, opened, source_config, planned, words, spoiled)
    progress.expects(progress.resizing_seconds(plan) + progress.finishing_seconds(plan))
    _refuse_low_share(name, source_config, expected, plan, words.strict)
    config, coded = _without_code(config)
    notes = (*notes, *_about_generation(name, source_config, model_class, given))
    said = (*notes, *plan.warnings, *checkpoint.notes, *gaps, *odd, *coded)
    plan = replace(plan, warnings=without_places(said, name))
    logger.info("%s", plan)  # rendered only where it is shown
    return Resize(name, words, checkpoint, opened, model_class, config, plan, tensors, method, task)


def _check_room(plan: Plan) -> None:
    """Refuse a plan of which not even one tensor could be made."""
    made = [step for step in plan.steps if step.action == "resample"]
    if made:
        largest = max(made, key=lambda step: step.parameters)
        check_room(
            largest.parameters * plan.dtypes[1].itemsize,
            f"the tensor {largest.target} of shape {largest.shape}",
            "Choose smaller sizes, or a machine with more.",
        )


def _checked(name: str, hub: dict[str, Any], config: PreTrainedConfig, words: Keywords) -> Checkpoint:
    """The source's files, and that they hold about as much as its config says; a folder's cost no download."""
    checkpoint = check_files(name, {**hub, **words.files}, allow_pickle=words.allow_pickle)
    with quiet():
        own = predict(own_class(config), config)
    check_amount(checkpoint, own.shapes, own.ties)
    return checkpoint


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


def refuse_unsound(name: str, config: PreTrainedConfig, opened: Source, words: Keywords) -> list[str]:
    """What an opened source lacks, has too much of, or holds instead of numbers: errors, or sentences."""
    return [*_refuse_gaps(name, config, opened, words), *_refuse_nonfinite(opened, words)]


def _refuse_gaps(name: str, config: PreTrainedConfig, opened: Source, words: Keywords) -> list[str]:
    """Tensors that should be there and are not, or that nobody knows: errors, or sentences where not strict."""
    refused = refused_tensors(architectures.get(config.model_type), opened.unexpected)
    if refused:
        what = next(iter(refused.values()))
        raise UnsupportedArchitecture(
            f"{name} holds {len(refused)} tensors that are {what}: {_listed(list(refused))}. transformers no longer "
            "computes them, and without them the model is another one. Use another checkpoint."
        )
    inside, head = lost_tensors(config, opened)
    foreign = foreign_tensors(architectures.get(config.model_type), opened)
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
    if found and words.strict:
        raise BadCheckpoint(". ".join(found[0]))
    return [text for text, _ in found]


def _refuse_nonfinite(opened: Source, words: Keywords) -> list[str]:
    """NaN and infinity in the source: an error, a sentence, or zeros in their place."""
    held = ((n, x) for n, x in opened.model.state_dict().items() if n not in opened.missing)
    found = find_nonfinite({n: x for n, x in held if x.is_floating_point() and not x.is_meta})
    if not found:
        return []
    message = nonfinite_message(found)
    if words.nonfinite == "error":
        raise BadWeights(f"{message}. Use a sound checkpoint, or pass nonfinite='zero' (or 'warn') to go on.")
    if words.nonfinite == "warn":
        return [f"{message}; shrinking neither turns the stream nor orders units by weights that are no numbers"]
    for name in found:
        stored = opened.model.get_parameter_or_buffer(name)
        stored.data = torch.nan_to_num(stored.data, nan=0.0, posinf=0.0, neginf=0.0)
    return [f"{message}; they were set to zero"]


def _about_generation(
    name: str, config: PreTrainedConfig, model_class: type[PreTrainedModel], keywords: Mapping[str, Any]
) -> list[str]:
    """A sentence where the source has settings for generating and the target does not generate."""
    if model_class.can_generate() or not (is_folder(name) or own_class(config).can_generate()):
        return []
    if not has_file(name, GENERATION_CONFIG_NAME, keywords):
        return []
    return [f"{GENERATION_CONFIG_NAME} of the source is left out: {model_class.__name__} does not generate"]


def _refuse_low_share(name: str, config: PreTrainedConfig, expected: Plan, plan: Plan, strict: bool) -> None:
    """What the configs promise to inherit is inherited; a checkpoint that gives less lacks something."""
    promised = set(expected.names("copy") + expected.names("resample"))
    lost = [one for one in plan.names("fresh") if one in promised]
    if lost:  # seldom: what is optional takes two more models of no weights to know
        optional = optional_tensors(config)
        lost = [one for one in lost if plan.target.canonical(one) not in optional]
    if lost and strict:
        raise BadCheckpoint(
            f"only {100 * plan.inherited:.1f} % of the target's parameters would come from {name}, its config promises "
            f"{100 * expected.inherited:.1f} %: {_listed(lost)} would be initialised anew. Use a complete checkpoint, "
            "or pass strict=False."
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(name if name.isprintable() and len(name) < 100 else repr(name[:100]) for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def _plan_opened(
    model_class: type[PreTrainedModel],
    opened: Source,
    source_config: PreTrainedConfig,
    target: Side,
    words: Keywords,
    spoiled: bool = False,
) -> tuple[PreTrainedConfig, Plan, Mapping[str, torch.Tensor], Method, Task]:
    """The config that fits the checkpoint's ties, the plan for the tensors it holds, those tensors, method and task."""
    options = BoTConfig.from_any(words.bot_config)
    if spoiled:  # no basis and no order can be found among NaN
        options = replace(options, basis="plain", order="kept")
    before, after = sides(source_config, target.config, options)
    stored = stored_dtype(opened.model)
    tensors = inventory_of(opened.model)
    adapter, prefix = architectures.get(source_config.model_type), f"{model_class.base_model_prefix}."
    extra = tuple(name for name in opened.unexpected if not adapter.is_buffer(name.removeprefix(prefix)))
    source = Side(opened.model.config, before, tensors, stored, opened.missing, extra)
    target = replace(target, sizes=after, dtype=asked_dtype(words.dtype, target.config) or stored)
    with quiet():
        target = _settle_ties(model_class, source, target, words)
    task = task_of(adapter, source, target, words.calibration is not None)
    network = network_of(adapter, source, opened.model.state_dict(), target if task.tied else None)
    preparing = progress.preparing_seconds(task, network, words.calibration)
    progress.expects(preparing + progress.after_plan_seconds(network))
    with progress.part("looking at the weights", preparing):
        method, prepared, told = _prepared(task, network, opened, options, words)
    wanted = _with_method_fields(task, method, source, target)
    made = make_plan(adapter, source, target, method, words.ignore_mismatched_sizes, words.calibration is not None)
    return (
        wanted,
        replace(made, warnings=(*made.warnings, *told)),
        prepared,
        method,
        task,
    )


def _prepared(
    task: Task, network: Network, opened: Source, options: BoTConfig, words: Keywords
) -> tuple[Method, Mapping[str, torch.Tensor], list[str]]:
    """The method once it has seen the source, the tensors to read, and what there is to say.

    Where products of weights are beyond float32, everything is computed in float64. What is beyond that too
    decides nothing: the stream is not turned and units keep their order.

    Raises:
        BadWeights: such weights where the method, an option or calibration asks for what they cannot tell.
    """
    method = methods.get(words.method, options)
    method.check(task)
    asked = words.calibration is not None or options.basis == "principal" or options.order not in ("auto", "kept")
    edits = network.over(network.stored)  # preparing notes edits in the one that it is given
    try:
        return *method.prepare(task, Opened(edits, opened.model, words.calibration)), []
    except OutOfRange as error:
        reason = str(error)
        if words.calibration is not None:
            raise BadWeights(_out_of_range(reason)) from None
    try:
        wide = Network(network.adapter, network.sizes, network.stored, network.places, network.tied, wide=True)
        return *method.prepare(task, Opened(wide, opened.model)), []
    except OutOfRange:
        if asked or method.name != "bot":
            raise BadWeights(_out_of_range(reason)) from None
    plain = methods.get(words.method, replace(options, basis="plain", order="kept"))
    told = f"{_out_of_range(reason)} The stream is not turned and units keep their order, as with basis='plain'."
    return *plain.prepare(task, Opened(network, opened.model)), [told]


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


def _settle_ties(model_class: type[PreTrainedModel], source: Side, target: Side, words: Keywords) -> Side:
    """An output embedding that the checkpoint holds apart, although its config ties it, stays apart."""
    if not getattr(source.config, "tie_word_embeddings", False) or source.held.isdisjoint(target.inventory.ties):
        return target
    wanted = copy.deepcopy(target.config)
    wanted.tie_word_embeddings = False
    return Side(wanted, target.sizes, predict(model_class, wanted, words.init), target.dtype)
