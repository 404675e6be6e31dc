"""A plan costs what its tensors' names cost: no map is made for it, whatever the sizes."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
from transformers import GPT2Config

from transformers_bot import BadSize, plan
from transformers_bot.methods import maps
from transformers_bot.methods.maps import contrasts, copied_from, dual
from transformers_bot.ops.axis_map import AxisMap

CHILD = """
import json, resource, sys
import transformers_bot
from transformers import GPT2Config
from transformers_bot import BoTError, plan
plan(GPT2Config(n_layer=1, n_embd=32, n_head=4, vocab_size=50), n_embd=64, n_head=8)  # all that is imported
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
for case in json.load(sys.stdin):
    source, target = (dict(zip(("n_layer", "n_embd", "n_head", "n_positions"), side)) for side in case["sides"])
    start = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    try:
        plan(GPT2Config(vocab_size=50, **source), method=case["method"], bot_config=case["options"], **target)
        said = "planned"
    except BoTError as error:
        said = type(error).__name__
    print(json.dumps([said, resource.getrusage(resource.RUSAGE_SELF).ru_utime - start]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)
"""
METHODS = ("bot", "weight_selection", "importance", "fpi", "aki", "tile", "lemon", "front", "ligo", "mango")


def _cases() -> list[dict]:
    wide = [(2, 131072, 8192, 64), (2, 98304, 6144, 1 << 20), (2, 64, 4, 1024), (2, 65536, 4096, 50_000)]
    fixed = [{"sides": [a, b], "method": m, "options": {}} for m in METHODS for a in wide for b in wide if a != b]
    chance = random.Random(0)

    def side() -> tuple[int, ...]:
        heads = 2 ** chance.randrange(14)
        return (
            chance.randrange(1, 9),
            heads * chance.randrange(1, (1 << 17) // heads + 1),
            heads,
            2 ** chance.randrange(20),
        )

    drawn = [{"sides": [side(), side()], "method": chance.choice(METHODS), "options": {}} for _ in range(40)]
    long = [{"wavelet": one, "gain": gain} for one in ("coif17", "db38") for gain in ("raw", "consistent")]
    filtered = [{"sides": [wide[a], wide[b]], "method": "bot", "options": o} for o in long for a, b in ((2, 0), (0, 1))]
    return [*fixed, *drawn, *filtered]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
def test_sizes_within_the_caps_are_planned_in_little_memory_and_time():
    cases = _cases()
    ran = subprocess.run([sys.executable, "-c", CHILD], input=json.dumps(cases), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    *found, grown = [json.loads(line) for line in ran.stdout.splitlines()]
    slow = [(case, one) for case, one in zip(cases, found, strict=True) if one[1] > 5]
    assert not slow
    assert grown < 400  # MB
    assert {one[0] for one in found} <= {"planned", "BadOption", "BadSize", "IncompatibleModels"}
    assert sum(one[0] == "planned" for one in found) > len(cases) // 2


@pytest.mark.parametrize(
    ("field", "most"), [("n_embd", 1 << 17), ("n_inner", 1 << 19), ("n_positions", 1 << 20), ("vocab_size", 1 << 24)]
)
def test_the_cap_of_every_axis_is_named(field, most):
    source = GPT2Config(n_layer=1, n_embd=32, n_head=4, vocab_size=50)
    fields = {"n_inner": 128, field: most}
    plan(source, ignore_mismatched_sizes=True, **fields)
    with pytest.raises(BadSize, match=f"{field} gives .* allows at most {most}"):
        plan(source, ignore_mismatched_sizes=True, **{**fields, field: 2 * most})


@pytest.mark.slow
def test_a_plan_that_reads_too_many_tensors_is_refused_by_name():
    source = GPT2Config(n_layer=200, n_embd=32, n_head=4, vocab_size=50)
    with pytest.raises(BadSize, match=r"from 200 to 400 layers .* Choose fewer layers"):
        plan(source, n_layer=400, method="front")


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("low_passed", [False, True])
@pytest.mark.parametrize(
    ("source", "target"), [(40, 13), (13, 40), (512, 100), (1024, 3), (50, 1), (1, 50), (197, 196)]
)
def test_places_of_long_axes_have_the_weights_that_torch_gives(source, target, mode, low_passed):
    if low_passed and target > source:
        pytest.skip("growing is not low-passed")
    seen, worked_out = (
        AxisMap(source, target, make(source, target, mode, low_passed)).dense()
        for make in (maps._measured_weights, maps._formula_weights)
    )
    np.testing.assert_allclose(worked_out, seen, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("source", "target"), [(3, 96), (5, 100), (7, 7 * 31 + 2)])
def test_contrasts_of_many_copies_are_orthonormal_and_reach_no_signal(source, target):
    pair = dual(source, target, "haar")
    owner, bands = copied_from(pair.produce), contrasts(pair).dense()
    assert bands.shape == (target, target - source)
    assert np.bincount(owner).max() == -(-target // source)
    np.testing.assert_allclose(bands.T @ bands, np.eye(target - source), atol=1e-12)
    np.testing.assert_allclose(bands.T @ pair.produce.dense(), 0, atol=1e-12)
