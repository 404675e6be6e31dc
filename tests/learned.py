"""Models grown by LiGO and Mango, unfitted, with their operators and labelled batches."""

import torch
from families import MAIN_HEADS, build, resize, resized_config, save
from transformers import PreTrainedModel

from transformers_bot.learned.fitting import growth_for
from transformers_bot.learned.operators import LiGOOperator, MangoOperator, Operator

SMALL = {"hidden": 12, "heads": 3, "ffn": 24, "layer": 2}
BIG = {"hidden": 20, "heads": 5, "ffn": 40, "layer": 5}
OPERATORS = {"ligo": LiGOOperator, "mango": MangoOperator}
TRAINED_HEADS = (*MAIN_HEADS[:4], ("deit", "DeiTForImageClassification"))  # with a teacher DeiT has no loss


def grow(saved, family: str, head: str, method: str, source=(), **changes) -> PreTrainedModel:
    """An unfitted model of `changes` over a source of SMALL sizes."""
    folder, built = saved(family, head, **{**SMALL, **dict(source)})
    return resize(folder, resized_config(built.config, **changes), head, method=method)


def operator_of(model: PreTrainedModel, seed: int | None = None, **keywords) -> Operator:
    record = model.config.transformers_bot
    return OPERATORS[record["method"]](growth_for(model, record, {}), seed, **keywords)


def labelled(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs with labels for the classes of TRAINED_HEADS, as floats of the model's dtype."""
    rows = len(next(iter(inputs.values())))
    if "input_ids" not in inputs:
        pixels = inputs["pixel_values"].to(model.dtype)
        return {"pixel_values": pixels, "labels": torch.arange(rows)}
    batch = {**inputs, "labels": inputs["input_ids"]}
    return batch | ({"next_sentence_label": torch.arange(rows) % 2} if "PreTraining" in type(model).__name__ else {})


def gpt2(tmp_path, seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    """A saved GPT-2 source, its config, and a batch."""
    built = build("gpt2", "GPT2LMHeadModel", seed, dtype, **{**SMALL, **changes})
    folder = save(built.model, tmp_path / f"source-{seed}")
    return folder, built.config, labelled(built.model, built.inputs)
