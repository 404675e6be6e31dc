"""`vocab_keep`: rows of the vocabulary are picked of what a resize makes of all, and the tokenizer follows."""

from functools import partial
from pathlib import Path

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
from transformers_bot import plan, resize_checkpoint, verify
from transformers_bot.io.kept_tokens import from_spans

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
FAST = ("roberta", "llama untied")
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


@pytest.mark.parametrize(
    "kind", [k if k == "bytes" else pytest.param(k, marks=pytest.mark.slow) for k in made_tokenizers.MAKERS]
)
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
