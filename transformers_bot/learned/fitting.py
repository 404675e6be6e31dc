"""Trains a growth operator (LiGO, Mango) on a few batches and writes the grown tensors into the model."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from .. import architectures
from ..architectures.adapter import Roles, Sizes
from ..architectures.inventory import inventory_of
from ..console import progress
from ..errors import BadCheckpoint, BadOption
from ..hub.provenance import is_local, recorded_path
from ..hub.push import place_of
from ..io.checkpoint import stored_dtype
from ..methods import METHODS
from ..methods.ligo import UNFITTED
from ..options import BoTConfig
from ..planning.planner import Side, make_plan
from ..report.measure import number
from ..report.report import Report
from ..request.names import FILES, HUB, check_known
from ..request.request import Request, check_numbers, read_call, source_name
from ..run.opening import open_checked
from .flops import counted
from .operators import OPERATORS, Growth, MangoOperator, Operator, growth_of

if TYPE_CHECKING:
    from ..request.signatures import SourceKeywords

OPENING, WRITING = 2, 1  # for the progress bar: about as long as so many steps
# Where the adapter states none: the paper's for encoders of text (supplement C.5), which lies between those for image
# models and for a decoder.
LEARNING_RATE = 2e-4


@progress.bar("fitting the operator")
def fit(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    steps: int = 100,
    lr: float | None = None,
    seed: int = 0,
    rank: int | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
    **hub_keywords: "Unpack[SourceKeywords]",
) -> PreTrainedModel:
    """The same model with the weights of a learned operator: still an ordinary transformers model.

    The source is opened again and frozen. An operator, which starts as the unfitted method plus a little
    noise, is trained by AdamW at a constant rate, without warm-up, on the model's own loss in training mode.
    Then the tensors that it grows replace the model's weights. Tensors that the source does not have (a new
    head) are not changed. The computation is in float32 (float64 for a float64 source).

    Example:
        >>> grown = BoTModelForCausalLM.from_pretrained("gpt2", config=big, method="ligo")  # doctest: +SKIP
        >>> model = transformers_bot.fit(grown, loader, steps=100)                         # doctest: +SKIP
        >>> model.config.transformers_bot["fit"]["losses"]  # of the first and the last step  # doctest: +SKIP
        [3.91, 3.42]

    Args:
        model: from `from_pretrained(..., method="ligo")` or "mango", or a folder saved from it.
        batches: dicts of the model's keyword arguments, labels included; repeated from the start at the end.
        steps: updates of the operator, one batch each.
        lr: AdamW's rate; None is the adapter's `learning_rate`, which the paper's families have (ViT and DeiT 5e-4,
            BERT and RoBERTa 2e-4, GPT-2 1e-5), and 2e-4 for others.
        seed: of the operator's noise, of dropout and of a shuffling loader.
        rank: of Mango's tensor ring, 1 by default; LiGO has none.
        source: path of the source, for a model that was loaded from its own folder: its record has only the name
            of a local source.
        hub_keywords: keywords with which the source was opened and that are not in its record
            (`subfolder`, `variant`, `token`, `cache_dir`, ...).

    Returns:
        `model` itself. `model.config.transformers_bot["fit"]` holds steps, lr, seed, the count of
        learned parameters, the losses of the first and last step, and the floating-point operations
        of all steps (the operator's products, forward and backward), measured by torch.

    Raises:
        BadOption: a model of another method, nothing to learn, steps, lr, seed or rank out of range,
            no batch, no loss, or a loss that is not finite (the model is then unchanged).
        BadCheckpoint: a source that cannot be opened again, or that has other sizes than before.

    Source: the operators' papers, named in `operators/`; budget and rates: the BoT paper, supplement C.5.
    """
    record = _record(model)
    check_known("fit", hub_keywords, (*HUB, *FILES))
    check_schedule(steps, lr, seed)
    check_numbers({"rank": rank, **hub_keywords})
    progress.expects(OPENING + int(steps) + WRITING)
    with progress.part("opening the source", OPENING):
        growth = growth_for(model, record, hub_keywords, source)
    with progress.part("fitting the operator", int(steps) + WRITING):
        learned = learn(model, record["method"], growth, batches, int(steps), lr, seed, rank)
    model.config.transformers_bot = {**record, **learned}
    report = getattr(model, "transfer_report", None)
    if report is not None:
        model.transfer_report = fitted_report(report, model.config.transformers_bot, model.state_dict())
    return model


def learn(
    model: PreTrainedModel,
    method: str,
    growth: Growth,
    batches: Iterable[Mapping[str, Any]],
    steps: int = 100,
    lr: float | None = None,
    seed: int = 0,
    rank: int | None = None,
) -> dict[str, Any]:
    """Train the operator of a learned method and write the grown tensors into the model; see `fit`.

    Returns:
        The entries of the model's record on the fit.
    """
    check_schedule(steps, lr, seed)
    stated = architectures.adapter_of(model.config).learning_rate
    rate = float(lr if lr is not None else stated or LEARNING_RATE)
    operator = _operator(method, growth, int(seed), rank)
    run = _Run(model, operator.to(model.device))
    run.train(batches, int(steps), rate, int(seed))
    _write(model, run.grown(), rate)
    facts = {"steps": int(steps), "lr": rate, "seed": int(seed), "losses": [run.losses[0], run.losses[-1]]}
    facts |= {"flops": run.flops, "parameters": sum(p.numel() for p in operator.parameters())}
    facts |= {"rank": operator.rank} if isinstance(operator, MangoOperator) else {}
    return {"fitted": True, "fit": facts}


def fitted_report(report: Report, record: Mapping[str, Any], state: Mapping[str, Tensor]) -> Report:
    """The report of an unfitted model, updated after the fit: no energy is known of learned maps.

    Args:
        record: the model's record after the fit.
        state: the model's tensors.
    """
    reason = f"fitted by {record['method']} in {record['fit']['steps']} steps"
    rows = [
        replace(
            row,
            action="resample",
            reason=reason,
            roles=(),
            gain=None,
            energy_kept=None,
            noise=None,
            std_after=number(float(state[row.name].double().std(unbiased=False))),
        )
        if row.action in ("copy", "resample")
        else row
        for row in report.tensors
    ]
    warnings = tuple(text for text in report.warnings if text != UNFITTED.format(name=record["method"]))
    method = {**report.method, "fitted": True}
    stacks = tuple(replace(stack, left_out=()) for stack in report.stacks)
    provenance = json.loads(json.dumps(dict(record)))
    return replace(
        report, method=method, provenance=provenance, roles=(), stacks=stacks, tensors=tuple(rows), warnings=warnings
    )


def _record(model: Any) -> dict[str, Any]:
    """The record of how the model was made; it must be by a learned method."""
    if not isinstance(model, PreTrainedModel):
        raise BadOption(f"fit takes the model that from_pretrained returned, got {type(model).__name__}.")
    record = getattr(model.config, "transformers_bot", None) or {}
    if operator_of(record.get("method")):
        return dict(record)
    method = f"by method {record['method']!r}" if "method" in record else "by none (its sizes are the source's own)"
    learned = " or ".join(learned_methods())
    raise BadOption(
        f"fit learns the operator of a model grown by {learned}, but this one was grown {method}: "
        "make it with from_pretrained(source, config=larger, method='ligo')."
    )


def check_schedule(steps: Any, lr: Any, seed: Any) -> None:
    """Raise `BadOption` for an invalid number of steps, learning rate or seed."""
    check_numbers({"steps": steps, "lr": lr, "seed": seed})
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise BadOption(f"steps={steps!r} is no number of steps: a whole number of at least 1 is wanted.")
    if lr is not None and (isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf):
        raise BadOption(f"lr={lr!r} is no learning rate: a number above 0 is wanted.")
    BoTConfig(seed=seed)


def _source_of(model: PreTrainedModel, record: Mapping[str, Any], source: str | os.PathLike[str] | None) -> str:
    """The path or id of the source: from the caller, from the model in memory, or from its record."""
    place = place_of(model)
    if source is not None:
        return source_name(source)
    if place is not None:
        return place.source
    path = recorded_path(record)
    if path is None and is_local(record):
        raise BadOption(
            f"this model was grown from a local folder called {record['source']!r}, and its config does not say where "
            "that is: pass source= with the path."
        )
    return path or str(record["source"])


def growth_for(
    model: PreTrainedModel,
    record: Mapping[str, Any],
    hub_keywords: Mapping[str, Any],
    source: str | os.PathLike[str] | None = None,
) -> Growth:
    """The source's tensors, stacked by a plan that leads to the tensors of the model."""
    name, revision, place = _source_of(model, record, source), record.get("revision"), place_of(model)
    opening = {} if revision is None else {"revision": revision}
    if source is None and place is not None and place.subfolder:
        opening["subfolder"] = place.subfolder
    said = {"method": record["method"], "bot_config": record["options"], **opening, **hub_keywords}
    said["allow_pickle"] = bool(record.get("allow_pickle"))
    try:
        call = read_call("fit", name, said, lambda _: type(model), like=type(model.config))
        checkpoint = call.files()
        opened = open_checked(type(model), name, call.source, call.keywords.of_files, checkpoint)
    except OSError as error:
        raise BadCheckpoint(
            f"the source {name!r} (revision {revision}) of this model cannot be opened again, and fit needs its "
            f"weights: {' '.join(str(error).split())}"
        ) from None
    check_whole(record.get("vocab_keep"))
    request = Request.of(call, target=model.config)
    before, after = request.sizes
    known = record["source_sizes"]
    if any(before[role] != length for role, length in known.items()):
        now = {role: before[role] for role in known}
        raise BadCheckpoint(f"the source {name!r} has other sizes than when this model was grown: {known}, now {now}.")
    adapter = request.adapter
    check_grows(adapter.roles, before, after)
    stored = stored_dtype(opened.model)
    origin = Side(opened.model.config, before, inventory_of(opened.model), stored, opened.missing, opened.unexpected)
    target = Side(model.config, after, inventory_of(model), stored_dtype(model))
    plan = make_plan(adapter, origin, target, request.method, renew=True)
    return growth_of(plan, adapter, opened.model.state_dict())


def check_whole(kept: object) -> None:
    """Raise `BadOption` if the model keeps a part of the source's vocabulary."""
    if kept:
        raise BadOption(
            "an operator is learned on texts of the source's own vocabulary, of which vocab_keep= keeps a part: resize "
            "with vocab_keep= alone first, and grow the result."
        )


def check_grows(roles: Roles, before: Sizes, after: Sizes) -> None:
    """Raise `BadOption` if the operator has nothing to learn."""
    learned = [*roles.depths, *roles.streams, *(unit for unit in roles.units if not roles.is_whole(unit))]
    if all(before[role] == after[role] for role in learned):
        sizes = [before[role] for role in learned]
        raise BadOption(
            f"there is nothing to learn: {', '.join(learned[:-1])} and {learned[-1]} are {sizes} in the source and in "
            "the model. Grow one of them."
        )


def operator_of(method: object) -> str:
    """The name of the operator that is learned for a method; empty if there is none."""
    known = METHODS.get(method) if isinstance(method, str) else None
    return str(getattr(known, "operator", ""))


def learned_methods() -> list[str]:
    """The methods whose maps are learned."""
    return [name for name in METHODS if operator_of(name)]


def _operator(method: str, growth: Growth, seed: int, rank: int | None) -> Operator:
    operator = OPERATORS[operator_of(method)]
    if not issubclass(operator, MangoOperator):
        if rank is not None:
            raise BadOption(f"rank={rank!r} is Mango's: LiGO has no rank. Leave it out, or grow with method='mango'.")
        return operator(growth, seed)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1):
        raise BadOption(f"rank must be a whole number of at least 1, got {rank!r}.")
    return operator(growth, seed, 1 if rank is None else int(rank))


