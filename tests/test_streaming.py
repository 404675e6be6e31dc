"""Streaming: the files that save_pretrained would write, in bounded memory, and the same every time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, LARGER, MAIN_HEADS, SMALLER, build, factory_for, resized_config, save, tiny_config
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

import transformers_bot
from transformers_bot import (
    BadCheckpoint,
    BadKeyword,
    BadOption,
    BadWeights,
    IncompatibleModels,
    SaveError,
    memory_bound,
    resize_checkpoint,
)

OURS = ("transformers_bot",)


def weight_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("model*"))}


def plain_fields(folder: Path) -> dict:
    fields = json.loads((folder / "config.json").read_text())
    return {key: value for key, value in fields.items() if key not in OURS}


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("sizes", [SMALLER, LARGER], ids=["shrink", "grow"])
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_files_are_what_save_pretrained_writes(saved, tmp_path, family, head, sizes, dtype):
    source, built = saved(family, head)
    wanted = resized_config(built.config, **sizes)
    report = resize_checkpoint(source, tmp_path / "streamed", wanted, dtype=dtype, max_shard_size="1KB")
    made = factory_for(head, wanted).from_pretrained(source, config=wanted, dtype=dtype)
    made.save_pretrained(tmp_path / "saved", max_shard_size="1KB")
    streamed, plain = weight_files(tmp_path / "streamed"), weight_files(tmp_path / "saved")
    assert len(plain) > 2  # sharded
    assert streamed == plain
    assert plain_fields(tmp_path / "streamed") == plain_fields(tmp_path / "saved")
    assert report.inherited == 1.0
    again = type(made).from_pretrained(tmp_path / "streamed").state_dict()
    assert all(torch.equal(x, again[name]) for name, x in made.state_dict().items())


@pytest.mark.slow
def test_new_heads_are_drawn_from_the_seed(saved, tmp_path):
    source, built = saved("bert", "BertForPreTraining")
    wanted = resized_config(built.config, **SMALLER)
    resize_checkpoint(source, tmp_path / "one", wanted, task="sequence-classification")
    torch.manual_seed(7)
    resize_checkpoint(source, tmp_path / "two", wanted, task="sequence-classification")
    assert weight_files(tmp_path / "one") == weight_files(tmp_path / "two")
    resize_checkpoint(
        source, tmp_path / "three", wanted, task="sequence-classification", bot_config={"seed": 5, "detail": "zero"}
    )
    heads = [load_file(tmp_path / name / "model.safetensors")["classifier.weight"] for name in ("one", "three")]
    assert float(heads[0].abs().max()) > 0
    assert not torch.equal(*heads)
    torch.manual_seed(0)  # BoTConfig's own
    made = transformers_bot.BoTModelForSequenceClassification.from_pretrained(source, config=wanted)
    assert torch.equal(made.classifier.weight, heads[0])


def test_the_callers_random_numbers_stay(saved, tmp_path):
    source, built = saved("bert", "BertForPreTraining")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    wanted = resized_config(built.config, **SMALLER)
    resize_checkpoint(source, tmp_path / "out", wanted, task="token-classification")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.slow
def test_same_inputs_give_the_same_bytes_in_every_file(saved, tmp_path):
    source, built = saved("gpt2", "GPT2LMHeadModel")
    for name in ("one", "two"):
        resize_checkpoint(source, tmp_path / name, resized_config(built.config, **LARGER))
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert {"config.json", "model.safetensors", "README.md", "transfer_report.json"} <= set(one)
    assert one == two


def test_same_sizes_are_the_source_bit_by_bit(saved, tmp_path):
    source, built = saved("gpt2", "GPT2LMHeadModel")
    resize_checkpoint(source, tmp_path / "out", resized_config(built.config))
    assert weight_files(tmp_path / "out") == weight_files(Path(source))


@pytest.mark.slow
def test_a_sharded_source_gives_what_a_single_file_gives(saved, tmp_path):
    source, built = saved("gpt2", "GPT2LMHeadModel")
    shards = save(built.model, tmp_path / "shards", max_shard_size="10KB")
    assert len(weight_files(Path(shards))) > 3
    for name, start in (("one", source), ("two", shards)):
        resize_checkpoint(start, tmp_path / name, resized_config(built.config, **SMALLER))
    assert weight_files(tmp_path / "one") == weight_files(tmp_path / "two")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_refused_leaves_nothing_behind(saved, tmp_path, family):
    head = dict(MAIN_HEADS)[family]
    source, built = saved(family, head)
    out = tmp_path / "out"
    wanted = resized_config(built.config, **SMALLER)
    with pytest.raises(BadOption, match="no target is given"):
        resize_checkpoint(source, out)
    with pytest.raises(BadOption, match="task must be one of"):
        resize_checkpoint(source, out, wanted, task="translation")
    with pytest.raises(BadKeyword, match="device_map= is for a model in memory"):
        resize_checkpoint(source, out, wanted, device_map="auto")
    with pytest.raises(BadOption, match="nonfinite must be one of"):
        resize_checkpoint(source, out, wanted, nonfinite="ignore")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_existing_folder_needs_overwrite(saved, tmp_path):
    source, built = saved("gpt2", "GPT2LMHeadModel")
    wanted, out = resized_config(built.config, **SMALLER), tmp_path / "out"
    resize_checkpoint(source, out, resized_config(built.config, **LARGER))
    before = weight_files(out)
    with pytest.raises(SaveError, match="overwrite=True"):
        resize_checkpoint(source, out, wanted)
    assert weight_files(out) == before
    resize_checkpoint(source, out, wanted, overwrite=True)
    assert weight_files(out) != before
    assert AutoConfig.from_pretrained(out).n_embd == 6


def test_the_source_itself_is_never_replaced(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel")
    source = save(built.model, tmp_path / "source")
    before = weight_files(Path(source))
    with pytest.raises(SaveError):
        resize_checkpoint(source, source, resized_config(built.config, **SMALLER), overwrite=True)
    assert weight_files(Path(source)) == before


def test_a_result_that_overflows_is_an_error(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel", dtype=torch.float32)
    with torch.no_grad():
        built.model.transformer.wte.weight.mul_(1e6)
    source = save(built.model, tmp_path / "source")
    with pytest.raises(BadWeights, match="float16"):
        resize_checkpoint(source, tmp_path / "out", resized_config(built.config, **SMALLER), dtype="float16")
    assert not (tmp_path / "out").exists()


# -- tokenizers -----------------------------------------------------------------------------------


def with_tokenizer(folder: Path, entries: int, longest: int = 8) -> None:
    words = {f"word{i}": i for i in range(entries - 1)} | {"[UNK]": entries - 1}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=longest).save_pretrained(folder)


def test_the_tokenizer_goes_along(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel")
    source = save(built.model, tmp_path / "source")
    with_tokenizer(tmp_path / "source", built.config.vocab_size)
    resize_checkpoint(source, tmp_path / "out", resized_config(built.config, **SMALLER))
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tmp_path / "source/tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("word3 word5")["input_ids"] == [3, 5]


@pytest.mark.slow
def test_a_tokenizer_larger_than_the_vocabulary_is_an_error(tmp_path):
    built = build("gpt2", "GPT2LMHeadModel")
    source = save(built.model, tmp_path / "source")
    with_tokenizer(tmp_path / "source", built.config.vocab_size + 2)
    wanted = resized_config(built.config, **SMALLER)
    with pytest.raises(IncompatibleModels, match=r"tokenizer has 25 entries, the model 23 embeddings"):
        resize_checkpoint(source, tmp_path / "out", wanted)
    assert not (tmp_path / "out").exists()
    resize_checkpoint(source, tmp_path / "out", wanted, tokenizer=False)
    assert not (tmp_path / "out/tokenizer.json").exists()


@pytest.mark.slow
def test_what_goes_along_is_checked(tmp_path, caplog):
    built = build("vit", "ViTForImageClassification")
    source = save(built.model, tmp_path / "source")
    (tmp_path / "source/preprocessor_config.json").write_text('{"size": {"height": 12, "width": 12}}')
    resize_checkpoint(source, tmp_path / "one", resized_config(built.config, **SMALLER))
    assert "images of" not in caplog.text
    import transformers

    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        resize_checkpoint(source, tmp_path / "two", resized_config(built.config, image_size=16))
    finally:
        logger.removeHandler(caplog.handler)
    assert "makes images of 12 pixels, the model takes 16" in caplog.text


# -- memory ---------------------------------------------------------------------------------------

MEASURE = """
import sys, threading, time
import torch
torch.set_num_threads(1)
import transformers_bot
from transformers import GPT2Config
source, warm_up, out, sizes = sys.argv[1], sys.argv[2], sys.argv[3], eval(sys.argv[4])

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

