"""Checks of the norms: which there are, what each computes, and which matrices read it.

A norm is known by what it does, not by its class: its output stays the same if its input is scaled.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...architectures.adapter import DEPTH, Adapter, Norm, Rule
from ...architectures.inventory import inventory_of, rules_of
from ...architectures.sizes import role_sizes
from ...architectures.tiny import STREAM_ONLY, change, inputs, outputs

LARGE = 100.0  # the spread of inputs of a norm: its epsilon does not count
NEAR = 1e-3  # relative; norms compute in float32 in a model of any dtype
NORMALISED = ("stream", "entry", "frequency")  # behind norms on other roles nothing is turned or filtered
SAME = 1e-5  # relative to the largest output, see `permuted`


@dataclass(frozen=True)
class Tensors:
    """The tensors of a model by the names of rules.

    Attributes:
        rules: name -> rule.
        layers: name -> the layer that it belongs to; None outside of the layers.
        templates: template of a tensor -> its names, one per layer.
    """

    rules: dict[str, Rule]
    layers: dict[str, int | None]
    templates: dict[str, list[str]]

    @classmethod
    def of(cls, adapter: Adapter, model: PreTrainedModel) -> "Tensors":
        inventory = inventory_of(model)
        found = rules_of(adapter, inventory, role_sizes(adapter, model.config, "source"))
        templates: dict[str, list[str]] = {}
        for name, (rule, _) in found.items():
            templates.setdefault(rule.template(inventory.canonical(name)), []).append(name)
        rules = {name: rule for name, (rule, _) in found.items()}
        return cls(rules, {name: layer for name, (_, layer) in found.items()}, templates)

    def modules(self, template: str) -> list[str]:
        """The modules of a name without ".weight" as adapters write it, one per layer."""
        return [name.removesuffix(".weight") for name in self.templates.get(f"{template}.weight", ())]

    def weights(self, template: str) -> list[str]:
        """The tensors of a module's weight, or of a parameter that has this name itself, one per layer."""
        return self.templates.get(f"{template}.weight") or self.templates.get(template) or []

    def template(self, module: str) -> str:
        """The name of a module as adapters write it."""
        weight = f"{module}.weight"
        return next(t for t, names in self.templates.items() if weight in names).removesuffix(".weight")


def kind_problems(adapter: Adapter, model: PreTrainedModel) -> list[str]:
    """Sentences about norms that the adapter lacks, or that compute something else than it says.

    Args:
        model: without tied tensors, because a tied reader cannot be scaled alone.

    Raises:
        ValueError: as for `wrong_roles`. Any error of the model's own.
    """
    tensors = Tensors.of(adapter, model)
    wrong = [text for norm in adapter.norms for text in _kind_problems(norm, model, tensors)]
    return [*_missing(adapter, model, tensors), *wrong]


def reader_problems(adapter: Adapter, model: PreTrainedModel) -> list[str]:
    """Sentences about the readers of norms.

    Args, Raises: as for `kind_problems`.
    """
    tensors = Tensors.of(adapter, model)
    readers = _readers(model, tensors)
    # If the stream is all that a class returns, a norm outside of the layers may be read by that alone.
    inside = [
        norm
        for norm in adapter.norms
        if re.search(DEPTH, norm.name) or STREAM_ONLY not in outputs(model, inputs(model))
    ]
    return [text for norm in inside for text in _reader_problems(norm, model, tensors, readers)]


# -- what a norm computes -------------------------------------------------------------------------


def _kind_problems(norm: Norm, model: PreTrainedModel, tensors: Tensors) -> Iterator[str]:
    for name in tensors.modules(norm.name)[:1]:
        kind, gain = _computed(model.get_submodule(name))
        if kind and kind != norm.kind:
            does = "subtracts the mean" if kind == "layer" else "does not subtract the mean"
            yield f"norm {norm.name!r} {does}: its kind is {kind!r}"
        if gain and gain != norm.gain:
            yield f"norm {norm.name!r} multiplies by {gain.replace('w', 'its weight')}: its gain is {gain!r}"


def _computed(module: nn.Module) -> tuple[str, str]:
    """The kind and the gain of a norm, as far as they show; empty of another module."""
    norm = copy.deepcopy(module)
    x = _input(norm)
    if not is_norm(norm, x):
        return "", ""
    return "layer" if _close(_call(norm, x), _call(norm, x + LARGE)) else "rms", _gain(norm, x)


def is_norm(module: nn.Module, x: Tensor) -> bool:
    """Whether a module's output stays the same if its input is doubled."""
    try:
        return _close(_call(module, x), _call(module, 2 * x))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False  # it takes something else


def _gain(module: Any, x: Tensor) -> str:
    """The gain that a weight of 0, or of -1, makes vanish; empty if neither does."""
    for gain, weight in (("w", 0.0), ("1+w", -1.0)):
        with torch.no_grad():
            module.weight.fill_(weight)
        y = _call(module, x)
        if _close(y, y[:1].expand_as(y)):  # the bias alone is the same for every input
            return gain
    return ""


