"""Inside the integration transformers' own `from_pretrained` resizes; outside it is exactly itself."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from families import ALL_HEADS, MAIN_HEADS, class_of, resize, resized_config
from test_model import GROWN, assert_same_tensors
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GPT2LMHeadModel, PreTrainedModel

import transformers_bot
from transformers_bot import BadSize, IncompatibleModels
from transformers_bot.io.config_files import folder_name

ORIGINAL = PreTrainedModel.__dict__["from_pretrained"]


@pytest.fixture(autouse=True)
def _leaves_transformers_as_it_was():
    assert PreTrainedModel.__dict__["from_pretrained"] is ORIGINAL
    yield
    assert PreTrainedModel.__dict__["from_pretrained"] is ORIGINAL


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_concrete_classes_resize_inside(saved, family, head):
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **GROWN)
    with transformers_bot.integration():
        model = class_of(head).from_pretrained(folder, config=wanted, dtype=torch.float64)
    assert_same_tensors(model, resize(folder, wanted, head, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("auto", "family", "head"),
    [
        ("AutoModel", "bert", "BertModel"),
        ("AutoModelForMaskedLM", "bert", "BertForMaskedLM"),
        ("AutoModelForPreTraining", "bert", "BertForPreTraining"),
        ("AutoModelForMaskedLM", "roberta", "RobertaForMaskedLM"),
        ("AutoModelForCausalLM", "gpt2", "GPT2LMHeadModel"),
        ("AutoModelForQuestionAnswering", "gpt2", "GPT2ForQuestionAnswering"),
        ("AutoModelForImageClassification", "vit", "ViTForImageClassification"),
        ("AutoModelForMaskedImageModeling", "deit", "DeiTForMaskedImageModeling"),
    ],
)
def test_auto_classes_resize_inside(saved, auto, family, head):
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **GROWN)
    with transformers_bot.integration():
        model = getattr(transformers, auto).from_pretrained(folder, config=wanted, dtype=torch.float64)
    assert_same_tensors(model, resize(folder, wanted, head, dtype=torch.float64))
    assert model.config.transformers_bot["source"] == folder_name(folder)


@pytest.mark.slow
def test_overrides_resize_inside(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    expected = transformers_bot.BoTModelForCausalLM.from_pretrained(folder, n_layer=3, n_embd=24)
    with transformers_bot.integration():
        assert_same_tensors(GPT2LMHeadModel.from_pretrained(folder, n_layer=3, n_embd=24), expected)
        assert_same_tensors(AutoModelForCausalLM.from_pretrained(folder, n_layer=3, n_embd=24), expected)


@pytest.mark.slow
def test_options_are_the_contexts(saved):
    folder, built = saved("bert", "BertForMaskedLM")
    wanted = resized_config(built.config, **GROWN)
    options = {"gain": "raw", "wavelet": "db2"}
    with transformers_bot.integration(options):
        model = AutoModelForMaskedLM.from_pretrained(folder, config=wanted, dtype=torch.float64)
    assert_same_tensors(model, resize(folder, wanted, "BertForMaskedLM", bot_config=options, dtype=torch.float64))


@pytest.mark.covering
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
@pytest.mark.parametrize("request_of", [lambda _: {}, lambda c: {"config": c}, lambda _: {"output_attentions": True}])
def test_equal_sizes_are_left_to_transformers(saved, family, head, request_of):
    folder, built = saved(family, head)
    keywords = request_of(resized_config(built.config))
    expected = class_of(head).from_pretrained(folder, **keywords)
    with transformers_bot.integration():
        actual = class_of(head).from_pretrained(folder, **keywords)
    assert_same_tensors(actual, expected)
    assert actual.config.to_dict() == expected.config.to_dict()


def test_other_architectures_are_left_to_transformers(tmp_path):
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=11, state_size=4)
    model = transformers.MambaForCausalLM(config)
    model.save_pretrained(tmp_path)
    with transformers_bot.integration():
        assert_same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path), model)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family_head", MAIN_HEADS)
def test_outside_a_mismatch_raises_as_before(saved, family_head):
    family, head = family_head
    folder, built = saved(family, head)
    wanted = resized_config(built.config, **GROWN)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes") as before:
        class_of(head).from_pretrained(folder, config=wanted)
    with transformers_bot.integration():
        class_of(head).from_pretrained(folder, config=wanted)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes") as after:
        class_of(head).from_pretrained(folder, config=wanted)
    assert str(after.value) == str(before.value)


def test_importing_changes_nothing_and_disable_takes_back():
    assert PreTrainedModel.__dict__["from_pretrained"] is ORIGINAL
    transformers_bot.enable()
    assert PreTrainedModel.__dict__["from_pretrained"] is not ORIGINAL
    transformers_bot.enable({"gain": "raw"})
    transformers_bot.disable()
    assert PreTrainedModel.__dict__["from_pretrained"] is ORIGINAL
    transformers_bot.disable()


def test_an_error_inside_still_takes_back(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    with pytest.raises(BadSize, match="n_embd is 0"), transformers_bot.integration():
        GPT2LMHeadModel.from_pretrained(folder, n_embd=0)
    with pytest.raises(IncompatibleModels, match="reheads"), transformers_bot.integration():
        GPT2LMHeadModel.from_pretrained(folder, n_head=4, n_layer=4)


@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_fewer_layers_are_left_to_transformers_which_keeps_the_first(saved, family, head):
    folder, built = saved(family, head, layer=4)
    wanted = resized_config(built.config, layer=2)
    expected = class_of(head).from_pretrained(folder, config=wanted)
    with transformers_bot.integration():
        actual = class_of(head).from_pretrained(folder, config=wanted)
    assert_same_tensors(actual, expected)
    assert not hasattr(actual.config, "transformers_bot")


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_more_layers_are_never_left_newly_initialised(saved, family, head):
    folder, built = saved(family, head)
    wanted = resized_config(built.config, layer=3)
    with transformers_bot.integration():
        actual = class_of(head).from_pretrained(folder, config=wanted, dtype=torch.float64)
    assert_same_tensors(actual, resize(folder, wanted, head, dtype=torch.float64))


def test_other_heads_of_the_same_width_are_left_to_transformers(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    expected = GPT2LMHeadModel.from_pretrained(folder, n_head=4)
    with transformers_bot.integration():
        assert_same_tensors(GPT2LMHeadModel.from_pretrained(folder, n_head=4), expected)


@pytest.mark.slow
def test_a_width_that_changes_with_fewer_layers_is_resized_as_a_whole(saved):
    folder, built = saved("bert", "BertForMaskedLM", layer=4)
    wanted = resized_config(built.config, hidden=24, heads=6, ffn=40, layer=2)
    with transformers_bot.integration():
        actual = AutoModelForMaskedLM.from_pretrained(folder, config=wanted, dtype=torch.float64)
    assert_same_tensors(actual, resize(folder, wanted, "BertForMaskedLM", dtype=torch.float64))


@pytest.mark.slow
def test_contexts_nest_and_the_outer_options_come_back(saved):
    folder, built = saved("bert", "BertForMaskedLM")
    wanted = resized_config(built.config, **GROWN)
    seeds = []
    with transformers_bot.integration({"seed": 1}):
        with transformers_bot.integration({"seed": 2}):
            seeds.append(AutoModelForMaskedLM.from_pretrained(folder, config=wanted).config.transformers_bot)
        seeds.append(AutoModelForMaskedLM.from_pretrained(folder, config=wanted).config.transformers_bot)
    assert [facts["options"]["seed"] for facts in seeds] == [2, 1]


def test_the_method_keeps_its_name_and_documentation():
    with transformers_bot.integration():
        patched = PreTrainedModel.from_pretrained
        assert patched.__name__ == "from_pretrained"
        assert patched.__doc__ == ORIGINAL.__func__.__doc__


def test_loading_info_inside(saved):
    folder, _ = saved("gpt2", "GPT2LMHeadModel")
    with transformers_bot.integration():
        model, info = GPT2LMHeadModel.from_pretrained(folder, n_layer=3, output_loading_info=True)
    assert model.config.n_layer == 3
    assert not info["missing_keys"]
    assert info["resampled_keys"] | info["copied_keys"]


def _seed_in_use(folder, wanted):
    """The seed of the options that a plain call takes; None where transformers fails, as it does by itself."""
    try:
        return AutoModelForMaskedLM.from_pretrained(folder, config=wanted).config.transformers_bot["options"]["seed"]
    except RuntimeError:
        return None


@pytest.fixture
def grown_bert(saved):
    folder, built = saved("bert", "BertForMaskedLM")
    return folder, resized_config(built.config, **GROWN)


@pytest.mark.slow
def test_options_of_a_thread_are_its_own(grown_bert):
    steps, found = threading.Barrier(3), {}

    def work(seed, leaves_first):
        if seed is None:
            steps.wait()
            found[seed] = _seed_in_use(*grown_bert)
            steps.wait()
            return
        with transformers_bot.integration({"seed": seed}):
            steps.wait()
            if not leaves_first:
                steps.wait()  # the other one has left its block
                found[seed] = _seed_in_use(*grown_bert)
        if leaves_first:
            steps.wait()

    threads = [threading.Thread(target=work, args=one) for one in ((1, True), (2, False), (None, False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {2: 2, None: None}


@pytest.mark.slow
def test_blocks_can_be_left_in_any_order(grown_bert):
    for order in ((0, 1), (1, 0)):
        blocks = [transformers_bot.integration({"seed": seed}) for seed in range(2)]
        for block in blocks:
            block.__enter__()
        on = {0, 1}
        for seed in order:
            blocks[seed].__exit__(None, None, None)
            on.remove(seed)
            assert _seed_in_use(*grown_bert) == (max(on) if on else None)


@pytest.mark.slow
def test_options_of_a_task_are_its_own_and_reach_its_threads(grown_bert):
    async def work(seed, ready, leave):
        with transformers_bot.integration({"seed": seed}):
            ready.set()
            await leave.wait()
            return await asyncio.to_thread(_seed_in_use, *grown_bert)

    async def both():
        ready, leave = [asyncio.Event(), asyncio.Event()], asyncio.Event()
        tasks = [asyncio.create_task(work(seed, ready[seed], leave)) for seed in range(2)]
        for one in ready:
            await one.wait()
        outside = _seed_in_use(*grown_bert)
        leave.set()
        return [outside, *await asyncio.gather(*tasks)]

    assert asyncio.run(both()) == [None, 0, 1]


def test_a_copy_of_the_context_does_not_outlive_the_block(grown_bert):
    with transformers_bot.integration():
        kept = contextvars.copy_context()
    with transformers_bot.integration({"seed": 5}):
        assert kept.run(_seed_in_use, *grown_bert) is None


@pytest.mark.slow
def test_enable_holds_in_every_thread_and_a_block_goes_before_it(grown_bert):
    transformers_bot.enable({"seed": 7})
    try:
        with ThreadPoolExecutor(1) as pool, transformers_bot.integration({"seed": 8}):
            assert (_seed_in_use(*grown_bert), pool.submit(_seed_in_use, *grown_bert).result()) == (8, 7)
            transformers_bot.disable()
            assert (_seed_in_use(*grown_bert), pool.submit(_seed_in_use, *grown_bert).result()) == (8, None)
    finally:
        transformers_bot.disable()
