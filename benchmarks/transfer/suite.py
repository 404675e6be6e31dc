"""Reads a suite: which model is resized to which size by which methods, and trained on what for how long.

A suite is YAML with four tables:

    sources:    # name -> where the source comes from: one of
      gpt2-4x96: {data: weights/gpt2-gcide-4x96}       # a folder under the data folder
      minilm: {demo: true}                             # the model of `transformers-bot demo`
      deit: {train: {config: {...}, task: {...}, budget: {...}, rate: 0.001, seed: 0}}  # trained once, cached
    methods:    # name -> how the target gets its weights; `method` is the name if left out
      bot raw: {method: bot, bot_config: {gain: raw}}
      kd: {method: scratch, teacher: {weight: 0.5, temperature: 2.0}}   # the source is the teacher
      ligo: {fit: {steps: 20, rate: 0.001}}                             # a learned operator
      bot calibrated: {method: bot, calibration: 4}                     # sees four batches before it resizes
    defaults: {...}       # fields of every setting
    settings:             # see `Setting`
      - {name: ..., source: ..., target: {...}, task: {...}, ...}

A run is one training: a setting, a method, a learning rate and a seed. Its key is a hash of everything that
decides its outcome, so a changed entry runs anew and an unchanged one is found again.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml


class BadSuite(ValueError):
    """A suite that cannot be run as written; the message names the entry."""


@dataclass(frozen=True)
class Budget:
    """How long and how a run trains: AdamW, warm-up, then cosine or linear decay to zero."""

    steps: int
    batch: int
    warmup: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    evaluations: int = 10
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1 or self.evaluations < 1:
            raise BadSuite(f"a budget needs steps >= 0, batch >= 1 and evaluations >= 1, got {self}.")
        if self.schedule not in ("cosine", "linear", "constant"):
            raise BadSuite(f"schedule must be cosine, linear or constant, got {self.schedule!r}.")
        if self.precision not in ("float32", "bfloat16"):
            raise BadSuite(f"precision must be float32 or bfloat16, got {self.precision!r}.")


@dataclass(frozen=True)
class Method:
    """How the target gets its first weights, and whether a teacher helps in training."""

    name: str
    method: str
    bot_config: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] | None = None
    teacher: dict[str, float] | None = None
    calibration: int = 0  # batches that the method may run the source on before it resizes


@dataclass(frozen=True)
class Setting:
    """One transfer: a source, a target, a task and a budget, with the methods that compete in it.

    Attributes:
        target: fields of the target's config that differ from the source's.
        metric: the figure of the task by which rates are chosen and savings are measured.
        methods: those that are trained at every rate; `step0`: those only evaluated after resizing.
        paper: the paper's saving for the nearest setting, per cent, shown beside ours; may be empty.
    """

    name: str
    title: str
    direction: str
    source: str
    source_spec: dict[str, Any]
    target: dict[str, Any]
    task: dict[str, Any]
    metric: str
    budget: Budget
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    step0: tuple[Method, ...] = ()
    paper: float | None = None
    goal: float | None = None


@dataclass(frozen=True)
class Run:
    """One training, or with rate None one evaluation right after resizing."""

    setting: Setting
    method: Method
    rate: float | None
    seed: int

    @property
    def key(self) -> str:
        """A hash of all that decides the outcome, titles and names left out."""
        return _digest(self.identity())

    def identity(self) -> dict[str, Any]:
        method = {k: v for k, v in asdict(self.method).items() if k != "name"}
        if not self.method.calibration:  # a field that few methods use leaves the keys of the others as they are
            del method["calibration"]
        parts = {"source": self.setting.source_spec, "target": self.setting.target, "task": self.setting.task}
        return {**parts, "budget": asdict(self.budget), "method": method, "rate": self.rate, "seed": self.seed}

    @property
    def budget(self) -> Budget:
        return self.setting.budget if self.rate is not None else replace(self.setting.budget, steps=0)

    def __str__(self) -> str:
        how = "step 0" if self.rate is None else f"rate {self.rate:g}"
        return f"{self.setting.name}: {self.method.name}, {how}, seed {self.seed}"


@dataclass(frozen=True)
class Suite:
    """All settings of one YAML file."""

    name: str
    settings: tuple[Setting, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "settings": [asdict(setting) for setting in self.settings]}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Suite":
        """The suite that `to_dict` wrote, after a round trip through JSON."""
        return cls(saved["name"], tuple(_setting_from(entry) for entry in saved["settings"]))


def source_key(spec: dict[str, Any]) -> str:
    """The hash that names a trained source in the cache."""
    return _digest(spec)


def search_runs(setting: Setting, method: Method) -> list[Run]:
    """The runs on the first seed, among which the learning rate is chosen."""
    return [Run(setting, method, rate, setting.seeds[0]) for rate in setting.rates]


def seed_runs(setting: Setting, method: Method, rate: float) -> list[Run]:
    """The runs at the chosen rate on the other seeds."""
    return [Run(setting, method, rate, seed) for seed in setting.seeds[1:]]


def step0_runs(setting: Setting) -> list[Run]:
    """One evaluation without training for each method that is not trained here, and for all if there is a probe."""
    methods = [*setting.step0, *(setting.methods if setting.task.get("probe") else ())]
    return [Run(setting, method, None, setting.seeds[0]) for method in methods]


def possible_runs(suite: Suite) -> Iterator[Run]:
    """Every run that the suite can ask for, whichever rates are chosen."""
    for setting in suite.settings:
        yield from step0_runs(setting)
        for method in setting.methods:
            yield from (Run(setting, method, rate, seed) for rate in setting.rates for seed in setting.seeds)


def load(path: Path) -> Suite:
    """The suite of a YAML file; `BadSuite` says which entry is wrong."""
    tables = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check_names(tables, {"sources", "methods", "defaults", "settings"}, f"the suite {path.name}")
    methods = {name: _method(name, spec or {}) for name, spec in tables["methods"].items()}
    settings = []
    for entry in tables["settings"]:
        merged = {**tables.get("defaults", {}), **entry}
        settings.append(_setting(merged, tables["sources"], methods))
    names = [setting.name for setting in settings]
    if len(set(names)) < len(names):
        raise BadSuite(f"two settings of {path.name} have the same name: {', '.join(sorted(names))}.")
    return Suite(path.stem, tuple(settings))


def shortened(suite: Suite, steps: int) -> Suite:
    """The same suite with one rate and seed, and every training, fit and source cut to that many steps.

    For a quick check that everything runs.
    """

    def cut_method(method: Method) -> Method:
        return replace(method, fit={**method.fit, "steps": steps}) if method.fit else method

    def cut(setting: Setting) -> Setting:
        spec = setting.source_spec
        if "train" in spec:
            budget = {**spec["train"]["budget"], "steps": steps}
            spec = {"train": {**spec["train"], "budget": budget}}
        methods = tuple(map(cut_method, setting.methods))
        step0 = tuple(map(cut_method, setting.step0))
        short = replace(setting, source_spec=spec, methods=methods, step0=step0, rates=setting.rates[:1])
        return replace(short, budget=replace(setting.budget, steps=steps, warmup=0), seeds=setting.seeds[:1])

    return Suite(f"{suite.name}-steps{steps}", tuple(map(cut, suite.settings)))


def _setting(entry: dict[str, Any], sources: dict[str, Any], methods: dict[str, Method]) -> Setting:
    name = entry.get("name", "(without a name)")
    given = {**entry, "source_spec": sources.get(entry.get("source"))}
    known = {f.name for f in fields(Setting)}
    _check_names(given, known, f"setting {name}")
    if given["source_spec"] is None:
        raise BadSuite(f"setting {name}: unknown source {entry.get('source')!r}; known are {', '.join(sources)}.")
    for group in ("methods", "step0"):
        unknown = [m for m in given.get(group, ()) if m not in methods]
        if unknown:
            raise BadSuite(f"setting {name}: unknown methods {unknown}; known are {', '.join(methods)}.")
        given[group] = tuple(methods[m] for m in given.get(group, ()))
    missing = [
        f for f in ("title", "direction", "target", "task", "metric", "budget", "rates", "seeds") if f not in given
    ]
    if missing:
        raise BadSuite(f"setting {name}: no {', '.join(missing)}; set it there or under defaults.")
    return replace(
        Setting(**{**given, "budget": budget_from(given["budget"], name)}),
        rates=tuple(float(rate) for rate in given["rates"]),
        seeds=tuple(given["seeds"]),
    )


def _setting_from(saved: dict[str, Any]) -> Setting:
    budget = Budget(**{**saved["budget"], "betas": tuple(saved["budget"]["betas"])})
    groups = {group: tuple(Method(**entry) for entry in saved[group]) for group in ("methods", "step0")}
    lists = {"rates": tuple(saved["rates"]), "seeds": tuple(saved["seeds"])}
    return Setting(**{**saved, "budget": budget, **groups, **lists})


def budget_from(entry: dict[str, Any], where: str) -> Budget:
    """The budget of a YAML entry, with decimal fields read as numbers whatever YAML made of them."""
    _check_names(entry, {f.name for f in fields(Budget)}, f"the budget of {where}")
    betas = tuple(float(beta) for beta in entry.get("betas", (0.9, 0.95)))
    return Budget(**{**entry, "betas": betas})


def _method(name: str, spec: dict[str, Any]) -> Method:
    _check_names(spec, {"method", "bot_config", "fit", "teacher", "calibration"}, f"method {name}")
    return Method(name, **{"method": name, **spec})


def _check_names(given: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise BadSuite(f"{where} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}.")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
