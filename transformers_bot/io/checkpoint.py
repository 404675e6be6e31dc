"""A checkpoint: checks all its files before any weight is read, then lets transformers open it.

transformers handles renames, prefixes, shards and revisions. Loaded on the CPU with its stored dtype, every tensor is a
view of the memory-mapped file: nothing is read until a step of the plan needs it.
"""

import contextlib
import copy
import json
import math
import os
import re
import shlex
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, constants
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.hub import extract_commit_hash

from ..architectures.pruned import refuse_pruned
from ..compat import building, drawn_from, quiet
from ..console.progress import logger
from ..errors import BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint
from .config_files import ConfigFile, read_json, source_config
from .files import (
    Choice,
    Folder,
    Stamp,
    candidates,
    check_unchanged,
    choose,
    clean,
    count,
    explicit_name,
    find_shards,
    finder,
    from_hub,
    is_folder,
    listed,
    no_weights,
    notes_of,
    shown_path,
    stamps_of,
)
from .fingerprints import sha256
from .weights import (
    FLOATS,
    StoredTensor,
    check_agreement,
    check_not_quantised,
    read_header,
    read_index,
    read_pickle,
    renaming,
    wrapper_hint,
    wrapper_of,
)

# transformers prefers such files to all others; each holds one rank's part of every tensor.
RANK_FILE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Checkpoint:
    """The files of a source, checked.

    Attributes:
        files: weight files, in index order; the index is not among them.
        index: the index of a sharded checkpoint, else None.
        tensors: name -> what the headers say; empty for pickled weights.
        revision: the commit for sources from the hub.
        notes: sentences for the plan: files that are not read, mixed dtypes.
        folder: the folder that holds config.json; file names are relative to it.
        elements: how many numbers all tensors hold together, those of pickled weights too.
        stamps: what each file was before it was looked at.
        wrapper: what a wrapper of the model (DistributedDataParallel, torch.compile) put before every name.
        shapes: name without the wrapper -> shape, of pickled weights too.
    """

    files: tuple[Path, ...]
    index: Path | None
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    revision: str | None
    notes: tuple[str, ...]
    folder: Path
    elements: int
    stamps: Mapping[Path, Stamp] = field(repr=False)
    wrapper: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @property
    def named(self) -> dict[str, Path]:
        """Weights and index by their names in the folder."""
        return {path.relative_to(self.folder).as_posix(): path for path in (*self.files, *filter(None, [self.index]))}

    def hashes(self, compute: bool, stopped: threading.Event | None = None) -> dict[str, str]:
        """File name -> SHA-256 of its content, weights and index.

        Args:
            compute: read files whose hash is not known. A blob in the hub's cache is named by its
                hash, which costs nothing; only those are given when off.
            stopped: ends the reading when set, by a `CancelledError`.
        """
        digests = {}
        for name, path in self.named.items():
            blob = path.resolve().name if self.revision else ""
            if SHA256.fullmatch(blob):
                digests[name] = blob
            elif compute:
                digests[name] = sha256(path, stopped, self.stamps[path])
        return digests

    def check_unchanged(self) -> None:
        """Raise if a file is no longer the one that was checked; cheap enough to call before every tensor.

        Weights are memory-mapped, not copied. If another process truncates a file, the system ends this one (SIGBUS)
        when it touches a page that is gone. Python cannot catch that, and copying each tensor first would cost what
        mapping saves, so a short moment between check and read remains unprotected. Programs that write models
        properly, and the Hub's cache, replace files and never truncate them.

        Raises:
            BadCheckpoint: it was changed, replaced or removed.
        """
        check_unchanged(self.stamps)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Wrap a library call that opens the files by name: raise if these may not be the checked ones.

        Raises:
            BadCheckpoint: a file was changed, replaced, removed or made unreadable meanwhile.
        """
        self.check_unchanged()  # if a file is a named pipe by now, the library would wait for ever
        try:
            yield
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            self.check_unchanged()
            if isinstance(error, (SafetensorError, PermissionError)):
                raise BadCheckpoint(f"the weights in {shown_path(self.folder)} cannot be read: {error}") from None
            raise
        self.check_unchanged()


def check_files(
    name: str,
    keywords: Mapping[str, Any],
    *,
    allow_pickle: bool = False,
    resampled: bool = True,
    described: ConfigFile | None = None,
) -> Checkpoint:
    """The files that transformers would load for a source, each of them checked; no weight is read.

    Example:
        >>> check_files("gpt2", {"revision": "main"}).files  # doctest: +SKIP
        (PosixPath('.../model.safetensors'),)

    Args:
        name: a folder or a hub id; of an id the config, the index, then the shards are downloaded,
            each only after the one before was found good.
        keywords: `from_pretrained`'s for the hub and for files (`variant`, `use_safetensors`).
        allow_pickle: accept pytorch_model.bin where there is no safetensors file.
        resampled: whether the weights are going to be resampled; off, quantised ones are accepted.
        described: the config.json, if it was read and checked before; the weights of an id are those of its commit.

    Raises:
        BadCheckpoint: files that are missing, damaged, or contradict each other.
        UnsafeCheckpoint: pickled weights, or names and links that lead out of the folder.
        UnsupportedCheckpoint: quantised weights, an adapter, one rank's part of a model.
        BadSize: a config with sizes no model has.
        HubError: a hub id that is not there, or cannot be reached.
    """
    config_path, config = source_config(name, keywords) if described is None else described
    if not is_folder(name) and Path(name).exists():
        raise BadCheckpoint(f"{shown_path(name)} is a file; pass the folder that holds it with its config.json.")
    folder = _folder_of(name, keywords, config_path)
    commit = None if is_folder(name) else extract_commit_hash(str(config_path), None)
    if commit:  # all files must come from one state of the repository, whatever is pushed meanwhile
        keywords = {**keywords, "revision": commit}
    shown_name = shown_path(name)
    names = candidates(keywords, explicit_name(config, shown_name))
    find = finder(name, folder, keywords)
    settings = find(GENERATION_CONFIG_NAME)
    if settings is not None:
        _check_generation(settings)
    choice = choose(find, names)
    if choice is None:
        raise no_weights(name, folder, names, keywords)
    if choice.pickled and not allow_pickle:
        raise UnsafeCheckpoint(_pickle_message(name, choice, config, keywords))
    stamps = stamps_of([choice.main])  # before the files are read, so that any later change is noticed
    index = read_index(choice.main, choice.suffix) if choice.sharded else {}
    shards = list(dict.fromkeys(index.values()))
    files = find_shards(name, folder, choice, shards, keywords) if choice.sharded else [choice.main]
    stamps |= stamps_of(path for path in files if path != choice.main)
    tensors = _tensors(choice, index, shards, files)
    check_unchanged(stamps)
    if resampled:
        check_not_quantised(shown_name, config, tensors)
    wrapper = wrapper_of(tensors)
    return Checkpoint(
        files=tuple(files),
        index=choice.main if choice.sharded else None,
        tensors={} if choice.pickled else tensors,
        revision=commit,
        notes=(*notes_of(name, folder, choice, keywords), *_dtype_note(tensors)),
        folder=folder.path,
        elements=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        stamps=stamps,
        wrapper=wrapper,
        shapes={key.removeprefix(wrapper): tensor.shape for key, tensor in tensors.items()},
    )


def _folder_of(name: str, keywords: Mapping[str, Any], config_path: Path) -> Folder:
    """The folder of a source; raise if its links or file names already show that it cannot be used."""
    if not is_folder(name):
        return Folder.at(config_path.parent)
    folder = Folder.at(name, keywords.get("subfolder") or "")
    folder.check_links()
    entries = folder.names()
    ranks = [entry for entry in entries if RANK_FILE.fullmatch(entry)]
    if ranks:
        raise UnsupportedCheckpoint(
            f"{shown_path(folder.path)} holds the parts of single ranks ({listed(ranks[:3])}), not whole tensors. "
            "Load it with the ranks that wrote it and save it with save_pretrained."
        )
    return folder


def _check_generation(path: Path) -> None:
    """Refuse a generation config that transformers cannot build; it reads it with the weights."""
    fields = read_json(path)
    try:
        GenerationConfig.from_dict(fields)
    except Exception as error:  # it computes with unchecked fields, and can raise anything
        raise BadCheckpoint(f"{shown_path(path)} cannot be used: {clean(str(error))}. Correct or remove it.") from None


def _tensors(choice: Choice, index: Mapping[str, str], shards: list[str], files: list[Path]) -> dict[str, StoredTensor]:
    """Name -> tensor over all files, checked against the index."""
    reader = read_pickle if choice.pickled else read_header
    if not choice.sharded:
        tensors = reader(choice.main)
    else:
        headers = {shard: reader(path) for shard, path in zip(shards, files, strict=True)}
        check_agreement(choice.main, index, headers)
        tensors = {name: tensor for header in headers.values() for name, tensor in header.items()}
    if not tensors:
        raise BadCheckpoint(f"{shown_path(choice.main)} holds no tensors. Download it again.")
    empty = [name for name, tensor in tensors.items() if tuple(tensor.shape) == (0,)]  # other shapes are a model's own
    if empty:
        raise BadCheckpoint(
            f"{shown_path(choice.main)} holds {count(len(empty), 'tensor')} without any element: {listed(empty[:3])}, "
            "as saving a model split over processes leaves them (DeepSpeed ZeRO-3). Gather them (zero_to_fp32.py), "
            "then save again."
        )
    return tensors


def _pickle_message(name: str, choice: Choice, config: Mapping[str, Any], keywords: Mapping[str, Any]) -> str:
    """Why a pickle is refused, and the command that converts it."""
    class_name = (config.get("architectures") or ["AutoModel"])[0]
    head = class_name if class_name.isidentifier() and hasattr(transformers, class_name) else "AutoModel"
    variant = keywords.get("variant")
    arguments = f", subfolder={json.dumps(keywords['subfolder'])}" if keywords.get("subfolder") else ""
    arguments += f", variant={json.dumps(variant)}" if variant else ""
    # Double quotes inside, so that a shell's single ones need no escapes.
    source = json.dumps(name)
    code = f'from transformers import {head} as M; M.from_pretrained({source}{arguments}).save_pretrained("converted")'
    wants_pickle = keywords.get("use_safetensors") is False
    reason = (
        f"use_safetensors=False asks for {choice.main.name}" if wants_pickle else f"only {choice.main.name} is here"
    )
    return (
        f"{shown_path(name)}: {reason}; pickle files can run code when they are opened. Convert it "
        f"(python -c {shlex.quote(code)}) and use the folder converted, or pass allow_pickle=True for a file you trust."
    )


def _dtype_note(tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    counts = Counter(tensor.dtype for tensor in tensors.values() if tensor.dtype in FLOATS)
    if len(counts) < 2:
        return ()
    parts = ", ".join(f"{dtype} ({count})" for dtype, count in counts.most_common())
    return (f"The source mixes dtypes, counted in tensors: {parts}.",)


# -- what lies beside the weights ------------------------------------------------------------------

VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
TOKENIZER = (
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
MODULES = ("modules.json", "config_sentence_transformers.json")  # of sentence-transformers
LIST_TIMEOUT = 5  # seconds that listing a repository's files may take
_WARNED: set[tuple[str, str]] = set()


def left_behind(name: str, hub: Mapping[str, Any]) -> list[str]:
    """Names of the tokenizer, processor and module files of a source, which a model in memory does not carry.

    Only the list of file names is downloaded; if it cannot be had, the result is empty.

    Args:
        name: hub id or folder.
        hub: hub keywords (revision, subfolder, token, ...).
    """
    inside = str(hub.get("subfolder") or "").strip("/")
    if os.path.isdir(name):
        present = {
            filename for filename in (*TOKENIZER, *PROCESSOR, *MODULES) if Path(name, inside, filename).is_file()
        }
    elif hub.get("local_files_only") or constants.HF_HUB_OFFLINE:
        return []
    else:
        try:
            info = HfApi(token=hub.get("token")).model_info(name, revision=hub.get("revision"), timeout=LIST_TIMEOUT)
        except Exception as error:  # the list only serves a warning, so loading must not fail because of it
            logger.info("the files of %r cannot be listed: %s", name, error)
            return []
        filenames = [file.rfilename for file in info.siblings or ()]
        present = {filename.removeprefix(f"{inside}/") if inside else filename for filename in filenames}
    return [filename for filename in (*TOKENIZER, *PROCESSOR, *MODULES) if filename in present]


def say_left_behind(name: str, hub: Mapping[str, Any], what: str) -> None:
    """Warn, once per source and process, that `what` writes only the model's own files."""
    if (name, what) in _WARNED:
        return
    _WARNED.add((name, what))
    files = left_behind(name, hub)
    if files:
        logger.warning(
            "%s holds files that %s does not write (%s): resize_checkpoint(source, out, ...) carries everything along",
            shown_path(name),
            what,
            ", ".join(files[:4]) + (", ..." if len(files) > 4 else ""),
        )


