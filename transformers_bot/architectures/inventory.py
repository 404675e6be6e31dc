"""The model class of a config, its tensors (names, shapes, ties), parameters and operations; without weights."""

import copy
import importlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ..compat import blank
from ..console.text import printable
from ..errors import BadCheckpoint, BadOption, PlanError, UnsupportedArchitecture
from ..tasks import TASKS
from .adapter import Adapter, Factor, Roles, Rule, Sizes, find_rule

ModelClass = type[PreTrainedModel]


def own_class(config: PreTrainedConfig) -> ModelClass:
    """The class that a config names as its architecture; the base model if transformers has no class of that name.

    Raises:
        BadCheckpoint: a class of another model type.
    """
    return named_class(config) or class_in_mapping("MODEL_MAPPING", config, "plan")


def named_class(config: PreTrainedConfig) -> ModelClass | None:
    """The class that a config names as its architecture; None if transformers has no class of that name.

    Raises:
        BadCheckpoint: a class of another model type.
    """
    for name in config.architectures or []:
        # Skip entries that are not concrete model classes: the field may hold anything.
        model_class: Any = getattr(transformers, name, None) if isinstance(name, str) else None
        is_model = isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)
        if not is_model or model_class.forward is nn.Module.forward:
            continue
        if model_class.config_class is not type(config):
            raise BadCheckpoint(
                f"architectures in config.json names {name}, which is no {config.model_type} model. Correct that field."
            )
        return cast(ModelClass, model_class)
    return None


def class_in_mapping(mapping: str, config: PreTrainedConfig, asked_by: str) -> ModelClass:
    """The class for a config in one of transformers' task mappings, as the Auto classes choose it."""
    table = getattr(modeling_auto, mapping)
    if type(config) not in table:
        factories = _factories(config)
        if not factories:
            raise UnsupportedArchitecture(_without_auto_class(config))
        raise UnsupportedArchitecture(
            f"transformers has no head of {config.model_type} models for {asked_by}. Use {' or '.join(factories)}."
        )
    classes = table[type(config)]
    if not isinstance(classes, (list, tuple)):
        return cast(ModelClass, classes)
    # Several classes share a task (DeiT with and without a teacher): take the one that the config names.
    by_name = {candidate.__name__: candidate for candidate in classes}
    return cast(ModelClass, next((by_name[a] for a in config.architectures or [] if a in by_name), classes[0]))


def _by_use() -> list[str]:
    """All tasks, those that say most of a class first: one that writes texts also fills in words, and a class of
    `pretraining` or `base` often has a use.
    """
    first, last = ("seq2seq-lm",), ("pretraining", "base", "text-encoding")
    return [*first, *(name for name in TASKS if name not in first + last), *last]


def tasks_of(config: PreTrainedConfig, model_class: ModelClass) -> list[str]:
    """The tasks whose class for this config is `model_class`; those that say what it is used for come first."""
    tables = ((name, getattr(modeling_auto, TASKS[name].mapping)) for name in _by_use())
    classes = ((name, table[type(config)]) for name, table in tables if type(config) in table)
    return [name for name, cls in classes if model_class is (cls[0] if isinstance(cls, (list, tuple)) else cls)]


def _without_auto_class(config: PreTrainedConfig) -> str:
    """What to do with a model type that has classes, but is in no table of the Auto classes."""
    try:
        members = list(
            vars(importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))).values()
        )
    except ImportError:
        members = []
    models: list[ModelClass] = [
        model for model in members if isinstance(model, type) and issubclass(model, PreTrainedModel)
    ]
    names = [m.__name__ for m in models if m.config_class is type(config) and m.forward is not nn.Module.forward]
    said = f"no Auto class of transformers has {config.model_type} models"
    if not names:
        return f"{said}. Name their class in architectures of the config, and use resize_checkpoint."
    return (
        f"{said}, so their class must be named: set architectures=[{names[-1]!r}] in the config, which a saved "
        f"{names[-1]} has, and resize its folder with resize_checkpoint."
    )


