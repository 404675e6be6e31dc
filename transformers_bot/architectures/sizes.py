"""Config fields: the lengths of roles, their checks, configs rebuilt from overrides, and what fields mean.

A config.json may hold fields of older versions of transformers and of other libraries. Unknown fields are kept
with a warning. Fields that change the function, but that transformers no longer computes, are refused.

A field of a config within a config has a path as its name, such as "text_config.hidden_size":

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(text_config=SimpleNamespace(hidden_size=8))
    >>> get_field(config, "text_config.hidden_size"), get_field(config, "vision_config.hidden_size", None)
    (8, None)
"""

import copy
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from numbers import Integral
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from ..console.text import brief
from ..errors import BadKeyword, BadOption, BadSize, UnsupportedArchitecture, suggest
from .adapter import FIXED, RESIZED, Adapter, Role, Roles, Sizes
from .wrong_values import elsewhere, nearest_divisors, wrong_type

_NONE = object()
Remedy = Callable[[str, Iterable[str]], str]


def get_field(config: Any, name: str, default: Any = _NONE) -> Any:
    """The value of a field; `default` where a config has none, or `AttributeError` without a default."""
    for part in name.split("."):
        if not hasattr(config, part) and default is not _NONE:
            return default
        config = getattr(config, part)
    return config


def has_field(config: Any, name: str) -> bool:
    """Whether a config has a field of this name."""
    absent = object()
    return get_field(config, name, absent) is not absent


def set_field(config: Any, name: str, new: Any) -> None:
    """Set a field."""
    path, _, last = name.rpartition(".")
    setattr(get_field(config, path) if path else config, last, new)


def inner(config: Any) -> dict[str, PreTrainedConfig]:
    """Field -> config, of the configs within a config."""
    return {name: part for name, part in vars(config).items() if isinstance(part, PreTrainedConfig)}


def part_with(config: Any, name: str) -> Any:
    """The config, or the first one within it, that has a field; the config itself where none has it.

    >>> from transformers import CLIPConfig
    >>> part_with(CLIPConfig(), "image_size").model_type
    'clip_vision_model'
    """
    return next((part for part in (config, *inner(config).values()) if hasattr(part, name)), config)


def flat(config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config as `to_dict` gives them, those of the configs within it by their paths."""
    whole = dict(fields)
    for name in inner(config):
        whole |= {f"{name}.{part}": entry for part, entry in whole.pop(name).items()}
    return whole


def nested(config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `flat`. A point in a name is no path if the config has no config of that name.

    >>> from transformers import BertConfig, CLIPConfig
    >>> nested(CLIPConfig(), {"text_config.hidden_size": 8, "projection_dim": 4})
    {'text_config': {'hidden_size': 8}, 'projection_dim': 4}
    >>> nested(BertConfig(), {"transformers.js_config": 1})
    {'transformers.js_config': 1}
    """
    parts = inner(config)
    whole: dict[str, Any] = {}
    for name, entry in fields.items():
        path, _, last = name.rpartition(".")
        (whole.setdefault(path, {}) if path in parts else whole)[last if path in parts else name] = entry
    return whole


LABELS = ("num_labels", "id2label", "label2id")
# Fields that transformers reads from every config, also if its class does not have them -> the value without them.
MEANING = {"is_causal": True, "tie_last_hidden_states": None}
# Fields that change which tensors a model has, of any type; the plan compares the tensors themselves. transformers asks
# every config for `tie_word_embeddings`, and calls a decoder's second attention, which reads another model's stream,
# `add_cross_attention` in every family that may have it.
TENSORS = ("tie_word_embeddings", "add_cross_attention")
# Fields on which a trained model's function does not depend: records, training, generation, kinds of outputs.
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
    *("ignore_keys_at_rope_validation", "cache_implementation", "js_config"),
    # Cross attention is left out, and pruned heads are recognised by the tensors.
    *("cross_attention_hidden_size", "pruned_heads"),
)
NAMED = 6  # fields that one warning names


