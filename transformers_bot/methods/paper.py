"""What the paper settles by family and direction."""

import math

from .base import Task

# The paper's best wavelet by validation loss (supplement Table 5). It does not state RoBERTa's and
# DeiT's: RoBERTa takes BERT's here (the same blocks), ViT and DeiT take Haar.
PAPER_WAVELET = {
    "bert": {"shrink": "haar", "grow": "bior6.8"},
    "roberta": {"shrink": "haar", "grow": "bior6.8"},
    "gpt2": {"shrink": "coif3", "grow": "db2"},
}


def paper_wavelet(task: Task) -> str:
    """The wavelet of the paper for a family and direction."""
    plain = [unit for unit in task.roles.units if not task.roles.is_whole(unit)]
    grows = math.prod(task.ratio(role) for role in (*task.roles.streams, *plain, *task.roles.depths)) > 1
    return PAPER_WAVELET.get(task.adapter.model_type, {}).get("grow" if grows else "shrink", "haar")
