"""Every wrong call gives one clear sentence of the right kind, and leaves nothing behind."""

import os
import re
from pathlib import Path

import pytest
import torch
import transformers
from families import build, resized_config, save, tiny_config
from transformers import AutoModelForMaskedLM, BertConfig, LlamaConfig, MambaConfig

import transformers_bot as bot
from transformers_bot import (
    BadCheckpoint,
    BadKeyword,
    BadOption,
    BadSize,
    BoTConfig,
    BoTModel,
    BoTModelForCausalLM,
    BoTModelForImageClassification,
    BoTModelForMaskedLM,
    BoTModelForSequenceClassification,
    IncompatibleModels,
    UnsupportedArchitecture,
)
from transformers_bot.architectures.inventory import auto_class_of

BERT = ("bert", "BertForMaskedLM")
GPT2 = ("gpt2", "GPT2LMHeadModel")


def load(factory=BoTModelForMaskedLM, **keywords):
    return lambda folder, config: factory.from_pretrained(folder, **keywords)  # noqa: ARG005


def changed(factory=BoTModelForMaskedLM, options=None, **changes):
    return lambda folder, config: factory.from_pretrained(
        folder, config=resized_config(config, **changes), bot_config=options
    )


def option(**options):
    return lambda folder, _: BoTModelForMaskedLM.from_pretrained(folder, num_hidden_layers=4, bot_config=options)


