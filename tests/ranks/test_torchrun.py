"""Under torchrun, two processes hold exactly what one process makes, and an error reaches both."""

import pytest
import torch
from families import make_inputs, outputs
from launched import HEADS, Job, assert_same_state, start, target, torchrun, whole_state

from transformers_bot import BoTModelForCausalLM, BoTModelForMaskedLM, BoTModelForSequenceClassification

pytestmark = pytest.mark.slow

SOON = 10  # seconds; nothing in these jobs computes for as much as one


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    return start("torchrun_job.py", torchrun(), tmp_path_factory)


@pytest.fixture(scope="module")
def gpt2(job):
    return BoTModelForCausalLM.from_pretrained(job.folder / "gpt2", config=target("gpt2"))


@pytest.fixture(scope="module")
def bert(job):
    return BoTModelForMaskedLM.from_pretrained(job.folder / "bert", config=target("bert"))


def logits_of(model):
    return outputs(model, make_inputs(model.config, HEADS[model.config.model_type]))["logits"]


@pytest.mark.parametrize("scenario", ["fsdp2_starts_the_group", "fsdp2", "ddp", "integration"])
def test_both_ranks_hold_what_one_process_makes(job, gpt2, scenario):
    for found in job(scenario):
        assert_same_state(found["state"], whole_state(gpt2))


@pytest.mark.parametrize(
    "scenario", ["fsdp2_starts_the_group", "fsdp2", "tensor_parallel", "ddp", "integration", "main_process_first"]
)
def test_resampled_by_one_process_only(job, scenario):
    assert sorted(found["ran"] > 0 for found in job(scenario)) == [False, True]


def test_fsdp2_splits_and_computes(job, gpt2):
    for found in job("fsdp2"):
        assert found["type"] == "DTensor"
        torch.testing.assert_close(found["logits"], logits_of(gpt2))


def test_tensor_parallel_splits_and_computes(job, bert):
    for found in job("tensor_parallel"):
        assert found["local"] == (20, 24)
        assert_same_state(found["state"], whole_state(bert))
        torch.testing.assert_close(found["logits"], logits_of(bert))


def test_generation_settings_come_along(job, gpt2):
    for found in job("ddp"):
        assert found["generation"] == gpt2.generation_config.to_dict()


def test_ddp_trains_and_leaves_no_folder(job, gpt2):
    first, second = job("ddp")
    assert_same_state(first["trained"], second["trained"])
    assert not torch.equal(first["trained"]["transformer.wpe.weight"], gpt2.transformer.wpe.weight)
    assert first["left"] == second["left"] == 0


def test_no_folder_is_left_when_the_job_has_ended(job):
    assert not list((job.folder / "tmp").rglob("transformers-bot-*"))


def test_a_new_head_is_the_same_although_seeds_differ(job):
    first, second = job("new_head")
    assert_same_state(first["state"], second["state"])


def test_each_node_makes_its_own_with_the_same_draws(job):
    first, second = job("two_nodes_new_head")
    assert first["ran"] == second["ran"] > 0
    assert_same_state(first["state"], second["state"])


def test_loading_info_is_that_of_one_process(job):
    wanted = target("bert", "BertForSequenceClassification")
    _, expected = BoTModelForSequenceClassification.from_pretrained(
        job.folder / "bert", config=wanted, output_loading_info=True
    )
    assert expected["missing_keys"]
    for found in job("new_head"):
        assert found["info"] == expected


def test_equal_seeds_draw_what_one_process_draws(job):
    torch.manual_seed(7)
    wanted = target("bert", "BertForSequenceClassification")
    model = BoTModelForSequenceClassification.from_pretrained(job.folder / "bert", config=wanted)
    after = torch.rand(3)
    for found in job("new_head_same_seed"):
        assert_same_state(found["state"], whole_state(model))
        assert torch.equal(found["next"], after)
        assert found["provenance"] == model.config.transformers_bot
        assert found["name"] == model.config.name_or_path == ""
        assert found["report"] == model.transfer_report.to_dict()
        assert found["push"] == type(model.push_to_hub).__name__


@pytest.mark.parametrize("scenario", ["cut_source", "cut_source_split"])
def test_a_bad_source_is_an_error_on_both(job, scenario):
    for kinds, message, seconds in job.errors(scenario):
        assert "BoTError" in kinds
        assert "model.safetensors" in message
        assert seconds < SOON


@pytest.mark.parametrize("scenario", ["full_disk", "two_nodes_full_disk"])
def test_a_full_disk_is_an_error_on_both(job, scenario):
    for kinds, message, seconds in job.errors(scenario):
        assert "SaveError" in kinds
        assert "transformers-bot-" in message
        assert seconds < SOON


def test_different_calls_for_one_split_model_are_an_error_on_both(job):
    for kinds, message, seconds in job.errors("different_calls"):
        assert "RankError" in kinds
        assert "asks for another model" in message
        assert seconds < SOON


def test_calls_that_not_all_make_at_once_do_not_block(job):
    first, second = job("main_process_first")
    assert_same_state(first["state"], second["state"])
    assert job("rank_0_alone") == [{"layers": 5}, {}]


def test_each_rank_offloads_for_itself(job, gpt2):
    for found in job("disk_offload"):
        torch.testing.assert_close(found["logits"], logits_of(gpt2))
