"""Under `accelerate launch`: with and without Accelerator(), and FSDP2 where rank 0's weights are sent to all."""

import pytest
import torch
from families import make_inputs, outputs
from launched import Job, accelerate_launch, assert_same_state, start, target, whole_state

from transformers_bot import BoTModelForCausalLM, BoTModelForSequenceClassification

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    return start("accelerate_job.py", accelerate_launch(), tmp_path_factory, ACCELERATE_USE_CPU="true")


@pytest.fixture(scope="module")
def gpt2(job):
    return BoTModelForCausalLM.from_pretrained(job.folder / "gpt2", config=target("gpt2"))


@pytest.mark.parametrize("scenario", ["before_accelerator", "prepared", "fsdp2_gpt2"])
def test_both_ranks_hold_what_one_process_makes(job, gpt2, scenario):
    for found in job(scenario):
        assert_same_state(found["state"], whole_state(gpt2))


def test_each_process_resizes_for_itself_before_accelerator(job):
    assert all(found["ran"] for found in job("before_accelerator"))


@pytest.mark.parametrize("scenario", ["prepared", "fsdp2_gpt2", "fsdp2_bert"])
def test_resampled_by_one_process_only(job, scenario):
    assert sorted(found["ran"] > 0 for found in job(scenario)) == [False, True]


def test_prepare_trains_the_same_on_both(job, gpt2):
    first, second = job("prepared")
    assert first["wrapper"] == "DistributedDataParallel"
    assert_same_state(first["trained"], second["trained"])
    assert not torch.equal(first["trained"]["transformer.wpe.weight"], gpt2.transformer.wpe.weight)


def test_fsdp2_computes_what_one_process_computes(job, gpt2):
    expected = outputs(gpt2, make_inputs(gpt2.config, "GPT2LMHeadModel"))["logits"]
    for found in job("fsdp2_gpt2"):
        torch.testing.assert_close(found["logits"], expected)


def test_fsdp2_takes_a_new_head_from_rank_0(job):
    head = "BertForSequenceClassification"
    plain = BoTModelForSequenceClassification.from_pretrained(job.folder / "bert", config=target("bert", head))
    new = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    expected = {name: tensor for name, tensor in whole_state(plain).items() if name not in new}
    first, second = job("fsdp2_bert")
    assert_same_state(first["state"], second["state"])
    assert_same_state({name: t for name, t in first["state"].items() if name not in new}, expected)
    assert all(torch.isfinite(tensor).all() for tensor in first["state"].values())
