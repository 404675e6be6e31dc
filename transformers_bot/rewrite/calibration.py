"""Calibration: a source runs on a few batches, and its readers are fitted to what a low-pass keeps of their inputs.

`watch` runs the batches, `measure_inputs` measures the inputs of norms and matrices, `fit_to_low_pass` fits the
matrices by least squares on these moments.

After the resize a matrix W no longer reads its input y, but R y. The dual map C assumes nothing about y. If
the mean and covariance of y are known, the best reader of R y is W A, with

    A = Cov(y, R y) Cov(R y)^-1,    b <- b + W (mean - A R mean),

and second moments instead of covariances if there is no bias. R A = I holds, so what R keeps of y is read
as before. Here the readers are rewritten at the source's size, W <- W A R. The map C of the resize turns
that into W A, because R C^T = I.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..architectures.adapter import At, Factor, Rule
from ..compat import use_eager_experts
from ..console import progress
from ..errors import BadOption
from ..ops.axis_map import AxisMap, Matrix, identity
from .folding import NormPlace, norms
from .network import Network
from .principal import InputMoments, Moments, Opened, modules_of

UNKNOWN = 8  # the progress bar's guess of the number of batches in an iterator without a length
# Called with a module's first input, its first output, and a mask of the tokens that count (None for all).
Hook = Callable[[Tensor, Tensor, Tensor | None], None]
# Ridge of the regression, relative to the mean variance of R y: where the batches have no variance, C is used.
RIDGE = 1e-3
FEW = 0.1  # further ridge for few tokens, times the number of kept units per token
MapsOf = Callable[[tuple[Factor, ...]], tuple[AxisMap, AxisMap]]  # factors of an axis -> R, C


@torch.no_grad()
def watch(model: nn.Module, watched: Iterable[tuple[str, Hook]], batches: Iterable[Mapping[str, Any]]) -> None:
    """Run batches through a model with a hook on each module of `watched`.

    Args:
        model: the source.
        watched: pairs of a module's name and its hook. Tokens outside an `attention_mask` do not count.
        batches: keyword arguments of the model.

    Raises:
        BadOption: no batch, batches that the model does not run on, or a mask of another shape than
            its tokens.
    """
    if isinstance(batches, Mapping):
        raise BadOption("calibration= is one batch; pass a list of batches.")
    run, hooks, modules, handles = _Run(model, batches), list(watched), dict(model.named_modules()), []
    if any(parameter.dtype == torch.float64 for parameter in model.parameters()):
        use_eager_experts(model.config)
    try:
        for name, see in hooks:
            hook = run.hook(name, see, len(hooks))
            handles.append(modules[name].register_forward_hook(hook, with_kwargs=True))
        for batch in run.batches():
            model(**batch)
    except BadOption:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise BadOption(
            f"calibration= must give keyword arguments that the source runs on: {error}. Look at names, at token ids "
            "beyond the vocabulary, sequences beyond the positions, and image sizes."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not run.number:
        raise BadOption("calibration= gave no batch; pass a list of a few, such as tokenizer outputs.")


class _Run:
    """A run of batches: the present batch with its masks, and how many batches, and modules in it, are done."""

    def __init__(self, model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> None:
        self._batches, self._span = batches, progress.here()
        self._has_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self._count = len(batches) if isinstance(batches, Sized) else 0
        self._batch: Mapping[str, Any] = {}
        self._tokens: torch.Size | None = None
        self._modules = 0
        self.number = 0  # of batches that were run

    def batches(self) -> Iterator[Mapping[str, Any]]:
        self._show(0.0)
        for batch in self._batches:
            if not isinstance(batch, Mapping):
                raise BadOption(
                    "every batch of calibration= must be a dict of tensors, such as a tokenizer gives with "
                    f"return_tensors='pt', got {type(batch).__name__}."
                )
            self._batch, self._tokens = batch, _tokens_in(batch)
            yield batch
            self.number, self._modules = self.number + 1, 0
            self._show(0.0)

    def hook(self, name: str, see: Hook, count: int) -> Callable[..., None]:
        """A forward hook of module `name`, one of `count`, that calls `see`."""

        def call(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:  # type: ignore[type-arg]
            x = args[0] if args else kwargs["hidden_states"]
            y = output[0] if isinstance(output, tuple) else output
            if y.dim() > 3:  # (example, choice, token, unit): every choice is a sequence
                x, y = x.flatten(0, -3), y.flatten(0, -3)
            if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
                raise BadOption(
                    f"the source gives values that are not finite at {name} on a calibration= batch. Look for NaN or "
                    "Inf in the batches and in the source; half precision may overflow: load it in float32."
                )
            # With one vector for a sequence or a choice there are no tokens to mask.
            mask = self._mask_of(name, y)
            is_pooled = y.dim() == 2 or (mask is not None and y.shape[:-1] == mask.shape[:-1])
            # Rows of a table, such as embeddings of relative positions, are no tokens of the batch: all of them count.
            fits = mask is not None and mask.shape == self._tokens
            is_table = fits and y.dim() > 2 and y.shape[:2] != mask.flatten(0, -2).shape  # type: ignore[union-attr]
            see(x, y, None if is_pooled or is_table else _token_mask(mask, y))
            self._modules += 1
            self._show(min(1.0, self._modules / count))

        return call

    def _mask_of(self, name: str, y: Tensor) -> Tensor | None:
        """The mask of the tokens that a module sees: the decoder's own, or that of the tokens that both stacks read.

        Of sound a mask tells samples, of which many make one token: all tokens count.
        """
        masks = [self._batch.get("attention_mask")]
        if not self._has_decoder and {"input_values", "input_features"}.isdisjoint(self._batch):
            return masks[0]
        if "decoder" in name.split("."):
            masks.insert(0, self._batch.get("decoder_attention_mask"))
        return next((mask for mask in masks if mask is not None and mask.shape == y.shape[:-1]), None)

    def _show(self, share: float) -> None:
        done, now = self.number + share, self.number + 1
        if self._count:
            self._span.at(done / self._count, f"calibrating, batch {min(now, self._count)} of {self._count}")
        else:  # of unknown number: every `UNKNOWN` batches the bar covers half of the rest
            self._span.at(1 - 0.5 ** (done / UNKNOWN), f"calibrating, batch {now}")


def _tokens_in(batch: Mapping[str, Any]) -> torch.Size | None:
    """The shape of a batch's token ids; None where it has none."""
    ids = batch.get("input_ids")
    return ids.shape if isinstance(ids, Tensor) else None


