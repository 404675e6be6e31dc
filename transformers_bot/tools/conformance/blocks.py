"""Checks of the blocks: `norm`, the `+` of rules, and `undoes`.

A model is compared with one that lacks its last layer. With its output matrices at zero, a pre-norm block is the
identity. So is a post-norm block if all norms on the stream have the weight 1 and the bias 0.
"""

import copy
from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel

from ...architectures.adapter import Adapter, Norm, Rule, Sizes
from ...architectures.inventory import inventory_of, rules_of
from ...architectures.sizes import get_field, rebuild, role_sizes
from ...architectures.tiny import change, inputs, outputs
from ...compat import building, drawn_from, use_eager_attention
from .norms import Tensors

SAME = 1e-5  # relative to the largest output, see `permuted`
NEAR = 1e-3  # more than the epsilon of a norm behind another one can change


def block_problems(adapter: Adapter, model: PreTrainedModel) -> list[str]:
    """Sentences about `norm`, a missing `+` and `undoes`.

    Raises:
        ValueError: as for `wrong_roles`. Any error of the model's own.
    """
    sizes = role_sizes(adapter, model.config, "source")
    return [text for stack in adapter.roles.depths for text in _of_stack(adapter, model, sizes, stack)]


def _of_stack(adapter: Adapter, model: PreTrainedModel, sizes: Sizes, stack: str) -> Iterator[str]:
    block = _last_block(adapter, model, sizes, stack)
    if not block:
        return  # this class has another stack only
    shorter = _shorter(adapter, model, stack)
    if shorter is None:
        return
    writers = [name for name, rule in block.items() if rule.adds]
    kind = _kind(adapter, _silent(adapter, model, writers), shorter)
    if kind == adapter.norm:
        yield from _undoing(adapter, _silent(adapter, model, writers), block) if kind == "post" else ()
        return
    if kind:
        does = "changes nothing" if kind == "pre" else "still normalises the residual stream"
        yield f"a block whose output matrices are zero {does}: norm is {kind!r}, not {adapter.norm!r}"
        return
    for others in _may_add(adapter, block):
        if others and _kind(adapter, _silent(adapter, model, [*writers, *others]), shorter):
            rules = dict.fromkeys(" ".join(block[name].text.split()) for name in others)
            yield f"these write onto the residual stream and have no + in front of the stream: {'; '.join(rules)}"
            return
    yield (
        f"a block of {stack} is not the identity with those matrices at zero that have a +, not even apart from its "
        "norms: a + is missing, or stands where nothing is added to the residual stream"
    )


def _kind(adapter: Adapter, silent: PreTrainedModel, shorter: PreTrainedModel) -> str:
    """The kind of blocks if the silenced block, or its norms, is all that one model has more; else empty."""
    batch = inputs(silent)
    if change(outputs(silent, batch), outputs(shorter, batch)) < SAME:
        return "pre"
    plain = [outputs(with_plain_norms(adapter, model), batch) for model in (silent, shorter)]
    return "post" if change(*plain) < NEAR else ""


def _last_block(adapter: Adapter, model: PreTrainedModel, sizes: Sizes, stack: str) -> dict[str, Rule]:
    """The tensors of a stack's last layer and their rules."""
    last = (sizes[stack] or 1) - 1
    found = rules_of(adapter, inventory_of(model), sizes).items()
    return {name: rule for name, (rule, layer) in found if rule.depth == stack and layer == last}


def _shorter(adapter: Adapter, model: PreTrainedModel, stack: str) -> PreTrainedModel | None:
    """The model without the last layer of a stack; None if another tensor has an entry for every layer."""
    field = adapter.roles[stack].field
    config = rebuild(adapter, model.config, {field: get_field(model.config, field) - 1})
    use_eager_attention(config)
    with building(), drawn_from(0):
        shorter = type(model)(config).to(torch.float64).eval()
    state, kept = model.state_dict(), shorter.state_dict()
    if any(state[name].shape != x.shape for name, x in kept.items()):
        return None
    shorter.load_state_dict({name: state[name] for name in kept})
    return shorter


def _silent(adapter: Adapter, model: PreTrainedModel, names: Iterable[str]) -> PreTrainedModel:
    """A copy in which these tensors give zero."""
    silent = copy.deepcopy(model)
    state = silent.state_dict()
    tensors = Tensors.of(adapter, silent)
    shifted = {f"{m}.weight" for norm in adapter.norms if norm.gain == "1+w" for m in tensors.modules(norm.name)}
    with torch.no_grad():
        for name in names:
            state[name].fill_(-1.0 if name in shifted else 0.0)
    return silent


def with_plain_norms(adapter: Adapter, model: PreTrainedModel) -> PreTrainedModel:
    """A copy in which the norms that the stream goes on from do nothing but normalise."""
    plain = copy.deepcopy(model)
    tensors = Tensors.of(adapter, plain)
    state = plain.state_dict()
    with torch.no_grad():
        for norm in (norm for norm in adapter.norms if not norm.readers):
            for module in tensors.modules(norm.name):
                state[f"{module}.weight"].fill_(0.0 if norm.gain == "1+w" else 1.0)
                if f"{module}.bias" in state:
                    state[f"{module}.bias"].zero_()
    return plain


def _may_add(adapter: Adapter, block: dict[str, Rule]) -> tuple[list[str], list[str]]:
    """Tensors without a + that may write onto the stream: matrices and their biases, or norms behind them."""

    def writes(rule: Rule) -> bool:
        factors = [factor for factor in rule.factors if factor.role and not factor.reads]
        return not rule.adds and any(adapter.roles.is_network_wide(factor.role) for factor in factors)

    weights = [name for name, rule in block.items() if rule.maps and writes(rule)]
    biases = [f"{name.removesuffix('.weight')}.bias" for name in weights]
    norms = [name for name, rule in block.items() if not rule.maps and writes(rule) and name not in biases]
    return [*weights, *(name for name in biases if name in block)], norms


def _undoing(adapter: Adapter, silent: PreTrainedModel, block: dict[str, Rule]) -> Iterator[str]:
    """Norms of a post-norm block: a norm in front of another one may be scaled without any change, the last may not."""
    tensors = Tensors.of(adapter, silent)
    batch = inputs(silent)
    expected = outputs(silent, batch)
    norms = [norm for norm in adapter.norms if not norm.readers]
    inside = {norm: [m for m in tensors.modules(norm.name) if f"{m}.weight" in block] for norm in norms}
    first: list[Norm] = []
    last: list[Norm] = []
    for norm in (norm for norm in norms if inside[norm]):
        scaled = copy.deepcopy(silent)
        state, shift = scaled.state_dict(), 1.0 if norm.gain == "1+w" else 0.0
        with torch.no_grad():
            for module in inside[norm]:
                state[f"{module}.weight"].add_(shift).mul_(2).sub_(shift)
                if f"{module}.bias" in state:
                    state[f"{module}.bias"].mul_(2)
        (first if change(outputs(scaled, batch), expected) < NEAR else last).append(norm)
    names = [norm.name for norm in last]
    for norm in first if not any(norm.undoes in names for norm in first) else ():
        if names:
            yield (
                f"norm {norm.name!r} is the first of its block: undoes={' or '.join(map(repr, names))} lets it take "
                "back what the last norm of the block below did, so that added blocks change little"
            )
    for norm in (norm for norm in last if norm.undoes and len(first) + len(last) > 1):
        yield f"norm {norm.name!r} is the last of its block and undoes {norm.undoes!r}: only the first one has it"