def _factories(config: PreTrainedConfig) -> list[str]:
    """The factories that have a class for this model type."""
    tables = ((task.factory, getattr(modeling_auto, task.mapping)) for task in TASKS.values())
    return [name for name, table in tables if type(config) in table]


def auto_class_of(config: PreTrainedConfig, model_class: str) -> tuple[str, str] | None:
    """The task and the Auto class whose class for this config has this name; None if there is none.

    Of several tasks that is one which says what the class is used for.
    """
    for name, task in ((name, TASKS[name]) for name in _by_use()):
        try:
            class_name = class_in_mapping(task.mapping, config, task.factory).__name__
        except UnsupportedArchitecture:
            continue  # this model type has no such head
        if class_name == model_class:
            return name, task.auto_class
    return None


@dataclass(frozen=True, repr=False)
class Inventory:
    """Every tensor of a model, under the names that the model itself uses.

    Attributes:
        model_class: name of the class.
        prefix: the base model's prefix ("bert."), empty for a base model.
        shapes: name -> shape, in the model's order, tied names included.
        ties: tied name -> the name that holds the tensor.
    """

    model_class: str
    prefix: str
    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]

    def __repr__(self) -> str:
        return f"<Inventory: {self.model_class}, {len(self.shapes)} tensors, {len(self.ties)} of them tied>"

    def canonical(self, name: str) -> str:
        """The name without the base model's prefix, as rules are written."""
        return name.removeprefix(self.prefix)


def inventory_of(model: PreTrainedModel) -> Inventory:
    """Read the inventory off a model, real or on the meta device."""
    state = model.state_dict()
    prefix = model.base_model_prefix
    has_base = bool(prefix) and hasattr(model, prefix)
    return Inventory(
        type(model).__name__,
        f"{prefix}." if has_base else "",
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        dict(getattr(model, "all_tied_weights_keys", {}) or {}),
    )


def predict(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, init: Mapping[str, Any] | None = None
) -> Inventory:
    """The inventory that `model_class(config, **init)` would have; no memory is allocated for tensors."""
    try:
        with blank():
            # Copied because some classes write into their config (GPT2DoubleHeadsModel).
            return inventory_of(model_class(copy.deepcopy(config), **(init or {})))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        text = printable(" ".join(str(error).split()))[:300].rstrip(".")  # it may quote the config at any length
        if fields := _fields_with_unknown_name(config, error):
            reason = f"it does not know {fields}. Choose another value"
        else:
            reason = f"{type(error).__name__} {text}. Correct that field of the config"
        raise BadOption(f"transformers cannot build {model_class.__name__} from this config: {reason}.") from None


def _fields_with_unknown_name(config: PreTrainedConfig, error: Exception) -> str:
    """The fields whose value is a name, such as an activation's, that transformers did not find."""
    missing = str(error.args[0]) if isinstance(error, KeyError) and error.args else ""
    fields = {name: value for name, value in vars(config).items() if isinstance(value, str) and value}
    names = [name for name, value in fields.items() if value == missing or f"function {value} not found" in missing]
    return printable(" or ".join(f"{name}={fields[name][:80]!r}" for name in names))


def rules_of(adapter: Adapter, inventory: Inventory, sizes: Sizes) -> dict[str, tuple[Rule, int | None]]:
    """The rule and layer of every tensor; a tensor without a rule, or of another shape, is an error."""
    adapter.refuse(inventory.model_class)
    names = Counter(map(inventory.canonical, inventory.shapes))
    if twice := [name for name, count in names.items() if count > 1]:
        raise UnsupportedArchitecture(
            f"{inventory.model_class} cannot be resized with this config: its base model and its head both have a "
            f"tensor {twice[0]}, and rules cannot tell them apart."
        )
    rules = {}
    for name, shape in inventory.shapes.items():
        rule, layer = find_rule(adapter.rules, inventory.canonical(name), sizes)
        if rule.shape(sizes, shape) != shape:
            raise PlanError(
                f"{inventory.model_class}: tensor {name!r} has shape {shape}, but its rule {rule.text!r} "
                f"predicts {rule.shape(sizes, shape)}. The config and the model do not belong together."
            )
        rules[name] = (rule, layer)
    return rules


