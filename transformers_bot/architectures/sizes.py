"""From configs to lengths: role -> size, validity, configs rebuilt from overrides, and what the fields do to a model.

A config.json also holds what older versions of transformers, or other libraries, wrote into it. What nobody
here knows is told to the user and carried along; what is known to change the function, and that transformers
no longer computes, is refused.
"""

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import cache
from numbers import Integral
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from ..console.text import brief
from ..errors import BadKeyword, BadOption, BadSize, UnsupportedArchitecture, suggest
from .adapter import FIXED, Adapter, Roles, Sizes

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


# No published model has more: DeepNet has 1,000 layers, the widest axes are MLPs of some 10^5 units, the longest
# vocabularies of some 10^6. Beyond, a number is more likely damaged than meant.
MAX_LAYERS = 1_000
MAX_WIDTH = 1 << 17
MAX_UNITS = 4 * MAX_WIDTH  # an MLP is usually four times as wide as its stream
MAX_POSITIONS = 1 << 20
MAX_LENGTH = 1 << 24  # of axes that are never resampled
KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "NoneType": "nothing"}
KINDS |= {"list": "a list", "tuple": "a list", "dict": "a mapping"}


def role_sizes(adapter: Adapter, config: PreTrainedConfig, which: str) -> dict[str, int | None]:
    """The length of every role in a config; `BadSize` names the field and the nearest valid values.

    Args:
        which: "source" or "target", for the message.
    """
    for role in adapter.roles.values():
        if isinstance(role.size, str):
            _check_positive(role.size, getattr(config, role.size, None), which)
    check_spread(config, which)
    for check in adapter.checks:
        if wrong := check(config):
            raise BadSize(f"{wrong[0]} in the {which} config; {wrong[1]}")
    for part, whole in adapter.divides:
        _check_divides(part, whole, config, which)
    return {role: _length(adapter, role, config, which) for role in adapter.roles}


