"""Rows for safetensors files: truncated, alien, and headers that contradict themselves."""

import json
import pickle

from folders import (
    SHARDS,
    WEIGHTS,
    content,
    cut,
    field,
    first,
    header,
    header_text,
    in_order,
    join,
    shard,
    split,
)
from table import AGAIN, Fault

from transformers_bot import BadCheckpoint

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 548105171\n"


def refused(mutate, message, **more) -> Fault:
    return Fault(mutate, BadCheckpoint, message, **more)


def length(number, text=b"{}"):
    return lambda folder: join(folder / WEIGHTS, text, b"", number)


def many(count):
    entries = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
    return header_text(b"{" + entries.encode() + b"}")


def named(name):
    """A header with one more tensor, of no bytes, under this name (JSON text)."""

    def mutate(folder):
        fields, tensors = split(folder / WEIGHTS)
        rest = json.dumps(fields).encode()[1:]
        entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
        join(folder / WEIGHTS, b"{" + name + b":" + entry + b"," + rest, tensors)

    return mutate


def shifted(fields):
    """The second tensor begins where the first does."""
    one, two = in_order(fields)[:2]
    size = two["data_offsets"][1] - two["data_offsets"][0]
    two["data_offsets"] = [one["data_offsets"][0], one["data_offsets"][0] + size]


def holed(folder):
    """Four bytes between header and tensors that belong to nothing, every offset moved by them."""
    fields, tensors = split(folder / WEIGHTS)
    for tensor in in_order(fields):
        tensor["data_offsets"] = [offset + 4 for offset in tensor["data_offsets"]]
    join(folder / WEIGHTS, fields, b"\0" * 4 + tensors)


def longer(folder):
    with open(folder / WEIGHTS, "ab") as stream:
        stream.write(b"more")


def emptied(folder):
    """Every tensor is empty, as DeepSpeed ZeRO-3 leaves them."""
    fields, _ = split(folder / WEIGHTS)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    join(folder / WEIGHTS, {name: empty for name in fields if "." in name}, b"")