INSIDE = ("entry", "frequency")
# Tokens; the longest sequence that operations are counted for. Configs of rotary models give the longest
# possible sequence, which is seldom used.
LONGEST = 4096


@dataclass(frozen=True)
class Shapes:
    """One tensor of every stack.

    Attributes:
        roles: of the architecture.
        scored: the roles that scores sum over.
        parts: its rule, its shape, whether its name is the second one of a tied tensor, and the share of the layers
            that have it.
    """

    roles: Roles
    scored: tuple[str, ...]
    parts: tuple[tuple[Rule, tuple[int, ...], bool, Fraction], ...]

    @classmethod
    def of(cls, adapter: Adapter, inventory: Inventory, sizes: Sizes) -> "Shapes":
        stacks: dict[str, tuple[Rule, tuple[int, ...], bool]] = {}
        counts: Counter[str] = Counter()
        for name, (rule, _) in rules_of(adapter, inventory, sizes).items():
            template = rule.template(inventory.canonical(name))
            stacks.setdefault(template, (rule, inventory.shapes[name], name in inventory.ties))
            counts[template] += 1
        shares = {name: Fraction(counts[name], max(1, _times(part[0], sizes))) for name, part in stacks.items()}
        return cls(adapter.roles, adapter.scored, tuple((*part, shares[name]) for name, part in stacks.items()))

    def parameters(self, sizes: Sizes) -> int:
        """The number of parameters of a model of these sizes; tied ones count once."""
        return round(
            sum(
                share * _times(rule, sizes) * math.prod(rule.shape(sizes, shape))
                for rule, shape, tie, share in self.parts
                if not tie
            )
        )

    def flops(self, sizes: Sizes) -> int:
        """Operations of a forward pass per token at the longest sequence; a multiply-add counts as two.

        Every matrix is counted once per token. That is too much for task heads and poolers, which are
        small. The query of a token is multiplied with `sequence` keys, and as many values are added up:
        2 * sequence operations for every entry of queries and of the input of the attention's output.
        """
        matrices = sum(
            2 * share * _times(rule, sizes) * math.prod(rule.shape(sizes, shape))
            for rule, shape, _, share in self.parts
            if rule.maps
        )
        sequence = min(LONGEST, self._sequence(sizes))
        entries = sum(
            share * _times(rule, sizes) * self._attended(rule, sizes) for rule, _, tie, share in self.parts if not tie
        )
        return round(matrices + 2 * sequence * entries)

    def _sequence(self, sizes: Sizes) -> int:
        places = [sizes.get(role) or 1 for role in self.roles.of("place")]
        return max(places) if places else math.prod(sizes.get(role) or 1 for role in self.roles.of("grid"))

    def _attended(self, rule: Rule, sizes: Sizes) -> int:
        """Entries of queries that a matrix writes, and of summed values that it reads."""
        segments = [segment for axis in rule.axes for segment in axis.segments] if rule.maps else []
        of_heads = [segment for segment in segments if any(self.roles.kind(f.role) in INSIDE for f in segment)]
        attended = [segment for segment in of_heads if all(f.reads for f in segment) or self._is_query(segment)]
        return sum(math.prod(factor.length(sizes) or 1 for factor in segment) for segment in attended)

    def _is_query(self, segment: tuple[Factor, ...]) -> bool:
        return any(f.role in self.scored and not f.reads for f in segment)


def _times(rule: Rule, sizes: Sizes) -> int:
    return (sizes[rule.depth] or 0) if rule.layered else 1
