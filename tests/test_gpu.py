"""A result for one GPU: which one it is, how it is handed over, and how its source gets there."""

import os
import threading
from contextlib import nullcontext

import pytest
import torch
from families import resize, resized_config
from transformers import GPT2Config

import transformers_bot
from transformers_bot.run import gpu, loading
from transformers_bot.run.execute import run_plan
from transformers_bot.run.gpu import LazyResults, Prefetched, StagingBuffers, gpu_for

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SMALLER = {"layer": 1, "hidden": 6, "heads": 3, "ffn": 10}


# -- which GPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_map", "number"),
    [
        ("cuda", 0),
        ("cuda:0", 0),
        ("cuda:1", 1),
        (1, 1),
        (torch.device("cuda", 1), 1),
        ({"": 0}, 0),
        ({"": "cuda:1"}, 1),
        ({"": torch.device("cuda", 1)}, 1),
        ("cuda:2", None),  # is not there
        ("cuda:x", None),
        (-1, None),
        (None, None),
        ("auto", None),
        ("balanced", None),
        ("cpu", None),
        ("mps", None),
        ({"": "cpu"}, None),
        ({"": "disk"}, None),
        ({"transformer": 0, "lm_head": 1}, None),
        ({"transformer": 0, "lm_head": "cpu"}, None),
    ],
)
def test_the_gpu_of_a_device_map(device_map, number, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    expected = None if number is None else torch.device("cuda", number)
    assert gpu_for({"device_map": device_map}, GPT2Config()) == expected


def test_cuda_is_that_of_the_local_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert gpu_for({"device_map": "cuda"}, GPT2Config()) == torch.device("cuda", 1)


def test_a_plain_cuda_device_is_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for device_map in (torch.device("cuda"), {"": "cuda"}):
        assert gpu_for({"device_map": device_map}, GPT2Config()) == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["quantization_config", "tp_plan", "distributed_config"])
def test_what_is_quantised_or_split_is_computed_on_the_cpu(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpu_for({"device_map": "cuda", name: object()}, GPT2Config()) is None


# -- handing over -------------------------------------------------------------------------------


@pytest.fixture
def cpu_as_gpu(monkeypatch):
    """Results are handed over as for a GPU, which is the CPU; what was computed and where it lay."""
    made = {}

    def run(*args, **kwargs):
        for name, tensor in run_plan(*args, **kwargs):
            made[name] = tensor.data_ptr()
            yield name, tensor

    monkeypatch.setattr(gpu, "gpu_for", lambda *_: torch.device("cpu"))
    monkeypatch.setattr(loading, "run_plan", run)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("family", "head"), [("gpt2", "GPT2LMHeadModel"), ("vit", "ViTForImageClassification")])
def test_what_arrives_late_is_the_same_model_without_a_copy(saved, cpu_as_gpu, family, head, layers):
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **{**SMALLER, "layer": layers})
    late = resize(folder, wanted, head, dtype=torch.float64, device_map="cpu")
    assert len(cpu_as_gpu) > 10
    state = late.state_dict()
    assert {state[name].data_ptr() for name in cpu_as_gpu} == set(cpu_as_gpu.values())
    expected = resize(folder, wanted, head, dtype=torch.float64)
    torch.testing.assert_close(dict(state), dict(expected.state_dict()), rtol=0, atol=0)


def test_an_error_reaches_the_caller_as_it_is(saved, monkeypatch):
    def fail(*_):
        yield "transformer.wte.weight", torch.zeros(23, 6)
        raise transformers_bot.BadWeights("overflow in layer 0")

    folder, built = saved("gpt2", "GPT2LMHeadModel")
    monkeypatch.setattr(gpu, "gpu_for", lambda *_: torch.device("cpu"))
    monkeypatch.setattr(loading, "run_plan", fail)
    with pytest.raises(transformers_bot.BadWeights, match="overflow in layer 0"):
        resize(folder, resized_config(built.config, **SMALLER), "GPT2LMHeadModel", device_map="cpu")