FILES = {
    "tail cut": refused(
        cut(-100), rf"model\.safetensors is truncated \(needs [\d,]+ bytes for its tensors, has [\d,]+\)\. {AGAIN}"
    ),
    "tail of a shard cut": refused(
        cut(-100, shard(2)),
        rf"model-00002-of-0000{SHARDS}\.safetensors is truncated \(needs .*{AGAIN}",
        source="sharded",
    ),
    "header cut": refused(cut(200), rf"truncated \(needs [\d,]+ bytes for the header alone, has 200\)\. {AGAIN}"),
    "cut behind the length": refused(cut(8), r"model\.safetensors is truncated .*has 8\)"),
    "cut in the length": refused(cut(5), rf"not a safetensors file .*it has 5 bytes\. {AGAIN}"),
    "empty": refused(content(b""), rf"model\.safetensors is empty \(0 bytes\)\. {AGAIN}"),
    "an empty shard": refused(content(b"", shard(3)), r"model-00003-of-.* is empty", source="sharded"),
    "garbage": refused(content(bytes(range(7, 250)) * 9), r"not a safetensors file \(first bytes b'\\x07\\x08.*again"),
    "zeros": refused(content(b"\0" * 4096), r"not a safetensors file .*no header begins"),
    "text": refused(content(b"hello, world\n"), r"not a safetensors file \(first bytes b'hello, world'\)"),
    "web page": refused(content(b"<!DOCTYPE html><html>Sign in"), r"\(an HTML or XML page\) \(first bytes"),
    "pickle by another name": refused(content(pickle.dumps({"a": 1})), r"not a safetensors file \(a pickled file\)"),
    "zip by another name": refused(content(b"PK\x03\x04" + b"\0" * 99), r"zip archive or pickled PyTorch file"),
    "LFS pointer": refused(content(LFS), r"is a Git LFS pointer, not the weights\. Run `git lfs pull`.*Hub id"),
    "LFS pointer of a shard": refused(content(LFS, shard(1)), r"model-00001.* is a Git LFS pointer", source="sharded"),
}
LENGTHS = {
    "200 MB header": refused(
        length(200_000_000), r"not a safetensors file .*a header of 200,000,000 bytes, and 100,000,000 is the most"
    ),
    "header of 2^63": refused(length(1 << 63), r"a header of 9,223,372,036,854,775,808 bytes"),
    "header of 2^64 - 1": refused(length((1 << 64) - 1), r"a header of 18,446,744,073,709,551,615 bytes"),
    "header of 99 MB in a small file": refused(
        length(99_000_000), r"truncated \(needs 99,000,008 bytes for the header alone, has 10\)"
    ),
    "header of 0": refused(length(0), "no header begins after its first 8 bytes"),
    "header shorter than written": refused(length(1), "no header begins"),
    "99 MB of spaces": refused(header_text(b"{" + b" " * 99_000_000), r"expected a quoted name at byte 99,000,009"),
    "99 MB of one name": refused(header_text(b'{"' + b"a" * 99_000_000), r"expected a quoted name at byte 9, found"),
    "99 MB of lists": refused(
        header_text(b'{"a":{"dtype":"F32","shape":[' + b"0," * 49_000_000 + b"0]}}"), r"expected a tensor's dtype"
    ),
    "99 MB of metadata": refused(
        header_text(b'{"__metadata__":{' + b'"a":"b",' * 12_000_000), r"at most 8,000,000 bytes and 10,000 texts of"
    ),
    "99 MB of metadata in one text": refused(
        header_text(b'{"__metadata__":{"a":"' + b"\xf0\x9f\xa4\x97" * 24_000_000 + b'"}}'), r"at most 8,000,000 bytes"
    ),
    "a million tensors and one": refused(many(1_000_001), r"names more than 1,000,000 tensors, which no model has"),
}
TEXTS = {
    "a list": refused(header_text(b"[1, 2, 3]"), "no header begins"),
    "deep": refused(header_text(b'{"a":' + b"[" * 100_000), "expected a tensor's dtype, shape and data_offsets"),
    "deep objects": refused(header_text(b'{"a":' * 100_000), "expected a tensor's dtype, shape and data_offsets"),
    "cut JSON": refused(header_text(b'{"a":{"dtype":"F32","sha'), "expected a tensor's dtype"),
    "comma at the end": refused(header_text(b'{"__metadata__":{},}'), "expected a quoted name"),
    "comma at the start": refused(header_text(b'{,"a":{}}'), "expected a quoted name"),
    "no colon": refused(header_text(b'{"a" {}}'), "expected ':'"),
    "text behind": refused(header_text(b'{"__metadata__":{}} x'), "expected the end"),
    "metadata no texts": refused(header_text(b'{"__metadata__":{"a":1}}'), "expected a text in __metadata__"),
    "a NUL": refused(header_text(b'{"a\0":{}}'), "expected a quoted name"),
    "no tensors": refused(header_text(b"{}"), rf"model\.safetensors holds no tensors\. {AGAIN}"),
    "a tensor twice": refused(
        lambda folder: named(
            b'"' + next(iter(name for name in split(folder / WEIGHTS)[0] if "." in name)).encode() + b'"'
        )(folder),
        r"names '.*' twice",
    ),
    "a name of 1 MB": refused(
        named(b'"' + b"a" * 1_000_000 + b'"'), r"a tensor name of 1,000,000 bytes, b'a{40}'\.\.\."
    ),
    "a name that is no UTF-8": refused(named(b'"\xff\xfe"'), r"has b'\"\\xff\\xfe\"' as a text"),
    "a name with a bad escape": refused(named(b'"\\x"'), "as a text"),
    "a name with half a character": refused(named(b'"\\ud800"'), "as a text"),
    "metadata with half a character": refused(header_text(b'{"__metadata__":{"a":"\\ud800"}}'), "as a text"),
    "a name with terminal commands": refused(
        named(b'"\\u001b[31mred\\u0007"'), r"holds 1 tensor without any element: '\\x1b\[31mred\\x07'"
    ),
    "a name as a path": refused(
        named(b'"../../etc/passwd"'), r"holds 1 tensor without any element: '\.\./\.\./etc/passwd'"
    ),
}
TENSORS = {
    "overlap": refused(header(shifted), r"tensors '.*' and '.*' overlap in the file\. Download"),
    "hole": refused(holed, r"4 bytes before tensor '.*' belong to no tensor"),
    "bytes behind": refused(longer, r"model\.safetensors has 4 bytes behind its last tensor that belong to no tensor"),
    "unknown dtype": refused(field("dtype", "F31"), r"tensor '.*' has the dtype 'F31', which is none of BOOL, U8"),
    "dtype no text": refused(field("dtype", ["F32"]), r"the dtype \['F32'\]"),
    "dtype of other width": refused(field("dtype", "F16"), r"of F16, which is \d+ bytes, but data_offsets for \d+"),
    "shape too long": refused(
        header(lambda h: first(h).update(shape=[7, *first(h)["shape"]])), "bytes, but data_offsets for"
    ),
    "shape huge": refused(
        field("shape", [1 << 62, 1 << 62, 4]), r"which is 340282366920938\d+ bytes, but data_offsets for"
    ),
    "shape negative": refused(field("shape", [-1, -12]), r"the shape \[-1, -12\], which is no list of lengths"),
    "shape no list": refused(field("shape", "12"), r"the shape '12', which is no list of lengths"),
    "shape of fractions": refused(field("shape", [12.0]), "no list of lengths"),
    "shape of truth values": refused(field("shape", [True, 12]), "no list of lengths"),
    "offsets reversed": refused(
        header(lambda h: first(h)["data_offsets"].reverse()), r"the data_offsets .*, which are no range of bytes"
    ),
    "offsets negative": refused(field("data_offsets", [-48, 0]), "no range of bytes"),
    "offsets three": refused(field("data_offsets", [0, 4, 8]), "no range of bytes"),
    "offsets beyond the file": refused(
        header(lambda h: in_order(h)[-1].update(dtype="U8", shape=[1 << 50], data_offsets=[0, 1 << 50])),
        "overlap|truncated",
    ),
    "offsets of 2^64": refused(
        header(lambda h: first(h).update(dtype="U8", shape=[1 << 64], data_offsets=[0, 1 << 64])), "no list of lengths"
    ),
    "a number of 4,000 digits": refused(
        lambda folder: header_text(b'{"a":{"dtype":"F32","shape":[' + b"9" * 4_000 + b'],"data_offsets":[0,4]}}')(
            folder
        ),
        r"\(4,0\d\d characters\)",
    ),
    "a field missing": refused(
        header(lambda h: first(h).pop("dtype") and None), r"the fields .*, not dtype, shape and"
    ),
    "a field more": refused(field("stride", [1]), "the fields .*'stride'"),
    "a field twice": refused(
        header_text(b'{"a":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}'), "a field is given twice"
    ),
    "empty tensors": refused(emptied, r"holds 28 tensors without any element: .*\(DeepSpeed ZeRO-3\)\. Gather them"),
}
HEADERS = {**FILES, **LENGTHS, **TEXTS, **TENSORS}
