"""sentence-transformers folders: every module comes along at the new width, or is refused by name."""

import json
import logging
import os
import shutil
from pathlib import Path

import hub_calls
import pytest
import torch
import yaml
from families import LARGER, SMALLER, build, resized_config, save
from hub_server import serving
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from transformers_bot import (
    BadCheckpoint,
    BadWeights,
    BoTModel,
    SaveError,
    UnsafeCheckpoint,
    UnsupportedCheckpoint,
    resize_checkpoint,
    verify,
)
from transformers_bot.cli import main
from transformers_bot.methods import METHODS

OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules."
TANH = "torch.nn.modules.activation.Tanh"
GROWN = {"hidden_size": 24, "num_attention_heads": 6, "intermediate_size": 40}


def pooling(width: int = 12, *modes: str, spelling: str = "embedding_dimension") -> dict:
    return {spelling: width, "pooling_mode": list(modes) or "mean"}


def dense(inner: int, outer: int, **fields: object) -> dict:
    made = {"linear.weight": torch.randn(outer, inner), "linear.bias": torch.randn(outer)}
    return {"in_features": inner, "out_features": outer, "activation_function": TANH, **fields, "weights": made}


def write_folder(folder: Path, *modules: tuple[str, dict], prefix: str = OLD, place: str = "") -> Path:
    """A BERT with modules behind it, as the library saves it; a module's `weights` go to their own file."""
    torch.manual_seed(3)
    model = folder / place
    save(build("bert", "BertModel").model, model)
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 10, "do_lower_case": false}')
    settings = {"prompts": {"query": "q: "}, "similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    listed = [{"idx": 0, "name": "0", "path": place, "type": f"{prefix}Transformer"}]
    for number, (kind, fields) in enumerate(modules, start=1):
        inner = folder / f"{number}_{kind}"
        inner.mkdir()
        weights, name = fields.pop("weights", None), "cnn_config.json" if kind == "CNN" else "config.json"
        (inner / name).write_text(json.dumps(fields))
        if weights:
            save_file(weights, inner / "model.safetensors")
        listed.append({"idx": number, "name": str(number), "path": inner.name, "type": f"{prefix}{kind}"})
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def fields(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [OLD, NEW])
@pytest.mark.parametrize("spelling", ["word_embedding_dimension", "embedding_dimension"])
def test_modules_come_along_at_the_new_width(tmp_path, spelling, prefix):
    source = write_folder(
        tmp_path / "source", ("Pooling", pooling(spelling=spelling)), ("Normalize", {}), prefix=prefix
    )
    report = resize_checkpoint(source, tmp_path / "out", **GROWN)
    assert fields(tmp_path / "out/1_Pooling/config.json") == {spelling: 24, "pooling_mode": "mean"}
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "out/2_Normalize/config.json").is_file()
    assert not report.warnings
    assert verify(tmp_path / "out", source=source).equal


@pytest.mark.slow
def test_the_longest_text_follows_the_positions(tmp_path):
    source = write_folder(tmp_path / "source", ("Pooling", pooling()))
    report = resize_checkpoint(source, tmp_path / "out", max_position_embeddings=7)
    assert fields(tmp_path / "out/sentence_bert_config.json")["max_seq_length"] == 7
    assert any("max_seq_length 10 became 7" in text for text in report.warnings)
    (source / "sentence_bert_config.json").write_text("{}")  # then the tokenizer decides, which is not written anew
    resize_checkpoint(source, tmp_path / "two", max_position_embeddings=7)
    assert fields(tmp_path / "two/sentence_bert_config.json")["max_seq_length"] == 7


