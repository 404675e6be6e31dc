"""The speed bench without its measurements: figures from given numbers, tables, results that outlive a crash."""

import doctest
import importlib
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "speed"
sys.path.insert(0, str(BENCH))

import speed_cli as cli  # noqa: E402
import speed_end_to_end_table as end_to_end  # noqa: E402
import speed_figures as figures  # noqa: E402
import speed_gpu_table as gpu  # noqa: E402
import speed_imports_table as imports  # noqa: E402
import speed_kernel as kernel  # noqa: E402
import speed_scale_table as scale  # noqa: E402
import speed_synthetic as synthetic  # noqa: E402
import speed_tables as tables  # noqa: E402
from speed_store import SpeedStore  # noqa: E402

MIB = 2**20


@pytest.mark.parametrize("name", ["speed_figures", "speed_synthetic"])
def test_examples_in_docstrings(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed


def test_ratio_pairs_rounds_and_fills_what_was_measured_less_often():
    assert figures.ratio([2.0, 6.0], [1.0, 2.0]) == figures.Spread(4 / 1.5, 2.0, 3.0)
    assert figures.ratio([8.0], [1.0, 2.0, 4.0]) == figures.Spread(4.0, 2.0, 8.0)
    assert figures.ratio([3.0], [2.0]) == figures.Spread(1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("large", "axes", "level", "taps", "expected"),
    [
        ((12, 768, 3072), (0, 1, 2), 1, 2, 2 * (6 * 768 * 3072 + 6 * 384 * 3072 + 6 * 384 * 1536)),
        ((12, 768, 3072), (2,), 1, 18, 18 * 12 * 768 * 1536),
        ((4, 8, 8), (1,), 2, 4, 4 * (4 * 4 * 8 + 4 * 2 * 8)),
    ],
)
def test_multiply_adds_of_a_low_pass(large, axes, level, taps, expected):
    assert figures.low_pass_multiply_adds(large, axes, level, taps) == expected


def test_multiply_adds_of_a_resize_work_on_the_least():
    assert figures.resize_multiply_adds((8, 4), (4, 4)) == 8 * 4
    assert figures.resize_multiply_adds((8, 4), (4, 8)) == 8 * 4 + 4 * 8  # shrink first, then grow what is left
    assert figures.resize_multiply_adds((5, 5), (5, 5)) == 0


def test_fitted_line_and_its_residuals():
    start, slope, residuals = figures.fitted_line([1.0, 2.0, 3.0], [2.0, 5.0, 5.0])
    assert (start, slope) == (pytest.approx(1.0), pytest.approx(1.5))
    assert residuals == pytest.approx([-0.5, 1.0, -0.5])
    with pytest.raises(ValueError, match="two different sizes"):
        figures.fitted_line([2.0, 2.0], [1.0, 3.0])


def kernel_case() -> dict:
    seconds = {"ours": [0.02, 0.04], "memcpy": [0.01, 0.01], "clone": [0.02, 0.02], "matmul": [0.1, 0.1]}
    seconds |= {"pywt.dwtn": [0.8], "pywt.dwt low band": [0.4], "ptwt": [0.2]}
    case = {"case": {"large": [4, 8, 8]}, "small": [2, 4, 4], "itemsize": 4, "taps": 2, "multiply_adds": 1024**3 // 2}
    return {**case, "device": "cpu", "seconds": seconds, "errors": {"ours": 1e-7}, "notes": {}}


def test_kernel_is_measured_in_copies_rivals_and_floors():
    found = kernel_case()
    moving, adding = tables.kernel_floors(found)
    assert moving == pytest.approx(0.01 * (256 + 32) / 512)  # a copy of the larger stack reads and writes all of it
    assert adding == pytest.approx(0.05)
    ratios = tables.kernel_ratios(found)
    assert ratios["in copies"] == figures.Spread(pytest.approx(3.0), 2.0, 4.0)
    assert [ratios[f"times {name}"].median for name in ("pywt", "pywt low", "ptwt")] == pytest.approx(
        [80 / 3, 40 / 3, 20 / 3]
    )
    del found["seconds"]["ptwt"]
    assert tables.kernel_ratios(found)["times ptwt"] is None


def costs(wall: float, anonymous: float = 0.0) -> dict:
    return {
        "wall": wall,
        "cpu": 2 * wall,
        "anonymous_peak": anonymous,
        "rss_peak": 9 * MIB,
        "bytes": 100 * MIB,
        "faults": 4,
    }


def end_to_end_case() -> dict:
    rounds = {"load source": [costs(1.0), costs(3.0)], "load target": [costs(1.0), costs(1.0)]}
    rounds |= {"load target, copied": [costs(2.0), costs(2.0)]}
    rounds |= {"default": [costs(4.0, 130 * MIB), costs(4.0, 150 * MIB)], "plain": [costs(2.0, 90 * MIB)]}
    sizes = {"source_bytes": 192 * MIB, "target_bytes": 64 * MIB, "multiply_adds": 1024**3}
    machine = {"copy": [0.5, 0.5], "matmul": [0.25, 0.25], "product": [0.2, 0.2], "fault": [0.001]}
    processes = {"load both": [2.0, 4.0], "default": [6.0, 8.0], "plain": [3.0, 3.0]}
    done = {"default": {"products": 4 * 1024**3, "drawn": 5_000_000}, "plain": {"products": 0, "drawn": 0}}
    rows = {"options": {"default": {}, "plain": {}}, "costs": rounds, "processes": processes, "operations": done}
    return {**sizes, "grows": False, "machine": machine, **rows}


def test_end_to_end_counts_source_and_target():
    found = end_to_end.ratios(end_to_end_case())
    assert found["default"]["wall"] == figures.Spread(pytest.approx(4 / 3), 1.0, 2.0)
    assert found["default"]["copied"] == figures.Spread(1.0, 0.8, pytest.approx(4 / 3))
    assert found["default"]["over"] == 40 * MIB
    assert found["default"]["process"] == figures.Spread(7.0, 6.0, 8.0)
    assert found["default"]["both"] == figures.Spread(pytest.approx(7 / 3), 2.0, 3.0)
    assert found["plain"]["wall"].median == pytest.approx(2 / 3)
    table = end_to_end.rows({"cases": {"a -> b": end_to_end_case()}})
    assert {len(row) for row in table} == {len(end_to_end.HEAD)}
    assert table[0][:6] == ["a -> b", "load both", "", "", "", "3.00 [2.00, 4.00]"]
    assert [table[-2][-4:-1], table[-1][-4:-1]] == [["4.29", "5.00", "5.00"], ["0", "", "0"]]  # 4 s over 4 x .2 s
    assert end_to_end.floors(end_to_end_case()) == (pytest.approx(1.0), 0.25)  # 256 MiB; the copy moves 128


def test_scale_fits_a_line_and_extrapolates_to_what_was_left_out():
    def case(gigabytes: float, seconds: float) -> dict:
        sizes = {"parameters": 10**9, "source_bytes": gigabytes * 1e9, "target_bytes": 0}
        measured = {"read and write": [costs(seconds / 2)], "plain": [costs(seconds, 64 * MIB)]}
        return {**sizes, "options": {"plain": {}}, "cached": True, "memory_bound": 80 * MIB, "costs": measured}

    left_out = {"parameters": 7 * 10**9, "source_bytes": 10e9, "target_bytes": 2e9, "left_out": "no room"}
    data = {"cases": {"small": case(1, 3.0), "large": case(2, 5.0), "huge": left_out}}
    line, extrapolated = scale.lines(data)
    assert "1.00 s + 2.000 s per GB" in line
    assert "not run (no room); the line extrapolates to 25 s" in extrapolated
    row = scale.rows(data)[1]
    assert row[3:6] == ["plain", "3.00", "2.00"]
    assert row[7:10] == ["3.00", "64", "80"]
    only = scale.lines({"cases": {"small": case(1, 3.0)}})
    assert only == ["- plain: one size only, so no line."]


def test_imports_show_the_last_line_alone():
    data = {"cases": {"ours": {"lines": ["a", "b"], "modules": 7, "seconds": [[1.0, 0.002], [1.0, 0.004]]}}}
    assert imports.rows(data) == [["ours", "1003 [1002, 1004]", "3.00 [2.00, 4.00]", "7"]]


def test_gpu_shares_the_copys_bandwidth_and_counts_memory_over_what_is_needed():
    seconds = {"ours": [0.01], "copy": [0.008], "to the device": [0.1], "to the device and ours": [0.15]}
    sizes = {"input_bytes": 8 * MIB, "output_bytes": MIB, "whole_bytes": 8 * MIB, "peak": 12 * MIB}
    stack = {"kind": "stack", "shape": [4, 8, 8], "error": 1e-7, "seconds": seconds, **sizes}
    assert gpu.share_of_copy(stack).median == pytest.approx(0.8 * 9 / 16)
    row = gpu.stack_rows({"cases": {"one": stack, "two": {**stack, "left_out": "too large"}}})
    assert row[0][6:] == ["1.50", "12", "3", "1.0e-07"]
    assert row[1][2] == "left out: too large"
    assert len(row[0]) == len(row[1]) == len(gpu.STACK_HEAD)
    model = {"kind": "model", "peak": 9 * MIB, "output_bytes": 4 * MIB, "largest_stack": 3 * MIB, "error": 0.0}
    model["seconds"] = {"load source": [1.0, 1.0], "ours": [1.5, 1.5]}
    assert gpu.model_rows({"cases": {"one": model}}) == [["one", "1.00", "1.50", "1.50", "9", "2", "0.0e+00"]]


def test_parameters_of_a_scale_are_the_models():
    import torch
    from transformers import GPT2LMHeadModel

    for size in (synthetic.SCALES[0], synthetic.QUICK_SCALES[0], synthetic.QUICK_SCALES[0].target):
        with torch.device("meta"):
            assert GPT2LMHeadModel(size.config()).num_parameters() == size.parameters
    assert [round(size.parameters / 1e9, 1) for size in synthetic.SCALES] == [0.1, 0.4, 1.0, 3.0, 7.1]


def test_kernel_cases_have_the_wavelets_of_the_papers_table_and_every_variation():
    cases = list(kernel.cases())
    assert len({case.key for case in cases}) == len(cases)
    base = {(c.wavelet, c.direction) for c in cases if (c.axes, c.dtype, c.level) == ((0, 1, 2), "float32", 1)}
    assert base == {(wavelet, direction) for wavelet in kernel.TABLE_5 for direction in kernel.DIRECTIONS}
    assert {case.axes for case in cases} == {(0, 1, 2), (0,), (1,), (2,)}
    assert {case.dtype for case in cases} == {"float32", "float64", "float16", "bfloat16"}
    assert {case.level for case in cases} == {1, 2}
    assert kernel.Case("db2", "synthesis", axes=(0, 2), level=2).small == (3, 768, 768)


def result(out: Path, part: str = "kernel") -> Path:
    return cli.result_path(out, part, True, "cpu")


@pytest.fixture
def two_cases(monkeypatch):
    """Two kernel cases whose measurement is a given one; `calls` says which were asked for."""
    calls: list[str] = []

    def measured(_function, case, *_args):
        calls.append(case.wavelet)
        return kernel_case()

    cases = [kernel.Case(name, "analysis", large=(4, 8, 8)) for name in ("haar", "db2")]
    monkeypatch.setattr(kernel, "cases", lambda _quick: iter(cases))
    monkeypatch.setattr(kernel, "forked", measured)
    return calls


def test_results_say_where_they_were_made_and_tables_come_from_them_alone(tmp_path, two_cases, capsys):
    assert cli.main(["kernel", "--quick", "--out", str(tmp_path)]) == 0
    data = json.loads(result(tmp_path).read_text())
    assert {"part", "machine", "versions", "date", "settings", "cases"} == set(data)
    assert {"cpu", "cores", "torch_threads", "memory_bytes"} == set(data["machine"])
    assert set(data["versions"]) == {"python", "torch", "transformers", "pywavelets", "ptwt", "transformers-bot"}
    assert two_cases == ["haar", "db2"]
    table = result(tmp_path).with_suffix(".md")
    before = table.read_text()
    assert "| haar analysis, all axes, float32, level 1 | 30.0 [20.0, 40.0] |" in before
    table.unlink()
    assert cli.main(["table", "--out", str(tmp_path)]) == 0
    assert table.read_text() == before
    assert cli.main(["table", "--out", str(tmp_path / "none")]) == 2
    assert "run a part first" in capsys.readouterr().err


def test_an_interrupted_run_keeps_what_is_done_and_goes_on(tmp_path, two_cases, monkeypatch, capsys):
    measured = kernel.forked

    def interrupted(function, case, *args):
        if case.wavelet == "db2":
            raise KeyboardInterrupt
        return measured(function, case, *args)

    arguments = ["kernel", "--quick", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "forked", interrupted)
        assert cli.main(arguments) == 130
    assert "--resume" in capsys.readouterr().err
    assert len(json.loads(result(tmp_path).read_text())["cases"]) == 1
    assert cli.main([*arguments, "--resume"]) == 0
    assert two_cases == ["haar", "db2"]
    assert len(json.loads(result(tmp_path).read_text())["cases"]) == 2


def test_only_measures_what_is_named_and_keeps_the_rest(tmp_path, two_cases, capsys):
    arguments = ["kernel", "--quick", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--only", "db2 "]) == 0
    assert two_cases == ["haar", "db2", "db2"]
    assert len(json.loads(result(tmp_path).read_text())["cases"]) == 2
    assert cli.main([*arguments, "--only", "coif"]) == 2
    assert "no case of kernel has coif in its name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imports", "--device", "cpu"], "--device is for kernel and gpu"),
        (["kernel", "--device", "cuda:77"], "torch finds no cuda:77 here"),
    ],
)
def test_devices_that_are_not_there_are_named(arguments, message, capsys):
    import torch

    if torch.cuda.device_count() > 77:
        pytest.skip("this machine has it")
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_case_that_became_wrong_is_forgotten(tmp_path):
    store = SpeedStore(tmp_path / "speed-kernel.json", "kernel", {})
    store.add("one", {"value": 1})
    store.add("two", {"value": 2})
    store.remove("one")
    assert list(json.loads(store.path.read_text())["cases"]) == ["two"]
    assert SpeedStore(store.path, "kernel", {}).data["cases"] == {}
    assert SpeedStore(store.path, "kernel", {}, keep=True).has("two")
