"""Methods of one's own: the example of docs/methods.md resizes, its options are checked, shown and recorded."""

import argparse
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

from transformers_bot import (
    BadKeyword,
    BadOption,
    BoTConfig,
    BoTModel,
    cli,
    integration,
    methods,
    plan,
    resize_checkpoint,
    verify,
)
from transformers_bot.cli import options
from transformers_bot.learned import fitting
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tile+nearest", "nearest+stack"])
def test_either_of_two_methods_may_have_options_of_its_own(example, source, tmp_path, name):
    methods.load(example)
    sizes = {"n_embd": 24, "n_head": 6, "n_layer": 1} if name.startswith("tile") else {**HALF, "n_layer": 4}
    given = {"layers": "first"} if name.startswith("tile") else {"first": 1}
    resize_checkpoint(source, tmp_path / "out", **sizes, method=name, bot_config=given)
    record = json.loads((tmp_path / "out" / "config.json").read_text())["transformers_bot"]
    assert record["options"] == {"first": 0, "layers": "even", **given}
    assert verify(tmp_path / "out", source=source).equal


@pytest.mark.parametrize(("name", "read"), [("tile+stack", {}), ("lemon+stack", {"seed": 0})])
def test_two_built_in_methods_record_what_they_read(source, name, read):
    made = plan(source, n_embd=24, n_head=6, n_layer=4, method=name).method
    assert made["options"] == {"positions": "crop", **read, "grids": "bicubic"}


def test_a_plan_refuses_calibration_that_is_not_used(example, source, monkeypatch):
    methods.load(example)
    batches = [{"input_ids": torch.zeros(1, 4, dtype=torch.long)}]
    said = "calibration= is for method='bot' and 'importance'; 'nearest' does not use it."
    with pytest.raises(BadOption, match=re.escape(said)):
        plan(source, **HALF, method="nearest", calibration=batches)
    with pytest.raises(BadOption, match="none of them gets fewer here"):
        plan(source, n_positions=64, method="importance", calibration=batches)

    class Measured(Linear):
        name, prepare = "measured", methods.METHODS["importance"].prepare

    monkeypatch.setitem(methods.METHODS, "measured", Measured)
    plan(source, method="measured", calibration=batches)
    with pytest.raises(BadOption, match="'bot', 'importance' and 'measured'; 'nearest' does not"):
        plan(source, **HALF, method="nearest", calibration=batches)


@pytest.mark.slow
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
        ({"first": "x"}, BadOption, "first must be a whole number, got 'x'"),
        ({"first": 10**5000}, BadOption, "first holds a number of thousands of digits"),
        (3, BadOption, "bot_config must be NearestOptions or a dict of its fields, got int"),
        ({"gain": "raw"}, BadKeyword, "NearestOptions has no option 'gain'"),
    ],
)
def test_options_that_it_does_not_have(example, source, bot_config, error, message):
    methods.load(example)
    with pytest.raises(error, match=re.escape(message)):
        plan(source, **HALF, method="nearest", bot_config=bot_config)


# what a user gets wrong in the file -> (what is replaced, by what, what is said, by which step)
MISTAKES = {
    "no decorator": ("@dataclass(frozen=True)\n", "", "NearestOptions has options, but no @dataclass(frozen=True)"),
    "no default": (
        'first: int = option(0, "the unit to start with")',
        "first: int",
        "option 'first' of NearestOptions has no default",
    ),
    "a default of another type": ("option(0,", 'option("a",', "is declared as int, but its default is 'a'"),
    "a default that is no choice": ('option("even"', 'option("odd"', "the defaults of NearestOptions are not valid"),
    "arguments": (", at):", "):", "Nearest.pair must take (self, task, role, source, target, at)"),
    "no pair": ("def pair", "def pairs", "no rule for widths, but hidden goes from 12 to 4. Define pair()"),
    "nothing": ("return Pair(", "Pair(", "pair() for hidden, 12 -> 4, must return a methods.Pair, got NoneType"),
    "length": ("range(target)]", "range(target - 1)]", "for hidden, 12 -> 4, returns a map produce from 12 to 3"),
    "a unit too far": ("% source for", "+ source for", "copy entry 21, but the source has the entries 0 to 11"),
    "no depth": ("def depth", "def depths", "no rule for depth, but layer goes from 2 to 1. Define depth()"),
    "a list for depth": ("return picked", "return [0] or picked", "must return a methods.Depth, got list"),
    "lists in depth": (
        "return picked",
        "return methods.Depth([[1, 0]], [[1, 0]]) or picked",
        "returns layers that are no array of numbers but a list. Make one with numpy.array(rows)",
    ),
    "infinity in depth": (
        "return picked",
        "import numpy; return methods.Depth(numpy.full((1, 2), numpy.inf), numpy.eye(1, 2)) or picked",
        "returns layers with NaN or infinity",
    ),
    "a list for a map": (
        "return Pair(",
        "return Pair([[1]], [[1]]) or Pair(",
        "returns a list as produce, which must be a map. Make one with methods.gather(index, source)",
    ),
    "layers": (
        "*task.lengths(stack), ",
        "*task.lengths(stack)[:1], 2, ",
        "layers of shape (2, 2), which must be (1, 2)",
    ),
}


