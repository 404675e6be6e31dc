"""Identity blocks of post-norm models: the first norm of a block gives back what the norm below has normalised.

There is no exact identity: a token's own spread differs from the average one by what the norm's weights and biases make
of it. Outputs alone do not see a wrong spread, because the block's second norm rescales it, so what stands between the
two norms is looked at, too.
"""

import pytest
import torch
from families import MAIN_HEADS, outputs, resize, resized_config
from torch.nn.functional import layer_norm

from transformers_bot import plan
from transformers_bot.ops.recipe import undo_norm

POSTNORM = [pair for pair in MAIN_HEADS if pair[0] in ("bert", "roberta")]
WIDE = {"layer": 3, "hidden": 48, "heads": 4, "ffn": 96}


def normalised(tokens: int, width: int) -> torch.Tensor:
    """(tokens, width): mean 0 and spread 1 in each row."""
    drawn = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return layer_norm(drawn, (width,), eps=0)


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.0), (0.3, 2.0), (-7.0, 0.5)])
def test_a_norm_of_one_weight_and_one_bias_is_undone_exactly(weight, bias):
    z = normalised(5, 24)
    w, b = (torch.full((24,), value, dtype=torch.float64) for value in (weight, bias))
    undone = undo_norm(w, b)
    found = layer_norm(w * z + b, (24,), undone["weight"], undone["bias"], eps=0)
    torch.testing.assert_close(found, z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [64, 256, 1024])
def test_any_norm_is_undone_up_to_the_spread_of_a_token(width):
    """s^2 of a token is that of all tokens up to sums of `width` independent terms, so the error falls with 1/sqrt."""
    z, generator = normalised(100, width), torch.Generator().manual_seed(1)
    w, b = (torch.randn(width, generator=generator, dtype=torch.float64) * 0.3 + mean for mean in (1.0, 0.5))
    w[:3] = 0.0  # channels that carry nothing of z
    undone = undo_norm(w, b)
    found = layer_norm(w * z + b, (width,), undone["weight"], undone["bias"], eps=0)
    assert torch.equal(found[:, :3], torch.zeros(100, 3, dtype=torch.float64))
    error = (found - z)[:, 3:].square().mean().sqrt()
    assert float(error) < 1.5 / width**0.5
    assert float(found[:, 3:].square().mean().sqrt()) == pytest.approx(1.0, abs=1.5 / width**0.5)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("layers", [4, 6])
@pytest.mark.parametrize(("family", "head"), POSTNORM)
def test_identity_blocks_nearly_keep_the_outputs_of_postnorm_models(saved, family, head, layers):
    folder, built = saved(family, head, **WIDE)
    wanted = resized_config(built.config, layer=layers)
    target = resize(folder, wanted, head, dtype=torch.float64)
    new = {s.target.removesuffix(".weight") for s in plan(folder, wanted).steps if s.reason.startswith("undoes")}
    new = sorted(name for name in new if not name.endswith(".bias"))
    assert len(new) == layers - 3
    between = []
    for name in new:
        target.get_submodule(name).register_forward_hook(lambda *seen: between.append(seen[-1]))
    before, after = outputs(built.model, built.inputs), outputs(target, built.inputs)
    for name, reference in before.items():
        change = (after[name] - reference).norm() / (reference - reference.mean()).norm()
        assert float(change) < 0.08 * (layers - 3), name
    seen = built.inputs["attention_mask"].bool()
    assert len(between) == layers - 3
    for one in between:  # the normalised input of the norm below
        assert one[seen].mean(-1).abs().max() < 0.1
        torch.testing.assert_close(one[seen].std(-1, correction=0), torch.ones(int(seen.sum()), dtype=torch.float64),
                                   rtol=0, atol=0.25)  # fmt: skip
