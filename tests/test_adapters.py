"""Every tensor of every head class has one rule and its predicted shape, and the rules name the right axes.

Shapes cannot tell the axes of a square matrix apart. Permuting one role consistently in all
parameters can: it leaves the function as it is, and leaving out one axis of one tensor does not.
"""

import copy
import re

import pytest
import torch
from families import (
    ALL_HEADS,
    FAMILIES,
    HEADS,
    MAIN_HEADS,
    adapter_of,
    assert_same_outputs,
    build,
    class_of,
    outputs,
    tiny_config,
)
from torch import Tensor
from transformers.models.auto import modeling_auto

from transformers_bot.architectures.adapter import Axis, Rule, find_rule
from transformers_bot.architectures.inventory import inventory_of, predict, rules_of
from transformers_bot.architectures.sizes import role_sizes
from transformers_bot.errors import PlanError, UnsupportedArchitecture

# What a permutation of a role means for the roles that stand for the same entries.
SAME = {"readout": "hidden", "pooler": "hidden"}
PERMUTED = ("hidden", "heads", "score", "head_dim", "ffn")


@pytest.mark.covering
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
@pytest.mark.parametrize("seed", range(2))
def test_every_tensor_has_one_rule_and_its_predicted_shape(family, head, seed):
    generator = torch.Generator().manual_seed(100 * seed + len(head))
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))  # noqa: E731
    heads, head_dim = draw(1, 6), draw(1, 9)
    config = tiny_config(family, head, layer=draw(1, 12), hidden=heads * head_dim, heads=heads, ffn=draw(1, 40))
    adapter, inventory = adapter_of(family), predict(class_of(head), config)
    sizes = role_sizes(adapter, config, "source")
    found = rules_of(adapter, inventory, sizes)  # exactly one rule each, or PlanError
    assert list(found) == list(inventory.shapes)
    for name, (rule, layer) in found.items():
        # Only labels and pixels are read off the tensor, everything else is predicted without it.
        unknown = tuple(-1 for _ in inventory.shapes[name])
        actual = inventory.shapes[name]
        predicted = rule.shape(sizes, unknown)
        assert tuple(a if p == -1 else p for p, a in zip(predicted, actual, strict=True)) == actual
        assert {"label", "pixel"} & set(rule.roles) or -1 not in predicted
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        assert layer is None or layer in numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_predicted_inventory_is_the_real_models(family):
    for head in HEADS[family]:
        built = build(family, head)
        real, meta = inventory_of(built.model), predict(class_of(head), built.config)
        assert dict(real.shapes) == dict(meta.shapes)
        assert dict(real.ties) == dict(meta.ties)
        assert real.prefix == meta.prefix


@pytest.mark.parametrize("family", FAMILIES)
def test_every_class_of_the_task_mappings_is_covered(family):
    mappings = [name for name in dir(modeling_auto) if re.fullmatch(r"MODEL_(FOR_\w+_)?MAPPING_NAMES", name)]
    named = set()
    for mapping in mappings:
        entry = getattr(modeling_auto, mapping).get(family, ())
        named |= {entry} if isinstance(entry, str) else set(entry)
    assert named - set(HEADS[family]) == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_tensor_is_an_error(family):
    rules = adapter_of(family).rules
    with pytest.raises(PlanError, match="is named by no rule"):
        find_rule(rules, "something.new.weight")
    with pytest.raises(PlanError, match="component 3 is not captured as"):
        find_rule(rules, "tower.3.weight")


def test_an_unknown_model_type_is_an_error():
    from transformers_bot import adapters

    with pytest.raises(UnsupportedArchitecture, match=r"'mbart' has no adapter.*Did you mean 'bart'"):
        adapters.get("mbart")


# -- permutations ---------------------------------------------------------------------------------


def _permutation(length: int) -> Tensor:
    """Never the identity: a random order, turned by one place until it moves something."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(length))
    while torch.equal(order, torch.arange(length)):
        order = order.roll(1)
    return order


def _index(axis: Axis, role: str, sizes: dict) -> Tensor | None:
    """Where each entry of an axis comes from when `role` is permuted; None if the axis has no such role."""
    pieces, offset, touched = [], 0, False
    for segment in axis.segments:
        lengths = [factor.length(sizes) for factor in segment]
        if None in lengths:
            return None
        piece = torch.arange(int(torch.tensor(lengths).prod())).view(lengths) + offset
        for dim, factor in enumerate(segment):
            if SAME.get(factor.role, factor.role) == role:
                piece, touched = piece.index_select(dim, _permutation(lengths[dim])), True
        offset += piece.numel()
        pieces.append(piece.flatten())
    return torch.cat(pieces) if touched else None


def _places(rules: dict[str, tuple[Rule, int | None]], role: str, sizes: dict) -> list[tuple[str, int, Tensor]]:
    """Every (tensor, axis, order) that a permutation of `role` touches."""
    return [
        (name, dim, index)
        for name, (rule, _) in rules.items()
        for dim, axis in enumerate(rule.axes)
        if (index := _index(axis, role, sizes)) is not None
    ]


def _permuted(built, places) -> dict[str, Tensor]:
    """Outputs of the model with these axes permuted; tied tensors are permuted once."""
    model = copy.deepcopy(built.model)
    state, ties = model.state_dict(), inventory_of(model).ties
    for name, dim, index in places:
        if name not in ties:
            state[name].copy_(state[name].index_select(dim, index))
    return outputs(model, built.inputs)


def _rules(built):
    adapter = adapter_of(built.config.model_type)
    sizes = role_sizes(adapter, built.config, "source")
    return rules_of(adapter, inventory_of(built.model), sizes), sizes


@pytest.mark.covering(few=16)
@pytest.mark.parametrize("role", PERMUTED)
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_a_consistent_permutation_changes_nothing(family, head, role):
    built = build(family, head)
    rules, sizes = _rules(built)
    actual, expected = _permuted(built, _places(rules, role, sizes)), outputs(built.model, built.inputs)
    if role == "hidden":  # a base model returns the stream itself, permuted
        width = sizes["hidden"]
        order = _permutation(width)
        stream = ("last_hidden_state", "pooler_output")
        expected = {n: x.index_select(-1, order) if n in stream else x for n, x in expected.items()}
    assert_same_outputs(actual, expected)


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("role", PERMUTED)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_leaving_out_one_axis_changes_the_outputs(family, head, role):
    built = build(family, head)
    rules, sizes = _rules(built)
    places, reference = _places(rules, role, sizes), outputs(built.model, built.inputs)
    ties = inventory_of(built.model).ties
    for left_out in places:
        if left_out[0] in ties or _is_silent(left_out[0]):
            continue
        wrong = _permuted(built, [place for place in places if place is not left_out])
        change = max(float((wrong[n] - reference[n]).abs().max()) for n in reference)
        assert change > 1e-4, f"axis {left_out[1]} of {left_out[0]} may be permuted alone"


def _is_silent(name: str) -> bool:
    """Key biases add the same score to every key (softmax does not see them), the mask token is unused."""
    return name.endswith(("key.bias", "k_proj.bias", "mask_token"))
