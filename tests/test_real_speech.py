"""A trained Whisper stays what it is when it grows: the same words, and the same loss; no training.

The weights are looked for in `speech/whisper-tiny-en` in the data folder (see `test_real.py`), or where the environment
variable TRANSFORMERS_BOT_WHISPER points: a folder in transformers' format with a tokenizer.
"""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoTokenizer, WhisperFeatureExtractor

from transformers_bot import BoTModelForSpeechSeq2Seq

pytestmark = pytest.mark.slow

DATA = Path(os.environ.get("TRANSFORMERS_BOT_DATA", Path(__file__).parents[2] / "shared" / "data"))
WHISPER = Path(os.environ.get("TRANSFORMERS_BOT_WHISPER", DATA / "speech" / "whisper-tiny-en"))
RATE = 16_000
TEXT = " The quick brown fox jumps over the lazy dog, and then it walks home."
WIDE = {"d_model": 768, "encoder_attention_heads": 12, "decoder_attention_heads": 12}
DEEP = {"encoder_layers": 8, "decoder_layers": 6}


@lru_cache(maxsize=1)
def folder() -> str:
    if not (WHISPER / "config.json").is_file():
        pytest.skip(f"no Whisper is at {WHISPER}; set TRANSFORMERS_BOT_WHISPER to a folder with one")
    return str(WHISPER)


@lru_cache(maxsize=1)
def heard() -> torch.Tensor:
    """The spectrogram of four seconds of vowels: tones with overtones, which rise and fall."""
    time = np.arange(4 * RATE) / RATE
    pitch = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * time)) / RATE
    voice = sum(np.sin(k * pitch) * np.exp(-(((150 * k - 700) / 500) ** 2)) for k in range(1, 20))
    wave = voice * (np.sin(2 * np.pi * 1.5 * time) > 0) + 0.003 * np.random.default_rng(0).standard_normal(len(time))
    features = WhisperFeatureExtractor.from_pretrained(folder())
    return features(wave.astype(np.float32), sampling_rate=RATE, return_tensors="pt").input_features


@torch.no_grad()
def loss(model, ids: list[int]) -> float:
    return float(model(input_features=heard(), labels=torch.tensor([ids])).loss)


@torch.no_grad()
def written(model) -> list[int]:
    """What the model writes; at least 12 tokens, for silence would be one."""
    return model.generate(heard(), max_new_tokens=16, min_new_tokens=12)[0].tolist()


@lru_cache(maxsize=1)
def source() -> tuple[list[int], list[int], float]:
    """What the source writes, the ids of a text, and their loss."""
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder()).eval()
    ids = AutoTokenizer.from_pretrained(folder())(TEXT).input_ids
    return written(model), ids, loss(model, ids)


@pytest.mark.parametrize("sizes", [WIDE, DEEP, {**WIDE, **DEEP}], ids=["width", "depth", "both"])
def test_whisper_grows_and_writes_the_same_words(sizes):
    words, ids, before = source()
    model = BoTModelForSpeechSeq2Seq.from_pretrained(folder(), **sizes)
    assert len(words) >= 12
    assert written(model) == words
    assert abs(loss(model, ids) - before) < 0.001


def test_whisper_shrinks_to_a_finite_model():
    _, ids, _ = source()
    model = BoTModelForSpeechSeq2Seq.from_pretrained(
        folder(), d_model=320, decoder_layers=3, encoder_attention_heads=5, decoder_attention_heads=5
    )
    assert np.isfinite(loss(model, ids))
