"""`check_files`: everything that can be known of a source's files before one weight is read."""

import contextlib
import json
import math
import re
import shlex
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.hub import extract_commit_hash

from ...errors import BadCheckpoint, UnsafeCheckpoint, UnsupportedCheckpoint
from .configs import source_config
from .files import Choice, candidates, choose, explicit_name, find_shards, finder, is_folder, no_weights, notes_of
from .hashing import sha256
from .headers import StoredTensor, read_header
from .index import check_agreement, read_index
from .jsons import read_json
from .paths import Folder, clean, count, listed, shown_path
from .pickles import read_pickle
from .quantised import FLOATS, check_not_quantised
from .stamps import Stamp, check_unchanged, stamps_of
from .wrappers import wrapper_of

# transformers loads such files in place of all others; each is one rank's part of every tensor.
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
        found = {}
        for name, path in self.named.items():
            blob = path.resolve().name if self.revision else ""
            if SHA256.fullmatch(blob):
                found[name] = blob
            elif compute:
                found[name] = sha256(path, stopped, self.stamps[path])
        return found

    def check_unchanged(self) -> None:
        """Refuse to go on where a file is no longer the one that was checked; cheap, so that it can be asked often.

        Weights are mapped, not copied. A file that another process cuts short ends this one by SIGBUS when
        a page is touched that is gone: no program can catch that in time, and reading a copy of each tensor
        costs what mapping saves. Asked before each tensor, this leaves moments for it to happen; what
        writes models as it should replaces files and never cuts them, and the Hub's cache does so, too.

        Raises:
            BadCheckpoint: it was changed, replaced or removed.
        """
        check_unchanged(self.stamps)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around a library that opens the files by their names: what it reads is what was checked, or an error says so.

        Raises:
            BadCheckpoint: a file was changed, replaced, removed or closed to this user meanwhile.
        """
        self.check_unchanged()  # the library waits for ever for what is a pipe by now
        try:
            yield
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            self.check_unchanged()
            if isinstance(error, (SafetensorError, PermissionError)):
                raise BadCheckpoint(f"the weights in {shown_path(self.folder)} cannot be read: {error}") from None
            raise
        self.check_unchanged()


def check_files(
    name: str, keywords: Mapping[str, Any], *, allow_pickle: bool = False, resampled: bool = True
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

    Raises:
        BadCheckpoint: files that are missing, damaged, or contradict each other.
        UnsafeCheckpoint: pickled weights, or names and links that lead out of the folder.
        UnsupportedCheckpoint: quantised weights, an adapter, one rank's part of a model.
        BadSize: a config with sizes no model has.
        HubError: a hub id that is not there, or cannot be reached.
    """
    config_path, config = source_config(name, keywords)
    if not is_folder(name) and Path(name).exists():
        raise BadCheckpoint(f"{shown_path(name)} is a file; pass the folder that holds it with its config.json.")
    folder = _folder_of(name, keywords, config_path)
    commit = None if is_folder(name) else extract_commit_hash(str(config_path), None)
    if commit:  # so that all files are of one state of the repository, whatever is pushed meanwhile
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
    stamps = stamps_of([choice.main])  # before the first look: what changes from here on is seen
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
        shapes={each.removeprefix(wrapper): tensor.shape for each, tensor in tensors.items()},
    )


def _folder_of(name: str, keywords: Mapping[str, Any], config_path: Path) -> Folder:
    """The folder of a source, after what can be seen from its list of names."""
    if not is_folder(name):
        return Folder.at(config_path.parent)
    folder = Folder.at(name, keywords.get("subfolder") or "")
    folder.check_links()
    held = folder.names()
    ranks = [each for each in held if RANK_FILE.fullmatch(each)]
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
    except Exception as error:  # it computes with its fields unchecked
        raise BadCheckpoint(f"{shown_path(path)} cannot be used: {clean(str(error))}. Correct or remove it.") from None


def _tensors(choice: Choice, index: Mapping[str, str], shards: list[str], files: list[Path]) -> dict[str, StoredTensor]:
    """What all headers (or pickles) say together, in agreement with the index."""
    read = read_pickle if choice.pickled else read_header
    if not choice.sharded:
        tensors = read(choice.main)
    else:
        headers = {shard: read(path) for shard, path in zip(shards, files, strict=True)}
        check_agreement(choice.main, index, headers)
        tensors = {name: tensor for held in headers.values() for name, tensor in held.items()}
    if not tensors:
        raise BadCheckpoint(f"{shown_path(choice.main)} holds no tensors. Download it again.")
    empty = [name for name, tensor in tensors.items() if 0 in tensor.shape]
    if empty:
        raise BadCheckpoint(
            f"{shown_path(choice.main)} holds {count(len(empty), 'tensor')} without any element: {listed(empty[:3])}, "
            "as saving a model split over processes leaves them (DeepSpeed ZeRO-3). Gather them (zero_to_fp32.py), "
            "then save again."
        )
    return tensors


def _pickle_message(name: str, choice: Choice, config: Mapping[str, Any], keywords: Mapping[str, Any]) -> str:
    """What is wrong with a pickle, and the command that converts it."""
    named = (config.get("architectures") or ["AutoModel"])[0]
    head = named if named.isidentifier() and hasattr(transformers, named) else "AutoModel"
    variant = keywords.get("variant")
    given = f", subfolder={json.dumps(keywords['subfolder'])}" if keywords.get("subfolder") else ""
    given += f", variant={json.dumps(variant)}" if variant else ""
    # Double quotes inside, so that a shell's single ones need no escapes.
    source = json.dumps(name)
    code = f'from transformers import {head} as M; M.from_pretrained({source}{given}).save_pretrained("converted")'
    asked = keywords.get("use_safetensors") is False
    what = f"use_safetensors=False asks for {choice.main.name}" if asked else f"only {choice.main.name} is here"
    return (
        f"{shown_path(name)}: {what}; pickle files can run code when they are opened. Convert it "
        f"(python -c {shlex.quote(code)}) and use the folder converted, or pass allow_pickle=True for a file you trust."
    )


def _dtype_note(tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    counts = Counter(tensor.dtype for tensor in tensors.values() if tensor.dtype in FLOATS)
    if len(counts) < 2:
        return ()
    parts = ", ".join(f"{dtype} ({count})" for dtype, count in counts.most_common())
    return (f"The source mixes dtypes, counted in tensors: {parts}.",)
