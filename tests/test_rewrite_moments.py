"""What a rewritten source is known by: its tensors under edits, and what its norms see, estimated and measured."""

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pytest
import torch
from families import build
from networks import dropped_blocks, network_for, random_turn, shuffled, turn_stream
from transformers.activations import ACT2FN

from transformers_bot import BadOption
from transformers_bot.methods.maps import dual
from transformers_bot.methods.prepare import dense_pair, principal_pair
from transformers_bot.ops.axis_map import Matrix, gather
from transformers_bot.rewrite.calibration import measure
from transformers_bot.rewrite.folding import fold_norms, norms
from transformers_bot.rewrite.network import Network
from transformers_bot.rewrite.order import order_units
from transformers_bot.rewrite.principal import Moments, Opened, basis, to_principal_basis, weight_moments

UNTIED = {"tie_word_embeddings": False}


def second_moments(rows: torch.Tensor) -> torch.Tensor:
    """Of (token, hidden) rows after the norm's centring, of trace 1."""
    centred = rows.double() - rows.double().mean(-1, keepdim=True)
    total = centred.T @ centred
    return total / total.trace()


def shares(every: Iterable[Moments]) -> list[torch.Tensor]:
    """Second moments of what norms give, brought to trace 1."""
    return [one.uncentred().covariance / len(one.mean) for one in every]


def assert_moments(moments: torch.Tensor) -> None:
    torch.testing.assert_close(moments, moments.T, rtol=0, atol=1e-12)
    assert abs(float(moments.trace()) - 1) < 1e-12
    assert float(torch.linalg.eigvalsh(moments).min()) > -1e-12
    assert float(moments.sum(0).abs().max()) < 1e-12  # centred


# -- estimated from the weights -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "head", "activation"),
    [
        ("gpt2", "GPT2LMHeadModel", "gelu_new"),
        ("vit", "ViTForImageClassification", "gelu"),
        ("deit", "DeiTForImageClassificationWithTeacher", "gelu"),
    ],
)
def test_estimated_moments_are_moments_of_every_norm(family, head, activation):
    network = network_for(build(family, head, layer=3).model)
    fold_norms(network)
    estimated = shares(one.normalised() for one, _ in weight_moments(network, "hidden", ACT2FN[activation]))
    assert len(estimated) == 7
    for moments in estimated:
        assert_moments(moments)


def test_a_stream_of_embeddings_alone_has_the_moments_of_all_tokens_at_all_positions():
    built = dropped_blocks(build("gpt2", "GPT2LMHeadModel", **UNTIED))
    network = network_for(built.model)
    fold_norms(network)
    body = built.model.transformer
    every = body.wte.weight.detach()[:, None] + body.wpe.weight.detach()[None]  # (token, position, hidden)
    estimated = shares(one.normalised() for one, _ in weight_moments(network, "hidden", ACT2FN["gelu_new"]))
    for moments in estimated:
        torch.testing.assert_close(moments, second_moments(every.flatten(0, 1)), rtol=0, atol=1e-12)
    batch = {"input_ids": torch.arange(23)[:, None].expand(23, 12)}
    seen = shares(measure(built.model, ["transformer.h.1.ln_2"], [], [batch]).norms.values())[0]
    # what is measured counts every token alike, whatever the length of its vector
    best, top = (torch.linalg.eigh(moments).eigenvectors[:, -4:] for moments in (seen, estimated[3]))
    assert torch.trace(top.T @ seen @ top) > 0.95 * torch.trace(best.T @ seen @ best)


def test_of_a_long_table_some_entries_stand_for_all():  # and not the first ones: later entries are others
    built = dropped_blocks(build("gpt2", "GPT2LMHeadModel", vocab_size=16 * 12 * 7 + 5))
    table = built.model.transformer.wte.weight.data
    table.mul_(torch.linspace(0.1, 2, 12)).add_(torch.linspace(0, 1, len(table))[:, None])
    every, seen = (
        table.T.cov(correction=0),
        next(weight_moments(network_for(built.model), "hidden", ACT2FN["relu"]))[0].covariance,
    )
    seen = seen - built.model.transformer.wpe.weight.data.T.cov(correction=0)
    assert not torch.allclose(seen, every, rtol=0, atol=1e-9)
    best, top = (torch.linalg.eigh(one).eigenvectors[:, -6:] for one in (every, seen))
    assert torch.trace(top.T @ every @ top) > 0.99 * torch.trace(best.T @ every @ best)
    torch.testing.assert_close(seen.trace(), every.trace(), rtol=0.1, atol=0)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_the_moments_of_mlp_units_are_those_of_normal_inputs(activation):
    built = dropped_blocks(build("gpt2", "GPT2LMHeadModel", layer=1, **UNTIED))
    body, block = built.model.transformer, built.model.transformer.h[0]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        body.wte.weight.mul_(1e-6)
        body.wpe.weight.mul_(1e-6)
        block.mlp.c_proj.weight.copy_(torch.randn(20, 12, generator=generator, dtype=torch.float64))
        block.mlp.c_proj.bias.copy_(torch.randn(12, generator=generator, dtype=torch.float64))
    network = network_for(built.model)
    fold_norms(network)
    spread = network["transformer.h.0.mlp.c_fc.weight"].norm(dim=0)
    drawn = torch.randn(100_000, 20, generator=generator, dtype=torch.float64)
    units = ACT2FN[activation](network["transformer.h.0.mlp.c_fc.bias"] + spread * drawn)
    added = units @ block.mlp.c_proj.weight.detach() + block.mlp.c_proj.bias.detach()
    estimated = shares(one.normalised() for one, _ in weight_moments(network, "hidden", ACT2FN[activation]))[-1]
    assert_moments(estimated)
    assert float((estimated - second_moments(added)).norm()) < 0.02 * float(estimated.norm())


