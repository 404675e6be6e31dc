"""The files that go along with weights: tokenizer, processor, chat template. Copied, then checked as they lie there."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from transformers import PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.hub import list_repo_templates

from ..compat import NO_ERROR
from ..console.progress import logger
from ..errors import BadCheckpoint, IncompatibleModels, UnsafeCheckpoint
from .processors import check_images
from .reading import Folder, clean, opened, read_json, shown, shown_path
from .vocabulary import LARGE, SMALL, read_vocabulary

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
CODED = ("tokenizer_config.json", *PROCESSOR)  # which can name code
PLACE = re.compile(r"(/|~|[A-Za-z]:[/\\]|\\\\|file:)")  # what the path of a computer begins with
PLACES = ("name_or_path", "_file", "_path", "_dir")  # what the names of fields end with that hold one
TEMPLATES = "additional_chat_templates"  # named ones beside the default
MODULES = ("modules.json", "config_sentence_transformers.json")  # of sentence-transformers
SECONDS = 5  # that the list of a repository's files may take
_SAID: set[tuple[str, str]] = set()


def find(name: str, hub: Mapping[str, Any]) -> dict[str, Path]:
    """Tokenizer and processor files of a source by their names in it; those it does not have are left out.

    Args:
        name: hub id or folder.
        hub: hub keywords (revision, subfolder, token, ...).

    Raises:
        UnsafeCheckpoint: a link out of the folder, or a file too large to be what its name says.
        BadCheckpoint: something of that name that is no file.
    """
    keywords = {key: value for key, value in hub.items() if key not in ("trust_remote_code", "code_revision")}
    if os.path.isdir(name):
        folder = Folder.at(name, keywords.get("subfolder") or "")
        templates = [f"{TEMPLATES}/{path.name}" for path in sorted((folder.path / TEMPLATES).glob("*.jinja"))]
        found = {one: _located(folder, one) for one in (*TOKENIZER, *PROCESSOR, *templates) if folder.holds(one)}
    else:
        listing = {key: keywords[key] for key in ("revision", "cache_dir", "token") if key in keywords}
        named = list_repo_templates(name, local_files_only=bool(keywords.get("local_files_only")), **listing)
        templates = [f"{TEMPLATES}/{one}.jinja" for one in named]
        every = (*TOKENIZER, *PROCESSOR, *templates)
        paths = {one: cached_file(name, one, **keywords, **NO_ERROR) for one in every}
        found = {one: Path(path) for one, path in paths.items() if path}
    for one, file in found.items():
        size, most = file.stat().st_size, _most(one)
        if size > most:
            raise UnsafeCheckpoint(
                f"{one} of {name} has {size:,} bytes, more than any such file needs ({most:,}). "
                "Pass tokenizer=False to leave tokenizer and processor files out."
            )
    return found


def left_behind(name: str, hub: Mapping[str, Any]) -> list[str]:
    """Which files a source has that a model in memory cannot take along: tokenizer, processor, modules.

    Nothing is downloaded but a list of names; where there is no way to it, none is known.

    Args:
        name: hub id or folder.
        hub: hub keywords (revision, subfolder, token, ...).
    """
    inside = str(hub.get("subfolder") or "").strip("/")
    if os.path.isdir(name):
        there = {one for one in (*TOKENIZER, *PROCESSOR, *MODULES) if Path(name, inside, one).is_file()}
    elif hub.get("local_files_only") or constants.HF_HUB_OFFLINE:
        return []
    else:
        try:
            info = HfApi(token=hub.get("token")).model_info(name, revision=hub.get("revision"), timeout=SECONDS)
        except Exception as error:  # it is said for convenience: loading does not hang on it
            logger.info("the files of %r cannot be listed: %s", name, error)
            return []
        every = [file.rfilename for file in info.siblings or ()]
        there = {one.removeprefix(f"{inside}/") if inside else one for one in every}
    return [one for one in (*TOKENIZER, *PROCESSOR, *MODULES) if one in there]


def say_left_behind(name: str, hub: Mapping[str, Any], what: str) -> None:
    """Say, once in a process for every source, that `what` takes no files along but the model's own."""
    if (name, what) in _SAID:
        return
    _SAID.add((name, what))
    files = left_behind(name, hub)
    if files:
        logger.warning(
            "%s holds files that %s does not write (%s): resize_checkpoint(source, out, ...) carries everything along",
            shown_path(name),
            what,
            ", ".join(files[:4]) + (", ..." if len(files) > 4 else ""),
        )


