"""Mistakes on the command line: one line that names options, an exit code of the kind, recipes that are checked."""

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

import transformers_bot
from transformers_bot import cli, configs, errors
from transformers_bot.cli import options
from transformers_bot.cli.terminal import in_options

pytest_plugins = ["cli_window"]  # call, tiny

# -- errors ---------------------------------------------------------------------------------------

MISTAKES = {
    "no command": ((), 2, "required: COMMAND"),
    "unknown command": (("plam",), 2, "invalid choice: 'plam'"),
    "command misspelled": (("rezise", "SOURCE", "out"), 2, "invalid choice: 'rezise'. Did you mean 'resize'"),
    "unknown option": (("plan", "SOURCE", "--wavlet", "haar"), 2, "arguments: --wavlet haar. Did you mean '--wavelet'"),
    "field as option": (("plan", "SOURCE", "--n_layer", "4"), 2, r"n_layer is a field .*write --set n_layer=4 \(see"),
    "field of another spelling": (("resize", "SOURCE", "out", "--hidden-size=8"), 2, "write --set hidden_size=8"),
    "field without --set": (("plan", "SOURCE", "n_layer=4", "n_embd=24"), 2, "Write --set n_layer=4 --set n_embd=24"),
    "fields in one": (
        ("plan", "SOURCE", "--set", "n_layer=2,n_head=3"),
        2,
        "repeat it, --set n_layer=2 --set n_head=3",
    ),
    "fields in one text": (("plan", "SOURCE", "--set", "a=x; b=2"), 2, "repeat it, --set a=x --set b=2"),
    "deep": (("plan", "SOURCE", "--set", "n_layer=" + "[" * 5000 + "]" * 5000), 2, "--set n_layer: "),
    "deep and open": (("plan", "SOURCE", "--set", "n_layer=" + "[" * 5000), 2, "n_layer"),
    "nested": (("plan", "SOURCE", "--set", "n_layer=" + "[" * 20 + "]" * 20), 2, "more than 8 levels"),
    "digits": (("plan", "SOURCE", "--set", "n_layer=" + "9" * 5000), 2, "--set n_layer: no field of a model takes"),
    "infinite": (("plan", "SOURCE", "--set", "n_layer=1e999"), 2, "n_layer"),
    "share": (("suggest", "SOURCE", "--ratio", "half"), 2, "a number above 0, got 'half'. Write it as 0.5, 50% or 1/2"),
    "no share": (("suggest", "SOURCE", "--ratio", "1/0"), 2, "got '1/0'"),
    "dtype": (("plan", "SOURCE", "--set", "n_layer=2", "--dtype", "int8"), 2, "dtype must be float64, .*, got 'int8'"),
    "dtype that is a module": (("plan", "SOURCE", "--set", "n_layer=2", "--dtype", "nn"), 2, "got 'nn'"),
    "head of another type": (
        ("plan", "SOURCE", "--task", "masked-lm", "--set", "n_layer=2"),
        4,
        "bot: transformers has no head of gpt2 models for --task masked-lm. Use --task base or .*--task causal-lm",
    ),
    "head of another type to suggest for": (
        ("suggest", "SOURCE", "--task", "masked-lm", "--ratio", "0.5"),
        4,
        "bot: transformers has no head of gpt2 models for --task masked-lm. Use --task base or .*--task causal-lm",
    ),
    "table": (
        ("plan", "SOURCE", "--set", "n_layer=2", "--calibration", "data.csv"),
        2,
        "data.csv ends in .csv, which is read neither as texts .* nor as an image",
    ),
    "count": (("suggest", "SOURCE", "--ratio", "0.5", "--count", "few"), 2, "a whole number such as 5, got 'few'"),
    "tokens": (("plan", "SOURCE", "--calibration-tokens", "9" * 5000), 2, "is a whole number such as 8192, got '9+"),
    "scale": (("plan", "SOURCE", "--detail-scale", "much"), 2, "noise.*: it is a number such as 0.5, got 'much'"),
    "no source": (("plan",), 2, "SOURCE is missing: give it on the command line, or as source: in --recipe"),
    "size": (("plan", "SOURCE", "--set", "n_embd=50"), 2, "not divisible by n_head 6 .* 48 and 54"),
    "zero": (("plan", "SOURCE", "--set", "n_layer=0"), 2, "n_layer is 0 in the target config"),
    "field of others": (
        ("plan", "SOURCE", "--set", "d_model=2"),
        2,
        "no field 'd_model' to set. Its sizes are n_layer,",
    ),
    "option as field": (("plan", "SOURCE", "--set", "method=tile"), 2, "field 'method' to set. Pass --method instead"),
    "switch as field": (
        ("plan", "SOURCE", "--set", "strict=false"),
        2,
        "field 'strict' to set. Pass --no-strict instead",
    ),
    "only in Python": (("plan", "SOURCE", "--set", "device_map=auto"), 2, "The command line has no option for it"),
    "field": (("plan", "SOURCE", "--set", "n_layers=2"), 2, "no field 'n_layers' to set.*Did you mean 'n_layer'"),
    "pair": (("plan", "SOURCE", "--set", "n_layer"), 2, "--set takes NAME=VALUE, got 'n_layer'"),
    "option": (
        ("plan", "SOURCE", "--gain", "rwa", "--set", "n_layer=2"),
        2,
        "gain must be one of .*Did you mean 'raw'",
    ),
    "number": (
        ("plan", "SOURCE", "--seed", "one"),
        2,
        "argument --seed: a seed .* is a whole number such as 0, got 'one'",
    ),
    "task": (
        ("plan", "SOURCE", "--task", "causal"),
        2,
        "argument --task: invalid choice: 'causal'. Did you mean 'causal-lm'",
    ),
    "config": (("plan", "SOURCE", "--config", "gpt2-smal"), 2, "nor a ready config .*Did you mean 'gpt2-small'"),
    "method": (("plan", "SOURCE", "--method", "bat", "--set", "n_layer=2"), 2, "unknown method 'bat'.*'bot'"),
    "reheads": (("plan", "SOURCE", "--set", "n_head=4"), 4, "Choose --reheads resample"),
    "vocabulary": (("plan", "SOURCE", "--set", "vocab_size=9"), 4, "pass --ignore-mismatched-sizes to"),
    "family": (("plan", "SOURCE", "--config", "bert-small"), 4, "gpt2 model and the target config is bert"),
    "no target": (("resize", "SOURCE", "out"), 2, "no target is given: pass --config, or --set FIELD=VALUE"),
    "no out": (("resize", "SOURCE"), 2, "OUT is missing: give it on the command line, or as out:"),
    "no such model": (("plan", "nowhere"), 5, "'nowhere' is no folder here"),
    "no such folder": (("verify", "nowhere"), 5, "there is no folder 'nowhere' to verify"),
    "no folder": (("plan", "./nowhere"), 5, "there is no folder or file './nowhere'"),
    "folder without config": (("plan", "EMPTY"), 3, "config.json|does not appear to have a file named"),
    "size asked twice": (("suggest", "SOURCE", "--params", "1M", "--ratio", "2"), 2, "not allowed with"),
    "no size asked": (("suggest", "SOURCE"), 2, "one of the arguments --params --ratio --memory --like is required"),
    "no such size": (("suggest", "SOURCE", "--params", "1T"), 2, "no size near 1,000,000,000,000 parameters"),
    "like": (("suggest", "SOURCE", "--like", "gpt2-smal"), 2, "Did you mean 'gpt2-small'"),
    "method's name": (("methods", "lemmon"), 2, "unknown method 'lemmon'.*Did you mean 'lemon'"),
    "adapter": (("adapters", "check", "mbart"), 2, "neither a .py file nor a known model type .*Did you mean 'bart'"),
    "adapter file": (("plan", "SOURCE", "--adapter", "no.py"), 2, "there is no adapter file 'no.py'"),
    "inspect": (("inspect", "SOURCE", "--wavelet", "harr"), 2, "Did you mean 'haar'"),
    "verify": (("verify", "EMPTY"), 3, "EMPTY|config.json"),
}