@pytest.mark.parametrize(("text", "by", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_method_are_told_by_name(example, source, text, by, message):
    assert text in example.read_text()
    example.write_text(example.read_text().replace(text, by))

    def use() -> None:
        methods.load(example)
        plan(source, **HALF, n_layer=1, method="nearest")

    with pytest.raises(BadOption, match=re.escape(message)):
        use()


@pytest.mark.parametrize(("name", "code"), [("set", 2), ("json", 2), ("out", 0)])
def test_an_option_with_the_name_of_another_one(example, source, capsys, tmp_path, name, code):
    """One that the command line has is refused; a positional argument of that name is another thing."""
    example.write_text(
        example.read_text().replace("first: int", f"{name}: int").replace("options.first", f"options.{name}")
    )
    sizes = ["--set", "n_embd=4", "--set", "n_head=1"]
    own = ["--method", "nearest", "--method-file", str(example), *([f"--{name}", "2"] if not code else [])]
    assert cli.main(["resize", source, str(tmp_path / "result"), *sizes, *own]) == code
    if code:
        assert f"the command line has --{name} already" in capsys.readouterr().err
    else:
        report = json.loads((tmp_path / "result" / "config.json").read_text())["transformers_bot"]
        assert report["options"] == {name: 2, "layers": "even"}


def test_a_method_without_depth_is_for_widths_and_is_combined(example, source, capsys):
    text = example.read_text().replace("def depth", "def unused")
    example.write_text(text.replace("self.only_shrinks(task)", "pass"))
    named = ["--method-file", str(example)]
    assert cli.main(["methods", "nearest", *named]) == 0
    assert "nearest: makes models wider, narrower\n" in capsys.readouterr().out
    sizes = ["--set", "n_embd=4", "--set", "n_head=1", "--set", "n_layer=4"]
    assert cli.main(["plan", source, *sizes, *named, "--method", "nearest"]) == 2
    assert "--method nearest+stack" in capsys.readouterr().err
    assert cli.main(["plan", source, *sizes, *named, "--method", "nearest+stack"]) == 0


@pytest.mark.parametrize("text", ["Every n-th unit stays.", "nearest: every n-th unit stays"])
def test_a_method_is_explained_by_the_docstring_of_its_file(example, capsys, text):
    first = example.read_text().splitlines()[0]
    example.write_text(example.read_text().replace(first, f'"""{text}', 1))
    assert cli.main(["methods", "nearest", "--method-file", str(example)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Every n-th unit stays. Only to show how a method is written" in shown


@dataclasses.dataclass(frozen=True)
class Plain(Options):
    share: float = option(0.5, "how much")
    layers: int | None = option(2, "how many layers")


@dataclasses.dataclass(frozen=True)
class Shown(Options):
    strength: float = option(None, "how strong", metavar="NUMBER", kind=float, number="a strength is like 0.5")
    side: str = option("left", "left (default) or right", ("left", "right"), explained=True)
    names: str = option("a", "one name, or one per role", by_role=True)


@pytest.mark.parametrize("given", [{"share": "x"}, {"share": True}, {"share": None}])
def test_an_option_of_another_type_is_refused(given):
    with pytest.raises(BadOption, match=re.escape(f"share must be a number, got {given['share']!r}")):
        Plain(**given)
    with pytest.raises(BadOption, match="layers must be a whole number or None, got 'x'"):
        Plain(layers="x")
    assert (Plain(share=1, layers=None).share, Shown(strength=None, names={"hidden": "b"}).strength) == (1, None)


def test_an_option_of_ones_own_says_what_the_built_in_ones_say(monkeypatch, capsys):
    """What an option may tell the command line is the same for all methods."""

    class Strong(Linear):
        name, options_class, advice = "strong", Shown, "Nothing is strong. Choose it never."
        __doc__ = "strong: a method."

    monkeypatch.setitem(methods.METHODS, "strong", Strong)
    assert cli.main(["methods", "strong"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Nothing is strong. Choose it never." in told
    assert "--strength how strong (default: None)" in told
    assert "--side left (default) or right --names" in told
    parser = argparse.ArgumentParser()
    options.add_method(parser)
    args = parser.parse_args(["--strength", "0.5", "--names", "hidden=b,layer=c", "--wavelet", "ffn=db2"])
    by_role = {"names": {"hidden": "b", "layer": "c"}, "wavelet": {"ffn": "db2"}}
    assert options._bot_options(args, "strong") == {"strength": 0.5, **by_role}
    assert "--strength NUMBER" in parser.format_help()
    assert "--side CHOICE" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--strength", "x"])
    assert "a strength is like 0.5, got 'x'" in capsys.readouterr().err
    with pytest.raises(TypeError, match="no argument 'metvar'; it has meaning, choices, metavar"):
        option(1, "one", metvar="N")


@dataclasses.dataclass(frozen=True)
class Renamed(Options):
    heads: int = option(2, "how many heads are kept")
    seed: str = option("a", "a name")


def test_an_option_that_bot_has_too_is_read_as_the_method_means_it(monkeypatch):
    class Other(Linear):
        name, options_class = "other", Renamed

    monkeypatch.setitem(methods.METHODS, "other", Other)
    parser = argparse.ArgumentParser()
    options.add_method(parser)
    args = parser.parse_args(["--heads", "3", "--seed", "7"])
    assert options._bot_options(args, "other") == options._bot_options(args, "other+stack") == {"heads": 3, "seed": "7"}
    assert options._bot_options(args, "bot") == {"heads": "3", "seed": 7}
    assert "; for another method: how many heads are kept" in " ".join(parser.format_help().split())
    with pytest.raises(BadOption, match="--heads: it is a whole number, got 'x'"):
        options._bot_options(parser.parse_args(["--heads", "x"]), "other")


def test_bot_is_a_method_with_options_as_any_other():
    assert issubclass(BoTConfig, Options)
    assert methods.METHODS["bot"].options_class is BoTConfig
    assert methods.METHODS["bot"].option_names == tuple(BoTConfig().to_dict())
    assert [field.name for field in dataclasses.fields(BoTConfig)][:2] == ["wavelet", "gain"]
    for name, method in methods.METHODS.items():
        known = {field.name: field for field in dataclasses.fields(method.options_class)}
        for one in method.option_names:
            assert known[one].metadata["meaning"], (name, one)
    assert isinstance(methods.options_of("tile+stack", {"positions": "interpolate"}), BoTConfig)


def test_a_learned_method_is_known_by_its_operator(monkeypatch):
    class Mine(methods.METHODS["ligo"]):
        name = "mine"

    monkeypatch.setitem(methods.METHODS, "mine", Mine)
    assert fitting.learned_methods() == ["ligo", "mango", "mine"]
    assert [fitting.operator_of(name) for name in ("mine", "mango", "bot", "gone", ["ligo"], None)] == [
        *("ligo", "mango", "", "", "", "")
    ]


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
    with pytest.raises(BadOption, match=r"Bare has no check, prepare, .*\. Derive it from methods\.Linear"):
        methods.register(type("Bare", (), {"name": "bare", "recipe": Linear.recipe}))
    with pytest.raises(BadOption, match=r"Own must take \(options\) when it is made"):
        methods.register(type("Own", (Linear,), {"name": "own", "__init__": object.__init__}))


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