# what -> (source, call, error, message)
SIZES = {
    "width 0": (BERT, load(hidden_size=0), BadSize, r"hidden_size is 0 .* whole number of at least 1"),
    "width negative": (BERT, load(hidden_size=-12), BadSize, "hidden_size is -12"),
    "width not whole": (BERT, load(hidden_size=12.5), BadSize, "hidden_size is 12.5"),
    "width a word": (BERT, load(hidden_size="24"), BadSize, "hidden_size is '24'"),
    "width a truth value": (BERT, load(hidden_size=True), BadSize, "hidden_size is True"),
    "width None": (BERT, load(hidden_size=None), BadSize, "hidden_size is None"),
    "layers 0": (BERT, load(num_hidden_layers=0), BadSize, "num_hidden_layers is 0"),
    "layers negative": (GPT2, load(BoTModelForCausalLM, n_layer=-3), BadSize, "n_layer is -3"),
    "heads 0": (BERT, load(num_attention_heads=0), BadSize, "num_attention_heads is 0"),
    "ffn 0": (BERT, load(intermediate_size=0), BadSize, "intermediate_size is 0"),
    "gpt2 ffn 0": (GPT2, load(BoTModelForCausalLM, n_inner=0), BadSize, "n_inner|ffn"),
    "positions 0": (BERT, load(max_position_embeddings=0), BadSize, "max_position_embeddings is 0"),
    "alias 0": (GPT2, load(BoTModelForCausalLM, hidden_size=0), BadSize, "n_embd is 0"),
    "not divisible": (
        BERT,
        load(hidden_size=65, num_attention_heads=4),
        BadSize,
        r"hidden_size 65 is not divisible by num_attention_heads 4 in .* config; nearest valid sizes are 64 and 68\.",
    ),
    "heads above width": (BERT, load(hidden_size=2), BadSize, "not divisible .* nearest valid size is 3"),
    "gpt2 not divisible": (GPT2, load(BoTModelForCausalLM, n_embd=20), BadSize, "n_embd 20 .* 18 and 21"),
    "config object 0": (BERT, changed(layer=0), BadSize, "num_hidden_layers is 0 in the target config"),
    "roberta positions": (
        ("roberta", "RobertaForMaskedLM"),
        load(max_position_embeddings=2),
        BadSize,
        "must exceed pad_token_id",
    ),
    "image below patch": (
        ("vit", "ViTForImageClassification"),
        load(BoTModelForImageClassification, image_size=2),
        BadSize,
        "image_size 2 is smaller than patch_size 4",
    ),
}
MODELS = {
    "reheads": (BERT, load(num_attention_heads=4), IncompatibleModels, r"from 3 to 4 at the same .*reheads='resample'"),
    "family": (
        BERT,
        load(config=tiny_config("gpt2")),
        IncompatibleModels,
        "source is a bert model and the target config is gpt2",
    ),
    "related family": (BERT, load(config=tiny_config("roberta")), IncompatibleModels, "bert model .* roberta"),
    "vit to deit": (
        ("vit", "ViTForImageClassification"),
        load(BoTModelForImageClassification, config=tiny_config("deit")),
        IncompatibleModels,
        "vit model .* deit",
    ),
    "vocabulary": (BERT, load(vocab_size=99), IncompatibleModels, r"vocab.*Set vocab_size.*ignore_mismatched_sizes"),
    "segments": (BERT, load(type_vocab_size=3), IncompatibleModels, "Set type_vocab_size"),
    "labels": (
        ("bert", "BertForSequenceClassification"),
        load(BoTModelForSequenceClassification, num_labels=9, num_hidden_layers=4),
        IncompatibleModels,
        r"classifier.*Set num_labels.*ignore_mismatched_sizes=True",
    ),
    "channels": (
        ("vit", "ViTForImageClassification"),
        load(BoTModelForImageClassification, num_channels=1),
        IncompatibleModels,
        "Set num_channels",
    ),
    "patches": (
        ("vit", "ViTForImageClassification"),
        load(BoTModelForImageClassification, patch_size=6),
        IncompatibleModels,
        "Set patch_size",
    ),
    "no adapter": (BERT, load(BoTModelForCausalLM, config=LlamaConfig()), IncompatibleModels, "bert .* llama"),
    "no such task": (
        BERT,
        load(BoTModelForImageClassification, num_hidden_layers=4),
        UnsupportedArchitecture,
        "no head of bert models for BoTModelForImageClassification.* Use BoTModel",
    ),
    "layer's number matters": (
        ("gpt2", "GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}),
        load(BoTModelForCausalLM, n_layer=4),
        UnsupportedArchitecture,
        "keep n_layer at 2",
    ),
}
OPTIONS = {
    "wavelet": (BERT, option(wavelet="harr"), BadOption, "unknown wavelet 'harr'.*Did you mean 'haar'"),
    "wavelet continuous": (BERT, option(wavelet="mexh"), BadOption, "none of PyWavelets' discrete wavelets"),
    "wavelet type": (BERT, option(wavelet=3), BadOption, "wavelet"),
    "wavelet role": (BERT, option(wavelet={"hiden": "haar"}), BadOption, "role of wavelet.*Did you mean 'hidden'"),
    "gain": (BERT, option(gain="rwa"), BadOption, "gain must be one of consistent, raw.*Did you mean 'raw'"),
    "depth": (BERT, option(depth="evn"), BadOption, "depth must be one of .*Did you mean 'even'"),
    "depth shrinks only": (BERT, option(depth="first"), BadOption, "depth='first' cannot grow 2 layers to 4"),
    "depth grows only": (BERT, changed(layer=1, options={"depth": "repeat"}), BadOption, "cannot shrink 2 layers to 1"),
    "detail": (BERT, option(detail="noise"), BadOption, "detail must be one of"),
    "heads": (BERT, option(heads="hole"), BadOption, "heads must be one of.*Did you mean 'whole'"),
    "detail_scale": (BERT, option(detail_scale=-1), BadOption, "detail_scale must be None or a number of at least 0"),
    "detail_scale nan": (BERT, option(detail_scale=float("nan")), BadOption, "detail_scale"),
    "seed": (BERT, option(seed=-1), BadOption, "seed must be a whole number"),
    "seed type": (BERT, option(seed="1"), BadOption, "seed must be a whole number"),
    "seed of more than 64 bits": (BERT, option(seed=2**64), BadOption, "seed must be a whole number from 0 to 1844"),
    "seed of no end": (BERT, option(seed=10**5000), BadOption, "seed holds a number of thousands of digits"),
    "detail_scale of no end": (BERT, option(detail_scale=10**400), BadOption, "detail_scale must be None or a number"),
    "unhashable": (BERT, option(gain=["raw"]), BadOption, "gain must be one of"),
    "unknown option": (BERT, option(wavlet="haar"), BadKeyword, "no option 'wavlet'.*Did you mean 'wavelet'"),
    "options as text": (BERT, load(num_hidden_layers=4, bot_config="haar"), BadOption, "got str"),
    "method": (BERT, load(num_hidden_layers=4, method="bat"), BadOption, "unknown method 'bat'.*Did you mean 'bot'"),
    "method type": (BERT, load(num_hidden_layers=4, method=3), BadOption, "method must be the name"),
    "dtype": (BERT, load(num_hidden_layers=4, dtype="float31"), BadOption, "dtype must be"),
    "dtype whole": (BERT, load(num_hidden_layers=4, dtype=torch.int8), BadOption, "dtype must be"),
}
KEYWORDS = {
    "typo": (BERT, load(hiden_size=24), BadKeyword, "BertConfig has no field 'hiden_size'.*Did you mean 'hidden_size'"),
    "typo of our own": (BERT, load(num_hidden_layers=4, bot_confg={}), BadKeyword, "Did you mean 'bot_config'"),
    "typo in dict": (BERT, load(config={"hiden_size": 24}), BadKeyword, "Did you mean 'hidden_size'"),
    "beside config": (BERT, load(config=BertConfig(), hidden_size=24), BadKeyword, "unknown keyword 'hidden_size'"),
    "no text as a field": (BERT, load(config={1: 24}), BadKeyword, "must be strings, got 1"),
    "bytes as a field": (BERT, load(config={b"x": 1}), BadKeyword, "must be strings, got b'x'"),
    "in dict and beside": (BERT, load(config={"hidden_size": 24}, hidden_size=48), BadKeyword, "given both in config="),
    "config of a wrong type": (BERT, load(config=3), BadKeyword, "config must be a config object.*got int"),
    "state_dict": (BERT, load(num_hidden_layers=4, state_dict={"a": 1}), BadKeyword, "state_dict= cannot be used"),
    "gguf": (BERT, load(num_hidden_layers=4, gguf_file="x.gguf"), BadKeyword, "gguf_file= cannot be used"),
    "from_tf": (BERT, load(num_hidden_layers=4, from_tf=True), BadKeyword, "from_tf= cannot be used"),
}
ALL = {**SIZES, **MODELS, **OPTIONS, **KEYWORDS}


def files_under(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("source", "call", "error", "message"), ALL.values(), ids=ALL)
def test_a_wrong_call_says_what_and_why_and_leaves_nothing(saved, tmp_path, monkeypatch, source, call, error, message):
    family, head, *changes = source
    folder, built = saved(family, head, **(changes[0] if changes else {}))
    monkeypatch.chdir(tmp_path)
    before = files_under(Path(folder))
    with pytest.raises(error) as caught:
        call(folder, built.config)
    assert type(caught.value) is error
    text = str(caught.value)
    assert re.search(message, text)
    assert "\n" not in text
    assert 20 < len(text) < 500
    assert files_under(Path(folder)) == before
    assert os.listdir(tmp_path) == []


def test_there_are_at_least_thirty():
    assert len(ALL) >= 30


@pytest.mark.parametrize("name", [k for k in ALL if k in {**SIZES, **MODELS, **KEYWORDS}])
def test_what_configs_can_refuse_needs_no_weights(saved, tmp_path, name):
    # A folder with a config and no weights: the same error comes before any weight is opened.
    (family, head, *changes), call, error, message = ALL[name]
    _, built = saved(family, head, **(changes[0] if changes else {}))
    built.config.save_pretrained(tmp_path)
    with pytest.raises(error, match=message):
        call(str(tmp_path), built.config)


@pytest.mark.parametrize("error", [BadSize, BadOption, BadKeyword, BadCheckpoint, IncompatibleModels])
def test_errors_are_also_what_python_would_raise(error):
    assert issubclass(error, bot.BoTError)
    assert issubclass(error, TypeError if error is BadKeyword else ValueError)


@pytest.mark.parametrize("value", [3, "a\0b", "\x1b[31m", "two\nlines", ["x"]])
@pytest.mark.parametrize("name", ["revision", "subfolder", "variant"])
@pytest.mark.parametrize("call", [bot.plan, BoTModelForMaskedLM.from_pretrained, bot.resize_checkpoint, bot.suggest])
def test_what_no_branch_or_file_is_called_is_refused(saved, tmp_path, call, name, value):
    folder, _ = saved(*BERT)
    given = [folder, tmp_path / "out"] if call is bot.resize_checkpoint else [folder]
    wanted = {"ratio": 0.5} if call is bot.suggest else {"num_hidden_layers": 4}
    with pytest.raises(BadOption, match=f"{name} must be a name without control characters") as caught:
        call(*given, **wanted, **{name: value})
    assert str(caught.value).isprintable()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", ["9" * 5000 + "GB", "1e400", 0, -1, float("nan")])
def test_shards_of_no_size_are_refused_before_any_work(saved, tmp_path, size):
    folder, _ = saved(*BERT)
    with pytest.raises(BadOption, match="max_shard_size"):
        bot.resize_checkpoint(folder, tmp_path / "out", num_hidden_layers=4, max_shard_size=size)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("wanted", ["params", "ratio", "memory"])
def test_a_number_that_python_does_not_write_is_no_size(saved, wanted):
    folder, _ = saved(*BERT)
    with pytest.raises(BadOption, match="thousands of digits"):
        bot.suggest(folder, **{wanted: 10**5000})


@pytest.mark.parametrize("name", ["\x1b[31m", "a\0b", "x" * 5000, "two\nlines"])
def test_a_report_is_looked_for_in_folders_of_any_name(name):
    with pytest.raises(BadCheckpoint, match=r"holds no transfer_report\.json") as caught:
        bot.Report.load(name)
    assert str(caught.value).isprintable()


# -- checkpoints ----------------------------------------------------------------------------------


def test_weights_of_other_sizes_than_their_config(tmp_path):
    save(build(*BERT).model, tmp_path)
    tiny_config(*BERT, hidden=24).save_pretrained(tmp_path)
    with pytest.raises(BadCheckpoint, match=r"is \(.*\) in the weights but \(.*\) by its own config"):
        BoTModelForMaskedLM.from_pretrained(str(tmp_path), num_hidden_layers=4)


def test_weights_of_another_architecture(tmp_path):
    save(build(*GPT2).model, tmp_path)
    tiny_config(*BERT).save_pretrained(tmp_path)
    with pytest.raises(BadCheckpoint, match="holds none of the tensors of BertForMaskedLM"):
        BoTModelForMaskedLM.from_pretrained(str(tmp_path), num_hidden_layers=4)


@pytest.mark.parametrize("factory", [BoTModel, BoTModelForMaskedLM])
def test_a_missing_source_is_transformers_own_error(tmp_path, factory):
    with pytest.raises(OSError, match="nowhere"):
        factory.from_pretrained(str(tmp_path / "nowhere"), num_hidden_layers=4)


def test_an_unsupported_source_is_named(tmp_path):
    MambaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match="model type 'mamba' has no adapter"):
        BoTModelForCausalLM.from_pretrained(str(tmp_path), num_hidden_layers=2)


