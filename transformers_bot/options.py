"""Options of methods: `Options` for a method of your own; `BoTConfig` for BoT and its rivals, which read some of it."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial, wraps
from numbers import Integral, Rational, Real
from types import UnionType
from typing import Any, ClassVar, Self, get_args, get_type_hints

from .console.tables import html_table, page
from .errors import BadKeyword, BadOption, suggest


def option(default: Any, meaning: str, choices: tuple[Any, ...] = (), **shown: Any) -> Any:
    """A field of a method's `Options`: its default, its meaning, and its allowed values if they can be listed.

    The command line has an option of the same name and shows the meaning, the choices and the default as its help.

    Example:
        >>> option(0.5, "how much of the neighbour is blended in", number="the share is a number such as 0.5").default
        0.5

    Args:
        shown: more for the command line: `metavar`, what stands for the value in its help; `number`, what to say of a
            text that is no number; `kind`, int or float where the default does not show it; `explained=True` if the
            meaning itself tells choices and default; `by_role=True` if it takes a value for each role.
    """
    for name in shown.keys() - SHOWN:
        raise TypeError(f"option() has no argument {name!r}; it has meaning, choices, {', '.join(SHOWN)}.")
    return field(default=default, metadata={"meaning": meaning, "choices": choices, **shown})


SHOWN = ("metavar", "number", "kind", "explained", "by_role")


class _Unasked:
    """Values that every method needs, where they are no option of it.

    They lie outside of `Options`, because a dataclass would give a field the place of a class variable of that name.
    """

    positions: ClassVar[Any] = "crop"
    grids: ClassVar[Any] = "bicubic"
    reheads: ClassVar[Any] = "error"
    seed: ClassVar[Any] = 0


@dataclass(frozen=True)
class Options(_Unasked):
    """The options of a method of your own: a frozen dataclass with a field for every option.

    Example:
        >>> @dataclass(frozen=True)
        ... class Blended(Options):
        ...     share: float = option(0.5, "how much of the neighbour is blended in, from 0 to 1")
        >>> Blended.from_any({"share": 0.25})
        Blended(share=0.25)

    Four values that every method needs are those of the class: new text positions repeat the old ones, image grids
    are interpolated, another number of heads at equal width is refused, new heads are drawn with seed 0. A field
    of the same name makes such a value an option.

    Raises:
        BadOption: a value that is not among a field's choices, or no number, text or truth value where it must be one.
        BadKeyword: an option that does not exist.
    """

    def __post_init__(self) -> None:
        check_writable({f.name: getattr(self, f.name) for f in fields(self)})
        for option_field in fields(self):
            choices = option_field.metadata.get("choices")
            if choices:
                _check_choice(option_field.name, getattr(self, option_field.name), choices)
        if not isinstance(self, BoTConfig):  # whose own checks of numbers say which ones it takes
            check_types(self)

    def to_dict(self) -> dict[str, Any]:
        """The options by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_any(cls, value: "Options | Mapping[str, Any] | None") -> Self:
        """Read `bot_config=`: None, an object of this class, or a dict of its fields."""
        if isinstance(value, cls):
            return value
        if value is None or value == BoTConfig():
            return cls()
        return cls(**_checked_fields(cls, cls.__name__, value))


def check_types(options: Options) -> None:
    """Refuse a value of another type than its option, which would fail later and without the option's name."""
    declared = declared_types(type(options))
    for option_field in fields(options):
        name, value, default = option_field.name, getattr(options, option_field.name), option_field.default
        kind = declared.get(name, type(default))
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if value is default or (option_field.metadata.get("by_role") and isinstance(value, Mapping)):
            continue
        if all(one in PLAIN for one in kinds) and not any(is_of(value, one) for one in kinds):
            raise BadOption(f"{name} must be {' or '.join(PLAIN[one] for one in kinds)}, got {value!r}.")


# Types that a value can be checked for, and their names in a message.
PLAIN = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", type(None): "None"}


