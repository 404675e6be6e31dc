"""A tiny config of every built-in model type, and of its forms with other tensors, for the check of adapters."""

from collections.abc import Callable
from functools import partial

import decoders
import encoders
import families
import test_fused_heads
import twostacks
import visions
from transformers import PreTrainedConfig


def _of(build: Callable[..., object], name: str, **changes) -> PreTrainedConfig:
    return build(name, **changes).config


VISIONS = [name for name in visions.ROWS if name != "beit shared"]
# Name -> a function that makes the config.
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    **{name: partial(families.tiny_config, name) for name in families.FAMILIES},
    **{name: partial(_of, decoders.build, name) for name in decoders.TYPES},
    **{name: partial(_of, encoders.build, name) for name in encoders.ROWS},
    **{name: partial(_of, test_fused_heads.build, name) for name in test_fused_heads.MODELS},
    **{name: partial(_of, visions.build, name) for name in (*VISIONS, *visions.PAIRS)},
    **{name: partial(_of, twostacks.build, name) for name in twostacks.TYPES},
    "hubert, all states": partial(_of, twostacks.build, "hubert", use_weighted_layer_sum=True),
    "hubert, norms behind": partial(_of, twostacks.build, "hubert", do_stable_layer_norm=False),
}
# Classes that cannot be resized, or not built from these configs, and why. All others run.
NOT_RUN = {
    "Wav2Vec2ForAudioFrameClassification": "its classifier reads the stream, but that of other classes",
    "BeitForSemanticSegmentation": "requires config.out_indices to be a list of 4 integers",
}