transformers_bot.resize_checkpoint(warm_up, out + "-warm", n_layer=1, n_embd=8)  # imports, thread pools
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
transformers_bot.resize_checkpoint(source, out, max_shard_size="20MB", **sizes)
done = True
thread.join()
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc to see anonymous memory")
@pytest.mark.parametrize("sizes", [{"n_embd": 128, "n_head": 4}, {"n_embd": 512, "n_head": 16}], ids=["shrink", "grow"])
def test_memory_is_bounded_by_the_largest_tensor_whatever_the_depth(tmp_path, sizes):
    config = tiny_config("gpt2", "GPT2LMHeadModel", layer=120, hidden=256, heads=8, ffn=512)
    source = save(
        transformers_bot.BoTModelForCausalLM.class_for(config)(config), tmp_path / "big", max_shard_size="20MB"
    )
    small = save(build("gpt2", "GPT2LMHeadModel", hidden=12, heads=2).model, tmp_path / "small")
    total = sum(file.stat().st_size for file in Path(source).glob("*.safetensors"))
    bound = memory_bound(transformers_bot.plan(source, **sizes))
    assert total > 2.5 * bound
    command = [sys.executable, "-c", MEASURE, source, small, str(tmp_path / "out"), repr(sizes)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    peak = int(run.stdout.split()[-1])
    assert peak < bound, f"{peak / 2**20:.0f} MiB, allowed {bound / 2**20:.0f}"


# -- what is refused early ------------------------------------------------------------------------


def test_generation_settings_that_cannot_be_saved_are_refused_before_the_work(tmp_path):
    source = Path(save(build("gpt2", "GPT2LMHeadModel").model, tmp_path / "source"))
    (source / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": false}')
    with pytest.raises(BadCheckpoint, match=r"generation_config.json of .* contradicts itself.*generation_config="):
        resize_checkpoint(source, tmp_path / "out", n_embd=6)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keywords", [{"dtype": "float8_e4m3fn"}, {"allow_pickle": "no"}, {"strict": 1}])
def test_values_that_are_none_are_named(saved, tmp_path, keywords):
    source, _ = saved("gpt2", "GPT2LMHeadModel")
    with pytest.raises(BadOption, match=f"{next(iter(keywords))} must be"):
        resize_checkpoint(source, tmp_path / "out", n_embd=6, **keywords)


@pytest.mark.slow
def test_a_card_that_cannot_be_kept_is_named_before_the_work(saved, tmp_path):
    source, _ = saved("gpt2", "GPT2LMHeadModel")
    resize_checkpoint(source, tmp_path / "out", n_embd=6)
    (tmp_path / "out/README.md").write_bytes(b"\xff\xfe my own")
    with pytest.raises(SaveError, match="is not UTF-8"):
        resize_checkpoint(source, tmp_path / "out", n_embd=24, overwrite=True)
    (tmp_path / "out/README.md").write_text("my own words")
    resize_checkpoint(source, tmp_path / "out", n_embd=24, overwrite=True)
    assert "my own words" in (tmp_path / "out/README.md").read_text()


def test_named_chat_templates_go_along(tmp_path):
    source = Path(save(build("gpt2", "GPT2LMHeadModel").model, tmp_path / "source"))
    with_tokenizer(source, 23)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/rag.jinja").write_text("{{ messages }}")
    resize_checkpoint(source, tmp_path / "out", n_embd=6)
    assert (tmp_path / "out/additional_chat_templates/rag.jinja").read_text() == "{{ messages }}"


def test_what_was_said_of_the_tokenizer_is_in_the_report(tmp_path):
    source = Path(save(build("gpt2", "GPT2LMHeadModel").model, tmp_path / "source"))
    with_tokenizer(source, 23, longest=99)
    report = resize_checkpoint(source, tmp_path / "out", n_embd=6)
    assert any("allows 99 tokens, the model has 12 positions" in text for text in report.warnings)
    assert transformers_bot.Report.load(tmp_path / "out").warnings == report.warnings