def test_attention_adds_a_quarter_of_its_values_variance():
    built = build("gpt2", "GPT2LMHeadModel", layer=1, **UNTIED)
    network = network_for(built.model)
    fold_norms(network)
    before, after, _ = shares(one.normalised() for one, _ in weight_moments(network, "hidden", ACT2FN["gelu_new"]))
    body, attention = built.model.transformer, "transformer.h.0.attn"
    every = (body.wte.weight.detach()[:, None] + body.wpe.weight.detach()[None]).flatten(0, 1)
    out = network[f"{attention}.c_proj.weight"].T
    mixed = out @ network[f"{attention}.c_attn.weight"][:, 24:].T  # (hidden, hidden): W_o W_v
    constant = out @ network[f"{attention}.c_attn.bias"][24:] + network[f"{attention}.c_proj.bias"]
    mean = every.mean(0) + constant
    spread = every - every.mean(0)
    second = spread.T @ spread / len(every) + 0.25 * mixed @ mixed.T + torch.outer(mean, mean)
    centring = torch.eye(12, dtype=torch.float64) - 1 / 12
    second = centring @ second @ centring
    torch.testing.assert_close(after, second / second.trace(), rtol=0, atol=1e-12)
    torch.testing.assert_close(before, second_moments(every), rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", [3, 5, 6, 9, 11])
def test_norms_carry_the_share_of_the_stream_that_is_kept(target):
    built = build("gpt2", "GPT2LMHeadModel", **UNTIED)
    folded, turned = network_for(built.model), network_for(built.model)
    fold_norms(folded)
    pair = principal_pair(12, target, dual(12, target, "haar"))
    low_pass = torch.from_numpy(pair.produce.dense()) * (12 / target) ** 0.5
    moments = shares(one.normalised() for one, _ in weight_moments(folded, "hidden", ACT2FN["gelu_new"]))
    kept, _ = basis(torch.stack(moments).mean(0), low_pass)
    fold_norms(turned)
    stream = dense_pair(Matrix(to_principal_basis(Opened(turned, built.model), "hidden", low_pass)[0].numpy()), "")
    np.testing.assert_allclose(stream.produce.dense(), kept.numpy() * (target / 12) ** 0.5, rtol=0, atol=1e-12)
    kept_shares = [float(torch.trace(kept @ seen @ kept.T)) for seen in moments]
    assert 0.1 < min(kept_shares) < max(kept_shares) < 1
    for place, share in zip(norms(turned), kept_shares, strict=True):
        weight = stream.produce.apply(turned[place.part(turned, "weight")], 0)
        torch.testing.assert_close(weight, torch.full((target,), share**0.5, dtype=torch.float64), rtol=0, atol=1e-9)


# -- measured on batches --------------------------------------------------------------------------

GPT2_NORMS = ["transformer.h.0.ln_1", "transformer.h.1.ln_1"]


def by_hand(built, batches, kept=None) -> list[torch.Tensor]:
    """Moments of what the first norm of every block sees, each token at length 1."""
    rows: list[list[torch.Tensor]] = [[], []]
    for batch in batches:
        with torch.no_grad():
            states = built.model(**batch, output_hidden_states=True).hidden_states
        for found, state in zip(rows, states, strict=False):
            found.append(state[kept] if kept is not None else state.flatten(0, 1))
    centred = [torch.cat(found) - torch.cat(found).mean(-1, keepdim=True) for found in rows]
    return [second_moments(x / x.norm(dim=-1, keepdim=True)) for x in centred]


@pytest.mark.parametrize(
    ("family", "head", "norm"),
    [("gpt2", "GPT2LMHeadModel", ".ln_1"), ("vit", "ViTForImageClassification", ".layernorm_before")],
)
def test_measured_moments_are_those_of_the_hidden_states(family, head, norm):
    built = build(family, head)
    names = [name for name, _ in built.model.named_modules() if name.endswith(norm)]
    generator = torch.Generator().manual_seed(2)
    if family == "gpt2":
        batches = [{"input_ids": torch.randint(0, 23, shape, generator=generator)} for shape in ((2, 7), (3, 5))]
    else:
        batches = [
            {"pixel_values": torch.randn(n, 3, 12, 12, generator=generator, dtype=torch.float64)} for n in (2, 3)
        ]
    for batch_list in (batches, iter(batches)):
        seen = shares(measure(built.model, names, [], batch_list).norms.values())
        for actual, expected in zip(seen, by_hand(built, batches), strict=True):
            assert_moments(actual)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert not any(built.model.get_submodule(name)._forward_hooks for name in names)


def test_masked_positions_do_not_count():
    built = build("gpt2", "GPT2LMHeadModel")
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    tokens = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 1, 2]])
    other = torch.where(mask.bool(), tokens, 20 - tokens)
    found = [
        shares(measure(built.model, GPT2_NORMS, [], [{"input_ids": ids, "attention_mask": mask}]).norms.values())
        for ids in (tokens, other)
    ]
    expected = by_hand(built, [{"input_ids": tokens, "attention_mask": mask}], mask.bool())
    for one, two, three in zip(*found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
        torch.testing.assert_close(one, three, rtol=0, atol=1e-12)
    unmasked = shares(measure(built.model, GPT2_NORMS, [], [{"input_ids": tokens}]).norms.values())
    assert float((unmasked[0] - found[0][0]).norm()) > 1e-3


BAD_BATCHES = {
    "none": ([], "calibration= gave no batch; pass a list of a few"),
    "unknown tokens": ([{"input_ids": torch.tensor([[99]])}], "keyword arguments that the source runs on: .*range"),
    "no tokens": ([{"pixels": torch.zeros(1)}], "keyword arguments that the source runs on: .*input_ids"),
    "no dict": ([torch.zeros(1)], "must be a dict of tensors.* got Tensor"),
    "no list": (3, "keyword arguments that the source runs on: .*int"),
}


@pytest.mark.parametrize(("batches", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_batches_that_measure_nothing_are_refused_and_leave_no_hook(batches, message):
    built = build("gpt2", "GPT2LMHeadModel")
    with pytest.raises(BadOption, match=message):
        measure(built.model, GPT2_NORMS, [], batches)
    assert not any(built.model.get_submodule(name)._forward_hooks for name in GPT2_NORMS)


# -- tensors under edits --------------------------------------------------------------------------


class Watched(Mapping[str, torch.Tensor]):
    """Tensors that note who was asked for and whether what was handed out is still held."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors, self.asked, self.given = tensors, [], []

    def __getitem__(self, name: str) -> torch.Tensor:
        x = self.tensors[name].clone()
        self.asked.append(name)
        self.given.append(weakref.ref(x))
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def held_matrices(self) -> list[torch.Tensor]:
        return [ref() for ref in self.given if ref() is not None and ref().dim() > 1]


def test_edits_leave_the_stored_tensors_and_all_others_alone():
    built = build("gpt2", "GPT2LMHeadModel", dtype=torch.float16)
    tensors = built.model.state_dict()
    before = {name: x.clone() for name, x in tensors.items()}
    plain = network_for(built.model)
    network = Network(plain.adapter, plain.sizes, tensors, plain.places)
    network.map_role("ffn", gather(shuffled(20), 20), ("layer", 1))
    edited = {f"transformer.h.1.mlp.{part}" for part in ("c_fc.weight", "c_fc.bias", "c_proj.weight")}
    assert list(network) == list(tensors)
    assert len(network) == len(tensors)
    for name, x in tensors.items():
        assert torch.equal(x, before[name]), name
        assert (network[name] is x) == (name not in edited), name
        assert network[name].dtype == (torch.float32 if name in edited else torch.float16)
        assert torch.equal(network[name].sort().values, before[name].sort().values) or network[name].dim() > 1


def test_half_precision_norms_fold_in_single_precision():
    built = build("gpt2", "GPT2LMHeadModel", dtype=torch.float16, **UNTIED)
    half, exact = network_for(built.model), network_for(copy.deepcopy(built.model).double())
    fold_norms(half)
    fold_norms(exact)
    for name, x in exact.items():
        torch.testing.assert_close(half[name].double(), x, rtol=1e-6, atol=1e-6)


def test_edits_are_computed_when_a_tensor_is_read_and_nothing_is_kept():
    plain = network_for(build("gpt2", "GPT2LMHeadModel", **UNTIED).model)
    watched = Watched(dict(plain))
    network = Network(plain.adapter, plain.sizes, watched, plain.places)
    network.map_role("hidden", gather(shuffled(12), 12))
    assert watched.asked == []
    order_units(network, "ffn", 10)
    fold_norms(network)
    turn_stream(network, random_turn(12))
    assert watched.held_matrices == []
    watched.asked.clear()
    read = network["transformer.h.0.mlp.c_fc.weight"]
    assert watched.asked == ["transformer.h.0.mlp.c_fc.weight"]
    result = weakref.ref(read)
    del read
    assert result() is None
    assert watched.held_matrices == []
    assert not torch.equal(network["lm_head.weight"], plain["lm_head.weight"])
