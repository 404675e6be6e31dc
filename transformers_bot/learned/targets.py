"""Labels that a head is trained on: hidden tokens, and numbers of classes."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..errors import BadOption

SHARE = 0.15  # of the tokens of a sequence; these are hidden, and the head learns to find them


def hidden_at_random(ids: Tensor, special: Tensor, mask_id: int, vocabulary: int, seed: int) -> dict[str, Tensor]:
    """Token ids with some of them hidden, which are the labels: BERT's recipe, 80 % mask, 10 % random, 10 % unchanged.

    Args:
        ids: (sequence, token).
        special: which tokens are never hidden.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(ids.shape, generator=generator).masked_fill(special, 2.0)
    least = draw.min(1, keepdim=True).values  # so that at least one token of every sequence is hidden
    chosen = (draw < SHARE) | ((draw == least) & ~special)
    kind = torch.rand(ids.shape, generator=generator)
    others = torch.randint(vocabulary, ids.shape, generator=generator)
    shown = torch.where(chosen & (kind < 0.8), mask_id, ids)
    shown = torch.where(chosen & (kind >= 0.9), others, shown)
    return {"input_ids": shown, "labels": ids.masked_fill(~chosen, -100)}


def class_number(label: Any, config: PreTrainedConfig) -> int:
    """The number of a class that is given as a number or by its name in the config.

    Raises:
        BadOption: no label, or one that the model does not have.
    """
    known = config.label2id or {}
    number = known.get(label, label) if isinstance(label, str) else label
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < config.num_labels:
        names = ", ".join(map(str, list(known)[:5])) + (", ..." if len(known) > 5 else "")
        raise BadOption(
            f"{label!r} is none of the model's {config.num_labels} labels ({names}). Give every text a field "
            '"label", and put every image into a folder of its label\'s name.'
        )
    return number
