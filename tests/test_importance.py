"""Importance slicing: what is kept is what scores highest, and dropping what does nothing changes nothing."""

import json
from types import SimpleNamespace

import pytest
import torch
from families import (
    ALL_HEADS,
    FAMILIES,
    MAIN_HEADS,
    adapter_of,
    assert_same_outputs,
    build,
    outputs,
    resize,
    resized_config,
    tiny_config,
)
from networks import at, network_for
from test_plan import assert_total

from transformers_bot import BadOption, BoTConfig, methods, plan
from transformers_bot.architectures.sizes import role_sizes
from transformers_bot.methods import Fresh, Task, unit_scores
from transformers_bot.methods.unit_scores import from_activations, from_weights
from transformers_bot.ops.axis_map import AxisMap, gather
from transformers_bot.ops.recipe import apply
from transformers_bot.rewrite.principal import Opened

SMALL = {"layer": 2, "hidden": 6, "heads": 2, "ffn": 9}
BY = pytest.mark.parametrize("calibrated", [False, True], ids=["weights", "calibration"])
MAIN = pytest.mark.parametrize(("family", "head"), MAIN_HEADS)


def sliced(built, folder, sizes, calibrated=False, **keywords):
    """The model of other sizes; its calibration, if any, is on the inputs that it is tested with."""
    calibration = [built.inputs] if calibrated else None
    wanted = resized_config(built.config, **sizes)
    head = type(built.model).__name__
    return resize(folder, wanted, head, method="importance", calibration=calibration, dtype=torch.float64, **keywords)


def scored(model, built, calibrated):
    network = network_for(model)
    return from_activations(Opened(network, model, [built.inputs])) if calibrated else from_weights(network)


def best(score, count):
    return sorted(torch.topk(score, count).indices.tolist())


# -- slicing --------------------------------------------------------------------------------------------


@pytest.mark.covering(few=2)
@BY
@MAIN
def test_every_tensor_is_a_slice_of_the_source(saved, family, head, calibrated):
    folder, built = saved(family, head, layer=3)
    target = sliced(built, folder, SMALL, calibrated)
    network = network_for(built.model)
    opened = Opened(network, built.model, [built.inputs])
    scores = from_activations(opened) if calibrated else from_weights(network)
    layers = best(scores["layer", None], 2)
    assert target.config.transformers_bot["layers"] == layers
    after = network_for(target)
    for name, place in after.places.items():
        layer = None if place.layer is None else layers[place.layer]
        source = network[network.find(place.template, layer)]
        maps = tuple(
            tuple(_indexed(part, scores, layer, network.sizes) for part in a.segments) for a in place.rule.axes
        )
        assert torch.equal(after[name], apply(source, maps)), name


def _indexed(segment, scores, layer, sizes):
    """The kept places of one segment by plain loops; heads of 4 keep 3 entries each."""
    roles = [factor.role for factor in segment]
    if "heads" in roles:
        entries = scores[roles[1], at(layer)]
        return (gather([h * 4 + i for h in best(scores["heads", at(layer)], 2) for i in best(entries[h], 3)], 12),)
    if roles in (["hidden"], ["readout"]):
        return (gather(best(scores["hidden", None], 6), 12),)
    if roles == ["ffn"]:
        return (gather(best(scores["ffn", at(layer)], 9), 20),)
    lengths = [factor.size or sizes[factor.role] or 4 for factor in segment]  # 4 labels
    return tuple(AxisMap(length, length) for length in lengths)


def test_weights_score_by_norms_of_what_writes_and_reads():
    built = build("bert", "BertForMaskedLM")  # post-norm: nothing is folded
    scores = from_weights(network_for(built.model))
    state = built.model.state_dict()
    layer = "bert.encoder.layer.1."
    rows = {part: state[layer + part + ".weight"] for part in ("intermediate.dense", "output.dense")}
    first = torch.cat([rows["intermediate.dense"], state[layer + "intermediate.dense.bias"][:, None]], 1).norm(dim=1)
    torch.testing.assert_close(scores["ffn", at(1)], first * rows["output.dense"].norm(dim=0))
    attention = layer + "attention."
    value = torch.cat([state[attention + "self.value.weight"], state[attention + "self.value.bias"][:, None]], 1)
    entries = value.norm(dim=1) * state[attention + "output.dense.weight"].norm(dim=0)
    torch.testing.assert_close(scores["head_dim", at(1)], entries.reshape(3, 4))
    torch.testing.assert_close(scores["heads", at(1)], entries.reshape(3, 4).square().sum(1).sqrt())
    biases = sum(state[layer + part + "output.dense.bias"].square().sum() for part in ("", "attention."))
    whole = (entries.square().sum() + scores["ffn", at(1)].square().sum() + biases).sqrt()
    torch.testing.assert_close(scores["layer", None][1], whole)


