"""Summaries of the stored runs: for each setting and method the chosen rate, curves, final figures and savings."""

from dataclasses import dataclass, field
from typing import Any

from savings import Curve, reached, saving, saving_against
from store import DONE, REFUSED, Store, chosen_rate, final
from suite import Method, Run, Setting, Suite, search_runs, seed_runs, step0_runs


@dataclass
class Row:
    """One method in one setting.

    Attributes:
        note: the reason why there are no figures; empty if there are.
        rate: the chosen learning rate, None for a method that was not trained.
        step0, probe: quality before training; `probe` only where heads are fresh.
        curves: seed -> (FLOPs, metric) at every evaluation.
        finals: metric -> its last value for each seed.
        savings: (saving, bound) against scratch for each seed, see `savings.saving_against`.
        fit_flops: FLOPs that fitting or calibrating took; they are in the curves.
    """

    method: Method
    note: str = ""
    rate: float | None = None
    step0: float | None = None
    probe: float | None = None
    curves: dict[int, Curve] = field(default_factory=dict)
    finals: dict[str, list[float]] = field(default_factory=dict)
    savings: list[tuple[float | None, float | None]] = field(default_factory=list)
    fit_flops: float = 0.0

    @property
    def ours(self) -> bool:
        return self.method.method.partition("+")[0] == "bot" and self.method.teacher is None

    def saved(self) -> list[float] | None:
        """The savings of all seeds, None unless every seed reached what scratch reached."""
        values = [value for value, _ in self.savings if value is not None]
        complete = len(values) == len(self.savings) and not self.note
        return values if values and complete else None

    def bound(self) -> float | None:
        """The upper bound of the saving if some seed did not reach the figure."""
        bounds = [bound for _, bound in self.savings if bound is not None]
        return max(bounds) if bounds else None

    def mean(self, metric: str) -> float:
        return sum(self.finals[metric]) / len(self.finals[metric])


@dataclass
class Result:
    """One setting: its rows, and whether more is better in its metric."""

    setting: Setting
    rows: list[Row]
    higher: bool
    metrics: list[str]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.method.name == name), None)

    def trained(self) -> list[Row]:
        return [row for row in self.rows if row.curves]

    def best_of(self, rows: list[Row]) -> Row | None:
        """The row with the best mean at the end of training."""
        metric = self.setting.metric
        pick = max if self.higher else min
        return pick(rows, key=lambda row: row.mean(metric)) if rows else None

    def rival(self) -> Row | None:
        """The method of others with the best figure at the end; scratch and distillation into it count, too."""
        return self.best_of([row for row in self.trained() if not row.ours])

    def against_rival(self, row: Row) -> tuple[float | None, float | None] | None:
        """(saving, bound) of `row` to the best rival's last figure, mean over the seeds that both have.

        The saving is None if a seed never reaches it; the result is None without a rival, or if the rival
        has it before any training.
        """
        rival = self.rival()
        if rival is None:
            return None
        values: list[float] = []
        bounds: list[float] = []
        for seed in sorted(set(rival.curves) & set(row.curves)):
            target = rival.curves[seed][-1][1]
            reference = reached(rival.curves[seed], target, self.higher)
            if not reference:
                return None
            phi = reached(row.curves[seed], target, self.higher)
            if phi is None:
                bounds.append(saving(reference, row.curves[seed][-1][0]))
            else:
                values.append(saving(reference, phi))
        if bounds:
            return None, max(bounds)
        return (sum(values) / len(values), None) if values else None


def results(store: Store) -> list[Result]:
    """Every setting of the store's suite that has at least one outcome."""
    found = []
    for setting in Suite.from_dict(store.data["suite"]).settings:
        result = _result(store, setting)
        if result is not None:
            found.append(result)
    return found


def _result(store: Store, setting: Setting) -> Result | None:
    rows = [_row(store, setting, method) for method in setting.methods]
    rows += [_untrained(store, setting, method) for method in setting.step0]
    outcomes = [store.outcome(run) for method in setting.methods for run in search_runs(setting, method)]
    outcomes += [store.outcome(run) for run in step0_runs(setting)]
    done = [outcome for outcome in outcomes if outcome is not None and outcome["status"] == DONE]
    if not done:
        return None
    higher = done[0]["higher"]
    result = Result(setting, rows, higher[setting.metric], list(higher))
    scratch = result.row("scratch")
    for row in result.rows:
        seeds = sorted(set(row.curves) & set(scratch.curves)) if scratch else []
        row.savings = (
            [saving_against(scratch.curves[s], row.curves[s], result.higher) for s in seeds] if scratch else []
        )
    return result


def _row(store: Store, setting: Setting, method: Method) -> Row:
    row = Row(method)
    searched = search_runs(setting, method)
    outcomes = [store.outcome(run) for run in searched]
    first = next((outcome for outcome in outcomes if outcome is not None and outcome["status"] == DONE), None)
    row.probe = _probe(store.outcome(Run(setting, method, None, setting.seeds[0])), setting)
    if first is None:
        row.note = _why(outcomes)
        return row
    row.step0 = first["curve"][0][setting.metric]
    row.fit_flops = first["fit_flops"]
    row.rate = chosen_rate(store, searched, setting.metric, first["higher"][setting.metric])
    if row.rate is None:
        row.note = "diverged at every rate"
        return row
    chosen = [run for run in searched if run.rate == row.rate] + seed_runs(setting, method, row.rate)
    for run in chosen:
        outcome = store.outcome(run)
        if outcome is None or outcome["status"] != DONE or outcome["diverged"]:
            row.note = f"seed {run.seed} is missing: it diverged or failed at the chosen rate, or was not run"
            continue
        row.curves[run.seed] = [(point["flops"], point[setting.metric]) for point in outcome["curve"]]
        for metric in outcome["higher"]:
            row.finals.setdefault(metric, []).append(final(outcome, metric))
    return row


def _untrained(store: Store, setting: Setting, method: Method) -> Row:
    outcome = store.outcome(Run(setting, method, None, setting.seeds[0]))
    if outcome is None or outcome["status"] != DONE:
        return Row(method, note=_why([outcome]))
    step0 = outcome["curve"][0][setting.metric]
    return Row(method, step0=step0, probe=_probe(outcome, setting), fit_flops=outcome["fit_flops"])


def _probe(outcome: dict[str, Any] | None, setting: Setting) -> float | None:
    """The probe's figure: the setting's metric, or where that is the loss the first one the probe has."""
    probe = (outcome or {}).get("probe")
    if not probe:
        return None
    return float(probe.get(setting.metric, next(iter(probe.values()))))


def _why(outcomes: list[dict[str, Any] | None]) -> str:
    known = [outcome for outcome in outcomes if outcome is not None]
    if not known:
        return "not run yet"
    worst = next((outcome for outcome in known if outcome["status"] != REFUSED), known[0])
    return f"{worst['status']}: {worst['reason']}" if worst["status"] != DONE else "not run yet"


def headline(result: Result) -> tuple[Row | None, Row | None, Row | None]:
    """(BoT with its defaults, BoT's best variant, the best rival), both best by the figure at the end of training."""
    ours = [row for row in result.trained() if row.ours]
    default = next((row for row in ours if row.method.name == "bot"), None)
    return default, result.best_of(ours), result.rival()
