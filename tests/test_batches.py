"""Texts, images and sounds as batches; calibrating and fitting with files, from Python and on the command line."""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import visions
from families import build, save
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast, ViTImageProcessor

import transformers_bot
from transformers_bot import BadCheckpoint, BadOption, Report, read_batches, resize_checkpoint
from transformers_bot.errors import BadKeyword
from transformers_bot.learned.sounds import read_sound
from transformers_bot.learned.targets import hidden_at_random

pytest_plugins = ["cli_window"]  # call

WORDS = 18
TEXT = "\n\n".join(" ".join(f"w{(3 * i + j) % WORDS}" for j in range(3 + i % 5)) for i in range(40))
SETS = ("--set", "n_layer=4", "--set", "n_embd=24", "--set", "n_head=6")


def with_tokenizer(folder, framed=False):
    """A tokenizer of words; `framed` puts [CLS] and [SEP] around a text."""
    words = {f"w{i}": i for i in range(WORDS)} | {"[UNK]": 18, "[CLS]": 19, "[SEP]": 20, "[PAD]": 21, "[MASK]": 22}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if framed:
        inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 19), ("[SEP]", 20)])
    special = {"pad_token": "[PAD]", "mask_token": "[MASK]"} if framed else {}
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    save(build("gpt2", "GPT2LMHeadModel").model, folder)
    with_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save(build("bert", "BertForMaskedLM").model, folder)
    with_tokenizer(folder, framed=True)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    built = build("vit", "ViTForImageClassification")
    built.model.config.id2label = {0: "cat", 1: "dog", 2: "eel", 3: "fox"}
    built.model.config.label2id = {"cat": 0, "dog": 1, "eel": 2, "fox": 3}
    save(built.model, folder)
    size = built.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    ViTImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def pictures(tmp_path):
    for number, name in enumerate(("cat", "dog", "eel", "cat")):
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (9, 13, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


# -- texts --------------------------------------------------------------------------------------------


def test_every_paragraph_is_a_sequence_of_its_own_tokens(gpt2, text):
    batches = read_batches(gpt2, text, batch_size=7)
    said = [
        " ".join(f"w{i}" for i, counts in zip(ids.tolist(), mask.tolist(), strict=True) if counts)
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(said) == sorted(TEXT.split("\n\n"))
    assert [len(batch["input_ids"]) for batch in batches] == [7] * 5 + [5]
    again = read_batches(gpt2, [text], batch_size=7)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(batches, again, strict=True) for k in a)


def test_lines_and_json_lines_are_texts_too(gpt2, tmp_path):
    (tmp_path / "lines.txt").write_text("w1 w2\nw3\n\n", encoding="utf-8-sig")
    (tmp_path / "lines.jsonl").write_text('{"text": "w1 w2"}\n\n{"text": "w3", "other": 1}\n')
    both = [read_batches(gpt2, tmp_path / name)[0]["input_ids"] for name in ("lines.txt", "lines.jsonl")]
    assert torch.equal(*both)
    assert both[0].shape == (2, 2)
    assert sum(len(batch["input_ids"]) for batch in read_batches(gpt2, tmp_path)) == 4  # both files of the folder


def test_a_long_text_is_cut_at_the_models_positions_with_its_special_tokens(bert, tmp_path):
    (tmp_path / "long.txt").write_text(" ".join(f"w{i % WORDS}" for i in range(50)))
    positions = 12
    batch = read_batches(bert, tmp_path / "long.txt")[0]
    assert batch["input_ids"].shape[1] == positions
    assert batch["input_ids"][:, 0].tolist() == [19] * len(batch["input_ids"])
    inner = [i for row in batch["input_ids"].tolist() for i in row if i < WORDS]
    assert inner == [i % WORDS for i in range(50)]
    assert int(batch["attention_mask"].sum()) == 50 + 2 * len(batch["input_ids"])


def test_tokens_say_how_much_is_read(gpt2, text):
    counts = [sum(int(b["attention_mask"].sum()) for b in read_batches(gpt2, text, tokens=n)) for n in (1, 20, 10**6)]
    assert counts[0] <= 7
    assert 20 <= counts[1] < 27
    assert counts[2] == len(TEXT.split())


def test_labels_are_the_next_or_the_hidden_tokens(gpt2, bert, text):
    batch = read_batches(gpt2, text, labels=True)[0]
    assert torch.equal(batch["labels"] == -100, batch["attention_mask"] == 0)
    batch = read_batches(bert, text, labels=True)[0]
    plain = read_batches(bert, text)[0]["input_ids"]
    asked = batch["labels"] != -100
    assert asked.any(1).all()
    assert torch.equal(batch["labels"][asked], plain[asked])
    assert torch.equal(batch["input_ids"][~asked], plain[~asked])
    assert not (asked & ((plain == 19) | (plain == 20) | (plain == 21))).any()


def test_tokens_are_hidden_in_the_shares_of_bert():
    ids, special = torch.full((100, 500), 5), torch.zeros(100, 500, dtype=torch.bool)
    made = hidden_at_random(ids, special, 9, 1000, seed=1)
    asked = made["labels"] == 5
    shares = [float((made["input_ids"][asked] == value).float().mean()) for value in (9, 5)]
    assert float(asked.float().mean()) == pytest.approx(0.15, abs=0.01)
    assert shares == pytest.approx([0.8, 0.1], abs=0.02)


@pytest.mark.slow
def test_texts_and_images_for_pairs_are_read_by_their_towers(tmp_path, text, pictures):
    folder = Path(save(visions.build("clip"), tmp_path / "pair"))
    with_tokenizer(folder)
    batch = read_batches(str(folder), text)[0]
    assert int(batch["input_ids"].max()) < 37
    folder = Path(save(visions.build("clip classifier"), tmp_path / "classifier"))
    ViTImageProcessor(size={"height": 20, "width": 20}).save_pretrained(folder)
    assert read_batches(str(folder), pictures, images=2)[0]["pixel_values"].shape == (2, 3, 12, 12)


# -- images -------------------------------------------------------------------------------------------


def test_images_are_prepared_by_the_sources_own_processor(vit, pictures):
    batches = read_batches(vit, pictures, batch_size=3, labels=True)
    assert [len(batch["labels"]) for batch in batches] == [3, 1]
    assert sorted(n for batch in batches for n in batch["labels"].tolist()) == [0, 0, 1, 2]
    files = sorted(pictures.rglob("*.png"))
    whole = ViTImageProcessor.from_pretrained(vit)(images=[Image.open(p) for p in files], return_tensors="pt")
    rows = {tuple(x.flatten().tolist()[:9]) for batch in batches for x in batch["pixel_values"]}
    assert rows == {tuple(x.flatten().tolist()[:9]) for x in whole["pixel_values"]}
    assert len(read_batches(vit, pictures, images=2)[0]["pixel_values"]) == 2


# -- what cannot be read ------------------------------------------------------------------------------


def no_tokenizer(tmp_path, **_):
    source = save(build("gpt2", "GPT2LMHeadModel").model, tmp_path / "bare")
    (tmp_path / "a.txt").write_text("w1")
    return source, tmp_path / "a.txt"


def written(name, content):
    def make(tmp_path, gpt2, **_):
        (tmp_path / name).write_bytes(content)
        return gpt2, tmp_path / name

    return make


CANNOT = {
    "no tokenizer": (no_tokenizer, BadCheckpoint, r"bare has no tokenizer \(tokenizer.json, "),
    "no file": (lambda gpt2, **_: (gpt2, "nowhere.txt"), BadOption, "there is no file or folder 'nowhere.txt'"),
    "an image for texts": (written("a.png", b"0"), BadOption, "a.png is no file of texts, which this model takes"),
    "texts for images": (lambda vit, text, **_: (vit, text), BadOption, "corpus.txt is no file of images"),
    "empty": (written("a.txt", b"\n \n"), BadOption, "there is no text in it"),
    "another encoding": (written("a.txt", "é".encode("latin-1")), BadOption, "cannot be read as text in UTF-8"),
    "no JSON": (
        written("a.jsonl", b'{"text": "w1"}\nw2\n'),
        BadOption,
        "line 2, must be .*it is no JSON object",
    ),
    "no text": (written("a.jsonl", b'{"content": "w1"}\n'), BadOption, 'with a field "text" of text; it has content'),
    "deep": (written("a.jsonl", b"[" * 9000), BadOption, "line 1, must be a JSON object"),
    "empty folder": (lambda gpt2, tmp_path, **_: (gpt2, tmp_path), BadOption, "holds no texts: files that end in .txt"),
}


@pytest.mark.parametrize(("make", "error", "message"), CANNOT.values(), ids=CANNOT)
def test_what_cannot_be_read_is_named(request, tmp_path, gpt2, vit, make, error, message):
    extra = {"text": request.getfixturevalue("text")} if "for images" in request.node.name else {}
    source, data = make(tmp_path=tmp_path, gpt2=gpt2, vit=vit, **extra)
    with pytest.raises(error, match=message):
        read_batches(source, data)


def test_labels_that_are_missing_are_named(vit, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    with pytest.raises(BadOption, match=r"none of the model's 4 labels \(cat, dog, eel, fox\)"):
        read_batches(vit, tmp_path / "1.png", labels=True)


def test_a_head_that_texts_alone_do_not_train_is_named(bert, text):
    with pytest.raises(BadOption, match="BertForQuestionAnswering cannot be trained on texts"):
        read_batches(bert, text, labels=True, task="question-answering")


# -- calibrating --------------------------------------------------------------------------------------


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_calibrating_with_a_file_is_calibrating_with_its_batches(gpt2, text, tmp_path, call):
    small = {"n_embd": 6, "n_head": 3}
    resize_checkpoint(gpt2, tmp_path / "api", small, calibration=read_batches(gpt2, text, tokens=100))
    sets = ("--set", "n_embd=6", "--set", "n_head=3")
    code, _, err = call(
        *("resize", gpt2, tmp_path / "cli", *sets, "--calibration", text, "--calibration-tokens", "100")
    )
    assert code == 0, err
    api, cli = weights(tmp_path / "api"), weights(tmp_path / "cli")
    assert all(torch.equal(api[name], cli[name]) for name in api)
    resize_checkpoint(gpt2, tmp_path / "plain", small)
    assert any(not torch.equal(x, cli[name]) for name, x in weights(tmp_path / "plain").items())
    assert Report.load(tmp_path / "cli").provenance["calibrated"]
    assert call("plan", gpt2, *sets, "--order", "kept", "--depth", "strongest", "--calibration", text)[0] == 0


@pytest.mark.slow
def test_calibrating_with_images(vit, pictures, tmp_path, call):
    out = tmp_path / "out"
    code, _, err = call("resize", vit, out, "--set", "hidden_size=6", "--set", "intermediate_size=10",
                        "--calibration", *sorted(pictures.rglob("*.png")))  # fmt: skip
    assert code == 0, err
    AutoModel.from_pretrained(out)
    assert Report.load(out).provenance["calibrated"]


@pytest.mark.slow
def test_a_recipe_names_data_too(gpt2, text, tmp_path, call):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"source: {gpt2}\nout: {tmp_path / 'out'}\nconfig: {{n_embd: 6, n_head: 3}}\n"
        f"calibration: [{text}]\ncalibration_tokens: 50\n"
    )
    assert call("resize", "--recipe", recipe)[0] == 0
    recipe.write_text(
        f"source: {gpt2}\nout: {tmp_path / 'big'}\nconfig: {{n_layer: 3}}\nmethod: ligo\nfit: {{batches: {text}}}\n"
    )
    assert call("resize", "--recipe", recipe, "--fit-steps", 2)[0] == 0
    assert Report.load(tmp_path / "big").provenance["fit"]["steps"] == 2


CLI_MISTAKES = {
    "no such file": (("--calibration", "no.txt"), 2, "there is no file or folder 'no.txt'"),
    "amount alone": (("--calibration-tokens", "9"), 2, "give --calibration FILE"),
    "no amount": (("--calibration", "TEXT", "--calibration-tokens", "0"), 2, "tokens must be a whole number of at"),
    "unfitted": (("--method", "ligo"), 2, "method ligo learns from data .*give texts or images with --fit-data FILE"),
    "unfitted mango": (("--method", "mango"), 2, "--fit-data FILE"),
    "fit of another": (("--fit-data", "TEXT"), 2, r"--fit-data is for the methods that learn \(ligo, mango\)"),
    "no steps": (
        ("--method", "ligo", "--fit-data", "TEXT", "--fit-steps", "0"),
        2,
        "--fit-steps 0 is no number of steps",
    ),
    "no data": (
        ("--method", "ligo", "--fit-steps", "3"),
        2,
        "nothing to learn from: name files or folders .* with --fit-data",
    ),
    "rank of ligo": (("--method", "ligo", "--fit-data", "TEXT", "--fit-rank", "2"), 2, "LiGO has no rank"),
    "no such data": (("--method", "ligo", "--fit-data", "no.txt"), 2, "there is no file or folder 'no.txt'"),
}


@pytest.mark.parametrize(("words", "code", "message"), CLI_MISTAKES.values(), ids=CLI_MISTAKES)
def test_mistakes_with_data_are_one_sentence(gpt2, text, tmp_path, call, words, code, message):
    import re

    got, out, err = call("resize", gpt2, tmp_path / "out", *SETS, *(text if word == "TEXT" else word for word in words))
    assert (got, out) == (code, "")
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_files_that_swallow_source_and_out_are_told_of(gpt2, text, tmp_path, call):
    code, _, err = call("resize", "--calibration", text, gpt2, tmp_path / "out", *SETS)
    assert (code, "SOURCE is missing: give it before --calibration" in err) == (2, True)


# -- fitting ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ligo", "mango"])
def test_the_command_line_fits_and_says_so(gpt2, text, tmp_path, call, method):
    out = tmp_path / "out"
    words = ("--method", method, "--fit-data", text, "--fit-steps", "3", "--fit-lr", "0.01", "--set", "n_inner=40")
    code, printed, err = call("resize", gpt2, out, *SETS, *words)
    if method == "mango":  # 20 units over a width of 12 are no whole multiple
        assert (code, "--method ligo" in err) == (2, True)
        return
    assert (code, err) == (0, "")
    assert "worse than" not in printed
    report = Report.load(out)
    assert report.method["fitted"]
    assert report.provenance["fit"]["steps"] == 3
    assert report.provenance["fit"]["lr"] == 0.01
    assert not any("learned" in warning for warning in report.warnings)
    assert "`steps 3`" in (out / "README.md").read_text()
    assert "--fit-data" in (out / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(out)
    resize_checkpoint(gpt2, tmp_path / "un", {"n_layer": 4, "n_embd": 24, "n_head": 6, "n_inner": 40}, method=method)
    unfitted = weights(tmp_path / "un")
    assert any(not torch.equal(x, unfitted[name]) for name, x in weights(out).items())
    assert model.config.transformers_bot["fitted"]


@pytest.mark.slow
def test_fitting_with_files_is_fitting_with_their_batches(gpt2, text, tmp_path):
    big = {"n_layer": 4}
    batches = read_batches(gpt2, text, labels=True, tokens=10**6)
    for name, data in (("files", text), ("batches", batches)):
        resize_checkpoint(gpt2, tmp_path / name, big, method="ligo", fit={"batches": data, "steps": 2})
    model = transformers_bot.BoTModelForCausalLM.from_pretrained(gpt2, **big, method="ligo")
    transformers_bot.fit(model, batches, steps=2).save_pretrained(tmp_path / "memory")
    files, others = weights(tmp_path / "files"), [weights(tmp_path / name) for name in ("batches", "memory")]
    assert all(torch.equal(x, other[name]) for name, x in files.items() for other in others)
    report = model.transfer_report
    assert report.method["fitted"]
    assert report.tensors == Report.load(tmp_path / "files").tensors
    assert not any("learned" in warning for warning in report.warnings)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("method", ["ligo", "mango"])
def test_unfitted_is_said_loudly_and_never_called_inherited(saved, tmp_path, method):
    source, _ = saved("gpt2", "GPT2LMHeadModel", ffn=24)
    big = {"n_layer": 4, "n_embd": 24, "n_head": 6, "n_inner": 48}
    report = resize_checkpoint(source, tmp_path / "out", big, method=method)
    said = f"method {method} learns its maps, and nothing has been learned yet"
    assert any(said in warning for warning in report.warnings)
    texts = [
        str(report),
        (tmp_path / "out" / "README.md").read_text(),
        str(transformers_bot.plan(source, big, method=method)),
    ]
    for text in texts:
        assert "nothing is learned yet" in " ".join(text.split())
        assert "inherited" not in text.partition("### Recipe")[0]
        assert said.split(",")[0] in " ".join(text.replace("\\", "").split())
    assert not report.method["fitted"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Its maps have not been fitted" in card
    assert "were fitted" not in card


FIT_MISTAKES = [
    ({"data": "x"}, BadKeyword, "fit= has no option 'data'"),
    ({"steps": 3}, BadOption, "nothing to learn from: .* with batches="),
    ({"batches": [], "steps": True}, BadOption, "steps=True is no number"),
    ({"batches": [], "batch_size": 0}, BadOption, "batch_size must be"),
    ([], BadOption, "fit must be a dict"),
]


@pytest.mark.parametrize(("asked", "error", "message"), FIT_MISTAKES)
def test_a_fit_that_is_none_is_named_before_the_work(gpt2, tmp_path, asked, error, message):
    with pytest.raises(error, match=message):
        resize_checkpoint(gpt2, tmp_path / "out", n_layer=4, method="ligo", fit=asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_labels_of_json_lines_train_a_classifier(tmp_path):
    source = save(build("bert", "BertForSequenceClassification").model, tmp_path / "bert")
    with_tokenizer(tmp_path / "bert", framed=True)
    lines = [json.dumps({"text": f"w{i} w{i + 1}", "label": i % 3}) for i in range(8)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    report = resize_checkpoint(
        source, tmp_path / "out", num_hidden_layers=3, method="ligo", fit={"batches": tmp_path / "a.jsonl", "steps": 2}
    )
    assert report.method["fitted"]


# -- two stacks, and sounds ---------------------------------------------------------------------------

STACKS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
WIDTHS = {"d_model": 8, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
TOKENS = {"vocab_size": 24, "pad_token_id": 21, "bos_token_id": 19, "eos_token_id": 20, "decoder_start_token_id": 20}


def write_wav(path, rate=8_000, count=8_000, width=2):
    """A tone of 400 Hz on two channels, the second one silent."""
    tone = np.sin(2 * np.pi * 400 * np.arange(count) / rate) / 2
    samples = np.stack([tone, 0 * tone], 1) * 2 ** (8 * width - 1)
    data = (
        samples.astype("<i4").tobytes()
        if width == 4
        else b"".join(int(x).to_bytes(width, "little", signed=True) for x in samples.reshape(-1))
    )
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart")
    config = transformers.BartConfig(**WIDTHS, **STACKS, **TOKENS, max_position_embeddings=32)
    save(transformers.BartForConditionalGeneration(config), folder)
    with_tokenizer(folder, framed=True)
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    positions = {"max_source_positions": 50, "max_target_positions": 16, "num_mel_bins": 8}
    save(
        transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(**WIDTHS, **STACKS, **TOKENS, **positions)
        ),
        folder,
    )
    transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    with_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hubert")
    convolutions = {"conv_dim": (4, 4), "conv_kernel": (10, 8), "conv_stride": (8, 8), "feat_extract_norm": "group"}
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    pairs = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    save(transformers.HubertModel(transformers.HubertConfig(**sizes, **convolutions, **pairs)), folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_both_stacks_get_the_text(bart, text, tmp_path):
    batch = read_batches(bart, text)[0]
    ids, decoded = batch["input_ids"], batch["decoder_input_ids"]
    assert torch.equal(decoded[:, 0], torch.full((len(ids),), 20))
    assert torch.equal(batch["attention_mask"], batch["decoder_attention_mask"])
    read = batch["attention_mask"][:, 1:] == 1
    assert torch.equal(decoded[:, 1:][read], ids[:, :-1][read])
    labels = read_batches(bart, text, labels=True)[0]["labels"]
    assert torch.equal(labels[labels >= 0], ids[batch["attention_mask"] == 1])
    (tmp_path / "pairs.jsonl").write_text('{"text": "w1 w2", "target": "w3"}\n')
    pair = read_batches(bart, tmp_path / "pairs.jsonl")[0]
    assert pair["input_ids"].tolist() == [[19, 1, 2, 20]]
    assert pair["decoder_input_ids"].tolist() == [[20, 19, 3]]
    assert "decoder_input_ids" not in read_batches(bart, text, task="causal-lm")[0]


def test_sounds_are_prepared_by_the_extractor_of_the_source(hubert, whisper, tmp_path, caplog):
    write_wav(tmp_path / "a.wav")
    write_wav(tmp_path / "b.wav", rate=16_000)
    waves = read_batches(hubert, tmp_path)[0]["input_values"]
    assert waves.shape == (2, 16_000)
    write_wav(tmp_path / "c.wav")
    (tmp_path / "c.txt").write_text("w3 w4")
    batch = read_batches(whisper, tmp_path / "c.wav")[0]
    assert batch["input_features"].shape == (1, 8, 100)
    assert batch["decoder_input_ids"].tolist() == [[20, 3, 4]]
    assert not caplog.records
    both = read_batches(whisper, tmp_path)[0]
    assert both["decoder_attention_mask"].sum(1).sort().values.tolist() == [1, 1, 3]
    assert "2 of 3 sounds have no text" in caplog.text


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_any_size_are_the_same_sound(tmp_path, width):
    place = write_wav(tmp_path / "tone.wav", width=width) if width > 1 else tmp_path / "tone.wav"
    if width == 1:  # bytes have no sign
        tone = np.sin(2 * np.pi * 400 * np.arange(8_000) / 8_000) / 2
        with wave.open(str(place), "wb") as file:
            file.setparams((2, 1, 8_000, 0, "NONE", ""))
            file.writeframes(np.stack([128 + 128 * tone, 128 + 0 * tone], 1).astype(np.uint8).tobytes())
    for rate in (8_000, 16_000, 4_000):
        sound = read_sound(place, rate, 1)
        expected = torch.sin(2 * torch.pi * 400 * torch.arange(rate) / rate) / 4  # the mean of both channels
        torch.testing.assert_close(sound, expected, atol=0.01, rtol=0)


def test_sounds_that_cannot_be_read_are_named(hubert, tmp_path, monkeypatch):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(BadOption, match=r"broken.wav cannot be read as a .wav file of whole numbers .*ffmpeg"):
        read_batches(hubert, tmp_path)
    write_wav(tmp_path / "broken.wav", count=0)
    with pytest.raises(BadOption, match=r"broken.wav holds no sound"):
        read_batches(hubert, tmp_path)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "x.flac").write_bytes(b"fLaC")
    with pytest.raises(BadOption, match=r"x.flac: .flac files are read with soundfile, .*pip install soundfile, or"):
        read_batches(hubert, tmp_path / "x.flac")
    (tmp_path / "x.txt").write_text("w1")
    with pytest.raises(BadOption, match=r"x.txt is no file of sounds, which this model takes"):
        read_batches(hubert, tmp_path / "x.txt")


@pytest.mark.parametrize("name", ["bart", "whisper", "hubert"])
def test_calibrating_two_stacks_and_sounds_on_the_command_line(request, name, text, tmp_path, call):
    source = request.getfixturevalue(name)
    data = text if name == "bart" else write_wav(tmp_path / "a.wav")
    data.with_suffix(".txt").write_text(TEXT if name == "bart" else "w1 w2 w3")
    width = ("hidden_size", "intermediate_size") if name == "hubert" else ("d_model", "encoder_ffn_dim")
    sets = [word for field, size in zip(width, (4, 8), strict=True) for word in ("--set", f"{field}={size}")]
    code, _, err = call("resize", source, tmp_path / "out", *sets, "--calibration", data)
    assert code == 0, err
    assert Report.load(tmp_path / "out").provenance["calibrated"]
    assert all(x.isfinite().all() for x in weights(tmp_path / "out").values())
