"""The speed bench's measurements at tiny sizes: wrong results are errors, memory and time are those of the call."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

BENCH = Path(__file__).resolve().parents[1] / "speed"
sys.path.insert(0, str(BENCH))

import speed_calls as calls  # noqa: E402
import speed_cli as cli  # noqa: E402
import speed_end_to_end as end_to_end  # noqa: E402
import speed_gpu as gpu  # noqa: E402
import speed_imports  # noqa: E402
import speed_kernel as kernel  # noqa: E402
import speed_pairs as pairs  # noqa: E402
import speed_process as process  # noqa: E402
import speed_rivals as rivals  # noqa: E402
import speed_scale as scale  # noqa: E402
import speed_synthetic as synthetic  # noqa: E402
from speed_device import Device  # noqa: E402

from transformers_bot.ops import blocks  # noqa: E402

TINY = (4, 16, 32)
MIB = 2**20


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    """Yardsticks of milliseconds, and the precision that the GPU part allows taken back."""
    monkeypatch.setattr(kernel, "MATMUL", 16)
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def here(monkeypatch):
    """Measurements in this process, where they can be tampered with."""
    for module in (kernel, gpu, scale, end_to_end):
        monkeypatch.setattr(module, "forked", lambda function, *args: function(*args))


def case(wavelet: str = "db2", direction: str = "analysis", **changes) -> kernel.Case:
    return kernel.Case(wavelet, direction, large=TINY, **changes)


@pytest.mark.parametrize("direction", kernel.DIRECTIONS)
@pytest.mark.parametrize("wavelet", [name for name in kernel.TABLE_5 if name != "dmey"])
def test_ptwt_gives_the_oracles_numbers_on_every_axis_length(wavelet, direction):
    pytest.importorskip("ptwt")
    asked = case(wavelet, direction, dtype="float64")
    x = kernel.stack(asked)
    call, as_ours = rivals.ptwt_subject(x, asked)
    assert kernel.difference("ptwt", as_ours(call()), rivals.oracle(x, asked), "float64") < 1e-14


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("direction", kernel.DIRECTIONS)
def test_all_ways_of_pywt_agree(direction, level):
    asked = case("bior4.4", direction, level=level, axes=(0, 2), dtype="float64")
    x = kernel.stack(asked)
    for name, call in rivals.pywt_subjects(x, asked).items():
        assert kernel.difference(name, torch.from_numpy(call()), rivals.oracle(x, asked), "float64") < 1e-14


def test_ptwt_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(rivals, "has_ptwt", lambda: True)
    assert "hours" in rivals.ptwt_refuses(kernel.Case("dmey", "analysis"), full=True)
    assert "--full" in rivals.ptwt_refuses(kernel.Case("bior6.8", "synthesis"))
    assert "395 GB of memory" in rivals.ptwt_refuses(kernel.Case("bior6.8", "analysis", dtype="float64"))
    assert "one level on all axes" in rivals.ptwt_refuses(kernel.Case("haar", "analysis", level=2))
    monkeypatch.setattr(rivals, "has_ptwt", lambda: False)
    assert "pip install ptwt" in rivals.ptwt_refuses(kernel.Case("haar", "analysis"))


@pytest.mark.parametrize("asked", [case(), case("haar", "synthesis", dtype="bfloat16"), case(axes=(1,), level=2)])
def test_a_kernel_case_measures_every_subject_in_every_round(asked):
    found = kernel.measured(asked, "cpu", repeats=2)
    json.dumps(found, allow_nan=False)
    assert {"ours", "memcpy", "clone", "matmul"} <= set(found["seconds"])
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found["seconds"].values())
    assert set(found["errors"]) == set(found["seconds"]) - {"memcpy", "clone", "matmul"}
    assert ("pywt.dwtn" in found["seconds"]) == (asked.dtype == "float32")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda y: y * 1.0001, "of the largest entry off PyWavelets"),
        (lambda y: y.index_fill(2, torch.tensor([3]), float("nan")), "nan of the largest entry"),
        (lambda y: y[:, :-1], "has shape"),
        (lambda y: y.double(), "gives torch.float64 from torch.float32"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_wrong_result_is_an_error(spoil, message, monkeypatch, tmp_path, capsys):
    ours = kernel.ours
    monkeypatch.setattr(kernel, "ours", lambda x, asked: spoil(ours(x, asked)))
    with pytest.raises(kernel.WrongResult, match=message):
        kernel.measured(case(), "cpu", repeats=1)
    monkeypatch.setattr(kernel, "cases", lambda _quick: iter([case()]))
    assert cli.main(["kernel", "--quick", "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_a_wrong_rival_is_an_error_too(monkeypatch):
    monkeypatch.setattr(rivals, "all_bands", lambda x, *_: rivals.low_band(x, "haar", 1, (0, 1, 2)))
    with pytest.raises(kernel.WrongResult, match=r"pywt\.dwtn is"):
        kernel.measured(case("db2"), "cpu", repeats=1)


def test_rounding_to_half_is_allowed_once():
    asked = case("haar", dtype="bfloat16")
    x = kernel.stack(asked)
    exact = rivals.oracle(x, asked)
    kernel.difference("ours", exact.bfloat16(), exact, "bfloat16")
    with pytest.raises(kernel.WrongResult, match=r"0\.0078 allowed"):
        kernel.difference("ours", (exact * 1.02).bfloat16(), exact, "bfloat16")
    single = exact.float() + 60 * torch.finfo(torch.float32).eps * exact.abs().max()
    kernel.difference("ptwt", single, exact, "float32", terms=18**3)
    with pytest.raises(kernel.WrongResult, match=r"3\.9e-06 allowed"):
        kernel.difference("ptwt", single.float(), exact, "float32")
    assert kernel.difference("ours", torch.zeros(3), torch.zeros(3).double(), "float32") == 0


def test_a_process_of_its_own_measures_the_call_alone(tmp_path):
    costs = process.forked(_uses, 48 * MIB)
    assert 48 * MIB <= costs["anonymous_peak"] < 60 * MIB
    assert costs["anonymous_end"] < 12 * MIB
    assert 0.05 <= costs["wall"] < 5
    assert costs["rss_peak"] > costs["rss_before"] > 48 * MIB
    (tmp_path / "a").write_bytes(bytes(17 * MIB))
    (tmp_path / "b").write_bytes(b"12")
    assert process.read_through(tmp_path) == 17 * MIB + 2


def _uses(size: int) -> dict[str, float]:
    with process.Meter() as meter:
        block = np.ones(size, dtype=np.uint8)
        time.sleep(0.05)
        del block
    return meter.costs


def test_end_to_end_of_a_tiny_pair(tmp_path):
    arguments = ["--quick", "--out", str(tmp_path), "--work", str(tmp_path / "work"), "--only", "bert-quick"]
    assert cli.main(["end-to-end", *arguments]) == 0
    data = json.loads((tmp_path / "speed-end-to-end-quick.json").read_text())
    (found,) = data["cases"].values()
    assert set(found["costs"]) == {*end_to_end.LOADS, "default", "detail zero"}
    assert set(found["processes"]) == {"load both", "default", "detail zero"}
    assert all(seconds > 0 for rounds in found["processes"].values() for seconds in rounds)
    assert found["multiply_adds"] > 1e6
    assert found["operations"]["detail zero"] == {"products": 0, "drawn": 0}
    assert found["operations"]["default"]["products"] == 0
    assert found["operations"]["default"]["drawn"] > 1000
    with torch.device("meta"):
        import transformers

        model = transformers.AutoModel.from_config(pairs.Size("bert-quick").config())
    expected = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert {found["costs"][row][0]["bytes"] for row in ("default", "load target")} == {expected}
    assert all(rounds[0]["call"] < rounds[0]["wall"] for rounds in found["costs"].values())
    assert "| detail zero |" in (tmp_path / "speed-end-to-end-quick.md").read_text()
    assert not (tmp_path / "work" / "pairs").exists()


def test_operations_are_counted(monkeypatch):
    def resized(*_):
        torch.matmul(torch.ones(3, 4), torch.ones(4, 5), out=torch.empty(3, 5))
        torch.ones(3, 4) @ torch.ones(4)
        torch.ones(2, 3, 4) @ torch.ones(2, 4, 5)
        blocks.product(torch.ones(64, 32), torch.ones(48, 32))
        torch.empty(7).normal_()
        torch.empty(7, device="meta").normal_()

    monkeypatch.setattr(calls, "resized_model", resized)
    assert calls.operations("", "", "", {}) == {"products": 60 + 12 + 120 + 64 * 48 * 32, "drawn": 7}


def test_touching_reads_every_byte_of_any_dtype_once():
    layer = torch.nn.Linear(3, 5, dtype=torch.bfloat16)
    layer.other = layer.weight  # shared
    assert end_to_end.touch(layer) == 2 * (15 + 5)


@pytest.mark.usefixtures("here")
def test_synthetic_checkpoints_load_and_stream(tmp_path):
    size = synthetic.QUICK_SCALES[0]
    from transformers import AutoModelForCausalLM

    source = synthetic.write(size, tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert (model.num_parameters(), model.dtype) == (size.parameters, torch.bfloat16)
    assert torch.linalg.matrix_rank(model.transformer.h[0].attn.c_attn.weight.float()) == size.width
    rows = {"plain": end_to_end.PLAIN}
    found = scale._made_and_measured(size, tmp_path / "made", rows, repeats=1)
    assert found["costs"]["plain"][0]["wall"] > 0
    assert found["memory_bound"] > 0
    assert not list((tmp_path / "made").iterdir())


def test_a_size_that_does_not_fit_on_the_disk_is_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    arguments = ["--quick", "--out", str(tmp_path), "--work", str(tmp_path / "work"), "--only", "quick 64"]
    assert cli.main(["scale", *arguments]) == 0
    (found,) = json.loads((tmp_path / "speed-scale-quick.json").read_text())["cases"].values()
    assert found["left_out"] == "1.1 GB are needed on the disk, 0.0 GB are free"
    assert "left out" in capsys.readouterr().out


def test_imports_are_timed_line_by_line():
    found = speed_imports.imported(("import json", "import time; time.sleep(0.05)"))
    assert found["seconds"][0] < 0.05 <= found["seconds"][1]
    with pytest.raises(RuntimeError, match="No module named 'nothing_of_this_name'"):
        speed_imports.imported(("import nothing_of_this_name",))


@pytest.mark.usefixtures("here")
def test_the_gpu_part_runs_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "QUICK_STACKS", (("tiny", TINY, "bfloat16"),))
    monkeypatch.setattr(gpu, "WAVELETS", ("db2",))
    monkeypatch.setattr(pairs, "QUICK_PAIRS", pairs.QUICK_PAIRS[1:])
    arguments = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert cli.main(["gpu", *arguments]) == 0
    data = json.loads((tmp_path / "speed-gpu-cpu-quick.json").read_text())
    stacks = [found for found in data["cases"].values() if found["kind"] == "stack"]
    (model,) = (found for found in data["cases"].values() if found["kind"] == "model")
    assert len(stacks) == 2
    assert all(found["error"] == 0 for found in (*stacks, model))
    assert model["largest_stack"] == 4 * 30522 * 64  # the word embeddings
    assert "Device: cpu" in (tmp_path / "speed-gpu-cpu-quick.md").read_text()


def test_low_precision_that_leaks_into_results_is_an_error(monkeypatch):
    ours = kernel.ours

    def leaking(x, asked):
        low = torch.get_float32_matmul_precision() == "medium"
        return ours(x, asked).bfloat16().float() if low else ours(x, asked)

    monkeypatch.setattr(gpu, "ours", leaking)
    with pytest.raises(kernel.WrongResult, match="off the CPU"):
        gpu.measured_stack(case(), "cpu", repeats=1)


def test_the_clock_gives_the_seconds_of_one_call():
    seconds = Device("cpu").seconds(lambda: time.sleep(0.01), calls=3)
    assert 0.01 <= seconds < 0.02 + 0.2
    assert Device("cpu").wall_seconds(lambda: time.sleep(0.01)) >= 0.01
    assert Device("cpu").peak() is None
