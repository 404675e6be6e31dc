"""Tables and plots of a suite's results, redrawn from its JSON alone.

python benchmarks/transfer/report.py benchmarks/results/transfer-cpu.json
"""

import argparse
import sys
from pathlib import Path

from store import Store
from suite import Setting
from summary import Result, Row, headline, results

NOTES = """\
- Saving is (phi_scratch - phi) / phi_scratch, where phi is the training FLOPs at which a run first reaches what scratch
  reaches at its best within the budget; linear between evaluations. Fitting a learned operator and a teacher's
  forward passes are counted, the search of the learning rate is not.
- The learning rate was chosen on the first seed from the values that the setting lists, the same for every method,
  scratch included, by the same metric at the end of training; the other seeds ran at the chosen rate. The data that
  choose it are those that judge it, alike for all.
- A start that knows more than scratch learns within the budget saves 100 % at once; there "to the best rival" tells
  more.
- Figures are means over seeds, with the lowest and the highest in brackets. No run has dropout.
- "-": the method refuses this direction or ratio; "not reached (< x)": it did not get to scratch's figure within the
  same number of steps, so its saving is below x; "n/a": scratch gained nothing within the budget, so nothing can be
  saved.
- "to the best rival": the same saving, but against the rival with the best figure at the end, on the way to that
  figure; "n/a" where the rival has it before any training.
- "BoT" is the package with its defaults; its best variant is picked afterwards by the figure at the end, as the best
  rival is. "bot calibrated" and "importance" have seen four training batches before they resize.
"""


def write(store: Store) -> list[Path]:
    """Write the table and, if matplotlib is installed, the plots; return the written paths."""
    found = results(store)
    table = store.path.with_suffix(".md")
    table.write_text(markdown(store, found), encoding="utf-8")
    print(f"wrote {table}")
    try:
        import plots
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("no plots: matplotlib is not installed (pip install matplotlib).", file=sys.stderr)
        return [table]
    drawn = plots.draw(found, store.path.parent / "plots", store.path.stem)
    print(f"wrote {len(drawn)} plots to {store.path.parent / 'plots'}")
    return [table, *drawn]


def markdown(store: Store, found: list[Result]) -> str:
    """The whole report as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in store.data["versions"].items())
    minutes = sum(outcome["seconds"] for outcome in store.data["runs"].values()) / 60
    runs = len(store.data["runs"])
    lines = [f"# Transfer: suite {store.data['suite']['name']}", ""]
    lines += [f"{store.data['machine']}; {versions}; {store.data['date']}; {runs} runs, {minutes:.0f} minutes of them."]
    lines += ["", NOTES]
    if any(result.row("scratch") for result in found):
        lines += ["## Savings against scratch", "", *_overview(found), ""]
    lines += ["## Figures at the end of training", "", *_ends(found)]
    for result in found:
        lines += ["", *_section(result)]
    return "\n".join(lines) + "\n"


def _overview(found: list[Result]) -> list[str]:
    head = ["setting", "BoT", "BoT's best variant", "best rival", "BoT to the best rival", "paper"]
    lines = [_line(head), _line(["---"] * len(head))]
    for result in found:
        default, variant, rival = headline(result)
        cells = [result.setting.title, _saving(default) if default else ""]
        cells += [f"{row.method.name}: {_saving(row)}" if row else "" for row in (variant, rival)]
        cells += [_against(result, default), _percent(result.setting.paper)]
        lines.append(_line(cells))
    return lines


def _ends(found: list[Result]) -> list[str]:
    head = ["setting", "metric", "scratch", "BoT", "BoT's best variant", "best rival"]
    lines = [_line(head), _line(["---"] * len(head))]
    for result in found:
        default, variant, rival = headline(result)
        metric = result.setting.metric
        better = "higher" if result.higher else "lower"
        rows = [(row, "") for row in (result.row("scratch"), default)]
        rows += [(row, f"{row.method.name}: ") for row in (variant, rival) if row]
        cells = [f"{name}{_spread(row.finals.get(metric, []))}" if row else "" for row, name in rows]
        lines.append(_line([result.setting.title, f"{metric}, {better} is better", *cells]))
    return lines


def _section(result: Result) -> list[str]:
    setting, metric = result.setting, result.setting.metric
    others = [name for name in result.metrics if name != metric]
    probed = any(row.probe is not None for row in result.rows)
    head = ["method", "rate", f"{metric} at step 0", *(["probe at step 0"] if probed else []), f"{metric} at the end"]
    head += [*others, "saving", "to the best rival", "FLOPs before training"]
    lines = [f"## {setting.title}", "", _budget(setting), "", _line(head), _line(["---"] * len(head))]
    for row in result.rows:
        cells = [row.method.name, f"{row.rate:g}" if row.rate is not None else "", _number(row.step0)]
        cells += [_number(row.probe)] if probed else []
        cells += [_spread(row.finals.get(name, [])) for name in (metric, *others)]
        cells += [_saving(row), _against(result, row), f"{row.fit_flops:.2g}" if row.fit_flops else ""]
        lines.append(_line(cells))
    notes = [f"- {row.method.name}: {row.note}" for row in result.rows if row.note]
    return [*lines, "", *notes] if notes else lines


def _budget(setting: Setting) -> str:
    budget = setting.budget
    target = ", ".join(f"{name} {value}" for name, value in setting.target.items())
    rates = ", ".join(f"{rate:g}" for rate in setting.rates)
    more = "higher" if setting.metric not in ("loss",) else "lower"
    return (
        f"Source {setting.source}; target {target}. {budget.steps} steps of {budget.batch}, {budget.schedule}, "
        f"{budget.warmup} warm-up steps; rates {rates}; seeds {', '.join(map(str, setting.seeds))}. "
        f"{setting.metric}: {more} is better."
    )


def _saving(row: Row) -> str:
    if row.note:
        return "-" if row.note.startswith("refused") else ""
    saved, bound = row.saved(), row.bound()
    if saved:
        return _spread([100 * value for value in saved], digits=0, unit=" %")
    if bound is not None:
        return f"not reached (< {100 * bound:.0f} %)"
    return "n/a" if row.savings else ""


def _against(result: Result, row: Row | None) -> str:
    if row is None or not row.curves or row.method.name == "scratch" or result.rival() in (None, row):
        return ""
    found = result.against_rival(row)
    if found is None:
        return "n/a"
    value, bound = found
    return f"{100 * value:.0f} %" if value is not None else f"not reached (< {100 * (bound or 0):.0f} %)"


def _spread(values: list[float], digits: int = 4, unit: str = "") -> str:
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.{digits}f}{unit}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:g} %"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the JSON file that run.py wrote")
    args = parser.parse_args()
    if not args.results.exists():
        parser.error(f"{args.results} is not there; run.py writes it.")
    write(Store(args.results))


if __name__ == "__main__":
    main()
