"""What the paper settles by family and direction."""

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
    grows = task.ratio("hidden") * task.ratio("ffn") * task.ratio("layer") > 1
    return PAPER_WAVELET.get(task.adapter.model_type, {}).get("grow" if grows else "shrink", "haar")
