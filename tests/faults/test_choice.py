"""What is checked is what transformers loads: the same files, chosen in the same order; links of the hub's cache."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from folders import CONFIG, INDEX, PICKLE, SHARDS, WEIGHTS, make_sources, shard
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel
from transformers.modeling_utils import _get_resolved_checkpoint_files

from transformers_bot import BadCheckpoint, HubError, UnsafeCheckpoint, UnsupportedCheckpoint
from transformers_bot.io.checkpoint import check_files
from transformers_bot.io.weights import read_header

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return make_sources(tmp_path_factory.mktemp("good"))


@pytest.fixture
def everything(sources, tmp_path):
    """A folder that holds the model in every form, plain and as a variant, and again in a subfolder."""
    folder = tmp_path / "everything"
    shutil.copytree(sources["single"], folder)
    for source in ("sharded", "pickled"):
        shutil.copytree(sources[source], folder, dirs_exist_ok=True)
    part = "pytorch_model-00001-of-00001.bin"
    shutil.copy(folder / PICKLE, folder / part)
    where = dict.fromkeys(torch.load(folder / PICKLE, weights_only=True), part)
    (folder / f"{PICKLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    shutil.copy(folder / WEIGHTS, folder / "model.half.safetensors")
    shutil.copy(folder / PICKLE, folder / "pytorch_model.half.bin")
    shutil.copy(folder / INDEX, folder / "model.safetensors.index.half.json")
    shutil.copytree(folder, folder / "sub")
    return folder


def chosen_by_transformers(folder: Path, variant=None, use_safetensors=None, subfolder="") -> list[str]:
    files, _ = _get_resolved_checkpoint_files(
        str(folder), variant, None, use_safetensors, None, False, None, {"subfolder": subfolder}
    )
    return [os.path.realpath(file) for file in files]


@pytest.mark.covering("absent use_safetensors", "absent variant", "subfolder variant")
@pytest.mark.parametrize("subfolder", ["", "sub"])
@pytest.mark.parametrize("variant", [None, "half"])
@pytest.mark.parametrize("use_safetensors", [None, True, False])
@pytest.mark.parametrize("absent", [(), (WEIGHTS,), (WEIGHTS, INDEX), (WEIGHTS, INDEX, PICKLE), (INDEX,)])
def test_the_files_are_those_that_transformers_loads(everything, subfolder, variant, use_safetensors, absent):
    for name in absent:
        front, _, last = name.rpartition(".")
        (everything / subfolder / (name if variant is None else f"{front}.{variant}.{last}")).unlink()
    keywords = {"variant": variant, "use_safetensors": use_safetensors, "subfolder": subfolder}
    try:
        expected = chosen_by_transformers(everything, **keywords)
    except OSError:  # it finds none
        with pytest.raises(BadCheckpoint, match="has no weights"):
            check_files(str(everything), keywords, allow_pickle=True)
        return
    checked = check_files(str(everything), keywords, allow_pickle=True)
    assert sorted(os.path.realpath(file) for file in checked.files) == sorted(expected)


def test_what_is_not_read_is_noted(everything):
    notes = check_files(str(everything), {}).notes
    assert notes == (
        "model.safetensors.index.json beside model.safetensors is not read.",
        "pytorch_model.bin beside model.safetensors is not read.",
        "pytorch_model.bin.index.json beside model.safetensors is not read.",
    )


def test_mixed_dtypes_are_noted(sources, tmp_path):
    shutil.copytree(sources["single"], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"].bfloat16()
    save_file(tensors, tmp_path / WEIGHTS)
    assert check_files(str(tmp_path), {}).notes == ("The source mixes dtypes, counted in tensors: F32 (27), BF16 (1).",)


def test_the_file_that_a_config_names_is_checked(sources, tmp_path):
    shutil.copytree(sources["single"], tmp_path, dirs_exist_ok=True)
    fields = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**fields, "transformers_weights": "mine.safetensors"}))
    os.rename(tmp_path / WEIGHTS, tmp_path / "mine.safetensors")
    assert check_files(str(tmp_path), {}).files == (tmp_path / "mine.safetensors",)
    (tmp_path / "mine.safetensors").write_bytes(b"garbage here")
    with pytest.raises(BadCheckpoint, match=r"mine\.safetensors is not a safetensors file"):
        check_files(str(tmp_path), {})


def test_headers_say_what_the_file_holds(tmp_path):
    made = {
        f'tensor {number} \u00e9\U0001f917"\\': torch.zeros(number, 3).to(dtype) for number, dtype in enumerate(DTYPES)
    }
    made["scalar"] = torch.tensor(1.0)
    save_file(made, tmp_path / "x.safetensors", metadata={"format": "pt", 'quote"': "{}[],:\\"})
    found = read_header(tmp_path / "x.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {n: tuple(t.shape) for n, t in made.items()}
    assert [found[name].dtype for name in list(made)[:-1]] == list(DTYPES.values())


DTYPES = {
    **{torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
    **{torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
}


def test_quantised_files_may_be_loaded_at_their_own_size(sources, tmp_path):
    shutil.copytree(sources["single"], tmp_path, dirs_exist_ok=True)
    fields = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**fields, "quantization_config": {"quant_method": "fp8"}}))
    assert len(check_files(str(tmp_path), {}, resampled=False).tensors) == 28
    with pytest.raises(UnsupportedCheckpoint):
        check_files(str(tmp_path), {})


def test_buffers_of_old_checkpoints_are_not_quantised_weights(sources, tmp_path):
    # The public gpt2 checkpoints hold their causal masks, BERT's old ones their position ids.
    shutil.copytree(sources["single"], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / WEIGHTS)
    buffers = {
        "h.0.attn.bias": torch.ones(1, 1, 12, 12, dtype=torch.uint8),
        "h.1.attn.bias": torch.ones(1, 1, 12, 12, dtype=torch.bool),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "embeddings.position_ids": torch.arange(12)[None],
    }
    save_file({**tensors, **buffers}, tmp_path / WEIGHTS)
    assert len(check_files(str(tmp_path), {}).tensors) == 32


# -- hashes and the hub's cache -------------------------------------------------------------------


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_hashes_of_a_folder_are_computed_on_demand(sources):
    checked = check_files(str(sources["sharded"]), {})
    assert checked.hashes(compute=False) == {}
    names = [*(shard(number + 1) for number in range(SHARDS)), INDEX]
    assert checked.hashes(compute=True) == {name: sha256(sources["sharded"] / name) for name in names}


@pytest.fixture
def cache(sources, tmp_path):
    """A hub cache that holds the sharded model as "me/gpt2", as huggingface_hub lays it out."""
    repository = tmp_path / "models--me--gpt2"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in sources["sharded"].iterdir():
        blob = sha256(path) if path.suffix == ".safetensors" else hashlib.sha1(path.read_bytes()).hexdigest()
        shutil.copy(path, repository / "blobs" / blob)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob))
    return tmp_path


def test_a_hub_id_is_checked_in_the_cache(cache, sources):
    checked = check_files("me/gpt2", {"cache_dir": str(cache), "local_files_only": True})
    assert checked.revision == COMMIT
    assert len(checked.tensors) == 28
    shards = {shard(number + 1): sha256(sources["sharded"] / shard(number + 1)) for number in range(SHARDS)}
    assert checked.hashes(compute=False) == shards  # blobs are named by them: nothing was read
    assert checked.hashes(compute=True) == {**shards, INDEX: sha256(sources["sharded"] / INDEX)}


def test_a_snapshot_is_a_folder_whose_links_lead_to_its_own_blobs(cache):
    snapshot = cache / "models--me--gpt2" / "snapshots" / COMMIT
    assert len(check_files(str(snapshot), {}).files) == SHARDS
    assert check_files(str(snapshot), {}).hashes(compute=False) == {}  # a folder's names prove nothing


@pytest.mark.parametrize("named", ["folder", "id"])
def test_a_snapshot_may_not_link_to_another_repository(cache, named):
    snapshot = cache / "models--me--gpt2" / "snapshots" / COMMIT
    other = cache / "models--you--gpt2" / "blobs"
    other.mkdir(parents=True)
    shutil.move((snapshot / shard(1)).resolve(), other / "blob")
    (snapshot / shard(1)).unlink()
    (snapshot / shard(1)).symlink_to(other / "blob")
    keywords = {"cache_dir": str(cache), "local_files_only": True}
    name = str(snapshot) if named == "folder" else "me/gpt2"
    with pytest.raises(UnsafeCheckpoint, match="outside of the model folder"):
        check_files(name, {} if named == "folder" else keywords)


def test_blobs_that_are_a_link_themselves_are_elsewhere(cache):
    repository = cache / "models--me--gpt2"
    shutil.move(repository / "blobs", cache / "moved")
    (repository / "blobs").symlink_to(cache / "moved")
    with pytest.raises(UnsafeCheckpoint, match="outside of the model folder"):
        check_files(str(repository / "snapshots" / COMMIT), {})


def test_a_linked_folder_is_the_folder(sources, tmp_path):
    (tmp_path / "link").symlink_to(sources["single"])
    assert len(check_files(str(tmp_path / "link"), {}).tensors) == 28


def test_a_subfolder_may_link_into_its_model(sources, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(sources["single"], folder)
    (folder / "sub").mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / "sub" / name).symlink_to(Path("..", name))
    assert len(check_files(str(folder), {"subfolder": "sub"}).tensors) == 28
    with pytest.raises(UnsafeCheckpoint):
        check_files(str(folder / "sub"), {})


def test_errors_of_the_hub_are_one_sentence(cache):
    offline = {"cache_dir": str(cache), "local_files_only": True}
    with pytest.raises(HubError, match="not whole in the Hub's cache") as caught:
        check_files("you/nothing", offline)
    assert caught.value.__suppress_context__
    (cache / "models--me--gpt2" / "snapshots" / COMMIT / shard(3)).unlink()
    with pytest.raises(HubError, match=r"model-00003|cached files|not whole") as caught:
        check_files("me/gpt2", offline)
    assert caught.value.__suppress_context__
    (cache / "models--me--gpt2" / "snapshots" / COMMIT / INDEX).unlink()
    with pytest.raises(HubError, match="not whole in the Hub's cache") as caught:
        check_files("me/gpt2", offline)
    assert caught.value.__suppress_context__


def test_a_bad_index_is_refused_before_its_shards_are_looked_for(cache):
    snapshot = cache / "models--me--gpt2" / "snapshots" / COMMIT
    fields = json.loads((snapshot / INDEX).read_text())
    fields["weight_map"]["transformer.wte.weight"] = "../../../x.safetensors"
    (snapshot / INDEX).resolve().write_text(json.dumps(fields))
    (snapshot / shard(1)).unlink()
    with pytest.raises(UnsafeCheckpoint, match=r"outside of the model folder: '\.\./\.\./\.\./x\.safetensors'"):
        check_files("me/gpt2", {"cache_dir": str(cache), "local_files_only": True})


def test_an_unreadable_file_is_named(sources, tmp_path):
    # Nobody's rights: as root nothing is unreadable, so a child process gives them up first.
    folder = tmp_path / "model"
    shutil.copytree(sources["single"], folder)
    (folder / WEIGHTS).chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(BadCheckpoint, match=UNREADABLE):
            check_files(str(folder), {})
        return
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            check_files(str(folder), {})
            text = "accepted"
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(read, 10_000).decode()
    assert re.match(f"BadCheckpoint: .*{UNREADABLE}", text)


UNREADABLE = r"model\.safetensors cannot be read: permission denied\. Check its permissions"


def test_the_model_is_the_one_that_transformers_makes(sources):
    checked = check_files(str(sources["single"]), {})
    state = GPT2LMHeadModel.from_pretrained(sources["single"]).state_dict()
    for name, tensor in checked.tensors.items():
        assert tensor.shape == tuple(state[name].shape)
