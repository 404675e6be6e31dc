"""The command line as a new user meets it: help, and tables within 80 columns that leave nothing out."""

import dataclasses
import fcntl
import json
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
import time

import pytest
from families import FAMILIES, MAIN_HEADS

import transformers_bot
from transformers_bot import cli, suggest
from transformers_bot.methods import METHODS
from transformers_bot.planning.render import render

pytest_plugins = ["cli_window"]  # call, tiny
COMMANDS = ("plan", "resize", "verify", "suggest", "inspect", "methods", "adapters", "demo")
HELPS = [[], *([command] for command in COMMANDS), ["adapters", "check"]]


def assert_fits(text: str, columns: int = 80) -> None:
    for line in text.splitlines():
        assert len(line) <= columns, line


# -- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_fits_the_window_and_starts_with_how_to_call(call, words):
    code, out, err = call(*words, "--help")
    assert (code, err) == (0, "")
    assert_fits(out)
    assert out.startswith(f"usage: transformers-bot {' '.join(words)}".rstrip())
    if words and words != ["demo"]:
        assert "\n  transformers-bot " in out.partition("example")[2]


def test_every_command_is_in_the_help(call):
    out = call("--help")[1]
    for command in COMMANDS:
        assert f"\n    {command} " in out
    assert "Exit codes: 0 done" in out


def test_every_option_of_the_method_is_an_option(call):
    out = call("plan", "--help")[1]
    for name in transformers_bot.BoTConfig().to_dict():
        assert f"--{name.replace('_', '-')} " in out


def test_python_dash_m_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "transformers_bot", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"transformers-bot {transformers_bot.__version__}\n")


# -- plan -----------------------------------------------------------------------------------------

