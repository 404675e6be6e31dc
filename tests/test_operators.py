"""LiGO and Mango: unfitted they copy, their operators are their formulas and learn in every part."""

import numpy as np
import pytest
import torch
from families import MAIN_HEADS, resize, resized_config
from learned import BIG, OPERATORS, SMALL, TRAINED_HEADS, grow, labelled, operator_of
from torch.func import functional_call

from transformers_bot import BadOption
from transformers_bot.learned.operators import ring_trace

# -- before fitting -----------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(
    ("family", "head"), [("gpt2", "GPT2LMHeadModel"), ("bert", "BertForMaskedLM"), ("vit", "ViTForImageClassification")]
)
def test_one_hot_ligo_is_stacking_and_copies(saved, family, head):
    folder, built = saved(family, head, **SMALL)
    model = resize(folder, resized_config(built.config, **{**BIG, "ffn": 33}), head, method="ligo")
    source, tied = built.model.state_dict(), set(model.all_tied_weights_keys)
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        words = [str(int(word) % 2) if word.isdigit() else word for word in name.split(".")]
        x = source[".".join(words)].numpy()
        parts = np.split(x, 3, axis=-1) if "c_attn" in name else [x]
        shape = (*tensor.shape[:-1], tensor.shape[-1] // len(parts))
        copied = [part[np.ix_(*(np.arange(t) % s for t, s in zip(shape, part.shape, strict=True)))] for part in parts]
        np.testing.assert_array_equal(tensor.numpy(), np.concatenate(copied, axis=-1), err_msg=name)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("method", OPERATORS)
@pytest.mark.parametrize("changes", [BIG, {"layer": 3}, {"hidden": 24, "heads": 3, "ffn": 48}], ids=str)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_the_operator_starts_at_the_unfitted_model(saved, family, head, changes, method):
    image = {"image_size": 20} if family in ("vit", "deit") else {}
    model = grow(saved, family, head, method, **changes, **image)
    state = model.state_dict()
    made = operator_of(model)()
    assert set(made) == set(state) - set(model.all_tied_weights_keys)
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 3])
def test_a_ring_of_any_rank_starts_at_the_unfitted_model(saved, rank):
    model = grow(saved, "gpt2", "GPT2LMHeadModel", "mango", **BIG)
    for name, tensor in operator_of(model, rank=rank)().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=1e-14)


def test_heads_may_become_fewer_and_wider(saved):
    model = grow(saved, "bert", "BertForMaskedLM", "ligo", **{**BIG, "heads": 2})
    assert model.config.num_attention_heads == 2


def test_ligo_has_a_matrix_of_its_own_for_a_pooler_of_its_own(saved):
    sizes = {"hidden": 20, "heads": 5, "pooler_output_size": 9}
    model = grow(saved, "vit", "ViTModel", "ligo", {"pooler_output_size": 6}, **sizes)
    operator = operator_of(model)
    assert operator.rows["pooler"].shape == (3, 6)
    torch.testing.assert_close(operator()["pooler.dense.weight"], model.state_dict()["pooler.dense.weight"])


# -- the formulas -------------------------------------------------------------------------------


def random_like(parameter: torch.nn.Parameter, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def test_ligo_is_its_formula(saved):
    model = grow(saved, "bert", "BertForMaskedLM", "ligo", **BIG)
    operator = operator_of(model, seed=0)
    source = saved("bert", "BertForMaskedLM", **SMALL)[1].model.state_dict()

    def full(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.eye(rows.shape[-1], dtype=rows.dtype), rows])

    made = operator()
    stem = "bert.encoder.layer.{}.{}"
    e = full(operator.rows["hidden"])
    for part, reads, writes in (
        ("attention.self.query", None, "query"),
        ("attention.self.key", None, "key"),
        ("attention.self.value", None, "value"),
        ("attention.output.dense", "value", None),
        ("intermediate.dense", None, "ffn"),
        ("output.dense", "ffn", None),
    ):
        weights = operator.depths[f"encoder/layer/{{layer}}/{part.replace('.', '/')}"]
        out = [full(operator.rows[writes][i]) if writes else e for i in range(2)]
        into = [full(operator.rows[reads][i]) if reads else e for i in range(2)]
        wide = [out[i] @ source[stem.format(i, f"{part}.weight")] @ into[i].T for i in range(2)]
        bias = [out[i] @ source[stem.format(i, f"{part}.bias")] for i in range(2)]
        for layer in range(5):
            expected = weights[layer, 0] * wide[0] + weights[layer, 1] * wide[1]
            torch.testing.assert_close(made[stem.format(layer, f"{part}.weight")], expected)
            expected = weights[layer, 0] * bias[0] + weights[layer, 1] * bias[1]
            torch.testing.assert_close(made[stem.format(layer, f"{part}.bias")], expected)
    words = "bert.embeddings.word_embeddings.weight"
    torch.testing.assert_close(made[words], source[words] @ e.T)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "head"), MAIN_HEADS)