def carry(files: Mapping[str, Path], folder: Path, config: PreTrainedConfig, positions: int | None = None) -> list[str]:
    """Copy the files into `folder` and check them against the target.

    Args:
        positions: how many tokens the target takes, None where it has no limit.

    Returns:
        Sentences that a user should read.

    Raises:
        IncompatibleModels: a tokenizer with more entries than the model has embeddings.
        BadCheckpoint, UnsafeCheckpoint: a file that cannot be read, or has grown meanwhile.
    """
    for name, file in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        copy(file, folder / name, _most(name))
    said = [sentence for name in CODED if name in files for sentence in _without_code_and_places(folder / name)]
    if set(files) & set(TOKENIZER):
        said += _check_tokenizer(folder, config, positions)
    return said + check_images(folder, config) if set(files) & set(PROCESSOR) else said


def copy(file: Path, to: Path, most: int) -> None:
    """Copy a regular file of at most so many bytes.

    Raises:
        BadCheckpoint: it cannot be read; UnsafeCheckpoint: it has more bytes.
    """
    with opened(file) as (stream, _), open(to, "wb") as copied:
        left = most
        while part := stream.read(min(2**20, left + 1)):
            left -= len(part)
            if left < 0:
                raise UnsafeCheckpoint(f"{file.name} has more than {most:,} bytes. Use the file that belongs there.")
            copied.write(part)


def code_of(auto_map: object) -> str:
    """The classes of an `auto_map`, in words."""
    classes = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    return ", ".join(shown(one) for one in classes)


def _most(name: str) -> int:
    return LARGE if name in VOCABULARIES else SMALL


def _located(folder: Folder, name: str) -> Path:
    try:
        return folder.locate(name)
    except UnsafeCheckpoint as error:
        raise UnsafeCheckpoint(f"{error} Or pass tokenizer=False to leave it out.") from None


def _without_code_and_places(path: Path) -> list[str]:
    """Take out of a file that was copied what holds elsewhere only: `auto_map`, whose code is never copied, and paths.

    Earlier versions of transformers wrote into it where on a computer each file was read.
    """
    with suppress(BadCheckpoint):  # what cannot be read is told where it is checked
        fields = read_json(path, SMALL)
        kept = {name: value for name, value in fields.items() if name != "auto_map" and not _is_place(name, value)}
        if len(kept) < len(fields):
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if "auto_map" in fields:
            named = code_of(fields["auto_map"])
            return [f"auto_map in {path.name} names code of the source ({named}), which is not copied: it is left out"]
    return []


def _is_place(name: str, value: object) -> bool:
    """Whether a field holds the absolute path of a file or folder."""
    return name.endswith(PLACES) and isinstance(value, str) and bool(PLACE.match(value))


def _check_tokenizer(folder: Path, config: PreTrainedConfig, positions: int | None) -> list[str]:
    """The tokenizer that the files give, against the model's vocabulary and positions."""
    rows = getattr(config, "vocab_size", None)
    try:
        found = read_vocabulary(folder, config)
    except BadCheckpoint as error:  # the weights are good without it
        reason = clean(str(error).replace(f"{folder}/", ""))
        return [f"the source's tokenizer files were copied but cannot be loaded: {reason}"]
    if rows is not None and found.entries > rows:
        raise IncompatibleModels(
            f"the source's tokenizer has {found.entries} entries, the model {rows} embeddings: some token ids would "
            "be out of range. Mend the source with resize_token_embeddings, or pass tokenizer=False."
        )
    if positions is not None and found.longest is not None and positions < found.longest < 10**6:
        limit = found.longest
        return [f"the tokenizer allows {limit} tokens, the model has {positions} positions: truncate at {positions}"]
    return []
