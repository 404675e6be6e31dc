"""The streaming writer's files are those of save_pretrained, byte for byte, and it holds one tensor at most."""

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from transformers_bot import BadOption, PlanError
from transformers_bot.io import safetensors_writer
from transformers_bot.io.safetensors_writer import DTYPES, Entry, ShardWriter, lay_out, total_bytes

BERT = (
    BertModel,
    BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=55, intermediate_size=64),
)
GPT2 = GPT2LMHeadModel, GPT2Config(n_embd=48, n_layer=3, n_head=4, vocab_size=99)


def entries_of(tensors: dict[str, torch.Tensor]) -> list[Entry]:
    return [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


def write(folder: Path, tensors: dict[str, torch.Tensor], size="50GB", parameters=0, order=0) -> None:
    """Write `tensors`, put in an order that `order` shuffles."""
    names = list(tensors)
    random.Random(order).shuffle(names)
    layout = lay_out(entries_of(tensors), size)
    with ShardWriter(folder, layout, parameters=parameters) as writer:
        for name in names:
            writer.put(name, tensors[name])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if "config" not in path.name}


def folders(place: Path) -> tuple[Path, Path]:
    for name in "ab":
        (place / name).mkdir()
    return place / "a", place / "b"


class TestSameBytesAsSavePretrained:
    @pytest.mark.covering("cls config dtype", "dtype size")
    @pytest.mark.parametrize("size", ["50GB", "40KB", 20_000, 1])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, None])
    @pytest.mark.parametrize(("cls", "config"), [BERT, GPT2], ids=["bert", "gpt2"])
    def test_models(self, tmp_path, cls, config, dtype, size):
        model = cls(config)
        if dtype is None:  # mixed, as a model with float32 norms is
            for i, parameter in enumerate(model.parameters()):
                parameter.data = parameter.data.to([torch.float32, torch.bfloat16, torch.float16][i % 3])
        else:
            model.to(dtype)
        model.register_buffer("none", torch.zeros(0, 3))
        model.register_buffer("counts", torch.arange(7))
        model.register_buffer("step", torch.tensor(3))
        model.register_buffer("flags", torch.tensor([True, False, True]))
        *_, last = model.modules()
        last.register_buffer(
            "no_rows", torch.zeros(0, dtype=torch.int64)
        )  # files lie between it and the other empty one
        theirs, ours = folders(tmp_path)
        model.save_pretrained(theirs, max_shard_size=size)
        tied = getattr(model, "all_tied_weights_keys", {})
        tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
        write(ours, tensors, size, model.num_parameters())
        assert contents(ours) == contents(theirs)
        assert len(contents(ours)) > 40 if size == 1 else len(contents(ours)) >= 1

    def test_the_result_loads(self, tmp_path):
        cls, config = GPT2
        model = cls(config)
        tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        model.config.save_pretrained(tmp_path)
        write(tmp_path, tensors, "40KB")
        loaded = cls.from_pretrained(tmp_path).state_dict()
        torch.testing.assert_close(loaded, dict(model.state_dict()), rtol=0, atol=0)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
WRITTEN = [dtype for dtype in DTYPES if dtype in safetensors.torch._SIZE]  # its oldest version has no uint16 to 64
layouts = st.dictionaries(
    names,
    st.tuples(st.sampled_from(WRITTEN), shapes),
    min_size=1,
    max_size=8,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(layout=layouts, size=st.integers(1, 300), order=st.integers(0, 10**6))
def test_any_names_dtypes_and_shapes_are_as_safetensors_writes_them(tmp_path_factory, layout, size, order):
    theirs, ours = folders(tmp_path_factory.mktemp("any"))
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in layout.items()}
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=size
    )
    for file, members in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in members}, theirs / file, metadata={"format": "pt"})
    write(ours, tensors, size, order=order)
    found = contents(ours)
    assert ("model.safetensors.index.json" in found) == split.is_sharded
    found.pop("model.safetensors.index.json", None)
    assert found == contents(theirs)


