"""The report accounts for every parameter once, is plain data, and reads well whatever tensors are called."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from decoders import build as build_decoder
from families import ALL_HEADS, MAIN_HEADS, adapter_of, build, class_of, resized_config
from reports import planned, watched
from twostacks import build as build_two_stacks

from transformers_bot import BadCheckpoint, BadOption
from transformers_bot.console.text import figures, percent, percents
from transformers_bot.report.measure import Watch, make_report
from transformers_bot.report.report import FILE, Report, Stack

CHANGES = {
    "half": {"layer": 2, "hidden": 12, "heads": 3, "ffn": 20},
    "grown": {"layer": 6, "hidden": 40, "heads": 10, "ffn": 57},
}
HOSTILE = (
    "a|b`c`*d*_e_<script>alert(1)</script>",
    "x\ny\r\nz\t\x1b[31mred\x1b[0m\x00",
    "[link](http://evil.example)",
    "https://evil.example/www.evil.example",
    "right\u202eto left\u200b",
    "\u4e2d\u6587" * 30,
    "{0.__class__}{layer}%s",
    "n" * 5000,
    "### head\n- [ ] item",
    "",
)


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    """A shrunk and a grown report of every family."""
    made = {}
    for family, head in MAIN_HEADS:
        model = build(family, head, layer=4, hidden=24, heads=6, ffn=40).model
        for change, sizes in CHANGES.items():
            made[f"{family} {change}"] = watched(model, resized_config(model.config, **sizes)).report
    return made


def hostile(report: Report) -> Report:
    """The report of a checkpoint that calls everything by hostile names."""
    tensors = [
        replace(one, name=f"{HOSTILE[i % len(HOSTILE)]}{i}", reason=HOSTILE[-i % len(HOSTILE)], reads=HOSTILE)
        for i, one in enumerate(report.tensors)
    ]
    return replace(
        report,
        classes=(HOSTILE[0], HOSTILE[1]),
        tensors=tuple(tensors),
        roles=tuple(replace(one, role=name, side=name) for one in report.roles[:1] for name in HOSTILE),
        stacks=tuple(Stack(name, 4, 2, (1, 2)) for name in HOSTILE),
        dropped=dict.fromkeys(HOSTILE, HOSTILE[1]),
        method=dict.fromkeys(HOSTILE, HOSTILE[0]),
        provenance={"source": HOSTILE[1], **{name: list(HOSTILE) for name in HOSTILE}},
        warnings=HOSTILE,
    )


# -- every parameter once -----------------------------------------------------------------------


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_every_parameter_of_the_result_is_in_exactly_one_row(family, head, change):
    model = build(family, head, layer=4, hidden=24, heads=6, ffn=40).model
    wanted = resized_config(model.config, **change)
    report = watched(model, wanted).report
    target = class_of(head)(wanted)
    assert [one.name for one in report.tensors] == list(target.state_dict())
    assert {one.name: one.shape for one in report.tensors} == {
        k: tuple(v.shape) for k, v in target.state_dict().items()
    }
    assert sum(one.parameters for one in report.tensors) == report.parameters[1] == target.num_parameters()
    assert report.parameters[0] == model.num_parameters()
    assert sum(one.inherited for one in report.tensors) / report.parameters[1] == report.inherited == 1.0
    read = {name for one in report.tensors for name in one.reads}
    assert read | set(report.dropped) | set(model.all_tied_weights_keys) == set(model.state_dict())
    assert not read & set(report.dropped)


def test_what_is_initialised_anew_is_not_inherited():
    model = build("bert", "BertForSequenceClassification", layer=2, hidden=24, heads=6, ffn=40).model
    wanted = resized_config(model.config, hidden=12, heads=3, num_labels=7)
    report = watched(model, wanted, renew=True).report
    fresh = [one for one in report.tensors if one.action == "fresh"]
    assert [one.name for one in fresh] == ["classifier.weight", "classifier.bias"]
    assert {(one.inherited, one.energy_kept, one.gain, one.std_before, one.std_after) for one in fresh} == {
        (0, None, None, None, None)
    }
    assert report.inherited == pytest.approx(1 - (7 * 12 + 7) / report.parameters[1], abs=1e-6)
    assert "initialised anew: classifier.weight, classifier.bias" in str(report)
    assert "initialised anew: classifier.weight, classifier.bias" in report.summary()


def test_copies_are_copies():
    model = build("gpt2", "GPT2LMHeadModel").model
    report = watched(model, resized_config(model.config)).report
    assert (report.roles, report.stacks, report.dropped) == ((), (), {})
    for one in report.tensors:
        if one.action != "tie":
            assert (one.action, one.energy_kept, one.gain, one.reads) == ("copy", 1.0, 1.0, (one.name,))
            assert one.std_before == one.std_after
    assert "energy kept" not in report.summary()


def test_a_plan_that_has_not_run_has_no_report():
    model = build("gpt2", "GPT2Model").model
    plan, _ = planned(model, resized_config(model.config, ffn=40))
    with pytest.raises(ValueError, match=r"28 steps have not run under this watch, 'wte.weight' first"):
        make_report(plan, Watch(plan, adapter_of("gpt2")), {})


# -- plain data ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_json_brings_the_same_report_back(reports, tmp_path):
    for number, report in enumerate([*reports.values(), hostile(reports["gpt2 half"])]):
        assert Report.from_dict(report.to_dict()) == report
        assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
        folder = tmp_path / str(number)
        folder.mkdir()
        assert report.save(folder) == folder / FILE
        assert Report.load(folder) == report


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes(tmp_path):
    written = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model = build(
            "gpt2", "GPT2LMHeadModel", dtype=torch.float32, layer=2, hidden=64, heads=4, vocab_size=4099
        ).model
        report = watched(model, resized_config(model.config, layer=1, hidden=48, heads=3)).report
        written.append(report.save(tmp_path).read_bytes())
    torch.set_num_threads(1)
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("[1]", "holds a list, not an object with named fields"),
        ('{"format": 2}', "not a transfer report of format 1, but 2"),
        ('{"format": 1, "classes": ["A", "B"]}', "not whole: report has missing or unknown fields: bytes"),
        ("\udcff", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_report_that_is_none_is_named(tmp_path, text, reason):
    (tmp_path / FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadCheckpoint, match=reason):
        Report.load(tmp_path)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain["tensors"][3].update(surplus=1), r"tensors\[3\] has missing or unknown fields: surplus"),
        (lambda plain: plain["tensors"][3].pop("gain"), r"tensors\[3\] has missing or unknown fields: gain"),
        (lambda plain: plain["tensors"][3].update(name=7), r"tensors\[3\].name is int"),
        (lambda plain: plain["tensors"][3].update(shape=[1, "2"]), r"tensors\[3\].shape\[1\] is str"),
        (lambda plain: plain["tensors"][3].update(parameters=True), r"tensors\[3\].parameters is bool"),
        (lambda plain: plain["roles"][0].update(gain="1"), r"roles\[0\].gain is str"),
        (lambda plain: plain.update(classes=["A"]), "classes has 1 entries instead of 2"),
        (lambda plain: plain.update(sizes=[]), "sizes is list"),
        (lambda plain: plain.update(dropped={"a": None}), "dropped.a is NoneType"),
    ],
)
def test_a_report_of_other_types_is_not_believed(reports, change, reason):
    plain = reports["bert half"].to_dict()
    change(plain)
    with pytest.raises(BadCheckpoint, match=f"not whole: report.*{reason}"):
        Report.from_dict(plain)


def test_a_folder_without_a_report_is_named(tmp_path):
    with pytest.raises(BadCheckpoint, match=f"holds no {FILE}"):
        Report.load(tmp_path)
    (tmp_path / FILE).mkdir()
    with pytest.raises(BadCheckpoint, match="is a folder, not a file"):
        Report.load(tmp_path)


# -- words --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_terminal_table_has_at_most_80_columns(reports):
    for report in [*reports.values(), *(hostile(one) for one in reports.values())]:
        lines = str(report).split("\n")
        assert max(map(len, lines)) <= 80
        assert all(line.isprintable() for line in lines)


def test_the_terminal_table_merges_layers_and_says_what_was_left_out(reports):
    shown = str(reports["gpt2 half"])
    assert "transformer.h.{0, 1}.*\n  ln_1.weight" in shown
    assert "layers: 2 made of 2 of 4, left out: 1, 2" in shown
    assert "hidden 24 -> 12" in shown
    assert re.search(r"^hidden +written +24 +12 +\d+ +0\.707 +\d\d\.\d %$", shown, re.M)
    assert re.search(r"^  mlp.c_fc.weight +resample +12x20 +1.00 +\d\d-\d\d % +\d\.\d\d-\d\.\d\d$", shown, re.M)


def test_the_layers_left_out_of_a_second_stack_are_no_unused_tensors():
    model = build_two_stacks("bart")
    wanted = type(model.config).from_dict({**model.config.to_dict(), "decoder_layers": 2})
    report = watched(model, wanted).report
    assert any("decoder.layers." in name for name in report.dropped)
    assert "nothing is made of" not in str(report)


def test_groups_that_are_formed_anew_lose_nothing_in_the_report_either():
    model = build_decoder("llama")
    wanted = type(model.config).from_dict({**model.config.to_dict(), "num_key_value_heads": 4})
    done = watched(model, wanted)
    assert done.plan.source_sizes["queries"] > done.plan.target_sizes["queries"]
    for report in (done.report, Report.from_dict(done.report.to_dict())):
        assert report.shrinks == done.plan.shrinks is False
        assert "must be trained" not in str(report)
    unknown = replace(done.report, classes=("OwnModel", "OwnModel"))
    assert unknown.shrinks  # what is not known is said to lose


def markdown_tables(text: str) -> list[list[str]]:
    """Blocks of lines that begin and end with a bar."""
    blocks = re.split(r"\n(?!\|)", text)
    found = [[line for line in block.split("\n") if line.startswith("|")] for block in blocks]
    return [lines for lines in found if lines]


@pytest.mark.slow
def test_markdown_tables_stay_tables(reports):
    for report in [*reports.values(), *(hostile(one) for one in reports.values())]:
        for text in (report.markdown(), report.summary()):
            for lines in markdown_tables(text):
                bars = {len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) for line in lines}
                assert len(bars) == 1
            assert all(line.isprintable() for line in text.split("\n"))


def test_hostile_names_are_text_in_markdown(reports):
    text = hostile(reports["bert half"]).markdown()
    bare = re.sub(r"\\.", "", text)  # what markdown may still act on
    assert "<" not in bare
    assert "`" not in bare
    assert "[" not in bare
    assert "http:" not in bare
    assert "https:" not in bare
    assert "www." not in bare
    assert max(len(line) for line in text.split("\n")) < 12_000


def test_markdown_has_every_tensor(reports):
    for report in reports.values():
        rows = report.markdown().split("## Tensors")[1]
        for one in report.tensors:
            assert f"| {one.name.replace('_', chr(92) + '_')} | {one.action} |" in rows


def test_the_summary_is_short_and_has_what_a_reader_needs(reports):
    text = reports["gpt2 half"].summary()
    assert len(text.split("\n")) < 25
    assert "- layer 4 → 2, hidden 24 → 12, ffn 40 → 20, heads 6 → 3" in text
    assert "% of the source's energy in 15.0 % of its parameters, must be trained" in text
    assert "inherited" not in text
    assert "| hidden | written | 24 | 12 |" in text
    assert "- **Warning:** shrinking" in text


@pytest.mark.parametrize(
    ("share", "shown"),
    [(None, "-"), (0.0, "0.0 %"), (1e-9, "0.1 %"), (0.4567, "45.7 %"), (0.99999, "99.9 %"), (1.0, "100.0 %")],
)
def test_a_share_that_is_nearly_all_or_nothing_is_not_shown_as_such(share, shown):
    assert percent(share) == shown


def test_ranges():
    assert percents([None, 0.41, 0.634]) == "41-63 %"
    assert percents([0.412, 0.414]) == "41 %"
    assert figures([1.0, 1.4142]) == "1.00-1.41"
    assert percents([None]) == figures([]) == "-"


# -- picture ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2 half", "bert grown", "vit half"])
def test_a_picture_is_drawn_and_pyplot_left_alone(reports, tmp_path, name):
    import matplotlib
    from matplotlib.image import imread

    before = matplotlib.get_backend(auto_select=False), "matplotlib.pyplot" in sys.modules
    for report in (reports[name], hostile(reports[name])):
        path = report.plot(tmp_path / "report.png")
        pixels = imread(path)
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 600
        assert len({tuple(pixel) for pixel in pixels[::7, ::7, :3].reshape(-1, 3).tolist()}) > 20
    assert (matplotlib.get_backend(auto_select=False), "matplotlib.pyplot" in sys.modules) == before


def test_without_matplotlib_the_extra_is_named(reports, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BadOption, match=r'pip install "transformers-bot\[plot\]"'):
        reports["gpt2 half"].plot(tmp_path / "report.png")
