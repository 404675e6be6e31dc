"""Tiny encoders of text, a row for every model type and kind of config, as data for the laws.

No two lengths of a layer are alike, and no list of layers is the type's default: one that does not travel shows.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from families import randomise, through_folder
from transformers import CONFIG_MAPPING, PreTrainedModel

from transformers_bot import adapters

TEXT = {"vocab_size": 37, "pad_token_id": 0, "max_position_embeddings": 40, "type_vocab_size": 2}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
SIZES = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 20, "num_hidden_layers": 3}
FULL, SLIDING = "full_attention", "sliding_attention"
RELATIVE = {"relative_attention": True, "position_buckets": 6, "max_relative_positions": 30, "type_vocab_size": 0}
RELATIVE |= {"pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "position_biased_input": False}
# Row -> the model type, and what its config has of its own.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "xlm-roberta": ("xlm-roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "camembert": ("camembert", {"pad_token_id": 1, "type_vocab_size": 1}),
    "distilbert": ("distilbert", {}),
    "electra": ("electra", {"embedding_size": 10}),
    "electra of one width": ("electra", {"embedding_size": 24}),
    "mpnet": ("mpnet", {"pad_token_id": 1}),
    "deberta-v2": ("deberta-v2", {**RELATIVE, "share_att_key": True}),
    "deberta-v2 own keys": ("deberta-v2", {**RELATIVE, "type_vocab_size": 2, "position_biased_input": True}),
    "deberta-v2 convolution": ("deberta-v2", {**RELATIVE, "share_att_key": True, "conv_kernel_size": 3}),
    "modernbert": ("modernbert", {"local_attention": 4, "layer_types": [FULL, SLIDING, FULL, SLIDING, SLIDING]}),
    "modernbert biases": (
        "modernbert",
        {"local_attention": 4, "norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
    ),
}
IDS = torch.arange(3, 17).view(2, 7)
TASKS = ("MaskedLM", "CausalLM", "PreTraining", "SequenceClassification", "TokenClassification", "QuestionAnswering")
TASKS += ("MultipleChoice",)


def named(row: str, sizes: dict[str, int]) -> dict[str, int]:
    """Sizes under the field names of the row's config."""
    return {"hidden_dim" if row == "distilbert" and n == "intermediate_size" else n: x for n, x in sizes.items()}


def is_pre_norm(row: str) -> bool:
    """Whether added layers may be the identity."""
    return adapters.get(ROWS[row][0]).norm == "pre"


def build(row: str, task: str = "MaskedLM", seed: int = 0, **changes) -> PreTrainedModel:
    """A tiny encoder in float64 with every parameter random."""
    model_type, own = ROWS[row]
    known = CONFIG_MAPPING[model_type]()
    fields = {**TEXT, **named(row, SIZES), **own, **changes}
    if "layer_types" in own and "layer_types" not in changes:
        fields["layer_types"] = fields["layer_types"][: fields["num_hidden_layers"]]
    extra = {*own, *changes}
    config = CONFIG_MAPPING[model_type](**{n: x for n, x in fields.items() if hasattr(known, n) or n in extra})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, f"AutoModelFor{task}").from_config(config)
    return randomise(model.to(torch.float64).eval(), seed)


def resized(model: PreTrainedModel, folder: Path, task: str = "MaskedLM", **keywords) -> PreTrainedModel:
    """The model at other sizes, through a folder, as a user does it."""
    return through_folder(model, folder, f"BoTModelFor{task}", **keywords)


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    """What a model says of a text; of a text with two endings the one, for heads that choose."""
    ids = ids[None] if "MultipleChoice" in type(model).__name__ else ids
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return next(output[name] for name in ("logits", "start_logits", "prediction_logits") if name in output)
