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
        length(200_000_000), r"not a safetensors file .*a header of 200,000,000 bytes, and 32,000,000 is the most"
    ),
    "header of 2^63": refused(length(1 << 63), r"a header of 9,223,372,036,854,775,808 bytes"),
    "header of 2^64 - 1": refused(length((1 << 64) - 1), r"a header of 18,446,744,073,709,551,615 bytes"),
    "header of 31 MB in a small file": refused(
        length(31_000_000), r"truncated \(needs 31,000,008 bytes for the header alone, has 10\)"
    ),
    "header of 0": refused(length(0), "no header begins after its first 8 bytes"),
    "header shorter than written": refused(length(1), "no header begins"),
    "33 MB of spaces": refused(header_text(b"{" + b" " * 33_000_000), r"and 32,000,000 is the most there can be"),
    "31 MB of spaces": refused(header_text(b"{" + b" " * 31_000_000), r"EOF while parsing an object at line 1"),
    "31 MB of one name": refused(header_text(b'{"' + b"a" * 31_000_000), r"EOF while parsing a string at line 1"),
    "31 MB of lists": refused(
        header_text(b'{"a":{"dtype":"F32","shape":[' + b"0," * 15_000_000 + b"0]}}"),
        r"holds 15,000,001 values, more than its tensors can have",
    ),
    "as many numbers as are read": refused(
        header_text(b'{"a":{"dtype":"F32","shape":[' + b"0," * 19_000 + b"0]}}"), r"missing field `data_offsets`"
    ),
    "31 MB of metadata": refused(
        header_text(b'{"__metadata__":{' + b'"a":"b",' * 3_800_000), r"more than its tensors can have \(20,000\)"
    ),
    "as many texts of metadata as are read": refused(
        header_text(b'{"__metadata__":{' + b",".join(b'"%d":""' % number for number in range(20_000)) + b"}}"),
        "holds no tensors",
    ),
    "31 MB of metadata in one text": refused(
        header_text(b'{"__metadata__":{"a":"' + b"\xf0\x9f\xa4\x97" * 7_700_000 + b'"}}'), "holds no tensors"
    ),
    "half a million tensors": refused(many(500_000), r"more than its tensors can have \(1,000,000\)"),
}
TEXTS = {
    "a list": refused(header_text(b"[1, 2, 3]"), "no header begins"),
    "deep": refused(header_text(b'{"a":' + b"[" * 100_000), "recursion limit exceeded"),
    "deep objects": refused(header_text(b'{"a":' * 100_000), "recursion limit exceeded"),
    "cut JSON": refused(header_text(b'{"a":{"dtype":"F32","sha'), "EOF while parsing a string"),
    "comma at the end": refused(header_text(b'{"__metadata__":{},}'), "trailing comma"),
    "comma at the start": refused(header_text(b'{,"a":{}}'), "key must be a string"),
    "no colon": refused(header_text(b'{"a" {}}'), "expected `:`"),
    "text behind": refused(header_text(b'{"__metadata__":{}} x'), "trailing characters"),
    "metadata no texts": refused(header_text(b'{"__metadata__":{"a":1}}'), "integer `1`, expected a string"),
    "a NUL": refused(header_text(b'{"a\0":{}}'), "control character"),
    "no tensors": refused(header_text(b"{}"), rf"model\.safetensors holds no tensors\. {AGAIN}"),
    "a tensor twice": refused(
        lambda folder: named(
            b'"' + next(iter(name for name in split(folder / WEIGHTS)[0] if "." in name)).encode() + b'"'
        )(folder),
        r"names '.*' twice",
    ),
    "a name of 1 MB": refused(
        named(b'"' + b"a" * 1_000_000 + b'"'), r"a tensor name of 1,000,000 characters, 'a{40}'\.\.\."
    ),
    "a name that is no UTF-8": refused(named(b'"\xff\xfe"'), "invalid utf-8 sequence"),
    "a name with a bad escape": refused(named(b'"\\x"'), "invalid escape"),
    "a name with half a character": refused(named(b'"\\ud800"'), "end of hex escape"),
    "metadata with half a character": refused(header_text(b'{"__metadata__":{"a":"\\ud800"}}'), "end of hex escape"),
    "a name with terminal commands": refused(
        named(b'"\\u001b[31mred\\u0007"'), r"holds 1 tensor without any element: '\\x1b\[31mred\\x07'"
    ),
    "a name as a path": refused(
        named(b'"../../etc/passwd"'), r"holds 1 tensor without any element: '\.\./\.\./etc/passwd'"
    ),
}
TENSORS = {
    "overlap": refused(header(shifted), r"invalid offset for tensor `transformer.*`\. Download"),
    "hole": refused(holed, r"invalid offset for tensor `transformer.*`\. Download"),
    "bytes behind": refused(longer, r"model\.safetensors has 4 bytes behind its last tensor that belong to no tensor"),
    "unknown dtype": refused(field("dtype", "F31"), r"unknown variant `F31`, expected one of `BOOL`"),
    "dtype no text": refused(field("dtype", ["F32"]), "invalid type: sequence, expected string"),
    "dtype of other width": refused(field("dtype", "F16"), "invalid shape, data type, or offset for tensor"),
    "shape too long": refused(
        header(lambda h: first(h).update(shape=[7, *first(h)["shape"]])),
        "invalid shape, data type, or offset for tensor",
    ),
    "shape huge": refused(field("shape", [1 << 62, 1 << 62, 4]), "overflow computing buffer size from shape"),
    "shape negative": refused(field("shape", [-1, -12]), "integer `-1`, expected usize"),
    "shape no list": refused(field("shape", "12"), 'string "12", expected a sequence'),
    "shape of fractions": refused(field("shape", [12.0]), "floating point `12.0`, expected usize"),
    "shape of truth values": refused(field("shape", [True, 12]), "boolean `true`, expected usize"),
    "offsets reversed": refused(
        header(lambda h: first(h)["data_offsets"].reverse()), r"invalid offset for tensor `transformer.*`"
    ),
    "offsets negative": refused(field("data_offsets", [-48, 0]), "integer `-48`, expected usize"),
    "offsets three": refused(field("data_offsets", [0, 4, 8]), "invalid length 3, expected"),
    "offsets beyond the file": refused(
        header(lambda h: in_order(h)[-1].update(dtype="U8", shape=[1 << 50], data_offsets=[0, 1 << 50])),
        "invalid offset|truncated",
    ),
    "offsets of 2^64": refused(
        header(lambda h: first(h).update(dtype="U8", shape=[1 << 64], data_offsets=[0, 1 << 64])), "expected usize"
    ),
    "a number of 4,000 digits": refused(
        lambda folder: header_text(b'{"a":{"dtype":"F32","shape":[' + b"9" * 4_000 + b'],"data_offsets":[0,4]}}')(
            folder
        ),
        "number out of range",
    ),
    "a field missing": refused(header(lambda h: first(h).pop("dtype") and None), "missing field `dtype`"),
    "a field more": refused(field("stride", [1]), "fields that are none of dtype, shape and data_offsets"),
    "a field twice": refused(
        header_text(b'{"a":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}'), "duplicate field `dtype`"
    ),
    "empty tensors": refused(emptied, r"holds 28 tensors without any element: .*\(DeepSpeed ZeRO-3\)\. Gather them"),
}
HEADERS = {**FILES, **LENGTHS, **TEXTS, **TENSORS}