def _input(module: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return LARGE * torch.randn(5, len(module.weight), generator=generator, dtype=module.weight.dtype)


def _call(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = module(x)
    return y


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= NEAR * b.abs().max().clamp_min(1e-12))


# -- which norms there are, and what reads them ---------------------------------------------------


def _missing(adapter: Adapter, model: PreTrainedModel, tensors: Tensors) -> Iterator[str]:
    """Norms that `norms` does not name, with what to write."""
    stems = [t.removesuffix(".weight") for t in tensors.templates if t.endswith(".weight")]
    for stem in stems:
        name = tensors.modules(stem)[0]
        rule = tensors.rules[f"{name}.weight"]
        normalised = any(adapter.roles.kind(role) in NORMALISED for role in rule.roles)
        if stem in adapter.norm_names or len(rule.axes) != 1 or not normalised:
            continue
        kind, gain = _computed(model.get_submodule(name))
        if kind:
            norm = Norm(stem, kind="rms" if kind == "rms" else "layer", gain="1+w" if gain == "1+w" else "w")
            readers = _readers(model, tensors).get(stem, [])
            if readers and _only_read_by(readers, norm, model, tensors):
                norm = replace(norm, readers=tuple(readers))
            yield f"{stem!r} is a norm, but norms does not name it: add {_written(norm)}"


def _written(norm: Norm) -> str:
    """A norm as adapters write it, without what holds by default."""
    plain = Norm(norm.name)
    told = {name: value for name, value in vars(norm).items() if value != getattr(plain, name)}
    return f"Norm({', '.join([repr(norm.name), *(f'{name}={value!r}' for name, value in told.items())])})"


def _readers(model: PreTrainedModel, tensors: Tensors) -> dict[str, list[str]]:
    """Module with a vector for a weight -> the matrices whose input is its output; names are those of rules."""
    weights = {name.removesuffix(".weight"): rule for name, rule in tensors.rules.items() if name.endswith(".weight")}
    norms = [name for name, rule in weights.items() if len(rule.axes) == 1]
    matrices = [name for name, rule in weights.items() if rule.maps]
    rows: dict[str, list[Tensor]] = {}

    def keep(name: str, x: Any = None) -> None:
        if isinstance(x, Tensor):
            rows.setdefault(name, []).append(x.detach().reshape(-1, x.shape[-1]))

    handles = [
        *(
            model.get_submodule(name).register_forward_hook(lambda *args, name=name: keep(name, args[-1]))
            for name in norms
        ),
        *(
            model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: keep(name, *args[:1]))
            for name in matrices
        ),
    ]
    try:
        outputs(model, inputs(model))
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, list[str]] = {}
    for norm in norms:
        read = [m for m in matrices if any(_among(x, y) for x in rows.get(m, ()) for y in rows.get(norm, ()))]
        found.setdefault(tensors.template(norm), []).extend(tensors.template(m) for m in read)
    order = list(dict.fromkeys(map(tensors.template, matrices)))
    return {norm: sorted(set(read), key=order.index) for norm, read in found.items()}


def _among(some: Tensor, rows: Tensor) -> bool:
    """Whether all of some rows, such as the first position's, are among others."""
    if some.shape[-1] != rows.shape[-1] or not len(some):
        return False
    return bool((some[:, None] == rows[None]).all(-1).any(1).all())


def _reader_problems(
    norm: Norm, model: PreTrainedModel, tensors: Tensors, readers: dict[str, list[str]]
) -> Iterator[str]:
    """A norm whose readers are not those that it has in this model."""
    if not tensors.modules(norm.name):
        return
    named = [reader for reader in norm.readers if tensors.weights(reader)]
    found = readers.get(norm.name, [])
    if named and _only_read_by(named, norm, model, tensors) in (True, None):
        return
    if found and _only_read_by(found, norm, model, tensors):
        says = f"its readers are {_tuple(named)}" if named else "it names none of them"
        yield f"norm {norm.name!r} is read by {' and '.join(found)} and nothing else, but {says}"
    elif named:
        yield (
            f"norm {norm.name!r} is not read by its readers {_tuple(named)} alone: name all of them, or none if the "
            "residual stream itself goes on from the norm"
        )


def _only_read_by(readers: list[str], norm: Norm, model: PreTrainedModel, tensors: Tensors) -> bool | None:
    """Whether outputs stay the same if the norm is scaled and these matrices take that back; None if they cannot."""
    scaled = copy.deepcopy(model)
    state = scaled.state_dict()
    modules = tensors.modules(norm.name)
    scale = 1 + torch.rand(len(state[f"{modules[0]}.weight"]), generator=torch.Generator().manual_seed(0))
    shift = 1.0 if norm.gain == "1+w" else 0.0
    with torch.no_grad():
        for name in (f"{module}.{part}" for module in modules for part in ("weight", "bias")):
            if name in state:
                one = shift if name.endswith(".weight") else 0.0
                state[name].copy_((state[name] + one) * scale - one)
        layers = {tensors.layers[f"{module}.weight"] for module in modules}  # the first one may lack the norm
        ties = inventory_of(model).ties
        for name in [name for reader in readers for name in tensors.weights(reader)]:
            if name in ties or name in ties.values():
                return None  # its other name would be scaled, too
            if None not in layers and tensors.layers[name] is not None and tensors.layers[name] not in layers:
                continue
            dim = _read_axis(tensors.rules[name])
            times, rest = divmod(state[name].shape[dim], len(scale))  # a classifier may read two vectors side by side
            if rest:
                return None
            state[name].div_(scale.repeat(times).view([-1 if i == dim else 1 for i in range(state[name].dim())]))
    batch = inputs(model)
    return change(outputs(scaled, batch), outputs(model, batch)) < SAME


def _read_axis(rule: Rule) -> int:
    """The axis that a matrix reads; keys read what queries write, but their axis is written."""
    factors = [[factor for segment in axis.segments for factor in segment] for axis in rule.axes]
    return next(i for i, axis in enumerate(factors) if all(factor.reads and not factor.crosses for factor in axis))


def _tuple(names: list[str]) -> str:
    return repr(tuple(names))