def test_an_error_leaves_no_half_made_state(saved):
    folder, built = saved(*BERT)
    with pytest.raises(BadSize):
        BoTModelForMaskedLM.from_pretrained(folder, hidden_size=0)
    expected = AutoModelForMaskedLM.from_pretrained(folder).state_dict()
    for name, tensor in BoTModelForMaskedLM.from_pretrained(folder, config=built.config).state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


# -- options --------------------------------------------------------------------------------------


def test_options_round_trip_through_dicts():
    options = BoTConfig(wavelet={"hidden": "db2", "default": "haar"}, gain="raw", seed=7)
    assert BoTConfig.from_any(options.to_dict()) == options
    assert BoTConfig.from_any(None) == BoTConfig()
    assert BoTConfig.from_any(options) is options
    assert (options.wavelet_for("hidden"), options.wavelet_for("layer")) == ("db2", "haar")
    assert BoTConfig(wavelet={"hidden": "db2"}).wavelet_for("layer") == "auto"


def test_a_model_type_in_no_auto_class_names_its_class():
    config = transformers.SiglipTextConfig()
    with pytest.raises(UnsupportedArchitecture, match=r"set architectures=\['SiglipTextModel'\] in the config"):
        bot.plan(config)
    config.architectures = ["SiglipTextModel"]
    assert bot.plan(config, num_hidden_layers=6).target_sizes["layer"] == 6


