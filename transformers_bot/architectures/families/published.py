"""The structures of published models by name: those of the paper (supplement Tables 6, 10 and 12), and others.

In the paper heads have 64 entries, and the MLP is four times as wide as the stream. Fields that the tables do not give
have transformers' defaults.
"""

from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]
Structure = tuple[str, Fields]  # a model type, and fields of its config

# size -> (layers, hidden, heads)
STRUCTURES = {"tiny": (3, 192, 3), "small": (6, 384, 6), "base": (12, 768, 12), "large": (24, 1024, 16)}
SIZES = {
    "bert": ("tiny", "small", "base", "large"),
    "roberta": ("small", "base"),
    "gpt2": ("small", "base"),
    "deit": ("tiny", "small", "base", "large"),
}


def _of_the_paper(family: str, size: str) -> dict[str, Any]:
    layers, hidden, heads = STRUCTURES[size]
    if family == "gpt2":  # Table 12; sequences of 1024
        return {"n_layer": layers, "n_embd": hidden, "n_head": heads, "n_positions": 1024, "vocab_size": 50257}
    widths = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": 4 * hidden}
    fields = {"num_hidden_layers": layers, **widths}
    if family == "deit":  # Table 6
        return {**fields, "image_size": 224, "patch_size": 16}
    if family == "bert":  # Table 10; trained on sequences of 128, but with 512 positions as public BERTs have
        return {**fields, "vocab_size": 30522, "max_position_embeddings": 512}
    # Table 12; 512 text positions behind RoBERTa's two rows for padding
    text = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return {**fields, **text}


# layers, hidden, MLP units, heads, key-value heads
DECODER = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def _decoder(*sizes: int, **fields: Any) -> dict[str, Any]:
    return {**dict(zip(DECODER, sizes, strict=True)), **fields}


# Scaling of rotary positions from 8,192 to 131,072 tokens.
_LLAMA_3 = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}
_SMOLLM2: dict[str, Any] = {
    **{"vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    **{"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "bos_token_id": 0, "eos_token_id": 0},
}
_GEMMA_3: dict[str, Any] = {
    **{"vocab_size": 262144, "max_position_embeddings": 32768, "head_dim": 256},
    **{"query_pre_attn_scalar": 256, "sliding_window": 512},
}
_QWEN_3: dict[str, Any] = {
    **{"vocab_size": 151936, "max_position_embeddings": 40960, "head_dim": 128, "rms_norm_eps": 1e-6},
    **{"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
}
_LLAMA_32: dict[str, Any] = {
    **{"vocab_size": 128256, "max_position_embeddings": 131072, "head_dim": 64, "rms_norm_eps": 1e-5},
    **{"tie_word_embeddings": True, "rope_parameters": _LLAMA_3, "bos_token_id": 128000, "eos_token_id": 128001},
}


def _whisper(layers: int, hidden: int, heads: int, languages: str = "many", mels: int = 80) -> Structure:
    """Both stacks of a Whisper have the same sizes; its heads have 64 entries.

    Args:
        languages: "many", "English" or "Cantonese too". The vocabulary follows: the first of the special tokens ends a
            text, the next one begins one, and the others tell languages and tasks.
    """
    vocabulary = {"English": 51864, "many": 51865, "Cantonese too": 51866}[languages]
    end = 50256 if languages == "English" else 50257
    fields: dict[str, Any] = {"vocab_size": vocabulary, "num_mel_bins": mels, "d_model": hidden}
    for stack in ("encoder", "decoder"):
        fields |= {f"{stack}_layers": layers, f"{stack}_attention_heads": heads, f"{stack}_ffn_dim": 4 * hidden}
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end)
    # A text does not begin with a space or at its end.
    return "whisper", {**fields, **tokens, "decoder_start_token_id": end + 1, "begin_suppress_tokens": [220, end]}


# Name -> model type and fields, from the config.json of the models' own pages on the Hub.
PUBLISHED: dict[str, Structure] = {
    # Qwen/Qwen3-0.6B; layers and heads also in its report (arXiv 2505.09388), Table 1
    "qwen3-0.6b": ("qwen3", _decoder(28, 1024, 3072, 16, 8, **_QWEN_3)),
    # meta-llama/Llama-3.2-1B
    "llama-3.2-1b": ("llama", _decoder(16, 2048, 8192, 32, 8, **_LLAMA_32)),
    # HuggingFaceTB/SmolLM2-135M and -360M
    "smollm2-135m": ("llama", _decoder(30, 576, 1536, 9, 3, **_SMOLLM2)),
    "smollm2-360m": ("llama", _decoder(32, 960, 2560, 15, 5, **_SMOLLM2)),
    # google/gemma-3-270m and -1b-pt; every sixth layer sees the whole text, which is the class's default
    "gemma-3-270m": ("gemma3_text", _decoder(18, 640, 2048, 4, 1, **_GEMMA_3)),
    "gemma-3-1b": ("gemma3_text", _decoder(26, 1152, 6912, 4, 1, **_GEMMA_3)),
    # answerdotai/ModernBERT-base and -large; also in their report (arXiv 2412.13663), the table of the model design
    "modernbert-base": ("modernbert", {"classifier_pooling": "mean"}),  # the sizes are the class's defaults
    "modernbert-large": (
        "modernbert",
        {
            **{"num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size": 2624, "num_attention_heads": 16},
            **{"classifier_pooling": "mean"},
        },
    ),
    # openai/whisper-*: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv 2212.04356),
    # Table 1; vocabularies and bands of frequency from the models' pages
    "whisper-tiny": _whisper(4, 384, 6),
    "whisper-tiny.en": _whisper(4, 384, 6, "English"),
    "whisper-base": _whisper(6, 512, 8),
    "whisper-base.en": _whisper(6, 512, 8, "English"),
    "whisper-small": _whisper(12, 768, 12),
    "whisper-small.en": _whisper(12, 768, 12, "English"),
    "whisper-medium": _whisper(24, 1024, 16),
    "whisper-medium.en": _whisper(24, 1024, 16, "English"),
    "whisper-large": _whisper(32, 1280, 20),
    "whisper-large-v2": _whisper(32, 1280, 20),
    "whisper-large-v3": _whisper(32, 1280, 20, "Cantonese too", mels=128),
}
# The same for every name.
READY: dict[str, Structure] = {
    f"{family}-{size}": (family, _of_the_paper(family, size)) for family, sizes in SIZES.items() for size in sizes
}
READY |= PUBLISHED
