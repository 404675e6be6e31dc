"""`gain="raw"` is the paper as written: stacks over layers go through PyWavelets' n-dimensional transform.

Shrinking takes the low band of `pywt.dwtn`, growing is `pywt.idwtn` with empty detail bands, on the
layer axis and on both matrix axes of attention in and out and MLP in and out.
"""

import numpy as np
import pytest
import pywt
import torch
from families import resize, resized_config

from transformers_bot import plan

TABLE_5 = ("haar", "db2", "db4", "sym8", "coif3", "bior3.3", "bior4.4", "bior6.8", "rbio3.3", "dmey")
SMALL = {"layer": 2, "hidden": 8, "heads": 2, "ffn": 24}
# All ten on the paper's two text models, the shortest and the longest filters on the others.
ORACLE = [(family, wavelet) for family in ("bert", "gpt2") for wavelet in TABLE_5]
ORACLE += [(family, wavelet) for family in ("roberta", "vit", "deit") for wavelet in ("haar", "bior6.8")]
RAW = {"gain": "raw", "heads": "flat", "depth": "wavelet"}
HEAD = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "gpt2": "GPT2LMHeadModel",
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
}
LINEAR = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
LINEAR = (*LINEAR, "intermediate.dense", "output.dense")
IMAGE = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
EARLIER = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
EARLIER = (*EARLIER, "attention.output.dense", "intermediate.dense", "output.dense")
MODULES = {
    "bert": ("bert.encoder.layer", LINEAR),
    "roberta": ("roberta.encoder.layer", LINEAR),
    "gpt2": ("transformer.h", ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    "vit": ("vit.layers", IMAGE),
    "deit": ("deit.layers", IMAGE),
}


def scaled(sizes: dict[str, int], factor: int) -> dict[str, int]:
    return {role: length * factor for role, length in sizes.items()}


def stacks(model, family: str) -> dict[str, np.ndarray]:
    """The paper's modules, each one (layer, axis, axis); GPT-2's fused matrix as q, k and v."""
    prefix, modules = MODULES[family]
    state = model.state_dict()
    if modules == IMAGE and f"{prefix}.0.{IMAGE[0]}.weight" not in state:  # the names of transformers 5.0
        prefix, modules = prefix.replace("layers", "encoder.layer"), EARLIER
    found = {}
    for module in modules:
        names = [f"{prefix}.{layer}.{module}.weight" for layer in range(model.config.num_hidden_layers)]
        stack = torch.stack([state[name] for name in names]).double().numpy()
        if module == "attn.c_attn":
            found |= {f"{module}.{part}": piece for part, piece in zip("qkv", np.split(stack, 3, axis=2), strict=True)}
        else:
            found[module] = stack
    return found


def low_band(x: np.ndarray, wavelet: str, level: int) -> np.ndarray:
    for _ in range(level):
        x = pywt.dwtn(x, wavelet, mode="periodization")["aaa"]
    return x


def empty_details(x: np.ndarray, wavelet: str, level: int) -> np.ndarray:
    bands = ("aad", "ada", "add", "daa", "dad", "dda", "ddd")
    for _ in range(level):
        x = pywt.idwtn({"aaa": x, **dict.fromkeys(bands)}, wavelet, mode="periodization")
    return x


def assert_stacks(target, source, family, transform) -> None:
    """Each module of the target is the transform of the source's."""
    expected = {name: transform(stack) for name, stack in stacks(source, family).items()}
    actual = stacks(target, family)
    assert list(actual) == list(expected)
    for name, stack in expected.items():
        assert actual[name].shape == stack.shape
        np.testing.assert_allclose(actual[name], stack, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "wavelet"), ORACLE)
@pytest.mark.parametrize("level", [1, 2])
def test_shrinking_is_the_low_band_of_dwtn(saved, family, level, wavelet):
    folder, built = saved(family, HEAD[family], **scaled(SMALL, 4))
    wanted = resized_config(built.config, **scaled(SMALL, 4 >> level))
    target = resize(folder, wanted, HEAD[family], bot_config={**RAW, "wavelet": wavelet}, dtype=torch.float64)
    assert_stacks(target, built.model, family, lambda x: low_band(x, wavelet, level))


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("family", "wavelet"), ORACLE)
@pytest.mark.parametrize("level", [1, 2])
def test_growing_is_idwtn_with_empty_details(saved, family, level, wavelet):
    folder, built = saved(family, HEAD[family], **SMALL)
    wanted = resized_config(built.config, **scaled(SMALL, 2**level))
    target = resize(folder, wanted, HEAD[family], bot_config={**RAW, "wavelet": wavelet}, dtype=torch.float64)
    assert_stacks(target, built.model, family, lambda x: empty_details(x, wavelet, level))


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("heads", [1, 4, 8])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_flat_heads_do_not_depend_on_the_head_counts(saved, family, heads):
    folder, built = saved(family, HEAD[family], **SMALL)
    wanted = resized_config(built.config, **{**scaled(SMALL, 2), "heads": heads})
    target = resize(folder, wanted, HEAD[family], bot_config={**RAW, "wavelet": "db2"}, dtype=torch.float64)
    assert_stacks(target, built.model, family, lambda x: empty_details(x, "db2", 1))