# -- readers --------------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_dense_module_is_resized_as_any_reader_of_the_stream(tmp_path, method):
    """Against a head of the model itself, which reads the same stream: same weights, same result."""
    options = {"bot_config": {"detail": "zero"}} if method == "bot" else {}
    built = build("bert", "BertForTokenClassification")
    weights = {"linear.weight": built.model.classifier.weight.detach().clone(), "linear.bias": torch.zeros(5)}
    labels = len(weights["linear.weight"])
    module = {**dense(12, labels), "weights": {**weights, "linear.bias": torch.zeros(labels)}}
    source = write_folder(tmp_path / "source", ("Pooling", pooling()), ("Dense", module))
    save(built.model, source)
    sizes = SMALLER if method in ("importance", "weight_selection") else LARGER
    wanted = resized_config(built.config, **{**sizes, "layer": 2})
    if method == "scratch":
        with pytest.raises(UnsupportedCheckpoint, match=r"Dense in 2_Dense .* drawn anew"):
            resize_checkpoint(source, tmp_path / "out", wanted, method=method)
        return
    try:
        resize_checkpoint(source, tmp_path / "out", wanted, method=method, **options)
    except Exception as error:
        if type(error).__name__ == "BadOption":
            pytest.skip(f"{method} does not do this: {error}")
        raise
    made = load_file(tmp_path / "out/2_Dense/model.safetensors")
    head = load_file(tmp_path / "out/model.safetensors")["classifier.weight"]
    if method == "weight_selection":  # which draws heads of tasks anew
        head = weights["linear.weight"][:, torch.isin(weights["linear.weight"], made["linear.weight"]).any(0)]
    if method == "lemon":  # its noise is drawn by a tensor's name, and silent
        halves = [x[:, :12] + x[:, 12:] for x in (made["linear.weight"], head)]
        assert torch.allclose(*halves, atol=1e-6)
        return
    assert torch.equal(made["linear.weight"], head)
    assert fields(tmp_path / "out/2_Dense/config.json")["in_features"] == wanted.hidden_size


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("sizes", "calibrated"), [(SMALLER, False), (SMALLER, True), (LARGER, False)])
def test_the_order_and_the_picks_of_units_reach_the_modules(tmp_path, sizes, calibrated):
    """A stream whose units are put in another order, merged or picked is read so by the modules, too."""
    built = build("bert", "BertForTokenClassification")
    weight = built.model.classifier.weight.detach().clone()
    module = {**dense(12, len(weight)), "weights": {"linear.weight": weight, "linear.bias": torch.zeros(len(weight))}}
    source = write_folder(tmp_path / "source", ("Pooling", pooling()), ("Dense", module))
    save(built.model, source)
    batches = [{"input_ids": torch.randint(0, 23, (4, 8))}] if calibrated else None
    resize_checkpoint(
        source,
        tmp_path / "out",
        resized_config(built.config, **sizes),
        calibration=batches,
        bot_config={"detail": "zero"},
    )
    made = load_file(tmp_path / "out/2_Dense/model.safetensors")["linear.weight"]
    head = load_file(tmp_path / "out/model.safetensors")["classifier.weight"]
    if not calibrated:
        assert torch.equal(made, head)
    else:  # the head is fitted besides to what is left of its input: both read the same picked units
        kept = [column for column in weight.T if any(torch.equal(column, one) for one in made.T)]
        assert len(kept) == made.shape[1]


def test_widths_side_by_side_are_read_each(tmp_path):
    module = dense(24, 5)
    weight = module["weights"]["linear.weight"].clone()
    source = write_folder(tmp_path / "source", ("Pooling", pooling(12, "cls", "mean")), ("Dense", module))
    resize_checkpoint(source, tmp_path / "out", bot_config={"detail": "zero"}, **GROWN)
    made = load_file(tmp_path / "out/2_Dense/model.safetensors")["linear.weight"]
    assert torch.allclose(made, weight.repeat_interleave(2, dim=1) / 2)


def test_what_follows_a_dense_module_is_of_its_width(tmp_path):
    norm = {"dimension": 5, "weights": {"norm.weight": torch.rand(5), "norm.bias": torch.rand(5)}}
    parts = ("Pooling", pooling()), ("Dense", dense(12, 5)), ("LayerNorm", norm)
    source = write_folder(tmp_path / "source", *parts)
    resize_checkpoint(source, tmp_path / "out", **GROWN)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "out/3_LayerNorm" / name).read_bytes() == (source / "3_LayerNorm" / name).read_bytes()