def test_total_bytes_is_what_the_folder_takes(tmp_path):
    tensors = {f"layer.{i}.weight": torch.zeros(100, i) for i in range(20)}
    for size in ("50GB", "2KB"):
        layout = lay_out(entries_of(tensors), size)
        folder = tmp_path / size
        folder.mkdir()
        write(folder, tensors, size)
        assert 0 <= total_bytes(layout) - sum(path.stat().st_size for path in folder.iterdir()) < 200
    assert total_bytes(()) == 0


class TestPieces:
    @pytest.mark.parametrize(
        "tensor",
        [
            torch.arange(4000.0).reshape(40, 100).T,
            torch.arange(4000).reshape(2, 20, 100).permute(2, 0, 1),
            torch.arange(4000, dtype=torch.bfloat16).reshape(1, 1, 4000)[..., ::3],
            torch.arange(4000.0).reshape(1, 40, 100)[:, 5:, 7:],
            torch.ones(1, dtype=torch.float16).expand(50, 30),
            torch.zeros(100, 1, 0, 5).transpose(0, 3),
            torch.tensor(2.5),
        ],
        ids=lambda tensor: str(tuple(tensor.shape)),
    )
    def test_any_strides(self, tmp_path, monkeypatch, tensor):
        monkeypatch.setattr(safetensors_writer, "PIECE", 256)
        write(tmp_path, {"a": tensor, "b": torch.ones(3)})
        torch.testing.assert_close(load_file(tmp_path / "model.safetensors")["a"], tensor.contiguous(), rtol=0, atol=0)
        pieces = list(safetensors_writer._pieces(tensor, torch.empty(256, dtype=torch.uint8)))
        assert sum(map(len, pieces)) == tensor.numel() * tensor.itemsize
        assert len(pieces) < 8 * (1 + tensor.numel() * tensor.itemsize // 256)

    def test_a_contiguous_tensor_is_written_from_where_it_lies(self):
        tensor = torch.zeros(safetensors_writer.PIECE, dtype=torch.bfloat16)
        (piece,) = safetensors_writer._pieces(tensor, torch.empty(256, dtype=torch.uint8))
        tensor[-1] = 1.0
        assert bytes(piece[-2:]) == b"\x80\x3f"

    def test_a_parameter(self, tmp_path):
        write(tmp_path, {"a": torch.nn.Parameter(torch.ones(3))})
        assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [1, 1, 1]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
    def test_an_accelerator(self, tmp_path, monkeypatch):
        monkeypatch.setattr(safetensors_writer, "PIECE", 256)
        tensor = torch.arange(4000.0)
        write(tmp_path, {"a": tensor.cuda(), "b": tensor.reshape(40, 100).cuda().T})
        found = load_file(tmp_path / "model.safetensors")
        torch.testing.assert_close(found, {"a": tensor, "b": tensor.reshape(40, 100).T.contiguous()}, rtol=0, atol=0)

    def test_a_system_that_writes_less_than_asked(self, tmp_path, monkeypatch):
        pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda handle, data, start: pwrite(handle, data[:1000], start))
        tensors = {"a": torch.arange(4000.0), "b": torch.arange(999)}
        write(tmp_path, tensors)
        torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), tensors, rtol=0, atol=0)

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_memory(self, tmp_path):
        """200 MB, once as it lies and once transposed, add one piece and a few MB to the process."""
        script = """if True:
            import re, sys, torch
            from pathlib import Path
            from transformers_bot.io.safetensors_writer import Entry, ShardWriter, lay_out
            torch.set_num_threads(1)
            def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000
            tensor = torch.ones(10_000, 10_000, dtype=torch.bfloat16)
            layout = lay_out([Entry(name, tensor.dtype, tuple(tensor.shape)) for name in "ab"])
            before = peak()
            with ShardWriter(Path(sys.argv[1]), layout, parameters=0) as writer:
                writer.put("a", tensor)
                writer.put("b", tensor.T)
            print(peak() - before)
        """
        result = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
        assert float(result.stdout) < safetensors_writer.PIECE / 1e6 + 10


