"""Rows for the index, for links and special files, for pickles and for quantised weights."""

import os
import shutil
import socket

import torch
from folders import (
    INDEX,
    PICKLE,
    SHARDS,
    WEIGHTS,
    config,
    content,
    first_shard,
    header,
    index,
    join,
    moved_out,
    replaced,
    shard,
    split,
)
from table import Fault

from transformers_bot import BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint
from transformers_bot.checkpoint import jsons


def sharded(mutate, message, error=BadCheckpoint, **keywords) -> Fault:
    return Fault(mutate, error, message, "sharded", keywords)


def unsafe(mutate, message, source="sharded", **keywords) -> Fault:
    return Fault(mutate, UnsafeCheckpoint, message, source, keywords)


def unchanged(folder):
    """The good folder is refused for what it is, or how it is asked for."""
    assert folder.is_dir()


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names] and None


def renamed_tensor(fields):
    tensor, file = fields["weight_map"].popitem()
    fields["weight_map"]["transformer.h.9.gone"] = file
    fields["weight_map"][tensor] = file


def moved_tensor(fields):
    """The index names another shard than the one that holds the tensor."""
    tensor = next(iter(fields["weight_map"]))
    fields["weight_map"][tensor] = shard(SHARDS)


def doubled(folder):
    """The first tensor of the first shard is in the second one, too."""
    fields, tensors = split(folder / shard(1))
    name = next(key for key in fields if key != "__metadata__")
    begin, end = fields[name]["data_offsets"]
    others, more = split(folder / shard(2))
    others[name] = {**fields[name], "data_offsets": [len(more), len(more) + end - begin]}
    join(folder / shard(2), others, more + tensors[begin:end])


def linked_shard(folder):
    """The index and the names are good; a shard is a link out of the folder."""
    moved_out(shard(2))(folder)


def bind(path):
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket has 107 characters at most
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


