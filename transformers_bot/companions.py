"""The files that go along with weights: tokenizer, processor, chat template. Copied as they are, then checked."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.hub import list_repo_templates

from .errors import IncompatibleModels, UnsafeCheckpoint
from .source import quiet

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
TEMPLATES = "additional_chat_templates"  # named ones beside the default
LARGEST = 256 * 2**20  # bytes; a tokenizer of a million entries has about a tenth of that


def find(name: str, hub: Mapping[str, Any]) -> dict[str, Path]:
    """Tokenizer and processor files of a source by their names in it; those it does not have are left out.

    Args:
        name: hub id or folder.
        hub: hub keywords (revision, subfolder, token, ...).

    Raises:
        UnsafeCheckpoint: a link out of the folder, or a file too large to be what its name says.
    """
    keywords = {key: value for key, value in hub.items() if key not in ("trust_remote_code", "code_revision")}
    missing_is_fine = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    if os.path.isdir(name):
        folder = Path(name, keywords.get("subfolder") or "")
        templates = [f"{TEMPLATES}/{path.name}" for path in sorted(folder.glob(f"{TEMPLATES}/*.jinja"))]
        found = {one: folder / one for one in (*TOKENIZER, *PROCESSOR, *templates) if (folder / one).is_file()}
        _refuse_outside(found.values(), Path(name))
    else:
        listing = {key: keywords[key] for key in ("revision", "cache_dir", "token") if key in keywords}
        named = list_repo_templates(name, local_files_only=bool(keywords.get("local_files_only")), **listing)
        templates = [f"{TEMPLATES}/{one}.jinja" for one in named]
        every = (*TOKENIZER, *PROCESSOR, *templates)
        paths = {one: cached_file(name, one, **keywords, **missing_is_fine) for one in every}
        found = {one: Path(path) for one, path in paths.items() if path}
    for file in found.values():
        if file.stat().st_size > LARGEST:
            raise UnsafeCheckpoint(
                f"{file.name} of {name} has {file.stat().st_size:,} bytes, more than any tokenizer needs "
                f"({LARGEST:,}). Pass tokenizer=False to leave it out."
            )
    return found


def carry(files: Mapping[str, Path], folder: Path, config: PreTrainedConfig) -> list[str]:
    """Copy the files into `folder` and check them against the target.

    Returns:
        Sentences that a user should read.

    Raises:
        IncompatibleModels: a tokenizer with more entries than the model has embeddings.
    """
    for name, file in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
    said = _check_tokenizer(folder, config) if set(files) & set(TOKENIZER) else []
    return said + _check_images(folder, config) if PROCESSOR[0] in files else said


def _refuse_outside(files: Iterable[Path], folder: Path) -> None:
    """Links may lead around within the folder, or to the hub cache's blobs beside its snapshot."""
    roots = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        roots.append(folder.resolve().parent.parent / "blobs")
    for file in files:
        if not any(file.resolve().is_relative_to(root) for root in roots):
            raise UnsafeCheckpoint(
                f"{file.name} of {folder} is a link out of the folder. Pass tokenizer=False, or copy the file."
            )


def _check_tokenizer(folder: Path, config: PreTrainedConfig) -> list[str]:
    """The tokenizer as a user is going to load it, against the model's vocabulary and positions."""
    rows = getattr(config, "vocab_size", None)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), config=config, trust_remote_code=False)
    except Exception as error:  # whatever a foreign file makes a parser raise: the weights are good without it
        reason = " ".join(str(error).split())[:200]
        return [f"the source's tokenizer files were copied but cannot be loaded: {type(error).__name__} {reason}"]
    if rows is not None and len(tokenizer) > rows:
        raise IncompatibleModels(
            f"the source's tokenizer has {len(tokenizer)} entries, the model {rows} embeddings: some token ids would "
            "be out of range. Mend the source with resize_token_embeddings, or pass tokenizer=False."
        )
    longest = getattr(config, "max_position_embeddings", None)
    limit = tokenizer.model_max_length
    if longest is not None and longest < limit < 10**6:
        return [f"the tokenizer allows {limit} tokens, the model has {longest} positions: truncate at {longest}"]
    return []


def _check_images(folder: Path, config: PreTrainedConfig) -> list[str]:
    """The image processor's size against the model's."""
    try:
        size = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8")).get("size")
    except (AttributeError, ValueError) as error:
        return [f"the source's preprocessor_config.json was copied but cannot be read: {error}"]
    height = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
    wanted = getattr(config, "image_size", None)
    if isinstance(wanted, int) and isinstance(height, int) and height != wanted:
        return [f"preprocessor_config.json makes images of {height} pixels, the model takes {wanted}: set its size"]
    return []
