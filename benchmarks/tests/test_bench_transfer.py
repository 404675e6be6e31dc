"""The transfer bench: savings on curves made by hand, resuming, reports from JSON alone, all suites readable."""

import doctest
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import transformers_bot
from transformers_bot import BoTConfig

BENCH = Path(__file__).resolve().parents[1] / "transfer"
sys.path.insert(0, str(BENCH))

yaml = pytest.importorskip("yaml", reason="the bench reads YAML: pip install pyyaml")

import report  # noqa: E402
import run as bench  # noqa: E402
import savings  # noqa: E402
import store as stores  # noqa: E402
import suite as suites  # noqa: E402
import summary  # noqa: E402
import train  # noqa: E402

DATA = Path(os.environ.get("TRANSFORMERS_BOT_DATA", BENCH.parents[2] / "shared" / "data"))
SUITES = sorted((BENCH / "suites").glob("*.yaml"))
SCRATCH = [(0.0, 5.0), (100.0, 4.0), (200.0, 3.0)]


@pytest.mark.parametrize(
    ("curve", "target", "higher", "flops"),
    [
        (SCRATCH, 3.0, False, 200.0),
        (SCRATCH, 3.5, False, 150.0),
        ([(0.0, 2.0), (100.0, 4.0)], 3.0, False, 0.0),  # there before training
        ([(30.0, 2.0), (130.0, 4.0)], 3.0, False, 30.0),  # there before training, after a fit of 30
        ([(0.0, 5.0), (100.0, 2.0), (200.0, 4.0)], 3.0, False, 100 * 2 / 3),  # the first time counts
        (SCRATCH, 2.9, False, None),
        ([(0.0, 0.1), (10.0, 0.3)], 0.2, True, 5.0),
        ([(0.0, 0.1), (10.0, 0.3)], 0.4, True, None),
    ],
)
def test_flops_at_which_a_curve_first_reaches_a_figure(curve, target, higher, flops):
    assert savings.reached(curve, target, higher) == (None if flops is None else pytest.approx(flops))


def test_saving_counts_the_fit_and_bounds_what_was_not_reached():
    assert savings.saving_against(SCRATCH, SCRATCH, higher=False) == (0.0, None)
    assert savings.saving_against(SCRATCH, [(50.0, 2.0)], higher=False) == (0.75, None)
    assert savings.saving_against(SCRATCH, [(0.0, 5.0), (300.0, 3.5)], higher=False) == (None, -0.5)
    assert savings.saving_against([(0.0, 3.0), (9.0, 3.2)], SCRATCH, higher=False) == (None, None)
    with pytest.raises(ValueError, match="needs FLOPs of its own"):
        savings.saving(0.0, 1.0)


def test_scratch_is_measured_at_its_best_evaluation():
    overfitted = [(0.0, 5.0), (100.0, 3.0), (200.0, 4.0)]
    assert savings.saving_against(overfitted, [(0.0, 5.0), (80.0, 3.0)], higher=False) == (pytest.approx(0.2), None)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_suite_parses_and_survives_json(path):
    suite = suites.load(path)
    again = suites.Suite.from_dict(json.loads(json.dumps(suite.to_dict())))
    assert [run.key for run in suites.possible_runs(again)] == [run.key for run in suites.possible_runs(suite)]
    for setting in suite.settings:
        assert setting.direction in ("grow", "shrink")
        for method in (*setting.methods, *setting.step0):
            transformers_bot.methods.base.get(method.method, BoTConfig.from_any(method.bot_config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepss": 3}, "setting gpt2-shrink has no field stepss"),
        ({"source": "gpt3"}, "unknown source 'gpt3'"),
        ({"methods": ["magic"]}, r"unknown methods \['magic'\]"),
        ({"budget": {"steps": 3, "batch": 0}}, "batch >= 1"),
        ({"budget": {"steps": 3, "batch": 1, "schedule": "wild"}}, "schedule must be"),
        ({"name": "bert-grow"}, "same name"),
    ],
)
def test_a_wrong_suite_says_which_entry(tmp_path, change, message):
    with pytest.raises(suites.BadSuite, match=message):
        suites.load(_changed(tmp_path, **change))


def test_a_changed_entry_has_another_key_and_a_new_title_has_not():
    first = suites.load(BENCH / "suites" / "tiny.yaml").settings[0]
    run = suites.search_runs(first, first.methods[0])[0]
    assert replace(run, setting=replace(first, title="other", name="other")).key == run.key
    assert replace(run, setting=replace(first, budget=replace(first.budget, batch=9))).key != run.key
    assert replace(run, method=replace(run.method, bot_config={"gain": "raw"})).key != run.key


