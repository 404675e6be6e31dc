"""Tiny models of speech and of two stacks, a row for every model type, as data for the laws.

Every length is another one: both depths, the heads and MLP units of both stacks, the lengths of both inputs.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from families import randomise, through_folder
from transformers import CONFIG_MAPPING, PreTrainedModel

TEXT = {"vocab_size": 37, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
STACKS = {"d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 20, "decoder_ffn_dim": 28}
STACKS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 3}
T5 = {"d_model": 24, "d_kv": 6, "d_ff": 20, "num_heads": 3, "num_layers": 2, "num_decoder_layers": 3}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
SOUND: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 20}
SOUND |= {"conv_dim": [6, 7], "conv_stride": [2, 2], "conv_kernel": [3, 4], "num_conv_pos_embeddings": 5}
SOUND |= {"num_conv_pos_embedding_groups": 4, "classifier_proj_size": 9}
QUANTISER = {"codevector_dim": 8, "num_codevectors_per_group": 3, "proj_codevector_dim": 10}
# Model type -> fields of its config.
OWN: dict[str, dict[str, Any]] = {
    "whisper": {**STACKS, "num_mel_bins": 5, "max_source_positions": 9, "max_target_positions": 14},
    "bart": {**STACKS, "max_position_embeddings": 14},
    "t5": {**T5, "feed_forward_proj": "relu"},
    "mt5": {**T5, "feed_forward_proj": "gated-gelu"},
    "wav2vec2": {**SOUND, **QUANTISER},
    "hubert": {**SOUND, "do_stable_layer_norm": True},
}
TYPES = tuple(OWN)
# Model type -> what grows -> the fields; the width with its heads, as it is said, and every other size alone.
WIDE = {"d_model": 48, "encoder_attention_heads": 8, "decoder_attention_heads": 6}
GROWN_STACKS: dict[str, dict[str, int]] = {
    "width": WIDE,
    "length of heads": {"d_model": 48},
    "MLP": {"encoder_ffn_dim": 40, "decoder_ffn_dim": 56},
    "encoder": {"encoder_layers": 4},
    "decoder": {"decoder_layers": 5},
    "all": {**WIDE, "encoder_layers": 3, "decoder_layers": 6, "encoder_ffn_dim": 60, "decoder_ffn_dim": 28},
}
GROWN_T5: dict[str, dict[str, int]] = {
    "width": {"d_model": 48},
    "heads": {"num_heads": 6},
    "length of heads": {"d_kv": 12},
    "MLP": {"d_ff": 40},
    "encoder": {"num_layers": 4},
    "decoder": {"num_decoder_layers": 5},
    "all": {"d_model": 72, "d_kv": 12, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 6},
}
GROWN_SOUND: dict[str, dict[str, int]] = {
    "width": {"hidden_size": 48, "num_attention_heads": 8},
    "length of heads": {"hidden_size": 48},
    "MLP": {"intermediate_size": 40},
    "depth": {"num_hidden_layers": 5},
    "all": {"hidden_size": 72, "num_attention_heads": 12, "intermediate_size": 60},
}
GROWN = {"whisper": GROWN_STACKS, "bart": GROWN_STACKS, "t5": GROWN_T5, "mt5": GROWN_T5}
GROWN |= {"wav2vec2": GROWN_SOUND, "hubert": GROWN_SOUND}
IDS = torch.arange(3, 17).view(2, 7)
WORDS = torch.arange(4, 14).view(2, 5)


def sound(*shape: int) -> torch.Tensor:
    """Noise, as a spectrogram or as a waveform."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a model takes."""
    config, name = model.config, model.main_input_name
    if name == "input_features":
        batch = {name: sound(2, config.num_mel_bins, 2 * config.max_source_positions)}
    elif name == "input_values":
        batch = {name: sound(2, 80)}
    else:
        batch = {name: IDS}
    if config.is_encoder_decoder and "input_values" not in batch and "Audio" not in type(model).__name__:
        batch["decoder_input_ids"] = WORDS
    return batch


def build(model_type: str, task: str = "", seed: int = 0, **changes) -> PreTrainedModel:
    """A tiny model in float64 with every parameter random; by default with the task of its type."""
    config = CONFIG_MAPPING[model_type](**{**TEXT, **OWN[model_type], **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, f"AutoModel{task or TASK[model_type]}").from_config(config)
    return randomise(model.to(torch.float64).eval(), seed)


TASK = {"whisper": "ForSpeechSeq2Seq", "bart": "ForSeq2SeqLM", "t5": "ForSeq2SeqLM", "mt5": "ForSeq2SeqLM"}
TASK |= {"wav2vec2": "ForCTC", "hubert": "ForCTC"}


def resized(model: PreTrainedModel, folder: Path, task: str = "", **keywords) -> PreTrainedModel:
    """The model at other sizes, through a folder, as a user does it."""
    return through_folder(model, folder, f"BoTModel{task or TASK[model.config.model_type]}", **keywords)


@torch.no_grad()
def logits(model: PreTrainedModel, **batch: torch.Tensor) -> torch.Tensor:
    """What a model says of its inputs."""
    output = model(**(batch or inputs(model)))
    return output.logits if "logits" in output else output.start_logits


@torch.no_grad()
def change(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((actual - expected).abs().max() / expected.abs().max())
