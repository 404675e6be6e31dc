"""The other methods against their formulas: plain indexing, split weights, lists of layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import resized_config, tiny_config
from test_rivals import resized

from transformers_bot import methods, plan
from transformers_bot.adapters import Role, get
from transformers_bot.architectures.adapter import Factor
from transformers_bot.methods import Fresh, Task
from transformers_bot.methods.fpi import drawn
from transformers_bot.methods.maps import interpolated, stacked_from_top, upscaled
from transformers_bot.methods.weight_selection import selected

BERT = ("bert", "BertForMaskedLM")
GPT2 = ("gpt2", "GPT2LMHeadModel")
LAYER = "bert.encoder.layer.{}."
# name within a BERT layer -> roles of its axes; flat heads are as long as hidden
AXES = {
    "attention.self.query.weight": ("heads", "hidden"),
    "attention.self.query.bias": ("heads",),
    "attention.self.key.weight": ("heads", "hidden"),
    "attention.self.value.weight": ("heads", "hidden"),
    "attention.output.dense.weight": ("hidden", "heads"),
    "attention.output.dense.bias": ("hidden",),
    "attention.output.LayerNorm.weight": ("hidden",),
    "intermediate.dense.weight": ("ffn", "hidden"),
    "intermediate.dense.bias": ("ffn",),
    "output.dense.weight": ("hidden", "ffn"),
    "output.LayerNorm.bias": ("hidden",),
}
# and of tensors outside of the layers; None is an axis that keeps its entries
OUTSIDE = {
    "bert.embeddings.word_embeddings.weight": (None, "hidden"),
    "bert.embeddings.token_type_embeddings.weight": (None, "hidden"),
    "bert.embeddings.LayerNorm.bias": ("hidden",),
    "cls.predictions.transform.dense.weight": ("hidden", "hidden"),
    "cls.predictions.transform.LayerNorm.weight": ("hidden",),
    "cls.predictions.bias": (None,),
}


def indexed(x: torch.Tensor, index: dict[str | None, np.ndarray], axes: tuple[str | None, ...]) -> torch.Tensor:
    for dim, role in enumerate(axes):
        x = x if role is None else x.index_select(dim, torch.from_numpy(np.asarray(index[role])))
    return x


# -- weight selection -----------------------------------------------------------------------------


def test_a_head_is_started_anew_whatever_its_role_is_called():
    adapter = get("bert")
    rules = tuple(rule.with_factors(renamed) for rule in adapter.rules if "label" in rule.roles)
    roles = adapter.roles.with_(Role("sorts", "identity", None, field="num_labels", noun="sorts"))
    sizes = dict.fromkeys(roles, 4)
    task = Task(replace(adapter, rules=rules, roles=roles), sizes, {**sizes, "layer": 2}, tied=False)
    method = methods.get("weight_selection", methods.options_of("weight_selection", None))
    assert rules
    for rule in rules:
        assert isinstance(method.recipe(task, rule, None, rule.names.split("|")[0].strip()), Fresh)


def renamed(factor: Factor) -> Factor:
    return replace(factor, role="sorts") if factor.role == "label" else factor


@pytest.mark.parametrize("sizes", [{"hidden": 6, "heads": 3, "ffn": 10}, {"hidden": 8, "heads": 2, "ffn": 7}], ids=str)
def test_selection_is_plain_indexing_of_the_first_layers(saved, sizes):
    change = {**sizes, "layer": 1, "max_position_embeddings": 8}
    built, target = resized(saved, *BERT, "weight_selection", change)
    hidden = {6: [0, 2, 4, 6, 8, 10], 8: [0, 2, 3, 5, 6, 8, 9, 11]}[sizes["hidden"]]
    ffn = {10: list(range(0, 20, 2)), 7: [0, 3, 6, 10, 13, 16, 19]}[sizes["ffn"]]
    index = {"hidden": hidden, "heads": hidden, "ffn": ffn, "position": [0, 2, 3, 5, 6, 8, 9, 11]}
    before, after = built.model.state_dict(), target.state_dict()
    names = {LAYER.format(0) + name: axes for name, axes in AXES.items()} | OUTSIDE
    for name, axes in (names | {"bert.embeddings.position_embeddings.weight": ("position", "hidden")}).items():
        assert torch.equal(after[name], indexed(before[name], index, axes)), name


def test_selection_splits_fused_queries_keys_and_values(saved):
    built, target = resized(saved, *GPT2, "weight_selection", {"hidden": 8, "heads": 2})
    kept = torch.tensor([0, 2, 3, 5, 6, 8, 9, 11])
    before, after = built.model.transformer.h[1].attn.c_attn, target.transformer.h[1].attn.c_attn
    for old, new in zip(before.weight.split(12, 1), after.weight.split(8, 1), strict=True):
        assert torch.equal(new, old[kept][:, kept])
    for old, new in zip(before.bias.split(12), after.bias.split(8), strict=True):
        assert torch.equal(new, old[kept])


@pytest.mark.parametrize("source", range(1, 14))
def test_selected_entries_are_even_and_reach_both_ends(source):
    for target in range(1, source + 1):
        index = selected(source, target)
        assert len(set(index)) == target
        assert index[0] == 0
        step = np.diff(index)
        if source % target == 0:
            assert set(step) <= {source // target}
        else:
            assert target == 1 or index[-1] == source - 1
            assert step.size == 0 or step.max() - step.min() <= 1


def test_selection_starts_task_heads_anew():
    config = tiny_config("bert", "BertForSequenceClassification")
    made = plan(config, resized_config(config, layer=1), method="weight_selection")
    assert made.names("fresh") == ["classifier.weight", "classifier.bias"]
    assert {step.reason for step in made.steps if step.action == "fresh"} == {"weight selection starts task heads anew"}


# -- bert2BERT ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [(5, 5), (5, 7), (5, 10), (5, 23), (1, 4)])
def test_draws_are_balanced(source, target):
    index = drawn(source, target, "0/ffn/1")
    counts = np.bincount(index, minlength=source)
    assert len(index) == target
    assert index[:source].tolist() == list(range(source))
    assert counts.max() - counts.min() <= 1


def fpi_maps(layer: int, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Which source entry each entry of an axis is, in one layer; heads move as wholes."""
    heads = drawn(3, sizes["heads"], f"0/heads/{layer}")
    return {
        "hidden": drawn(12, sizes["hidden"], "0/hidden/None"),
        "ffn": drawn(20, sizes["ffn"], f"0/ffn/{layer}"),
        "heads": (heads[:, None] * 4 + np.arange(4)).ravel(),
    }


