"""Tokenizer and processor files: read as data, checked against the target, never built and never trusted."""

import base64
import json
import re
from pathlib import Path

import pytest
import visions
from families import build, save
from test_streaming import with_tokenizer
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoTokenizer, BertConfig, GPT2Config, PreTrainedTokenizerFast

import transformers_bot
from transformers_bot import BoTModelForCausalLM, IncompatibleModels, UnsafeCheckpoint, plan, resize_checkpoint
from transformers_bot.io.companions import carry, check_images
from transformers_bot.io.vocabulary import read_vocabulary

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c")
BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
SWITCHES = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def fast(**fields: object) -> dict:
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {"version": "1.0", "added_tokens": [], **dict.fromkeys(parts), "model": BPE, **fields}


def gpt2(folder: Path) -> Path:
    source = Path(save(build("gpt2", "GPT2LMHeadModel").model, folder))
    with_tokenizer(source, 23)
    return source


GOOD = {
    "lines": {"vocab__txt": "\n".join(WORDS)},
    "lines, one of them twice": {"vocab__txt": "\n".join([*WORDS, "a", "d"])},
    "an empty line at the end": {"vocab__txt": "\n".join(WORDS) + "\n\n"},
    "no mask": {"vocab__txt": "\n".join(WORDS[:4])},
    "more tokens": {"vocab__txt": "\n".join(WORDS), "tokenizer_config__json": {"extra_special_tokens": ["<x>", "a"]}},
    "a library's file": {"tokenizer__json": fast(), "tokenizer_config__json": {"tokenizer_class": "TokenizersBackend"}},
    "the class' own tokens": {
        "tokenizer__json": fast(),
        "tokenizer_config__json": {"tokenizer_class": "GPT2Tokenizer"},
    },
    "added in the file": {"tokenizer__json": fast(added_tokens=[{"id": 3, "content": "<x>", **SWITCHES}])},
    "a class of somebody's": {"tokenizer__json": fast(), "tokenizer_config__json": {"tokenizer_class": "OwnTokenizer"}},
}


@pytest.mark.parametrize("files", GOOD.values(), ids=GOOD)
def test_entries_are_counted_as_transformers_builds_them(tmp_path, files):
    folder, config = write(tmp_path / "here", **files), BertConfig()
    built = AutoTokenizer.from_pretrained(folder, config=config).get_vocab()
    assert read_vocabulary(folder, config).entries == 1 + max(built.values())


def test_the_pieces_of_a_sentencepiece_model_are_counted(tmp_path):
    folder = write(tmp_path / "here", tokenizer_config__json={})
    piece = lambda text: b"\x0a" + bytes([len(text) + 2]) + b"\x0a" + bytes([len(text)]) + text  # noqa: E731
    (folder / "spiece.model").write_bytes(b"".join(map(piece, (b"<unk>", b"x", b"yy"))) + b"\x12\x02ab")
    assert read_vocabulary(folder, GPT2Config(vocab_size=9)).entries == 4  # and GPT-2's end of text


# What makes the Rust library panic, abort, or transformers raise: a part of tokenizer.json, what is said.
def charsmap(data: bytes) -> dict:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


