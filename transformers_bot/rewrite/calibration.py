"""Calibration: a source runs on a few batches, and its readers are fitted to what a low-pass keeps of their inputs.

`watch` runs the batches, `look` measures what norms and matrices read, `fit_to_low_pass` fits them by least
squares on these moments.

Of its input y a matrix W will only see R y. The dual map C reads that as if nothing was known of y;
with its mean and covariance known, the best reader of R y is W A, with

    A = Cov(y, R y) Cov(R y)^-1,    b <- b + W (mean - A R mean),

and without a bias second moments in place of covariances. R A = I holds, so what R keeps of y is
read as before. Here the readers are rewritten at the source's size, W <- W A R, of which the map C
of the resize then takes W A, because R C^T = I.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..architectures.adapter import At, Factor, Rule
from ..console import progress
from ..errors import BadOption
from ..ops.axis_map import AxisMap, Matrix, identity
from .network import Network, NormPlace, norms
from .principal import Moments, Opened, Seen, modules_of

UNKNOWN = 8  # batches, of an iterator that does not tell
# (a module's first input, its first output, which tokens count or None for all), as the module has them
See = Callable[[Tensor, Tensor, Tensor | None], None]
# Of the mean kept variance: directions that the batches do not show are read by C, as without data.
RIDGE = 1e-3
FEW = 0.1  # as much again for every unit that is kept and token that was seen, m / tokens: few tokens tell little
MapsOf = Callable[[tuple[Factor, ...]], tuple[AxisMap, AxisMap]]  # factors of an axis -> R, C


@torch.no_grad()
def watch(model: nn.Module, watched: Iterable[tuple[str, See]], batches: Iterable[Mapping[str, Any]]) -> None:
    """Run batches through a model and let each of `watched` see its module.

    Args:
        model: the source.
        watched: name of a module, and what looks at it. Tokens outside an `attention_mask` do not count.
        batches: keyword arguments of the model.

    Raises:
        BadOption: no batch, batches that the model does not run on, or a mask of another shape than
            its tokens.
    """
    mask: Tensor | None = None
    seen = 0
    moved = _Batches(batches)

    def hook(name: str, see: See) -> Callable[..., None]:
        def call(_module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:  # type: ignore[type-arg]
            given = args[0] if args else kwargs["hidden_states"]
            made = output[0] if isinstance(output, tuple) else output
            if made.dim() > 3:  # (example, choice, token, unit): every choice is a sequence
                given, made = given.flatten(0, -3), made.flatten(0, -3)
            if not (bool(given.isfinite().all()) and bool(made.isfinite().all())):
                raise BadOption(
                    f"the source gives values that are not finite at {name} on a calibration= batch. Look for NaN or "
                    "Inf in the batches and in the source; half precision may overflow: load it in float32."
                )
            # One vector a sequence, or a choice, is no token.
            whole = made.dim() == 2 or (mask is not None and made.shape[:-1] == mask.shape[:-1])
            see(given, made, None if whole else _fitting(mask, made))
            moved.looked(len(handles))

        return call

    modules = dict(model.named_modules())
    handles = []
    try:
        for name, see in watched:
            handles.append(modules[name].register_forward_hook(hook(name, see), with_kwargs=True))
        if isinstance(batches, Mapping):
            raise BadOption("calibration= is one batch; pass a list of batches.")
        for batch in moved.each():
            if not isinstance(batch, Mapping):
                raise BadOption(
                    "every batch of calibration= must be a dict of tensors, such as a tokenizer gives with "
                    f"return_tensors='pt', got {type(batch).__name__}."
                )
            mask = batch.get("attention_mask")
            model(**batch)
            seen += 1
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
    if not seen:
        raise BadOption("calibration= gave no batch; pass a list of a few, such as tokenizer outputs.")


class _Batches:
    """Batches, and on the bar how many of them were run; within one, how many modules were looked at."""

    def __init__(self, batches: Iterable[Mapping[str, Any]]) -> None:
        self._batches, self._span = batches, progress.here()
        self._count = len(batches) if isinstance(batches, Sized) else 0
        self._number = self._looked = 0

    def each(self) -> Iterator[Mapping[str, Any]]:
        self._show(0.0)
        for batch in self._batches:
            yield batch
            self._number, self._looked = self._number + 1, 0
            self._show(0.0)

    def looked(self, modules: int) -> None:
        """One of the modules was looked at."""
        self._looked += 1
        self._show(min(1.0, self._looked / modules))

    def _show(self, share: float) -> None:
        done, now = self._number + share, self._number + 1
        if self._count:
            self._span.at(done / self._count, f"calibrating, batch {min(now, self._count)} of {self._count}")
        else:  # nobody knows how many there are: half of what is left for every few
            self._span.at(1 - 0.5 ** (done / UNKNOWN), f"calibrating, batch {now}")


def _fitting(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The attention mask as (sequence, token) of x; several choices of an example are sequences of their own."""
    if mask is None:
        return None
    flat = mask.flatten(0, -2).bool()
    if flat.shape != x.shape[:2] or not flat.any():
        raise BadOption(
            f"an attention_mask of calibration= has shape {tuple(mask.shape)} and {int(flat.sum())} tokens to count, "
            f"where the source has {tuple(x.shape[:2])} (sequences, tokens). Give one 0 or 1 for every token."
        )
    return flat