def is_of(value: object, kind: type) -> bool:
    """Whether a value is of one of the types of `PLAIN`: a whole number is a number, a truth value is none.

    >>> is_of(1, float), is_of(True, int)
    (True, False)
    """
    if isinstance(value, bool) or kind not in (int, float):
        return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    return isinstance(value, Integral if kind is int else Real)


def declared_types(options: type) -> dict[str, Any]:
    """The types that the options of a class are declared with; none if they cannot be evaluated."""
    try:
        hints = get_type_hints(options)
    except (NameError, TypeError):
        return {}
    return {f.name: hints[f.name] for f in fields(options)}


_explained = partial(option, explained=True)
MAX_SEED = 2**64 - 1  # the largest seed of torch's generators


def _filtered_roles() -> tuple[str, ...]:
    """The roles of all known architectures that a wavelet may filter, and "default" for all of them."""
    from .architectures import ADAPTERS

    roles = (
        role for adapter in ADAPTERS.values() for role in adapter.roles.leading("stream", "unit", "entry", "depth")
    )
    return ("default", *dict.fromkeys(roles))


class Wavelets(Mapping[str, str]):
    """Role -> wavelet, as `BoTConfig` stores it: immutable, so that it can be hashed, copied and pickled.

    >>> Wavelets({"default": "haar", "layer": "db2"}) == {"layer": "db2", "default": "haar"}
    True
    """

    def __init__(self, by_role: Mapping[str, str]) -> None:
        self._by_role = dict(by_role)  # copied because the caller's dict may change

    def __getitem__(self, role: str) -> str:
        return self._by_role[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_role)

    def __len__(self) -> int:
        return len(self._by_role)

    def __hash__(self) -> int:
        return hash(frozenset(self._by_role.items()))

    def __repr__(self) -> str:
        return repr(self._by_role)


