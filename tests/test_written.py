"""What stands at OUT: only what a resize wrote, and nobody trained or changed since, is replaced for the asking."""

import json
import os

import pytest
import torch
from transformers import AutoModelForCausalLM

from transformers_bot import BadSize, BoTModelForCausalLM, Report, SaveError, resize_checkpoint
from transformers_bot.errors import BadKeyword, BadOption, IncompatibleModels
from transformers_bot.io import fingerprints
from transformers_bot.io.fingerprints import WHOLE, fingerprint, why_foreign

pytest_plugins = ["cli_window"]  # call

SMALL = {"n_layer": 1}


@pytest.fixture
def result(saved, tmp_path):
    source, _ = saved("gpt2", "GPT2LMHeadModel")
    out = tmp_path / "out"
    resize_checkpoint(source, out, **SMALL)
    return source, out


def train(out, only=""):
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter.mul_(1.001)
    model.save_pretrained(out)


def test_the_report_holds_a_fingerprint_of_every_file_but_itself_and_the_card(result):
    _, out = result
    names = {path.name for path in out.iterdir()} - {"README.md", "transfer_report.json"}
    assert {"model.safetensors", "config.json"} <= names == set(Report.load(out).written)
    assert why_foreign(out) is None


def test_what_a_resize_wrote_is_replaced_also_when_somebody_wrote_in_its_card(result):
    source, out = result
    with (out / "README.md").open("a") as card:
        card.write("\nMine.\n")
    resize_checkpoint(source, out, n_layer=2, overwrite=True)
    assert Report.load(out).sizes["layer"][1] == 2
    assert "Mine." in (out / "README.md").read_text()


CHANGES = {
    "trained": (train, "model.safetensors was changed since"),
    "its norms alone": (lambda out: train(out, "ln_f"), "model.safetensors was changed since"),
    "saved by transformers": (
        lambda out: (out / "transfer_report.json").unlink(),
        "it has no transfer_report.json",
    ),
    "of an older version": (
        lambda out: (out / "transfer_report.json").write_text(
            json.dumps({k: v for k, v in Report.load(out).to_dict().items() if k != "written"})
        ),
        "does not say which files were written",
    ),
    "a tokenizer added": (lambda out: (out / "vocab.json").write_text("{}"), "vocab.json was added since"),
    "a config edited": (
        lambda out: (out / "config.json").write_text((out / "config.json").read_text() + "\n"),
        "config.json was changed since",
    ),
    "a file gone": (lambda out: (out / "generation_config.json").unlink(), "generation_config.json is gone since"),
    "a report that is none": (lambda out: (out / "transfer_report.json").write_text("["), "cannot be read"),
}


def link_out(out, name):
    """A link to a file elsewhere in the place of one that was written."""
    (out / name).rename(out.parent / f"elsewhere-{name}")
    (out / name).symlink_to(out.parent / f"elsewhere-{name}")


def enlarge(out, name, start=b""):
    """A file of a gigabyte that takes no room."""
    (out / name).write_bytes(start)
    os.truncate(out / name, 1 << 30)


NO_HEADER = (31_000_000).to_bytes(8, "little") + b"{" + b"[]," * 1000
UNREAD = {
    "a link": (lambda out: link_out(out, "config.json"), "config.json was changed since"),
    "a link added": (lambda out: (out / "vocab.txt").symlink_to("/etc/hostname"), "vocab.txt was added since"),
    "a link to nothing": (lambda out: (out / "vocab.txt").symlink_to("nothing"), "vocab.txt was added since"),
    "far too large": (lambda out: enlarge(out, "generation_config.json"), "generation_config.json was changed since"),
    "large and added": (lambda out: enlarge(out, "vocab.txt"), "vocab.txt was added since"),
    "weights of no header": (lambda out: enlarge(out, "model.safetensors", NO_HEADER), "is not what safetensors"),
}


