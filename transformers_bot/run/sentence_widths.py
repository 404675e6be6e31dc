"""The modules of a sentence-transformers folder at a resized model's width.

The data between modules is followed by name and by width: the stream of the model, copies of it side by side (two ways
of pooling), or entries of a module's own, which no resize changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..architectures.adapter import Axis, Factor, Rule
from ..errors import BadCheckpoint, BadWeights, UnsupportedCheckpoint
from ..io.files import shown
from ..io.sentences import LEAVE, LIST, WIDTHS, Folders, Module, as_json, whole_number
from ..io.weights import read_header, read_pickle
from ..methods import Fresh
from ..ops.axis_map import identity
from ..ops.recipe import apply_axis, run
from ..rewrite.folding import is_foldable, norms
from ..rewrite.network import Network
from .opening import Resize

TOKENS, WHOLE = "token_embeddings", "sentence_embedding"
MODES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
LIMITS = ("max_seq_length", "query_length", "document_length")
TASKED = {"Transformer": "feature-extraction", "MLMTransformer": "fill-mask"}  # what each does by default


@dataclass(frozen=True)
class Part:
    """A range of entries between modules: of the stream if `role` names it, else a module's own."""

    role: str
    source: int
    target: int


Flow = tuple[Part, ...]


@dataclass
class Carried:
    """What is written beside the resized model.

    Attributes:
        files: name in the result -> the file to copy, or a function that returns its bytes.
        kind: the library's class that loads the folder.
        warnings: sentences that a user should read.
    """

    files: dict[str, Path | Callable[[], bytes]]
    kind: str
    warnings: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the copied files; the generated ones have at most as many, times the growth of the width."""
        return sum(content.stat().st_size for content in self.files.values() if isinstance(content, Path))

    def write(self, folder: Path) -> None:
        """Write all of it below `folder`."""
        for name, content in self.files.items():
            place = folder / name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content.read_bytes() if isinstance(content, Path) else content())


def carry_modules(folders: Folders, resize: Resize) -> Carried:
    """The modules of a source at the width of the resized model.

    Raises:
        UnsupportedCheckpoint: a module that cannot be brought to that width, by name.
        BadCheckpoint: settings and weights that do not belong together.
        BadWeights: a module's weights that are no numbers, unless `nonfinite` says otherwise.
    """
    return _Walk(folders, resize).carried()


class _Walk:
    """Goes from the first module to the last, and follows the data between them."""

    def __init__(self, folders: Folders, resize: Resize) -> None:
        self.folders, self.resize = folders, resize
        self.result = Carried(dict(folders.files), folders.kind)
        before, after = resize.plan.source_sizes, resize.plan.target_sizes
        self.width = resize.request.adapter.roles.streams[0]  # of what the model gives; embeddings may have their own
        tail = resize.request.adapter.roles.followers(self.width)[-1] if resize.request.adapter.readout else self.width
        width = before[self.width] or 0, after[self.width] or 0
        self.stream: Flow = (Part(tail if width[0] != width[1] else "", *width),)
        self.flows: dict[str, Flow] = {}
        self.normalised = False

    def carried(self) -> Carried:
        for module in self.folders.modules:
            if module.kind in STEPS:
                STEPS[module.kind](self, module)
        self._list()
        self._advise()
        return self.result

    # -- modules, one by one ------------------------------------------------------------

    def _transformer(self, module: Module) -> None:
        settings = dict(module.settings)
        self._refuse_overrides(module)
        task = settings.get("transformer_task", TASKED[module.kind])
        own = (
            Part("", *(getattr(side, "vocab_size", 0) for side in (self.resize.request.source, self.resize.config))),
        )
        output = settings.get("module_output_name", TOKENS)
        self.flows[output if isinstance(output, str) else TOKENS] = (
            self.stream if task == TASKED["Transformer"] else own
        )
        if self._streams(self.stream):
            self._refuse_folded(module)
        changed = self._limit(settings)
        if changed:
            name = module.settings_file or "sentence_bert_config.json"
            self.result.files[name] = lambda: as_json(settings)

    def _pooling(self, module: Module) -> None:
        flow = self._flow(module, TOKENS)
        settings = dict(module.settings)
        fields = [name for name in WIDTHS if name in settings]
        if not fields:
            raise BadCheckpoint(
                f"{module.settings_file} of {self.folders.name} has no {WIDTHS[0]}. Correct it. {LEAVE}."
            )
        for name in fields:
            self._check_width(module, name, flow)
        modes = settings.get("pooling_mode")
        count = len(modes) if isinstance(modes, list) else 1
        if modes is None:
            count = max(1, sum(settings.get(f"pooling_mode_{mode}") is True for mode in MODES))
        self._settle(module, settings, dict.fromkeys(fields, _target(flow)))
        self.flows[WHOLE] = flow * count

    def _normalize(self, module: Module) -> None:
        name = str(module.settings.get("module_input_name", WHOLE))
        self.flows[str(module.settings.get("module_output_name", name))] = self._flow(module, name)
        self.normalised = True

    def _dense(self, module: Module) -> None:
        settings = dict(module.settings)
        name = str(settings.get("module_input_name") or WHOLE)
        flow = self._flow(module, name)
        self._check_width(module, "in_features", flow)
        width = whole_number(module.settings_file, settings, "out_features")
        self.flows[str(settings.get("module_output_name") or name)] = (Part("", width, width),)
        self.normalised = False
        shapes: dict[str, tuple[int, ...]] = {"linear.weight": (width, _source(flow))}
        shapes |= {"linear.bias": (width,)} if settings.get("bias", True) else {}
        if settings.get("use_residual") is True:
            if width == _source(flow) and self._streams(flow):
                raise self._refusal(module, "adds its input, at the model's width, to its output")
            shapes |= {"residual.weight": (width, _source(flow))} if width != _source(flow) else {}
        self._reads(module, flow, shapes, {name: 1 for name in shapes if name != "linear.bias"})
        self._settle(module, settings, {"in_features": _target(flow)})

    def _layer_norm(self, module: Module) -> None:
        flow = self._flow(module, WHOLE)
        self._check_width(module, "dimension", flow)
        if self._streams(flow) and self.resize.plan.method.get("basis") == "principal":
            raise self._refusal(module, "normalises single units, which a turned stream does not have")
        shapes = dict.fromkeys(("norm.weight", "norm.bias"), (_source(flow),))
        # The norm removes the scale of the stream: after it, the stream has unit gain.
        flow = tuple(replace(part, role=self.width) if part.role else part for part in flow)
        self._reads(module, flow, shapes, dict.fromkeys(shapes, 0), reads=False)
        self._settle(module, dict(module.settings), {"dimension": _target(flow)})
        self.flows[WHOLE] = flow

    def _layer_pooling(self, module: Module) -> None:
        sizes = self.resize.plan
        if any(sizes.source_sizes[stack] != sizes.target_sizes[stack] for stack in sizes.roles.depths):
            raise self._refusal(module, "has a weight for every layer, and their number changes")
        flow = self._flow(module, TOKENS)
        if self._streams(flow) and self.resize.request.adapter.readout:
            raise self._refusal(module, "mixes the stream before and after the last norm of this model")
        settings, fields = dict(module.settings), [name for name in WIDTHS if name in module.settings]
        for name in fields:
            self._check_width(module, name, flow)
        self._settle(module, settings, dict.fromkeys(fields, _target(flow)))

    def _cnn(self, module: Module) -> None:
        flow, settings = self._flow(module, TOKENS), dict(module.settings)
        fields = [f"in_{name}" for name in WIDTHS if f"in_{name}" in settings] or [f"in_{WIDTHS[0]}"]
        for name in fields:
            self._check_width(module, name, flow)
        width, lengths = whole_number(module.settings_file, settings, "out_channels"), settings.get("kernel_sizes")
        if not isinstance(lengths, list) or not all(isinstance(length, int) for length in lengths):
            raise BadCheckpoint(f"kernel_sizes in {module.settings_file} is {shown(lengths)}, no list. {LEAVE}.")
        readers = {f"convs.{i}.weight": (width, _source(flow), length) for i, length in enumerate(lengths)}
        self._reads(module, flow, readers, dict.fromkeys(readers, 1), whole=False)
        self._settle(module, settings, dict.fromkeys(fields, _target(flow)))
        self.flows[TOKENS] = (Part("", width * len(lengths), width * len(lengths)),)

    def _auto_encoder(self, module: Module) -> None:
        self._refuse_picked(module, self._flow(module, WHOLE))
        if self._streams(self._flow(module, WHOLE)):
            raise self._refusal(module, "encodes its input and decodes it again at the model's width")

    # -- what they share ----------------------------------------------------------------------------

    def _flow(self, module: Module, name: str) -> Flow:
        if name not in self.flows:
            raise BadCheckpoint(
                f"{LIST} of {self.folders.name}: {module.kind} in {module.place} reads {shown(name)}, which no module "
                f"before it gives. {LEAVE}."
            )
        return self.flows[name]

    def _streams(self, flow: Flow) -> bool:
        return any(part.role for part in flow)

    def _refusal(self, module: Module, why: str) -> UnsupportedCheckpoint:
        before, after = (side[self.width] for side in (self.resize.plan.source_sizes, self.resize.plan.target_sizes))
        return UnsupportedCheckpoint(
            f"the module {module.kind} in {module.place or 'the folder'} of {self.folders.name} cannot be carried from "
            f"width {before} to {after}: it {why}. {LEAVE}, or keep the width."
        )

    def _check_width(self, module: Module, name: str, flow: Flow) -> None:
        width = whole_number(module.settings_file, module.settings, name)
        if width != _source(flow):
            raise BadCheckpoint(
                f"{name} in {module.settings_file} of {self.folders.name} is {width}, but the module is given "
                f"{_source(flow)} entries. Correct it. {LEAVE}."
            )

    def _settle(self, module: Module, settings: dict[str, Any], widths: Mapping[str, int]) -> None:
        """Put the settings with these widths into the result, if they change."""
        if any(settings.get(name) != width for name, width in widths.items()):
            self.result.files[module.settings_file] = lambda: as_json({**settings, **widths})

    def _reads(
        self,
        module: Module,
        flow: Flow,
        shapes: Mapping[str, tuple[int, ...]],
        axes: Mapping[str, int],
        *,
        reads: bool = True,
        whole: bool = True,
    ) -> None:
        """Check a module's weights, and put them into the result at the target's width.

        Args:
            shapes: name -> shape of the tensors that must be there.
            axes: name -> the axis of a tensor that belongs to the data.
            reads: whether the tensors read the data; those of a norm have its entries instead.
            whole: whether other tensors are an error.
        """
        self._refuse_picked(module, flow)
        path = module.weights
        if path is None:
            return
        stored = (read_header if path.suffix == ".safetensors" else read_pickle)(path)
        wrong = [name for name, shape in shapes.items() if name not in stored or stored[name].shape != shape]
        if wrong or (whole and len(stored) > len(shapes)):
            shapes_in_file = {name: stored[name].shape for name in sorted(stored)[:4]}
            raise BadCheckpoint(
                f"the weights of {module.kind} in {module.place} of {self.folders.name} do not belong to its settings: "
                f"{wrong or 'others'} of {shown(shapes_in_file)}. Use a complete folder. {LEAVE}."
            )
        if self._streams(flow):
            rules = {name: _rule(name, shapes[name], axes[name], flow, reads) for name in axes}
            for rule in rules.values():
                self._recipe(module, rule)
            self.result.files[f"{module.place}/model.safetensors"] = lambda: self._weights(module, flow, rules)
        elif path.suffix != ".safetensors":
            self.result.files[f"{module.place}/model.safetensors"] = lambda: self._weights(module, flow, {})

    def _refuse_picked(self, module: Module, flow: Flow) -> None:
        """Refuse a module that reads an entry for every token, if only a part of the vocabulary is kept."""
        if any(not part.role and part.source != part.target for part in flow):
            raise UnsupportedCheckpoint(
                f"the module {module.kind} in {module.place or 'the folder'} of {self.folders.name} reads an entry for "
                f"every token, of which vocab_keep= keeps a part. {LEAVE}, or keep all tokens."
            )

    def _recipe(self, module: Module, rule: Rule) -> Any:
        recipe = self.resize.method.recipe(self.resize.task, rule, None, f"{module.place}/{rule.names}")
        if isinstance(recipe, Fresh):
            raise self._refusal(module, f"would be drawn anew by this method ({recipe.reason})")
        return recipe

    def _weights(self, module: Module, flow: Flow, rules: Mapping[str, Rule]) -> bytes:
        tensors = {}
        for name, stored in _loaded(module.weights).items():
            x = self._sound(module, name, stored)
            if name in rules:
                dim = next(
                    i for i, axis in enumerate(rules[name].axes) if any(f.role for s in axis.segments for f in s)
                )
                recipe = self._recipe(module, rules[name])
                moved = self._moved(x, dim, flow)
                x = run(recipe, lambda _, moved=moved: moved, x.dtype, torch.device("cpu"))  # type: ignore[misc]
            tensors[name] = x.contiguous()
        return safetensors.torch.save(tensors, {"format": "pt"})

    def _moved(self, x: Tensor, dim: int, flow: Flow) -> Tensor:
        """A tensor with its units in the order that the source's were brought into before the resize."""
        network = self.resize.tensors
        if not isinstance(network, Network):
            return x
        maps = [network.total_map(part.role, None) if part.role else identity(part.source) for part in flow]
        return apply_axis(
            x, dim, tuple((axis_map,) for axis_map in maps), compute=torch.promote_types(x.dtype, torch.float32)
        )

    def _sound(self, module: Module, name: str, x: Tensor) -> Tensor:
        nonfinite = self.resize.request.keywords.nonfinite
        if not x.is_floating_point() or bool(torch.isfinite(x).all()) or nonfinite == "warn":
            return x
        if nonfinite == "error":
            raise BadWeights(
                f"{name} of {module.kind} in {module.place} of {self.folders.name} holds NaN or infinity. Use a sound "
                f"checkpoint, or pass nonfinite='zero' (or 'warn') to go on."
            )
        return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)

    def _refuse_overrides(self, module: Module) -> None:
        """Refuse settings that would build another model than the resized one, or load code."""
        for name in ("model_args", "model_kwargs", "config_args", "config_kwargs"):
            overrides = module.settings.get(name) or {}
            if not isinstance(overrides, dict):
                raise BadCheckpoint(f"{name} in {module.settings_file} is {shown(overrides)}, no table. {LEAVE}.")
            for key, value in overrides.items():
                sized = name.startswith("config") and getattr(self.resize.config, key, value) != value
                if sized or (key == "attn_implementation" and "/" in str(value)):
                    raise UnsupportedCheckpoint(
                        f"{name} in {module.settings_file} of {self.folders.name} sets {shown(key)} to {shown(value)}, "
                        f"which the resized model does not have. Remove it. {LEAVE}."
                    )

    def _refuse_folded(self, module: Module) -> None:
        """Refuse a stream whose last norm has moved into a head, which this library does not load."""
        network = self.resize.tensors
        if not isinstance(network, Network) or self.resize.plan.method.get("basis") != "principal":
            return
        if any(is_foldable(network, place) for place in norms(network) if place.at is None):
            raise self._refusal(module, "loses its last norm, which is folded into the head; pass task='base'")

    def _limit(self, settings: dict[str, Any]) -> bool:
        """Limit the longest text to the target's positions; return whether anything changed."""
        plan = self.resize.plan
        before, most = (
            next((sizes[role] for role in plan.roles.of("place")), None)
            for sizes in (plan.source_sizes, plan.target_sizes)
        )
        if most is None:
            return False
        places = [(settings, name) for name in LIMITS if settings.get(name) is not None]
        for inner in ("tokenizer_args", "processor_kwargs"):
            if isinstance(settings.get(inner), dict) and settings[inner].get("model_max_length") is not None:
                settings[inner] = dict(settings[inner])
                places.append((settings[inner], "model_max_length"))
        changed = False
        for table, name in places:
            value = table[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise BadCheckpoint(
                    f"{name} of {self.folders.name} is {shown(value)}, not a length. Correct it. {LEAVE}."
                )
            if value > most:
                table[name], changed = most, True
                self.result.warnings.append(f"{name} {value} became {most}: the model has no more positions")
        if not places and before is not None and before > most:
            settings["max_seq_length"], changed = most, True
            self.result.warnings.append(f"max_seq_length is {most} now: the model has no more positions")
        return changed

    def _list(self) -> None:
        """Write modules.json with the transformer in the folder itself, where the result has it."""
        if self.folders.listed[0]["path"]:
            listed = [{**self.folders.listed[0], "path": ""}, *self.folders.listed[1:]]
            self.result.files[LIST] = lambda: as_json(listed)

    def _advise(self) -> None:
        """Warn of effects of the new width on embeddings and scores."""
        flow = self.flows.get(WHOLE, ())
        if not self._streams(flow) or self.folders.kind != "SentenceTransformer":
            return
        part = next(part for part in flow if part.role)
        ratio = part.target / part.source
        measure = self.folders.settings.get("similarity_fn_name") or "cosine"
        if measure != "cosine" and not self.normalised:
            self.result.warnings.append(
                f"scores of {shown(measure)} change their scale, because the norm of embeddings changes"
            )
        if ratio > 1 and part.target % part.source:
            self.result.warnings.append(
                f"embeddings grow {ratio:.3g}-fold, so some of their entries are repeated more often than others, and "
                "similarities change; a whole multiple of the width keeps them"
            )
        if self.folders.settings.get("truncate_dim") is not None:
            self.result.warnings.append(
                f"truncate_dim {shown(self.folders.settings['truncate_dim'])} cuts embeddings of {_source(flow)} "
                f"entries; the first ones of the new {_target(flow)} do not hold the same information"
            )


def _source(flow: Flow) -> int:
    return sum(part.source for part in flow)


def _target(flow: Flow) -> int:
    return sum(part.target for part in flow)


def _loaded(path: Path | None) -> dict[str, Tensor]:
    if path is None:
        return {}
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def _rule(name: str, shape: tuple[int, ...], dim: int, flow: Flow, reads: bool) -> Rule:
    """The rule of a module's tensor: its axis `dim` belongs to the data, its other axes are fixed."""
    stream = Axis(tuple((Factor(p.role, None if p.role else p.source, reads),) for p in flow))
    fixed = [Axis(((Factor("", length, False),),)) for length in shape]
    axes = (*fixed[:dim], stream, *fixed[dim + 1 :])
    return Rule(name, name, axes, adds=False, maps=reads)


# Modules that are not listed neither depend on a width nor change the data.
STEPS: dict[str, Callable[[_Walk, Module], None]] = {
    "Transformer": _Walk._transformer,
    "MLMTransformer": _Walk._transformer,
    "Pooling": _Walk._pooling,
    "Normalize": _Walk._normalize,
    "Dense": _Walk._dense,
    "LayerNorm": _Walk._layer_norm,
    "WeightedLayerPooling": _Walk._layer_pooling,
    "CNN": _Walk._cnn,
    "SparseAutoEncoder": _Walk._auto_encoder,
}