@dataclass(frozen=True, repr=False)
class BoTConfig(Options):
    """How to resize: the one keyword `bot_config=` of every factory takes this object or its dict.

    Example:
        >>> BoTConfig(wavelet={"default": "haar", "layer": "db2"}, depth="wavelet").gain
        'consistent'

    Attributes:
        wavelet: a discrete PyWavelets wavelet, "auto" (by family and direction), or a dict from
            role ("hidden", "ffn", "heads", "kv_heads", ..., or "default" for the rest) to either.
        gain: "consistent" scales so that the network's function is kept; "raw" is the paper as written for
            the attention and MLP matrices, with everything else scaled consistently.
        depth: "wavelet" filters over layers; growing may also "repeat" layers with shared updates
            or insert "identity" blocks; shrinking may keep the "first" or "even"ly spaced layers, or the
            "strongest", which have the highest scores on the batches of `calibration=`. "auto" is identity
            and even (strongest in post-norm models with `calibration=`), and wavelet if raw.
        detail: what fills the empty detail bands when growing: "zero", "gaussian" N(0, s^2) or
            "uniform" U(-s, s). With gain "raw" all seven bands are filled (supplement D.3); with
            "consistent" only those that the grown signal cannot reach, so the function is kept. "auto" is
            gaussian in matrices that read copied units, and zero elsewhere and if raw.
        detail_scale: s in units of the low band's standard deviation; None is 1.
        heads: "whole" copies or picks whole heads, "filter" low-passes over heads, "flat" treats
            heads x head_dim as one axis as the paper does; "auto" is whole, and flat if raw.
        positions: text positions keep their index ("crop"; new ones repeat the old ones periodically) or are
            interpolated over the whole length ("interpolate").
        reheads: another head count at equal width: an "error", "resample" heads and head_dim, or
            "reshape" (keep the matrices, cut them into other heads).
        basis: when a pre-norm model shrinks, "principal" first turns the residual stream so that the low-pass
            keeps its principal part; "plain" does not. "auto" is principal if that is possible and gain is
            consistent.
        order: when a model shrinks, "similar" first puts similar MLP units and heads (post-norm: also hidden
            units) next to each other, because neighbours are merged; "strongest" picks the units with the
            highest scores on the batches of `calibration=`; "kept" does neither. "auto" is similar with gain
            "consistent", and strongest in post-norm models with `calibration=`.
        seed: of the detail noise; it is mixed with the tensor's name, so that order and sharding do not matter.
        grids: image positions (ViT, DeiT) are interpolated in 2-D. "bicubic" does as transformers with
            `interpolate_pos_encoding=True`, so that an image of the new size gives the same outputs as the
            source; "antialiased" low-passes a grid that shrinks first, so that no position is skipped.

    Raises:
        BadOption: a value that an option does not have; the message suggests the nearest one.
        BadKeyword: an option that does not exist; the message suggests the nearest one.
    """

    wavelet: str | Mapping[str, str] = _explained(
        "auto",
        "how neighbours are merged or split: haar takes pairs, db2 and longer ones blend more of them; a "
        "PyWavelets name, auto, or one per role: hidden=haar,layer=db2",
        metavar="NAME",
        by_role=True,
    )
    gain: str = _explained(
        "consistent",
        "consistent keeps what the network computes as far as its size allows (default); raw is the published "
        "method as written, for comparison",
        ("consistent", "raw"),
    )
    depth: str = _explained(
        "auto",
        "which layers the result has. Growing: identity adds layers that change nothing, repeat doubles layers, "
        "wavelet blends them. Shrinking: even keeps evenly spaced layers, first keeps the first ones, wavelet averages "
        "neighbours, strongest keeps those that do most (needs --calibration); or auto",
        ("auto", "wavelet", "repeat", "identity", "first", "even", "strongest"),
    )
    detail: str = _explained(
        "auto",
        "whether new weights get noise when growing, so that copies become different in training: zero (none), "
        "gaussian, uniform or auto",
        ("auto", "zero", "gaussian", "uniform"),
    )
    detail_scale: float | None = _explained(
        None,
        "how large that noise is, as a multiple of the weights' own spread (default: 1)",
        metavar="NUMBER",
        kind=float,
        number="the noise, as a multiple of the weights' spread: it is a number such as 0.5",
    )
    heads: str = _explained(
        "auto",
        "attention heads: whole keeps heads as they are, filter blends them, flat treats all as one axis; or auto",
        ("auto", "whole", "flat", "filter"),
    )
    # These are options here, where other methods have the values of the class.
    positions: str = _explained(  # type: ignore[misc]
        "crop",
        "text positions: crop keeps the first ones, interpolate stretches them over the new length",
        ("crop", "interpolate"),
    )
    reheads: str = _explained(  # type: ignore[misc]
        "error",
        "another number of heads at the same width: error (default), resample, or reshape, which cuts the same "
        "weights into other heads",
        ("error", "resample", "reshape"),
    )
    basis: str = _explained(
        "auto",
        "shrinking: principal keeps the directions with most energy (pre-norm models); plain keeps the "
        "directions as they are; or auto",
        ("auto", "plain", "principal"),
    )
    order: str = _explained(
        "auto",
        "shrinking: similar merges units that are alike, strongest keeps those that do most (needs "
        "--calibration), kept merges neighbours in their given order; or auto",
        ("auto", "kept", "similar", "strongest"),
    )
    seed: int = _explained(  # type: ignore[misc]
        0,
        "of the noise and of new heads, a whole number: the same seed gives the same model",
        metavar="NUMBER",
        number="a seed draws the same noise and new heads every time: it is a whole number such as 0",
    )
    grids: str = _explained(  # type: ignore[misc]
        "bicubic",
        "image positions at another size: bicubic as transformers interpolates them, or antialiased",
        ("bicubic", "antialiased"),
    )

    def __post_init__(self) -> None:
        from .ops.wavelets import NAMES, check_name  # imported late: the command line's help needs no NumPy

        super().__post_init__()
        table = self.wavelet if isinstance(self.wavelet, Mapping) else {"default": self.wavelet}
        is_checked = isinstance(self.wavelet, Wavelets)  # by another BoTConfig, or of an adapter that is not registered
        for role, wavelet in table.items():
            if not is_checked:
                _check_choice("the role of wavelet", role, _filtered_roles())
            if wavelet not in ("auto", *NAMES):
                check_name(wavelet)  # raises, with the nearest name
        if isinstance(self.wavelet, Mapping):
            object.__setattr__(self, "wavelet", Wavelets(self.wavelet))
        scale = self.detail_scale
        if scale is not None and not (_is_number(scale) and 0 <= scale <= sys.float_info.max):
            raise BadOption(f"detail_scale must be None or a number of at least 0, got {scale!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral) or not 0 <= self.seed <= MAX_SEED:
            raise BadOption(f"seed must be a whole number from 0 to {MAX_SEED} (2**64 - 1), got {self.seed!r}.")

    def __repr__(self) -> str:
        """The call that makes it, without options at their default."""
        changed = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default)
        return f"BoTConfig({', '.join(f'{name}={value!r}' for name, value in changed)})"

    def _repr_html_(self) -> str:
        """A table of all options, in which those with another value than the default are marked."""
        defaults = BoTConfig().to_dict()
        rows = [
            (name, str(value), "" if value == defaults[name] else "chosen") for name, value in self.to_dict().items()
        ]
        return page("BoTConfig", [], [html_table([("option", "value", ""), *rows])])

    def wavelet_for(self, role: str) -> str:
        """The wavelet option for a role; "auto" if none is given."""
        if isinstance(self.wavelet, str):
            return self.wavelet
        return self.wavelet.get(role, self.wavelet.get("default", "auto"))

    def to_dict(self) -> dict[str, Any]:
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        wavelet = self.wavelet if isinstance(self.wavelet, str) else dict(self.wavelet)
        return {**options, "wavelet": wavelet, "seed": int(self.seed)}