# Where the layer count stays, the stack goes through the transform of its two matrix axes.
@pytest.mark.covering(few=1)
@pytest.mark.parametrize("wavelet", ["haar", "bior6.8"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_equal_depth_transforms_the_matrix_axes_only(saved, family, wavelet):
    folder, built = saved(family, HEAD[family], **SMALL)
    wanted = resized_config(built.config, **{**scaled(SMALL, 2), "layer": 2})
    target = resize(folder, wanted, HEAD[family], bot_config={**RAW, "wavelet": wavelet}, dtype=torch.float64)
    bands = {"aa": None, "ad": None, "da": None, "dd": None}

    def matrices(x):
        return pywt.idwtn({**bands, "aa": x}, wavelet, mode="periodization", axes=(1, 2))

    assert_stacks(target, built.model, family, matrices)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym8", "coif3", "bior4.4", "bior6.8"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_details_leave_the_low_band_alone(saved, family, wavelet, kind):
    folder, built = saved(family, HEAD[family], **SMALL)
    options = {**RAW, "wavelet": wavelet}
    filled, empty = (
        resize(
            folder, resized_config(built.config, **scaled(SMALL, 2)), HEAD[family], bot_config=o, dtype=torch.float64
        )
        for o in ({**options, "detail": kind, "detail_scale": 0.5}, options)
    )
    reference = stacks(empty, family)
    for name, stack in stacks(filled, family).items():
        detail = stack - reference[name]
        bands = pywt.dwtn(detail, wavelet, mode="periodization")
        low = bands.pop("aaa")
        np.testing.assert_allclose(low, 0, atol=1e-6 * np.abs(detail).max(), err_msg=name)
        for band in bands.values():  # all seven are filled (supplement D.3)
            assert np.abs(band).max() > 0.05 * np.abs(detail).max()


@pytest.mark.covering(few=1)
@pytest.mark.parametrize(("kind", "spread"), [("gaussian", 1.0), ("uniform", 3**-0.5)])
@pytest.mark.parametrize(("family", "wavelet"), [("bert", "haar"), ("gpt2", "db2"), ("vit", "sym8")])
def test_details_are_as_large_as_asked(saved, family, wavelet, kind, spread):
    """s in units of the stack's standard deviation, in each of the seven bands of an orthogonal transform."""
    folder, built = saved(family, HEAD[family], **scaled(SMALL, 2))
    wanted, source = resized_config(built.config, **scaled(SMALL, 4)), stacks(built.model, family)
    # GPT-2 stores queries, keys and values as one stack, whose spread is theirs together.
    fused = np.array([stack for name, stack in source.items() if "c_attn" in name])
    for scale in (None, 0.25):
        options = {**RAW, "wavelet": wavelet, "detail": kind, "detail_scale": scale}
        target = resize(folder, wanted, HEAD[family], bot_config=options, dtype=torch.float64)
        for name, stack in stacks(target, family).items():
            deviation = (fused if "c_attn" in name else source[name]).std()
            asked = (1.0 if scale is None else scale) * spread * deviation
            bands = pywt.dwtn(stack, wavelet, mode="periodization")
            np.testing.assert_allclose(bands.pop("aaa"), source[name], rtol=0, atol=1e-6)
            assert len(bands) == 7
            for band, noise in bands.items():
                assert noise.std() == pytest.approx(asked, rel=5 * (2 * noise.size) ** -0.5), (name, band)
                assert abs(noise.mean()) < 5 * asked * noise.size**-0.5, (name, band)


@pytest.mark.parametrize(
    ("family", "direction", "wavelet"),
    [
        ("bert", "shrink", "haar"),
        ("bert", "grow", "bior6.8"),
        ("gpt2", "shrink", "coif3"),
        ("gpt2", "grow", "db2"),
    ],
)
def test_auto_is_the_papers_best_wavelet(saved, family, direction, wavelet):
    _, built = saved(family, HEAD[family], **SMALL)
    small, large = built.config, resized_config(built.config, **scaled(SMALL, 2))
    source, target = (small, large) if direction == "grow" else (large, small)
    made = plan(source, target, bot_config={"gain": "raw"})
    assert set(made.method["wavelet"].values()) == {wavelet}
    assert made.method["heads"] == "flat"
    assert made.method["detail"] == "zero"


def test_raw_warns_that_it_changes_the_function(saved):
    _, built = saved("bert", HEAD["bert"], **SMALL)
    made = plan(built.config, resized_config(built.config, **scaled(SMALL, 2)), bot_config={"gain": "raw"})
    assert "gain='raw' changes the function" in "; ".join(made.warnings)
