"""Readers fitted by least squares to what a low-pass keeps: the formula, norms that fit, and the public door."""

import re

import pytest
import torch
from families import (
    ALL_HEADS,
    FAMILIES,
    MAIN_HEADS,
    assert_same_outputs,
    build,
    factory_for,
    outputs,
    resize,
    resized_config,
    save,
)
from networks import at, network_for, random_rotation, rewritten, shuffled

from transformers_bot import BadOption
from transformers_bot.methods.maps import dual, picked_units, whole_units
from transformers_bot.ops.axis_map import AxisMap, Matrix, from_dense, gather, identity
from transformers_bot.rewrite import calibration
from transformers_bot.rewrite.calibration import match_norm_scale, measure, refit_readers
from transformers_bot.rewrite.folding import norms
from transformers_bot.rewrite.principal import Moments

HEAD = dict(MAIN_HEADS)
HALF = {"hidden": 6, "heads": 2, "ffn": 10}  # of models with 4 heads


def moments_of(rows: torch.Tensor) -> Moments:
    """Of (token, unit) rows."""
    mean = rows.mean(0)
    return Moments(mean, (rows - mean).T @ (rows - mean) / len(rows))


def correlated(tokens: int, units: int, seed: int = 0) -> torch.Tensor:
    """Rows around a mean of their own, with units that correlate."""
    generator = torch.Generator().manual_seed(seed)
    drawn, mixing, mean = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((tokens, units), (units, units), (units,))
    )
    return drawn @ mixing + 2 * mean


def tokens_for(family: str, count: int = 16) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    if family in ("vit", "deit"):
        return [{"pixel_values": torch.randn(count, 3, 12, 12, generator=generator, dtype=torch.float64)}]
    return [{"input_ids": torch.randint(3, 23, (count, 12), generator=generator)}]


# -- the formula ----------------------------------------------------------------------------------

VIT_QUERIES = next(
    name.removesuffix(".weight")
    for name in build("vit", "ViTModel").model.state_dict()
    if re.search(r"\.0\..*(q_proj|query)\.weight", name)  # transformers 5.0 calls it so
)
FITTED = {
    "mlp units": ("bert", "BertModel", {}, "encoder.layer.0.output.dense", dual(20, 10, "haar")),
    "picked units": ("bert", "BertModel", {}, "encoder.layer.0.output.dense", picked_units(20, 7)),
    "stored the other way": ("gpt2", "GPT2Model", {}, "h.1.mlp.c_proj", dual(20, 10, "db2")),
    "no bias": ("vit", "ViTModel", {"qkv_bias": False}, VIT_QUERIES, dual(12, 6, "haar")),
}


@pytest.mark.parametrize(("family", "head", "changes", "module", "pair"), FITTED.values(), ids=FITTED)
def test_fitted_readers_are_the_least_squares_readers(monkeypatch, family, head, changes, module, pair):
    monkeypatch.setattr(calibration, "RIDGE", 1e-13)
    monkeypatch.setattr(calibration, "FEW", 0.0)
    model = build(family, head, **changes).model
    network, weight = network_for(model), f"{module}.weight"
    dim = 0 if family == "gpt2" else 1
    rows = correlated(200, pair.produce.source)
    kept = rows @ torch.from_numpy(pair.produce.dense()).T
    bias = network.find(f"{network.places[weight].stem}.bias", network.places[weight].layer)
    before = network[weight] if dim == 0 else network[weight].T  # (read, written)
    wanted = rows @ before
    refit_readers(network, {weight: moments_of(rows)}, lambda _: (pair.produce, pair.consume))
    now = pair.consume.apply(network[weight], dim)
    got = kept @ (now if dim == 0 else now.T) + (network[bias] - model.state_dict()[bias] if bias else 0)
    regressors = torch.cat([kept, torch.ones(len(kept), 1, dtype=torch.float64)], 1) if bias else kept
    best = regressors @ torch.linalg.lstsq(regressors, wanted).solution
    torch.testing.assert_close(got, best, rtol=0, atol=1e-8 * float(wanted.abs().max()))
    assert (bias is None) == (changes.get("qkv_bias") is False)