SHRINK = {"hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 3}
GROW = {"hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 6}


def fields(sizes: dict[str, int]) -> list[str]:
    return [word for name, value in sizes.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.covering(few=3)
@pytest.mark.parametrize("sizes", [SHRINK, GROW], ids=["shrink", "grow"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_fits_the_window_and_leaves_nothing_out(saved, call, family, sizes):
    folder, built = saved(family, dict(MAIN_HEADS)[family])
    code, out, err = call("plan", folder, *fields(sizes))
    assert (code, err) == (0, "")
    assert_fits(out)
    made = transformers_bot.plan(built.config, sizes)
    flat = out.replace("\n", " ")
    for step in made.steps:
        assert "x".join(map(str, step.shape)) in flat
        assert step.target.rpartition(".")[0].rpartition(".")[2] in flat
        assert step.reason in " ".join(flat.split())
    assert f"{made.parameters:,}" in flat
    for reason in made.dropped.values():
        assert reason in flat


def test_a_plan_that_is_piped_or_in_a_wide_window_has_one_line_a_tensor(saved, monkeypatch, capsys):
    folder, built = saved("bert", "BertForMaskedLM")
    whole = str(transformers_bot.plan(built.config, SHRINK))
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    cli.main(["plan", folder, *fields(SHRINK)])
    assert capsys.readouterr().out.partition("\nwarning")[0] == whole.partition("\nwarning")[0]
    monkeypatch.delenv("COLUMNS")
    cli.main(["plan", folder, *fields(SHRINK)])
    assert capsys.readouterr().out.strip() == whole


@pytest.mark.parametrize("columns", [60, 80, 100, 130])
def test_a_plan_fits_any_window(saved, columns):
    _, built = saved("roberta", "RobertaForMaskedLM")
    made = transformers_bot.plan(built.config, SHRINK)
    assert_fits(render(made, columns), columns)


def test_names_in_a_plan_cannot_steer_the_terminal(tiny):
    made = transformers_bot.plan(str(tiny), n_layer=2)
    hostile = dataclasses.replace(made, dropped={"a\x1b[31m\n" + "b" * 5000: "not\rhere"}, warnings=("x\x1by",))
    for text in (str(hostile), render(hostile, 80)):
        assert "\x1b" not in text
        assert "\r" not in text
        assert len(text) < len(str(made)) + 2000


@pytest.mark.slow
def test_in_a_real_terminal_lines_fit_it_and_a_pipe_gets_none_of_it(saved):
    folder, _ = saved("bert", "BertForMaskedLM")
    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "transformers_bot", "plan", folder, *fields(SHRINK)]
    with subprocess.Popen(command, stdout=follower, stderr=subprocess.PIPE, env=environment) as process:
        os.close(follower)
        seen = b""
        while process.poll() is None or seen == b"":
            seen += _waiting(leader)
        seen += _waiting(leader)
        assert process.stderr.read() == b""
    os.close(leader)
    assert process.returncode == 0
    assert_fits(seen.decode().replace("\r\n", "\n"))
    assert b"BertForMaskedLM -> BertForMaskedLM" in seen


def _waiting(descriptor: int) -> bytes:
    found = b""
    while select.select([descriptor], [], [], 0.2)[0]:
        try:
            piece = os.read(descriptor, 65536)
        except (BlockingIOError, OSError):  # Linux says so when the other end is closed
            time.sleep(0.05)
            break
        if not piece:
            break
        found += piece
    return found


def test_a_plan_as_json_is_the_plans_own(call, tiny):
    code, out, _ = call("plan", tiny, "--set", "n_layer=2", "--json")
    assert code == 0
    assert json.loads(out) == transformers_bot.plan(str(tiny), n_layer=2).to_dict()


def test_a_target_may_be_a_ready_config_with_fields_over_it(call, tiny):
    code, out, _ = call(
        "plan", tiny, "--config", "gpt2-small", "--set", "n_positions=16", "--set", "vocab_size=23", "--json"
    )
    assert code == 0
    target = json.loads(out)["target"]["sizes"]
    assert (target["layer"], target["hidden"], target["position"], target["vocab"]) == (6, 384, 16, 23)


def test_options_reach_the_method(call, tiny):
    words = ("--wavelet", "hidden=db2,layer=haar", "--depth", "wavelet", "--seed", "3", "--set", "n_layer=8")
    options = json.loads(call("plan", tiny, *words, "--json")[1])["method"]["options"]
    assert options["wavelet"] == {"hidden": "db2", "layer": "haar"}
    assert (options["depth"], options["seed"]) == ("wavelet", 3)


def test_a_task_chooses_the_head(call, tiny):
    out = call("plan", tiny, "--task", "sequence-classification", "--set", "n_layer=2")[1]
    assert "-> GPT2ForSequenceClassification" in out


# -- suggest, inspect, methods, adapters ----------------------------------------------------------


@pytest.mark.slow
def test_suggest_fits_the_window_and_its_command_is_a_good_one(call, tiny):
    code, out, err = call("suggest", tiny, "--ratio", "0.5")
    assert (code, err) == (0, "")
    assert_fits(out.partition("The first one")[0])
    command = out.partition("transformers-bot resize")[2].replace("\\\n", " ").split()
    assert command[0] == str(tiny)
    best = suggest(str(tiny), ratio=0.5)[0]
    assert command[1] == f"tiny-{best.sizes['layer']}x{best.sizes['hidden']}"
    code, planned, _ = call("plan", tiny, *command[2:], "--json")
    assert code == 0
    assert json.loads(planned)["parameters"]["target"] == best.parameters


@pytest.mark.slow
def test_suggest_as_json_is_the_api(call, tiny):
    out = call("suggest", tiny, "--like", "gpt2-small", "--count", "2", "--json")[1]
    found = suggest(str(tiny), like="gpt2-small", count=2)
    assert json.loads(out) == json.loads(json.dumps([one.to_dict() for one in found]))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_fits_the_window_and_draws(saved, call, tmp_path, family):
    folder, built = saved(family, dict(MAIN_HEADS)[family])
    code, out, err = call("inspect", folder, "--png", tmp_path / "map.png")
    assert (code, err) == (0, "")
    assert_fits(out.partition("Heat map")[0])
    assert f"{built.model.num_parameters():,} parameters" in out
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert json.loads(call("inspect", folder, "--json")[1])["parameters"] == built.model.num_parameters()


@pytest.mark.slow
def test_methods_are_told_by_themselves(call):
    code, out, err = call("methods")
    assert (code, err) == (0, "")
    assert_fits(out)
    told = {one["name"]: one for one in json.loads(call("methods", "--json")[1])}
    assert list(told) == list(METHODS)
    for name, one in told.items():
        assert f"\n{name} " in out
        assert one["what"]
        assert one["directions"]
        code, text, _ = call("methods", name)
        assert code == 0
        assert_fits(text)
    assert told["tile"]["directions"] == ["wider (whole multiples)", "deeper"]
    assert told["importance"]["directions"] == ["narrower", "shallower"]
    assert told["stack"]["directions"] == ["deeper"]
    assert told["bot"]["directions"] == ["wider", "deeper", "narrower", "shallower"]
    assert "2311.18823" in told["weight_selection"]["source"]
    assert told["fpi"]["options"] == ["positions", "grids", "seed"]


def test_adapters_are_listed_with_their_classes(call):
    code, out, err = call("adapters")
    assert (code, err) == (0, "")
    assert_fits(out)
    for family in FAMILIES:
        assert f"\n{family} " in out
    assert "GPT2LMHeadModel" in json.loads(call("adapters", "--json")[1])["gpt2"]["classes"]


# -- demo -----------------------------------------------------------------------------------------


class Tokenizer:
    def save_pretrained(self, folder) -> None:
        (folder / "tokenizer.json").write_text("{}")


def test_the_demo_says_nothing_of_files_that_it_brings_itself(saved, tmp_path, caplog):
    from transformers_bot.tools import demo

    folder, _ = saved("bert", "BertForMaskedLM")
    told, quiet = (tmp_path / name for name in ("told", "quiet"))
    for place in (told, quiet):
        shutil.copytree(folder, place)
        (place / "vocab.txt").write_text("[PAD]\n")
    sizes = {"num_hidden_layers": 1}
    transformers_bot.BoTModel.from_pretrained(told, **sizes)
    assert "holds files that save_pretrained" in caplog.text
    caplog.clear()
    demo._resize(quiet, sizes, Tokenizer(), tmp_path / "1x12")
    assert caplog.text == ""
    assert (tmp_path / "1x12" / "config.json").exists()
