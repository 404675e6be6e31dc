"""In one process: where the result is put, and with how little memory, changes nothing of what it computes."""

import re

import pytest
import torch
from families import MAIN_HEADS, assert_same_outputs, outputs, resize, resized_config
from launched import GROWN


@pytest.fixture(params=MAIN_HEADS, ids=lambda pair: pair[1])
def case(request, saved):
    """(source folder, target config, head, inputs, outputs of the plain result)"""
    family, head = request.param
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **GROWN)
    plain = resize(folder, wanted, head)
    return folder, wanted, head, built.inputs, outputs(plain, built.inputs)


@pytest.mark.slow
@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_on_one_device(case, device_map):
    folder, wanted, head, inputs, expected = case
    assert_same_outputs(outputs(resize(folder, wanted, head, device_map=device_map), inputs), expected, 1e-12)


def layers_on(model, place):
    """Every tensor on the CPU, but the blocks after the first, which lie at `place`."""
    found = {}
    for name in model.state_dict():
        block = re.match(r".*\.([1-9])(?=\.)", name)
        found[block[0] if block else name] = place if block else "cpu"
    return found


@pytest.fixture
def disk_map(case):
    folder, wanted, head, *_ = case
    return layers_on(resize(folder, wanted, head), "disk")


@pytest.mark.slow
def test_offloaded_to_disk(case, disk_map, tmp_path):
    folder, wanted, head, inputs, expected = case
    model = resize(folder, wanted, head, device_map=disk_map, offload_folder=str(tmp_path))
    assert "disk" in model.hf_device_map.values()
    assert next(model.base_model.parameters()).dtype == torch.float64
    assert_same_outputs(outputs(model, inputs), expected, 1e-12)


@pytest.mark.slow
def test_offloaded_for_want_of_memory(case, tmp_path):
    folder, wanted, head, inputs, expected = case
    model = resize(folder, wanted, head, device_map="auto", max_memory={"cpu": 60_000}, offload_folder=str(tmp_path))
    assert "disk" in model.hf_device_map.values()
    assert_same_outputs(outputs(model, inputs), expected, 1e-12)


@pytest.mark.slow
def test_saved_after_offload(case, disk_map, tmp_path):
    folder, wanted, head, inputs, expected = case
    model = resize(folder, wanted, head, device_map=disk_map, offload_folder=str(tmp_path / "offload"))
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved", dtype=torch.float64)
    again.config._attn_implementation = "eager"
    assert_same_outputs(outputs(again, inputs), expected, 1e-12)


@pytest.mark.slow
def test_all_of_it_on_disk(case, tmp_path):
    """Tied embeddings included."""
    folder, wanted, head, inputs, expected = case
    model = resize(folder, wanted, head, device_map={"": "disk"}, offload_folder=str(tmp_path))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert_same_outputs(outputs(model, inputs), expected, 1e-12)


@pytest.mark.slow
def test_disk_without_a_folder(case, disk_map):
    folder, wanted, head, *_ = case
    with pytest.raises(ValueError, match="offload_folder"):
        resize(folder, wanted, head, device_map=disk_map)
