"""Whether a checkpoint's weights are numbers, or codes that only mean something with their scales."""

from collections.abc import Mapping
from typing import Any

from ...errors import UnsupportedCheckpoint
from .headers import StoredTensor
from .paths import shown

FLOATS = ("F16", "BF16", "F32", "F64")
# What a quantiser writes beside, or instead of, a weight: the end of a tensor's name -> the quantiser.
MARKS = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "scales": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "SCB": "bitsandbytes int8",
    "weight_format": "bitsandbytes int8",
    "absmax": "bitsandbytes 4-bit",
    "quant_map": "bitsandbytes 4-bit",
    "bitsandbytes__nf4": "bitsandbytes 4-bit",
    "bitsandbytes__fp4": "bitsandbytes 4-bit",
    "weight_scale": "fp8 or int8",
    "weight_scale_inv": "fp8",
    "weight_packed": "compressed-tensors",
    "weight_zero_point": "compressed-tensors",
    "weight_scales": "EETQ",
    "input_scale": "fp8",
    "codebooks": "AQLM",
    "W_q": "HQQ",
    "_data": "quanto",
    "_scale": "quanto",
}
REMEDY = "Dequantise it first, or use the checkpoint it was made from."


def check_not_quantised(source: str, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse what cannot be resampled as numbers.

    Args:
        source: the checkpoint, for messages.
        config: the fields of its config.json.
        tensors: what the headers say.

    Raises:
        UnsupportedCheckpoint: naming the quantiser and the tensor or field that shows it.
    """
    for field in ("quantization_config", "compression_config"):
        if config.get(field):
            kind = _method(config[field])
            raise UnsupportedCheckpoint(
                f"{source}: quantised ({kind}) weights cannot be resampled: config.json has a {field}. {REMEDY} Where "
                "the weights are plain floats, remove that field."
            )
    for name, tensor in tensors.items():
        kind = _kind_of(name, tensor)
        if kind:
            raise UnsupportedCheckpoint(
                f"{source}: quantised ({kind}) weights cannot be resampled: {shown(name)} is stored as {tensor.dtype}. "
                f"{REMEDY}"
            )
    for name in tensors:
        kind = MARKS.get(name.rpartition(".")[2], "")
        if kind:
            raise UnsupportedCheckpoint(
                f"{source}: quantised ({kind}) weights cannot be resampled: it holds {shown(name)}. {REMEDY}"
            )


def _method(field: Any) -> str:
    """The quantiser's name from config.json, for a message."""
    named = field.get("quant_method") if isinstance(field, dict) else None
    return shown(named).strip("'") if named else "method not named"


def _kind_of(name: str, tensor: StoredTensor) -> str:
    """How a tensor is quantised by its dtype, empty where it is not."""
    if tensor.dtype.startswith("F8"):
        return "fp8"
    if tensor.dtype == "F4" or tensor.dtype.startswith("F6_"):
        return tensor.dtype.lower().replace("f", "fp", 1)
    # Whole numbers are honest in buffers: position ids, GPT-2's causal mask (1, 1, n, n) as U8 or BOOL.
    is_mask = len(tensor.shape) == 4 and tensor.shape[2] == tensor.shape[3]
    if tensor.dtype == "I8" or (tensor.dtype == "U8" and not is_mask):
        return "int8"
    if tensor.dtype not in FLOATS and name.endswith(".weight"):
        return tensor.dtype.lower().replace("i", "int", 1)
    return ""
