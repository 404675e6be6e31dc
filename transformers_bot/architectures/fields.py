"""What the fields of a config do to a model: which are sizes, which change its function, which are refused.

A config.json also holds what older versions of transformers, or other libraries, wrote into it. What
nobody here knows is told to the user and carried along; what is known to change the function, and that
transformers no longer computes, is refused.
"""

import copy
import math
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from transformers import PreTrainedConfig

from ..console.text import brief
from ..errors import BadOption, UnsupportedArchitecture
from . import Adapter

LABELS = ("num_labels", "id2label", "label2id")
# Every model is asked for these, also where its config class does not have them -> what holds without them.
MEANING = {"is_causal": True, "tie_last_hidden_states": None}
# Fields that give a model other tensors; the plan compares the tensors themselves.
TENSORS = ("tie_word_embeddings", "add_cross_attention", "encoder_stride")
# What a trained model computes does not depend on these: records, training, generation, what is returned.
INERT = (
    *("model_type", "architectures", "transformers_version", "transformers_bot", "dtype", "torch_dtype", "auto_map"),
    *("_name_or_path", "name_or_path", "_commit_hash", "_attn_implementation_autoset", "attn_implementation"),
    *("output_hidden_states", "output_attentions", "return_dict", "use_return_dict", "chunk_size_feed_forward"),
    *("use_cache", "is_encoder_decoder", "problem_type", "gradient_checkpointing", "initializer_range"),
    *("initializer_factor", "init_std", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    *("hidden_dropout", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id"),
    *("unk_token_id", "decoder_start_token_id", "tokenizer_class", "processor_class", "prefix", "max_length"),
    *("task_specific_params", "finetuning_task", "torchscript", "use_bfloat16", "tf_legacy_loss", "xla_device"),
    *("output_past", "vocab_size_or_config_json_file", "_num_labels", "id2label_path", "language", "name"),
    *("configuration_files", "transformers_weights", "quantization_config", "tie_encoder_decoder"),
    # Of sizes of their own: cross attention, which is left out, and a pruning, which the tensors tell.
    *("cross_attention_hidden_size", "pruned_heads"),
)
NAMED = 6  # fields in one sentence


def kind_of(adapter: Adapter, name: str) -> str | None:
    """What a config field is to a resize: "size", "label", "tensors", "meaning", "fixed", "inert"; None if unknown."""
    kinds = {
        "size": any(name in (role.size, role.field) for role in adapter.roles.values()) or name in adapter.derived,
        "label": name in LABELS,
        "meaning": name in adapter.meaning or name in MEANING,
        "fixed": name in adapter.only,
        "tensors": name in TENSORS,
        "inert": name in (*INERT, *adapter.inert),
    }
    return next((kind for kind, holds in kinds.items() if holds), None)


def check_fields(adapter: Adapter, config: Any, which: str) -> None:
    """Refuse, by name, what changes the function or the tensors and is not computed.

    Raises:
        UnsupportedArchitecture: positions of an older version, or layers of different sizes.
    """
    for name, only in adapter.only.items():
        wanted = only(config) if callable(only) else only
        value = getattr(config, name, None)
        if value is not None and value != wanted:
            raise UnsupportedArchitecture(
                f"{name} is {brief(repr(value))} in the {which} config: transformers computes {adapter.model_type} "
                f"models with {name} {wanted!r} only, and weights for another one are of no use to it. "
                + ("Use another checkpoint." if which == "source" else f"Leave {name} out, or at {wanted!r}.")
            )
    if getattr(config, "is_heterogeneous", False):
        raise UnsupportedArchitecture(
            f"per_layer_config gives layers of the {which} config fields of their own: a resize has one size for all "
            "layers. Use a config without per_layer_config."
        )


def check_spread(config: Any, which: str) -> None:
    """Refuse a standard deviation of new weights that is none."""
    value = getattr(config, "initializer_range", 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise BadOption(
            f"initializer_range is {brief(repr(value))} in the {which} config; new weights are drawn with it, so it "
            "must be a number of at least 0."
        )


def check_overrides(chosen: dict[str, Any]) -> None:
    """Refuse overrides that ask for what a resize does not do."""
    if chosen.get("pruned_heads"):
        raise UnsupportedArchitecture(
            f"pruned_heads={brief(repr(chosen['pruned_heads']))}: single heads of single layers are not pruned by a "
            "resize. Set the number of heads that every layer shall have, and leave pruned_heads out."
        )


def forget_pruned(config: PreTrainedConfig) -> None:
    """Take the record of a pruning away: it names heads that no longer are what they were."""
    if "pruned_heads" in vars(config):
        del config.pruned_heads


def without_crossing(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the same decoder without its cross attention; itself where it has none."""
    if getattr(config, "add_cross_attention", False) is not True:
        return config
    alone = copy.deepcopy(config)
    alone.add_cross_attention = False
    return alone


def crossing(adapter: Adapter, names: Iterable[str]) -> list[str]:
    """The tensors of cross attention among those of a checkpoint, whatever their prefix."""
    return [name for name in names if any(re.search(rf"(^|\.){one}$", name) for one in adapter.crossing)]


def field_warnings(adapter: Adapter, source: Any, target: Any) -> Iterator[str]:
    """Sentences about fields that differ and matter, and about fields that nobody knows."""
    for name in (*adapter.meaning, *MEANING):
        before, after = (getattr(config, name, MEANING.get(name)) for config in (source, target))
        # Where the source names no padding, a target that does has only more to work with.
        if before != after and not (name == "pad_token_id" and before is None):
            values = f"{_said(before)} in the source and {_said(after)} in the target"
            yield f"{name} is {values}; the weights fit the former"
    pruned = getattr(source, "pruned_heads", None)
    if pruned:
        yield f"pruned_heads of the source is left out: its weights hold every head, {_said(pruned)} included"
    odd = sorted(set(unknown_fields(adapter, source)) | set(unknown_fields(adapter, target)))
    if odd:
        named = ", ".join(_with_value(name, _value(name, target, source)) for name in odd[:NAMED])
        more = f" and {len(odd) - NAMED} more" if len(odd) > NAMED else ""
        yield (
            f"the config has fields that {type(source).__name__} does not know: {named}{more}; they are kept as they "
            "are, and what they mean for the weights is not known here"
        )


def _with_value(name: str, value: Any) -> str:
    """A field as a keyword; a value that may be a path of somebody's computer is left out of reports and cards."""
    shown = brief(name, 60)
    return shown if re.search(r"[/\\]", str(value)) else f"{shown}={_said(value)}"


def unknown_fields(adapter: Adapter, config: Any) -> list[str]:
    """Fields with a value that the config's class does not have, and that are not known otherwise."""
    fields = class_fields(type(config))  # type: ignore[arg-type]
    return [
        name
        for name, value in vars(config).items()
        if value is not None and name not in fields and not name.startswith("_") and kind_of(adapter, name) is None
    ]


@cache
def class_fields(config_class: type[PreTrainedConfig]) -> frozenset[str]:
    """The fields that a config of this class always has, and other names for them."""
    default = config_class()
    return frozenset({*default.to_dict(), *vars(default), *getattr(default, "attribute_map", {})})


def _value(name: str, *configs: Any) -> Any:
    return next((vars(config)[name] for config in configs if name in vars(config)), None)


def _said(value: Any) -> str:
    return brief(repr(value), 80)