def test_a_model_that_sees_images_points_at_its_text_model():
    with pytest.raises(UnsupportedArchitecture, match=r"Its text model alone can be resized: 'gemma3_text'"):
        bot.plan(transformers.Gemma3Config())


@pytest.mark.parametrize(
    "fields", [{"hidden_size": 1536, "num_conv_pos_embedding_groups": 32}, {"num_conv_pos_embedding_groups": 8}]
)
def test_groups_of_a_convolution_keep_their_number(fields):
    with pytest.raises(BadSize, match=r"num_conv_pos_embedding_groups goes from 16 to (32|8).*Keep 16"):
        bot.plan(transformers.Wav2Vec2Config(), **fields)


def test_a_length_that_only_tensors_tell_is_named_where_the_call_changes_it(tmp_path):
    fields = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    config = transformers.Dinov2WithRegistersConfig(**fields, num_register_tokens=4, image_size=16, patch_size=8)
    transformers.Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    with pytest.raises(IncompatibleModels, match="Set num_register_tokens to the source's value"):
        bot.BoTModel.from_pretrained(tmp_path, num_register_tokens=2)


@pytest.mark.parametrize(
    ("config", "model_class", "task"),
    [
        (transformers.T5Config, "T5ForConditionalGeneration", "seq2seq-lm"),
        (transformers.BartConfig, "BartForConditionalGeneration", "seq2seq-lm"),
        (transformers.CLIPConfig, "CLIPModel", "zero-shot-image-classification"),
        (transformers.BertConfig, "BertForPreTraining", "pretraining"),
        (transformers.BertConfig, "BertModel", "base"),
    ],
)
def test_of_several_tasks_a_class_is_named_by_its_use(config, model_class, task):
    assert auto_class_of(config(), model_class)[0] == task