class TestReserving:
    def test_a_file_has_its_size_from_the_start(self, tmp_path):
        layout = lay_out([Entry("a", torch.float32, (1000, 1000))])
        with ShardWriter(tmp_path, layout, parameters=0) as writer:
            file = (tmp_path / "model.safetensors").stat()
            writer.put("a", torch.ones(1000, 1000))
        assert file.st_size == layout[0].bytes == total_bytes(layout)
        assert file.st_blocks * 512 >= 4_000_000 or sys.platform != "linux"

    def test_where_the_filesystem_cannot(self, tmp_path, monkeypatch):
        def unknown(*_):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "posix_fallocate", unknown, raising=False)
        write(tmp_path, {"a": torch.ones(1000), "b": torch.zeros(0)})
        assert load_file(tmp_path / "model.safetensors")["a"].sum() == 1000

    def test_a_full_disk_is_the_systems_error(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(OSError, match="No space left on device"):
            write(tmp_path, {"a": torch.ones(1000)})


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("b", torch.ones(2), r"'b' is not among the 2 tensors that were laid out\."),
            ("a", torch.ones(3), r"'a' is laid out as torch.float32 \(2,\), got torch.float32 \(3,\)\."),
            ("a", torch.ones(2).half(), r"'a' is laid out as torch.float32 \(2,\), got torch.float16 \(2,\)\."),
            ("done", torch.ones(1), r"'done' is written twice\."),
        ],
    )
    def test_put(self, tmp_path, name, tensor, message):
        layout = lay_out([Entry("a", torch.float32, (2,)), Entry("done", torch.float32, (1,))])
        with ShardWriter(tmp_path, layout, parameters=0) as writer:
            writer.put("done", torch.ones(1))
            with pytest.raises(PlanError, match=message):
                writer.put(name, tensor)
            writer.put("a", torch.ones(2))
        assert load_file(tmp_path / "model.safetensors")["done"] == 1

    def test_missing_at_the_end(self, tmp_path):
        writer = ShardWriter(tmp_path, lay_out([Entry(name, torch.float32, (2,)) for name in "abcde"]), parameters=0)
        with pytest.raises(PlanError, match=r"4 of 5 tensors were not written: a, c, d\."), writer:
            writer.put("b", torch.ones(2))

    def test_an_error_of_the_block_is_not_hidden(self, tmp_path):
        writer = ShardWriter(tmp_path, lay_out([Entry("a", torch.float32, (2,))]), parameters=0)
        with pytest.raises(ZeroDivisionError), writer:
            writer.put("a", torch.ones(2) * (1 / 0))

    def test_a_folder_that_has_the_file(self, tmp_path):
        (tmp_path / "model.safetensors").write_text("old")
        with pytest.raises(FileExistsError):
            write(tmp_path, {"a": torch.ones(2)})
        assert (tmp_path / "model.safetensors").read_text() == "old"

    @pytest.mark.parametrize("size", ["5", "many GB", "5GiB", None])
    def test_max_shard_size(self, size):
        with pytest.raises(BadOption, match=rf"max_shard_size {size!r}: give bytes, or text such as '2GB'"):
            lay_out([Entry("a", torch.float32, (2,))], size)

    def test_names_and_dtypes(self):
        entry = Entry("a", torch.float32, (2,))
        with pytest.raises(PlanError, match=r"must be unique, and not '__metadata__': \['a'\]\."):
            lay_out([entry, entry])
        with pytest.raises(PlanError, match=r"\['__metadata__'\]\."):
            lay_out([Entry("__metadata__", torch.float32, (2,))])
        with pytest.raises(PlanError, match=r"a is torch.complex128, which cannot be written; these can: "):
            lay_out([Entry("a", torch.complex128, (2,))])