def expanded(x: torch.Tensor, index: dict[str, np.ndarray], axes: tuple[str, ...]) -> torch.Tensor:
    """Rows are copied, columns are copied and divided by their copy counts."""
    out = indexed(x, index, axes)
    if len(axes) == 2:
        counts = np.bincount(index[axes[1]])
        out = out / torch.from_numpy(counts[index[axes[1]]])
    return out


ADDED = {"hidden": 16, "heads": 4, "ffn": 33}


def test_fpi_copies_what_is_written_and_shares_what_is_read(saved):
    built, target = resized(saved, *BERT, "fpi", ADDED)
    before, after = built.model.state_dict(), target.state_dict()
    maps = [fpi_maps(layer, ADDED) for layer in (0, 1)]
    assert not np.array_equal(maps[0]["ffn"], maps[1]["ffn"])
    for layer in (0, 1):
        for name, axes in AXES.items():
            key = LAYER.format(layer) + name
            torch.testing.assert_close(after[key], expanded(before[key], maps[layer], axes), rtol=0, atol=1e-12)
    embedding = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(after[embedding], before[embedding][:, maps[0]["hidden"]])


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("sizes", [ADDED, {"hidden": 24, "heads": 6, "ffn": 40}], ids=str)
def test_aki_takes_added_units_from_the_layer_above(saved, sizes):
    built, target = resized(saved, *BERT, "aki", {**sizes, "layer": 3})
    before, after = built.model.state_dict(), target.state_dict()
    for layer, own, above in ((0, 0, 1), (1, 1, 1), (2, 1, 1)):  # the third layer is the second once more
        index = fpi_maps(own, sizes)
        for name, axes in AXES.items():
            key, original = LAYER.format(layer) + name, before[LAYER.format(own) + name].shape[0]
            expected = expanded(before[LAYER.format(own) + name], index, axes)
            expected[original:] = expanded(before[LAYER.format(above) + name], index, axes)[original:]
            torch.testing.assert_close(after[key], expected, rtol=0, atol=1e-12, msg=lambda m, n=key: f"{n}: {m}")