@dataclass
class _Run:
    """The training of an operator. The model is called with the grown tensors; its own are not changed."""

    model: PreTrainedModel
    operator: Operator
    losses: list[float] = field(default_factory=list)
    flops: int = 0

    def train(self, batches: Iterable[Mapping[str, Any]], steps: int, lr: float, seed: int) -> None:
        optimizer = torch.optim.AdamW(self.operator.parameters(), lr=lr)
        known: dict[Any, int] = {}  # shapes of a batch -> operations, counted once for equal shapes
        with _training(self.model, seed):
            stream = _endless(batches)
            labels = [f"fitting the operator, step {step} of {steps}" for step in range(1, steps + 1)]
            for step in progress.tracked(range(1, steps + 1), [1.0] * steps, labels):
                batch = _moved(next(stream), self.model.device)
                shapes = tuple((name, tuple(x.shape)) for name, x in batch.items() if isinstance(x, Tensor))
                if shapes in known:
                    loss = self._gradients(batch)
                else:
                    with counted() as counter:
                        loss = self._gradients(batch)
                    known[shapes] = int(counter.get_total_flops())
                self.flops += known[shapes]
                self.losses.append(loss)
                if not math.isfinite(loss):
                    raise _diverged(f"the loss is {loss} at step {step} of {steps}", lr)
                optimizer.step()
                optimizer.zero_grad()

    def grown(self) -> dict[str, Tensor]:
        """The target's tensors by the present operator."""
        with torch.no_grad():
            grown: dict[str, Tensor] = self.operator()
        return grown

    def _gradients(self, batch: dict[str, Any]) -> float:
        grown = self.operator()
        tensors = {**grown, **_others(self.model, grown)}
        output = functional_call(self.model, tensors, (), batch)  # torch 2.4 requires args and kwargs
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if loss is None:
            raise BadOption(
                f"{type(self.model).__name__} gives no loss for a batch of {', '.join(batch)}: add its labels."
            )
        loss.backward()
        return float(loss.detach())


