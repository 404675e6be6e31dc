"""Nothing that is written or pushed tells on whose computer, or in which folder, a model was made."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cards import recipe_in
from transformers import AutoConfig, AutoModelForCausalLM

from transformers_bot import BadOption, BoTModelForCausalLM, Report, cli, fit, integration, resize_checkpoint, verify
from transformers_bot.hub import provenance
from transformers_bot.hub.card import model_card
from transformers_bot.io import config_files

SECRETS = ("alice_realname", "private_project", "hidden_targets", "homes")
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def source(saved, tmp_path) -> Path:
    """A model with what warnings speak of: two kinds of weights, a foreign tensor, a config of an older result."""
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    place = tmp_path / "homes/alice_realname/private_project/tiny-gpt2"
    shutil.copytree(folder, place)
    (place / "pytorch_model.bin").write_bytes(b"unread")
    (place / "README.md").write_text("---\nlicense: mit\n---\n")
    return place


@pytest.fixture
def target(source, tmp_path) -> Path:
    """A config by its path."""
    folder = tmp_path / "homes/alice_realname/hidden_targets/larger"
    folder.mkdir(parents=True)
    fields = json.loads((source / "config.json").read_text()) | {"n_layer": 3, "_name_or_path": str(folder)}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def told(folder: Path) -> list[str]:
    """The secrets in any file of a folder, with the file's name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files
    return [f"{path.name}: {word}" for path in files for word in SECRETS if word.encode() in path.read_bytes()]


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("form", ["absolute", "relative", "dotted", "linked", "here"])
def test_a_folder_is_called_by_its_own_name(source, target, tmp_path, form, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.chdir(source if form == "here" else source.parent.parent)
    if form == "linked":
        Path(tmp_path / "tiny-gpt2").symlink_to(source)
    forms = {"absolute": str(source), "relative": "private_project/tiny-gpt2", "here": "."}
    forms |= {"dotted": "../alice_realname/private_project/./tiny-gpt2/", "linked": str(tmp_path / "tiny-gpt2")}
    report = resize_checkpoint(forms[form], out, str(target))
    assert told(out) == []
    assert Report.load(out).provenance["source"] == report.provenance["source"] == "tiny-gpt2"
    assert report.provenance["local"] is True
    assert "path" not in report.provenance
    assert len(report.provenance["files"]["model.safetensors"]) == 64
    assert any("pytorch_model.bin" in text for text in report.warnings)


def test_a_warning_that_names_the_source_calls_it_by_its_name(source, tmp_path):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "x.Y"}}))
    AutoModelForCausalLM.from_pretrained(source).transformer.save_pretrained(source)  # without the head it promises
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": False})
    )
    report = resize_checkpoint(source, tmp_path / "out", n_layer=3, strict=False)
    assert any("tiny-gpt2 lacks" in text for text in report.warnings)
    assert told(tmp_path / "out") == []


PLACES = ("/homes/{}/x", "~/{}/x", "C:\\\\homes\\\\{}", "d:/homes/{}", "\\\\\\\\{}\\\\x", "file:///{}/x")
PATH_FIELDS = ("name_or_path", "tokenizer_file", "special_tokens_map_file", "image_dir")


# Which place stands in which field: in the first turn each place and each field occurs, in all turns each pair.
@pytest.mark.parametrize("turn", [0, *(pytest.param(turn, marks=pytest.mark.slow) for turn in range(1, len(PLACES)))])
def test_tokenizer_settings_of_earlier_versions_lose_the_places_that_they_name(source, tmp_path, turn):
    places = [place.format(SECRETS[0]) for place in (*PLACES[turn:], *PLACES[:turn])]
    kept = {"pad_token": "/", "sep_token": "~", "model_max_length": 12, "vocab_file": "vocab.json", "merges_file": None}
    for name, first in (("tokenizer_config.json", 0), ("preprocessor_config.json", 2)):
        paths = dict(zip(PATH_FIELDS, places[first:], strict=False))
        (source / name).write_text(json.dumps({**paths, **kept}))
    resize_checkpoint(source, tmp_path / "out", n_layer=1)
    assert told(tmp_path / "out") == []
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == kept


def test_settings_without_a_place_are_copied_byte_for_byte(source, tmp_path):
    text = '{"name_or_path":"gpt2",  "model_max_length":12}'
    (source / "tokenizer_config.json").write_text(text)
    resize_checkpoint(source, tmp_path / "out", n_layer=1)
    assert (tmp_path / "out/tokenizer_config.json").read_text() == text


def test_a_model_saved_from_memory_has_the_name(source, target, tmp_path):
    model = BoTModelForCausalLM.from_pretrained(source, config=str(target))
    model.save_pretrained(tmp_path / "out")
    model.transfer_report.save(tmp_path / "out")
    (tmp_path / "out/README.md").write_text(model_card(model.config, model.transfer_report))
    assert told(tmp_path / "out") == []
    record = json.loads((tmp_path / "out/config.json").read_text())["transformers_bot"]
    assert (record["source"], record["files"]) == ("tiny-gpt2", {})  # reading all files again is left to a push
    assert verify(tmp_path / "out", source=source).equal


