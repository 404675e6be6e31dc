"""Rows for config.json."""

import os

from folders import CONFIG, config, content, json_edit, moved_out, replaced
from table import Fault

from transformers_bot import BadCheckpoint, BadOption, BadSize, UnsafeCheckpoint, UnsupportedArchitecture
from transformers_bot.io import config_files

BIG = 10**9


def bad(mutate, message, error=BadCheckpoint) -> Fault:
    return Fault(mutate, error, message)


CONFIGS = {
    "none": bad(lambda folder: (folder / CONFIG).unlink(), r"has no config\.json: .*Copy the file that belongs"),
    "empty": bad(content(b"", CONFIG), r"config\.json cannot be read as JSON"),
    "bad JSON": bad(content(b'{"n_layer": 2', CONFIG), r"config\.json cannot be read as JSON: .* in line 1"),
    "a list": bad(content(b"[1]", CONFIG), r"config\.json holds a list, not an object"),
    "a number": bad(content(b"1e999", CONFIG), "holds a float, not an object"),
    "a number of 5,000 digits": bad(content(b'{"n_layer": ' + b"9" * 5_000 + b"}", CONFIG), "cannot be read as JSON"),
    "LFS pointer": bad(
        content(b"version https://git-lfs.github.com/spec/v1\n", CONFIG), r"Git LFS pointer.*git lfs pull"
    ),
    "no UTF-8": bad(content(b'{"a\xff": 1}', CONFIG), "is not UTF-8"),
    "huge": bad(content(b" " * (config_files.MAX_BYTES + 1), CONFIG), "16,000,000 is the most it can have"),
    "many values": bad(content(b'{"a": [' + b"[]," * 1_000_000 + b"1]}", CONFIG), "holds more than 500,000 values"),
    "deep": bad(content(b'{"a":' * 50_000, CONFIG), "nested too deeply"),
    "a field twice": bad(content(b'{"n_layer": 2, "n_layer": 3}', CONFIG), "'n_layer' is given twice"),
    "a link out": bad(moved_out(CONFIG), r"config\.json is a link to .*outside of the model folder", UnsafeCheckpoint),
    "a named pipe": bad(replaced(CONFIG, os.mkfifo), r"config\.json is a named pipe"),
    "a directory": bad(replaced(CONFIG, lambda path: path.mkdir()), r"config\.json is a directory"),
    "weights out of the folder": bad(
        config(transformers_weights="../x.safetensors"), r"names '\.\./x\.safetensors' as its weights", UnsafeCheckpoint
    ),
    "weights a pickle": bad(config(transformers_weights="adapter_model.bin"), "no safetensors file", UnsafeCheckpoint),
    "another config out of the folder": bad(
        config(configuration_files=["config./../../x.json"]), "outside of the model folder", UnsafeCheckpoint
    ),
    "another config of no version": bad(
        config(configuration_files=["config.x.json"]), "configuration_files cannot be used"
    ),
    "code from the hub": bad(
        config(attn_implementation="someone/kernel"), "'someone/kernel': that is code from the hub", UnsafeCheckpoint
    ),
    "a method of the class": bad(config(to_dict=1), "has a field 'to_dict', which is no setting"),
    "its class": bad(config(__class__="x"), "has a field '__class__'"),
    "its dict": bad(config(__dict__={}), "has a field '__dict__'"),
    "aliases": bad(config(attribute_map={"n_layer": "n_embd"}), "has a field 'attribute_map'"),
    "model type a list": bad(config(model_type=["gpt2"]), r"model_type is \['gpt2'\], not a name"),
    "architectures no list": bad(config(architectures=3), "architectures is 3, not a list of names"),
    "architectures of numbers": bad(config(architectures=[3]), "not a list of names"),
    "no dtype": bad(config(dtype="load"), "dtype is 'load', which is no dtype of torch"),
    "a label without a number": bad(
        config(id2label={"a": "b"}), "id2label has the key 'a', which is no label's number"
    ),
    "a number that is none": bad(config(layer_norm_epsilon=float("nan")), "holds the number nan"),
    "a billion layers": bad(config(n_layer=BIG), "n_layer is 1000000000 in .*no model has more than 1,000", BadSize),
    "a billion wide": bad(config(n_embd=BIG), "n_embd is 1000000000", BadSize),
    "a billion tokens": bad(config(vocab_size=BIG), "vocab_size is 1000000000", BadSize),
    "a billion labels": bad(config(num_labels=BIG), "num_labels is 1000000000", BadSize),
    "2^24 labels": bad(config(num_labels=1 << 24, id2label=None), "num_labels is 16777216", BadSize),
    "2^70 positions": bad(config(n_positions=1 << 70), "n_positions is", BadSize),
    "no layers": bad(config(n_layer=0), "n_layer is 0 in the source config", BadSize),
    "layers negative": bad(config(n_layer=-2), "n_layer is -2 in the source config", BadSize),
    "heads that do not divide": bad(config(n_head=5), "n_embd 12 is not divisible by n_head 5", BadSize),
    "no model type": bad(
        json_edit(CONFIG, lambda fields: fields.pop("model_type") and None), "config .* cannot be used"
    ),
    "hostile model type": bad(config(model_type="\x1b[31m"), r"model type '\\x1b\[31m'", UnsupportedArchitecture),
    "a model type of another version": bad(config(model_type="bertt"), "Did you mean 'bert'", UnsupportedArchitecture),
    "timm": bad(config(model_type=None, pretrained_cfg={}), "is a config of timm", UnsupportedArchitecture),
    "dropout of 3": bad(config(resid_pdrop=3), r"cannot build GPT2LMHeadModel.*dropout probability", BadOption),
    "no such activation": bad(
        config(activation_function="nope\x1b[31m"), "does not know activation_function=.nope", BadOption
    ),
}
