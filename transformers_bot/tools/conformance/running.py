"""Tiny models with random weights, on which an adapter is tried step by step."""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from transformers import PreTrainedConfig, PreTrainedModel

from ...architectures.adapter import Adapter, Sizes
from ...architectures.inventory import inventory_of
from ...architectures.sizes import fields_for, get_field, inner, rebuild, role_sizes
from ...architectures.tiny import random_model
from ...errors import BoTError, IncompatibleModels
from .blocks import block_problems
from .grown import changes_by_deepening, changes_by_doubling, doublings, stacks_of
from .norms import kind_problems, reader_problems
from .permuted import movable, wrong_roles
from .remedy import FAILURES, Remedies
from .turned import change_by_folding, changes_by_turning, turnable, vectors_that_multiply

LAYERS = 2  # enough for layer numbers in names, and quick to build
HEADS, MEMBERS, WIDTH, FFN = 3, 2, 4, 20  # of the tiny models
ENTRIES = 64  # of their tables of tokens, positions and the like, at most
FEW = 4  # classes that are named one by one
SHOWN = 300  # characters of an error


@dataclass
class Sentences:
    """Sentences about model classes; one that several classes share is told once.

    >>> told = Sentences()
    >>> told.add("BertModel", "not run")
    >>> told.add("BertForMaskedLM", "not run")
    >>> told.lines()
    ['BertModel and BertForMaskedLM: not run']
    """

    classes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, model_class: str, sentence: str) -> None:
        names = self.classes.setdefault(sentence, [])
        if model_class not in names:
            names.append(model_class)

    def lines(self) -> list[str]:
        return [f"{_listed(names)}: {sentence}" for sentence, names in self.classes.items()]


def _listed(names: list[str]) -> str:
    if len(names) > FEW:
        return f"{names[0]} and {len(names) - 1} other classes"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


@dataclass
class Trial:
    """What became of the models of several classes.

    Attributes:
        run: the classes that were run.
        not_run: class -> why it was not run.
        tried: class -> what was tried with it.
        problems: what is wrong with the adapter.
    """

    run: list[str] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    tried: dict[str, list[str]] = field(default_factory=dict)
    problems: Sentences = field(default_factory=Sentences)


def try_models(adapter: Adapter, classes: list[type[PreTrainedModel]], config: PreTrainedConfig) -> Trial:
    """Run a tiny model of every class.

    Raises:
        BoTError: no model of such sizes can be built.
    """
    tiny = tiny_config(adapter, config)
    trial, remedies = Trial(), Remedies()
    for model_class in classes:
        name, tried = model_class.__name__, list[str]()
        try:
            sentences = _problems(adapter, random_model(model_class, tiny), remedies, tried)
        except (BoTError, *FAILURES) as error:
            trial.not_run[name] = " ".join(str(error).split())[:SHOWN] or type(error).__name__
            continue
        trial.run.append(name)
        trial.tried[name] = tried
        for sentence in sentences:
            trial.problems.add(name, sentence)
    return trial


def _problems(adapter: Adapter, model: PreTrainedModel, remedies: Remedies, tried: list[str]) -> list[str]:
    """The problems of one model. A step is done only if the steps before it have found none.

    Args:
        tried: what was tried is added to it.
    """
    other, roles = tied_otherwise(model), adapter.roles
    untied = other if other is not None and inventory_of(model).ties else model

    def by_doubling_the_other() -> list[str]:
        if other is None:
            return []
        where = f" with tie_word_embeddings={other.config.tie_word_embeddings}"
        wider = [label for label, doubled in doublings(roles).items() if set(doubled) & set(roles.streams)]
        return _by_doubling(adapter, other, remedies, where, wider)

    stacks, turned, doubled = stacks_of(adapter, model), turnable(adapter, untied), doublings(roles)
    both = " with embeddings tied and untied" if other is not None else ""
    steps: tuple[tuple[str, Callable[[], list[str]]], ...] = (
        (f"permuted {', '.join(movable(roles))}", lambda: _by_permuting(adapter, model, remedies)),
        ("norms fed" if adapter.norms else "", lambda: kind_problems(adapter, untied)),
        (f"doubled and halved {', '.join(doubled)}{both}", lambda: _by_doubling(adapter, model, remedies)),
        ("", by_doubling_the_other),
        ("", lambda: reader_problems(adapter, untied)),
        ("norms folded" if adapter.norm == "pre" else "", lambda: _by_folding(adapter, untied)),
        (f"layers taken away from {', '.join(stacks)}", lambda: block_problems(adapter, model)),
        (f"turned {', '.join(turned)}" if turned else "", lambda: _by_turning(adapter, untied)),
        ("", lambda: _by_deepening(adapter, model, tried)),
    )
    for what, step in steps:
        if sentences := step():
            return sentences
        tried += [what] if what else []
    return []


def _by_permuting(adapter: Adapter, model: PreTrainedModel, remedies: Remedies) -> list[str]:
    sizes = role_sizes(adapter, model.config, "tiny")
    wrong = wrong_roles(adapter, model, sizes)
    if not wrong:
        return []
    hint = remedies.clause(adapter, lambda changed: not wrong_roles(changed, model, sizes))
    hint = hint or _alike(adapter, wrong, sizes)
    return [
        f"permuting {' and '.join(wrong)} wherever the rules say so changes the outputs; an axis of some tensor has "
        f"the wrong role, or a role the wrong kind (what cannot be renumbered is of kind place or identity){hint}"
    ]