def test_folded_norms_count_in_prenorm_models():
    built = build("gpt2", "GPT2LMHeadModel")
    scores = from_weights(network_for(built.model))
    block = built.model.transformer.h[0]
    weight = block.mlp.c_fc.weight * block.ln_2.weight[:, None]
    bias = block.mlp.c_fc.bias + block.ln_2.bias @ block.mlp.c_fc.weight
    expected = (weight.square().sum(0) + bias.square()).sqrt() * block.mlp.c_proj.weight.norm(dim=1)
    torch.testing.assert_close(scores["ffn", at(0)], expected.detach())
    blocks = [torch.cat([scores["ffn", at(i)], scores["head_dim", at(i)].flatten()]).square().sum() for i in range(2)]
    blocks = [
        found + block.mlp.c_proj.bias.square().sum() + block.attn.c_proj.bias.square().sum()
        for found, block in zip(blocks, built.model.transformer.h, strict=True)
    ]
    tables = (built.model.transformer.wte, built.model.transformer.wpe)
    stream = sum(table.weight.square().sum(1).mean() for table in tables)
    relative = torch.stack([blocks[0] / stream, blocks[1] / (stream + blocks[0])]).sqrt()
    torch.testing.assert_close(scores["layer", None], relative.detach())


def _level(x, mask):
    """L2 over sequences of means over the tokens that the mask counts."""
    mask = torch.ones(x.shape[:2]) if mask is None else mask
    means = [x[i, : int(mask[i].sum())].mean(0) for i in range(len(x))]
    return torch.stack(means).square().sum(0).sqrt()


@pytest.mark.parametrize(("family", "head"), [("bert", "BertForMaskedLM"), ("gpt2", "GPT2LMHeadModel")])
def test_activations_score_by_their_magnitude(family, head):
    built = build(family, head)
    seen = {}
    blocks = built.model.bert.encoder.layer if family == "bert" else built.model.transformer.h
    block = blocks[1]
    watched = {"norms": [m for m in built.model.modules() if isinstance(m, torch.nn.LayerNorm)]}
    watched |= {"act": [block.intermediate if family == "bert" else block.mlp.act], "block": [block]}
    watched["attention"] = [block.attention.self if family == "bert" else block.attn]
    watched["query"] = [block.attention.self.query if family == "bert" else block.attn.c_attn]
    watched["key"] = [block.attention.self.key if family == "bert" else block.attn.c_attn]

    def keep(name):
        def hook(_module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, []).append((inputs[0] if inputs else None, output.detach()))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, found in watched.items() for module in found]
    outputs(built.model, built.inputs)
    for handle in handles:
        handle.remove()
    scores = from_activations(Opened(network_for(built.model), built.model, [built.inputs]))
    mask = built.inputs["attention_mask"]
    hidden = sum(_level(output.abs(), mask) for _, output in seen["norms"])
    torch.testing.assert_close(scores["hidden", None], hidden)
    torch.testing.assert_close(scores["ffn", at(1)], _level(seen["act"][0][1].abs(), mask))
    start, end = seen["block"][0]
    change = 1 - torch.nn.functional.cosine_similarity(start, end, dim=-1)
    means = [change[i, : int(mask[i].sum())].mean() for i in range(2)]
    torch.testing.assert_close(scores["layer", None][1], torch.stack(means).mean().detach())
    queries, keys = (seen[name][0][1] for name in ("query", "key"))
    queries, keys = (queries, keys) if family == "bert" else (queries[..., :12], keys[..., 12:24])
    entries = _level(queries.abs(), mask) * _level(keys.abs(), mask)
    torch.testing.assert_close(scores["score", at(1)], entries.reshape(3, 4))
    if family == "bert":  # what GPT-2's module gives has gone through its output matrix
        heads = seen["attention"][0][1].reshape(2, 7, 3, 4)
        torch.testing.assert_close(scores["heads", at(1)], _level(heads.norm(dim=-1), mask))
        torch.testing.assert_close(scores["head_dim", at(1)], _level(heads.flatten(2).abs(), mask).reshape(3, 4))