@pytest.mark.slow
def test_weights_keep_their_dtype_and_their_numbers_are_looked_at(tmp_path):
    module = dense(12, 5)
    module["weights"] = {name: x.to(torch.bfloat16) for name, x in module["weights"].items()}
    source = write_folder(tmp_path / "source", ("Pooling", pooling()), ("Dense", module))
    resize_checkpoint(source, tmp_path / "out", **GROWN)
    made = load_file(tmp_path / "out/2_Dense/model.safetensors")
    assert {x.dtype for x in made.values()} == {torch.bfloat16}
    broken = load_file(source / "2_Dense/model.safetensors")
    broken["linear.weight"][0, 0] = torch.nan
    save_file(broken, source / "2_Dense/model.safetensors")
    with pytest.raises(BadWeights, match=r"linear.weight of Dense in 2_Dense .* NaN"):
        resize_checkpoint(source, tmp_path / "two", **GROWN)
    assert not (tmp_path / "two").exists()
    resize_checkpoint(source, tmp_path / "two", nonfinite="zero", **GROWN)
    assert load_file(tmp_path / "two/2_Dense/model.safetensors")["linear.weight"].isfinite().all()


@pytest.mark.slow
def test_pickled_weights_need_consent_and_become_safetensors(tmp_path):
    module = dense(12, 5)
    weights = module["weights"]
    source = write_folder(tmp_path / "source", ("Pooling", pooling()), ("Dense", module))
    (source / "2_Dense/model.safetensors").unlink()
    torch.save(weights, source / "2_Dense/pytorch_model.bin")
    with pytest.raises(UnsafeCheckpoint, match=r"2_Dense are pickled.*allow_pickle=True.*modules=False"):
        resize_checkpoint(source, tmp_path / "out", num_hidden_layers=1)
    resize_checkpoint(source, tmp_path / "out", num_hidden_layers=1, allow_pickle=True)
    made = load_file(tmp_path / "out/2_Dense/model.safetensors")
    assert all(torch.equal(x, weights[name]) for name, x in made.items())
    assert not list((tmp_path / "out").rglob("*.bin"))
    assert verify(tmp_path / "out", source=source, allow_pickle=True).equal


# -- what is refused ------------------------------------------------------------------------------


def with_list(change):
    def edit(folder: Path) -> None:
        listed = fields(folder / "modules.json")
        (folder / "modules.json").write_text(json.dumps(change(listed)))

    return edit


def with_fields(name: str, **changed: object):
    return lambda folder: (folder / name).write_text(json.dumps({**fields(folder / name), **changed}))


def entry(number: int, **changed: object):
    return with_list(lambda listed: [{**one, **changed} if i == number else one for i, one in enumerate(listed)])


def linked(folder: Path) -> None:
    shutil.move(folder / "1_Pooling", folder.parent / "elsewhere")
    (folder / "1_Pooling").symlink_to(folder.parent / "elsewhere")


def large(folder: Path) -> None:
    with open(folder / "1_Pooling/config.json", "wb") as file:
        file.truncate(5 * 2**20)


def piped(folder: Path) -> None:
    (folder / "1_Pooling/config.json").unlink()
    os.mkfifo(folder / "1_Pooling/config.json")


