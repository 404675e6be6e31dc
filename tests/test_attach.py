"""A model with our `push_to_hub` and its report is in every other way the ordinary model it was."""

import copy
import gc
import hashlib
import inspect
import io
import os
import pickle
import weakref
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from families import outputs
from hub_calls import digest
from torch.nn.parallel import DistributedDataParallel

from transformers_bot import BadOption, BoTModelForCausalLM
from transformers_bot.hub import push as pushing
from transformers_bot.hub.provenance import provenance_of


@pytest.fixture
def model(saved):
    """A GPT-2 as resizing returns it, with everything attached."""
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    return BoTModelForCausalLM.from_pretrained(folder, n_embd=24, dtype=torch.float32)


def pushed(model, *args, **keywords):
    """What `model.push_to_hub` hands to our function."""
    assert isinstance(model.push_to_hub, pushing.OwnPush)
    with mock.patch.object(pushing, "push_to_hub") as push:
        model.push_to_hub(*args, **keywords)
    push.assert_called_once()
    return push.call_args


def test_the_class_and_the_state_are_as_before(model, tmp_path):
    model.save_pretrained(tmp_path)
    plain = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert type(model) is transformers.GPT2LMHeadModel
    assert digest(model) == digest(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert repr(model) == repr(plain)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert "push_to_hub" not in vars(transformers.GPT2LMHeadModel)
    assert transformers.GPT2LMHeadModel.push_to_hub is not model.push_to_hub


def test_the_models_own_method_is_ours(model):
    args, keywords = pushed(model, "me/it", private=True)
    assert args == (model, "me/it")
    assert keywords == {"private": True}


def test_the_keywords_are_those_of_transformers():
    theirs = inspect.signature(transformers.utils.PushToHubMixin.push_to_hub).parameters
    ours = inspect.signature(pushing.push_to_hub).parameters
    assert list(ours)[1:] == list(theirs)[1:]
    assert {name: p.default for name, p in list(ours.items())[1:]} == {
        name: p.default for name, p in list(theirs.items())[1:]
    }


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_torch])
def test_a_copy_is_whole_and_pushes_itself(model, copied):
    twin = copied(model)
    assert type(twin) is type(model)
    assert digest(twin) == digest(model)
    assert twin.transfer_report == model.transfer_report
    assert pushed(twin, "me/it").args[0] is twin
    with torch.no_grad():
        twin.transformer.wte.weight.zero_()
    assert digest(twin) != digest(model)
    assert pushed(model, "me/it").args[0] is model


def test_copies_inside_of_other_things_push_themselves(model):
    wrapped = torch.nn.Sequential(model)
    assert pushed(copy.deepcopy(wrapped)[0], "me/it").args[0] is not model
    pair = copy.deepcopy([model, model])
    assert pair[0] is pair[1]
    assert pushed(pair[1], "me/it").args[0] is pair[0]


def test_the_model_is_freed_with_its_last_name(model):
    alive = weakref.ref(model)
    gc.disable()
    try:
        twin = copy.deepcopy(model)
        alive_twin = weakref.ref(twin)
        del twin
        assert alive_twin() is None
    finally:
        gc.enable()
    assert alive() is model


def test_a_shallow_copy_whose_model_is_gone_says_so(model):
    shallow = copy.copy(copy.deepcopy(model))
    with pytest.raises(ReferenceError, match=r"transformers_bot\.push_to_hub"):
        shallow.push_to_hub("me/it")


def test_the_state_dict_alone_loads_without_pickled_code(model):
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    model.load_state_dict(state)
    assert list(state) == list(model.state_dict())


def test_data_parallel_training_keeps_the_method(model, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        before = digest(model)
        wrapped(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
        torch.optim.SGD(wrapped.parameters(), lr=0.1).step()
    finally:
        torch.distributed.destroy_process_group()
    assert digest(model) != before
    assert pushed(wrapped.module, "me/it").args[0] is model


@pytest.mark.slow
def test_casting_and_exporting_work_as_before(model):
    inputs = torch.tensor([[1, 2, 3]])
    expected = outputs(model, {"input_ids": inputs})["logits"]
    exported = torch.export.export(model, (), {"input_ids": inputs, "use_cache": False}, strict=False)
    torch.testing.assert_close(exported.module()(input_ids=inputs, use_cache=False).logits, expected)
    assert pushed(model.to(torch.bfloat16).float(), "me/it").args[0] is model


def test_trainer_takes_saves_and_loads_it(model, tmp_path):
    rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}] * 2
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    assert pushed(trainer.model, "me/it").args[0] is model
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    assert digest(again) == digest(model)
    assert {**provenance_of(again.config), "files": provenance_of(model.config)["files"]} == provenance_of(model.config)


def test_a_push_hashes_the_files_of_a_local_source(model):
    assert provenance_of(model.config)["files"] == {}  # loading does not wait for it
    moved = pickle.loads(pickle.dumps(model))
    pushed(moved, "me/it")
    source = Path(pushing.place_of(model).source, "model.safetensors")
    assert provenance_of(moved.config)["files"] == {source.name: hashlib.sha256(source.read_bytes()).hexdigest()}


def test_a_local_source_that_has_changed_is_not_hashed(model):
    source = Path(pushing.place_of(model).source, "model.safetensors")
    before = source.stat()
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        pushed(model, "me/it")
        assert provenance_of(model.config)["files"] == {}
    finally:
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_saving_and_loading_is_as_before(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert digest(again) == digest(model)
    assert "push_to_hub" not in vars(again)


def test_a_report_beside_the_weights_is_found(model, tmp_path):
    model.save_pretrained(tmp_path)
    model.transfer_report.save(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    provenance = provenance_of(again.config)
    assert pushing.report_of(again, provenance) == model.transfer_report
    assert pushing.report_of(again, {**provenance, "target_sizes": {"hidden": 99}}) is None
    (tmp_path / "transfer_report.json").write_text("{")
    assert pushing.report_of(again, provenance) is None


def test_an_adapter_is_pushed_by_transformers_and_refused_by_us(model):
    model._hf_peft_config_loaded = True
    with mock.patch.object(transformers.GPT2LMHeadModel, "push_to_hub", autospec=True) as theirs:
        model.push_to_hub("me/it", private=True)
    theirs.assert_called_once_with(model, "me/it", private=True)
    with pytest.raises(BadOption, match="Merge it first"):
        pushing.push_to_hub(model, "me/it")


def test_a_folder_is_no_model_to_push(tmp_path):
    with pytest.raises(BadOption, match=r"takes a model in memory, not .*Load the folder first"):
        pushing.push_to_hub(str(tmp_path), "me/it")