def measured(
    model: nn.Module,
    norms: Iterable[str],
    linear: Iterable[str],
    batches: Iterable[Mapping[str, Any]],
    also: Iterable[tuple[str, See]] = (),
) -> Seen:
    """Run the batches once, and measure what norms and linear modules read.

    Args:
        model: the source.
        norms, linear: names of modules; what is no linear module of this model is left out.
        batches: keyword arguments of the model, see `watch`.
        also: what else looks at the modules meanwhile.
    """
    named = dict(model.named_modules())
    behind, before = _Sums(_normalised), _Sums(lambda x: x)
    matrices = [name for name in linear if isinstance(named.get(name), (nn.Linear, Conv1D))]
    watched = [(name, behind.of(name)) for name in norms] + [(name, before.of(name)) for name in matrices]
    watch(model, [*watched, *also], batches)
    return Seen(behind.moments(), before.moments())


class _Sums:
    """First and second sums of what modules take in, once for modules that take in the same."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change
        self.sums: dict[str, tuple[Tensor, Tensor, int]] = {}
        self.owner: dict[str, str] = {}  # name of a module -> the first one that took in the same
        self.last: tuple[Tensor | None, str] = (None, "")

    def of(self, name: str) -> See:
        def see(given: Tensor, _made: Tensor, counted: Tensor | None) -> None:
            before, owner = self.last
            if given is before:  # queries, keys and values
                self.owner[name] = owner
                return
            self.last, self.owner[name] = (given, name), name
            x = self.change((given.flatten(0, -2) if counted is None else given[counted]).double())  # (token, unit)
            nothing = torch.zeros((), dtype=torch.float64)
            first, second, tokens = self.sums.get(name, (nothing, nothing, 0))
            self.sums[name] = (first + x.sum(0).cpu(), second + (x.T @ x).cpu(), tokens + len(x))

        return see

    def moments(self) -> dict[str, Moments]:
        found: dict[str, Moments] = {}
        for name in list(self.sums):
            first, second, tokens = self.sums.pop(name)
            mean = first / tokens
            found[name] = Moments(mean, second.div_(tokens).sub_(torch.outer(mean, mean)), tokens)
        return {name: found[owner] for name, owner in self.owner.items()}


def _normalised(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-300)


def look(opened: Opened, matrices: Iterable[str], also: Iterable[tuple[str, See]] = ()) -> Opened:
    """Run the calibration batches once and note what norms and these matrices read.

    Args:
        also: what else looks at modules meanwhile, by their names.
    """
    modules = [name.removesuffix(".weight") for name in matrices]
    every = modules_of(opened.network, norms(opened.network))
    return replace(
        opened,
        seen=measured(opened.model, every, modules, () if opened.calibration is None else opened.calibration, also),
    )


def fit_to_low_pass(opened: Opened, maps_of: MapsOf, known: Mapping[str, Moments], norms_too: bool) -> None:
    """Fit every matrix to what the low-pass leaves of its input, as `look` has seen it.

    Args:
        maps_of: the maps R and C of the factors of an axis, as they are going to be applied.
        known: name of a matrix -> moments of its input, where they are known already.
        norms_too: norms of a stream that gets fewer units are matched to those.
    """
    network, seen = opened.network, opened.seen or Seen({}, {})
    inputs = {f"{name}.weight": one for name, one in seen.inputs.items()}
    refit_readers(network, {**inputs, **known}, maps_of)
    for stream in network.roles.streams if norms_too else ():
        low_pass, _ = maps_of((Factor(stream, None, False),))
        kept = torch.from_numpy(network.moved(stream, None).then(low_pass).dense())
        every = norms(network, stream)
        for place, name in zip(every, modules_of(network, every), strict=True):
            match_norm_scale(network, place, seen.norms[name], kept)


def input_axis(rule: Rule) -> tuple[int, tuple[Factor, ...]] | None:
    """Which axis of a matrix is its module's input, and its factors; None for tables and vectors."""
    for dim, axis in enumerate(rule.axes):
        factors = [factor for segment in axis.segments for factor in segment]
        if rule.maps and len(axis.segments) == 1 and all(factor.reads for factor in factors):
            return dim, axis.segments[0]
    return None


