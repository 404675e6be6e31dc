"""Wrong values in every field of every family's config, in files and as overrides: only `BoTError`, printable.

Each run tries a sample, drawn anew from `TRANSFORMERS_BOT_FUZZ_SEED`; TRANSFORMERS_BOT_FUZZ_ALL=1 tries them all.
"""

import json
import os
import random
import shutil

import pytest
import torch
from families import CONFIGS, FAMILIES, build

import transformers_bot
from transformers_bot import BoTError, BoTModel
from transformers_bot.architectures.sizes import class_fields
from transformers_bot.tools.inspecting import inspect

SEED = os.environ.get("TRANSFORMERS_BOT_FUZZ_SEED", "0")
EVERY = bool(os.environ.get("TRANSFORMERS_BOT_FUZZ_ALL"))
SAMPLE = 24  # of some 600 pairs of a field and a value
LONGEST = 1_500  # characters of a message
WRONG = (
    *(None, "x", "", "gelu\n", "\0\x1b[31m", -1, 0, 3, 2.5, True, 1 << 70, float("nan")),
    *([], [1], {}, {"a": 1}),
)
MORE = ("num_labels", "position_embedding_type", "pruned_heads", "embedding_size", "is_causal", "layer_types")
HEADS = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForMaskedLM",
    "gpt2": "GPT2DoubleHeadsModel",
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassificationWithTeacher",
}
# Where each was a raw error once: never left to the draw.
ALWAYS = {
    "bert": [("hidden_size", -1), ("type_vocab_size", -1), ("output_attentions", True), ("hidden_act", "\0\x1b[31m")],
    "roberta": [("pad_token_id", None), ("pad_token_id", "x"), ("num_attention_heads", 0), ("hidden_size", 0)],
    "gpt2": [("resid_pdrop", 3), ("activation_function", "x"), ("n_inner", "x"), ("initializer_range", -1)],
    "vit": [("image_size", [1]), ("patch_size", 0), ("hidden_dropout_prob", 3), ("pooler_output_size", "x")],
    "deit": [("num_channels", None), ("encoder_stride", -1), ("image_size", {}), ("initializer_range", float("nan"))],
}


def pairs(family: str) -> list[tuple[str, object]]:
    names = [name for name in class_fields(CONFIGS[family]) if not name.startswith("_")]
    every = [(name, wrong) for name in sorted({*names, *MORE} - {"model_type"}) for wrong in WRONG]
    return every if EVERY else [*random.Random(f"{SEED} {family}").sample(every, SAMPLE), *ALWAYS[family]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("configs")
    for family, head in HEADS.items():
        build(family, head, dtype=torch.float32).model.save_pretrained(place / family)
    return place


def only_ours(call, told: str) -> bool:
    """Whether `call` works; what else it raises must be ours and printable."""
    try:
        call()
        return True
    except BoTError as error:
        said = str(error)
    except Exception as error:
        raise AssertionError(f"seed {SEED}, {told}") from error
    assert said.isprintable(), f"{told}: {said!r}"
    assert len(said) < LONGEST, told
    return False


def calls(folder: str, out, depth: str):
    deeper = {depth: 3}
    return {
        "plan": lambda: transformers_bot.plan(folder, **deeper),
        "suggest": lambda: transformers_bot.suggest(folder, ratio=0.5, count=1),
        "inspect": lambda: inspect(folder),
        "from_pretrained": lambda: BoTModel.from_pretrained(folder, **deeper),
        "as it is": lambda: BoTModel.from_pretrained(folder),
        "own size": lambda: BoTModel.from_pretrained(folder, config={depth: 2}),
        "resize_checkpoint": lambda: transformers_bot.resize_checkpoint(folder, out, deeper, overwrite=True),
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_values_in_a_file_are_answered_by_our_errors(folders, tmp_path, family):
    shutil.copytree(folders / family, tmp_path / "model")
    path, depth = tmp_path / "model" / "config.json", "n_layer" if family == "gpt2" else "num_hidden_layers"
    good = json.loads(path.read_text())
    refused = 0
    for number, (name, wrong) in enumerate(pairs(family)):
        path.write_text(json.dumps({**good, name: wrong}))
        every = calls(str(tmp_path / "model"), tmp_path / f"out{number}", depth)
        chosen = every if EVERY or (name, wrong) in ALWAYS[family] else dict([list(every.items())[number % len(every)]])
        for what, call in chosen.items():
            refused += not only_ours(call, f"{what} with {name}={wrong!r} in a {family} config")
    assert refused > 10


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_values_as_overrides_are_answered_by_our_errors(folders, family):
    folder, depth = str(folders / family), "n_layer" if family == "gpt2" else "num_hidden_layers"
    refused = 0
    for number, (name, wrong) in enumerate(pairs(family)):
        if name in ("dtype", "transformers_version", "architectures"):  # not fields of a size
            continue
        asked = {depth: 3, name: wrong} if number % 2 else {name: wrong}
        call = BoTModel.from_pretrained if number % 3 == 0 else transformers_bot.plan
        refused += not only_ours(lambda call=call, asked=asked: call(folder, config=asked), f"{family} {asked!r}")
    assert refused > 10
