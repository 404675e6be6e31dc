"""FRONT against scipy's discrete cosine transform, on whole stacks of layers and in both directions."""

import numpy as np
import pytest
import torch
from families import resized_config
from scipy.fft import dct as scipy_dct
from scipy.fft import dctn, idctn
from test_rival_formulas import AXES, BERT, GPT2, LAYER, OUTSIDE
from test_rivals import resized

from transformers_bot import BoTModelForMaskedLM
from transformers_bot.ops.dct import dct, low_frequencies


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_the_cosine_transform_is_scipys(length):
    np.testing.assert_allclose(dct(length), scipy_dct(np.eye(length), axis=0, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(low_frequencies(length, length), np.eye(length), atol=1e-12)


def front(stack: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """Standardise, transform, cut or pad, invert, give mean and spread back."""
    mean, spread = stack.mean(), stack.std()
    waves = dctn((stack - mean) / spread, norm="ortho", axes=axes)
    kept = tuple(slice(min(a, b)) for a, b in zip(stack.shape, shape, strict=True))
    padded = np.zeros(shape)
    padded[kept] = waves[kept]
    out = idctn(padded, norm="ortho", axes=axes)
    return (out - out.mean()) / out.std() * spread + mean


FRONT = {
    "grow": {"layer": 4, "hidden": 24, "heads": 6, "ffn": 40},
    "shrink": {"layer": 1, "hidden": 6, "heads": 3, "ffn": 10},
    "odd": {"layer": 3, "hidden": 16, "heads": 2, "ffn": 15},
    "width": {"hidden": 8, "heads": 2, "ffn": 33},
    "depth": {"layer": 5},
}


@pytest.mark.covering(few=2)
@pytest.mark.parametrize("sizes", FRONT.values(), ids=FRONT)
def test_front_is_the_cosine_transform_of_the_stack(saved, sizes):
    built, target = resized(saved, *BERT, "front", sizes)
    before, after = built.model.state_dict(), target.state_dict()
    for name in AXES:
        old = torch.stack([before[LAYER.format(i) + name] for i in range(2)]).numpy()
        new = torch.stack([after[LAYER.format(i) + name] for i in range(sizes.get("layer", 2))]).numpy()
        np.testing.assert_allclose(new, front(old, new.shape, tuple(range(old.ndim))), atol=1e-9, err_msg=name)
        np.testing.assert_allclose([new.mean(), new.std()], [old.mean(), old.std()], atol=1e-9)
    for name, axes in OUTSIDE.items():
        old, new = before[name].numpy(), after[name].numpy()
        moved = tuple(dim for dim, role in enumerate(axes) if role)
        expected = front(old, new.shape, moved) if moved and "hidden" in sizes else old
        np.testing.assert_allclose(new, expected, atol=1e-9, err_msg=name)


def test_front_transforms_fused_queries_keys_and_values_apart(saved):
    built, target = resized(saved, *GPT2, "front", {"hidden": 8, "heads": 2})
    old = torch.stack([layer.attn.c_attn.weight for layer in built.model.transformer.h]).detach().numpy()
    new = torch.stack([layer.attn.c_attn.weight for layer in target.transformer.h]).detach().numpy()
    mean, spread = old.mean(), old.std()
    parts = []
    for part in np.split((old - mean) / spread, 3, axis=2):
        parts.append(idctn(dctn(part, norm="ortho")[:, :8, :8], norm="ortho"))
    out = np.concatenate(parts, axis=2)
    np.testing.assert_allclose(new, (out - out.mean()) / out.std() * spread + mean, atol=1e-9)


def test_front_keeps_constants_constant(saved, tmp_path):
    _, built = saved(*BERT)
    model = type(built.model)(built.config).double()  # transformers' own start: norm weights 1, biases 0
    model.save_pretrained(tmp_path)
    target = BoTModelForMaskedLM.from_pretrained(
        tmp_path, config=resized_config(built.config, **FRONT["odd"]), method="front", dtype=torch.float64
    )
    norm = target.bert.encoder.layer[2].output.LayerNorm
    torch.testing.assert_close(norm.weight, torch.ones_like(norm.weight))
    torch.testing.assert_close(norm.bias, torch.zeros_like(norm.bias))
