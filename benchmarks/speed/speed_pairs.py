"""The pairs of real sizes, and checkpoints of seeded weights for them: no download."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# name -> model type, class of the checkpoint, layers, width, heads: the public checkpoints' sizes
SIZES: dict[str, tuple[str, str, int, int, int]] = {
    "gpt2": ("gpt2", "GPT2LMHeadModel", 12, 768, 12),
    "gpt2-medium": ("gpt2", "GPT2LMHeadModel", 24, 1024, 16),
    "bert-base": ("bert", "BertForPreTraining", 12, 768, 12),
    "bert-large": ("bert", "BertForPreTraining", 24, 1024, 16),
    "vit-base": ("vit", "ViTForImageClassification", 12, 768, 12),
    "vit-large": ("vit", "ViTForImageClassification", 24, 1024, 16),
    "deit-small": ("deit", "DeiTForImageClassification", 12, 384, 6),
    "deit-base": ("deit", "DeiTForImageClassification", 12, 768, 12),
    "bert-quick": ("bert", "BertForPreTraining", 4, 128, 4),
    "bert-quick-half": ("bert", "BertForPreTraining", 2, 64, 2),
    "gpt2-quick": ("gpt2", "GPT2LMHeadModel", 4, 128, 4),
    "gpt2-quick-half": ("gpt2", "GPT2LMHeadModel", 2, 64, 2),
}
PAIRS = (
    ("gpt2-medium", "gpt2"),
    ("gpt2", "gpt2-medium"),
    ("bert-large", "bert-base"),
    ("bert-base", "bert-large"),
    ("vit-large", "vit-base"),
    ("deit-small", "deit-base"),
)
QUICK_PAIRS = (("gpt2-quick", "gpt2-quick-half"), ("bert-quick-half", "bert-quick"))
HEADS = {
    "GPT2LMHeadModel": "ForCausalLM",
    "BertForPreTraining": "ForPreTraining",
    "ViTForImageClassification": "ForImageClassification",
    "DeiTForImageClassification": "ForImageClassification",
}


@dataclass(frozen=True)
class Size:
    """One model of the list by its name."""

    name: str

    @property
    def head(self) -> str:
        """The ending of the factories' and the Auto classes' names for its head."""
        return HEADS[SIZES[self.name][1]]

    def config(self) -> Any:
        """Its config; ImageNet's labels for vision models, GPT-2's and BERT's own vocabularies."""
        from transformers import BertConfig, DeiTConfig, GPT2Config, ViTConfig

        family, architecture, layers, width, heads = SIZES[self.name]
        if family == "gpt2":
            made: Any = GPT2Config(n_layer=layers, n_embd=width, n_head=heads)
        else:
            sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
            kind = {"bert": BertConfig, "vit": ViTConfig, "deit": DeiTConfig}[family]
            labels = {} if family == "bert" else {"num_labels": 1000}
            made = kind(**sizes, intermediate_size=4 * width, **labels)
        made.architectures = [architecture]
        return made


def make(name: str, folder: Path) -> Path:
    """Make a checkpoint with transformers' own initialisation, seeded, in float32; once, and in one step."""
    place = folder / name
    if place.exists():
        return place
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = getattr(transformers, SIZES[name][1])(Size(name).config())
    staged = place.with_name(f".{name}")
    model.save_pretrained(staged)
    staged.rename(place)
    return place