def rebuild(
    adapter: Adapter, config: PreTrainedConfig, overrides: dict[str, Any], beside: tuple[str, ...] = ()
) -> PreTrainedConfig:
    """A new config with `overrides`, in which fields derived from others follow them.

    A field counts as derived while it has the value its rule gives (BERT's `intermediate_size` of
    4 * hidden_size); patching a config in place would leave it stale.

    Args:
        beside: names that a call takes beside fields, to be suggested for a field that does not exist.

    Raises:
        BadKeyword: an override that the config does not have, with the nearest field.
    """
    known = config.to_dict()
    chosen = _by_field(adapter, config, known, overrides, beside)
    check_overrides(chosen)
    for name, value in chosen.items():
        if name in size_fields(adapter) or name == "num_labels":
            _check_positive(name, value, "target")
    fields = {**known, **_with_labels(config, chosen)}
    try:
        for name, rule in adapter.derived.items():
            follows = name in known and name not in chosen and known[name] is not None and known[name] == rule(config)
            if follows:
                fields[name] = rule(_with_fields(config, fields))
        for name in ("model_type", "transformers_version", "transformers_bot"):
            fields.pop(name, None)
        made = type(config)(**fields)
        if "label2id" in chosen:  # as given, also where a count alone names the labels
            made.label2id = chosen["label2id"]
        return made
    except (StrictDataclassError, AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        name = type(config).__name__
        if kind := _wrong_kind(str(error), fields):
            raise BadOption(f"{name} cannot be built with {kind}.") from None
        raise BadOption(f"{name} cannot be built with {brief(str(overrides))}: {brief(str(error))}") from None


def _wrong_kind(message: str, fields: dict[str, Any]) -> str:
    """A field, its value and what it must be, from what transformers says of a value of the wrong type; else empty."""
    found = re.search(r"Validation error for field '(\w+)'", message)
    kinds = list(dict.fromkeys(re.findall(r"expected (\w+), got", message)))
    if not (found and found[1] in fields and kinds and set(kinds) <= KINDS.keys()):
        return ""
    if "float" in kinds and "int" in kinds:
        kinds.remove("int")
    return f"{found[1]}={brief(repr(fields[found[1]]))}, which must be {' or '.join(KINDS[kind] for kind in kinds)}"


def _with_labels(config: PreTrainedConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """The overrides with the names of the labels, as `PreTrainedConfig` takes them from keywords.

    Names that are given are kept; a count alone keeps the source's names where it is theirs, and numbers the
    labels otherwise.

    Raises:
        BadOption: a count and names that contradict each other, or that are none.
    """
    if "num_labels" not in chosen and "id2label" not in chosen:
        return chosen
    count, names = chosen.get("num_labels"), chosen.get("id2label")
    fields = {name: value for name, value in chosen.items() if name != "num_labels"}
    if names is None:
        fields.pop("id2label", None)
        keeps = count is None or count == config.num_labels
        return fields if keeps else {**fields, "num_labels": count, "id2label": None, "label2id": None}
    if not isinstance(names, dict) or not names:
        raise BadOption(f"id2label is {brief(repr(names))}; it must be a dict from each label's number to its name.")
    if count is not None and count != len(names):
        raise BadOption(
            f"num_labels is {count}, but id2label names {len(names)} labels: {brief(repr(names))}. Give one of them, "
            "or as many names as labels."
        )
    numbers = [label_number(number) for number in names]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise BadOption(
            f"id2label has the keys {brief(repr(list(names)))}; they must be the labels' numbers, each once."
        )
    if count is not None and count != config.num_labels and "label2id" not in chosen:
        fields["label2id"] = {f"LABEL_{number}": number for number in range(count)}  # as a count alone has them
    return {**fields, "id2label": dict(zip(numbers, names.values(), strict=True))}


def label_number(key: Any) -> int | None:
    """The number that a key of `id2label` is or spells, as JSON does; None for any other."""
    if isinstance(key, str):
        return int(key) if re.fullmatch(r"\d{1,9}", key, re.ASCII) else None
    return int(key) if isinstance(key, Integral) and not isinstance(key, bool) else None


def changed_fields(source: PreTrainedConfig, target: PreTrainedConfig) -> dict[str, Any]:
    """The fields in which the target's config differs, in JSON types: they are the recipe's `config`."""
    before, after = (json.loads(config.to_json_string(use_diff=False)) for config in (source, target))
    skipped = ("transformers_version", "transformers_bot", "_name_or_path", "dtype", "architectures")
    return {key: value for key, value in after.items() if key not in skipped and before.get(key, ...) != value}


def differing_roles(source: dict[str, int | None], target: dict[str, int | None]) -> list[str]:
    return [role for role in source if source[role] != target[role]]


def cut_across(roles: Roles, source: Sizes, target: Sizes) -> list[str]:
    """Units such as heads that get more or fewer, but that have as many entries together as before."""

    def together(sizes: Sizes, unit: str, entry: str) -> int:
        return (sizes[unit] or 0) * (sizes[entry] or 0)

    return [
        unit
        for unit in roles.units
        for entry in roles.entries
        if roles[entry].within == unit
        and source[unit] != target[unit]
        and together(source, unit, entry) == together(target, unit, entry)
    ]


def size_fields(adapter: Adapter) -> dict[str, str]:
    """Config field -> the role whose length it is."""
    return {role.size: name for name, role in adapter.roles.items() if isinstance(role.size, str)}


def _by_field(
    adapter: Adapter,
    config: PreTrainedConfig,
    known: dict[str, Any],
    overrides: dict[str, Any],
    beside: tuple[str, ...],
) -> dict[str, Any]:
    """Overrides under the config's own field names, whole numbers of any library as int."""
    aliases = {"torch_dtype": "dtype", **getattr(config, "attribute_map", {})}  # its older name
    chosen: dict[str, Any] = {}
    for name, value in overrides.items():
        named = name in known or name in aliases or name in adapter.only or name == "pruned_heads"
        is_field = named or (hasattr(config, name) and not callable(getattr(config, name)))
        if not is_field or name in ("model_type", "transformers_version"):
            hint = suggest(name, [*known, *aliases, *beside]) if not is_field else " It cannot be changed."
            raise BadKeyword(f"{type(config).__name__} has no field {name!r} to set.{hint}")
        field_name = aliases.get(name, name)
        if field_name in chosen:
            raise BadKeyword(f"{field_name} is given twice, also as {name!r}; keep one.")
        if name == "architectures" and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise BadOption(f"architectures is {brief(repr(value))}; it must be a list of names of model classes.")
        if isinstance(value, float) and not math.isfinite(value):
            raise BadOption(f"{name} is {value!r}, which no field of a model can be.")
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        chosen[field_name] = int(value) if whole else value
    return chosen


def _length(adapter: Adapter, role: str, config: PreTrainedConfig, which: str) -> int | None:
    """The length of one role, None where only the tensor knows it."""
    known = adapter.roles[role]
    size, field = known.size, known.field
    length = size(config) if callable(size) else getattr(config, size) if isinstance(size, str) else size
    if length is None:
        return None
    if isinstance(length, bool) or not isinstance(length, Integral):
        raise BadSize(
            f"{field} gives {brief(repr(length))} entries for {role} in the {which} config; set it to a whole number."
        )
    length = int(length)
    if length < 1:
        why = known.empty(config) if known.empty else f"set {field} to at least 1."
        raise BadSize(f"the {which} config leaves {length} entries for {role}: {why}")
    most = _most(adapter, role)
    if length > most:
        raise BadSize(
            f"{field} makes {length} entries for {role} in the {which} config; {most} is the most this package plans "
            "for. Choose a smaller size."
        )
    return length


def _most(adapter: Adapter, role: str) -> int:
    """The most entries that are planned for."""
    kind = adapter.roles.kind(role)
    if kind == "unit" and not adapter.roles.is_whole(role):
        return MAX_UNITS
    caps: dict[str, int] = {"depth": MAX_LAYERS, "place": MAX_POSITIONS, **dict.fromkeys(FIXED, MAX_LENGTH)}
    return caps.get(kind, MAX_WIDTH)


def _with_fields(config: PreTrainedConfig, fields: dict[str, Any]) -> Any:
    trial = copy.copy(config)
    for name, value in fields.items():
        if name in config.to_dict():
            setattr(trial, name, value)
    return trial


def _check_positive(name: str, value: object, which: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise BadSize(f"{name} is {brief(repr(value))} in the {which} config; it must be a whole number of at least 1.")


def _check_divides(part: str, whole: str, config: Any, which: str) -> None:
    width, count = getattr(config, whole), getattr(config, part)
    if width % count:
        below = width // count * count
        near = f"sizes are {below} and {below + count}" if below else f"size is {count}"
        raise BadSize(
            f"{whole} {width} is not divisible by {part} {count} in the {which} config; nearest valid {near}."
        )


def check_supported(
    adapter: Adapter,
    configs: tuple[Any, Any],
    source: dict[str, int | None],
    target: dict[str, int | None],
) -> None:
    """Refuse what no rule describes, and a depth change where a layer's meaning depends on its number.

    Args:
        configs: of source and target.
    """
    for config, which in zip(configs, ("source", "target"), strict=True):
        check_fields(adapter, config, which)
    config = configs[1]
    if getattr(config, "add_cross_attention", False):
        raise UnsupportedArchitecture(
            "add_cross_attention=True: its keys and values read another model's hidden states, whose size is not "
            "this model's to change. Pass add_cross_attention=False: the decoder is then resized alone, and the "
            "tensors of its cross attention are left out."
        )
    flag = adapter.depth_flag
    for depth in adapter.roles.depths if flag and getattr(config, flag, False) else ():
        if source[depth] != target[depth]:
            raise UnsupportedArchitecture(
                f"{flag}=True divides attention scores by the layer's number, so layers cannot be moved; "
                f"keep {adapter.roles[depth].field} at {source[depth]}."
            )