@pytest.mark.slow
def test_integration_names_the_folder_too(source, target, tmp_path):
    with integration():
        model = AutoModelForCausalLM.from_pretrained(source, config=AutoConfig.from_pretrained(target))
    model.save_pretrained(tmp_path / "out")
    assert told(tmp_path / "out") == []
    assert verify(tmp_path / "out", source=source).equal


@pytest.mark.slow
def test_the_command_line_writes_no_path_and_says_how_to_verify(source, target, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(source.parent)
    sizes = ["--config", str(target), "--set", "n_embd=12"]
    assert cli.main(["resize", "tiny-gpt2", str(tmp_path / "out"), *sizes]) == 0
    assert told(tmp_path / "out") == []
    assert "--source tiny-gpt2" in capsys.readouterr().out
    assert cli.main(["plan", str(source), "--json", *sizes]) == 0
    assert not [word for word in SECRETS if word in capsys.readouterr().out]
    assert cli.main(["verify", str(tmp_path / "out")]) == 5
    said = " ".join(capsys.readouterr().err.split())
    assert "local folder 'tiny-gpt2', and does not say where that is" in said
    assert "--source" in said
    assert cli.main(["verify", str(tmp_path / "out"), "--source", "tiny-gpt2"]) == 0


@pytest.mark.slow
def test_a_recipe_asks_where_its_local_source_is(source, tmp_path, monkeypatch, capsys):
    resize_checkpoint(source, tmp_path / "out", n_layer=3, bot_config={"seed": 7})
    recipe = recipe_in((tmp_path / "out/README.md").read_text())
    assert yaml.safe_load(recipe)["local_source"] == "tiny-gpt2"
    (tmp_path / "recipe.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    for command in ("resize", "plan"):
        assert cli.main([command, "--recipe", "recipe.yaml"]) == 2
        assert "local folder called 'tiny-gpt2'" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["resize", str(source), "--recipe", "recipe.yaml"]) == 0
    again = tmp_path / yaml.safe_load(recipe)["out"]
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("way", ["resize", "command line", "memory"])
def test_a_path_is_recorded_on_request_and_dropped_on_push(source, tmp_path, way):
    out = tmp_path / "out"
    if way == "resize":
        resize_checkpoint(source, out, n_layer=3, record_path=True)
    elif way == "command line":
        assert cli.main(["resize", str(source), str(out), "--set", "n_layer=3", "--record-path"]) == 0
    else:
        BoTModelForCausalLM.from_pretrained(source, n_layer=3, record_path=True).save_pretrained(out)
    record = json.loads((out / "config.json").read_text())["transformers_bot"]
    assert (record["source"], record["path"]) == ("tiny-gpt2", str(source))
    assert verify(out).equal
    config = AutoModelForCausalLM.from_pretrained(out).config
    assert str(source) in recipe_in(model_card(config, None))
    assert provenance.public(record) == {key: value for key, value in record.items() if key != "path"}
    with pytest.raises(BadOption, match="record_path must be True or False"):
        BoTModelForCausalLM.from_pretrained(source, n_layer=3, record_path="yes")


@pytest.mark.slow
def test_records_of_earlier_versions_hold_a_path_and_stay_readable(source, tmp_path):
    resize_checkpoint(source, tmp_path / "out", n_layer=3)
    for name, key in (("config.json", "transformers_bot"), ("transfer_report.json", "provenance")):
        path = tmp_path / "out" / name
        fields = json.loads(path.read_text())
        fields[key]["source"] = str(source)
        path.write_text(json.dumps(fields))
    assert verify(tmp_path / "out").equal
    assert provenance.public(fields["provenance"])["source"] == "tiny-gpt2"
    card = model_card(AutoModelForCausalLM.from_pretrained(tmp_path / "out").config, None)
    assert not [word for word in SECRETS if word in card]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/data/models/gpt2-small", "gpt2-small"),
        ("/data/models/gpt2-small/", "gpt2-small"),
        ("/data/models/x/../y", "y"),
        ("/home/alice", "model"),
        ("/home/alice/models/alice", "model"),
        ("/home/alice/models/gpt2-alice-v2", "model"),
        ("/Users/Alice/models/ALICE_gpt2", "model"),
        ("/data/x/y/x", "model"),
        ("/", "model"),
        ("/data/a\x1b[31mb", "a_[31mb"),
    ],
)
def test_the_name_of_a_folder(place, name):
    assert config_files.folder_name(place) == name


