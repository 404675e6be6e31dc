"""Tiny models of every supported architecture and head class, their inputs and outputs, as data for the laws.

Every parameter is random, norms and position embeddings included, so that no weight is 1 and no
bias 0 by accident and a map on the wrong axis cannot stay unseen.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

import transformers_bot
from transformers_bot import adapters
from transformers_bot.tasks import TASKS

FAMILIES = ("bert", "roberta", "gpt2", "vit", "deit")
CONFIGS = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "gpt2": transformers.GPT2Config,
    "vit": transformers.ViTConfig,
    "deit": transformers.DeiTConfig,
}
# role -> config field, where it is not the BERT name
FIELDS = {"layer": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}
GPT2_FIELDS = {"layer": "n_layer", "hidden": "n_embd", "heads": "n_head", "ffn": "n_inner", "position": "n_positions"}
TEXT = {"vocab_size": 23, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
OWN_FIELDS = {
    "bert": {**TEXT, "max_position_embeddings": 12, "type_vocab_size": 2},
    # RoBERTa's first pad_token_id + 1 position rows are no text positions
    "roberta": {**TEXT, "max_position_embeddings": 14, "type_vocab_size": 1, "pad_token_id": 1},
    "gpt2": {"vocab_size": 23, "n_positions": 12, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    | {"summary_first_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
    "vit": {"image_size": 12, "patch_size": 4, "encoder_stride": 4, "num_channels": 3}
    | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
OWN_FIELDS["deit"] = OWN_FIELDS["vit"]
SIZES = {"layer": 2, "hidden": 12, "heads": 3, "ffn": 20}  # no two lengths of a layer alike
SMALLER = {"layer": 1, "hidden": 6, "heads": 3, "ffn": 10}
LARGER = {"layer": 3, "hidden": 24, "heads": 6, "ffn": 40}

HEADS = {
    "bert": (
        "BertModel",
        "BertForPreTraining",
        "BertLMHeadModel",
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForMultipleChoice",
    ),
    "roberta": (
        "RobertaModel",
        "RobertaForCausalLM",
        "RobertaForMaskedLM",
        "RobertaForSequenceClassification",
        "RobertaForTokenClassification",
        "RobertaForQuestionAnswering",
        "RobertaForMultipleChoice",
    ),
    "gpt2": (
        "GPT2Model",
        "GPT2LMHeadModel",
        "GPT2DoubleHeadsModel",
        "GPT2ForSequenceClassification",
        "GPT2ForTokenClassification",
        "GPT2ForQuestionAnswering",
    ),
    "vit": ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"),
    "deit": (
        "DeiTModel",
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "DeiTForMaskedImageModeling",
    ),
}
ALL_HEADS = tuple((family, head) for family, heads in HEADS.items() for head in heads)
# One class of each family whose outputs depend on all of its parameters.
MAIN_HEADS = (
    ("bert", "BertForPreTraining"),
    ("roberta", "RobertaForMaskedLM"),
    ("gpt2", "GPT2LMHeadModel"),
    ("vit", "ViTForImageClassification"),
    ("deit", "DeiTForImageClassificationWithTeacher"),
)
FACTORIES = tuple(getattr(transformers_bot, name) for name in transformers_bot.__all__ if name.startswith("BoTModel"))


@dataclass(frozen=True)
class Built:
    """A tiny model with random parameters, in eval mode, and inputs that reach all of its heads."""

    model: PreTrainedModel
    inputs: dict[str, torch.Tensor]

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config


def class_of(head: str) -> type[PreTrainedModel]:
    return getattr(transformers, head)


def size_fields(family: str, sizes: dict[str, int]) -> dict[str, int]:
    """Config fields that set these roles: `hidden` is `n_embd` for GPT-2, and so on."""
    own = GPT2_FIELDS if family == "gpt2" else {**FIELDS, "ffn": "intermediate_size"}
    fields = {own.get(role, role): length for role, length in sizes.items()}
    if family in ("vit", "deit") and "hidden" in sizes:
        fields.setdefault("pooler_output_size", sizes["hidden"])
    return fields


def tiny_config(family: str, head: str = "", **changes) -> PreTrainedConfig:
    """A tiny config; `changes` are roles (layer, hidden, heads, ffn) or fields of the config class."""
    roles = {role: changes.pop(role) for role in SIZES if role in changes}
    labels = 2 if head.endswith("QuestionAnswering") else 4  # a span has a start and an end
    fields = {**OWN_FIELDS[family], "num_labels": labels, **size_fields(family, {**SIZES, **roles}), **changes}
    if head in ("BertLMHeadModel", "RobertaForCausalLM"):
        fields["is_decoder"] = True
    config = CONFIGS[family](**fields)
    config.architectures = [head] if head else None
    config._attn_implementation = "eager"
    return config


def resized_config(config: PreTrainedConfig, **changes) -> PreTrainedConfig:
    """A copy of `config` with other lengths of roles, or other fields."""
    wanted = copy.deepcopy(config)
    roles = {role: changes.pop(role) for role in SIZES if role in changes}
    for name, value in {**size_fields(config.model_type, roles), **changes}.items():
        setattr(wanted, name, value)
    return wanted


def randomise(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draw every parameter anew: norm weights around 1, everything else around 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm = any(word in name.lower() for word in ("norm", "ln_")) and name.endswith("weight")
            parameter.copy_(1 + 0.3 * drawn if is_norm else 0.3 * drawn)
    return model


def build(family: str, head: str, seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> Built:
    """A random tiny model of class `head` with its inputs."""
    config = tiny_config(family, head, **changes)
    config.dtype = dtype
    torch.manual_seed(seed)
    model = randomise(class_of(head)(config).to(dtype).eval(), seed)
    return Built(model, make_inputs(config, head, seed))


def make_inputs(config: PreTrainedConfig, head: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of two examples; images for ViT and DeiT, masked token ids for the others."""
    generator = torch.Generator().manual_seed(seed + 1)
    if config.model_type in ("vit", "deit"):
        size = config.image_size
        inputs = {"pixel_values": torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)}
        if head.endswith("MaskedImageModeling"):
            patches = (size // config.patch_size) ** 2
            inputs["bool_masked_pos"] = torch.rand(2, patches, generator=generator) < 0.5
        return inputs
    shape = (2, 3, 7) if head.endswith(("MultipleChoice", "DoubleHeadsModel")) else (2, 7)
    mask = torch.ones(shape, dtype=torch.long)
    if config.model_type != "gpt2":
        mask[-1, ..., -2:] = 0
    inputs = {"input_ids": torch.randint(3, config.vocab_size, shape, generator=generator), "attention_mask": mask}
    if config.model_type == "bert":
        inputs["token_type_ids"] = torch.randint(0, 2, shape, generator=generator)
    if head == "GPT2DoubleHeadsModel":
        inputs["mc_token_ids"] = torch.randint(0, shape[-1], shape[:-1], generator=generator)
    return inputs


def outputs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every floating-point tensor that the model returns by name; the inputs' dtype follows the model's."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    cast = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad():
        found = model.eval()(**cast)
    return {name: x for name, x in found.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}


def assert_same_outputs(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-9
) -> None:
    """Equal names, and values equal up to `tolerance` of each output's largest magnitude."""
    assert list(actual) == list(expected)
    assert actual
    for name, reference in expected.items():
        scale = float(reference.abs().max())
        torch.testing.assert_close(
            actual[name], reference, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def save(model: PreTrainedModel, folder: Path, **kwargs) -> str:
    """Save a model as a source folder and return its path as text."""
    model.save_pretrained(folder, **kwargs)
    return str(folder)


def factory_for(head: str, config: PreTrainedConfig) -> type:
    """The first factory whose class for this config is `head`; the config must name it if several share a task."""
    for factory in FACTORIES:
        table = getattr(transformers.models.auto.modeling_auto, TASKS[factory.task].mapping)
        if type(config) in table and factory.class_for(config).__name__ == head:
            return factory
    raise LookupError(f"no factory makes {head}")


def resize(source: str, config: PreTrainedConfig, head: str, **keywords) -> PreTrainedModel:
    """Resize a source folder to `config` as class `head`: by its factory, or by the integration if it has none."""
    config.architectures = [head]
    if head == "GPT2DoubleHeadsModel":
        with transformers_bot.integration(keywords.pop("bot_config", None)):
            return class_of(head).from_pretrained(source, config=config, **keywords)
    return factory_for(head, config).from_pretrained(source, config=config, **keywords)


def adapter_of(family: str) -> adapters.Adapter:
    return adapters.get(family)


def through_folder(model, folder, factory: str, **keywords):
    """A float64 model at other sizes, saved and loaded by a factory of ours, with the plain attention."""
    model.save_pretrained(folder)
    target = getattr(transformers_bot, factory).from_pretrained(folder, dtype=torch.float64, **keywords)
    target.config._attn_implementation = "eager"
    return target
