"""`vocab_keep`: rows of the vocabulary are picked of what a resize makes of all, and the tokenizer follows."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import decoders
import encoders
import made_tokenizers
import pytest
import torch
import transformers
import twostacks
from families import build as build_classic
from transformers import AutoTokenizer, PreTrainedModel

import transformers_bot
from transformers_bot import BadCheckpoint, BadOption, IncompatibleModels, cli, plan, resize_checkpoint, verify
from transformers_bot.io.kept_tokens import KeptTokens, Named, from_spans, kept_rows, spans
from transformers_bot.ops.recipe import Rows
from transformers_bot.run import distributed, loading, rendezvous

KEPT = [4, 5, 6, 9, 12, 16, 20, 21]  # beside the special ids from 0 to 3
MAKERS = {
    "bert": partial(build_classic, "bert", "BertForMaskedLM"),
    "roberta": partial(build_classic, "roberta", "RobertaForMaskedLM"),
    "gpt2": partial(build_classic, "gpt2", "GPT2LMHeadModel"),
    **{name: partial(decoders.build, name) for name in ("llama", "qwen3", "gemma2")},
    "llama untied": partial(decoders.build, "llama", tie_word_embeddings=False),
    **{name: partial(encoders.build, name) for name in ("xlm-roberta", "distilbert", "electra", "mpnet", "modernbert")},
    "deberta-v2": partial(encoders.build, "deberta-v2"),
    **{name: partial(twostacks.build, name) for name in ("t5", "bart", "whisper", "wav2vec2")},
}
FAST = ("roberta",)
# Fields that change the width or the MLP of each config, whatever they are called there.
SIZES = ("intermediate_size", "n_inner", "hidden_dim", "d_ff", "decoder_ffn_dim")


def made(name: str) -> PreTrainedModel:
    model = MAKERS[name]()
    return getattr(model, "model", model) if name in ("bert", "roberta", "gpt2") else model


def factory_of(model: PreTrainedModel) -> type:
    ends = {"MaskedLM": "MaskedLM", "PreTraining": "PreTraining", "CTC": "CTC"}
    ends |= {"CausalLM": "CausalLM", "LMHeadModel": "CausalLM", "SpeechSeq2Seq": "SpeechSeq2Seq"}
    ends |= {"ForConditionalGeneration": "SpeechSeq2Seq" if model.config.model_type == "whisper" else "Seq2SeqLM"}
    name = type(model).__name__
    return getattr(transformers_bot, f"BoTModelFor{next(task for end, task in ends.items() if name.endswith(end))}")


def grown(config: transformers.PreTrainedConfig) -> dict[str, int]:
    field = next(name for name in SIZES if getattr(config, name, None))
    return {field: 2 * getattr(config, field)}


def rows_of(model: PreTrainedModel) -> list[int]:
    record = model.config.transformers_bot["vocab_keep"]
    return list(from_spans(record["ids"], record["rows"]))


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MAKERS])
def test_kept_rows_are_those_of_the_whole_resize(name, tmp_path):
    model = made(name)
    model.save_pretrained(tmp_path)
    resized = partial(factory_of(model).from_pretrained, tmp_path, **grown(model.config))
    whole, small = resized(), resized(vocab_keep=KEPT)
    rows, length = rows_of(small), model.config.vocab_size
    assert set(KEPT) <= set(rows)
    assert small.config.vocab_size == len(rows) < length
    assert {small.config.bos_token_id, small.config.eos_token_id} <= {*range(len(rows)), None}
    picked = 0
    before = whole.state_dict()
    for key, tensor in small.state_dict().items():
        expected = before[key]
        for dim in [d for d, size in enumerate(expected.shape) if size != tensor.shape[d]]:
            expected, picked = expected.index_select(dim, torch.tensor(rows)), picked + 1
        assert torch.equal(tensor, expected), key
    assert picked
    if name in ("wav2vec2",):
        return
    numbers = {old: new for new, old in enumerate(rows)}
    old = torch.tensor([[5, 9, 6, 21, 12], [20, 4, 16, 5, 9]])
    new = old.clone().apply_(numbers.__getitem__)
    spoken = {"input_features": twostacks.inputs(whole)["input_features"]} if name == "whisper" else None

    def said(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            return model.eval()(**(spoken or {"input_ids": ids}), **decoder)[0]

    expected, actual = said(whole, old), said(small, new)
    if actual.shape[-1] == len(rows):
        expected = expected[..., rows]
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """`spoken(kind)` -> a folder with a tiny RoBERTa and a tokenizer of that kind, and the tokenizer; made once."""
    folders: dict[str, tuple[Path, transformers.PreTrainedTokenizerFast]] = {}

    def get(kind: str):
        if kind not in folders:
            folder = tmp_path_factory.mktemp(kind)
            tokenizer = made_tokenizers.save(kind, folder, ("<extra>", "newword"))
            fields = {"vocab_size": len(tokenizer) + 3, "max_position_embeddings": 80, "hidden": 12, "heads": 3}
            build_classic("roberta", "RobertaForMaskedLM", **fields).model.save_pretrained(folder)
            folders[kind] = folder, tokenizer
        return folders[kind]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("kind", made_tokenizers.MAKERS)
def test_the_tokenizer_of_the_result_gives_the_new_ids_of_the_same_tokens(kind, spoken, tmp_path):
    source, before = spoken(kind)
    ids = before(made_tokenizers.TEXT)["input_ids"]
    (tmp_path / "ids.txt").write_text("\n".join(map(str, ids)))
    report = resize_checkpoint(source, tmp_path / "out", vocab_keep=tmp_path / "ids.txt", hidden_size=24)
    assert "rows: ids.txt" in str(plan(source, vocab_keep=tmp_path / "ids.txt"))
    assert any("ids.txt names" in sentence for sentence in report.warnings)
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    rows = rows_of(model)
    numbers = {old: new for new, old in enumerate(rows)}
    for text in (made_tokenizers.TEXT, "the other dog", "brother <mask><extra> newword there"):
        old, new = before(text)["input_ids"], after(text)["input_ids"]
        assert new == [numbers[number] for number in old]
        assert after.decode(new) == before.decode(old)
    for text in (made_tokenizers.OTHER, *made_tokenizers.SENTENCES):
        new = after(text)["input_ids"]
        assert 0 <= min(new) <= max(new) < len(rows)
        if kind in ("bytes", "fallback"):  # any text is still written whole
            assert after.decode(new, skip_special_tokens=True).strip() == text
    assert model.config.pad_token_id == after.pad_token_id == 1
    assert verify(tmp_path / "out", source).equal
    kept = transformers_bot.BoTModelForMaskedLM.from_pretrained(source, vocab_keep=ids, hidden_size=24)
    for key, tensor in kept.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key


@pytest.mark.parametrize(
    "given",
    [
        [5, 6],
        {5, 6},
        torch.tensor([5, 6]),
        range(5, 7),
        pytest.param("5\n6\n", id="lines of ids"),
        pytest.param(" 6\r\n 5\r\n", id="lines of another system"),
    ],
)
def test_ids_are_taken_in_every_form(given, tmp_path):
    if isinstance(given, str):
        (tmp_path / "ids.txt").write_text(given)
        given = tmp_path / "ids.txt"
    assert plan(transformers.GPT2Config(vocab_size=23, eos_token_id=3), vocab_keep=given).target_sizes["vocab"] == 3


@pytest.mark.slow
def test_tokens_are_taken_in_every_form(spoken, tmp_path):
    source, tokenizer = spoken("bytes")
    (tmp_path / "tokens.txt").write_text("Ġthe\nĠother\n", encoding="utf-8")
    (tmp_path / "list.json").write_text(json.dumps(["Ġthe", "Ġother", "1"]))  # a digit that is a token, not an id
    (tmp_path / "vocab.json").write_text(json.dumps({"Ġthe": 0, "Ġother": 1}))
    names = ("tokens.txt", "list.json", "vocab.json")
    lengths = {name: plan(source, vocab_keep=tmp_path / name).target_sizes["vocab"] for name in names}
    assert len(set(lengths.values())) == 1, lengths
    assert plan(source, vocab_keep=["Ġother", "Ġthe"]).target_sizes["vocab"] == lengths["list.json"]
    for whole in (tokenizer, source, source / "tokenizer.json"):
        assert plan(source, vocab_keep=whole).target_sizes["vocab"] == len(tokenizer)


WRONG = {
    "unknown tokens": ("Ġthe\nnope\nnada", r"names 2 tokens \(f.txt\) that .* does not have: 'nope', 'nada'"),
    "an id beyond the table": ("5\n9999", r"names the id 9999 .* has 37\d rows"),
    "a negative id": ("5\n-1", r"names the id -1"),
    "an empty file": ("\n\n", r"names no token: f.txt is empty"),
    "ids in quotes": ([5, "Ġthe"], "Give the one or the other"),
    "numbers that are not whole": ([5.0], "a list has 5.0 among others"),
    "a truth value": ([True], "a list has True among others"),
    "a number": (7, "must be a file, a list of token ids or of tokens, or a tokenizer, got 7"),
    "a dict": ({"ids": "1"}, "no record of a resize"),
    "a record with ids beyond the table": ({"file": "x", "rows": 500, "ids": "1,499"}, "names the id 499"),
    "an empty name": ("", "must be a file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_kept_is_refused_by_name(case, spoken, tmp_path):
    given, message = WRONG[case]
    if isinstance(given, str) and given:
        (tmp_path / "f.txt").write_text(given, encoding="utf-8")
        given = tmp_path / "f.txt"
    with pytest.raises(BadOption, match=message):
        plan(spoken("bytes")[0], vocab_keep=given)


@pytest.mark.slow
def test_tokenizers_that_cannot_follow_are_refused_or_left_out(saved, tmp_path):
    source, _ = saved("gpt2", "GPT2LMHeadModel")
    with pytest.raises(BadOption, match="the source has no tokenizer"):
        plan(source, vocab_keep=["a"])
    slow = build_classic("gpt2", "GPT2LMHeadModel").model
    slow.save_pretrained(tmp_path / "slow")
    (tmp_path / "slow" / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "slow" / "merges.txt").write_text("")
    with pytest.raises(BadOption, match=r"only merges.txt, vocab.json, which cannot be written with fewer tokens"):
        plan(tmp_path / "slow", vocab_keep=["a"])
    report = resize_checkpoint(tmp_path / "slow", tmp_path / "out", vocab_keep=[4])
    assert any("is left out; ids that it gives do not match" in sentence for sentence in report.warnings)
    assert not {"vocab.json", "merges.txt"} & {path.name for path in (tmp_path / "out").iterdir()}
    made_tokenizers.save("bytes", tmp_path / "slow")
    with pytest.raises(IncompatibleModels, match=r"tokenizer has \d+ entries, the model 23 embeddings"):
        plan(tmp_path / "slow", vocab_keep=[4])
    with pytest.raises(BadOption, match="vit models have none"):
        plan(transformers.ViTConfig(), vocab_keep=[4])
    with pytest.raises(BadOption, match=r"vocab_size is 7 in the target, and vocab_keep= keeps 2 of 23 rows"):
        plan(source, vocab_keep=[4], vocab_size=7)


@pytest.mark.slow
def test_token_ids_follow_their_rows_in_both_configs(tmp_path):
    model = twostacks.build("whisper")
    model.config.suppress_tokens = [4, 9, 30]
    model.generation_config.update(suppress_tokens=[4, 9, 30], bad_words_ids=[[5, 9], [5, 30]], eos_token_id=[2, 20])
    model.generation_config.lang_to_id = {"<|en|>": 21}
    model.generation_config._from_model_config = False  # else transformers makes it anew of the config
    model.save_pretrained(tmp_path / "source")
    resize_checkpoint(tmp_path / "source", tmp_path / "out", vocab_keep=[5, 9], pad_token_id=7)
    small = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "out")
    rows, settings = rows_of(small), small.generation_config
    assert rows == [0, 1, 2, 5, 7, 9, 20, 21]
    assert small.config.pad_token_id == rows.index(7)
    assert small.config.suppress_tokens == settings.suppress_tokens == [rows.index(9)]
    assert settings.bad_words_ids == [[rows.index(5), rows.index(9)]]
    assert settings.eos_token_id == [2, rows.index(20)]
    assert settings.lang_to_id == {"<|en|>": rows.index(21)}


@pytest.mark.slow
def test_processes_of_a_node_agree_on_the_kept_tokens_and_get_their_new_ids(tmp_path, monkeypatch):
    made("gpt2").save_pretrained(tmp_path / "source")
    calls = []

    def in_one_process(call, write, load, **_):
        calls.append(call)
        folder = tmp_path / f"made-{len(calls)}"
        return load(folder, write(folder))

    monkeypatch.setattr(loading, "_is_alone", lambda: False)
    monkeypatch.setattr(distributed, "is_shared", lambda *_: True)
    monkeypatch.setattr(rendezvous, "once_per_node", in_one_process)
    settings = transformers.GenerationConfig(eos_token_id=9)
    for kept in ([5, 9], [6, 9]):
        model = transformers_bot.BoTModelForCausalLM.from_pretrained(
            tmp_path / "source", vocab_keep=kept, generation_config=settings
        )
        assert model.generation_config.eos_token_id == rows_of(model).index(9)
    assert settings.eos_token_id == 9
    assert calls[0] != calls[1]


def test_ids_in_settings_of_any_kind_follow_and_what_is_no_id_stays():
    kept = KeptTokens("vocab", Rows((0, 2, 5, 7), 9))
    values = {"forced_decoder_ids": [[1, 5]], "suppress_tokens": [4], "eos_token_id": (2, 7), "task_to_id": {"x": 7}}
    values |= {"pad_token_id": None, "mask_token_id": -1, "image_token_index": 40, "label2id": {"a": 5}, "top_k": 5}
    settings = SimpleNamespace(**values)
    kept.renumber(settings)
    expected = {"forced_decoder_ids": [[1, 2]], "suppress_tokens": None, "eos_token_id": (1, 3), "task_to_id": {"x": 3}}
    assert vars(settings) == values | expected


def test_all_times_are_kept_with_the_id_that_they_are_counted_from():
    settings = SimpleNamespace(no_timestamps_token_id=18)
    rows = kept_rows(Named("a list", (4,)), 23, {}, transformers.WhisperConfig(), [settings], 0)
    assert rows.index == (4, *range(18, 23))


def test_rows_that_positions_are_counted_from_stay_where_they_are():
    config = transformers.RobertaConfig(vocab_size=23, pad_token_id=5, bos_token_id=8, eos_token_id=9)
    small = plan(config, vocab_keep=[20])
    assert small.target_sizes["vocab"] == 9  # 0 to 5, 8, 9 and 20
    assert any("5 whose numbers the model computes with" in text for text in small.warnings)


@pytest.mark.slow
def test_the_card_and_config_of_a_result_make_it_again(spoken, tmp_path):
    import yaml

    source, before = spoken("bytes")
    ids = before(made_tokenizers.TEXT)["input_ids"]
    resize_checkpoint(source, tmp_path / "out", vocab_keep=ids, hidden_size=24)
    text = (tmp_path / "out" / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    recipe = yaml.safe_load(text)
    assert set(recipe["vocab_keep"]) == {"file", "rows", "ids"}
    (tmp_path / "recipe.yaml").write_text(text)
    again = tmp_path / "again"
    assert cli.main(["resize", str(source), str(again), "--recipe", str(tmp_path / "recipe.yaml")]) == 0
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (tmp_path / "out" / weights).read_bytes()
    recorded = tmp_path / "recorded"
    resize_checkpoint(source, recorded, vocab_keep=tmp_path / "out" / "config.json", hidden_size=24)
    assert (recorded / weights).read_bytes() == (tmp_path / "out" / weights).read_bytes()


@pytest.mark.slow
def test_the_command_line_keeps_tokens_and_says_so(spoken, tmp_path, capsys):
    source, _ = spoken("bytes")
    (tmp_path / "tokens.txt").write_text("Ġthe\nĠother\n", encoding="utf-8")
    keep = ["--vocab-keep", str(tmp_path / "tokens.txt")]
    assert cli.main(["plan", str(source), *keep]) == 0
    assert "rows: tokens.txt" in capsys.readouterr().out
    assert cli.main(["resize", str(source), str(tmp_path / "out"), *keep, "--set", "num_hidden_layers=1"]) == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) < 300
    (tmp_path / "tokens.txt").write_text("nope\n")
    assert cli.main(["plan", str(source), *keep]) == 2
    assert "--vocab-keep names 1 tokens" in capsys.readouterr().err


@pytest.mark.slow
def test_transformers_own_call_keeps_tokens_inside_the_integration(spoken):
    source, before = spoken("bytes")
    ids = before(made_tokenizers.TEXT)["input_ids"]
    with transformers_bot.integration():
        model = transformers.AutoModelForMaskedLM.from_pretrained(source, vocab_keep=ids)
    expected = transformers_bot.BoTModelForMaskedLM.from_pretrained(source, vocab_keep=ids)
    assert all(torch.equal(tensor, expected.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_spans_hold_the_same_ids():
    ids = [0, 1, 2, 7, 9, 10, 30]
    assert from_spans(spans(ids), 31) == tuple(ids)
    for text in ("", "3,2", "5-4", "1,1", "0-31", "-1", "1, 2", "0-999999999", 5, None):
        with pytest.raises(ValueError, match=r"."):
            from_spans(text, 31)


CALLS = {
    "calibrated": {"n_inner": 12, "calibration": [{"input_ids": torch.arange(23).repeat(20).view(-1, 10)}]},
    "principal": {"n_embd": 8, "n_head": 2},
    "filtered details": {"n_embd": 24, "n_head": 6, "bot_config": {"wavelet": "db2", "detail": "gaussian"}},
    **{method: {"n_embd": 24, "n_head": 6, "method": method} for method in ("tile", "ligo", "lemon")},
    "aki": {"n_embd": 24, "n_head": 6, "n_layer": 3, "method": "aki"},
}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("call", CALLS)
def test_every_method_gives_kept_rows_the_weights_that_they_have_among_all(call, tied, saved):
    source, _ = saved("gpt2", "GPT2LMHeadModel", tie_word_embeddings=tied)
    resized = partial(transformers_bot.BoTModelForCausalLM.from_pretrained, source, **CALLS[call])
    whole, small = resized().state_dict(), resized(vocab_keep=[4, 9, 22])
    for key, tensor in small.state_dict().items():
        expected = whole[key][rows_of(small)] if len(tensor) != len(whole[key]) else whole[key]
        assert torch.equal(tensor, expected), key


@pytest.mark.slow
def test_a_record_of_other_rows_is_a_difference_and_a_damaged_one_an_error(saved, tmp_path):
    source, _ = saved("gpt2", "GPT2LMHeadModel")
    resize_checkpoint(source, tmp_path / "out", vocab_keep=[4, 9, 22])
    assert verify(tmp_path / "out", source).equal
    place = tmp_path / "out" / "config.json"
    fields = json.loads(place.read_text())
    record = fields["transformers_bot"]["vocab_keep"]
    assert record == {"file": "a list", "rows": 23, "ids": "0,4,9,22"}
    record["ids"] = "0,4,10,22"
    place.write_text(json.dumps(fields))
    assert not verify(tmp_path / "out", source).equal
    record["ids"] = "4,0"
    place.write_text(json.dumps(fields))
    with pytest.raises(BadCheckpoint, match=r"the record of .* is damaged: vocab_keep is"):
        verify(tmp_path / "out", source)


def test_operators_are_not_learned_for_a_part_of_the_vocabulary(saved, tmp_path):
    source, _ = saved("gpt2", "GPT2LMHeadModel")
    fit = {"batches": [{"input_ids": torch.arange(8)[None]}], "steps": 1}
    sizes = {"n_embd": 24, "n_head": 6, "method": "ligo"}
    with pytest.raises(BadOption, match="resize with vocab_keep= alone first"):
        resize_checkpoint(source, tmp_path / "out", vocab_keep=[4], fit=fit, **sizes)
