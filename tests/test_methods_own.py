"""Methods of one's own: the example of docs/methods.md resizes, its options are checked, shown and recorded."""

import dataclasses
import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from families import build
from transformers import AutoModel

from transformers_bot import BadKeyword, BadOption, BoTModel, cli, integration, methods, plan, resize_checkpoint, verify
from transformers_bot.methods import Linear, Options, option

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def example(tmp_path):
    """The file that the documentation shows; what it registers is forgotten again."""
    path = tmp_path / "nearest.py"
    text = (DOCS / "methods.md").read_text()
    path.write_text(re.search(r"<!-- test: nearest.py -->\n```python\n(.*?)```", text, re.S)[1])
    yield path
    methods.METHODS.pop("nearest", None)


@pytest.fixture
def source(tmp_path):
    built = build("gpt2", "GPT2Model")
    built.model.save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


HALF = {"n_embd": 4, "n_head": 1}


def test_the_example_resizes_with_its_option(example, source, tmp_path):
    (method,) = methods.load(example)
    given = {"method": "nearest", "bot_config": {"first": 1}}
    model = BoTModel.from_pretrained(source, **HALF, **given)
    original = AutoModel.from_pretrained(source)
    torch.testing.assert_close(model.wte.weight, original.wte.weight[:, [1, 4, 7, 10]], rtol=0, atol=0)
    again = BoTModel.from_pretrained(source, **HALF, method="nearest", bot_config=method.options_class(first=1))
    assert torch.equal(again.wte.weight, model.wte.weight)
    assert plan(source, **HALF, **given).method["options"] == {"first": 1, "layers": "even"}
    resize_checkpoint(source, tmp_path / "out", **HALF, **given)
    assert verify(tmp_path / "out", source=source).equal
    with integration(method="nearest", bot_config={"first": 1}):
        inside = AutoModel.from_pretrained(source, **HALF)
    assert torch.equal(inside.wte.weight, model.wte.weight)


def test_its_options_are_on_the_command_line(example, source, tmp_path, capsys):
    named = ["--method-file", str(example)]
    assert cli.main(["methods", "nearest", *named]) == 0
    shown = capsys.readouterr().out
    assert "every n-th unit of the larger one" in shown
    assert re.search(r"--first +the unit to start with \(default: 0\)", shown)
    assert re.search(r"--layers +which layers stay; one of even, first \(default: even\)", shown)
    sizes = ["--set", "n_embd=4", "--set", "n_head=1", "--method", "nearest", *named]
    assert cli.main(["resize", source, str(tmp_path / "out"), *sizes, "--first", "1"]) == 0
    record = json.loads((tmp_path / "out" / "config.json").read_text())["transformers_bot"]
    assert record["options"] == {"first": 1, "layers": "even"}
    assert cli.main(["verify", str(tmp_path / "out"), "--source", source, *named]) == 0
    capsys.readouterr()
    assert cli.main(["plan", source, *sizes, "--layers", "last"]) == 2
    assert "layers must be one of even, first, got 'last'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["plan", source, *sizes, "--first", "x"])
    assert "--first: it is a whole number, got 'x'" in capsys.readouterr().err


def test_an_option_that_is_true_or_false_takes_nothing_else(example, source, capsys):
    first = 'first: int = option(0, "the unit to start with")'
    example.write_text(
        example.read_text().replace(first, f'{first}\n    wraps: bool = option(True, "start again at 0")')
    )
    call = [
        "plan",
        source,
        "--set",
        "n_layer=1",
        "--method-file",
        str(example),
        "--method",
        "nearest",
        "--json",
        "--wraps",
    ]
    assert cli.main([*call, "No"]) == 0
    assert json.loads(capsys.readouterr().out)["method"]["options"]["wraps"] is False
    with pytest.raises(SystemExit, match="2"):
        cli.main([*call, "flase"])
    assert "--wraps: it is true or false, got 'flase'" in capsys.readouterr().err


def test_a_method_that_nobody_registered_is_named(example, source, tmp_path):
    methods.load(example)
    resize_checkpoint(source, tmp_path / "out", **HALF, method="nearest")
    del methods.METHODS["nearest"]
    with pytest.raises(BadOption, match="unknown method 'nearest'"):
        verify(tmp_path / "out", source=source)


@pytest.mark.parametrize(
    ("bot_config", "error", "message"),
    [
        ({"frist": 1}, BadKeyword, "NearestOptions has no option 'frist'; it has first, layers. Did you mean 'first'?"),
        ({"layers": "last"}, BadOption, "layers must be one of even, first, got 'last'"),
        ({"first": 10**5000}, BadOption, "first holds a number of thousands of digits"),
        (3, BadOption, "bot_config must be NearestOptions or a dict of its fields, got int"),
        ({"gain": "raw"}, BadKeyword, "NearestOptions has no option 'gain'"),
    ],
)
def test_options_that_it_does_not_have(example, source, bot_config, error, message):
    methods.load(example)
    with pytest.raises(error, match=re.escape(message)):
        plan(source, **HALF, method="nearest", bot_config=bot_config)


@dataclasses.dataclass(frozen=True)
class Plain(Options):
    share: float = option(0.5, "how much")


def test_options_can_be_sent_to_processes():
    assert pickle.loads(pickle.dumps(Plain(share=0.25))) == Plain(share=0.25)
    assert hash(Plain()) == hash(Plain(share=0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "bot"}, "method 'bot' is built in and cannot be replaced"),
        ({"name": "My method"}, "name is 'My method'; it must be the method's name in small letters"),
        ({"name": None}, "it must be the method's name"),
        (
            {"name": "own", "options_class": dict},
            "options_class must be a frozen dataclass derived from methods.Options",
        ),
    ],
)
def test_registering_refuses_what_cannot_be_asked_for(changes, message):
    broken = type("Own", (Linear,), {})
    for name, value in changes.items():
        setattr(broken, name, value)
    with pytest.raises(BadOption, match=re.escape(message)):
        methods.register(broken)
    with pytest.raises(BadOption, match=r"must be a class such as a subclass of methods\.Linear"):
        methods.register("nearest")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "own.py defines no method"),
        ("x = (", "own.py cannot be run: SyntaxError"),
        ("from transformers_bot.methods.tile import Tile", "own.py defines no method"),
    ],
)
def test_a_file_that_is_no_method(tmp_path, text, message):
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(BadOption, match=message):
        methods.load(path)
    with pytest.raises(BadOption, match="there is no method file"):
        methods.load(tmp_path / "none.py")


def test_the_pages_get_every_methods_options(example, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    methods.load(example)
    import hooks

    page = hooks.on_page_markdown((DOCS / "methods.md").read_text())
    assert "| `nearest` | `first` | `0` | the unit to start with |" in page
    assert "| `bot` | `gain` | `consistent` |" in page
    for name, method in methods.METHODS.items():
        assert all(f"| `{name}` | `{one}` |" in page for one in method.option_names)
    del sys.modules["hooks"]