def kind_of(adapter: Adapter, name: str) -> str | None:
    """The effect of a config field: "size", "label", "list", "tensors", "meaning", "fixed" or "inert"; None if unknown.

    A "list" says something of every layer, and follows the layers.
    """
    stacks = [adapter.roles[stack] for stack in adapter.roles.depths]
    lists = {
        name for stack in stacks for fields in (stack.lists, *(n.fields(()) for n in stack.numbered)) for name in fields
    }
    kinds = {
        "size": any(name in (role.size, role.field) for role in adapter.roles.values()) or name in adapter.derived,
        "label": name.rpartition(".")[2] in LABELS,
        "list": name in lists,
        "meaning": name in adapter.meaning or name in MEANING,
        "fixed": name in adapter.only,
        "tensors": name in adapter.tensors or name.rpartition(".")[2] in TENSORS,
        "inert": name in adapter.inert or name.rpartition(".")[2] in INERT,
    }
    return next((kind for kind, holds in kinds.items() if holds), None)


def check_fields(adapter: Adapter, config: Any, which: str) -> None:
    """Raise for a field that asks for a function or tensors that transformers does not compute.

    Raises:
        UnsupportedArchitecture: positions of an older version, or layers of different sizes.
    """
    for name, only in adapter.only.items():
        supported = only(config) if callable(only) else only
        given = get_field(config, name, None)
        if given is not None and given != supported:
            raise UnsupportedArchitecture(
                f"{name} is {brief(repr(given))} in the {which} config: transformers computes {adapter.model_type} "
                f"models with {name} {supported!r} only, and cannot use weights for another value. "
                + ("Use another checkpoint." if which == "source" else f"Leave {name} out, or at {supported!r}.")
            )
    if getattr(config, "is_heterogeneous", False):
        raise UnsupportedArchitecture(
            f"per_layer_config gives layers of the {which} config different sizes, but a resize has one size for all "
            "layers. Use a config without per_layer_config."
        )


def check_spread(config: Any, which: str) -> None:
    """Raise if `initializer_range`, the standard deviation of new weights, is not a valid one."""
    spread = getattr(config, "initializer_range", 0.0)
    if isinstance(spread, bool) or not isinstance(spread, (int, float)) or not 0 <= spread < math.inf:
        raise BadOption(
            f"initializer_range is {brief(repr(spread))} in the {which} config; new weights are drawn with it, so it "
            "must be a number of at least 0."
        )


def check_overrides(chosen: dict[str, Any]) -> None:
    """Raise for overrides that ask for what a resize does not do."""
    if chosen.get("pruned_heads"):
        raise UnsupportedArchitecture(
            f"pruned_heads={brief(repr(chosen['pruned_heads']))}: a resize does not prune single heads of single "
            "layers. Set the number of heads that every layer shall have, and leave pruned_heads out."
        )


def forget_pruned(config: PreTrainedConfig) -> None:
    """Remove the record of pruned heads, whose numbers mean other heads after a resize."""
    if "pruned_heads" in vars(config):
        del config.pruned_heads


