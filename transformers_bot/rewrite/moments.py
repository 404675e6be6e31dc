"""Running a source on a few batches: what its modules take and give, and first and second moments of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..console import progress
from ..errors import BadOption

# (a module's first input, its first output, which tokens count or None for all), as the module has them
UNKNOWN = 8  # batches, of an iterator that does not tell
See = Callable[[Tensor, Tensor, Tensor | None], None]


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


@dataclass
class Moments:
    """Mean and covariance of a vector, in float64."""

    mean: Tensor  # (unit,)
    covariance: Tensor  # (unit, unit)
    tokens: int | None = None  # how many were measured; None for an estimate

    def add(self, mean: Tensor, covariance: Tensor) -> None:
        """Take in an independent summand."""
        self.mean = self.mean + mean
        self.covariance.add_(covariance)

    def mapped(self, matrix: Tensor) -> "Moments":
        """Of `matrix @ x`."""
        return Moments(matrix @ self.mean, matrix @ self.covariance @ matrix.T, self.tokens)

    def uncentred(self) -> "Moments":
        """Mean 0 and second moments in place of the covariance."""
        second = self.covariance + torch.outer(self.mean, self.mean)
        return Moments(torch.zeros_like(self.mean), second, self.tokens)

    @property
    def size(self) -> Tensor:
        """Trace of the second moments, after the mean over units is taken away."""
        off = self.mean - self.mean.mean()
        return self.covariance.trace() - self.covariance.sum() / len(off) + off.square().sum()

    def normalised(self) -> "Moments":
        """After a norm: without the mean over units, of variance 1 over units on average."""
        mean = self.mean - self.mean.mean()
        scale = (self.size / len(mean)).clamp_min(1e-300)
        rows, columns = (self.covariance.mean(dim, keepdim=True) for dim in (1, 0))
        covariance = self.covariance - rows - columns + rows.mean()  # (I - 1 1^T / n) C (I - 1 1^T / n)
        return Moments(mean / scale.sqrt(), covariance / scale, self.tokens)


@dataclass(frozen=True)
class Seen:
    """What was measured while a source ran on a few batches.

    Attributes:
        norms: name of a norm -> what it normalises, every token at mean 0 and variance 1 over units.
        inputs: name of a linear module -> what it reads.
    """

    norms: Mapping[str, Moments]
    inputs: Mapping[str, Moments]


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