def test_results_come_in_any_order_and_once():
    order = [f"w{number}" for number in range(20)]
    computed = []

    def results():
        for number, name in enumerate(order):
            computed.append(name)
            yield name, torch.tensor(number)

    taken = {}
    with LazyResults(results(), torch.device("cpu")) as lazy:
        entries = lazy.state_dict(order)

        def take(names):
            taken.update({name: int(entries[name][...]) for name in names})

        threads = [threading.Thread(target=take, args=(order[::-1][part::3],)) for part in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert taken == {name: number for number, name in enumerate(order)}
        assert computed == order
        with pytest.raises(LookupError, match="w3 is no result, or was taken before"):
            entries["w3"][...]


# -- transfer -----------------------------------------------------------------------------------


class Late:
    """An engine that copies only when somebody waits: a buffer that is changed too early spoils what it held."""

    def __init__(self):
        self.under_way, self.waits = [], 0

    def buffer(self, size):
        return torch.zeros(size, dtype=torch.uint8)

    def empty(self, like):
        return torch.full(like.shape, 77, dtype=like.dtype)

    def start(self, staged, into):
        copy = [staged, into]
        self.under_way.append(copy)

        def wait():
            self.waits += 1
            self.finish(copy)

        return wait

    def finish(self, last=None):
        """All copies up to this one are done, in the order in which they were asked for."""
        while self.under_way and (last is None or any(one is last for one in self.under_way)):
            staged, into = self.under_way.pop(0)
            into.copy_(staged)

    def same_queue(self):
        return nullcontext()


def tensors():
    """Of many sizes and dtypes, some of them longer than both buffers together."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (1,), (7, 9), (64,), (100, 3), (0, 4), (33, 5)]
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.float16, torch.float32, torch.bool]
    drawn = [torch.randn(shape, generator=generator) * 9 for shape in shapes]
    made = {f"w{i}": x.to(dtype) for i, (x, dtype) in enumerate(zip(drawn, dtypes, strict=True))}
    return made | {"transposed": torch.randn(20, 30, generator=generator).T}


def test_buffers_are_not_filled_before_their_copy_is_done():
    engine = Late()
    staging = StagingBuffers(engine, piece=128)
    sent = {name: staging.send(x) for name, x in tensors().items()}
    assert engine.waits > 10
    engine.finish()
    torch.testing.assert_close(sent, tensors(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "asked", [["w0", "w2", "w4"], ["w4", "w0", "w2"], ["w0", "w0", "w2", "w2", "w4"], ["w6", "w2", "w1", "w6"]]
)
def test_any_order_of_asking_gives_the_tensors(asked):
    engine = Late()
    with Prefetched(tensors(), engine, ["w0", "w2", "w4"], piece=128) as there:
        found = [there[name] for name in asked]
    engine.finish()
    torch.testing.assert_close(found, [tensors()[name] for name in asked], rtol=0, atol=0)


def test_the_next_tensor_is_read_ahead():
    read, both = [], threading.Event()

    class Noted(dict):
        def __getitem__(self, name):
            read.append(name)
            if len(read) == 2:
                both.set()
            return super().__getitem__(name)

    with Prefetched(Noted(tensors()), Late(), ["w0", "w2", "w4"]) as there:
        assert len(there) == len(list(there)) == len(tensors())
        there["w0"]
        assert both.wait(10)
        assert read == ["w0", "w2"]
        there["w2"]
        there["w4"]
    assert read == ["w0", "w2", "w4"]  # none of them twice


def test_an_error_of_reading_ahead_belongs_to_the_tensor():
    with Prefetched(tensors(), Late(), ["w0", "absent"]) as there:
        there["w0"]
        there["w2"]
        with pytest.raises(KeyError, match="absent"):
            there["absent"]


# -- with a GPU ---------------------------------------------------------------------------------


@pytest.fixture
def tf32():
    """TF32 allowed, as many training scripts do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@needs_gpu
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [SMALLER, {"layer": 3, "hidden": 24, "heads": 6, "ffn": 40}], ids=["shrink", "grow"])
@pytest.mark.parametrize(
    ("family", "head"),
    [("bert", "BertForPreTraining"), ("gpt2", "GPT2LMHeadModel"), ("vit", "ViTForImageClassification")],
)
def test_the_gpu_gives_what_the_cpu_gives_and_keeps_it(saved, family, head, sizes, dtype):
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **sizes)
    options = {"dtype": dtype, "bot_config": {"detail": "gaussian"}} if sizes is not SMALLER else {"dtype": dtype}
    expected = resize(folder, wanted, head, **options).state_dict()
    found = resize(folder, wanted, head, device_map="cuda", **options)
    assert {parameter.device.type for parameter in found.parameters()} == {"cuda"}
    steps = 2 * torch.finfo(dtype).eps
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor.cpu(), expected[name], rtol=max(steps, 1e-5), atol=max(steps, 1e-5))


@needs_gpu
def test_peak_memory_on_the_gpu_is_the_result_and_the_largest_stack(tmp_path):
    config = GPT2Config(n_layer=8, n_embd=512, n_head=8, vocab_size=1000)
    source = transformers_bot.BoTModelForCausalLM.class_for(config)(config)
    source.save_pretrained(tmp_path)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = transformers_bot.BoTModelForCausalLM.from_pretrained(
        os.fspath(tmp_path), n_layer=8, n_embd=1024, n_head=16, device_map="cuda"
    )
    peak = torch.cuda.max_memory_allocated() - before
    output = sum(parameter.nbytes for parameter in model.parameters())
    stack = 8 * source.transformer.h[0].mlp.c_fc.weight.nbytes
    assert peak <= output + stack + (8 << 20)


@needs_gpu
def test_tensors_come_through_pinned_memory_unchanged():
    from transformers_bot.run.gpu import CudaEngine

    with Prefetched(tensors(), CudaEngine(torch.device("cuda", 0)), list(tensors()), piece=128) as there:
        found = {name: there[name] for name in tensors()}
    torch.testing.assert_close({name: x.cpu() for name, x in found.items()}, tensors(), rtol=0, atol=0)