REFUSED = {
    "up": (entry(1, path="../elsewhere"), UnsafeCheckpoint, "modules lie in folders"),
    "absolute": (entry(1, path="/etc"), UnsafeCheckpoint, "modules lie in folders"),
    "below": (entry(1, path="1_Pooling/../../x"), UnsafeCheckpoint, "modules lie in folders"),
    "NUL": (entry(1, path="1_Poo\0ling"), UnsafeCheckpoint, "modules lie in folders"),
    "a file of ours": (entry(1, path="config.json"), UnsafeCheckpoint, "modules lie in folders"),
    "a link": (linked, UnsafeCheckpoint, "outside of the model folder"),
    "a pipe": (piped, BadCheckpoint, "named pipe"),
    "twice": (entry(1, path="2_Dense"), BadCheckpoint, "two modules in the same folder"),
    "no text": (entry(1, path=3), BadCheckpoint, "no module"),
    "no list": (with_list(lambda _: {}), BadCheckpoint, "no list"),
    "many": (with_list(lambda listed: listed * 20), BadCheckpoint, "no list of 1 to"),
    "somebody's": (
        entry(1, type="custom_st.Pooling"),
        UnsupportedCheckpoint,
        "type 'custom_st.Pooling'.*modules=False",
    ),
    "unknown": (entry(1, type=OLD + "Router"), UnsupportedCheckpoint, "models.Router.*known are .*modules=False"),
    "no transformer": (with_list(lambda listed: listed[1:]), UnsupportedCheckpoint, "begins with a Pooling"),
    "elsewhere": (entry(0, path="0_Transformer"), UnsupportedCheckpoint, "pass subfolder='0_Transformer'"),
    "no settings": (
        lambda folder: (folder / "1_Pooling/config.json").unlink(),
        BadCheckpoint,
        "lacks 1_Pooling/config",
    ),
    "no weights": (
        lambda folder: (folder / "2_Dense/model.safetensors").unlink(),
        BadCheckpoint,
        "lacks 2_Dense/model",
    ),
    "too large": (large, BadCheckpoint, "is the most"),
    "another width": (with_fields("1_Pooling/config.json", embedding_dimension=13), BadCheckpoint, "is 13, but .* 12"),
    "no width": (with_fields("1_Pooling/config.json", embedding_dimension="12"), BadCheckpoint, "'12', not a length"),
    "another input": (with_fields("2_Dense/config.json", in_features=13), BadCheckpoint, "in_features .* is 13"),
    "other weights": (
        with_fields("2_Dense/config.json", out_features=6),
        BadCheckpoint,
        "do not belong to its settings",
    ),
    "added to itself": (with_fields("2_Dense/config.json", use_residual=True), BadCheckpoint, "residual.weight"),
    "from nowhere": (with_fields("2_Dense/config.json", module_input_name="x"), BadCheckpoint, "reads 'x'"),
    "its own sizes": (
        with_fields("sentence_bert_config.json", config_args={"hidden_size": 12}),
        UnsupportedCheckpoint,
        "sets 'hidden_size' to 12",
    ),
    "code": (
        with_fields("sentence_bert_config.json", model_args={"attn_implementation": "who/kernel"}),
        UnsupportedCheckpoint,
        "attn_implementation",
    ),
    "no length": (with_fields("sentence_bert_config.json", max_seq_length="10"), BadCheckpoint, "max_seq_length"),
}