def test_directions_that_no_batch_shows_are_read_as_without_data():
    model = build("bert", "BertModel").model
    network, weight = network_for(model), "encoder.layer.0.output.dense.weight"
    pair = whole_units(20, 10)
    still = Moments(torch.zeros(20, dtype=torch.float64), torch.zeros(20, 20, dtype=torch.float64))
    expected = pair.consume.apply(network[weight], 1)
    refit_readers(network, {weight: still}, lambda _: (pair.produce, pair.consume))
    torch.testing.assert_close(pair.consume.apply(network[weight], 1), expected, rtol=0, atol=1e-12)
    assert torch.equal(
        network["encoder.layer.0.output.dense.bias"], model.state_dict()["encoder.layer.0.output.dense.bias"]
    )


def test_moments_follow_the_edits_of_their_axis():
    model = build("bert", "BertModel").model
    weight = "encoder.layer.1.output.dense.weight"
    rows, pair, order = correlated(100, 20), dual(20, 10, "haar"), shuffled(20)
    made = []
    for moved_first in (True, False):
        network = network_for(model)
        seen = moments_of(rows if moved_first else rows[:, order])
        if moved_first:
            network.map_role("ffn", gather(order, 20), ("layer", 1))
            network.map_role("ffn", gather(shuffled(20, 3), 20), ("layer", 0))  # another layer's, which does not count
        else:
            network = network_for(rewritten(model, permuted(network_for(model), order)))
        refit_readers(network, {weight: seen}, lambda _: (pair.produce, pair.consume))
        made.append(network[weight])
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-9)


def permuted(network, order):
    network.map_role("ffn", gather(order, len(order)), ("layer", 1))
    return network


def test_an_axis_knows_what_its_edits_came_to():
    network = network_for(build("gpt2", "GPT2LMHeadModel").model)
    turns = [random_rotation(12, seed) for seed in (0, 1)]
    for turn in turns:
        network.map_role("hidden", AxisMap(12, 12, (Matrix(turn.numpy()),)))
    network.map_role("ffn", gather(shuffled(20), 20), ("layer", 1))
    assert network.total_map("hidden", ("layer", 0)).dense() == pytest.approx((turns[1] @ turns[0]).numpy())
    assert network.total_map("ffn", ("layer", 0)).is_identity
    assert network.total_map("ffn", ("layer", 1)).dense() == pytest.approx(
        from_dense(gather(shuffled(20), 20).dense()).dense()
    )


def test_inputs_are_measured_without_masked_tokens():
    built = build("bert", "BertModel")
    batch = {"input_ids": built.inputs["input_ids"], "attention_mask": built.inputs["attention_mask"]}
    module = "encoder.layer.0.output.dense"
    caught = []
    handle = built.model.get_submodule(module).register_forward_hook(lambda _m, args, _out: caught.append(args[0]))
    seen = measure(built.model, [], [module, "no.such.module", "embeddings.LayerNorm"], [batch, batch]).inputs
    handle.remove()
    assert list(seen) == [module]
    expected = moments_of(caught[0][batch["attention_mask"].bool()].detach())
    torch.testing.assert_close(seen[module].mean, expected.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen[module].covariance, expected.covariance, rtol=0, atol=1e-12)


# -- norms ----------------------------------------------------------------------------------------


def test_a_norm_gives_what_the_kept_units_had():
    # The kept units of every token have the same mean and variance, so that one scale and shift fit all of them.
    built = build("bert", "BertModel")
    network = network_for(built.model)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    parts = [(part - part.mean(1, keepdim=True)) for part in (drawn[:, :5], drawn[:, 5:])]
    first, second = (part / part.square().mean(1, keepdim=True).sqrt() for part in parts)
    stream = torch.cat([0.6 * first + 0.7, 1.1 * second - 0.5], 1)
    stream = (stream - stream.mean(1, keepdim=True)) / stream.var(1, correction=0, keepdim=True).sqrt()
    low_pass = torch.eye(12, dtype=torch.float64)[:5]
    name = "embeddings.LayerNorm"
    wanted = stream * network[f"{name}.weight"] + network[f"{name}.bias"]
    match_norm_scale(network, norms(network)[-1], moments_of(stream), low_pass)
    norm = torch.nn.functional.layer_norm(
        stream[:, :5], (5,), network[f"{name}.weight"][:5], network[f"{name}.bias"][:5], eps=0.0
    )
    torch.testing.assert_close(norm, wanted[:, :5], rtol=0, atol=1e-9)


