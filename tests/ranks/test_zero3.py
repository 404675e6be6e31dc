"""DeepSpeed ZeRO-3 on the CPU: split when loaded, whole when gathered, and never random weights."""

import pytest
import torch
from launched import Job, assert_same_state, start, target, torchrun, whole_state

from transformers_bot import BoTModelForCausalLM, BoTModelForSequenceClassification, plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    pytest.importorskip("deepspeed", reason="pip install deepspeed: these tests run a real ZeRO-3 engine on the CPU")
    return start("zero3_job.py", torchrun(), tmp_path_factory, DS_ACCELERATOR="cpu")


@pytest.fixture(scope="module")
def gpt2(job):
    return BoTModelForCausalLM.from_pretrained(job.folder / "gpt2", config=target("gpt2"))


def test_gathered_it_is_what_one_process_makes(job, gpt2):
    for found in job("zero3"):
        assert found["held"] == 0  # nothing whole is kept
        assert_same_state(found["state"], whole_state(gpt2))


def test_resampled_by_one_process_only(job):
    assert sorted(found["ran"] > 0 for found in job("zero3")) == [False, True]


def test_the_engine_trains_it(job, gpt2):
    first, second = job("zero3")
    assert_same_state(first["trained"], second["trained"])
    assert not torch.equal(first["trained"]["transformer.wpe.weight"], gpt2.transformer.wpe.weight)


def test_trainer_starts_from_it(job, gpt2):
    for found in job("trainer"):
        assert_same_state(found["state"], whole_state(gpt2))
        assert 0 < found["loss"] < 10


def test_a_new_head_and_the_loading_info(job):
    wanted = target("bert", "BertForSequenceClassification")
    plain, info = BoTModelForSequenceClassification.from_pretrained(
        job.folder / "bert", config=wanted, output_loading_info=True
    )
    first, second = job("new_head")
    assert_same_state(first["state"], second["state"])
    assert first["info"] == second["info"] == info
    kept = {name: t for name, t in whole_state(plain).items() if name not in info["missing_keys"]}
    assert_same_state({name: t for name, t in first["state"].items() if name in kept}, kept)


def test_a_plan_needs_no_weights_here_either(job):
    expected = plan(str(job.folder / "gpt2"), target("gpt2"))
    for found in job("planned"):
        assert found == {"inherited": expected.inherited, "steps": len(expected.steps)}


def test_a_checkpoint_is_written_whole(job, gpt2):
    expected = {name: tensor for name, tensor in whole_state(gpt2).items() if name != "lm_head.weight"}
    for found in job("written"):
        assert_same_state({name: found[name] for name in expected}, expected)
        assert set(found) == set(expected)


def test_inside_zero_init_is_an_error(job):
    for kinds, message, _ in job.errors("inside_zero_init"):
        assert "RankError" in kinds
        assert "deepspeed.zero.Init" in message


def test_a_bad_source_is_an_error_on_both(job):
    for kinds, message, seconds in job.errors("cut_source"):
        assert "BoTError" in kinds
        assert "model.safetensors" in message
        assert seconds < 10