def test_aki_within_grown_heads_keeps_original_entries(saved):
    # (heads head_dim) is one axis: an entry is original if its head and its place within it are.
    sizes = {"hidden": 48, "heads": 6, "ffn": 20}
    built, target = resized(saved, *GPT2, "aki", sizes)
    _, plain = resized(saved, *GPT2, "fpi", sizes)
    cut = {}
    for name, model in (("aki", target), ("fpi", plain)):
        fused = model.transformer.h[0].attn.c_attn.weight.detach()
        cut[name] = fused.reshape(48, 3, 6, 8)  # hidden, q k v, heads, head_dim
    same = (cut["aki"] == cut["fpi"]).all(dim=0)
    assert same[:, :3, :4].all()
    assert not same[:, 3:].any()
    assert not same[:, :3, 4:].any()
    assert built.config.n_head == 3


# -- depth ------------------------------------------------------------------------------------------

LISTS = {
    ("stack", 5): [0, 1, 0, 1, 0],
    ("interpolate", 5): [0, 0, 0, 1, 1],
    ("depth_upscale", 3): [0, 1, 1],
    ("depth_upscale", 4): [0, 1, 0, 1],
    ("fpi", 5): [0, 1, 0, 1, 1],
    ("tile", 3): [0, 1, 0],
}


@pytest.mark.covering(few=3)
@pytest.mark.parametrize(("method", "layers"), LISTS, ids=str)
@pytest.mark.parametrize(("family", "head", "stem"), [(*BERT, "bert.encoder.layer."), (*GPT2, "transformer.h.")])
def test_layers_are_copies_of_these(saved, family, head, stem, method, layers):
    built, target = resized(saved, family, head, method, {"layer": layers})
    before, after = built.model.state_dict(), target.state_dict()
    parts = [name.removeprefix(f"{stem}0.") for name in before if name.startswith(f"{stem}0.")]
    assert parts
    for layer, source in enumerate(LISTS[method, layers]):
        for part in parts:
            assert torch.equal(after[f"{stem}{layer}.{part}"], before[f"{stem}{source}.{part}"]), (layer, part)


def test_longer_lists_of_layers():
    assert upscaled(8, 12).layers.argmax(1).tolist() == [*range(6), *range(2, 8)]
    assert upscaled(8, 11).layers.argmax(1).tolist() == [*range(6), *range(3, 8)]
    assert interpolated(4, 10).layers.argmax(1).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert stacked_from_top(4, 10).layers.argmax(1).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 2, 3]
    for rule in (upscaled(8, 12), interpolated(4, 10), stacked_from_top(4, 10)):
        np.testing.assert_array_equal(rule.layers.sum(1), 1)
        np.testing.assert_array_equal(rule.updates, rule.layers)


# -- LEMON ------------------------------------------------------------------------------------------


def test_lemon_sets_norms_and_epsilon(saved):
    built, target = resized(saved, *GPT2, "lemon", {"hidden": 28, "heads": 7}, layer_norm_epsilon=0.05)
    share = 24 / 28
    assert target.config.layer_norm_epsilon == pytest.approx(0.05 * share)
    before, after = built.model.transformer, target.transformer
    weight = before.h[1].ln_1.weight
    expected = torch.cat([weight, weight, weight.mean().expand(4)]) * share**0.5
    torch.testing.assert_close(after.h[1].ln_1.weight, expected)
    torch.testing.assert_close(after.ln_f.weight, expected.new_tensor(0.5) * share**0.5 * _tiled(before.ln_f.weight))
    assert not after.ln_f.bias[24:].any()
    torch.testing.assert_close(after.wte.weight[:, 24:], before.wte.weight.mean(1, keepdim=True).expand(-1, 4))
    assert torch.equal(after.wte.weight[:, 12:24], before.wte.weight)
    wide, deep = (plan(built.config, resized_config(built.config, **s), method="lemon") for s in (S28, {"layer": 3}))
    assert [text for text in wide.warnings if "0.857143 times the source's epsilon" in text]
    assert not [text for text in deep.warnings if "epsilon" in text]


S28 = {"hidden": 28, "heads": 7}


def _tiled(weight: torch.Tensor) -> torch.Tensor:
    return torch.cat([weight, weight, weight.mean().expand(4)])


def test_lemon_splits_read_weights_unevenly(saved):
    built, target = resized(saved, *GPT2, "lemon", {"ffn": 60})
    before, after = (model.transformer.h[0].mlp.c_proj.weight for model in (built.model, target))
    parts = torch.stack(after.split(20))
    torch.testing.assert_close(parts.sum(0), before)
    assert parts.std() > 0.1
    assert not torch.allclose(parts[1], parts[2])
    assert torch.equal(target.transformer.h[0].mlp.c_fc.weight[:, 20:40], built.model.transformer.h[0].mlp.c_fc.weight)