def _others(model: PreTrainedModel, grown: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that the operator does not grow, frozen, in the dtype of the grown ones."""
    dtype = next(iter(grown.values())).dtype
    replaced = {id(x) for name, x in model.named_parameters(remove_duplicate=False) if name in grown}
    own = [*model.named_parameters(), *model.named_buffers()]
    return {name: x.detach().to(dtype) for name, x in own if id(x) not in replaced and x.is_floating_point()}


@contextmanager
def _training(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Training mode and a seeded random state; both are restored afterwards."""
    was_training = model.training
    device = model.device
    forked = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(forked, device_type=device.type if forked else "cuda"):
        _seed(device, seed)
        model.train()
        try:
            yield
        finally:
            model.train(was_training)


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of one device; `torch.manual_seed` would seed those of all devices."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        accelerator = getattr(torch, device.type)
        with accelerator.device(device) if hasattr(accelerator, "device") else nullcontext():
            accelerator.manual_seed(seed)


def _endless(batches: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    if not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise BadOption(
            f"a batch must be a dict of the model's keyword arguments, and {type(batches).__name__} holds none: "
            "pass a list of such dicts or a DataLoader."
        )
    count = 0
    while True:
        before = count
        for batch in batches:
            if not isinstance(batch, Mapping):
                raise BadOption(
                    f"a batch must be a dict of the model's keyword arguments, got {type(batch).__name__}: "
                    "pass a list of such dicts or a DataLoader."
                )
            count += 1
            yield batch
        if count == 0:
            raise BadOption("batches is empty: fit needs at least one dict of the model's keyword arguments.")
        if count == before:
            raise BadOption(
                f"batches ended after {count} and cannot be started over: pass a list or a DataLoader, "
                f"or steps={count}."
            )


def _moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}


def _diverged(problem: str, lr: float) -> BadOption:
    return BadOption(
        f"{problem}: nothing was written into the model. Take a smaller lr= than {lr:g}, or check the batches."
    )


def _write(model: PreTrainedModel, grown: Mapping[str, Tensor], lr: float) -> None:
    own = dict(model.named_parameters(remove_duplicate=False))
    stored = {name: tensor.to(own[name].dtype) for name, tensor in grown.items()}
    for name, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise _diverged(f"the fitted {name} is not finite in {tensor.dtype}", lr)
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)
