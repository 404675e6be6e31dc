"""Rows for pickled, absent and quantised weights."""

import os
import shutil

import torch
from folders import PICKLE, WEIGHTS, config, content, header, replaced
from table import Fault
from table_folders import unsafe, without

from transformers_bot import BadCheckpoint, UnsupportedCheckpoint


def unchanged(folder):
    """The good folder is refused for what it is, or how it is asked for."""
    assert folder.is_dir()


class Attack:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def pickled_index(folder):
    """A second pickle and an index of both."""
    state = torch.load(folder / PICKLE, weights_only=True)
    torch.save(dict(list(state.items())[:3]), folder / "pytorch_model-00001-of-00001.bin")
    (folder / PICKLE).unlink()
    (folder / f"{PICKLE}.index.json").write_text(
        '{"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}'
    )


PICKLES = {
    "pickle only": unsafe(
        unchanged,
        r"only pytorch_model\.bin is here; pickle files can run code .*Convert it \(python -c 'from transformers "
        r"import GPT2LMHeadModel as M; .*save_pretrained\(\"converted\"\)'\).*allow_pickle=True for a file you trust",
        "pickled",
    ),
    "pickled shards only": unsafe(pickled_index, r"only pytorch_model\.bin\.index\.json is here", "pickled"),
    "asked for": unsafe(
        lambda folder: torch.save({}, folder / PICKLE),
        "use_safetensors=False asks for",
        "single",
        use_safetensors=False,
    ),
    "hostile": unsafe(
        lambda folder: torch.save({"a": Attack()}, folder / PICKLE),
        r"pytorch_model\.bin holds pickled objects other than tensors; they were not built",
        "pickled",
        allow_pickle=True,
    ),
    "index and shard differ": Fault(pickled_index, BadCheckpoint, "shards lack", "pickled", {"allow_pickle": True}),
    "garbage": Fault(
        content(b"garbage", PICKLE),
        BadCheckpoint,
        r"not a PyTorch file \(first bytes",
        "pickled",
        {"allow_pickle": True},
    ),
    "cut": Fault(
        lambda folder: os.truncate(folder / PICKLE, 5_000),
        BadCheckpoint,
        "cannot be read",
        "pickled",
        {"allow_pickle": True},
    ),
    "empty": Fault(content(b"", PICKLE), BadCheckpoint, "is empty", "pickled", {"allow_pickle": True}),
    "no state dict": Fault(
        lambda folder: torch.save([1], folder / PICKLE), BadCheckpoint, "by name", "pickled", {"allow_pickle": True}
    ),
    "no weights": Fault(
        without(WEIGHTS), BadCheckpoint, r"has no weights: model\.safetensors or .* is looked for; download it again"
    ),
    "another variant": Fault(
        unchanged, BadCheckpoint, r"there is 'model\.safetensors': rename", "single", {"variant": "fp16"}
    ),
    "GGUF": Fault(
        replaced(WEIGHTS, lambda p: (p.parent / "x.gguf").touch()), BadCheckpoint, "'x.gguf' are GGUF weights"
    ),
    "adapter": Fault(
        lambda folder: os.rename(folder / WEIGHTS, folder / "adapter_model.safetensors"),
        BadCheckpoint,
        r"adapter \(PEFT\)",
    ),
    "adapter and its config": Fault(
        content(b"{}", "adapter_config.json"), UnsupportedCheckpoint, r"holds an adapter \(PEFT\).*merge_and_unload"
    ),
    "parts of ranks": Fault(
        lambda folder: shutil.copy(folder / WEIGHTS, folder / "shard-00000-model-00001-of-00001.safetensors") and None,
        UnsupportedCheckpoint,
        "holds the parts of single ranks",
    ),
}


def quantised(mutate, message, source="single") -> Fault:
    return Fault(mutate, UnsupportedCheckpoint, message + r".*Dequantise it first", source)


def as_dtype(dtype):
    """The weights' bytes under another dtype of one byte an element."""

    def change(fields):
        for tensor in (value for name, value in fields.items() if name.endswith("c_fc.weight")):
            begin, end = tensor["data_offsets"]
            tensor.update(dtype=dtype, shape=[end - begin])

    return header(change)


def beside(name):
    """One tensor renamed to what a quantiser writes."""
    return header(lambda h: h.update({name: h.pop("transformer.h.0.mlp.c_fc.weight")}))


def method(name):
    return config(quantization_config={"quant_method": name, "bits": 4})


QUANTISED = {
    "fp8": quantised(
        as_dtype("F8_E4M3"), r"quantised \(fp8\) weights cannot be resampled: '.*c_fc\.weight' is stored as F8_E4"
    ),
    "int8": quantised(as_dtype("I8"), r"quantised \(int8\).*stored as I8"),
    "uint8": quantised(as_dtype("U8"), r"quantised \(int8\).*stored as U8"),
    "int32": quantised(
        header(lambda h: h["transformer.h.0.mlp.c_fc.weight"].update(dtype="I32")),
        r"quantised \(int32\).*stored as I32",
    ),
    "gptq": quantised(method("gptq"), r"quantised \(gptq\).*config\.json has a quantization_config"),
    "bitsandbytes": quantised(method("bitsandbytes"), r"quantised \(bitsandbytes\)"),
    "hostile method": quantised(method("\x1b[31m" * 99), r"quantised \(\\x1b\[31m"),
    "qweight": quantised(
        beside("transformer.h.0.mlp.c_fc.qweight"), r"\(GPTQ or AWQ\).*it holds 'transformer\.h\.0\.mlp"
    ),
    "scales": quantised(beside("transformer.h.0.mlp.c_fc.scales"), r"\(GPTQ or AWQ\)"),
    "quanto": quantised(beside("transformer.h.0.mlp.c_fc.weight._data"), r"\(quanto\)"),
    "SCB": quantised(beside("transformer.h.0.mlp.c_fc.SCB"), r"\(bitsandbytes int8\)"),
    "absmax": quantised(beside("transformer.h.0.mlp.c_fc.weight.absmax"), r"\(bitsandbytes 4-bit\)"),
    "nf4": quantised(
        beside("transformer.h.0.mlp.c_fc.weight.quant_state.bitsandbytes__nf4"), r"\(bitsandbytes 4-bit\)"
    ),
    "weight_scale": quantised(beside("transformer.h.0.mlp.c_fc.weight_scale"), r"\(fp8 or int8\)"),
    "weight_scale_inv": quantised(beside("transformer.h.0.mlp.c_fc.weight_scale_inv"), r"\(fp8\)"),
}

OTHERS = {**PICKLES, **QUANTISED}
