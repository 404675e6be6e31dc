"""Ten thousand seeded edits of good folders: only `BoTError` escapes, quickly, in little memory, opening nothing else.

Another seed: `TRANSFORMERS_BOT_FUZZ_SEED=7 pytest tests/faults/test_fuzz.py`. A failure names the edit's
number; the same seed makes the same edits.

Memory is the growth of the process's resident set at its highest point of each edit, as the kernel
counts it (VmHWM after /proc/self/clear_refs), so native allocations count too; the audit event "open"
tells what was opened (see watching.py).
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edits import bytes_edited, json_edited
from folders import CONFIG, INDEX, WEIGHTS, joined, make_sources, split
from safetensors import safe_open
from watching import MEGABYTES, SECONDS, watched

import transformers_bot
from transformers_bot import BoTError, BoTModelForCausalLM
from transformers_bot.io.checkpoint import check_files

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("TRANSFORMERS_BOT_FUZZ_SEED", "0"))
# What is edited -> how many edits; 10,000 in all.
SHARES = {"weights bytes": 2_700, "weights header": 2_500, "index bytes": 1_000, "index": 1_200, "config bytes": 800}
SHARES |= {"config": 1_350, "generation config": 300, "whole": 150}
FIELDS = (
    *("num_labels", "id2label", "quantization_config", "torch_dtype", "attn_implementation", "per_layer_config"),
    *("rope_scaling", "auto_map", "pruned_heads", "is_encoder_decoder", "transformers_weights", "configuration_files"),
    *("output_attentions", "use_return_dict", "name_or_path", "num_hidden_layers", "hidden_size", "n_inner"),
)
GENERATION = "generation_config.json"
GENERATION_FIELDS = (
    *(
        "cache_implementation",
        "watermarking_config",
        "compile_config",
        "repetition_penalty",
        "temperature",
        "num_beams",
    ),
    *("do_sample", "top_k", "bad_words_ids", "max_length", "pad_token_id", "_from_model_config", "generation_kwargs"),
)
HEADER_FIELDS = ("__metadata__", "dtype", "shape", "data_offsets", "transformer.wte.weight")
INDEX_FIELDS = ("metadata", "weight_map", "total_size", "transformer.wte.weight")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Copies of the good folders, to edit; each edit restores what it changed."""
    return make_sources(tmp_path_factory.mktemp("fuzzed"))


def edits(what: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    """The edits of one kind: (file, its new content)."""
    generator = random.Random(f"{SEED} {what} {folder.name}")
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    fields, tensors = split(folder / WEIGHTS) if WEIGHTS in good else ({}, b"")

    def text(name: str, keys: tuple[str, ...]) -> bytes:
        return json_edited(json.loads(good[name]), generator, keys).encode()

    makers: dict[str, Callable[[], tuple[str, bytes]]] = {
        "weights bytes": lambda: (WEIGHTS, bytes_edited(good[WEIGHTS], generator, len(good[WEIGHTS]) - len(tensors))),
        "weights header": lambda: (
            WEIGHTS,
            joined(json_edited(fields, generator, HEADER_FIELDS).encode(), tensors),
        ),
        "index bytes": lambda: (INDEX, bytes_edited(good[INDEX], generator, 10_000)),
        "index": lambda: (INDEX, text(INDEX, INDEX_FIELDS)),
        "config bytes": lambda: (CONFIG, bytes_edited(good[CONFIG], generator, 10_000)),
        "config": lambda: (CONFIG, text(CONFIG, FIELDS)),
        "generation config": lambda: (GENERATION, text(GENERATION, GENERATION_FIELDS)),
    }
    fitting = [kind for kind in makers if not kind.startswith("weights" if INDEX in good else "index")]
    for _ in range(SHARES[what]):
        yield makers[generator.choice(fitting) if what == "whole" else what]()


def check(folder: Path) -> None:
    """The check alone; what it lets pass, the safetensors library must read, and as the same tensors."""
    checked = check_files(str(folder), {})
    for path in checked.files:
        with safe_open(path, framework="pt") as stream:
            held = {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
        assert held == {name: tensor.shape for name, tensor in checked.tensors.items() if tensor.file == path}


def plan(folder: Path) -> None:
    """What a config alone can do: no weight is looked at."""
    transformers_bot.plan(str(folder), n_layer=4)


def whole(folder: Path) -> None:
    BoTModelForCausalLM.from_pretrained(str(folder), n_layer=4)


def survive(folder: Path, name: str, data: bytes, call: Callable[[Path], None]) -> str:
    """Run `call` on the folder with one file replaced; the name of the error, or "accepted"."""
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(data)
    try:
        with watched() as seen:
            try:
                call(folder)
                outcome, text = "accepted", ""
            except BoTError as error:
                outcome, text = type(error).__name__, str(error)
        assert text == "" or text.isprintable()
        assert len(text) < 10_000
        assert seen.outside(folder) == []
        assert seen.seconds < SECONDS
        assert seen.megabytes < MEGABYTES
    finally:
        (folder / name).write_bytes(good)
    return outcome


CALLS = {"config bytes": plan, "config": plan, "whole": whole}


@pytest.mark.parametrize("what", SHARES)
def test_only_our_errors_escape(folders, what):
    kinds = {"weights": ("single",), "index": ("sharded",)}.get(what.split()[0], ("single", "sharded"))
    outcomes: Counter[str] = Counter()
    for kind in kinds:
        for number, (name, data) in enumerate(edits(what, folders[kind])):
            if number >= SHARES[what] // len(kinds):
                break
            try:
                outcomes[survive(folders[kind], name, data, CALLS.get(what, check))] += 1
            except Exception as error:
                raise AssertionError(f"seed {SEED}, {what}, edit {number} of {kind}/{name}") from error
    assert outcomes.total() == SHARES[what]
    assert outcomes["BadCheckpoint"] > SHARES[what] // 10  # the edits do damage
    assert outcomes["accepted"] > 0  # and are small enough to leave some folders good


def test_there_are_ten_thousand():
    assert sum(SHARES.values()) == 10_000