# -- the public door ------------------------------------------------------------------------------


def with_faint_units(family: str, head: str):
    """A ReLU model half of whose MLP units say what the others do, a thousand times fainter; one is constant.

    Their readers are as much stronger, so that dropping them without a word changes the outputs.
    """
    built = build(family, head, layer=1, **{"activation_function" if family == "gpt2" else "hidden_act": "relu"})
    network = network_for(built.model)
    for name, place in network.tensors_with("ffn"):
        roles = [axis.segments[0][0] for axis in place.rule.axes]
        dim = next(i for i, factor in enumerate(roles) if factor.role == "ffn")
        if roles[dim].reads:
            network.edit(name, lambda x, dim=dim: scaled(x, dim, 1000.0))
        else:
            network.edit(name, lambda x, dim=dim: scaled(torch.cat([x.narrow(dim, 0, 10)] * 2, dim), dim, 0.001))
            constant = 0.0 if place.rule.maps else 0.0005
            network.edit(name, lambda x, dim=dim, to=constant: x.index_fill(dim, torch.tensor([19]), to))
    network.map_role("ffn", gather(shuffled(20), 20))
    return built, rewritten(built.model, network)


def scaled(x: torch.Tensor, dim: int, factor: float) -> torch.Tensor:
    """The second half of the units times a factor."""
    return torch.cat([x.narrow(dim, 0, 10), factor * x.narrow(dim, 10, 10)], dim)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family", FAMILIES)
def test_units_that_others_tell_are_dropped_without_loss(tmp_path, monkeypatch, family):
    monkeypatch.setattr(calibration, "RIDGE", 1e-10)
    monkeypatch.setattr(calibration, "FEW", 0.0)
    head = HEAD[family]
    built, model = with_faint_units(family, head)
    folder, expected = save(model, tmp_path / "source"), outputs(model, built.inputs)
    wanted = resized_config(model.config, ffn=10)
    batches = [*tokens_for(family), built.inputs]  # a unit that none of them wakes is as good as dropped
    fitted = resize(folder, wanted, head, calibration=batches, bot_config={"order": "strongest"})
    assert_same_outputs(outputs(fitted, built.inputs), expected, 1e-6)
    similar = outputs(resize(folder, wanted, head, bot_config={"order": "kept"}), built.inputs)
    assert any(float((similar[name] - x).abs().max()) > 0.01 * float(x.abs().max()) for name, x in expected.items())


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family", FAMILIES)
def test_calibrated_models_stay_nearer_to_their_source(saved, family):
    head = HEAD[family]
    folder, built = saved(family, head, heads=4)
    batches = tokens_for(family)
    expected = outputs(built.model, batches[0])

    def distance(**keywords) -> float:
        found = outputs(resize(folder, resized_config(built.config, **HALF), head, **keywords), batches[0])
        return sum(float((found[name] - x).square().mean() / x.square().mean()) for name, x in expected.items())

    assert distance(calibration=batches) < 0.9 * distance()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), ALL_HEADS)
def test_every_head_shrinks_calibrated(saved, family, head):
    folder, built = saved(family, head, heads=4)
    model = resize(folder, resized_config(built.config, **HALF), head, calibration=[built.inputs])
    found = outputs(model, built.inputs)
    assert all(bool(torch.isfinite(x).all()) for x in found.values())
    plain = outputs(resize(folder, resized_config(built.config, **HALF), head), built.inputs)
    assert any(not torch.equal(found[name], x) for name, x in plain.items())