def without_crossing(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the same decoder without cross attention."""
    if getattr(config, "add_cross_attention", False) is not True:
        return config
    alone = copy.deepcopy(config)
    alone.add_cross_attention = False
    return alone


def crossing(adapter: Adapter, names: Iterable[str]) -> list[str]:
    """The names of cross attention's tensors among those of a checkpoint, with any prefix."""
    return [name for name in names if any(re.search(rf"(^|\.){pattern}$", name) for pattern in adapter.crossing)]


def field_warnings(adapter: Adapter, source: Any, target: Any, lists: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Warnings about different fields that change the function, and about unknown fields.

    Args:
        lists: fields with one entry per layer, as they follow the source's layers to their places in the target; by
            default the source's own.
    """
    for name in (*adapter.meaning, *MEANING):
        before, after = (_as_list(get_field(config, name, MEANING.get(name))) for config in (source, target))
        # A padding token that only the target has changes nothing for inputs without padding.
        if before != after and not (name == "pad_token_id" and before is None):
            values = f"{_shown(before)} in the source and {_shown(after)} in the target"
            yield f"{name} is {values}; the weights fit the former"
    yield from _about_kinds(adapter, source, target, lists or {})
    yield from _about_heads(adapter, source, target)
    pruned = getattr(source, "pruned_heads", None)
    if pruned:
        yield f"pruned_heads of the source is left out: its weights hold every head, {_shown(pruned)} included"
    unknown = sorted(set(unknown_fields(adapter, source)) | set(unknown_fields(adapter, target)))
    if unknown:
        named = ", ".join(_with_value(name, _value(name, target, source)) for name in unknown[:NAMED])
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        yield (
            f"the config has fields that {type(source).__name__} does not know: {named}{more}; they are kept "
            "unchanged, and their meaning for the weights is not known"
        )


def _as_list(given: Any) -> Any:
    """A list for a tuple: a config's file does not tell them apart."""
    return list(given) if isinstance(given, tuple) else given


def _about_kinds(adapter: Adapter, source: Any, target: Any, lists: Mapping[str, Any]) -> Iterator[str]:
    """Layers of the target that are of another kind than the layers which they are made of."""
    for name in (name for depth in adapter.roles.depths for name in adapter.roles[depth].lists):
        before = _as_list(lists.get(name, get_field(source, name, None)))
        after = _as_list(get_field(target, name, None))
        if not (isinstance(before, list) and isinstance(after, list) and len(before) == len(after)):
            continue
        changed = [str(layer) for layer, kinds in enumerate(zip(before, after, strict=True)) if kinds[0] != kinds[1]]
        if changed:
            subject = f"layers {brief(', '.join(changed), 60)} are" if len(changed) > 1 else f"layer {changed[0]} is"
            yield (
                f"{name} is {_shown(after)}, and the source's layers give {_shown(before)}: {subject} of another kind "
                "than the weights fit"
            )


def _about_heads(adapter: Adapter, source: Any, target: Any) -> Iterator[str]:
    """What becomes of heads at another width, in configs where they do not follow from it."""
    streams = [adapter.roles[stream].field for stream in adapter.roles.streams]
    widths = {name: (get_field(source, name), get_field(target, name)) for name in streams}
    changed = [f"{name} {before} -> {after}" for name, (before, after) in widths.items() if before != after]
    if not (adapter.with_width and changed):
        return
    unread = {role.field for role in adapter.roles.values() if _is_unread(role, source) and _is_unread(role, target)}
    read = [name for name in adapter.with_width if name not in unread]
    counts = {name: (get_field(source, name), get_field(target, name)) for name in read}
    entries = [role for role in map(adapter.roles.__getitem__, adapter.roles.leading("entry")) if role.size is not None]
    lengths = {f"entries of {role.name}": (_size(role, source), _size(role, target)) for role in entries}
    every = {**counts, **lengths}
    moved = [f"{name} {before} -> {after}" for name, (before, after) in every.items() if before != after]
    kept = [f"{name} {before}" for name, (before, after) in every.items() if before == after]
    if not moved:
        yield f"with {' and '.join(changed)} heads stay as they are, and only the stream changes ({', '.join(kept)})"
    else:
        stay = f"; kept: {', '.join(kept)}" if kept else ""
        yield f"with {' and '.join(changed)} heads change: {', '.join(moved)}{stay}"


def _is_unread(role: Role, config: Any) -> bool:
    """Whether a number of units is not what the field says that is named for it, in a config of this kind."""
    counted = role.kind == "unit" and callable(role.size) and not role.within
    return counted and _size(role, config) != get_field(config, role.field, None)


def _size(role: Role, config: Any) -> Any:
    if callable(role.size):
        return role.size(config)
    return get_field(config, role.size) if isinstance(role.size, str) else role.size


def _with_value(name: str, given: Any) -> str:
    """A field as `name=value`; without a value that may be a path on the user's computer."""
    shown = brief(name, 60)
    return shown if re.search(r"[/\\]", str(given)) else f"{shown}={_shown(given)}"


def unknown_fields(adapter: Adapter, config: Any) -> list[str]:
    """Fields with a value that neither the config's class nor this package knows."""
    parts = inner(config)
    names = [name for name in _own_unknown(config) if name not in parts]
    names += [f"{path}.{name}" for path, part in parts.items() for name in _own_unknown(part)]
    return [name for name in names if kind_of(adapter, name) is None]


def _own_unknown(config: Any) -> list[str]:
    """Fields with a value that the config's class does not know, without those of the configs within it."""
    fields = class_fields(type(config))  # type: ignore[arg-type]
    return [n for n, x in vars(config).items() if x is not None and n not in fields and not n.startswith("_")]


@cache
def class_fields(config_class: type[PreTrainedConfig]) -> frozenset[str]:
    """The fields that every config of this class has, and their other names."""
    default = config_class()
    return frozenset({*default.to_dict(), *vars(default), *getattr(default, "attribute_map", {})})


def _value(name: str, *configs: Any) -> Any:
    return next((get_field(config, name) for config in configs if has_field(config, name)), None)


def _shown(given: Any) -> str:
    return brief(repr(given), 80)


# No published model has more: DeepNet has 1,000 layers, the widest MLPs have about 10^5 units, the largest
# vocabularies about 10^6 entries. A larger number is more likely a mistake.
MAX_LAYERS = 1_000
MAX_WIDTH = 1 << 17
MAX_UNITS = 4 * MAX_WIDTH  # an MLP is usually four times as wide as its stream
MAX_POSITIONS = 1 << 20
MAX_LENGTH = 1 << 24  # of axes that are never resampled


def role_sizes(adapter: Adapter, config: PreTrainedConfig, which: str) -> dict[str, int | None]:
    """The length of every role in a config; a `BadSize` names the field and the nearest valid values.

    Args:
        which: "source" or "target", for the message.
    """
    for role in adapter.roles.values():
        if _reads_length(role, config):
            field = role.size if isinstance(role.size, str) else role.field
            _check_positive(field, get_field(config, field, None), which)
    check_spread(config, which)
    for check in adapter.checks:
        if wrong := _computed(check, config, which, "its sizes"):
            raise BadSize(f"{wrong[0]} in the {which} config; {wrong[1]}")
    for part, whole in adapter.divides:
        _check_divides(adapter, part, whole, config, which)
    return {role: _length(adapter, role, config, which) for role in adapter.roles}


def rebuild(
    adapter: Adapter, config: PreTrainedConfig, overrides: dict[str, Any], remedy: Remedy = suggest
) -> PreTrainedConfig:
    """A new config with `overrides`, in which fields derived from others follow them.

    A field counts as derived as long as it has the value of its rule (BERT's `intermediate_size` of
    4 * hidden_size). If the config were changed in place, such a field would keep its old value.

    Args:
        remedy: name, fields -> a sentence on a name that is no field.

    Raises:
        BadKeyword: an override that is no field of the config; the message suggests the nearest one.
    """
    known = flat(config, config.to_dict())
    chosen = _by_field(adapter, config, known, overrides, remedy)
    check_overrides(chosen)
    _check_lengths(adapter, config, chosen)
    _check_read(adapter, config, chosen)
    chosen |= unsaid(adapter, config, chosen)
    fields = {**known, **_with_labels(config, chosen)}
    try:
        for name, rule in adapter.derived.items():
            if name not in known or name in chosen or known[name] is None:
                continue
            follows, is_inert = known[name] == rule(config), name in adapter.inert
            after = rule(_with_fields(config, fields)) if follows or is_inert else None
            # A field without effect that would name a layer which is gone, or another one, follows in any case.
            if follows or (is_inert and after != rule(config)):
                fields[name] = after
        fields.update(_stretched_lists(adapter, known, chosen))
        for name in ("model_type", "transformers_version", "transformers_bot"):
            fields.pop(name, None)
        rebuilt = type(config)(**nested(config, fields))
        _check_taken(adapter, rebuilt, chosen)
        if "label2id" in chosen:  # transformers would replace it if only the number of labels is given
            rebuilt.label2id = chosen["label2id"]
        return rebuilt
    except (StrictDataclassError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        name = type(config).__name__
        if problem := wrong_type(str(error), fields):
            raise BadOption(f"{name} cannot be built with {problem}.") from None
        for part, length in adapter.divides:
            _check_divides(adapter, part, length, _with_fields(config, fields), "target")
        raise BadOption(f"{name} cannot be built with {brief(str(overrides))}: {brief(str(error))}") from None


def _check_lengths(adapter: Adapter, config: PreTrainedConfig, chosen: Mapping[str, Any]) -> None:
    """Raise for an override that must be a length and is none."""
    always = {*size_fields(adapter), *adapter.with_width, "num_labels"}
    # None asks transformers for its own value, where a length is computed from a field.
    unless_none = {role.field for role in adapter.roles.values() if _reads_length(role, config)}
    for name, given in chosen.items():
        if name in always or (name in unless_none and given is not None):
            _check_positive(name, given, "target")


def _reads_length(role: Role, config: PreTrainedConfig) -> bool:
    """Whether the field that a role names holds a length.

    A length that is computed may come from a field with another meaning, such as a token's number.
    """
    return isinstance(role.size, str) or (
        role.kind in RESIZED and isinstance(get_field(config, role.field, None), Integral)
    )


def _check_read(adapter: Adapter, config: PreTrainedConfig, chosen: Mapping[str, Any]) -> None:
    """Raise for a number of units that a call sets, and that a config of this kind does not read."""
    for role in adapter.roles.values():
        is_counted = role.kind == "unit" and not (role.within or role.follows)
        if not (is_counted and isinstance(chosen.get(role.field), Integral) and callable(role.size)):
            continue
        changed = _with_fields(config, dict(chosen))
        another = _with_fields(config, {**chosen, role.field: 2 * chosen[role.field] + 1})
        after, with_another = (_computed(role.size, each, "target", role.field) for each in (changed, another))
        # A recipe says every field that differs, also one that only follows another.
        rule = adapter.derived.get(role.field)
        followed = get_field(config, role.field), rule and _computed(rule, changed, "target", role.field)
        if with_another == after != chosen[role.field] and chosen[role.field] not in followed:
            raise BadSize(
                f"{role.field}={chosen[role.field]} has no effect: with the other fields of the config the model has "
                f"{after} {role.noun} in any case. Leave {role.field} out, or change those fields."
            )


def _check_taken(adapter: Adapter, config: PreTrainedConfig, chosen: Mapping[str, Any]) -> None:
    """Raise for a size that the config's class computes from others, whatever a call sets."""
    sizes = {role.field for role in adapter.roles.values()} | {*size_fields(adapter), *adapter.derived}
    for name in sizes & chosen.keys():
        actual = get_field(config, name, None)
        if chosen[name] is not None and actual != chosen[name]:
            raise BadSize(
                f"{name}={chosen[name]} has no effect: {type(config).__name__} makes it {actual} of other fields. "
                "Change those."
            )


def unsaid(adapter: Adapter, config: PreTrainedConfig, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a call does not set and that follow from those it sets.

    Heads keep their length, and their number changes in proportion with the stream if all of their fields stay whole
    numbers; otherwise they stay as they are. Key-value heads stay if they divide the heads, and change in proportion
    with them otherwise.
    """
    fields: dict[str, Any] = {}
    told = [name for name in adapter.with_width if name in chosen]
    for name in adapter.with_width:
        _check_positive(name, get_field(config, name), "source")
    if adapter.with_width and not told:
        for stream in adapter.roles.streams:
            share = _share(config, chosen, adapter.roles[stream].field)
            wanted = {name: get_field(config, name) * share for name in adapter.with_width}
            entries = {adapter.roles[entry].field for entry in adapter.roles.entries}
            if share != 1 and entries.isdisjoint(chosen) and all(count.denominator == 1 for count in wanted.values()):
                fields |= {name: int(count) for name, count in wanted.items()}
    for part, whole in adapter.divides if told else ():
        if (
            whole in told
            and part in adapter.with_width
            and part not in told
            and chosen[whole] % get_field(config, part)
        ):
            count = get_field(config, part) * _share(config, chosen, whole)
            fields |= {part: int(count)} if count.denominator == 1 else {}
    return fields


def _share(config: PreTrainedConfig, chosen: Mapping[str, Any], name: str) -> Fraction:
    """The new value of a field, relative to the old one; `BadSize` if that is no length."""
    _check_positive(name, get_field(config, name), "source")
    return Fraction(chosen.get(name, get_field(config, name)), get_field(config, name))


def _stretched_lists(adapter: Adapter, known: dict[str, Any], chosen: dict[str, Any]) -> dict[str, list[Any]]:
    """The fields with one entry per layer, at a new number of layers, unless they are given, too."""
    stacks = [role for role in map(adapter.roles.__getitem__, adapter.roles.depths) if role.field in chosen]
    return {
        name: stretched(known[name], chosen[role.field])
        for role in stacks
        for name in role.lists
        if name not in chosen and follows_layers(known.get(name), known.get(role.field))
    }


def follows_layers(entries: object, layers: object) -> bool:
    """Whether the value of a config field is a list with one entry per layer."""
    return isinstance(entries, (list, tuple)) and len(entries) == layers


def stretched(entries: Sequence[Any], length: int) -> list[Any]:
    """Entries repeated or left out evenly, as a first proposal: the method decides which layers there are.

    >>> stretched(["full", "local"], 4)
    ['full', 'full', 'local', 'local']
    """
    return [entries[i * len(entries) // length] for i in range(length)]


def _with_labels(config: PreTrainedConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """The overrides with the names of the labels, as `PreTrainedConfig` takes them from keywords.

    Names that are given are used. If only the number of labels is given, the source's names are kept when it
    has as many labels; otherwise labels are numbered.

    Raises:
        BadOption: a number and names that contradict each other, or names that are not valid.
    """
    if "num_labels" not in chosen and "id2label" not in chosen:
        return chosen
    count, names = chosen.get("num_labels"), chosen.get("id2label")
    fields = {name: value for name, value in chosen.items() if name != "num_labels"}
    if names is None:
        fields.pop("id2label", None)
        keeps_names = count is None or count == config.num_labels
        return fields if keeps_names else {**fields, "num_labels": count, "id2label": None, "label2id": None}
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
        fields["label2id"] = {f"LABEL_{number}": number for number in range(count)}  # as without names
    return {**fields, "id2label": dict(zip(numbers, names.values(), strict=True))}


def label_number(key: Any) -> int | None:
    """The number of a key of `id2label`, which is a string in JSON; None for any other key."""
    if isinstance(key, str):
        return int(key) if re.fullmatch(r"\d{1,9}", key, re.ASCII) else None
    return int(key) if isinstance(key, Integral) and not isinstance(key, bool) else None


def changed_fields(source: PreTrainedConfig, target: PreTrainedConfig) -> dict[str, Any]:
    """The fields in which the target's config differs, in JSON types, as a recipe stores them under `config`."""
    before, after = (flat(config, json.loads(config.to_json_string(use_diff=False))) for config in (source, target))
    skipped = ("transformers_version", "transformers_bot", "_name_or_path", "dtype", "architectures")
    changed = {key: entry for key, entry in after.items() if before.get(key, ...) != entry}
    return {key: entry for key, entry in changed.items() if key.rpartition(".")[2] not in skipped}


def differing_roles(source: dict[str, int | None], target: dict[str, int | None]) -> list[str]:
    return [role for role in source if source[role] != target[role]]


def cut_across(roles: Roles, source: Sizes, target: Sizes) -> list[str]:
    """Units, such as heads, whose number changes while all of them together keep their number of entries."""

    def entries(sizes: Sizes, unit: str, entry: str) -> int:
        return (sizes[unit] or 0) * (sizes[entry] or 0)

    return [
        unit
        for unit in roles.units
        for entry in roles.entries
        if roles[entry].within == unit
        and source[unit] != target[unit]
        and entries(source, unit, entry) == entries(target, unit, entry)
    ]


def regrouped(roles: Roles, source: Sizes, target: Sizes) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Members whose groups are formed anew -> lengths (source, target) of the groups, and of the members in them.

    Queries that share keys are such members. Where groups and members change in opposite directions, all members
    stay in their order and are dealt out to as many groups as the target has; only then a group gets fewer or more.
    """
    found = {}
    for member in roles.of("unit"):
        group = roles[member].within
        if not group or roles.kind(group) != "unit":
            continue
        (groups, wanted), (before, after) = ((source[role] or 1, target[role] or 1) for role in (group, member))
        if (wanted - groups) * (after - before) < 0 and groups * before % wanted == 0:
            found[member] = (wanted, wanted), (groups * before // wanted, after)
    return found


def smaller_roles(roles: Roles, sizes: tuple[Sizes, Sizes]) -> list[str]:
    """Roles that become shorter, except members of groups that are only formed anew."""
    kept = {member for member, (_, (before, after)) in regrouped(roles, *sizes).items() if after >= before}
    shorter = (role for role in roles.resized if (sizes[1].get(role) or 0) < (sizes[0].get(role) or 0))
    return [role for role in shorter if role not in kept]


def fields_for(roles: Roles, lengths: Sizes) -> dict[str, int]:
    """The config fields that set these lengths; of members, such as queries that share a key, a field counts all."""
    fields = {}
    for name, length in lengths.items():
        role = roles[name]
        if length is not None and isinstance(role.size, str):
            fields[role.size] = length
        elif length is not None and role.kind == "unit" and role.within:
            fields[role.field] = length * (lengths.get(role.within) or 1)
    return fields


def size_fields(adapter: Adapter) -> dict[str, str]:
    """Config field -> the role whose length it is."""
    return {role.size: name for name, role in adapter.roles.items() if isinstance(role.size, str)}


def _by_field(
    adapter: Adapter,
    config: PreTrainedConfig,
    known: dict[str, Any],
    overrides: dict[str, Any],
    remedy: Remedy,
) -> dict[str, Any]:
    """Overrides under the config's own field names; integers of other libraries (NumPy) become int."""
    aliases = {"torch_dtype": "dtype", **getattr(config, "attribute_map", {})}
    # Some models read a length of heads that their config's class does not declare.
    undeclared = {role.field for role in adapter.roles.values() if role.kind == "entry" and callable(role.size)}
    chosen: dict[str, Any] = {}
    for name, given in _by_path(config, overrides).items():
        is_known = name in known or name in aliases or name in adapter.only or name == "pruned_heads"
        is_field = is_known or name in undeclared or (has_field(config, name) and not callable(get_field(config, name)))
        if not is_field or name.rpartition(".")[2] in ("model_type", "transformers_version"):
            hint = elsewhere(name, known) or remedy(name, [*known, *aliases]) or sizes_to_set(adapter, config)
            hint = " It cannot be changed." if is_field else hint
            raise BadKeyword(f"{type(config).__name__} has no field {name!r} to set.{hint}")
        field_name = aliases.get(name, name)
        if field_name in chosen:
            raise BadKeyword(f"{field_name} is given twice, also as {name!r}; keep one.")
        if name == "architectures" and not (isinstance(given, list) and all(isinstance(each, str) for each in given)):
            raise BadOption(f"architectures is {brief(repr(given))}; it must be a list of names of model classes.")
        if isinstance(given, float) and not math.isfinite(given):
            raise BadOption(f"{name} is {given!r}; a field of a config must be a finite number.")
        is_whole = isinstance(given, Integral) and not isinstance(given, bool)
        chosen[field_name] = int(given) if is_whole else given
    return chosen


def sizes_to_set(adapter: Adapter, config: PreTrainedConfig) -> str:
    """A sentence on the fields that set the sizes of a model."""
    names = dict.fromkeys(adapter.roles[role].field for role in adapter.roles.resized)
    listed = ", ".join(name for name in names if has_field(config, name))
    return f" Its sizes are {listed}." if listed else ""


def _by_path(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in which fields of a config within the config have their paths: a dict of them is spread out.

    Raises:
        BadKeyword: a field that is given twice.
        BadOption: a config within the config that is neither a dict of its fields nor a config.
    """
    spread: dict[str, Any] = {}
    parts = inner(config)
    for name, given in overrides.items():
        entries = {name: given}
        if name in parts:
            # A whole config says every field; what names its class is no choice.
            fields = given.to_dict() if isinstance(given, PreTrainedConfig) else given
            if not isinstance(fields, Mapping):
                raise BadOption(f"{name} is {brief(repr(given))}; it must be a dict of the fields to change.")
            named = {part: entry for part, entry in fields.items() if entry != getattr(parts[name], part, ...)}
            entries = {f"{name}.{part}": entry for part, entry in named.items() if part != "transformers_version"}
        for path, entry in entries.items():
            if path in spread:
                raise BadKeyword(f"{path} is given twice; keep one.")
            spread[path] = entry
    return spread


def _length(adapter: Adapter, role: str, config: PreTrainedConfig, which: str) -> int | None:
    """The length of one role; None if only the tensor's shape tells it."""
    spec = adapter.roles[role]
    size, field = spec.size, spec.field
    length = size
    if callable(size):
        length = _computed(size, config, which, field)
    elif isinstance(size, str):
        length = get_field(config, size)
    if length is None:
        return None
    if isinstance(length, bool) or not isinstance(length, Integral):
        raise BadSize(
            f"{field} gives {brief(repr(length))} entries for {role} in the {which} config; set it to a whole number."
        )
    length = int(length)
    if length < 1:
        why = spec.empty(config) if spec.empty else f"set {field} to at least 1."
        raise BadSize(f"the {which} config leaves {length} entries for {role}: {why}")
    limit = _limit(adapter, role)
    if length > limit:
        raise BadSize(
            f"{field} gives {length} entries for {role} in the {which} config; this package allows at most {limit}. "
            "Choose a smaller size."
        )
    return length


def _computed(function: Callable[[Any], Any], config: PreTrainedConfig, which: str, fields: str) -> Any:
    """What an adapter's function gives for a config; `BadSize` where it cannot compute with the config's values."""
    try:
        return function(config)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = brief(f"{type(error).__name__}: {error}")
        raise BadSize(
            f"{fields} cannot be computed with in the {which} config ({reason}). Correct the config's sizes."
        ) from None


def _limit(adapter: Adapter, role: str) -> int:
    """The largest length that is accepted for a role."""
    kind = adapter.roles.kind(role)
    if kind == "unit" and not adapter.roles.is_whole(role):
        return MAX_UNITS
    limits: dict[str, int] = {"depth": MAX_LAYERS, "place": MAX_POSITIONS, **dict.fromkeys(FIXED, MAX_LENGTH)}
    return limits.get(kind, MAX_WIDTH)


def _with_fields(config: PreTrainedConfig, fields: dict[str, Any]) -> Any:
    changed = copy.copy(config)
    vars(changed).update({name: copy.copy(part) for name, part in inner(config).items()})
    # Not by setattr: some fields check others, which may be changed only later.
    for name, entry in fields.items():
        path, _, last = name.rpartition(".")
        part = get_field(changed, path) if path else changed
        if last in part.to_dict():
            vars(part)[last] = entry
    return changed


def _check_positive(name: str, given: object, which: str) -> None:
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 1:
        raise BadSize(f"{name} is {brief(repr(given))} in the {which} config; it must be a whole number of at least 1.")


def _check_divides(adapter: Adapter, part: str, whole: str, config: Any, which: str) -> None:
    width, count = get_field(config, whole), get_field(config, part)
    if not all(isinstance(length, int) and length > 0 for length in (width, count)):
        return  # not a number: `_length` reports it
    if width % count:
        below = width // count * count
        nearest = f"sizes are {below} and {below + count}" if below else f"size is {count}"
        if whole not in {adapter.roles[stream].field for stream in adapter.roles.streams}:
            # A multiple of the part need not divide what the whole is a part of; a divisor of the whole always fits.
            nearest = nearest_divisors(part, count, width)
        raise BadSize(
            f"{whole} {width} is not divisible by {part} {count} in the {which} config; nearest valid {nearest}."
        )


def check_supported(
    adapter: Adapter,
    configs: tuple[Any, Any],
    source: dict[str, int | None],
    target: dict[str, int | None],
) -> None:
    """Raise for fields that are not supported, and for another depth if a layer's meaning depends on its number.

    Args:
        configs: of source and target.
    """
    for config, which in zip(configs, ("source", "target"), strict=True):
        check_fields(adapter, config, which)
    config = configs[1]
    if getattr(config, "add_cross_attention", False):
        raise UnsupportedArchitecture(
            "add_cross_attention=True: its keys and values read another model's hidden states, whose size this resize "
            "cannot change. Pass add_cross_attention=False: the decoder is then resized alone, and the "
            "tensors of its cross attention are left out."
        )
    for role in adapter.roles.values():
        why = (
            next(filter(None, map(role.stays, configs)), "")
            if role.stays and source[role.name] != target[role.name]
            else ""
        )
        if why:
            raise UnsupportedArchitecture(f"{why}: keep {source[role.name]} {role.noun} ({role.field}).")
    flag = adapter.depth_flag
    for depth in adapter.roles.depths if flag and get_field(config, flag, False) else ():
        if source[depth] != target[depth]:
            raise UnsupportedArchitecture(
                f"{flag}=True divides attention scores by the layer's number, so layers cannot be moved; "
                f"keep {adapter.roles[depth].field} at {source[depth]}."
            )