def test_report_says_what_the_curves_say(tmp_path):
    """Two seeds and two rates by hand: the better rate on the first seed is taken, savings are paired by seed."""
    store = _handmade(tmp_path / "transfer-hand.json")
    (result,) = summary.results(store)
    scratch, bot = result.row("scratch"), result.row("bot")
    assert (scratch.rate, bot.rate) == (0.003, 0.001)
    assert bot.savings == [(pytest.approx(0.75), None), (pytest.approx(0.5), None)]
    assert result.rival() is scratch
    text = report.markdown(store, [result])
    assert "62 % [50, 75]" in text  # 62.5, rounded to even
    assert "refused: cannot shrink" in text


def test_report_is_drawn_again_from_json_alone(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "transfer-hand.json"
    report.write(_handmade(path))
    table = path.with_suffix(".md")
    before = table.read_text()
    table.unlink()
    done = subprocess.run([sys.executable, BENCH / "report.py", path], capture_output=True, text=True, check=True)
    assert "wrote 2 plots" in done.stdout
    assert table.read_text() == before
    assert all(plot.stat().st_size > 5000 for plot in (tmp_path / "plots").glob("*.png"))


def test_a_seed_that_diverged_is_said_and_gives_no_saving(tmp_path):
    store = _handmade(tmp_path / "hand.json")
    setting = suites.Suite.from_dict(store.data["suite"]).settings[0]
    run = suites.Run(setting, setting.methods[1], 0.001, 1)
    store.add(run, {**store.outcome(run), "diverged": True})
    row = summary.results(store)[0].row("bot")
    assert row.note.startswith("seed 1 is missing")
    assert row.saved() is None


def test_what_another_device_or_version_gave_is_run_again(tmp_path):
    store = _handmade(tmp_path / "hand.json")
    setting = suites.Suite.from_dict(store.data["suite"]).settings[0]
    run = suites.Run(setting, setting.methods[1], 0.001, 1)
    here = {"device": "cpu", "version": transformers_bot.__version__}
    for change, finished in (({}, True), ({"device": "cuda"}, False), ({"version": "0.0.0"}, False)):
        store.add(run, {**store.outcome(run), **here, **change})
        assert store.finished(run) is finished


@pytest.mark.parametrize("module", [savings, train], ids=lambda module: module.__name__)
def test_examples_in_docstrings_are_true(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_tiny_suite_end_to_end_killed_and_resumed(tmp_path, capsys):
    """Killed in the middle it goes on; run again it does nothing; a changed entry runs alone."""
    pytest.importorskip("sklearn")
    suite, out = _changed(tmp_path), tmp_path / "out.json"
    words = [str(suite), "--out", str(out), "--cache", str(tmp_path / "cache"), "--workers", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(BENCH / "run.py"), *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "[3/" in line:
                process.kill()
                break
    first = json.loads(out.read_text())["runs"]
    assert len(first) >= 3
    assert bench.main(words) == 0
    whole = json.loads(out.read_text())
    assert all(whole["runs"][key] == outcome for key, outcome in first.items() if outcome["status"] == "done")
    assert {outcome["status"] for outcome in whole["runs"].values()} == {"done", "refused"}
    assert whole["versions"]["transformers_bot"] == transformers_bot.__version__
    assert "refused: method='fpi'" in capsys.readouterr().out
    assert "| bot |" in out.with_suffix(".md").read_text()
    assert bench.main(words) == 0
    assert not _ran(capsys)
    _changed(tmp_path, methods=["scratch", "bot", "weight_selection"])
    assert bench.main(words) == 0
    again = _ran(capsys)
    assert again
    assert all("weight_selection" in line for line in again)


def test_two_workers_give_the_figures_of_one(tmp_path, capsys):
    """Seeds, not the order or the process, decide a run; a mistake in a method is a failure with status 1."""
    suite = _changed(tmp_path, rates=[0.001], seeds=[0], methods=["scratch", "bot", "wrong"], step0=[])
    curves = []
    for workers in ("1", "2"):
        out = tmp_path / f"{workers}.json"
        words = [str(suite), "--out", str(out), "--cache", str(tmp_path / "cache"), "--workers", workers]
        assert bench.main([*words, "--only", "gpt2-shrink"]) == 1
        assert "unknown method 'wrong'" in capsys.readouterr().err
        runs = json.loads(out.read_text())["runs"].values()
        curves.append({outcome["run"]: outcome["curve"] for outcome in runs if outcome["status"] == "done"})
    assert curves[0] == curves[1]
    assert len(curves[0]) == 2


@pytest.mark.parametrize("path", [p for p in SUITES if p.stem.startswith("gpu")], ids=lambda path: path.stem)
def test_gpu_suites_run_whole_at_tiny_sizes(tmp_path, path):
    """Sources, all methods, settings and reports of a suite for another machine; no method fails or is refused."""
    if not (DATA / "text").is_dir():
        pytest.skip(f"{DATA.name}/text is not there; set TRANSFORMERS_BOT_DATA to the folder of the research data")
    if path.stem in ("gpu-deit", "gpu-padding"):
        pytest.importorskip("pyarrow", reason="CIFAR-10 is a parquet file: pip install pyarrow")
    out = tmp_path / "out.json"
    words = [str(path), "--tiny", "--data", str(DATA), "--cache", str(tmp_path), "--out", str(out)]
    assert bench.main([*words, "--workers", "1", "--device", "cpu", "--sources"]) == 0
    assert bench.main([*words, "--workers", "1", "--device", "cpu"]) == 0
    whole = json.loads(out.read_text())
    runs = list(whole["runs"].values())
    assert {outcome["status"] for outcome in runs} == {"done"}
    assert all(setting.title in out.with_suffix(".md").read_text() for setting in suites.load(path).settings)
    asked = {run.split(":")[0] for run in (outcome["run"] for outcome in runs)}
    assert asked == {setting.name for setting in suites.load(path).settings}


def test_finished_checkpoints_have_no_tiny_size(tmp_path, capsys):
    assert bench.main(["cpu", "--tiny", "--out", str(tmp_path / "o.json")]) == 2
    assert "gpt2-8x192 is a finished checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"), [("sapiens-grow", "is not there; give the folder"), ("x", "no setting x in cpu")]
)
def test_missing_data_and_unknown_settings_are_mistakes_of_the_call(tmp_path, capsys, setting, message):
    folders = ["--data", str(tmp_path), "--cache", str(tmp_path), "--out", str(tmp_path / "o.json")]
    assert bench.main(["cpu", *folders, "--workers", "1", "--only", setting]) == 2
    assert message in capsys.readouterr().err


def _ran(capsys) -> list[str]:
    """Lines about runs that were not refusals."""
    return [line for line in capsys.readouterr().out.splitlines() if "] " in line and "refused" not in line]


def _changed(folder: Path, **change) -> Path:
    """The tiny suite with fields of its first setting changed, and a method that does not exist."""
    tables = yaml.safe_load((BENCH / "suites" / "tiny.yaml").read_text())
    tables["settings"][0].update(change)
    tables["methods"]["wrong"] = None
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tables))
    return path


