"""On a device every operation stays there, upcasts before it computes, and needs few launches.

The device is "meta", which takes the way of a GPU and has no data: fake CUDA tensors cannot be cut by a torch
that is built without CUDA.
"""

import numpy as np
import pytest
import torch
from families import build, resized_config
from reports import planned
from torch.utils._python_dispatch import TorchDispatchMode

from transformers_bot.ops import axis_map, blocks
from transformers_bot.ops.axis_map import AxisMap, Matrix, Stencil, Taps, apply_along, from_dense, gather
from transformers_bot.ops.blocks import exact_products
from transformers_bot.ops.recipe import Detail, Read, Recipe, run
from transformers_bot.ops.wavelets import analysis_map, synthesis_map

GPU = torch.device("meta")
LOW = [torch.bfloat16, torch.float16, torch.float32]
VIEWS = {
    "view",
    "slice",
    "select",
    "split",
    "split_with_sizes",
    "expand",
    "unsqueeze",
    "unbind",
    "transpose",
    "permute",
}
VIEWS |= {"alias", "detach", "reshape", "_unsafe_view", "t", "narrow", "as_strided", "movedim"}
NO_LAUNCH = VIEWS | {"empty", "new_empty", "empty_like", "empty_strided", "lift_fresh"}
NARROW = (torch.bfloat16, torch.float16)


def dense(target: int, source: int) -> AxisMap:
    return AxisMap(source, target, (Matrix(np.random.default_rng(0).standard_normal((target, source))),))


MAPS = {
    "stencil, shrink": lambda: analysis_map(32, 16, "haar", True),
    "stencil, grow": lambda: synthesis_map(16, 32, "haar", True),
    "stencil with edges": lambda: analysis_map(64, 32, "bior4.4", False),
    "two levels": lambda: synthesis_map(16, 64, "db2", False),
    "taps": lambda: analysis_map(23, 17, "haar", True),
    "gather": lambda: gather([2, 0, 0, 1, 2, 3, 3], source=4),
    "matrix": lambda: dense(8, 40),
    "band": lambda: from_dense(np.eye(5, 9) + np.eye(5, 9, 2)),
}


class Launches(TorchDispatchMode):
    """Counts the operations that run a kernel, and copies from the host apart."""

    def __init__(self):
        super().__init__()
        self.kernels: list[str] = []
        self.from_host = 0
        self.narrow: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        made = [one for one in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(one, torch.Tensor)]
        given = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, torch.Tensor)]
        if not any(one.device == GPU for one in made) or name in NO_LAUNCH:
            return out
        if any(one.device != GPU for one in given):
            self.from_host += 1
            assert name in ("_to_copy", "copy_"), f"{name} mixes devices"
            return out
        self.kernels.append(name)
        arithmetic = name in ("add", "add_", "mul", "mul_", "addcmul_", "mm", "sum", "sub_", "div_", "bmm")
        if arithmetic and all(one.dtype in NARROW for one in given):
            self.narrow.append(name)
        return out


@pytest.fixture(autouse=True)
def _nothing_stays():
    yield
    blocks.forget_placed()  # fakes of one test are nothing to another


@pytest.fixture
def measured(monkeypatch):
    """Tensors without data have no mean and spread: they are read, and answered for."""
    monkeypatch.setattr("transformers_bot.ops.recipe.moments", lambda tensors: (0.0, float(len(list(tensors)))))


def counted(call) -> tuple[torch.Tensor, Launches]:
    with Launches() as launches:
        out = call()
    return out, launches


def on_gpu(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=GPU)


@pytest.mark.covering("name dtype", "name dim")
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("name", MAPS)
def test_a_map_stays_on_the_gpu_and_computes_in_float32(name, dim, dtype):
    axis_map = MAPS[name]()
    shape = [3, 5, 7]
    shape[dim] = axis_map.source
    wanted = [axis_map.target if axis == dim else length for axis, length in enumerate(shape)]
    for result in (dtype, torch.float32):
        x, out = on_gpu(*shape, dtype=dtype), on_gpu(*wanted, dtype=result)
        made, launches = counted(lambda x=x, out=out: axis_map.apply(x, dim, out, torch.float32))
        assert made is out
        assert launches.narrow == []
    again, launches = counted(lambda: axis_map.apply(x, dim, out, torch.float32))
    assert launches.from_host == 0  # what a map needs on the device is there by now
    assert (again.device, again.dtype) == (GPU, torch.float32)


def test_the_forms_are_those_that_are_meant():
    kinds = {name: {type(getattr(band, "_form", band)) for band in make().bands} for name, make in MAPS.items()}
    assert kinds["stencil, shrink"] == kinds["stencil, grow"] == kinds["stencil with edges"] == {Stencil}
    assert kinds["taps"] == kinds["gather"] == {Taps}
    assert kinds["matrix"] == {Matrix}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("kind", ["sum and axes", "segments", "noise", "undo", "match"])