BROKEN = {
    "a short table": (fast(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "charsmap .* damaged"),
    "4 GB of table": (fast(normalizer={"type": "Sequence", "normalizers": [charsmap(b"\xff" * 64)]}), "damaged"),
    "no text behind it": (fast(normalizer=charsmap(bytes(4) + b"\xff\xff")), "damaged"),
    "a table of null": (fast(normalizer={"type": "Precompiled", "precompiled_charsmap": None}), "damaged"),
    "merges of nothing": (fast(model={**BPE, "merges": ["a c"]}), "joins 'c', which is not in its vocabulary"),
    "merges into nothing": (fast(model={**BPE, "merges": [["b", "a"]]}), "joins 'ba'"),
    "merges no list": (fast(model={**BPE, "merges": {"a": "b"}}), "merges in tokenizer.json is no list"),
    "an id below 0": (fast(model={**BPE, "vocab": {"a": -1}}), "the id -1"),
    "an unknown of none": (fast(model={"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.5]]}), "unk_id .* is 9"),
    "scores of text": (fast(model={"type": "Unigram", "vocab": [["a", "b"]]}), "not a piece and its score"),
    "another model": (fast(model={"type": "Ngram", "vocab": {}}), "no vocabulary of its model 'Ngram'"),
    "no model": (fast(model=[]), "holds no model"),
    "padding of text": (fast(padding="left"), "padding in tokenizer.json is 'left'"),
    "added of none": (fast(added_tokens=[{"id": 3}]), "not a token"),
    "no JSON": ("{", "cannot be read as JSON"),
    "too deep": ('{"model": ' + "[" * 9000, "nested too deeply"),
}


@pytest.mark.covering(few=2)
@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN)
def test_a_tokenizer_that_cannot_be_loaded_is_told_and_never_built(tmp_path, monkeypatch, content, said):
    source = write(gpt2(tmp_path / "source"), tokenizer__json=content)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("a tokenizer was built"))
    report = resize_checkpoint(source, tmp_path / "out", n_layer=1)
    (sentence,) = [text for text in report.warnings if "tokenizer files were copied but cannot be loaded" in text]
    assert re.search(said, sentence)
    assert str(tmp_path) not in sentence
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


WRONG = {
    "model_max_length": ("32", [1], True, -1),
    "unk_token": (3, {"content": "x"}, ["a"]),
    "mask_token": (False,),
    "padding_side": ("up", 1),
    "do_lower_case": ("yes",),
    "additional_special_tokens": ("x", [3], 5),
    "extra_special_tokens": ({"a": 3},),
    "added_tokens_decoder": (5, [], {"x": {"content": "a"}}, {"3": 4}),
    "tokenizer_class": (4, "RagTokenizer", "Trainer"),
    "chat_template": (["a"], 5),
    "init_inputs": (3,),
}


@pytest.mark.covering(few=3)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_settings_of_another_type_are_told_with_their_value(tmp_path, name, value):
    source = gpt2(tmp_path / "source")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    write(source, tokenizer_config__json={**settings, name: value})
    report = resize_checkpoint(source, tmp_path / "out", n_layer=1)
    said = [text for text in report.warnings if f"cannot be loaded: {name} in tokenizer_config.json is" in text]
    assert len(said) == 1


def test_ids_beyond_the_embeddings_are_an_error_also_where_entries_are_few(tmp_path):
    source = gpt2(tmp_path / "source")
    write(source, tokenizer__json=fast(model={"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 23}}))
    with pytest.raises(IncompatibleModels, match=r"has 24 entries, the model 23 embeddings"):
        resize_checkpoint(source, tmp_path / "out", n_layer=1)


@pytest.mark.parametrize(("name", "most"), [("tokenizer_config.json", 4), ("merges.txt", 64)])
def test_files_larger_than_any_of_their_kind_are_refused(tmp_path, name, most):
    source = gpt2(tmp_path / "source")
    with open(source / name, "wb") as file:
        file.truncate(most * 2**20 + 1)
    with pytest.raises(UnsafeCheckpoint, match=rf"{name} of .* has .* bytes, more than .*tokenizer=False"):
        resize_checkpoint(source, tmp_path / "out", n_layer=1)
    resize_checkpoint(source, tmp_path / "out", n_layer=1, tokenizer=False)


# -- images ---------------------------------------------------------------------------------------

SIZES = {  # settings, fields of the target, what is said
    "higher": ({"size": {"height": 12, "width": 12}}, {"image_size": 16}, ["images of 12 pixels, the model takes 16"]),
    "wider": (
        {"size": {"height": 12, "width": 12}},
        {"image_size": [12, 24]},
        ["of 12 pixels, the model takes 12 x 24"],
    ),
    "as wide": ({"size": {"height": 12, "width": 24}}, {"image_size": [12, 24]}, []),
    "turned": (
        {"size": {"height": 24, "width": 12}},
        {"image_size": [12, 24]},
        ["24 x 12 pixels, the model takes 12 x 24"],
    ),
    "a number": ({"size": 12}, {"image_size": 16}, ["images of 12 pixels"]),
    "an edge": ({"size": {"shortest_edge": 12}}, {"image_size": 16}, ["whose shortest edge is 12 pixels"]),
    "the other edge": ({"size": {"longest_edge": 12}}, {"image_size": 16}, ["whose longest edge is 12 pixels"]),
    "an edge of it": ({"size": {"shortest_edge": 16}}, {"image_size": 16}, []),
    "cropped": ({"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}}, {"image_size": 16}, []),
    "cropped otherwise": (
        {"size": 16, "crop_size": 12, "do_center_crop": True},
        {"image_size": 16},
        ["set its crop_size"],
    ),
    "not cropped": ({"size": 16, "crop_size": 12, "do_center_crop": False}, {"image_size": 16}, []),
    "not resized": ({"size": 12, "do_resize": False}, {"image_size": 16}, []),
    "no size": ({"size": {"height": "x", "width": 12}}, {"image_size": 16}, ["not an image size"]),
    "no list": ({"image_mean": "x"}, {}, ["not a list of numbers"]),
    "grey": ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"num_channels": 1}, ["image_mean", "image_std"]),
    "made colourful": ({"do_convert_rgb": True}, {"num_channels": 1}, ["converts images to 3 channels"]),
    "as many": ({"image_mean": [0.5], "image_std": [0.5]}, {"num_channels": 1}, []),
    "of no use": ({"image_mean": [0.5] * 3, "do_normalize": False}, {"num_channels": 1}, []),
    "elsewhere": ({"image_processor": {"size": 12}}, {"image_size": 16}, ["processor_config.json makes images of 12"]),
}


@pytest.mark.covering(few=3)
@pytest.mark.parametrize(("settings", "fields", "said"), SIZES.values(), ids=SIZES)
def test_images_are_what_the_model_takes_or_it_is_said(tmp_path, settings, fields, said):
    source = Path(save(build("vit", "ViTForImageClassification").model, tmp_path / "source"))
    name = "processor_config" if "image_processor" in settings else "preprocessor_config"
    write(source, **{f"{name}__json": settings})
    wanted = {"num_hidden_layers": 1, **fields, "ignore_mismatched_sizes": True}
    report = resize_checkpoint(source, tmp_path / "out", **wanted)
    found = [text for text in report.warnings if "processor_config.json" in text]
    assert len(found) == len(said)
    assert all(text in sentence for text, sentence in zip(said, found, strict=True))


def test_the_files_of_a_pair_are_checked_against_its_towers(tmp_path):
    config = visions.build("clip").config
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 99, "image_mean": [0.5]}))
    said = check_images(tmp_path, config)
    assert len(said) == 2
    assert "makes images of 99 pixels, the model takes 12" in said[0]
    assert "is for 1 channels, the model takes 3" in said[1]
    words = models.WordLevel({f"w{number}": number for number in range(38)}, unk_token="w0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(tmp_path)
    files = {name: tmp_path / name for name in ("tokenizer.json", "tokenizer_config.json")}
    (tmp_path / "out").mkdir()
    with pytest.raises(IncompatibleModels, match="has 38 entries, the model 37 embeddings"):
        carry(files, tmp_path / "out", config)


# -- code and hints -------------------------------------------------------------------------------


def test_names_of_code_that_is_not_copied_are_left_out(tmp_path):
    source = gpt2(tmp_path / "source")
    coded = {"AutoModelForCausalLM": "modeling_own.OwnModel"}
    for name in ("config.json", "tokenizer_config.json"):
        fields = json.loads((source / name).read_text())
        (source / name).write_text(json.dumps({**fields, "auto_map": coded}))
    report = resize_checkpoint(source, tmp_path / "out", n_layer=1)
    assert sum("modeling_own.OwnModel" in text for text in report.warnings) == 2
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "out" / name).read_text())
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("word3")["input_ids"] == [3]
    assert transformers_bot.verify(tmp_path / "out", source=source).equal
    model = BoTModelForCausalLM.from_pretrained(source, n_layer=1)
    assert not hasattr(model.config, "auto_map")
    assert any("auto_map in the config" in text for text in model.transfer_report.warnings)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_language_model_that_sees_what_comes_next_is_told(tmp_path, family):
    head = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM"}[family]
    source = save(build(family, head).model, tmp_path / "source")
    said = "pass is_decoder=True"
    model = BoTModelForCausalLM.from_pretrained(source, num_hidden_layers=1)
    assert any(said in text for text in model.transfer_report.warnings)
    config = AutoConfig.from_pretrained(source)
    assert any(said in text for text in BoTModelForCausalLM.plan(config, num_hidden_layers=1).warnings)
    assert not any(said in text for text in plan(config, num_hidden_layers=1).warnings)
    decoder = BoTModelForCausalLM.plan(config, num_hidden_layers=1, is_decoder=True)
    assert not any(said in text for text in decoder.warnings)
