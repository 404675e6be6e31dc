"""Norms that are computed, not resized."""

import torch
from torch import Tensor


def undo_norm(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Parameters of a norm that turns another norm's output back into its normalised input.

    The norm below gives x = w * z + b with z of mean 0 and spread 1. A norm on x sees
    (x - m) / s with m = mean(b), s^2 = mean(w^2) + var(b) up to the token's own fluctuation, so
    s / w and (m - b) / w give z again; the block's second norm, with w and b once more, gives x.
    Only the fluctuation of s times (b - m) / w is left, because that second norm rescales z.
    Channels with w close to 0 carry the constant b and nothing of z.
    """
    mean = bias.mean()
    spread = (weight.square().mean() + bias.var(correction=0)).sqrt()
    alive = weight.abs() > 1e-3 * weight.abs().mean()
    safe = torch.where(alive, weight, torch.ones_like(weight))
    zero = torch.zeros_like(weight)
    return {
        "weight": torch.where(alive, spread / safe, zero),
        "bias": torch.where(alive, (mean - bias) / safe, zero),
    }