INDICES = {
    "shards missing": sharded(
        without(shard(2), shard(4)),
        rf"2 of {SHARDS} shards are missing: 'model-00002-of-.*', 'model-00004-of-.*' \(named by .*index\.json\)\.",
    ),
    "all shards missing": sharded(
        without(*(shard(number + 1) for number in range(SHARDS))),
        rf"{SHARDS} of {SHARDS} shards are missing: .*00001.*0000{SHARDS}",
    ),
    "up": unsafe(
        first_shard("../x.safetensors"), r"index names a file outside of the model folder: '\.\./x.safetensors'"
    ),
    "up within": unsafe(first_shard("a/../../x.safetensors"), "outside of the model folder"),
    "absolute": unsafe(first_shard("/etc/passwd"), "outside of the model folder: '/etc/passwd'"),
    "backslashes": unsafe(first_shard("..\\x.safetensors"), "outside of the model folder"),
    "a drive": unsafe(first_shard("c:x.safetensors"), "outside of the model folder"),
    "a wildcard": unsafe(first_shard("*.safetensors"), "outside of the model folder"),
    "no name": unsafe(first_shard(""), "outside of the model folder: ''"),
    "the folder": unsafe(first_shard("."), "outside of the model folder"),
    "a NUL": unsafe(first_shard("a\0.safetensors"), r"outside of the model folder: 'a\\x00"),
    "terminal commands": unsafe(first_shard("\x1b[2J.safetensors"), r"'\\x1b\[2J\.safetensors'"),
    "half a character": unsafe(first_shard("\ud800.safetensors"), r"'\\ud800\.safetensors'"),
    "a name of 1 MB": unsafe(first_shard("a" * 1_000_000), r"\(1,000,000 characters\)"),
    "a pickle as shard": unsafe(first_shard("x.bin"), r"names 'x\.bin', which is no \.safetensors file"),
    "a shard a link out": unsafe(linked_shard, r"model-00002-of.* is a link to .*outside/.*, outside of the model"),
    "index a link out": unsafe(moved_out(INDEX), r"index\.json is a link to .*outside of the model folder"),
    "no weight_map": sharded(index(lambda i: i.pop("weight_map") and None), r"index\.json has no 'weight_map'.*again"),
    "weight_map a list": sharded(index(lambda i: i.update(weight_map=["a"])), "has no 'weight_map'"),
    "weight_map empty": sharded(index(lambda i: i.update(weight_map={})), "lists no tensors"),
    "no metadata": sharded(index(lambda i: i.pop("metadata") and None), "no 'metadata' object"),
    "a file that is no name": sharded(first_shard(3), r"gives tensor '.*' the file 3, which is no name"),
    "a file None": sharded(first_shard(None), "the file None, which is no name"),
    "a list": sharded(index(lambda i: [i]), r"index\.json holds a list, not an object"),
    "bad JSON": sharded(content(b'{"weight_map": {', INDEX), r"index\.json cannot be read as JSON: .* in line 1"),
    "no UTF-8": sharded(content(b'{"a": "\xff"}', INDEX), "byte 7 is not UTF-8"),
    "UTF-16": sharded(content('{"a": 1}'.encode("utf-16"), INDEX), "cannot be read as JSON"),
    "empty index": sharded(content(b"", INDEX), "cannot be read as JSON"),
    "LFS pointer": sharded(content(b"version https://git-lfs.github.com/spec/v1\n", INDEX), "is a Git LFS pointer"),
    "a name twice": sharded(content(b'{"weight_map": {"a": "b", "a": "c"}}', INDEX), "'a' is given twice"),
    "deep": sharded(content(b"[" * 100_000, INDEX), "nested too deeply"),
    "deep but closed": sharded(content(b'{"a":' * 100 + b"1" + b"}" * 100, INDEX), "nested deeper than 32 levels"),
    "huge": sharded(content(b" " * (jsons.MAX_BYTES + 1), INDEX), r"has 16,000,001 bytes; 16,000,000 is the most"),
    "many values": sharded(content(b"{" + b'"a":[],' * 1_000_000, INDEX), "holds more than 500,000 values"),
    "lists what a shard lacks": sharded(
        index(renamed_tensor),
        r"lists 1 tensor that the shards lack: 'transformer\.h\.9\.gone' \(the first should be in '",
    ),
    "lists it in another shard": sharded(index(moved_tensor), r"lists 1 tensor that the shards lack"),
    "omits what a shard holds": sharded(
        index(lambda i: i["weight_map"].pop("transformer.ln_f.bias") and None),
        r"omits 1 tensor that its shards hold: 'transformer\.ln_f\.bias'\. Download",
    ),
    "a tensor in two shards": sharded(
        doubled, r"more than one shard of .* holds 1 tensor: '.*' \(the first is in '.*model-00001"
    ),
}
SPECIAL = {
    "weights a link out": unsafe(moved_out(WEIGHTS), r"model\.safetensors is a link to .*outside/model", "single"),
    "weights a link to a device": unsafe(
        replaced(WEIGHTS, lambda p: p.symlink_to("/dev/zero")), "link to /dev/zero", "single"
    ),
    "weights a broken link": Fault(
        replaced(WEIGHTS, lambda p: p.symlink_to("x")), BadCheckpoint, "is a broken link to 'x'"
    ),
    "weights a link to itself": Fault(
        replaced(WEIGHTS, lambda p: p.symlink_to(WEIGHTS)), BadCheckpoint, "cannot be read: too many levels"
    ),
    "weights a directory": Fault(replaced(WEIGHTS, lambda p: p.mkdir()), BadCheckpoint, "is a directory, not a file"),
    "weights a named pipe": Fault(
        replaced(WEIGHTS, os.mkfifo), BadCheckpoint, r"is a named pipe, not a file\. Remove it"
    ),
    "weights a socket": Fault(replaced(WEIGHTS, bind), BadCheckpoint, "is a socket, not a file"),
    "a shard a named pipe": sharded(replaced(shard(2), os.mkfifo), "model-00002.* is a named pipe"),
    "a shard a directory": sharded(replaced(shard(2), lambda p: p.mkdir()), "model-00002.* is a directory"),
    "index a named pipe": sharded(replaced(INDEX, os.mkfifo), r"index\.json is a named pipe"),
    "generation config a link out": unsafe(moved_out("generation_config.json"), r"generation_config\.json is a link"),
    "tokenizer a link out": unsafe(
        lambda folder: (folder / "tokenizer.json").symlink_to("/etc/passwd"),
        r"tokenizer\.json is a link to /etc/passwd, outside",
    ),
    "generation config no JSON": sharded(content(b"{", "generation_config.json"), "cannot be read as JSON"),
}


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
    "SCB": quantised(beside("transformer.h.0.mlp.c_fc.SCB"), r"\(bitsandbytes int8\)"),
    "absmax": quantised(beside("transformer.h.0.mlp.c_fc.weight.absmax"), r"\(bitsandbytes 4-bit\)"),
    "nf4": quantised(
        beside("transformer.h.0.mlp.c_fc.weight.quant_state.bitsandbytes__nf4"), r"\(bitsandbytes 4-bit\)"
    ),
    "weight_scale": quantised(beside("transformer.h.0.mlp.c_fc.weight_scale"), r"\(fp8 or int8\)"),
    "weight_scale_inv": quantised(beside("transformer.h.0.mlp.c_fc.weight_scale_inv"), r"\(fp8\)"),
}
FOLDERS = {**INDICES, **SPECIAL, **PICKLES, **QUANTISED}