def test_an_untied_language_head_beside_choices_is_fitted(saved):
    folder, built = saved("gpt2", "GPT2DoubleHeadsModel", heads=4, tie_word_embeddings=False)
    wanted = resized_config(built.config, **HALF)
    model = resize(folder, wanted, "GPT2DoubleHeadsModel", calibration=[built.inputs])
    plain = resize(folder, wanted, "GPT2DoubleHeadsModel")
    assert not torch.equal(model.lm_head.weight, plain.lm_head.weight)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_postnorm_models_keep_their_strongest_units(saved, family):
    head = HEAD[family]
    folder, built = saved(family, head, heads=4)
    batches = tokens_for(family)
    model = resize(folder, resized_config(built.config, **HALF), head, calibration=batches)
    made = model.config.transformers_bot
    assert made["options"]["order"] == "strongest"
    assert made["calibrated"] is True
    table = (
        "bert.embeddings.word_embeddings.weight" if family == "bert" else "roberta.embeddings.word_embeddings.weight"
    )
    source, kept = built.model.state_dict()[table], model.state_dict()[table]
    distance = torch.cdist(kept.T, source.T)  # (kept unit, source unit)
    assert float(distance.min(dim=1).values.max()) < 1e-12
    assert len(set(distance.argmin(dim=1).tolist())) == 6
    again = resize(folder, resized_config(built.config, **HALF), head, calibration=batches, bot_config=made["options"])
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())


NOT_FINITE = {
    "bert": {"inputs_embeds": torch.full((1, 4, 12), float("nan"), dtype=torch.float64)},
    "vit": {"pixel_values": torch.full((1, 3, 12, 12), float("inf"), dtype=torch.float64)},
}


@pytest.mark.parametrize(("family", "batch"), NOT_FINITE.items(), ids=NOT_FINITE)
def test_values_that_are_not_finite_are_refused_where_they_are(saved, family, batch):
    folder, built = saved(family, HEAD[family], heads=4)
    with pytest.raises(BadOption, match=r"not finite at \w+\..* Look for NaN or Inf in the batches"):
        resize(folder, resized_config(built.config, **HALF), HEAD[family], calibration=[batch])


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", ["auto", "strongest"])
def test_the_order_of_a_sources_units_does_not_matter(tmp_path, family, order):
    untied = {"tie_word_embeddings": False} if family == "gpt2" else {}
    built = build(family, HEAD[family], heads=4, **untied)
    network = network_for(built.model, keep_ties=True)
    for layer in network.layers("layer"):
        for role in ("ffn", "heads"):
            network.map_role(role, gather(shuffled(network.sizes[role], layer), network.sizes[role]), at(layer))
    for role in ("hidden", "readout"):
        network.map_role(role, gather(shuffled(12, 9), 12))
    models = {"one": built.model, "other": rewritten(built.model, network)}
    found = []
    for name, model in models.items():
        folder = save(model, tmp_path / name)
        shrunk = resize(
            folder,
            resized_config(built.config, **HALF),
            HEAD[family],
            calibration=tokens_for(family),
            bot_config={"order": order},
        )
        found.append(outputs(shrunk, built.inputs))
    assert_same_outputs(*found, 1e-8)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_do_most_are_kept(tmp_path, family):
    head = HEAD[family]
    built = build(family, head, layer=4)
    with torch.no_grad():
        for name, parameter in built.model.named_parameters():
            writes = any(part in name for part in ("output.dense", "c_proj", "o_proj", "fc2"))
            if writes and any(f".{layer}." in name for layer in (1, 2)):
                parameter.mul_(1e-6)
    folder = save(built.model, tmp_path / "source")
    if family in ("bert", "roberta"):
        model = resize(folder, resized_config(built.config, layer=2), head, calibration=tokens_for(family))
        made = model.config.transformers_bot
        assert (made["depth"], made["layers"]) == ("strongest", [0, 3])
    again = resize(
        folder,
        resized_config(built.config, layer=2),
        head,
        calibration=tokens_for(family),
        bot_config={"depth": "strongest"},
    )
    assert again.config.transformers_bot["layers"] == [0, 3]