_dataclass_init = BoTConfig.__init__


@wraps(_dataclass_init)
def _checked_init(self: BoTConfig, *args: Any, **kwargs: Any) -> None:
    _check_names(BoTConfig, kwargs)
    _dataclass_init(self, *args, **kwargs)


# Replaced so that an unknown option raises an error that suggests the nearest one; editors and type checkers still
# see the fields of the dataclass.
BoTConfig.__init__ = _checked_init  # type: ignore[method-assign]


def _checked_fields(options: type, class_name: str, value: object) -> Mapping[str, Any]:
    """Check that `value` is a dict of options of the class, and return it."""
    if not isinstance(value, Mapping):
        raise BadOption(f"bot_config must be {class_name} or a dict of its fields, got {type(value).__name__}.")
    check_writable({"bot_config": value})
    _check_names(options, value)
    return value


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = suggest(value, choices)
        raise BadOption(f"{name} must be one of {', '.join(choices)}, got {value!r}.{hint}")


def _check_names(options: type, names: Iterable[object]) -> None:
    option_names = [f.name for f in fields(options)]
    for name in names:
        if name not in option_names:
            takes = f"it has {', '.join(option_names)}" if option_names else "it has none"
            raise BadKeyword(f"{options.__name__} has no option {name!r}; {takes}.{suggest(name, option_names)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_writable(values: Mapping[str, object]) -> None:
    """Refuse a number of thousands of digits, which Python itself refuses to write: no message could quote it.

    Args:
        values: name of a keyword -> its value; containers are looked into.

    Raises:
        BadOption: such a number, by the keyword that holds it.

    >>> check_writable({"n_layer": [10**5000]})
    Traceback (most recent call last):
    transformers_bot.errors.BadOption: n_layer holds a number of thousands of digits. Choose a smaller one.
    """
    keyword = _unwritable("a keyword", values, set())
    if keyword:
        raise BadOption(f"{keyword} holds a number of thousands of digits. Choose a smaller one.")


def _unwritable(keyword: str, value: object, outer: set[int]) -> str | None:
    """The innermost keyword that holds a number of thousands of digits, None where there is none."""
    if isinstance(value, Rational):
        try:
            str(value)
        except ValueError:
            return keyword
    if id(value) in outer:
        return None
    if isinstance(value, Mapping):
        inner = [(keyword, name) for name in value]
        inner += [(name if isinstance(name, str) else keyword, member) for name, member in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = [(keyword, member) for member in value]
    else:
        return None
    keywords = (_unwritable(name, member, {*outer, id(value)}) for name, member in inner)
    return next((name for name in keywords if name), None)
