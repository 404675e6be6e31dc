"""Weights of any magnitude that their dtype holds: an error of ours, or a result and a report that are numbers."""

import json
import math

import pytest
import torch
from families import LARGER, SMALLER, build, save, size_fields
from safetensors.torch import load_file, save_file

from transformers_bot import BadWeights, BoTError, BoTModelForCausalLM, resize_checkpoint
from transformers_bot.ops.blocks import energy, length_of, sums
from transformers_bot.tools.inspecting import inspect

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FILLS = {
    "one entry is the largest number": lambda x: x.index_put(
        (torch.tensor(0),) * x.dim(), x.new_tensor(torch.finfo(x.dtype).max)
    ),
    "all are near the largest": lambda x: x.sign() * torch.finfo(x.dtype).max * 0.9,
    "large": lambda x: (x.double() * torch.finfo(x.dtype).max ** 0.6).to(x.dtype),
    "tiny": lambda x: (x.double() * torch.finfo(x.dtype).tiny ** 0.7).to(x.dtype),
    "denormal": lambda x: (x.sign() * torch.finfo(x.dtype).tiny / 4).to(x.dtype),
    "zero": torch.zeros_like,
    "constant": torch.ones_like,
}
SOURCES = [("gpt2", "GPT2LMHeadModel"), ("bert", "BertForMaskedLM"), ("vit", "ViTForImageClassification")]

RIVALS = {"importance": SMALLER, "front": SMALLER, "lemon+stack": LARGER}


def filled(folder, family, head, fill, dtype, only=""):
    """A saved source whose matrices (or those whose name holds `only`) are what `fill` makes of them."""
    name = save(build(family, head, dtype=dtype).model, folder / "source")
    path = folder / "source" / "model.safetensors"
    tensors = {key: fill(x) if x.dim() > 1 and only in key else x for key, x in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    return name


def numbers(value):
    """Every number of a report."""
    if isinstance(value, dict):
        return [one for part in value.values() for one in numbers(part)]
    if isinstance(value, (list, tuple)):
        return [one for part in value for one in numbers(part)]
    return [value] if isinstance(value, float) else []


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("what", FILLS)
@pytest.mark.parametrize(("dtype", "family", "head"), [(d, *s) for d, s in zip(DTYPES, SOURCES, strict=True)], ids=str)
def test_any_magnitude_ends_in_numbers_or_in_an_error_of_ours(tmp_path, dtype, family, head, what):
    source = filled(tmp_path, family, head, FILLS[what], dtype)
    for share in (share for stack in inspect(source).stacks for share in stack.kept.values()):
        assert 0 <= share <= 1 + 1e-5
    rival = list(RIVALS)[list(FILLS).index(what) % len(RIVALS)]
    for number, (method, sizes) in enumerate((("bot", SMALLER), ("bot", LARGER), (rival, RIVALS[rival]))):
        out = tmp_path / str(number)
        try:
            report = resize_checkpoint(source, out, method=method, **size_fields(family, sizes))
        except BoTError:
            assert not out.exists()
            continue
        assert all(bool(x.isfinite().all()) for x in load_file(out / "model.safetensors").values())
        assert all(math.isfinite(one) for one in numbers(json.loads(json.dumps(report.to_dict()))))


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("scale", [2.0**90, 2.0**-90])
def test_a_scale_beyond_squares_changes_nothing_but_the_scale(tmp_path, scale):
    """What turns and orders the stream of a pre-norm model does not ask how large its embeddings are."""
    small = size_fields("gpt2", {"hidden": 6, "heads": 3, "ffn": 10})
    made = {}
    for factor in (1.0, scale):
        folder = tmp_path / str(factor)
        folder.mkdir()
        # Embeddings and what is added to them grow alike, so norms see what they saw.
        source = filled(folder, "gpt2", "GPT2LMHeadModel", lambda x, f=factor: x * f, torch.float32, "wte")
        tensors = load_file(folder / "source" / "model.safetensors")
        added = ("wpe", "attn.c_proj", "mlp.c_proj")
        tensors |= {key: x * factor for key, x in tensors.items() if any(one in key for one in added)}
        save_file(tensors, folder / "source" / "model.safetensors", {"format": "pt"})
        resized = BoTModelForCausalLM.from_pretrained(source, bot_config={"basis": "principal"}, **small)
        made[factor] = resized.transformer.wte.weight.double() / factor
    torch.testing.assert_close(made[scale].abs(), made[1.0].abs(), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_turned_is_plain_with_a_warning_or_refused_where_it_was_asked_for(tmp_path, monkeypatch):
    from transformers_bot.methods import prepare
    from transformers_bot.rewrite.network import OutOfRange

    def fails(*_args):
        raise OutOfRange("second moments of the stream")

    source = filled(tmp_path, "gpt2", "GPT2LMHeadModel", lambda x: x, torch.float32)
    small = size_fields("gpt2", SMALLER)
    plain = BoTModelForCausalLM.from_pretrained(source, bot_config={"basis": "plain", "order": "kept"}, **small)
    monkeypatch.setattr(prepare, "to_principal_basis", fails)
    report = resize_checkpoint(source, tmp_path / "out", **small)
    assert any("second moments of the stream is not finite" in sentence for sentence in report.warnings)
    for name, x in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(x, plain.state_dict()[name], rtol=0, atol=0)
    with pytest.raises(BadWeights, match="second moments"):
        resize_checkpoint(source, tmp_path / "other", bot_config={"basis": "principal"}, **small)


@pytest.mark.parametrize("value", [3e38, 1e30, 1e-30, 1e-42, 1.0])
@pytest.mark.parametrize("shape", [(300, 300), (70_000,), (3, 5)])
def test_sums_energies_and_lengths_at_both_ends_of_float32(value, shape):
    x = torch.full(shape, value)
    stored, count = float(x.flatten()[0]), x.numel()
    half = {0: torch.linspace(0.5, 1.5, shape[0], dtype=torch.float64)}
    assert sums(x).squares == pytest.approx(count * stored**2, rel=1e-5)
    assert energy(x) == pytest.approx(count * stored**2, rel=1e-5)
    assert energy(x, half) == pytest.approx(count * stored**2, rel=1e-5)
    assert length_of(x) == pytest.approx(count**0.5 * stored, rel=1e-5)