@pytest.mark.covering(few=2)
@pytest.mark.parametrize(("edit", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_carried_is_refused_by_name(tmp_path, edit, error, said):
    source = write_folder(tmp_path / "source", ("Pooling", pooling()), ("Dense", dense(12, 5)))
    edit(source)
    with pytest.raises(error, match=said):
        resize_checkpoint(source, tmp_path / "out", **GROWN)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_modules_can_be_left_out(tmp_path):
    source = write_folder(tmp_path / "source", ("Router", {}))
    resize_checkpoint(source, tmp_path / "out", modules=False, **GROWN)
    assert not (tmp_path / "out/modules.json").exists()
    assert verify(tmp_path / "out", source=source).equal


def test_a_module_that_adds_its_input_cannot_change_its_width(tmp_path):
    source = write_folder(tmp_path / "source", ("Pooling", pooling()), ("Dense", dense(12, 12, use_residual=True)))
    with pytest.raises(UnsupportedCheckpoint, match=r"Dense in 2_Dense .* from width 12 to 24: it adds its input"):
        resize_checkpoint(source, tmp_path / "out", **GROWN)
    resize_checkpoint(source, tmp_path / "out", num_hidden_layers=1)  # at the same width there is nothing to it


@pytest.mark.slow
def test_weights_of_layers_are_refused_where_layers_change(tmp_path):
    module = {
        "embedding_dimension": 12,
        "layer_start": 1,
        "num_hidden_layers": 2,
        "weights": {"layer_weights": torch.ones(2)},
    }
    source = write_folder(tmp_path / "source", ("WeightedLayerPooling", module), ("Pooling", pooling()))
    with pytest.raises(UnsupportedCheckpoint, match="a weight for every layer"):
        resize_checkpoint(source, tmp_path / "out", num_hidden_layers=1)
    resize_checkpoint(source, tmp_path / "out", **GROWN)
    assert fields(tmp_path / "out/1_WeightedLayerPooling/config.json")["embedding_dimension"] == 24


# -- around it ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_in_a_folder_of_its_own_is_named_and_carried(tmp_path):
    source = write_folder(tmp_path / "source", ("Pooling", pooling()), place="0_Transformer")
    with pytest.raises(BadCheckpoint, match=r"pass subfolder='0_Transformer'"):
        resize_checkpoint(source, tmp_path / "out", **GROWN)
    resize_checkpoint(source, tmp_path / "out", subfolder="0_Transformer", **GROWN)
    assert [one["path"] for one in fields(tmp_path / "out/modules.json")] == ["", "1_Pooling"]
    assert fields(tmp_path / "out/1_Pooling/config.json")["embedding_dimension"] == 24
    assert fields(tmp_path / "out/sentence_bert_config.json")["max_seq_length"] == 10
    assert verify(tmp_path / "out", source=source).equal


@pytest.mark.parametrize("kind", ["Router", "StaticEmbedding"])
@pytest.mark.parametrize("place", ["", "0_First"])
def test_a_folder_that_begins_with_no_transformer_says_so(tmp_path, kind, place):
    (tmp_path / "source").mkdir()
    listed = [{"idx": 0, "name": "0", "path": place, "type": f"sentence_transformers.base.modules.router.{kind}"}]
    (tmp_path / "source/modules.json").write_text(json.dumps(listed))
    said = f"first module in its modules.json is a {kind}, not a transformer.* pass subfolder="
    with pytest.raises(UnsupportedCheckpoint, match=said):
        resize_checkpoint(tmp_path / "source", tmp_path / "out", **GROWN)
    with pytest.raises(UnsupportedCheckpoint, match=said):
        BoTModel.from_pretrained(tmp_path / "source", **GROWN)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_verify_compares_modules(tmp_path):
    source = write_folder(tmp_path / "source", ("Pooling", pooling()), ("Dense", dense(12, 5)))
    resize_checkpoint(source, tmp_path / "out", **GROWN)
    assert verify(tmp_path / "out", source=source).equal
    weights = load_file(tmp_path / "out/2_Dense/model.safetensors")
    weights["linear.bias"][0] += 1
    save_file(weights, tmp_path / "out/2_Dense/model.safetensors")
    with_fields("1_Pooling/config.json", pooling_mode="cls")(tmp_path / "out")
    (tmp_path / "out/sentence_bert_config.json").unlink()
    found = "\n".join(verify(tmp_path / "out", source=source).differing)
    assert "1_Pooling/config.json: not as" in found
    assert "2_Dense/model.safetensors: not as" in found
    assert "sentence_bert_config.json: not in the result" in found
    shutil.rmtree(tmp_path / "out/1_Pooling")
    (tmp_path / "out/modules.json").unlink()
    assert "modules.json: not in the result" in "\n".join(verify(tmp_path / "out", source=source).differing)


@pytest.mark.slow
def test_such_a_folder_is_replaced_as_a_whole_and_no_other(tmp_path):
    source = write_folder(tmp_path / "source", ("Pooling", pooling()))
    resize_checkpoint(source, tmp_path / "out", **GROWN)
    resize_checkpoint(source, tmp_path / "out", num_hidden_layers=1, overwrite=True)
    assert fields(tmp_path / "out/1_Pooling/config.json")["embedding_dimension"] == 12
    (tmp_path / "out/1_Pooling/notes.txt").write_text("mine")
    with pytest.raises(SaveError):
        resize_checkpoint(source, tmp_path / "out", overwrite=True, **GROWN)
    assert (tmp_path / "out/1_Pooling/notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tag", "pipeline"),
    [
        ("SentenceTransformer", "sentence-similarity", "sentence-similarity"),
        ("SparseEncoder", "sparse-encoder", "feature-extraction"),
        ("CrossEncoder", "reranker", "text-classification"),
        ("MultiVectorEncoder", "multi-vector", "feature-extraction"),
        ("os.system", "sentence-similarity", "sentence-similarity"),
    ],
)
def test_the_card_says_what_the_folder_is(tmp_path, capsys, kind, tag, pipeline):
    source = write_folder(tmp_path / "source", ("Pooling", pooling()))
    with_fields("config_sentence_transformers.json", model_type=kind)(source)
    assert main(["resize", str(source), str(tmp_path / "out"), "--set", "num_hidden_layers=1"]) == 0
    card = (tmp_path / "out/README.md").read_text()
    data = yaml.safe_load(card.split("---")[1])
    assert data["library_name"] == "sentence-transformers"
    assert {"sentence-transformers", tag} <= set(data["tags"])
    assert data["pipeline_tag"] == pipeline
    shown = kind if "." not in kind else "SentenceTransformer"
    snippet = f"from sentence_transformers import {shown}"
    assert snippet in card
    assert snippet in capsys.readouterr().out
    assert main(["resize", str(source), str(tmp_path / "two"), "--no-modules", "--set", "num_hidden_layers=1"]) == 0
    assert "sentence" not in (tmp_path / "two/README.md").read_text()


@pytest.mark.slow
def test_what_a_model_in_memory_cannot_carry_is_said_once(tmp_path, caplog):
    source = write_folder(tmp_path / "source", ("Pooling", pooling()))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        for _ in range(2):
            BoTModel.from_pretrained(source, num_hidden_layers=1)
        plain = save(build("bert", "BertModel").model, tmp_path / "plain")
        BoTModel.from_pretrained(plain, num_hidden_layers=1)
    finally:
        logger.removeHandler(caplog.handler)
    (said,) = [record.getMessage() for record in caplog.records if "resize_checkpoint" in record.getMessage()]
    assert str(source) in said
    assert "modules.json" in said


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
def test_modules_of_a_repository_come_along(tmp_path, nested):
    place = "0_Transformer" if nested else ""
    source = write_folder(tmp_path / "source", ("Pooling", pooling()), ("Dense", dense(12, 5)), place=place)
    content = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with serving() as hub:
        hub.add("org/sentences", content)
        with hub_calls.client(hub.url, tmp_path / "home") as call:
            inside = {"subfolder": place} if place else {}
            call(resize_checkpoint, "org/sentences", str(tmp_path / "far"), **inside, **GROWN)
            assert call(verify, str(tmp_path / "far")).equal
    resize_checkpoint(source, tmp_path / "near", **inside, **GROWN)
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"):
        assert (tmp_path / "far" / name).read_bytes() == (tmp_path / "near" / name).read_bytes()


# -- the library itself ---------------------------------------------------------------------------

TEXTS = ("a b c", "d e f g a", "b b b", "c", "g f e d")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg")


def stacks(modules):
    return {
        "cls": [modules.Pooling(32, "cls"), modules.Normalize()],
        "mean": [modules.Pooling(32, "mean")],
        "both": [modules.Pooling(32, ("cls", "mean")), modules.Dense(64, 16)],
        "dense": [modules.Pooling(32, "max"), modules.Dense(32, 16, bias=False), modules.Normalize()],
        "residual": [modules.Pooling(32, "mean"), modules.Dense(32, 16, use_residual=True)],
        "norm": [modules.Pooling(32, "mean"), modules.LayerNorm(32), modules.Dense(32, 8)],
        "convolution": [modules.CNN(32, 8, [1, 3]), modules.Pooling(16, "mean")],
        "tokens": [modules.Dense(32, 16, module_input_name="token_embeddings"), modules.Pooling(16, "mean")],
        "layers": [modules.WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1), modules.Pooling(32, "mean")],
    }


