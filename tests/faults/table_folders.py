"""Rows for the index, for links and for special files."""

import os
import socket

from folders import (
    INDEX,
    SHARDS,
    WEIGHTS,
    content,
    first_shard,
    index,
    join,
    moved_out,
    replaced,
    shard,
    split,
)
from table import Fault

from transformers_bot import BadCheckpoint, UnsafeCheckpoint
from transformers_bot.io import config_files


def sharded(mutate, message, error=BadCheckpoint, **keywords) -> Fault:
    return Fault(mutate, error, message, "sharded", keywords)


def unsafe(mutate, message, source="sharded", **keywords) -> Fault:
    return Fault(mutate, UnsafeCheckpoint, message, source, keywords)


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
    "a file that is no name": sharded(first_shard(3), r"gives tensor '.*' the file 3, which is no file name"),
    "a file None": sharded(first_shard(None), "the file None, which is no file name"),
    "a list": sharded(index(lambda i: [i]), r"index\.json holds a list, not an object"),
    "bad JSON": sharded(content(b'{"weight_map": {', INDEX), r"index\.json cannot be read as JSON: .* in line 1"),
    "no UTF-8": sharded(content(b'{"a": "\xff"}', INDEX), "byte 7 is not UTF-8"),
    "UTF-16": sharded(content('{"a": 1}'.encode("utf-16"), INDEX), "cannot be read as JSON"),
    "empty index": sharded(content(b"", INDEX), "cannot be read as JSON"),
    "LFS pointer": sharded(content(b"version https://git-lfs.github.com/spec/v1\n", INDEX), "is a Git LFS pointer"),
    "a name twice": sharded(content(b'{"weight_map": {"a": "b", "a": "c"}}', INDEX), "'a' is given twice"),
    "deep": sharded(content(b"[" * 100_000, INDEX), "nested too deeply"),
    "deep but closed": sharded(content(b'{"a":' * 100 + b"1" + b"}" * 100, INDEX), "nested deeper than 32 levels"),
    "huge": sharded(
        content(b" " * (config_files.MAX_BYTES + 1), INDEX), r"has 16,000,001 bytes; 16,000,000 is the most"
    ),
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
    "generation config of no use": sharded(
        content(b'{"cache_implementation": 0.5}', "generation_config.json"),
        r"generation_config\.json cannot be used: .*",
    ),
    "generation config no JSON": sharded(content(b"{", "generation_config.json"), "cannot be read as JSON"),
}


FOLDERS = {**INDICES, **SPECIAL}
