"""Looking changes nothing, says where there is nothing to say, and stops at what is not finite."""

import math
from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from families import adapter_of, build, resized_config
from reports import planned, watched

from transformers_bot import BadWeights
from transformers_bot.report.measure import Watch
from transformers_bot.run.execute import run_plan

SIZES = {"layer": 4, "hidden": 24, "heads": 6, "ffn": 40}


def source(family: str, head: str, dtype=torch.float64):
    return build(family, head, dtype=dtype, **SIZES).model


class Counted(Mapping):
    """Tensors that count how often each is asked for."""

    def __init__(self, tensors):
        self.tensors, self.asked = tensors, Counter()

    def __getitem__(self, name):
        self.asked[name] += 1
        return self.tensors[name]

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("method", ["bot", "aki", "front", "lemon"])
def test_results_are_bit_equal_and_nothing_is_read_more_often(method):
    model = source("gpt2", "GPT2LMHeadModel", dtype=torch.float32)
    plan, tensors = planned(model, resized_config(model.config, hidden=48, heads=12, ffn=80), method)
    alone, seen = Counted(tensors), Counted(tensors)
    plain = dict(run_plan(plan, alone, torch.float32))
    watch = Watch(plan, adapter_of("gpt2"))
    looked_at = dict(run_plan(plan, seen, torch.float32, watch=watch))
    assert seen.asked == alone.asked
    assert list(plain) == list(looked_at)
    for name, expected in plain.items():
        assert torch.equal(looked_at[name], expected), name


@pytest.mark.parametrize(("method", "options"), [("aki", {}), ("bot", {"depth": "identity"})])
def test_what_is_no_map_of_the_source_has_no_low_band(method, options):
    """Units mixed from two layers, norms that undo another, blocks of zeros: a spread, but no share."""
    model = source("bert", "BertModel") if method == "bot" else source("gpt2", "GPT2LMHeadModel")
    change = {"layer": 6} if method == "bot" else {"hidden": 48, "heads": 12, "ffn": 80}
    made = watched(model, resized_config(model.config, **change), method, **options)
    rows = {one.name: one for one in made.report.tensors}
    odd = [
        step.target
        for step in made.plan.steps
        if step.recipe and (step.recipe.undo or step.recipe.plus or not any(one.weight for one in step.recipe.reads))
    ]
    assert odd
    for name in odd:
        assert rows[name].gain is rows[name].energy_kept is None
        assert all(one.gain is one.energy_kept is None for one in rows[name].roles)
        assert rows[name].std_before is not None
        assert rows[name].std_after is not None


def test_a_spread_that_is_restored_has_no_gain():
    model = source("gpt2", "GPT2LMHeadModel")
    report = watched(model, resized_config(model.config, hidden=12, heads=3, ffn=20), "front").report
    row = next(one for one in report.tensors if one.name.endswith("0.mlp.c_fc.weight"))
    assert row.gain is None
    assert 0 < row.energy_kept < 1
    assert row.std_after == pytest.approx(row.std_before, rel=0.2)


# -- what is not finite -------------------------------------------------------------------------


def test_an_overflow_names_tensor_dtype_and_remedy():
    model = source("gpt2", "GPT2LMHeadModel", dtype=torch.float32)
    name = "transformer.h.1.mlp.c_fc.weight"
    with torch.no_grad():
        model.state_dict()[name][2, 3] = 1e6
    config = resized_config(model.config)
    with pytest.raises(
        BadWeights, match=rf"^{name}: 1 of 960 entries \(the first at \[2, 3\]\) are not finite as float16"
    ):
        watched(model, config, dtype=torch.float16)
    with pytest.raises(BadWeights, match="Pass dtype='bfloat16' or dtype='float32'"):
        watched(model, config, dtype=torch.float16)
    assert watched(model, config, dtype=torch.bfloat16).report.warnings == ()


def test_an_overflow_of_the_widest_short_dtypes_asks_for_doubles():
    model = source("gpt2", "GPT2LMHeadModel")
    with torch.no_grad():
        model.state_dict()["transformer.wpe.weight"][1, 1] = 1e300
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(BadWeights, match="Pass dtype='float64'"):
            watched(model, resized_config(model.config), dtype=dtype)


def test_a_source_that_is_not_finite_is_told_and_no_error():
    model = source("gpt2", "GPT2LMHeadModel", dtype=torch.float32)
    with torch.no_grad():
        model.state_dict()["transformer.h.1.ln_1.weight"][0] = math.nan
    report = watched(model, resized_config(model.config, ffn=80)).report
    assert report.warnings == ("transformer.h.1.ln_1.weight is not finite, because its source is not",)
    row = next(one for one in report.tensors if one.name == "transformer.h.1.ln_1.weight")
    assert (row.std_before, row.std_after, row.energy_kept) == (None, None, None)