def _alike(adapter: Adapter, wrong: Collection[str], sizes: Sizes) -> str:
    """A hint at streams of the same length, if two of them are wrong."""
    streams = [role for role in wrong if role in adapter.roles.streams]
    if len(streams) < 2 or len({sizes[role] for role in streams}) > 1:
        return ""
    return f"; in this config {' and '.join(streams)} have one length: check with --model and one in which they differ"


def _by_doubling(
    adapter: Adapter, model: PreTrainedModel, remedies: Remedies, where: str = "", labels: Collection[str] | None = None
) -> list[str]:
    changes = changes_by_doubling(adapter, model, labels)
    if not changes:
        return []

    def succeeds(changed: Adapter) -> bool:
        if any(changes_by_doubling(changed, model, [label]) for label in changes):
            return False
        return not wrong_roles(changed, model, role_sizes(changed, model.config, "tiny"))

    return [
        f"doubling {', or '.join(changes)}{where} changes the outputs; an arrow points the wrong way, a ~ is missing, "
        "or a role that follows another (queries and keys, a readout), or gains lack what the forward pass multiplies "
        f"by{remedies.clause(adapter, succeeds)}"
    ]


def _by_folding(adapter: Adapter, model: PreTrainedModel) -> list[str]:
    if not change_by_folding(adapter, model):
        return []
    return [
        "folding the norms into the matrices that read them changes the outputs; a Norm names other readers than it "
        "has, or another gain"
    ]


def _by_turning(adapter: Adapter, model: PreTrainedModel) -> list[str]:
    sentences = []
    for stream in changes_by_turning(adapter, model):
        vectors = vectors_that_multiply(adapter, model, stream)
        hint = (
            f"; it does not where {' and '.join(vectors)} is 1: add Scale({vectors[0]!r}, (the matrix whose output it "
            "multiplies,)) to scales"
            if vectors
            else "; name in activated the matrices whose output goes through a function before it joins the stream"
        )
        sentences.append(
            f"turning {stream} into another basis, with the norms folded, changes the outputs; something acts on "
            f"single units of the stream, such as a vector that multiplies them or an activation function{hint}"
        )
    return sentences


def _by_deepening(adapter: Adapter, model: PreTrainedModel, tried: list[str]) -> list[str]:
    stacks = ", ".join(stacks_of(adapter, model))
    try:
        changes = changes_by_deepening(adapter, model)
    except IncompatibleModels as error:  # another tensor has an entry for every layer
        tried.append(f"no layers added to {stacks}: {error}")
        return []
    except BoTError as error:
        return [f"a layer more is refused: {error}"]
    tried += [] if changes else [f"layers added to {stacks}"]
    return [
        f"a new layer of {stack} that is the identity changes the outputs; what a layer computes depends on its "
        "number: name the config's lists with an entry per layer in lists, or the numbers of layers in numbered"
        for stack in changes
    ]


def tied_otherwise(model: PreTrainedModel) -> PreTrainedModel | None:
    """The model with its output embedding tied if it was not, or untied if it was; None if the class ties nothing."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = wanted = not getattr(config, "tie_word_embeddings", False)
    if getattr(type(config)(**{**config.to_dict()}), "tie_word_embeddings", wanted) != wanted:
        return None  # this type knows one way only
    other = random_model(type(model), config)
    return None if inventory_of(other).ties == inventory_of(model).ties else other


def tiny_config(adapter: Adapter, config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of a model that runs quickly. Its last tokens stand for those with a meaning of their own.

    Raises:
        BoTError: no model of such sizes can be built.
    """
    roles, fields = adapter.roles, tiny_fields(adapter, config)
    tables = [roles[name].size for name in roles.of("identity", "place")]
    lengths = {name: get_field(config, name, None) for name in tables if isinstance(name, str)}
    small = {name: ENTRIES for name, length in lengths.items() if isinstance(length, int) and length > ENTRIES}
    tiny = rebuild(adapter, config, {**fields, **small, "num_labels": 2})  # spans have two labels
    for part in (tiny, *inner(tiny).values()):
        for name, token in vars(part).items():
            if name.endswith("_token_id") and isinstance(token, int) and token >= ENTRIES:
                setattr(part, name, ENTRIES - 1)
    role_sizes(adapter, tiny, "tiny")
    return tiny


def tiny_fields(adapter: Adapter, config: PreTrainedConfig) -> dict[str, int]:
    """The config fields of a model that runs quickly. Streams of different lengths stay different."""
    roles = adapter.roles
    members = [unit for unit in roles.units if roles[unit].within]
    heads = HEADS * MEMBERS if members else HEADS
    widths = {stream: get_field(config, roles[stream].field) for stream in roles.streams}
    order = list(dict.fromkeys(widths.values()))
    lengths: dict[str, int | None] = {unit: HEADS if roles.is_whole(unit) else FFN for unit in roles.units}
    lengths |= dict.fromkeys(members, MEMBERS) | dict.fromkeys(roles.leading("entry"), WIDTH)
    lengths |= dict.fromkeys(roles.depths, LAYERS)
    # Last, because a unit may have the field of a stream.
    lengths |= {stream: heads * (WIDTH + 2 * order.index(width)) for stream, width in widths.items()}
    fields = fields_for(roles, lengths)
    return {**fields, **{part: HEADS for part, whole in adapter.divides if whole in fields and part not in fields}}