def _token_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The attention mask as (sequence, token) of `x`; every choice of an example is a sequence."""
    if mask is None:
        return None
    flat = mask.flatten(0, -2).bool()
    if flat.shape != x.shape[:2] or not flat.any():
        raise BadOption(
            f"an attention_mask of calibration= has shape {tuple(mask.shape)} and {int(flat.sum())} tokens to count, "
            f"where the source has {tuple(x.shape[:2])} (sequences, tokens). Give one 0 or 1 for every token."
        )
    return flat


def measure(
    model: nn.Module,
    norms: Iterable[str],
    linear: Iterable[str],
    batches: Iterable[Mapping[str, Any]],
    also: Iterable[tuple[str, Hook]] = (),
    rms: Collection[str] = (),
) -> InputMoments:
    """Run the batches once, and measure the inputs of norms and linear modules.

    Args:
        model: the source.
        norms, linear: names of modules; a name that is no linear module of this model is left out.
        batches: keyword arguments of the model, see `watch`.
        also: further hooks for the same run.
        rms: the norms that do not subtract the mean.
    """
    modules = dict(model.named_modules())
    normalised, inputs = _Sums(), _Sums()
    matrices = [name for name in linear if isinstance(modules.get(name), (nn.Linear, Conv1D))]
    watched = [(name, normalised.of(name, _of_one_size if name in rms else _normalised)) for name in norms]
    watched += [(name, inputs.of(name)) for name in matrices]
    watch(model, [*watched, *also], batches)
    return InputMoments(normalised.moments(), inputs.moments())


class _Sums:
    """First and second sums of modules' inputs, computed once for modules with the same input."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, Tensor, int]] = {}
        self.owner: dict[str, str] = {}  # name of a module -> the first one with the same input
        self.last: tuple[Tensor | None, str] = (None, "")

    def of(self, name: str, change: Callable[[Tensor], Tensor] = lambda x: x) -> Hook:
        def see(inputs: Tensor, _outputs: Tensor, counted: Tensor | None) -> None:
            previous, owner = self.last
            if inputs is previous:  # queries, keys and values read one tensor
                self.owner[name] = owner
                return
            self.last, self.owner[name] = (inputs, name), name
            x = change((inputs.flatten(0, -2) if counted is None else inputs[counted]).double())  # (token, unit)
            zero = torch.zeros((), dtype=torch.float64)
            first, second, tokens = self.sums.get(name, (zero, zero, 0))
            self.sums[name] = (first + x.sum(0).cpu(), second + (x.T @ x).cpu(), tokens + len(x))

        return see

    def moments(self) -> dict[str, Moments]:
        moments: dict[str, Moments] = {}
        for name in list(self.sums):
            first, second, tokens = self.sums.pop(name)
            mean = first / tokens
            moments[name] = Moments(mean, second.div_(tokens).sub_(torch.outer(mean, mean)), tokens)
        return {name: moments[owner] for name, owner in self.owner.items()}


