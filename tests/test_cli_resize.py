"""Resize and verify on the command line: what is written, what is printed where, recipes, exit codes."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
import yaml
from families import build, save
from transformers import AutoModelForMaskedLM

import transformers_bot
from transformers_bot import BoTModelForMaskedLM

pytest_plugins = ["cli_window"]  # call
SMALL = {"num_hidden_layers": 1, "hidden_size": 6, "num_attention_heads": 3, "intermediate_size": 10}
SET = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture
def source(saved):
    return saved("bert", "BertForMaskedLM", dtype=torch.float32)[0]


@pytest.mark.slow
def test_the_result_is_the_apis_and_stdout_says_how_to_load_it(call, source, tmp_path):
    out = tmp_path / "small"
    code, printed, err = call("resize", source, out, *SET)
    assert (code, err) == (0, "")
    expected = BoTModelForMaskedLM.from_pretrained(source, **SMALL).state_dict()
    loaded = AutoModelForMaskedLM.from_pretrained(out).state_dict()
    assert list(loaded) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)
    table, _, closing = printed.partition("\nWritten to")
    assert all(len(line) <= 80 for line in table.splitlines() if source not in line)
    assert "BertForMaskedLM -> BertForMaskedLM" in table
    assert "warning: shrinking" in table
    exec(closing.partition("Load it with\n")[2].partition("and check")[0].replace("\n  ", "\n").strip(), found := {})
    assert type(found["model"]).__name__ == "BertForMaskedLM"
    assert f"transformers-bot verify {out}" in closing


def test_json_is_the_report_and_nothing_else(call, source, tmp_path):
    code, printed, err = call("resize", source, tmp_path / "small", *SET, "--json")
    assert (code, err) == (0, "")
    assert json.loads(printed) == transformers_bot.Report.load(tmp_path / "small").to_dict()


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("written", "value"), [("True", True), ("False", False), ("true", True), ("false", False)])
def test_a_truth_value_may_be_written_as_python_writes_it(call, source, tmp_path, written, value):
    out = tmp_path / "out"
    assert call("resize", source, out, *SET, "--set", f"use_cache={written}")[0] == 0
    assert json.loads((out / "config.json").read_text())["use_cache"] is value


def test_dtype_and_shards_reach_the_files(call, source, tmp_path):
    call("resize", source, tmp_path / "small", *SET, "--dtype", "bfloat16", "--max-shard-size", "1KB")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "small", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 1


@pytest.mark.slow
def test_an_existing_folder_is_replaced_only_on_request(call, source, tmp_path):
    out = tmp_path / "small"
    assert call("resize", source, out, *SET)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, printed, err = call("resize", source, out, *SET, "--set", "hidden_size=9")
    assert (code, printed) == (5, "")
    assert "--overwrite" in err
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert call("resize", source, out, *SET, "--set", "hidden_size=9", "--overwrite")[0] == 0
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 9


def test_a_task_gives_another_head(call, source, tmp_path):
    code, printed, _ = call("resize", source, tmp_path / "small", *SET, "--task", "token-classification")
    assert code == 0
    assert "AutoModelForTokenClassification.from_pretrained" in printed


@pytest.mark.slow
def test_a_recipe_does_the_same_and_says_itself_where_to_write(call, source, tmp_path):
    call("resize", source, tmp_path / "typed", *SET, "--depth", "first")
    settings = {"source": source, "out": str(tmp_path / "written"), "config": SMALL, "bot_config": {"depth": "first"}}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**settings, "overwrite": True, "strict": True, "max_shard_size": "5GB"}))
    assert call("resize", "--recipe", path)[0] == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("typed", "written")]
    assert files[0] == files[1]
    assert call("resize", "--recipe", path)[0] == 0  # its overwrite: true
    code, _, err = call("resize", "--recipe", path, "--no-overwrite")
    assert (code, "--overwrite" in err) == (5, True)


@pytest.mark.slow
def test_weights_that_are_not_finite_are_an_error_or_a_choice(call, tmp_path):
    model = build("bert", "BertForMaskedLM", dtype=torch.float32).model
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 1] = float("nan")
    source = save(model, tmp_path / "source")
    code, printed, err = call("resize", source, tmp_path / "small", *SET)
    assert (code, printed) == (3, "")
    assert "NaN" in err
    assert "--nonfinite zero" in err
    assert not (tmp_path / "small").exists()
    assert call("resize", source, tmp_path / "small", *SET, "--nonfinite", "zero")[0] == 0
    assert "hold NaN or infinity: bert.encoder.layer.{layer}.output.dense.weight" in " ".join(
        call("inspect", source)[1].split()
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"), reason="pickled weights need torch 2.6"
)
def test_a_pickle_is_read_only_on_request(call, source, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((Path(source) / "config.json").read_bytes())
    model = AutoModelForMaskedLM.from_pretrained(source)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for command in (["resize", folder, tmp_path / "small", *SET], ["inspect", folder]):
        code, printed, err = call(*command)
        assert (code, printed) == (3, "")
        assert "--allow-pickle" in err
        assert call(*command, "--allow-pickle")[0] == 0


@pytest.mark.slow
def test_verify_says_equal_or_what_differs(call, source, tmp_path):
    from safetensors.torch import load_file, save_file

    out = tmp_path / "small"
    call("resize", source, out, *SET)
    code, printed, err = call("verify", out, "--source", source)
    assert (code, err) == (0, "")
    assert "bit-equal" in printed
    state = load_file(out / "model.safetensors")
    state["bert.pooler.dense.bias" if "bert.pooler.dense.bias" in state else next(iter(state))][0] += 1e-3
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    code, printed, err = call("verify", out, "--source", source)
    assert (code, err) == (1, "")
    assert "differs in 1 place" in " ".join(printed.split())  # which is filled to the window
    told = json.loads(call("verify", out, "--source", source, "--json")[1])
    assert (told["equal"], len(told["differing"])) == (False, 1)


@pytest.mark.slow
def test_verify_finds_a_source_that_has_moved(call, tmp_path):
    source = Path(save(build("bert", "BertForMaskedLM", dtype=torch.float32).model, tmp_path / "here"))
    call("resize", source, tmp_path / "small", *SET)
    source.rename(tmp_path / "there")
    assert call("verify", tmp_path / "small")[0] == 5
    assert call("verify", tmp_path / "small", "--source", tmp_path / "there")[0] == 0


def test_verify_needs_a_result_of_ours(call, source):
    code, printed, err = call("verify", source)
    assert (code, printed) == (3, "")
    assert "no record of a resize" in err


@pytest.mark.slow
def test_standard_error_is_silent_where_nobody_looks(source, tmp_path):
    command = [sys.executable, "-m", "transformers_bot", "resize", source, str(tmp_path / "small"), *SET]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Written to" in done.stdout


@pytest.mark.slow
def test_a_terminal_gets_progress(source, tmp_path):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "transformers_bot", "resize", source, str(tmp_path / "small"), *SET]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower) as process:
        os.close(follower)
        seen = b""
        try:
            while piece := os.read(leader, 65536):
                seen += piece
        except OSError:  # Linux says so when the other end is closed
            pass
    os.close(leader)
    assert process.returncode == 0
    text = seen.decode()
    stages = ("loading torch", "checking the source", "opening the source", "writing", "done")
    places = [text.index(stage) for stage in stages]
    assert places == sorted(places)
    assert "100%" in text
    assert "Resizing" not in text