@pytest.mark.slow
def test_copies_stay_mergeable_and_are_recorded_so(tmp_path):
    # Hidden units are copies, which merge without loss; picking the strongest would keep both twins of some.
    built = build("bert", HEAD["bert"], hidden=6, heads=2)
    small = save(built.model, tmp_path / "small")
    grown = resize(small, resized_config(built.config, hidden=12, heads=4), HEAD["bert"])
    folder = save(grown, tmp_path / "grown")
    wanted = resized_config(built.config, ffn=10)
    batches = tokens_for("bert")
    one = resize(folder, wanted, HEAD["bert"], calibration=batches)
    made = one.config.transformers_bot
    assert (made["order"], made["picked"]) == (["ffn"], ["ffn"])
    assert "ffn" not in made["wavelet"]
    two = resize(folder, wanted, HEAD["bert"], calibration=batches, bot_config=made["options"])
    assert all(torch.equal(x, two.state_dict()[name]) for name, x in one.state_dict().items())


@pytest.mark.parametrize(("shape", "expected"), [((1, 7), True), ((4, 10), False)])
def test_few_tokens_are_warned_of(saved, caplog, shape, expected):
    folder, built = saved("gpt2", HEAD["gpt2"], heads=4)
    batch = {"input_ids": torch.arange(shape[0] * shape[1]).view(shape) % 20 + 3}
    with caplog.at_level("WARNING", logger="transformers"):
        resize(folder, resized_config(built.config, **HALF), HEAD["gpt2"], calibration=[batch])
    assert ("showed 7 tokens to fit 10 units with" in caplog.text) is expected


def test_a_plan_with_calibration_shows_what_is_going_to_be_picked(saved):
    folder, built = saved("bert", HEAD["bert"], heads=4)
    factory = factory_for(HEAD["bert"], built.config)
    wanted = resized_config(built.config, **HALF, layer=1)
    text = str(factory.plan(folder, config=wanted, calibration=tokens_for("bert")))
    assert "hidden: picked" in text
    assert "strongest layers, not known yet" in text
    assert "a plan from configs shows only sizes" in text
    assert "hidden: picked" not in str(factory.plan(folder, config=wanted))
    with pytest.raises(BadOption, match="order='strongest' ranks by scores"):
        factory.plan(folder, config=wanted, bot_config={"order": "strongest"})


def test_a_tied_output_embedding_leaves_the_mean_of_what_is_lost_to_its_bias(saved):
    folder, built = saved("roberta", "RobertaForMaskedLM", heads=4)
    wanted = resized_config(built.config, **HALF)
    model = resize(folder, wanted, "RobertaForMaskedLM", calibration=tokens_for("roberta"))
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    assert not torch.equal(model.lm_head.bias, built.model.lm_head.bias)
    assert torch.equal(resize(folder, wanted, "RobertaForMaskedLM").lm_head.bias, built.model.lm_head.bias)


def test_queries_keys_and_values_are_measured_and_fitted_once(monkeypatch):
    built = build("bert", "BertModel")
    names = [f"encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value")]
    seen = measure(built.model, [], names, [built.inputs]).inputs
    assert seen[names[0]] is seen[names[1]] is seen[names[2]]
    assert seen[names[0]].tokens == int(built.inputs["attention_mask"].sum())
    fits = []
    fit = calibration._fit
    monkeypatch.setattr(calibration, "_fit", lambda *words: fits.append(1) or fit(*words))
    pair = dual(12, 6, "haar")
    every = {f"{name}.weight": one for name, one in seen.items()}
    refit_readers(network_for(built.model), every, lambda _: (pair.produce, pair.consume))
    assert len(fits) == 1


def test_nothing_to_fit_leaves_readers_alone():
    network = network_for(build("bert", "BertModel").model)
    weight = "encoder.layer.0.output.dense.weight"
    stored = network[weight]
    refit_readers(network, {weight: moments_of(correlated(50, 20))}, lambda _: (identity(20), identity(20)))
    assert network[weight] is stored