@pytest.mark.usefixtures("measured")
def test_a_recipe_stays_on_the_gpu_and_computes_in_float32(kind, dtype):
    shrink, keep = MAPS["stencil, shrink"](), AxisMap(16, 16)
    maps = (((shrink,),), ((keep,), (shrink,)))
    reads = tuple(Read("h.{layer}.w", layer, 0.5) for layer in range(2))
    shape = (32, 48)
    recipe = Recipe(reads, (((shrink,),), ((AxisMap(48, 48),),)))
    if kind == "segments":
        recipe = Recipe(reads, maps)
    elif kind == "noise":
        visible = (((AxisMap(16, 16),),), ((AxisMap(48, 48),),))
        recipe = Recipe(reads, recipe.maps, Detail("gaussian", 0.1, visible, ((0, 0.5), (1, 0.5)), (), 0, "w", 0))
    elif kind == "undo":
        shape, recipe = (32,), Recipe(tuple(Read(n, 0) for n in ("w", "b")), (((AxisMap(32, 32),),),), undo="weight")
    elif kind == "match":
        recipe = Recipe(reads, recipe.maps, match=reads)
    out, launches = counted(lambda: run(recipe, lambda _: on_gpu(*shape, dtype=dtype), dtype, GPU))
    assert (out.device, out.dtype) == (GPU, dtype)
    assert launches.narrow == []


@pytest.mark.parametrize(
    ("direction", "dtype", "most"),
    [
        ("grow", torch.float32, 2),  # a copy per axis: the entries of both phases in one launch
        ("grow", torch.bfloat16, 2),
        ("shrink", torch.float32, 4),  # a sum and a factor per axis
        ("shrink", torch.bfloat16, 6),  # as well an upcast, without a second tensor of that size, and a downcast
    ],
)
def test_launches_of_a_haar_step_along_both_axes(direction, dtype, most):
    axis_map = MAPS[f"stencil, {direction}"]()
    x = on_gpu(axis_map.source, axis_map.source, dtype=dtype)
    _, launches = counted(lambda: apply_along(x, {0: axis_map, 1: axis_map}))
    assert len(launches.kernels) == most, launches.kernels


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("sizes", [{"hidden": 6, "ffn": 10, "layer": 1}, {"hidden": 24, "heads": 6, "layer": 3}])
@pytest.mark.parametrize(
    ("family", "head"),
    [("bert", "BertForPreTraining"), ("gpt2", "GPT2LMHeadModel"), ("vit", "ViTForImageClassification")],
)
@pytest.mark.usefixtures("measured")
def test_a_whole_plan_and_what_rewrites_its_source_stay_on_the_gpu(family, head, sizes):
    model = build(family, head, dtype=torch.float32).model
    plan, network = planned(model, resized_config(model.config, **sizes), "bot")
    there = network.over({name: x.to(GPU) for name, x in network.stored.items()})
    steps = [step for step in plan.steps if step.recipe]
    with Launches():
        made = {
            step.target: run(step.recipe, lambda one, step=step: there[step.reads[one]], torch.float32, GPU)
            for step in steps
        }
    assert {name: (x.device, tuple(x.shape)) for name, x in made.items()} == {s.target: (GPU, s.shape) for s in steps}
    assert {network[name].device.type for name in network} == {"cpu"}


def test_nothing_is_upcast_as_a_whole():
    """The largest float32 tensor that a map of a bfloat16 tensor makes is a result, not a copy of its input."""
    x = on_gpu(3, 32, 64, dtype=torch.bfloat16)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                sizes.append(out.numel())
            return out

    with Sizes():
        apply_along(x, {1: MAPS["stencil, shrink"](), 2: analysis_map(64, 32, "bior4.4", False)})
    assert max(sizes) <= x.numel() // 2


def test_phases_in_one_launch_are_those_one_by_one():
    """The GPU's shorter way, run on the CPU by a form of which only the device is another."""
    grow = MAPS["stencil, grow"]().bands[0]
    x = torch.randn(4, grow.source, 3, generator=torch.Generator().manual_seed(0))
    out = torch.zeros(4, grow.target, 3)
    form = grow._form
    into = torch.unflatten(out, 1, (grow.source, form.period))
    axis_map._weighted_sum([x.unsqueeze(2).expand_as(into)], [form.phases[0][0][1]], into)
    torch.testing.assert_close(out, AxisMap(grow.source, grow.target, (grow,)).apply(x, 1), rtol=0, atol=0)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.7, -0.2], [2.0], [1.0], [0.1, 0.2, 0.3]])
@pytest.mark.parametrize("narrow", NARROW)
def test_sums_of_narrow_tensors_are_rounded_once_at_most(weights, narrow):
    parts = [torch.randn(1000, generator=torch.Generator().manual_seed(i)).to(narrow) for i in range(len(weights))]
    out = torch.empty(1000)
    axis_map._weighted_sum(parts, weights, out)
    expected = sum(weight * part.double() for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=4 * torch.finfo(torch.float32).eps)


@pytest.fixture
def precision():
    """What is set about TF32, set again afterwards."""
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch 2.9 brought a setting for every kind of device")
    before = torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "none"  # what is allowed for all devices reaches this one
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def _set(holder, name, value):
    return lambda: setattr(holder, name, value)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(
    "allow",
    [
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        _set(torch.backends.cuda.matmul, "allow_tf32", True),
        _set(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        _set(torch.backends, "fp32_precision", "tf32"),
    ],
    ids=["high", "medium", "allow_tf32", "matmul", "all"],
)
def test_tf32_is_off_inside_and_as_it_was_outside(allow):
    allow()
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    with exact_products(torch.device("cuda")):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