def refit_readers(network: Network, seen: Mapping[str, Moments], maps_of: MapsOf) -> None:
    """Fit every matrix of `seen` to what the low-pass leaves of its input.

    A tied output embedding has to stay what the input embedding is: its bias alone takes over what
    the mean loses, mean - C^T R mean.

    Args:
        seen: name of a matrix -> moments of its input, in the order and basis of the stored tensors.
        maps_of: the maps R and C of the factors of an axis.
    """
    fitted: dict[tuple[int, bool], tuple[AxisMap, Tensor]] = {}  # queries, keys and values read the same
    sizes = [float(len(moments.mean)) ** 3 for moments in seen.values()]
    for name, moments in progress.tracked(seen.items(), sizes, [f"fitting {name}" for name in seen]):
        place = network.places[name]
        found = input_axis(place.rule)
        maps = maps_of(found[1]) if found else (identity(0), identity(0))
        bias = network.find(f"{place.stem}.bias", place.layer)
        if found is None or maps[0].is_identity or (name in network.tied and bias is None):
            continue
        dim, factors = found
        now = moments.mapped(_moved(network, factors, place.at))
        if name in network.tied:
            mean = now.mean
            lost = mean - torch.from_numpy(maps[1].dense().T @ maps[0].dense()) @ mean
        else:
            key = (id(moments), bias is None)
            fitted[key] = fitted.get(key) or _fit(now if bias else now.uncentred(), *maps)
            through, lost = fitted[key]
        if bias is not None:
            shift = torch.tensordot(network[name].double(), lost, dims=([dim], [0]))
            for one in network.names_of(bias):
                network.edit(one, lambda x, shift=shift: x + shift.reshape(x.shape).to(x))  # type: ignore[misc]
        if name not in network.tied:
            network.edit(name, lambda x, through=through, dim=dim: through.apply(x, dim))  # type: ignore[misc]


def match_norm_scale(network: Network, place: NormPlace, seen: Moments, low_pass: Tensor) -> None:
    """Give a norm that stays as it is (post-norm) the scale and shift of a stream of fewer units.

    Over the units R x of a normalised stream x a norm finds the variance rho^2 and the mean mu; it
    returns (R x - mu) / rho, so gamma <- rho gamma and beta <- beta + gamma mu bring back R x.
    """
    units = seen.mapped(low_pass)
    second = units.uncentred().covariance
    mean = float(units.mean.mean())
    rho = float((second.trace() / len(second) - second.mean()).clamp_min(0).sqrt())
    shift = place.part(network, "bias")
    if shift is not None:
        gamma = place.gamma(network)
        network.edit(shift, lambda x: x + mean * gamma.to(x))
    place.set_gamma(network, lambda x: x * rho)


def _fit(seen: Moments, kept: AxisMap, dual: AxisMap) -> tuple[AxisMap, Tensor]:
    """The map of a read axis, W -> W A R, and what the bias takes over, mean - A R mean."""
    low_pass = torch.from_numpy(kept.dense())  # (target, source): R
    cross = seen.covariance @ low_pass.T  # (source, target)
    within = low_pass @ cross
    few = FEW * len(within) / seen.tokens if seen.tokens else 0.0
    ridge = (RIDGE + few) * within.diagonal().mean().clamp_min(1e-300) * torch.eye(len(within), dtype=within.dtype)
    read = torch.linalg.solve(
        within + ridge, (cross + torch.from_numpy(dual.dense()).T @ ridge).T
    )  # (target, source): A^T
    through = AxisMap(kept.source, kept.target, (Matrix(read.numpy()),)).then(kept.transposed())
    return through, seen.mean - read.T @ (low_pass @ seen.mean)


def _moved(network: Network, factors: tuple[Factor, ...], at: At) -> Tensor:
    """From the stored order of an axis to the one that the edits so far have given it."""
    whole = np.ones((1, 1))
    for factor in factors:
        length = network.sizes[factor.role] if factor.role else factor.size
        whole = np.kron(whole, network.moved(factor.role, at).dense() if factor.role else np.eye(length or 1))
    return torch.from_numpy(whole)