@pytest.mark.parametrize(("words", "code", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_its_exit_code(call, tiny, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "data.csv").write_text("text\nOne two three.\n")
    places = {"SOURCE": str(tiny)}
    got, out, err = call(*(places.get(word, word) for word in words))
    assert (got, out) == (code, "")
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert err.startswith("transformers-bot")


WAYS = [
    (("--dtype", "fp16"), ("--dtype", "float16")),
    (("--dtype", "BF16"), ("--dtype", "bfloat16")),
    (("--dtype", "half"), ("--dtype", "float16")),
    (("--dtype", "float"), ("--dtype", "float32")),
    (("--ignore_mismatched_sizes",), ("--ignore-mismatched-sizes",)),
    (("--detail_scale=2",), ("--detail-scale", "2")),
]


@pytest.mark.parametrize(("written", "meant"), WAYS)
def test_other_spellings_are_understood(call, tiny, written, meant):
    said = [call("plan", tiny, "--set", "n_layer=2", "--json", *words) for words in (written, meant)]
    assert said[0] == said[1]
    assert said[0][0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("written", ["50%", "1/2", "50 %", "0,5", ".5", "5e-1"])
def test_a_share_may_be_written_as_people_do(call, tiny, written):
    assert call("suggest", tiny, "--ratio", written, "--json") == call("suggest", tiny, "--ratio", "0.5", "--json")


def test_every_kind_of_error_has_an_exit_code():
    def code(kind: type[Exception]) -> int:
        return next(number for known, number in cli.EXIT_CODES.items() if issubclass(kind, known))

    assert {code(kind) for kind in (errors.BadSize, errors.BadOption, errors.BadKeyword)} == {2}
    assert {code(kind) for kind in (errors.BadCheckpoint, errors.UnsafeCheckpoint, errors.BadWeights)} == {3}
    assert {
        code(kind)
        for kind in (
            errors.UnsupportedCheckpoint,
            errors.UnsupportedArchitecture,
            errors.IncompatibleModels,
            errors.PlanError,
        )
    } == {4}
    assert {code(kind) for kind in (errors.SaveError, OSError, errors.BoTError)} == {5}


def test_an_interrupt_is_said_in_one_line(call, tiny, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers_bot.auto, "plan", interrupted)
    assert call("plan", tiny) == (130, "", "transformers-bot: interrupted.\n")


def test_a_field_that_transformers_refuses_is_a_mistake_in_the_call(call, tiny, monkeypatch):
    def refused(*_, **__):
        raise StrictDataclassFieldValidationError("n_layer", TypeError("expected int, got str"))

    monkeypatch.setattr(transformers_bot.auto, "plan", refused)
    code, _, err = call("plan", tiny)
    assert (code, "n_layer" in err) == (2, True)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("resid_pdrop=lots", "resid_pdrop='lots', which must be a number"),
        ("use_cache=maybe", "use_cache='maybe', which must be true or false"),
        ("activation_function=7", "activation_function=7, which must be text"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_in_words_of_the_field(call, tiny, pair, words):
    code, _, err = call("plan", tiny, "--set", "n_layer=2", "--set", pair)
    assert (code, err) == (2, f"transformers-bot: GPT2Config cannot be built with {words}.\n")


def test_a_mistake_of_ours_keeps_its_traceback(call, tiny, monkeypatch):
    def mistaken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(transformers_bot.auto, "plan", mistaken)
    with pytest.raises(ZeroDivisionError):
        call("plan", tiny)


def test_a_name_cannot_steer_the_terminal(call):
    code, _, err = call("plan", "./no\x1b[31m\nwhere")
    assert code == 5
    assert "\x1b" not in err
    assert err.count("\n") == 1


def test_a_message_has_the_letters_that_were_typed(tiny, capsys):
    assert cli.main(["plan", str(tiny), "--set", "id2label=猫,狗", "--set", "n_layer=3"]) == 2
    assert "猫" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EBADF])
def test_a_mistake_that_cannot_be_told_keeps_its_exit_code(tiny, number, monkeypatch):
    class Refusing(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("sys.stderr", Refusing())
    assert cli.main(["plan", str(tiny), "--set", "n_layer=x"]) == 2


class Full(io.StringIO):
    """A stream to a full disk: what is printed waits in memory, and cannot be brought there."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
@pytest.mark.parametrize("words", [["plan", "--set", "n_layer=3"], ["suggest", "--ratio", "0.5"], ["methods"]])
def test_an_output_that_takes_no_more_is_said_to_be_it(tiny, capsys, monkeypatch, words):
    monkeypatch.setattr("sys.stdout", Full())
    assert cli.main([words[0], *([str(tiny)] if len(words) > 1 else []), *words[1:]]) == 5
    assert "could not be printed: standard output failed (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_result_is_said_to_be_there_where_its_report_cannot_be_printed(saved, tmp_path, capsys, monkeypatch, form):
    source, _ = saved("gpt2", "GPT2LMHeadModel", layer=3)
    out = tmp_path / "out"
    with monkeypatch.context() as full:
        full.setattr("sys.stdout", Full())
        assert cli.main(["resize", source, str(out), "--set", "n_layer=2", *form]) == 5
    err = capsys.readouterr().err
    assert f"{out} is written and whole, its report is in {out}/transfer_report.json" in err
    assert "standard output failed" in err
    assert transformers_bot.Report.load(out).sizes["layer"] == (3, 2)


def test_a_closed_standard_error_says_nothing_anywhere(saved, tmp_path, capsys, monkeypatch):
    """Python has None for it, which `print` takes for standard output."""
    source, _ = saved("gpt2", "GPT2LMHeadModel", layer=3)
    monkeypatch.setattr("sys.stderr", None)
    assert cli.main(["plan", source, "--set", "n_layer=x"]) == 2
    assert capsys.readouterr().out == ""
    assert cli.main(["resize", source, str(tmp_path / "out"), "--set", "n_layer=2"]) == 0
    assert capsys.readouterr().out.startswith("GPT2LMHeadModel -> GPT2LMHeadModel")


def test_help_names_only_what_the_command_has(call):
    assert "OUT" not in call("plan", "--help")[1]
    assert "after SOURCE and OUT" in " ".join(call("resize", "--help")[1].split())


@pytest.mark.slow
def test_a_closed_output_is_no_error(tiny):
    command = f"{sys.executable} -m transformers_bot plan {tiny} --set n_layer=3 >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(tiny):
    command = f"{sys.executable} -m transformers_bot plan {tiny} --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{", "")


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("Set BoTConfig(reheads='resample').", "Set --reheads resample."),
        ("pass bot_config={'depth': ...} instead", "pass --depth instead"),
        ("or pass allow_pickle=True for a file you trust", "or pass --allow-pickle for a file you trust"),
        ("pass overwrite=True, strict=False", "pass --overwrite, --no-strict"),
        ("use method='tile+stack'.", "use --method tile+stack."),
        ("the target as config=.", "the target as --config."),
        ("one of params=, like=, ratio= and memory=", "one of --params, --like, --ratio and --memory"),
        ("Set tie_word_embeddings=False in the target config", "Pass --set tie_word_embeddings=false"),
        ("Pass add_cross_attention=False: the decoder", "Pass --set add_cross_attention=false: the decoder"),
        ("scale_attn_by_inverse_layer_idx=True divides", "scale_attn_by_inverse_layer_idx=true divides"),
        ("has no option gain='raw' in bot_config: it takes", "has no option --gain raw: it takes"),
        ("Pass bot_config={'basis': 'plain'}, which", "Pass --basis plain, which"),
        ("a smaller lr= than", "a smaller --fit-lr than"),
        ("or pass overwrite='foreign'.", "or pass --overwrite-foreign."),
        ("for BoTModelForMaskedLM: use BoTModel", "for --task masked-lm: use --task base"),
        ("calibration= is for method='bot'", "--calibration is for --method bot"),
    ],
)
def test_messages_name_options(python, shell):
    assert in_options(python) == shell


# -- recipes --------------------------------------------------------------------------------------


def recipe(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def test_a_recipe_is_the_same_as_the_options(call, tiny, tmp_path):
    path = recipe(
        tmp_path,
        f"source: {tiny}\nconfig: {{n_layer: 2, n_embd: 24, n_head: 3}}\nmethod: bot\n"
        "bot_config: {depth: first, wavelet: {hidden: db2}}\ndtype: bfloat16\n",
    )
    written = call("plan", "--recipe", path, "--json")
    typed = call(
        *("plan", tiny, "--set", "n_layer=2", "--set", "n_embd=24", "--set", "n_head=3", "--dtype", "bfloat16"),
        *("--depth", "first", "--wavelet", "hidden=db2", "--json"),
    )
    assert written == typed
    assert written[0] == 0


def test_the_command_line_wins_over_a_recipe(call, tiny, tmp_path):
    path = recipe(tmp_path, "source: nowhere\nconfig: {n_layer: 2, n_embd: 24, n_head: 3}\nbot_config: {seed: 1}\n")
    out = call("plan", tiny, "--recipe", path, "--set", "n_layer=3", "--seed", "2", "--json")[1]
    made = json.loads(out)
    assert (made["target"]["sizes"]["layer"], made["target"]["sizes"]["hidden"]) == (3, 24)
    assert made["method"]["options"]["seed"] == 2


def test_a_recipes_config_may_be_a_name(call, tmp_path, tiny):
    configs.get("gpt2-base", n_positions=16, vocab_size=23).save_pretrained(tmp_path / "base")
    path = recipe(tmp_path, f"source: {tiny}\nconfig: {tmp_path / 'base'}\n")
    made = json.loads(call("plan", "--recipe", path, "--set", "n_layer=5", "--json")[1])
    assert (made["target"]["sizes"]["layer"], made["target"]["sizes"]["hidden"]) == (5, 768)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sorce: gpt2\n", "unknown setting 'sorce'. Did you mean 'source'"),
        ("xyz: 1\n", "unknown setting 'xyz'. It may have source, local_source, out"),
        ("source: 3\n", "source must be text, got 3. Put it in quotes"),
        ("overwrite: 1\n", "overwrite must be true or false, got 1"),
        ("source: [a]\n", r"source must be text, got \['a'\]\."),
        ("config: 4\n", "config must be text or a table of fields, got 4"),
        ("config: {1: 2}\n", "config has a field 1; the names of fields are text"),
        ("bot_config: {true: 1}\n", "bot_config has a field True; the names of fields are text"),
        ("bot_config: haar\n", "bot_config must be a table of fields"),
        ("- source\n", "must be a YAML table of settings"),
        ("source: 'gpt2\n", "is not a YAML recipe"),
        ("source: a\nsource: b\n", "line 2 has the name source for the second time"),
        ("source: &a gpt2\nout: *a\n", r"line 1 has an anchor \(&a\)"),
        ("source: !!python/object/apply:os.system [true]\n", "is not a YAML recipe"),
        ("source: gpt2\n" + "#" * 64_000, "has 64,013 bytes; a recipe has at most 64,000"),
        ("", "must be a YAML table"),
        ("source: !!timestamp x\n", "is not a YAML recipe"),
        ("source: !!bool x\n", "is not a YAML recipe"),
        ("source: !!int x\n", "is not a YAML recipe"),
        ("source: !!float x\n", "is not a YAML recipe"),
        ("source: !!binary x\n", "is not a YAML recipe"),
        ("? [a]\n: b\n", "is not a YAML recipe"),
        ("? {a: b}\n: b\n", "is not a YAML recipe"),
        ("source: " + "[" * 5000, "is not a YAML recipe"),
        ("a\0b: 1\n", "is not a YAML recipe"),
    ],
)
def test_a_wrong_recipe_is_one_line(call, tmp_path, text, message):
    code, out, err = call("plan", "--recipe", recipe(tmp_path, text))
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert err.count("\n") == 1


def test_a_recipe_that_is_not_there(call):
    assert call("plan", "--recipe", "no.yaml") == (2, "", "transformers-bot: there is no recipe file 'no.yaml'.\n")


# -- the documentation ----------------------------------------------------------------------------

DOCS = Path(__file__).parent.parent / "docs" / "command-line.md"


def test_the_documented_recipe_is_one_and_every_setting_is_documented(call, tmp_path, tiny):
    text = DOCS.read_text()
    path = recipe(tmp_path, re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    assert set(options.read_recipe(str(path))) <= set(options.SETTINGS)
    rows = text.partition("| setting | value |")[2].partition("What is given")[0]
    documented = {name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.partition(" | ")[0])}
    assert documented == set(options.SETTINGS)
    code, _, err = call("plan", tiny, "--recipe", path, "--set", "n_layer=2")
    assert code in (2, 4, 5)  # BERT's fields for a GPT-2: refused in one line
    assert err.count("\n") == 1


def test_every_documented_command_and_exit_code_exists():
    text = DOCS.read_text()
    codes = {int(found) for found in re.findall(r"^\| (\d+) \|", text, re.M)}
    assert codes == {0, 1, cli.INTERRUPTED, *cli.EXIT_CODES.values()}
    for line in re.findall(r"^transformers-bot (.*?)(?:#|$)", text, re.M):
        cli.build_parser().parse_args(line.split())