@pytest.mark.covering(few=2)
@pytest.mark.parametrize(("change", "why"), UNREAD.values(), ids=UNREAD)
def test_what_no_resize_wrote_is_not_read_to_know_it(result, change, why, monkeypatch):
    _, out = result
    change(out)
    read = []
    monkeypatch.setattr(fingerprints, "fingerprint", lambda path: read.append(path.name) or fingerprint(path))
    assert why in why_foreign(out)
    assert not {path.name for path in out.iterdir() if path.is_symlink() or path.stat().st_size == 1 << 30} & {*read}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "why"), CHANGES.values(), ids=CHANGES)
def test_any_other_model_needs_another_word(result, change, why):
    source, out = result
    change(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for overwrite in (True, False):
        with pytest.raises(SaveError, match=f"holds a model that was not written.*{why}.*overwrite='foreign'"):
            resize_checkpoint(source, out, n_layer=2, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    resize_checkpoint(source, out, n_layer=2, overwrite="foreign")
    assert Report.load(out).sizes["layer"][1] == 2


def test_a_model_saved_from_memory_is_somebodys(saved, tmp_path):
    source, _ = saved("gpt2", "GPT2LMHeadModel")
    BoTModelForCausalLM.from_pretrained(source, **SMALL).save_pretrained(tmp_path / "out")
    with pytest.raises(SaveError, match="holds a model that was not written"):
        resize_checkpoint(source, tmp_path / "out", n_layer=2, overwrite=True)


def test_what_is_more_than_a_model_stays_whatever_is_said(result):
    source, out = result
    (out / "optimizer.pt").write_bytes(b"0")
    with pytest.raises(SaveError, match=r"it holds 'optimizer\.pt'"):
        resize_checkpoint(source, out, n_layer=2, overwrite="foreign")


def test_a_large_file_of_weights_is_looked_at_in_every_tensor(tmp_path):
    from safetensors.torch import save_file

    tensors = {"large": torch.zeros(WHOLE), "head": torch.zeros(2, 3), "empty": torch.zeros(0)}
    path = tmp_path / "model.safetensors"
    found = set()
    for name in (None, "large", "head"):
        changed = {key: x + (1e-4 if key == name else 0) for key, x in tensors.items()}
        save_file(changed, path)
        found.add(fingerprint(path))
        assert fingerprint(path) in found
    assert len(found) == 3


# -- what is said first -------------------------------------------------------------------------------


def test_swapped_folders_are_said_of_the_source(result, tmp_path, call):
    source, out = result
    code, _, err = call("resize", tmp_path / "new", source, "--set", "n_layer=1")
    assert code == 5
    assert f"there is no folder or file '{tmp_path / 'new'}'" in err
    (tmp_path / "empty").mkdir()
    code, _, err = call("resize", tmp_path / "empty", out, "--set", "n_layer=1")
    assert (code, "overwrite" in err, "has no config.json" in err) == (3, False, True)


def test_a_source_without_weights_is_said_before_the_place(result, tmp_path):
    _, out = result
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((out / "config.json").read_bytes())
    with pytest.raises(ValueError, match="has no weights"):
        resize_checkpoint(tmp_path / "bare", out, n_layer=2)


MISTAKES = {
    "size": ({"n_embd": 7}, BadSize),
    "field": ({"n_layr": 1}, (BadKeyword, TypeError)),
    "option": ({"n_layer": 1, "bot_config": {"gain": "rwa"}}, BadOption),
    "method": ({"n_layer": 1, "method": "lemmon"}, BadOption),
    "vocabulary": ({"vocab_size": 7}, IncompatibleModels),
    "dtype": ({"n_layer": 1, "dtype": "float99"}, BadOption),
    "shards": ({"n_layer": 1, "max_shard_size": "many"}, BadOption),
    "task": ({"n_layer": 1, "task": "causal"}, BadOption),
    "no target": ({}, BadOption),
    "overwrite": ({"n_layer": 1, "overwrite": "yes"}, BadOption),
}


@pytest.mark.covering(few=2)
@pytest.mark.parametrize(("keywords", "error"), MISTAKES.values(), ids=MISTAKES)
def test_a_taken_place_hides_no_mistake(result, keywords, error):
    source, out = result
    with pytest.raises(error) as raised:
        resize_checkpoint(source, out, **keywords)
    assert not isinstance(raised.value, SaveError)
