"""Energy per band is PyWavelets' own, over every role and the layers; tensors are read one at a time."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
from families import FAMILIES, MAIN_HEADS, build, save
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel
from twostacks import build as build_two_stacks

from transformers_bot import BadCheckpoint, BadOption, BoTModelForMaskedLM
from transformers_bot.cli.inspect import show
from transformers_bot.tools.inspecting import inspect

WAVELETS = ("haar", "db2", "coif1")


def stack_of(found, ending):
    return next(stack for stack in found.stacks if stack.name.endswith(ending))


def low(x: np.ndarray, axis: int, wavelet: str) -> np.ndarray:
    return pywt.dwt(x, wavelet, mode="periodization", axis=axis)[0]


def share(part: np.ndarray, whole: np.ndarray) -> float:
    return float((part**2).sum() / (whole**2).sum())


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_energies_are_those_of_pywavelets(saved, wavelet):
    sizes = {"layer": 4, "hidden": 24, "heads": 6, "ffn": 20}
    folder, built = saved("bert", "BertForMaskedLM", **sizes)
    found = inspect(folder, wavelet=wavelet)
    state = {name: x.double().numpy() for name, x in built.model.state_dict().items()}
    names = [f"bert.encoder.layer.{layer}.attention.self.query.weight" for layer in range(4)]
    query = np.stack([state[name] for name in names]).reshape(4, 6, 4, 24)  # (layer, heads, head_dim, hidden)
    stack = stack_of(found, "query.weight")
    for role, axis in (("layer", 0), ("heads", 1), ("head_dim", 2), ("hidden", 3)):
        assert stack.kept[role] == pytest.approx(share(low(query, axis, wavelet), query), rel=1e-6)
        if role != "layer":
            by_layer = [share(low(one, axis - 1, wavelet), one) for one in query]
            assert stack.by_layer[role] == pytest.approx(by_layer, rel=1e-6)
    pooled = state["cls.predictions.transform.dense.weight"]  # hidden on both axes
    both = share(low(low(pooled, 0, wavelet), 1, wavelet), pooled)
    assert stack_of(found, "transform.dense.weight").kept["hidden"] == pytest.approx(both, rel=1e-6)


def test_fused_queries_keys_and_values_are_halved_in_each_part(saved):
    folder, built = saved("gpt2", "GPT2LMHeadModel", layer=2, hidden=24, heads=6)
    weight = built.model.state_dict()["transformer.h.0.attn.c_attn.weight"].double().numpy()
    parts = weight.reshape(24, 3, 6, 4)  # (hidden, q|k|v, heads, head_dim)
    stack = stack_of(inspect(folder), "c_attn.weight")
    assert stack.by_layer["heads"][0] == pytest.approx(share(low(parts, 2, "haar"), parts), rel=1e-6)
    assert stack.by_layer["head_dim"][0] == pytest.approx(share(low(parts, 3, "haar"), parts), rel=1e-6)


def test_an_odd_length_keeps_one_entry_whole(saved):
    folder, built = saved("bert", "BertForMaskedLM")  # 3 heads
    x = built.model.state_dict()["bert.encoder.layer.0.attention.self.value.weight"].double().numpy()
    x = x.reshape(3, 4, 12)
    kept = np.concatenate([x[:1], low(x[1:], 0, "haar")])
    assert stack_of(inspect(folder), "value.weight").by_layer["heads"][0] == pytest.approx(share(kept, x), rel=1e-6)


def test_what_was_doubled_loses_nothing_by_halving(saved, tmp_path):
    folder, _ = saved("bert", "BertForMaskedLM", hidden=24, heads=6, ffn=96, layer=2, dtype=torch.float32)
    options = {"detail": "zero"}
    grown = BoTModelForMaskedLM.from_pretrained(folder, hidden_size=48, num_attention_heads=12, bot_config=options)
    found = inspect(save(grown, tmp_path))
    assert stack_of(found, "intermediate.dense.weight").kept["hidden"] == pytest.approx(1.0, abs=1e-5)
    assert stack_of(found, "word_embeddings.weight").kept["hidden"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_every_tensor_is_there_once(saved, family, head):
    folder, built = saved(family, head)
    found = inspect(folder)
    assert found.parameters == built.model.num_parameters()
    assert found.bytes == 8 * found.parameters
    assert sum(max(1, stack.layers) for stack in found.stacks) == len(built.model.state_dict())
    for stack in found.stacks:
        assert all(0 <= value <= 1 + 1e-9 for value in stack.kept.values())
        assert stack.dtype == "float64"


def test_both_stacks_of_layers_are_grouped(tmp_path):
    build_two_stacks("bart").save_pretrained(tmp_path)
    text = show(inspect(tmp_path), 200)
    assert "layer}" not in text
    assert re.search(r"^model\.encoder\.layers\.\{0\.\.\.1\}\.\s*$", text, re.M)
    assert re.search(r"^model\.decoder\.layers\.\{0\.\.\.2\}\.\s*$", text, re.M)
    assert re.search(r"^  encoder_attn\.q_proj\.weight  ", text, re.M)


@pytest.mark.slow
def test_both_stacks_of_layers_are_labelled(tmp_path):
    build_two_stacks("bart").save_pretrained(tmp_path)
    found = inspect(tmp_path)
    labels = [label.get_text() for axes in found.plot().axes[:-1] for label in axes.get_yticklabels()]
    assert "encoder_attn.q_proj.weight" in labels
    assert all(label and "layer" not in label for label in labels)


@pytest.mark.slow
def test_every_family_can_be_drawn_and_told(saved, tmp_path):
    for family in FAMILIES:
        folder, _ = saved(family, dict(MAIN_HEADS)[family])
        found = inspect(folder)
        picture = found.plot(tmp_path / f"{family}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert plain["parameters"] == found.parameters


def test_a_picture_needs_matplotlib_and_an_ending_that_it_writes(saved, tmp_path, monkeypatch):
    found = inspect(saved("bert", "BertModel")[0])
    with pytest.raises(BadOption, match=r"energy\.doc must end in one of .*\.png"):
        found.plot(tmp_path / "energy.doc")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BadOption, match=r'pip install "transformers-bot\[plot\]"'):
        found.plot(tmp_path / "energy.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("wavelet", "message"), [("bior2.2", "not orthogonal"), ("harr", "Did you mean 'haar'")])
def test_a_wavelet_whose_bands_do_not_add_up_is_refused(saved, wavelet, message):
    with pytest.raises(BadOption, match=message):
        inspect(saved("bert", "BertModel")[0], wavelet=wavelet)


def test_zeros_have_no_share(tmp_path):
    model = build("bert", "BertModel").model
    with torch.no_grad():
        model.pooler.dense.bias.zero_()
    assert stack_of(inspect(save(model, tmp_path)), "pooler.dense.bias").kept == {}


def test_tensors_beyond_or_below_the_class_are_named(tmp_path):
    folder = save(build("bert", "BertModel").model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["pooler.dense.bias"]
    save_file({**state, "extra.weight": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = inspect(folder)
    assert found.missing == ("pooler.dense.bias",)
    assert found.unexpected == ("extra.weight",)
    assert not any(stack.name == "pooler.dense.bias" for stack in found.stacks)


def test_a_folder_without_weights_is_refused(tmp_path):
    build("bert", "BertModel").config.save_pretrained(tmp_path)
    with pytest.raises((BadCheckpoint, OSError)):
        inspect(tmp_path)


def test_shares_of_noise_are_near_one_half(tmp_path):
    model = build("bert", "BertModel", hidden=48, heads=6, ffn=192, layer=4).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    found = inspect(save(model, tmp_path))
    for ending in ("query.weight", "output.dense.weight"):
        for role, kept in stack_of(found, ending).kept.items():
            assert math.isclose(kept, 0.5, abs_tol=0.02), (ending, role)


SAMPLED = """
import sys, threading, time
from transformers_bot.tools.inspecting import inspect

def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])

inspect(sys.argv[1])
before, seen, done = anonymous(), [], threading.Event()
def watch():
    while not done.wait(0.001):
        seen.append(anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
inspect(sys.argv[2])
done.set()
watcher.join()
print(max(seen) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see a process's own memory")
def test_memory_is_that_of_a_few_tensors(tmp_path):
    wide = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "vocab_size": 100}
    source = save(BertModel(BertConfig(num_hidden_layers=16, **wide)), tmp_path / "deep")  # 200 MB
    small = save(build("bert", "BertModel").model, tmp_path / "small")
    command = [sys.executable, "-c", SAMPLED, small, source]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    largest = 512 * 2048 * 4 / 1e3  # kB
    assert int(done.stdout) < 5 * largest + 16_000  # beside tensors the buffers of every thread