def _normalised(x: Tensor) -> Tensor:
    return _of_one_size(x - x.mean(-1, keepdim=True))


def _of_one_size(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-300)


def measure_inputs(opened: Opened, matrices: Iterable[str], also: Iterable[tuple[str, Hook]] = ()) -> Opened:
    """Run the calibration batches once and measure the inputs of all norms and of these matrices.

    Args:
        also: further hooks for the same run, as (module's name, hook).
    """
    linear = [name.removesuffix(".weight") for name in matrices]
    places = norms(opened.network)
    norm_names = modules_of(opened.network, places)
    rms = {name for name, place in zip(norm_names, places, strict=True) if place.norm.kind == "rms"}
    batches = () if opened.calibration is None else opened.calibration
    return replace(opened, moments=measure(opened.model, norm_names, linear, batches, also, rms))


def fit_to_low_pass(opened: Opened, maps_of: MapsOf, known: Mapping[str, Moments], picked: Iterable[str]) -> None:
    """Fit every matrix to what the low-pass leaves of its input, by the moments that `measure_inputs` has measured.

    Args:
        maps_of: the maps R and C of the factors of an axis that the resize will apply.
        known: name of a matrix -> moments of its input, if they are known without `measure_inputs`.
        picked: streams of which units are picked, to which their norms are matched.
    """
    network, measured = opened.network, opened.moments or InputMoments({}, {})
    inputs = {f"{name}.weight": moments for name, moments in measured.inputs.items()}
    refit_readers(network, {**inputs, **known}, maps_of)
    for stream in picked:
        produce, _ = maps_of((Factor(stream, None, False),))
        low_pass = torch.from_numpy(network.total_map(stream, None).then(produce).dense())
        places = norms(network, stream)
        for place, name in zip(places, modules_of(network, places), strict=True):
            match_norm_scale(network, place, measured.norms[name], low_pass)


def input_axis(rule: Rule) -> tuple[int, tuple[Factor, ...]] | None:
    """The axis of a matrix that is its module's input, and its factors; None for tables and vectors."""
    for dim, axis in enumerate(rule.axes):
        factors = [factor for segment in axis.segments for factor in segment]
        if rule.maps and len(axis.segments) == 1 and all(factor.reads for factor in factors):
            return dim, axis.segments[0]
    return None


