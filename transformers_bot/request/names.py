"""The names of keywords, by whom they are for, and what is said of a name that a call does not have."""

from collections.abc import Iterable
from dataclasses import fields

from .. import methods
from ..errors import BadKeyword, BadOption, suggest
from ..io.files import HUB as FINDING
from ..options import BoTConfig
from .signatures import OURS

HUB = (*FINDING, "trust_remote_code", "code_revision")
FILES = ("variant", "use_safetensors", "weights_only", "key_mapping", "disable_mmap")
TARGET = (
    "device_map",
    "max_memory",
    "offload_folder",
    "offload_buffers",
    "quantization_config",
    "distributed_config",
    "device_mesh",
    "tp_plan",
    "tp_size",
    "attn_implementation",
    "experts_implementation",
    "use_kernels",
    "allow_all_kernels",
    "kernel_config",
    "generation_config",
)
SPLITTING = ("distributed_config", "tp_plan", "tp_size", "device_mesh")  # those of TARGET that split over ranks
OFFLOADING = ("max_memory", "offload_folder")  # those that may leave weights on disk
ONLY_RESIZING = (
    *("bot_config", "method", "calibration", "allow_pickle", "nonfinite", "strict", "record_path"),
    "vocab_keep",
)
SWITCHES = ("allow_pickle", "strict", "record_path", "ignore_mismatched_sizes", "output_loading_info")
NONFINITE = ("error", "warn", "zero")
PLACING = ("auto", "balanced", "balanced_low_0", "sequential")  # the words that device_map may be, beside devices
# transformers 5 accepts these and does nothing with them.
IGNORED = (
    "low_cpu_mem_usage",
    "_fast_init",
    "mirror",
    "offload_state_dict",
    "_from_auto",
    "_commit_hash",
    "_from_pipeline",
)
ELSEWHERE = ("state_dict", "gguf_file")  # those of REFUSED that name other weights than the source's
REFUSED = {
    "state_dict": "the source is a checkpoint name or folder; save the tensors there first",
    "gguf_file": "GGUF weights are quantised and cannot be resampled; use the safetensors checkpoint",
    "from_tf": "TensorFlow checkpoints are not read by transformers 5; convert to safetensors",
    "from_flax": "Flax checkpoints are not read by transformers 5; convert to safetensors",
    "adapter_kwargs": "adapters are merged before resizing: merge_and_unload(), save, resize the folder",
}

DTYPES = {"fp16": "float16", "f16": "float16", "bf16": "bfloat16"}  # what torch itself has no name for
DTYPES |= {"fp32": "float32", "f32": "float32", "fp64": "float64", "f64": "float64"}

READY = "ready:"  # prefix that marks the name of a ready config
OPTIONS = tuple(field.name for field in fields(BoTConfig))
KNOWN = (*HUB, *FILES, *TARGET, *OURS, *IGNORED, *REFUSED)

# What each public call names itself, beside keywords of the Hub and of transformers.
CALLS = {
    "from_pretrained": OURS,
    "plan": (*OURS, "task"),
    "resize_checkpoint": (*OURS, "task", "max_shard_size", "overwrite", "tokenizer", "modules", "fit"),
    "verify": ("source", "allow_pickle"),
    "integration": ("bot_config", "method"),
    "enable": ("bot_config", "method"),
    "inspect": ("wavelet", "task", "allow_pickle"),
    "suggest": ("params", "like", "ratio", "memory", "dtype", "count", "task", "allow_pickle"),
    "fit": ("steps", "lr", "seed", "rank", "source"),
}


def check_known(call: str, keywords: Iterable[str], others: tuple[str, ...] = ()) -> None:
    """Refuse a keyword of a call that takes no fields of a config.

    Args:
        others: what the call takes beside its own keywords.

    Raises:
        BadKeyword: a keyword that the call does not have, with the nearest one or the call that has it.

    >>> check_known("verify", ["sorce"])
    Traceback (most recent call last):
    transformers_bot.errors.BadKeyword: verify has no keyword 'sorce'. Did you mean 'source'?
    """
    taken = (*CALLS[call], *others)
    for name in keywords:
        if name not in taken:
            where = ", and where the source is found, such as revision" if others else ""
            hint = _of_others(call, name) or suggest(name, taken) or f" It takes {', '.join(CALLS[call])}{where}."
            raise BadKeyword(f"{call} has no keyword {name!r}.{hint}")


def remedy(call: str, method: str, name: str, fields: Iterable[str]) -> str:
    """A sentence on a name that is no field of a config: where it belongs, or the nearest name.

    >>> remedy("plan", "bot", "method", ["n_layer"])
    ' Pass method= beside the fields, not among them.'
    """
    known = (*KNOWN, *CALLS[call])
    if name in known:
        return f" Pass {name}= beside the fields, not among them."
    if name in _options(method):
        return f" It is an option of the method: pass it as bot_config={{{name!r}: ...}}."
    return _of_others(call, name) or suggest(name, (*fields, *known))


def _options(method: str) -> tuple[str, ...]:
    """The options of a method, also of one's own."""
    try:
        return tuple(methods.options_of(method, None).to_dict())
    except BadOption:  # an unknown method, which has a message of its own
        return OPTIONS


def _of_others(call: str, name: str) -> str:
    """A sentence on the calls that have a keyword which this one lacks, if there are any."""
    if name in OPTIONS and call in ("integration", "enable"):
        return f" It is an option of the method: pass it as bot_config={{{name!r}: ...}}."
    others = [other for other, names in CALLS.items() if name in names and name not in CALLS[call]]
    if not others:
        return ""
    if name == "task" and call == "from_pretrained":
        return " The class that is called says the task, such as BoTModelForMaskedLM."
    return f" {name}= belongs to {', '.join(others[:-1])}{' and ' * bool(others[1:])}{others[-1]}."