def test_mango_at_rank_one_is_ligo_with_one_width_matrix(saved, family, head):
    """B_f is block-diagonal; LiGO numbers its new MLP units after all old ones, Mango after each block's."""
    mango, ligo = (operator_of(grow(saved, family, head, method, **BIG), seed=0) for method in ("mango", "ligo"))
    rows, depth = random_like(ligo.rows["hidden"], 1), random_like(mango.layer[0, :, :, 0], 2)
    with torch.no_grad():
        width = torch.cat([torch.eye(12, dtype=rows.dtype), rows]).T
        mango.inner[0, :, :, 0], mango.outer[0, :, :, 0], mango.layer[0, :, :, 0] = width, width, depth
        for name, parameter in ligo.rows.items():
            parameter.copy_(torch.block_diag(rows, rows) if name == "ffn" else rows)
        for parameter in ligo.depths.values():
            parameter.copy_(depth.T)
    order = np.concatenate([np.arange(12), 24 + np.arange(8), 12 + np.arange(12), 32 + np.arange(8)])
    expected = ligo()
    for name, tensor in mango().items():
        reference = expected[name]
        for dim in [dim for dim, length in enumerate(tensor.shape) if length == 40]:
            reference = reference.index_select(dim, torch.from_numpy(order))
        torch.testing.assert_close(tensor, reference, msg=lambda m, n=name: f"{n}: {m}")


def test_the_block_core_mixes_matrices_of_a_layer(saved):
    operator = operator_of(grow(saved, "bert", "BertModel", "mango", **BIG))
    before = operator()
    with torch.no_grad():
        operator.block[0, :, :, 0] = operator.block[0][:, [1, 0, *range(2, 8)], 0]
    after = operator()
    query, key = "encoder.layer.3.attention.self.query.weight", "encoder.layer.3.attention.self.key.weight"
    torch.testing.assert_close(after[query], before[key], rtol=0, atol=0)
    torch.testing.assert_close(after[key], before[query], rtol=0, atol=0)


CORES = {"b": ("pbcq", (3, 4)), "i": ("qiyr", (5, 6)), "o": ("roxs", (4, 7)), "l": ("slmp", (2, 3))}


@pytest.mark.parametrize(
    ("ring", "formula"),
    [
        ("biol", "lboi,pbcq,qiyr,roxs,slmp->mcxy"),
        ("iol", "lboi,qiyr,roxs,slmq->mbxy"),
        ("ol", "lboi,roxs,slmr->mbxi"),
        ("o", "lboi,roxr->lbxi"),
    ],
)
@pytest.mark.parametrize("rank", [1, 2])
def test_ring_trace_is_the_plain_contraction(ring, formula, rank):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, 4, 5), generator=generator, dtype=torch.float64)
    cores = {
        name: torch.randn((rank, *CORES[name][1], rank), generator=generator, dtype=torch.float64) for name in ring
    }
    found = ring_trace(x, [(core, "lboi".index(name)) for name, core in cores.items()])
    torch.testing.assert_close(found, torch.einsum(formula, x, *cores.values()))


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("method", "keywords"), [("ligo", {}), ("mango", {}), ("mango", {"rank": 2})], ids=str)
@pytest.mark.parametrize(("family", "head"), TRAINED_HEADS)
def test_gradients_reach_all_of_the_operator_and_nothing_else(saved, family, head, method, keywords):
    model = grow(saved, family, head, method, **BIG)
    inputs = saved(family, head, **SMALL)[1].inputs
    operator = operator_of(model, seed=0, **keywords)
    functional_call(model, operator(), (), labelled(model, inputs))["loss"].backward()
    for name, parameter in operator.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(buffer.requires_grad for buffer in operator.buffers())


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "source", "changes", "message"),
    [
        ("ligo", {}, {"layer": 1}, "can only grow, but layer goes from 2 to 1"),
        ("ligo", {}, {"hidden": 6}, "can only grow, but hidden goes from 12 to 6"),
        ("mango", {}, {"hidden": 24, "ffn": 12}, "can only grow, but ffn goes from 24 to 12"),
        ("mango", {"ffn": 20}, BIG, "the source's ffn 20 is not a whole multiple of its hidden 12. Use method='ligo'"),
        ("mango", {}, {**BIG, "ffn": 60}, "24 over 12 in the source, but 60 over 20 in the target. Set ffn to 40"),
    ],
)
def test_sizes_that_a_formula_does_not_cover(saved, method, source, changes, message):
    with pytest.raises(BadOption, match=message):
        grow(saved, "bert", "BertForMaskedLM", method, source, **changes)


def test_mango_has_no_core_for_a_pooler_of_its_own(saved):
    with pytest.raises(BadOption, match=r"one out matrix, 12 to 20, but the pooler goes from 6 to 9.*output_size to 6"):
        grow(saved, "vit", "ViTModel", "mango", {"pooler_output_size": 6}, **BIG, pooler_output_size=9)