def _handmade(path: Path) -> stores.Store:
    """Curves of a setting with two methods, two rates and two seeds, and one method that refuses."""
    tiny = suites.load(BENCH / "suites" / "tiny.yaml").settings[0]
    methods = tuple(suites.Method(name, name) for name in ("scratch", "bot", "tile"))
    setting = replace(tiny, methods=methods, step0=(), rates=(0.001, 0.003), seeds=(0, 1))
    store = stores.Store(path)
    suite = suites.Suite("hand", (setting,))
    store.begin(suite, {"machine": "none", "versions": {"torch": "0"}, "date": "2026-01-01"})
    curves = {
        ("scratch", 0.001, 0): [6.0, 5.0, 4.0],
        ("scratch", 0.003, 0): [5.0, 4.0, 3.0],
        ("scratch", 0.003, 1): [5.0, 4.0, 3.0],
        ("bot", 0.001, 0): [4.0, 2.0, 1.0],  # reaches 3 at half of the first hundred
        ("bot", 0.003, 0): [4.0, 2.0, 1.5],
        ("bot", 0.001, 1): [4.0, 3.0, 1.0],
    }
    for (name, rate, seed), values in curves.items():
        method = next(method for method in methods if method.name == name)
        curve = [{"step": i, "flops": 100.0 * i, "loss": value} for i, value in enumerate(values)]
        done = {"status": "done", "seconds": 1.0, "curve": curve, "diverged": False, "fit_flops": 0.0}
        store.add(suites.Run(setting, method, rate, seed), {**done, "higher": {"loss": False}})
    for rate in (0.001, 0.003):
        refused = {"status": "refused", "seconds": 0.0, "reason": "cannot shrink"}
        store.add(suites.Run(setting, methods[2], rate, 0), refused)
    return store
