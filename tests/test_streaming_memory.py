"""Streaming a sharded Llama holds at most the bytes of `memory_bound`: far less than the model that it writes."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import save_file

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

# The layout of Llama with grouped queries, of 16 layers: what it holds must not grow with their number.
LAYERS = 16
SIZES = {"hidden_size": 384, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 1024}
CONFIG = {**SIZES, "num_hidden_layers": LAYERS, "vocab_size": 1000, "max_position_embeddings": 256}
TARGETS = {
    "wider": {"hidden_size": 768},
    "deeper": {"num_hidden_layers": 64},
    "shrunk": {"hidden_size": 192, "num_hidden_layers": 12},
}
SCRIPT = """if True:
    import json, re, sys, threading, time
    from pathlib import Path
    import torch
    import transformers
    from transformers import LlamaForCausalLM
    import transformers_bot
    from transformers_bot.tools.resize_checkpoint import resize_checkpoint
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    source, out, fields = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    plan = transformers_bot.plan(source, fields)  # imports what is needed, and makes what is remembered
    def held(): return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    peak = before = held()
    done = threading.Event()
    def watch():
        global peak
        while not done.wait(0.005):
            peak = max(peak, held())
    thread = threading.Thread(target=watch)
    thread.start()
    resize_checkpoint(source, out, fields)
    done.set()
    thread.join()
    print(json.dumps([peak - before, transformers_bot.memory_bound(plan), plan.to_dict()["bytes"]["target"]]))
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A checkpoint in bfloat16, a shard for every layer."""
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(**CONFIG, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in transformers.LlamaForCausalLM(config).state_dict().items()}
    generator, places = torch.Generator().manual_seed(0), {}
    for layer in (*(f".{number}." for number in range(LAYERS)), ""):
        file = f"model-{layer.strip('.') or 'rest'}.safetensors"
        names = [name for name in shapes if name not in places and (f"layers{layer}" in name if layer else True)]
        draw = {name: 0.02 * torch.randn(shapes[name], generator=generator) for name in names}
        save_file({name: (1 + x if x.dim() == 1 else x).bfloat16() for name, x in draw.items()}, folder / file)
        places |= dict.fromkeys(names, file)
    total = sum(2 * shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_streaming_holds_at_most_its_bound(llama, tmp_path, name):
    words = [sys.executable, "-c", SCRIPT, llama, tmp_path / "out", json.dumps(TARGETS[name])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    peak, bound, written = json.loads(done.stdout.splitlines()[-1])
    assert peak <= bound
    if name != "shrunk":
        assert peak < written  # float32 copies of the result alone would be twice as much
