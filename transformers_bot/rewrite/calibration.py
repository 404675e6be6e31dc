"""What every norm of a model sees on real batches: an alternative to estimating it from the weights."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadOption


@torch.no_grad()
def measured_moments(model: nn.Module, norms: list[str], batches: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """Second moments of what each norm normalises, over a few batches.

    Args:
        model: the source.
        norms: the names of its norm modules, in the order in which the moments are wanted.
        batches: keyword arguments of the model; positions outside an `attention_mask` do not count.

    Returns:
        One (hidden, hidden) matrix of trace 1 for each norm, in float64.

    Raises:
        BadOption: no batch, or batches that the model does not run on.
    """
    sums: dict[str, Tensor] = {}
    mask: Tensor | None = None

    def hook(name: str) -> Any:
        def see(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            x = inputs[0].detach()
            x = x[mask] if mask is not None and mask.shape == x.shape[:-1] else x.flatten(0, -2)
            x = x.double()
            x = x - x.mean(-1, keepdim=True)  # (token, hidden)
            x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-300)
            sums[name] = sums.get(name, torch.zeros(())) + (x.T @ x).cpu()

        return see

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook(name)) for name in norms]
    try:
        for batch in batches:
            given = batch.get("attention_mask")
            mask = None if given is None else given.bool()
            model(**batch)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadOption(f"calibration= must give keyword arguments that the source runs on: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise BadOption("calibration= gave no batch; pass a list of a few, such as tokenizer outputs.")
    return [sums[name] / sums[name].trace() for name in norms]