# -- whether config and weights belong together ------------------------------------------------------

# The class may have a head or a pooler that the weights lack, but not most of a model.
NEW_SHARE = 2
NEW_ELEMENTS = 1 << 20


def check_amount(checked: Checkpoint, shapes: Mapping[str, tuple[int, ...]], ties: Mapping[str, str]) -> None:
    """Refuse a config that describes a far larger model than the weights hold.

    The loader fills tensors that a checkpoint lacks with random values, in memory: a damaged size in config.json
    could cost gigabytes before the shapes are compared.

    Args:
        shapes: name -> shape of every tensor of the class that is going to open the checkpoint.
        ties: tied name -> the name that holds the tensor.

    Raises:
        BadCheckpoint: with both numbers of elements.
    """
    described = sum(math.prod(shape) for name, shape in shapes.items() if name not in ties)
    if described > NEW_SHARE * checked.elements + NEW_ELEMENTS:
        raise BadCheckpoint(
            f"{shown_path(checked.folder)}: config.json describes a model of {described:,} elements, but the weights "
            f"hold {checked.elements:,}. Config and weights do not belong together; download both from one revision."
        )


# -- opening -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
        model: the source model; its state dict holds the tensors.
        missing: tensors of the class that the checkpoint does not hold (they are random: unusable).
        unexpected: tensors of the checkpoint that the class does not have.
    """

    model: PreTrainedModel
    missing: frozenset[str]
    unexpected: tuple[str, ...]


def open_source(
    model_class: type[PreTrainedModel],
    name: str,
    config: PreTrainedConfig,
    keywords: dict[str, Any],
    checkpoint: Checkpoint | None = None,
) -> Source:
    """Load `name` into `model_class` at its own sizes, without copying its weights.

    Args:
        keywords: hub and file keywords of `from_pretrained` (revision, subfolder, variant, ...).
        checkpoint: the checked files. They are opened in their own dtype, whatever the config names, so that
            tensors stay views of them.

    Raises:
        BadCheckpoint: no tensor of the class is in the checkpoint, or tensors are empty or misshapen.
        HubError: a hub id that is not there, or cannot be reached.
    """
    if checkpoint is not None and checkpoint.wrapper and keywords.get("key_mapping") is None:
        keywords = {**keywords, "key_mapping": renaming(checkpoint.wrapper)}
    # Tensors that the files lack get random values, which are never used and must not change the caller's generator.
    reading = checkpoint.reading() if checkpoint is not None else contextlib.nullcontext()
    with from_hub(name, keywords.get("revision")), building(), reading, quiet(), drawn_from(0):
        model, info = model_class.from_pretrained(
            name,
            config=copy.deepcopy(config),
            dtype=_stored(checkpoint) or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **keywords,
        )
    state = model.state_dict()
    empty = [key for key, tensor in state.items() if tuple(tensor.shape) == (0,)]  # other shapes are a model's own
    if empty:
        raise BadCheckpoint(
            f"{len(empty)} tensors of {name} are empty ({empty[0]}, ...): they are split over processes "
            "(DeepSpeed ZeRO-3). Resize in one process first, then load the saved result."
        )
    if info["mismatched_keys"]:
        refuse_pruned(name, config, info["mismatched_keys"])
        key, stored, built = sorted(info["mismatched_keys"])[0]
        raise BadCheckpoint(
            f"{name}: {key} is {tuple(stored)} in the weights but {tuple(built)} by its own config. "
            "Config and weights do not belong together."
        )
    missing = frozenset(info["missing_keys"])
    if len(missing) >= len(set(state) - set(getattr(model, "all_tied_weights_keys", {}) or {})):
        raise BadCheckpoint(
            f"{name} holds none of the tensors of {model_class.__name__}; it has "
            f"{sorted(info['unexpected_keys'])[:3]}, ... Use the class that wrote it."
            f"{wrapper_hint(info['unexpected_keys'])}"
        )
    return Source(model, missing, tuple(sorted(info["unexpected_keys"])))


def _stored(checkpoint: Checkpoint | None) -> torch.dtype | None:
    """The floating dtype of most elements by the headers; None for pickled weights, which have none."""
    counts: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values() if checkpoint else ():
        counts[tensor.dtype] += math.prod(tensor.shape) if tensor.dtype in FLOATS else 0
    return FLOATS[counts.most_common(1)[0][0]] if counts.total() else None


def stored_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype of most of the source's elements."""
    counts: dict[torch.dtype, int] = {}
    for tensor in model.state_dict().values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])
