"""The fit of a learned method within one call: its options, its data, and the fitted tensors."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..compat import drawn_from
from ..console import progress
from ..errors import BadKeyword, BadOption, suggest
from ..report.measure import Watch
from ..request.request import check_numbers
from ..run.execute import apart, hand_over, run_plan
from ..run.opening import Resize
from .batches import Reader, find_files
from .fitting import check_grows, check_schedule, check_whole, learn, learned_methods, operator_of
from .operators import growth_of

OPTIONS = ("batches", "steps", "lr", "seed", "rank", "batch_size", "tokens")
TOKENS = 200_000  # of text that are read for a fit; more than it needs cost only the time to read them


@dataclass(frozen=True)
class Fit:
    """The options of `fit=`."""

    batches: Any
    steps: int = 100
    lr: float | None = None
    seed: int = 0
    rank: int | None = None
    batch_size: int = 8
    tokens: int = TOKENS

    def batches_for(self, resize: Resize, places: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        """The batches; files are read for the target model."""
        if not _are_paths(self.batches):
            given: Iterable[Mapping[str, Any]] = self.batches
            return given
        name, model_class = resize.request.name, resize.request.model_class
        reader = Reader(name, places, resize.config, model_class, True, batch_size=self.batch_size, seed=self.seed)
        return reader.read(self.batches, self.tokens, self.steps * self.batch_size)


def fit_of(given: Mapping[str, Any] | None, method: str) -> Fit | None:
    """Read `fit=`.

    Raises:
        BadKeyword: an option that does not exist.
        BadOption: a method without learned operator, no data, or a value out of range.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise BadOption(f"fit must be a dict of its options ({', '.join(OPTIONS)}), got {type(given).__name__}.")
    check_numbers({name: value for name, value in given.items() if name != "batches"})
    for name in given:
        if name not in OPTIONS:
            raise BadKeyword(f"fit= has no option {name!r}; it has {', '.join(OPTIONS)}.{suggest(name, OPTIONS)}")
    if not operator_of(method):
        learned = ", ".join(learned_methods())
        raise BadOption(f"fit= is for the methods that learn ({learned}), not for method={method!r}.")
    if given.get("batches") is None:
        raise BadOption("there is nothing to learn from: name files or folders of texts or images with batches=.")
    fit = Fit(**given)
    check_schedule(fit.steps, fit.lr, fit.seed)
    for name in ("batch_size", "tokens"):
        value = getattr(fit, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadOption(f"{name} must be a whole number of at least 1, got {value!r}.")
    if _are_paths(fit.batches):
        find_files(fit.batches)
    return fit


def fitted(
    resize: Resize, seed: int, fit: Fit, batches: Iterable[Mapping[str, Any]] | None
) -> tuple[Watch, Mapping[str, Tensor], dict[str, Any]]:
    """Resize and fit: the measurements before the fit, the fitted model's tensors, and facts for the record.

    Args:
        seed: of new heads, which are drawn as `skeleton_of` draws them.
    """
    check_whole(resize.request.kept)
    check_grows(resize.request.adapter.roles, resize.plan.source_sizes, resize.plan.target_sizes)
    watch = Watch(resize.plan, resize.request.adapter)
    resizing, finishing = progress.resizing_seconds(resize.plan), progress.finishing_seconds(resize.plan)
    learning = progress.learning_seconds(resize.plan, fit.steps)
    progress.expects(resizing + finishing + learning)
    with progress.part("resizing", resizing):
        resized = apart(run_plan(resize.plan, resize.tensors, resize.dtype, watch=watch))
    with progress.part("building the model", finishing / 2), drawn_from(seed):
        model, _ = hand_over(resize, resized)
    growth = growth_of(resize.plan, resize.request.adapter, resize.opened.model.state_dict())
    method = str(resize.plan.method["method"])
    with progress.part("fitting the operator", learning):
        facts = learn(model, method, growth, batches or (), fit.steps, fit.lr, fit.seed, fit.rank)
    return watch, model.state_dict(), facts


def _are_paths(data: Any) -> bool:
    first = data[0] if isinstance(data, (list, tuple)) and data else data
    return isinstance(first, (str, os.PathLike))