# -- masks, seeds, words ------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForMultipleChoice"])
def test_masked_tokens_do_not_count(head):
    built = build("bert", head)
    inputs = {name: x.clone() for name, x in built.inputs.items()}
    inputs["attention_mask"][..., -3:] = 0
    cut = {name: x[..., :-3] for name, x in inputs.items()}
    masked, short = (
        from_activations(Opened(network_for(built.model), built.model, [batch])) for batch in (inputs, cut)
    )
    assert list(masked) == list(short)
    for key, score in masked.items():
        torch.testing.assert_close(score, short[key], msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.covering(few=1)
@BY
def test_the_result_is_the_same_every_time(saved, calibrated):
    folder, built = saved("roberta", "RobertaForMaskedLM", layer=3)
    first, again = (sliced(built, folder, SMALL, calibrated).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@BY
def test_provenance_says_what_decided(saved, tmp_path, calibrated):
    folder, built = saved("vit", "ViTForImageClassification", layer=3)
    target = sliced(built, folder, SMALL, calibrated)
    target.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())["transformers_bot"]
    assert said["method"] == "importance"
    assert said["scored_by"] == ("calibration" if calibrated else "weights")
    assert len(said["layers"]) == 2
    again = type(target).from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")
    assert_same_outputs(outputs(again, built.inputs), outputs(target, built.inputs), tolerance=1e-12)


@pytest.mark.covering("family")
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_a_plan_from_configs_accounts_for_every_tensor(family, head):
    config = tiny_config(family, head, layer=3)
    made = plan(config, resized_config(config, **SMALL), method="importance")
    assert_total(made, made.source, made.target)
    assert made.inherited == 1.0
    assert made.to_dict()["method"]["scored_by"] == "nothing yet"
    assert any("decides from the weights or calibration=" in text for text in made.warnings)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_sizes_are_copies(family):
    adapter = adapter_of(family)
    sizes = role_sizes(adapter, tiny_config(family), "source")
    made = methods.get("importance", BoTConfig())
    for rule in adapter.rules:
        task = Task(adapter, sizes, sizes, tied=True)
        recipe = made.recipe(task, rule, 1 if rule.layered else None, rule.names.split("|")[0].strip())
        assert not isinstance(recipe, Fresh)
        assert recipe.is_copy, rule.text


def test_the_units_of_a_vit_pooler_are_its_own(saved):
    folder, built = saved("vit", "ViTModel")
    for calibrated in (False, True):
        target = sliced(built, folder, {"hidden": 6, "pooler_output_size": 5}, calibrated)
        scores = scored(built.model, built, calibrated)
        rows, columns = best(scores["pooler", None], 5), best(scores["hidden", None], 6)
        assert torch.equal(target.pooler.dense.weight, built.model.pooler.dense.weight[rows][:, columns])


@pytest.mark.parametrize(
    ("matrix", "others", "seen"),
    [
        ("vit.pooler.dense", (), "vit.pooler"),
        ("vit.pooler.proj", (), "vit.pooler"),
        ("vit.projection", ("vit.layernorm.weight",), "vit.projection"),
        ("pooler", ("layernorm.weight",), "pooler"),
    ],
)
def test_units_that_nothing_reads_are_seen_behind_their_activation(matrix, others, seen):
    network = SimpleNamespace(places=dict.fromkeys([f"{matrix}.weight", f"{matrix}.bias", *others]))
    assert unit_scores._activated(network, matrix) == seen


# -- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [{"ffn": 21}, {"layer": 3}, {"hidden": 16, "heads": 4}, {"hidden": 6, "heads": 1}], ids=str
)
def test_it_refuses_to_grow(sizes):
    config = tiny_config("bert", "BertForMaskedLM")
    with pytest.raises(BadOption, match=r"'importance' cannot do this: it can only shrink, but .* Use method='bot'\."):
        plan(config, resized_config(config, **sizes), method="importance")


BAD = {
    "no batch": ([], "gave no batch"),
    "wrong keyword": ([{"images": torch.zeros(1)}], "keyword arguments that the source runs on"),
    "no mapping": ([torch.zeros(2, 3)], "must be a dict of tensors.* got Tensor"),
    "mask of another shape": (
        [{"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 1, 5, 5)}],
        r"has shape \(2, 1, 5, 5\) .* where the source has \(2, 5\)",
    ),
    "everything masked": (
        [{"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.zeros(2, 5)}],
        "and 0 tokens to count",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_it_refuses_calibration_that_it_cannot_run_on(saved, case):
    folder, built = saved("bert", "BertForMaskedLM")
    batches, words = BAD[case]
    wanted = resized_config(built.config, ffn=10)
    with pytest.raises(BadOption, match=words):
        resize(folder, wanted, "BertForMaskedLM", method="importance", calibration=batches)
    with pytest.raises(BadOption, match=words):
        from_activations(Opened(network_for(built.model), built.model, batches))
    assert not any(module._forward_hooks for module in built.model.modules())


def test_it_refuses_what_it_has_no_use_for(saved):
    folder, built = saved("bert", "BertForMaskedLM")
    shorter = resized_config(built.config, max_position_embeddings=8)
    with pytest.raises(BadOption, match=r"none of them gets fewer here\. Leave it out"):
        resize(folder, shorter, "BertForMaskedLM", method="importance", calibration=[built.inputs])
    assert resize(folder, shorter, "BertForMaskedLM", method="importance").config.max_position_embeddings == 8
    with pytest.raises(BadOption, match="cannot be combined"):
        plan(built.config, resized_config(built.config, ffn=10), method="importance+stack")