NAMES = ("cls", "mean", "both", "dense", "residual", "norm", "convolution", "tokens", "layers")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_the_library_finds_the_same_similarities_in_a_grown_model(tmp_path, name):
    library = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.models")
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(**sizes, vocab_size=len(WORDS), max_position_embeddings=24))
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base/vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "base/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    modules = stacks(models)[name]
    for parameter in (p for module in modules for p in module.parameters()):
        torch.nn.init.uniform_(parameter, 0.1, 0.9)
    before = library.SentenceTransformer(
        modules=[models.Transformer(str(tmp_path / "base"), max_seq_length=6), *modules],
        prompts={"query": "a "},
        similarity_fn_name="dot" if name == "cls" else "cosine",
        device="cpu",
    )
    before.save(str(tmp_path / "source"))
    resize_checkpoint(
        tmp_path / "source", tmp_path / "out", hidden_size=64, num_attention_heads=8, intermediate_size=128
    )
    after = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    old, new = (one.encode(TEXTS, convert_to_tensor=True) for one in (before, after))
    assert torch.allclose(before.similarity(old, old), after.similarity(new, new), atol=1e-5)
    assert old.shape != new.shape or torch.allclose(old, new, atol=1e-5)
    assert after.max_seq_length == before.max_seq_length == 6
    assert after.prompts["query"] == "a "
    assert after.similarity_fn_name == before.similarity_fn_name
    assert [type(module) for module in after] == [type(module) for module in before]