def refit_readers(network: Network, inputs: Mapping[str, Moments], maps_of: MapsOf) -> None:
    """Fit every matrix of `inputs` to what the low-pass leaves of its input.

    A tied output embedding must stay equal to the input embedding. Only its bias is changed, by what the mean
    loses, mean - C^T R mean.

    Args:
        inputs: name of a matrix -> moments of its input, in the order and basis of the stored tensors.
        maps_of: the maps R and C of the factors of an axis.
    """
    fitted: dict[tuple[int, bool], tuple[AxisMap, Tensor]] = {}  # queries, keys and values share one fit
    sizes = [float(len(moments.mean)) ** 3 for moments in inputs.values()]
    for name, moments in progress.tracked(inputs.items(), sizes, [f"fitting {name}" for name in inputs]):
        place = network.places[name]
        axis = input_axis(place.rule)
        maps = maps_of(axis[1]) if axis else (identity(0), identity(0))
        bias = network.find(f"{place.stem}.bias", place.layer)
        if axis is None or maps[0].is_identity or (name in network.tied and bias is None):
            continue
        dim, factors = axis
        current = moments.mapped(_total_matrix(network, factors, place.at))
        if name in network.tied:
            mean = current.mean
            lost = mean - torch.from_numpy(maps[1].dense().T @ maps[0].dense()) @ mean
        else:
            key = (id(moments), bias is None)
            fitted[key] = fitted.get(key) or _fit(current if bias else current.uncentred(), *maps)
            through, lost = fitted[key]
        if bias is not None:
            shift = torch.tensordot(network[name].double(), lost, dims=([dim], [0]))
            for bias_name in network.names_of(bias):
                network.edit(bias_name, lambda x, shift=shift: x + shift.reshape(x.shape).to(x))  # type: ignore[misc]
        if name not in network.tied:
            network.edit(name, lambda x, through=through, dim=dim: through.apply(x, dim))  # type: ignore[misc]


def match_norm_scale(network: Network, place: NormPlace, moments: Moments, low_pass: Tensor) -> None:
    """Adjust the scale and shift of a norm that is not folded (post-norm) to a stream of fewer units.

    The kept units R x of a normalised stream x have a mean mu and a variance rho^2. The norm returns
    (R x - mu) / rho, so gamma <- rho gamma and beta <- beta + gamma mu give R x again. An RMS norm does not
    subtract mu.
    """
    units = moments.mapped(low_pass)
    second = units.uncentred().covariance
    mean = float(units.mean.mean())
    square = second.trace() / len(second)
    rho = float((square if place.norm.kind == "rms" else square - second.mean()).clamp_min(0).sqrt())
    shift = place.part(network, "bias")
    if shift is not None:
        gamma = place.gamma(network)
        network.edit(shift, lambda x: x + mean * gamma.to(x))
    place.set_gamma(network, lambda x: x * rho)


def _fit(moments: Moments, produce: AxisMap, consume: AxisMap) -> tuple[AxisMap, Tensor]:
    """The map of a read axis, W -> W A R, and the mean that the bias must add, mean - A R mean."""
    low_pass = torch.from_numpy(produce.dense())  # (target, source): R
    cross = moments.covariance @ low_pass.T  # (source, target)
    within = low_pass @ cross  # (target, target)
    scarcity = FEW * len(within) / moments.tokens if moments.tokens else 0.0
    ridge = (RIDGE + scarcity) * within.diagonal().mean().clamp_min(1e-300) * torch.eye(len(within), dtype=within.dtype)
    read = torch.linalg.solve(
        within + ridge, (cross + torch.from_numpy(consume.dense()).T @ ridge).T
    )  # (target, source): A^T
    through = AxisMap(produce.source, produce.target, (Matrix(read.numpy()),)).then(produce.transposed())
    return through, moments.mean - read.T @ (low_pass @ moments.mean)


def _total_matrix(network: Network, factors: tuple[Factor, ...], at: At) -> Tensor:
    """The matrix from the stored order or basis of an axis to the one after the edits so far."""
    matrix = np.ones((1, 1))
    for factor in factors:
        length = network.sizes[factor.role] if factor.role else factor.size
        matrix = np.kron(matrix, network.total_map(factor.role, at).dense() if factor.role else np.eye(length or 1))
    return torch.from_numpy(matrix)