def test_the_users_own_name_is_none(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/carol")
    monkeypatch.setenv("LOGNAME", "dave")
    names = [config_files.folder_name(f"/data/{name}") for name in ("carol", "Dave", "gpt2-dave", "davenport")]
    assert names == ["model", "model", "model", "davenport"]


def test_a_folder_of_the_hubs_cache_is_the_repository(source, tmp_path):
    cached = tmp_path / f"homes/alice_realname/models--org--tiny/snapshots/{COMMIT}"
    shutil.copytree(source, cached)
    report = resize_checkpoint(cached, tmp_path / "out", n_layer=3)
    found = [report.provenance[key] for key in ("source", "local", "revision")]
    assert found == ["org/tiny", False, COMMIT]
    assert told(tmp_path / "out") == []
    assert "base_model: org/tiny" in (tmp_path / "out/README.md").read_text()
    assert verify(tmp_path / "out", source=cached).equal


@pytest.mark.slow
def test_a_folder_within_a_source_is_the_source(source, tmp_path):
    report = resize_checkpoint(
        tmp_path / "homes", tmp_path / "out", n_layer=3, subfolder="alice_realname/private_project/tiny-gpt2"
    )
    assert (report.provenance["source"], report.provenance["subfolder"]) == ("tiny-gpt2", None)
    assert told(tmp_path / "out") == []
    assert verify(tmp_path / "out", source=source).equal


@pytest.mark.slow
def test_one_folder_within_a_source_is_told_unless_it_is_a_users(source, tmp_path, monkeypatch):
    monkeypatch.setattr(config_files, "HOMES", ("homes",))
    found = config_files.described(str(tmp_path / "homes"), "alice_realname", None)
    assert (found["source"], found["subfolder"]) == ("model", None)
    resize_checkpoint(source.parent, tmp_path / "out", n_layer=3, subfolder="tiny-gpt2")
    record = json.loads((tmp_path / "out/config.json").read_text())["transformers_bot"]
    assert (record["source"], record["subfolder"]) == ("private_project", "tiny-gpt2")
    for place in (source, source.parent):
        assert verify(tmp_path / "out", source=place).equal


def test_a_revision_that_a_folders_config_claims_makes_it_no_repository(source, tmp_path, monkeypatch):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_commit_hash": COMMIT}))
    monkeypatch.chdir(source.parent)
    report = resize_checkpoint("tiny-gpt2", tmp_path / "out", n_layer=3, revision=COMMIT)
    assert report.provenance["revision"] is None
    assert "base_model" not in (tmp_path / "out/README.md").read_text()


# -- what a source says of its own origin ----------------------------------------------------------


def claiming(source: Path, record: object) -> None:
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformers_bot": record}))


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_source_does_not_open_other_folders(source, tmp_path, kind):
    victim = tmp_path / "victim"
    victim.mkdir()
    if kind == "pipe":
        os.mkfifo(victim / "config.json")  # who opens it waits for ever
    else:
        (victim / "config.json").write_text(
            json.dumps({"transformers_bot": {"source": "org/secret", "revision": COMMIT}})
        )
    (victim / "README.md").write_text("---\nlicense: secret-licence\n---\n")
    claiming(source, {"source": str(victim), "method": "bot"})
    resize_checkpoint(source, tmp_path / "out", n_layer=3)
    text = "".join(path.read_text() for path in (tmp_path / "out").glob("*.[jm]*") if path.suffix != ".safetensors")
    assert not [word for word in ("victim", "secret") if word in text]


@pytest.mark.slow
def test_a_claim_of_origin_is_told_as_one_and_goes_through_a_chain(source, tmp_path):
    claiming(source, {"source": "org/claimed", "revision": COMMIT, "method": "bot"})
    before = source
    for number in (1, 2):
        after = tmp_path / f"result-{number}"
        resize_checkpoint(before, after, n_layer=2 + number)
        card = (after / "README.md").read_text()
        assert "claims to come from `org/claimed`" in card
        assert "base_model" not in card
        assert verify(after, source=before).equal
        before = after


@pytest.mark.parametrize(
    "record",
    [
        1,
        [],
        {"source": ["org/x"], "revision": COMMIT},
        {"source": "org/x\x1b", "revision": COMMIT},
        {"source": "org/x", "revision": "main"},
        {"source": "org/x", "revision": COMMIT, "local": True},
        {"claimed_source": "org/x"},
        {"claimed_source": {"source": {}, "revision": COMMIT}},
    ],
)
def test_a_claim_that_is_none_is_left_out(source, record):
    claiming(source, record)
    assert provenance.claimed_source(AutoConfig.from_pretrained(source)) is None


def test_a_card_repeats_no_claim_that_is_none(source, tmp_path):
    claiming(source, {"claimed_source": {"source": {}, "revision": COMMIT}})
    report = resize_checkpoint(source, tmp_path / "out", n_layer=3)
    assert report.provenance["claimed_source"] is None
    assert "claims" not in (tmp_path / "out/README.md").read_text()


# -- what needs the source again -------------------------------------------------------------------


@pytest.mark.slow
def test_fit_knows_the_source_in_memory_and_asks_for_it_later(source, tmp_path, monkeypatch):
    batches = [{"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[1, 2, 3]])}]
    monkeypatch.chdir(source.parent)
    model = BoTModelForCausalLM.from_pretrained("tiny-gpt2", n_layer=3, method="ligo")
    monkeypatch.chdir(tmp_path)
    model.save_pretrained(tmp_path / "out")
    assert "fit" in fit(model, batches, steps=1).config.transformers_bot
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pytest.raises(BadOption, match=r"local folder called 'tiny-gpt2'.*pass source="):
        fit(again, batches, steps=1)
    assert "fit" in fit(again, batches, steps=1, source=source).config.transformers_bot
